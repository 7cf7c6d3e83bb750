"""The progress of a run as JSON, for programs."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import IO, Any

from handoff_dask.cli.exit_codes import problem_of
from handoff_dask.cli.result_files import as_json, labels
from handoff_dask.client.explaining import RunExplanation
from handoff_dask.client.progress_display import Display
from handoff_dask.client.results import ExecutionResult
from handoff_dask.model import jsonable
from handoff_dask.model.dag import DAG
from handoff_dask.placement.events import Waiting


class JsonLines(Display):
    """Write an object a line, for programs: the events ``start``, ``progress`` and ``end``.

    `results` says whether ``end`` contains the results.
    """

    interval = 1.0

    def __init__(self, stream: IO[str], *, results: bool = False) -> None:
        self._stream = stream
        self._results = results

    def _event(self, event: str, **facts: Any) -> None:
        line = json.dumps(jsonable.loose({"event": event, "time": time.time(), **facts}))
        with contextlib.suppress(BrokenPipeError):  # the reader has gone; the run goes on
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def start(self, dag: DAG) -> None:
        """Write the event ``start``."""
        super().start(dag)
        self._names = labels(self.ids)
        self._event("start", dag_id=jsonable.text(dag.id), functions=len(self.ids))

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Write the event ``progress``."""
        waits = {
            self._names[id_]: {
                "reason": w.reason,
                "resources": {n: {"needed": a, "free": b} for n, (a, b) in w.resources.items()},
            }
            for id_, w in why.items()
            if isinstance(w, Waiting)
        }
        self._event("progress", **counts, waits=waits, seconds_left=left)

    def end(self, result: ExecutionResult | None, failure: BaseException | None) -> None:
        """Write the event ``end``."""
        problem = None if failure is None else problem_of(failure)
        results: dict[str, Any] = {}
        if self._results and result is not None:
            document, _ = as_json(result)
            results = {name: document[name] for name in ("results", "left_out")}
        self._event(
            "end",
            **results,
            exit_code=0 if problem is None else problem.code,
            error=None if problem is None else problem.message,
            seconds=self.seconds,
            done=0 if result is None else len(result.allocations),
        )
