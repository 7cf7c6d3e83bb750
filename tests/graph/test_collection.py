"""A DAG is a Dask collection: any Dask scheduler runs it, without our plugin."""

from __future__ import annotations

import operator
import pickle

import dask
import pytest
from dask.base import tokenize
from dask.graph_manipulation import bind, checkpoint, wait_on
from distributed import Client, futures_of

from handoff_dask import (
    DAG,
    Argument,
    CyclicDependencyError,
    DAGError,
    Function,
    MissingFunctionError,
)


def fail(*args):
    raise ZeroDivisionError("no")


def show(data, *args):
    return (data, *args)


def negate(data, *ends):
    return -data


def log(value, path):
    """Append a value to a file, for what happens in another place than the test."""
    with open(path, "a") as file:
        file.write(f"{value}\n")
    return value


def make_dag():
    """Return a DAG with an inline function, transforms and costs that no worker has."""
    return (
        DAG("d")
        .add_function(Function("a", [], int, extra_args=["20"], cost={"gpu": 10**6}))
        .add_function(Function("i", ["a"], operator.add, extra_args=[1], type="inline"))
        .add_function(Function(("b", 1), ["i"], operator.mul, extra_args=[2], node="nowhere"))
        .add_function(Function("c", [Argument("a", show, (show, ["x"]))], lambda data: data))
        .add_function(
            Function(
                "nested",
                code=dict,
                extra_args=[{"k": [Argument("i"), (Argument("a", negate), 1)]}],
                extra_kwargs={"a": Argument("a")},
            )
        )
    )


RESULTS = {
    "a": 20,
    ("b", 1): 42,
    "c": ((20, "local", "local"), "local", "local", "x"),
    "nested": {"k": [21, (-20, 1)], "a": 20},
}


@pytest.fixture(scope="module")
def client():
    with Client(
        processes=False,
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=":0",
        set_as_default=False,
    ) as client:
        yield client


@pytest.mark.parametrize(
    "use", [dask.compute, dask.persist, lambda dag: dag.compute(), dask.is_dask_collection]
)
@pytest.mark.parametrize(
    ("functions", "error"),
    [
        ([Function("a", ["nobody"], max)], MissingFunctionError),
        ([Function("a", ["b"], max), Function("b", ["a"], max)], CyclicDependencyError),
    ],
)
def test_invalid(use, functions, error):
    """A DAG that is not valid fails by its own error, not by one of Dask's graph."""
    dag = DAG()
    for function in functions:
        dag.add_function(function)
    with pytest.raises(error):
        use(dag)


def test_failure():
    """Without the plugin a function's exception is raised as Dask raises it."""
    dag = make_dag().add_function(Function("bad", ["a"], fail))
    with pytest.raises(ZeroDivisionError, match="no"):
        dag.compute()


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_compute(scheduler):
    """Each regular function's result comes by its id; costs and pins stand in nobody's way."""
    assert dask.is_dask_collection(make_dag())
    assert dask.compute(make_dag(), scheduler=scheduler) == (RESULTS,)
    assert make_dag().compute(scheduler=scheduler) == RESULTS


def test_compute_among_others():
    """DAGs and delayed values are computed together, each result in its own place."""
    values = [dask.delayed(operator.neg)(i) for i in range(3)]
    first, second = make_dag(), make_dag()
    computed = dask.compute(values[0], {"k": [first, values[1]]}, second, values[2])
    assert computed == (0, {"k": [RESULTS, -1]}, RESULTS, -2)


def test_compute_on_a_cluster(client):
    """On a cluster without the plugin the transforms run where their consumer does."""
    computed = client.compute(make_dag(), sync=True)
    (inner, source, target), *rest = computed.pop("c")
    assert inner == 20
    assert source == target
    assert source in client.scheduler_info()["workers"]
    assert rest == [source, source, "x"]
    assert computed == {id_: value for id_, value in RESULTS.items() if id_ != "c"}
    plugins = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.plugins))
    assert "handoff" not in plugins


def test_empty():
    """A DAG of nothing has no results."""
    assert DAG().compute() == {}


@pytest.mark.parametrize("persist", [dask.persist, lambda dag: [dag.persist()]])
def test_persist(persist, tmp_path):
    """A persisted DAG is the same DAG, whose results are there already."""
    calls = tmp_path / "calls"
    dag = make_dag().add_function(Function("last", ["a"], log, extra_args=[calls]))
    (persisted,) = persist(dag)
    assert calls.read_text() == "20\n"
    assert isinstance(persisted, DAG)
    assert (persisted.id, persisted.functions) == (dag.id, dag.functions)
    assert persisted.__dask_keys__() == dag.__dask_keys__()
    assert persisted.compute() == {**RESULTS, "last": 20}
    assert calls.read_text() == "20\n"


