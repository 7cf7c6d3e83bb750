"""Dataframes through the gate: the same results as with plain Dask, shuffles included."""

from __future__ import annotations

import warnings

import dask
import dask.bag
import dask.dataframe as dd
import numpy
import pandas
import pytest
from dask import delayed

from handoff_dask import DAG, AllocationError, DAGError, compute, persist
from tests.support import gpu_client

GPU = {"resources": {"gpu": 1}}
# What dask does with pandas and numpy is deprecated here and there.
pytestmark = pytest.mark.filterwarnings("ignore:::dask[.]")
CHECKS = {
    pandas.DataFrame: pandas.testing.assert_frame_equal,
    pandas.Series: pandas.testing.assert_series_equal,
    pandas.Index: pandas.testing.assert_index_equal,
}


@pytest.fixture(scope="module")
def client():
    with gpu_client() as client:
        yield client


@pytest.fixture
def frame():
    """Return four partitions; no two rows have the same values."""
    numbers = numpy.arange(40)
    table = pandas.DataFrame(
        {"name": [f"n{i}" for i in numbers % 7], "x": numbers * 7 % 40, "y": numbers / 4}
    )
    return dd.from_pandas(table, npartitions=4)


@pytest.fixture
def files(frame, tmp_path):
    """Return a folder of Parquet files."""
    frame.to_parquet(tmp_path)
    return tmp_path


def assert_equal(ours, expected, ordered=True):
    """Check values, their types, and their order unless a shuffle leaves it open."""
    assert type(ours) is type(expected)
    if type(expected) in CHECKS:
        if not ordered:
            ours, expected = rows_in_order(ours), rows_in_order(expected)
        CHECKS[type(expected)](ours, expected)
    elif isinstance(expected, (list, tuple)):
        for one, other in zip(ours, expected, strict=True):
            assert_equal(one, other, ordered)
    else:
        numpy.testing.assert_array_equal(ours, expected)


def rows_in_order(table):
    rows = table.reset_index()
    return table.iloc[rows.sort_values(list(rows.columns)).index]


def total(table):
    return table.x.sum()


# Programs


def reductions(frame):
    by_name = frame.groupby("name")
    return frame.x.sum(), by_name.agg({"x": ["sum", "std"], "y": "max"}), by_name.x.median()


def columns(frame):
    return frame, frame.x, frame.index, frame[frame.x > 9].assign(z=frame.x + 1), len(frame)


def ordered(frame):
    return frame.set_index("x"), frame.sort_values("x"), frame.set_index("x").y.loc[3:9].sum()


def joined(frame):
    means = frame.groupby("name").x.mean().rename("mean").reset_index()
    with_means = frame.merge(means, on="name", how="left", suffixes=("", "_mean"))
    return with_means, with_means.groupby("name")["mean"].max()


def windows(frame):
    return frame.x.cumsum(), frame.x.rolling(3).mean(), dd.concat([frame, frame]), frame.describe()


def to_others(frame):
    parts = [delayed(len)(part) for part in frame.to_delayed()]
    return frame.x.to_bag(), delayed(sum)(parts), frame[["x", "y"]].values, frame.x.values.sum()


def from_others(frame):
    bag = dask.bag.from_sequence([{"a": i} for i in range(6)], npartitions=3)
    meta = {"name": frame.name.dtype, "x": "int64", "y": "float64"}
    return (
        bag.to_dataframe(),
        dd.from_delayed(frame.to_delayed(), meta=meta).y.max(),
        dd.from_dask_array(frame[["x", "y"]].to_dask_array(lengths=True), columns=["a", "b"]),
    )


def shuffled(frame):
    return (
        frame.shuffle("name"),
        frame.groupby("name").apply(total, meta=("x", "int64")),
        frame.groupby("name").y.mean(split_out=2),
        frame.merge(frame.assign(z=frame.x % 3), on="name", broadcast=False),
    )


def shuffled_by_the_default_of_the_moment(frame):
    return (
        frame.drop_duplicates(["name", "x"], split_out=3),
        frame.x.unique(split_out=2),
        frame.x.nunique(),
        frame.drop_duplicates(split_out=3).shuffle("name").drop_duplicates(split_out=2).x.sum(),
    )


