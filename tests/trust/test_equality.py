"""Records with users' values can be compared and hashed, whatever the values are."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from handoff_dask import Argument, Function, execute_local
from tests.support import dag_of


class Incomparable:
    def __eq__(self, other):
        raise TypeError("not to be compared")

    __hash__ = None


VALUES = [np.arange(3), [np.arange(3)], {"a": np.eye(2)}, Incomparable()]


def both(data, *_):
    return data


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_results(value):
    """A result equals itself, whatever it contains, and can be put in a set."""
    result = execute_local(dag_of(Function("a", [], both, [value])))
    other = pickle.loads(pickle.dumps(result))
    assert result == result and result != other
    assert result in [other, result] and len({result, other}) == 2


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_functions_and_arguments(value):
    """They are equal if their fields are; values that cannot be compared equal only themselves."""

    def made(value):
        argument = Argument("b", (both, [value]))
        return Function("a", [argument], both, [value], {"x": value}, results=value)

    function, same, other = made(value), made(value), made(copy.deepcopy(value))
    for one, two, three in [
        (function, same, other),
        (function.args[0], same.args[0], other.args[0]),
    ]:
        assert one == two and hash(one) == hash(two)
        assert one != three and hash(one) == hash(three)
        assert one != "a" and one in [three, one]
        assert len({one, two, three}) == 2
