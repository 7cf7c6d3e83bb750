"""References to the functions of a DAG, for building it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn


@dataclass(frozen=True, slots=True)
class Ref:
    """The result that a function of a DAG will have; ``DAG.add`` and ``DAG.map`` return it.

    Pass it as an argument to further calls of ``add`` and ``map``: by position or keyword, by
    itself or inside lists, tuples, sets, dicts and partial calls. The code gets the result.

    Parameters
    ----------
    id
        The function.
    dag_id
        The DAG.

    Examples
    --------
    >>> from handoff_dask import DAG
    >>> dag = DAG("sum")
    >>> dag.add(int, "42")
    Ref(id='int', dag_id='sum')
    """

    id: Hashable
    dag_id: Hashable

    if not TYPE_CHECKING:  # so that type checkers report misuse as well, here and below

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"{self!r} has no attribute {name!r}: {_HINT}")


def key_in(dag_id: Hashable, id: Any) -> Any:
    """Return the id that a ref of a DAG stands for; anything else unchanged."""
    return id.id if isinstance(id, Ref) and id.dag_id == dag_id else id


_HINT = (
    "it stands for a result that does not exist yet. Pass it to DAG.add() or DAG.map(); the code "
    "gets the result."
)


def _refusing(what: str) -> Any:
    def refuse(self: Ref, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{self!r} {what}: {_HINT}")

    return refuse


_OPERATORS = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor".split()
for _name in (
    *_OPERATORS,
    *(f"r{name}" for name in _OPERATORS),
    *("neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "int", "float", "index"),
):
    setattr(Ref, f"__{_name}__", _refusing("cannot be calculated with"))
for _name, _what in {
    "bool": "is neither true nor false",
    "call": "cannot be called",
    "iter": "cannot be iterated over",
    "len": "has no length",
    "contains": "contains nothing",
    "getitem": "has no items",
}.items():
    setattr(Ref, f"__{_name}__", _refusing(_what))
