"""References: values that can be compared, kept in sets and sent, and that are never results."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import FrozenInstanceError

import pytest

from handoff_dask.model.refs import Ref

REF = Ref(("load", 1), "d")


def test_value():
    """A Ref is equal to another of the same function and DAG, hashable, and survives copies."""
    assert Ref(("load", 1), "d") == REF != Ref(("load", 1), "e")
    assert {REF, pickle.loads(pickle.dumps(REF)), copy.deepcopy(REF)} == {REF}
    assert repr(REF) == "Ref(id=('load', 1), dag_id='d')"
    with pytest.raises(FrozenInstanceError):
        REF.id = "other"


@pytest.mark.parametrize(
    "use",
    [
        bool,
        list,
        len,
        int,
        math.floor,
        lambda ref: ref(),
        lambda ref: ref[0],
        lambda ref: 1 in ref,
        lambda ref: ref + 1,
        lambda ref: 1 / ref,
        lambda ref: ref < 1,
        lambda ref: -ref,
        lambda ref: [*ref],
    ],
)
def test_use_as_if_it_were_the_result(use):
    """A Ref has no value: the error says what to do instead."""
    with pytest.raises(TypeError, match=r"Ref\(id=\('load', 1\).*DAG\.add\(\)"):
        use(REF)


def test_attributes_of_the_result():
    """A Ref has no attributes of the result, and the error says so."""
    with pytest.raises(AttributeError, match=r"'shape'.*does not exist yet"):
        _ = REF.shape
    assert not hasattr(REF, "shape")
