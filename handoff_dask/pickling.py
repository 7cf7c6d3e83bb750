"""Pickles users' code so that errors in it name its file and line."""

from __future__ import annotations

import io
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle


def _with_file(make: Callable[..., CodeType], args: tuple[Any, ...], filename: str) -> CodeType:
    return make(*args).replace(co_filename=filename)


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    make, args = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _with_file, (make, args, code.co_filename)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    """Pickles as cloudpickle does, and keeps the file names of code that is pickled by value.

    Since 3.1.3, cloudpickle replaces them by ``<dynamic-code>``.
    """

    dispatch_table: ClassVar = ChainMap(
        {CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table
    )


def dumps(value: object, buffer_callback: Callable[[Any], Any] | None = None) -> bytes:
    """Pickle a value; what cannot be imported is pickled by value.

    `buffer_callback` is as for ``pickle.dumps``.

    Examples
    --------
    >>> import pickle
    >>> from handoff_dask.pickling import dumps
    >>> square = pickle.loads(dumps(lambda x: x * x))
    >>> square(3)
    9
    """
    with io.BytesIO() as file:
        Pickler(file, buffer_callback=buffer_callback).dump(value)
        return file.getvalue()
