"""Plain Dask code through the gate: the same results, and what annotations ask for."""

from __future__ import annotations

import operator
import warnings

import dask
import dask.array
import dask.bag
import numpy
import pytest
from dask import delayed

from handoff_dask import (
    DAG,
    AllocationError,
    Function,
    FunctionFailedError,
    compute,
    current,
    persist,
)
from tests.support import gpu_client, where

GPU = {"resources": {"gpu": 1}}


@pytest.fixture(scope="module")
def client():
    with gpu_client() as client:
        yield client


@delayed(pure=False)
def show(*args, **kwargs):
    return args, kwargs


def randoms(chunks=(25, 50)):
    return dask.array.random.default_rng(1).random((100, 100), chunks=chunks)


#: Attempts of note_and_fail(); workers run in this process.
TRIED = []


def note_and_fail():
    TRIED.append(current().attempt)
    raise ValueError("no")


# Programs


def sums():
    x = randoms()
    return x.sum(), x.mean(axis=0), x.std(), (x + x.T)[::3, 2:].max(axis=1)


def products():
    x = randoms(50)
    return dask.array.tensordot(x, x, axes=1), x @ x[:, :10]


def rechunked():
    return randoms().rechunk((50, 20)), randoms().rechunk({0: 10}).sum(axis=1)


def rechunked_by_p2p():
    x = randoms()
    with dask.annotate(priority=1):
        y = x.rechunk((10, 100), method="p2p")
    return y + 1, (y.T @ y).rechunk((100, 7), method="p2p")[:3], y[:10]


def words():
    bag = dask.bag.from_sequence(["a b", "b c", "c"] * 3, npartitions=4).str.split().flatten()
    return bag, bag.frequencies(), bag.map(len).fold(operator.add), bag.count()


def pipeline():
    with dask.annotate(**GPU, retries=2):
        trained = [show(i) for i in range(4)]
    with dask.annotate(priority=10):
        best = delayed(max)(trained)
    return best, trained, show(best, k=trained)


def mixed():
    x = randoms()
    return {"array": x, 1: [show(x.sum()), 2, {"bag": dask.bag.range(3, npartitions=2)}]}, x, 3


def the_same_twice():
    x = show(1)
    return x, [x, show(x)], (x,), dask.array.ones(3), dask.array.ones(3)


def empty():
    x = dask.array.ones((0, 3), chunks=2)
    return x, x.sum(), dask.bag.from_sequence([], npartitions=2), delayed([])


def literals():
    return delayed(5), delayed([1, delayed(2)]), delayed({"k": 1})


PROGRAMS = [
    sums, products, rechunked, rechunked_by_p2p, words, pipeline, mixed, the_same_twice, empty,
    literals,
]  # fmt: skip


def assert_equal(ours, expected):
    """Check values, and their types at any depth."""
    assert type(ours) is type(expected)
    if isinstance(expected, (list, tuple)):
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, dict):
        assert list(ours) == list(expected)
        assert_equal(list(ours.values()), list(expected.values()))
    elif isinstance(expected, (float, numpy.ndarray)):
        assert getattr(ours, "dtype", None) == getattr(expected, "dtype", None)
        numpy.testing.assert_allclose(ours, expected)
    else:
        assert ours == expected


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.filterwarnings("ignore:Increasing number of chunks", "ignore::RuntimeWarning")
def test_programs(client, program):
    """A program gives what dask.compute gives, in form, order and type."""
    collections = program()
    expected = dask.compute(*collections)
    assert_equal(compute(*collections), expected)
    assert_equal(compute(collections[0]), expected[:1])


@pytest.mark.parametrize("program", [sums, words, pipeline, the_same_twice, literals])
@pytest.mark.filterwarnings("ignore:Increasing number of chunks")
def test_persisted_programs(client, program):
    """Persisted collections are of the same kinds, and work here and with plain Dask."""
    collections = program()
    expected = dask.compute(*collections)
    persisted = persist(*collections)
    assert_equal(dask.compute(*persisted), expected)
    assert_equal(compute(*persisted), expected)
    for one, other in zip(persisted, collections, strict=True):
        assert isinstance(other, type(one))
    with_more = show(persisted[0])
    assert_equal(compute(with_more), dask.compute(with_more))
    assert_equal(compute(*persist(*persisted)), expected)


def test_arrays_persisted_keep_their_form(client):
    """A persisted array has its chunks and type, and can be computed with like any other."""
    x = randoms()
    (y,) = persist(x)
    assert (y.chunks, y.dtype, y.name) == (x.chunks, x.dtype, x.name)
    expected = (x + x.T).sum().compute()
    assert_equal(compute((y + y.T).sum()), (expected,))
    assert_equal(dask.compute((y + y.T).sum()), (expected,))


