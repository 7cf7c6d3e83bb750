"""Large values go in and out through shared memory."""

from __future__ import annotations

import gc
import os
import pickle

import numpy as np
import pytest

from handoff_dask.worker.isolation import segments
from handoff_dask.worker.isolation.segments import KEPT, LARGE, pack, unpack
from tests.worker.isolation.calling import few_descriptors, run, value


def arrived(thing, *, shared=True):
    """Send a value to ourselves."""
    packed = pack(thing)
    fds = [os.dup(fd) for fd in packed.fds]
    packed.close()
    return unpack(packed.data, packed.places, fds, shared=shared)


@pytest.mark.parametrize("shared", [True, False])
def test_arrays(shared):
    """Arrays of any size and layout arrive, and can be written to if they could be before."""
    read_only = np.frombuffer(bytes(2 * LARGE), dtype=np.uint8)
    large = np.arange(1_000_000.0)
    sent = [large, large[:5], large[::2], large.reshape(1000, 1000).T, np.zeros((0, 3)), read_only]
    result = arrived(sent, shared=shared)
    for before, after in zip(sent, result, strict=True):
        assert np.array_equal(before, after)
        assert before.flags.writeable == after.flags.writeable
    result[0][0] = 7
    assert large[0] == 0


def test_results_are_passed_on_without_a_copy():
    """A result that arrived in a segment is sent on in it: all of it, or a part."""
    result = arrived(np.arange(1_000_000.0))
    packed = pack([result, result[1000:900_000], np.arange(1_000_000.0)])
    try:
        assert [place.segment for place in packed.places] == [0, 0, 1]
        assert [place.offset for place in packed.places] == [0, 8000, 0]
    finally:
        packed.close()


def test_what_children_write_stays_theirs():
    """An array in a child can be written to, and nobody else sees that."""
    result = arrived(np.zeros(1_000_000))
    copy = arrived(result, shared=False)
    copy += 1
    assert result.sum() == 0
    result += 2
    assert copy.sum() == 1_000_000
    assert arrived(result, shared=False)[0] == 2


def test_segments_are_released():
    """With the last reference, the memory is unmapped and its descriptor closed."""

    def state():
        gc.collect()
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), maps.read().count("memfd:handoff")

    before = state()
    results = [arrived(np.zeros(200_000)) for _ in range(KEPT + 10)]
    assert state() == (before[0] + KEPT, before[1] + KEPT + 10)
    view = results[-1][10:20]
    results.clear()
    assert state() == (before[0] + 1, before[1] + 1)
    del view
    assert state() == before
    assert not segments._results


def test_a_failure_closes_what_was_made():
    """A value that cannot be pickled leaves no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((TypeError, pickle.PicklingError)):
        pack([np.zeros(1_000_000), (i for i in ())])
    assert len(os.listdir("/proc/self/fd")) == before


def test_in_and_out(pool):
    """A gigabyte goes in and out, is the child's to change, and stays as it was here."""
    array = np.zeros(125_000_000)

    def change(given):
        given += 1
        return given

    result = value(run(pool, change, array))
    assert (result[0], result[-1], array[0]) == (1, 1, 0)
    again = value(run(pool, change, result))
    assert (again[-1], result[-1]) == (2, 1)


def test_many_arrays(pool):
    """A value may have more large buffers than a message can carry descriptors."""
    results = [value(run(pool, lambda n=n: np.full(200_000, n))) for n in range(20)]
    arrays = [*results, *(np.full(200_000, n) for n in range(300))]
    assert value(run(pool, lambda given: [a[0] for a in given], arrays)) == [a[0] for a in arrays]


def test_results_without_descriptors(pool):
    """A result for which no descriptor is left fails its function, and the error says why."""
    value(run(pool, os.getpid))
    with few_descriptors(0):
        ended = run(pool, np.zeros, 1_000_000)
    assert (ended.outcome, ended.value.message) == ("error", "[Errno 24] Too many open files")
    assert value(run(pool, np.zeros, 1_000_000))[0] == 0


def test_results_that_cannot_be_passed_on():
    """A result arrives although no descriptor is left to pass it on by, later, without a copy."""
    packed = pack(np.ones(200_000))
    with few_descriptors(0):
        result = unpack(packed.data, packed.places, packed.fds, shared=True)
    assert result.sum() == 200_000


def test_large_pickles(pool):
    """What has no buffers travels whole."""
    text = "x" * 50_000_000
    assert value(run(pool, lambda given: given + "y", text)) == text + "y"
