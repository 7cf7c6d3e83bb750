"""What runs on the worker around the user's code.

The arguments of these functions are bytes, so that neither the scheduler nor the way there needs
the user's modules; a worker opens them when it runs them.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from handoff_dask import _compat
from handoff_dask.model.expansion import Call, evaluate, finish

#: Topic under which workers tell the scheduler what became of an attempt.
TOPIC = "handoff"


def run(codes: tuple[bytes, ...], call: bytes, *values: Any) -> Any:
    """Make a pickled call.

    Parameters
    ----------
    codes
        The pickled callables.
    call
        A pickled ``Call`` whose codes are numbers into `codes`.
    *values
        The results of the functions that it depends on.
    """
    started = time.time()
    try:
        return evaluate(
            Call(*pickle.loads(call)),
            values,
            _compat.worker_address,
            lambda number: _load(codes[number]),
        )
    except Exception as error:
        _report_failure(error, started)
        raise


def run_and_discard(codes: tuple[bytes, ...], call: bytes, *values: Any) -> None:
    """Make a pickled call whose result nobody wants."""
    run(codes, call, *values)


def run_transform(codes: tuple[bytes, ...], call: bytes, data: Any) -> Any:
    """Call a transform: ``fn(data, source_node, target_node, *static_args)``."""
    started = time.time()
    try:
        mark = _compat.task_annotations().get("handoff", {})
        (code,) = codes
        _, _, static, _ = pickle.loads(call)
        return finish(_load(code)(data, mark.get("source"), mark.get("target"), *static))
    except Exception as error:
        _report_failure(error, started)
        raise


@lru_cache(maxsize=512)
def _load(code: bytes) -> Callable[..., Any]:
    loaded: Callable[..., Any] = pickle.loads(code)
    return loaded


def _report_failure(error: BaseException, started: float) -> None:
    """Tell the scheduler of a failed attempt, ahead of Dask's own message on the same stream."""
    _compat.log_from_task(
        TOPIC,
        {
            "action": "attempt-failed",
            "started": started,
            "stopped": time.time(),
            "error_type": type(error).__name__,
            "message": str(error),
        },
    )