def test_persist_on_a_cluster(client, tmp_path):
    """The cluster keeps each function's result of a persisted DAG, and makes none again."""
    calls = tmp_path / "calls"
    persisted = client.persist(make_dag().add_function(Function("d", ["a"], log, [calls])))
    for _ in range(2):
        computed = client.compute(persisted, sync=True)
        assert (computed["a"], computed["b", 1], computed["d"]) == (20, 42, 20)
    assert calls.read_text() == "20\n"
    held = client.who_has(futures_of(persisted))
    assert len(held) == len(RESULTS) + 1
    assert all(held.values())


def test_a_persisted_dag_is_complete():
    """Functions cannot be added to results that exist: the error says what to do."""
    (persisted,) = dask.persist(make_dag())
    with pytest.raises(DAGError, match="add functions to the DAG it came from"):
        persisted.add_function(Function("late", [], int))
    assert "late" not in persisted.functions


def test_persist_under_other_names():
    """Dask may rename a collection's keys (as for graph manipulation) and rebuild it."""
    dag = make_dag()
    rebuild, args = dag.__dask_postpersist__()
    old = dag.__dask_keys__()
    rename = {name: f"new-{name}" for name, _ in old}
    graph = {(rename[name], index): index for name, index in old}
    rebuilt = rebuild(graph, *args, rename=rename)
    assert rebuilt.__dask_keys__() == list(graph)
    assert rebuilt.compute() == dict(zip(RESULTS, (index for _, index in old), strict=True))


def test_optimize():
    """dask.optimize leaves the DAG's graph as it is."""
    (optimized,) = dask.optimize(make_dag())
    assert optimized.compute() == RESULTS


def test_adding_a_function_changes_the_keys():
    """A grown DAG is another graph: none of its keys is taken for one of before."""
    dag = make_dag()
    before, token = set(dag.__dask_keys__()), tokenize(dag)
    dag.add_function(Function("late", [], int))
    after = set(dag.__dask_keys__())
    assert len(after) == len(before) + 1
    assert not after & before
    assert tokenize(dag) != token
    assert dag.compute() == {**RESULTS, "late": 0}


def test_keys_stay_until_then():
    """Asked twice, a DAG answers with the same graph, keys and token."""
    dag = make_dag()
    assert dag.__dask_keys__() == dag.__dask_keys__()
    assert dag.__dask_graph__() is dag.__dask_graph__()
    assert tokenize(dag) == tokenize(dag)


def test_dags_of_one_name_share_nothing():
    """Two DAGs have different keys and tokens, though they read the same."""
    first, second = make_dag(), make_dag()
    assert not set(first.__dask_keys__()) & set(second.__dask_keys__())
    assert tokenize(first) != tokenize(second)


def test_no_annotations():
    """A cluster without the plugin is not asked for resources that it may not have."""
    assert not any(la.annotations for la in make_dag().__dask_graph__().layers.values())


def test_visualize(monkeypatch):
    """Dask gets the graph to draw, with a node for each regular function."""
    drawn = []
    monkeypatch.setattr(dask.base, "visualize_dsk", lambda dsk, **kwargs: drawn.append(dict(dsk)))
    dag = make_dag()
    dask.visualize(dag, filename=None)
    assert [set(graph) for graph in drawn] == [set(dag.__dask_keys__())]


def test_pickle():
    """A DAG of importable code travels, with its keys, before and after it was computed."""
    dag = DAG("d").add_function(Function("a", [], int, extra_args=["1"]))
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(dag))
        assert (copy.id, copy.functions) == (dag.id, dag.functions)
        assert copy.__dask_keys__() == dag.__dask_keys__()
        assert copy.compute() == {"a": 1}


@pytest.mark.parametrize("change", [lambda dag: dag, lambda dag: dask.persist(dag)[0]])
def test_waiting_for_a_dag(change):
    """Dask's `wait_on`, `bind` and `checkpoint` take a DAG like any collection."""
    dag = change(make_dag())
    assert wait_on(dag).compute() == make_dag().compute()
    assert bind(dask.delayed(int)("3"), dag).compute() == 3
    assert checkpoint(dag).compute() is None
