"""The keys of a run, and what can be read off them."""

from __future__ import annotations

import pytest
from dask.utils import key_split
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.wire.keys import SHARED, index_of, is_shared, node_key, run_of, shared_key

RUN = "0123456789abcdef0123456789abcdef"


@given(st.from_regex(r"[a-z]\w{0,20}", fullmatch=True), st.uuids(), st.integers(0, 10**6))
def test_a_key_tells_its_run_and_its_node(prefix, run, index):
    """What a key was made of can be read off it."""
    key = node_key(prefix, run.hex, index)
    assert (run_of(key), index_of(key), is_shared(key)) == (run.hex, index, False)


def test_shared_data():
    """A key of shared data tells its run, and each is a task group of its own under one prefix."""
    keys = [shared_key(RUN, number) for number in range(3)]
    assert all(map(is_shared, keys))
    assert {run_of(key) for key in keys} == {RUN}
    assert len({name for name, _ in keys}) == 3
    assert {key_split(key) for key in keys} == {SHARED}


@pytest.mark.parametrize(
    "key", ["x", 1, (), ("x",), ("sum-1234", 0, 1), (1, 2), b"x", ("a-b-c-d", 3)]
)
def test_keys_of_others(key):
    """A key that Handoff did not make belongs to no run."""
    assert run_of(key) != RUN