def shuffled_by_p2p(frame):
    by_name = frame.shuffle("name", shuffle_method="p2p")
    return by_name, by_name.merge(frame, on="x", shuffle_method="p2p"), frame.x.sum()


ORDERED = [reductions, columns, ordered, joined, windows, to_others, from_others]
SHUFFLED = [shuffled, shuffled_by_the_default_of_the_moment, shuffled_by_p2p]


@pytest.mark.parametrize("program", ORDERED + SHUFFLED, ids=lambda program: program.__name__)
def test_programs(client, frame, program):
    """A program gives what dask.compute gives, also when it is persisted before."""
    collections = program(frame)
    expected = dask.compute(*collections)
    keeps_order = program in ORDERED
    assert_equal(compute(*collections), expected, keeps_order)
    assert_equal(compute(collections[0]), expected[:1], keeps_order)
    persisted = persist(*collections)
    for one, other in zip(persisted, collections, strict=True):
        assert type(one) is type(other)
    assert_equal(compute(*persisted), expected, keeps_order)
    assert_equal(dask.compute(*persisted), expected, keeps_order)


def test_files(client, files):
    """Files are read as often as a program asks for them."""
    table, some = dd.read_parquet(files), dd.read_parquet(files, columns=["name", "x"])
    program = table, some.x.sum(), table.merge(some, on="name").y.sum(), table.y.max()
    assert_equal(compute(*program), dask.compute(*program))


def test_written_files(client, frame, tmp_path):
    """Writing is a collection, too."""
    (_,) = compute(frame.to_parquet(tmp_path, compute=False))
    assert_equal(dd.read_parquet(tmp_path).compute(), frame.compute())


def test_persisted_in_between(client, frame):
    """One can go on with a persisted dataframe as with any other."""
    (half,) = persist(frame.set_index("x"))
    assert half.known_divisions
    program = half.y.sum(), half.loc[3:9], half.groupby("name").y.max(), half.reset_index().x.min()
    assert_equal(compute(*program), dask.compute(*program))


def test_p2p_whose_tasks_exist():
    """Where Dask has made the tasks of a P2P shuffle, an error says how to avoid that."""
    frame = dd.from_pandas(pandas.DataFrame({"x": range(4)}), npartitions=2)
    parts = frame.shuffle("x", shuffle_method="p2p").to_delayed()
    with pytest.raises(DAGError, match=r'P2P.*shuffle_method="tasks"'):
        DAG.from_dask(*parts)


# Annotations


def test_annotations_around(client, frame):
    """Expressions keep no annotations of their own; those around the call apply."""
    with dask.annotate(**GPU):
        assert {f.cost["gpu"] for f in DAG.from_dask(frame.x.sum()).functions.values()} == {1}
        assert_equal(compute(frame.x.sum()), (frame.x.sum().compute(),))


def test_annotations_around_the_call_only(client, frame, monkeypatch):
    """Dask warns that a dataframe ignores annotations; here it does not, so nothing warns."""
    monkeypatch.setattr("dask.dataframe.dask_expr._collection._WARN_ANNOTATIONS", True)
    total = frame.x.sum()
    with warnings.catch_warnings(), dask.annotate(**GPU):
        warnings.simplefilter("error")
        assert compute(total) == (780,)


def test_impossible_annotations_around(client, frame):
    """They are an error at once, also where Dask computes divisions before there is a graph."""
    with dask.annotate(resources={"gpu": 2}), pytest.raises(AllocationError, match="gpu"):
        compute(frame.set_index("x"))


def test_annotated_users_of_partitions(client, frame):
    """What is made of the partitions of a dataframe keeps its annotations."""
    parts = frame.to_delayed()
    with dask.annotate(**GPU):
        totals = [delayed(total)(part) for part in parts]
    functions = DAG.from_dask(totals).functions
    assert [functions[t.key].cost for t in totals] == [{"gpu": 1}] * 4
    assert_equal(compute(*totals), dask.compute(*totals))