def test_futures_as_arguments(client):
    """Futures in a graph are inputs, as with plain Dask, whether tasks were fused or not."""
    future = client.submit(int, "4")
    with dask.config.set({"optimization.fuse.delayed": True}):
        assert compute(show([show(future, {"k": future})])) == ((([((4, {"k": 4}), {})],), {}),)
    assert compute(show(future, k=future)) == (((4,), {"k": 4}),)


@pytest.mark.parametrize("arguments", [(), (1, "x"), ([1], {"k": None})])
def test_without_collections(client, arguments):
    """What holds no collection is passed through."""
    assert compute(*arguments) == arguments
    assert persist(*arguments) == arguments


def test_untraversed(client):
    """With traverse=False, collections inside lists stay collections."""
    one = show(1)
    ((inside,), value) = compute([one], one, traverse=False)
    assert inside is one and value == ((1,), {})


# Annotations


@pytest.mark.parametrize("program", [randoms, lambda: dask.bag.range(3, npartitions=3), show])
@pytest.mark.parametrize("run", [compute, persist])
def test_impossible_annotations(client, program, run):
    """A cost that no worker has is an error at once, where plain Dask waits for ever."""
    with dask.annotate(resources={"gpu": 2}):
        collection = program()
    with pytest.raises(AllocationError, match="gpu"):
        run(collection)
    with dask.annotate(resources={"gpu": 2}), pytest.raises(AllocationError, match="gpu"):
        run(program())


def test_annotations_around_are_applied_without_a_warning(client):
    """They become fields; a task sees its cost, and annotations of other kinds stay."""
    with warnings.catch_warnings(), dask.annotate(**GPU, owner="me"):
        warnings.simplefilter("error")
        (cost,) = compute(delayed(lambda: dict(current().cost))())
        assert dask.get_annotations() == {**GPU, "owner": "me"}
    assert cost == {"gpu": 1}


def test_annotated_retries(client):
    """A task is tried as often as its annotation says."""
    TRIED.clear()
    with dask.annotate(retries=1):
        failing = delayed(note_and_fail)()
    with pytest.raises(FunctionFailedError):
        compute(failing)
    assert TRIED == [1, 2]


def test_annotated_workers(client):
    """A task runs on the worker that its annotation names."""
    addresses = list(client.run(lambda: 0))
    for address in addresses:
        with dask.annotate(workers=[address]):
            there = [delayed(where)(i) for i in range(3)]
        assert compute(*there) == (address,) * 3


def test_annotated_preferences(client):
    """Any of several workers will do, and with allow_other_workers any at all."""
    with dask.annotate(workers=list(client.run(lambda: 0))):
        anywhere = delayed(where)()
    with dask.annotate(workers=["nobody"], allow_other_workers=True):
        elsewhere = delayed(where)()
    assert set(compute(anywhere, elsewhere)) <= set(client.run(lambda: 0))
    with dask.annotate(workers=["nobody"]), pytest.raises(AllocationError, match="nobody"):
        compute(delayed(where)())


# Errors


def test_errors_name_the_key(client):
    """The error names the key, and its cause is what the task raised."""
    failing = delayed(operator.truediv)(1, 0, dask_key_name="failing")
    with pytest.raises(FunctionFailedError, match=r"'failing'.*ZeroDivisionError") as caught:
        compute(show(failing), max_retries=0)
    assert caught.value.function_id == "failing"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    (persisted,) = persist(failing, max_retries=0)
    with pytest.raises(Exception, match="division by zero"):
        persisted.compute()


@pytest.mark.parametrize(
    ("run", "options", "problem"),
    [
        (compute, {"results": "all"}, r"compute\(\) has no results=.*execute\(DAG.from_dask"),
        (compute, {"on_error": "continue"}, "all values or raises.*execute"),
        (compute, {"detach": True}, "no detach=.*submit"),
        (persist, {"results": "all"}, r"persist\(\) has no results=.*submit\(DAG.from_dask"),
        (persist, {"detach": True}, "no detach=.*submit"),
        (compute, {"scheduler": "threads"}, "unexpected.*'scheduler'.*max_retries"),
    ],
)
def test_wrong_options(run, options, problem):
    """Options that have no meaning here are refused, with what to use instead."""
    with pytest.raises(TypeError, match=problem):
        run(show(1), **options)


def test_dags_are_refused(client):
    """A DAG goes to execute(), which knows its costs."""
    with pytest.raises(TypeError, match=r"execute\(\)"):
        compute(DAG().add_function(Function("f", code=int)))
