"""From a TARGET to a DAG."""

from __future__ import annotations

import sys

import cloudpickle
import pytest

from handoff_dask.cli.dag_loader import load, resolve
from handoff_dask.cli.exit_codes import Problem
from handoff_dask.errors import DuplicateFunctionError, MissingFunctionError
from tests.support import write_trace

FLOW = """
from handoff_dask import DAG, Function
dag = DAG("flow").add_function(Function(id="a", args=[], code=int))
number = 7
class Flows:
    dag = dag
def make(id: str = "made"):
    return DAG(id)
def nothing():
    pass
def broken():
    raise LookupError("no such thing")
def twice():
    return dag.add_function(dag.functions["a"])
lacking = DAG("lacking").add_function(Function(id="a", args=["b"], code=int))
"""


@pytest.fixture(autouse=True)
def flow(here):
    """A folder with flow.py, which is the current one."""
    (here / "flow.py").write_text(FLOW)


@pytest.mark.parametrize("where", ["flow.py", "./flow.py", "flow"])
def test_a_dag_of_a_file_or_a_module(where):
    """By its name, in both forms, attributes of attributes too."""
    assert load(f"{where}:dag").dag.id == "flow"
    assert load(f"{where}:Flows.dag").dag.id == "flow"
    assert load(f"{where}:make").dag.id == "made"
    assert load(f"{where}:make", ["id=named"]).dag.id == "named"


def test_a_file_is_no_main():
    """What stands under `if __name__ == "__main__"` is not run."""
    with open("flow.py", "a") as file:
        file.write('if __name__ == "__main__":\n    raise SystemExit("run")\n')
    assert load("flow.py:dag").dag.id == "flow"


def test_dataclasses_of_a_file():
    """They look for their module by name while the file is imported."""
    with open("data.py", "w") as file:
        file.write(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "from handoff_dask import DAG\n@dataclass\nclass Point:\n    x: int\ndag = DAG('d')\n"
        )
    assert load("data.py:dag").dag.id == "d"


def test_modules_beside_the_file_are_found(folder):
    """As they are for a script, from wherever it is called; they travel by value too."""
    below = folder / "below"
    below.mkdir()
    (below / "helper.py").write_text("def answer():\n    return 42\n")
    (below / "main.py").write_text(
        "from handoff_dask import DAG, Function\nfrom helper import answer\n"
        "dag = DAG('d').add_function(Function(id='a', args=[], code=answer))\n"
    )
    dag = load("below/main.py:dag").dag
    assert b"helper" not in cloudpickle.dumps(dag.functions["a"].code).split(b"answer")[0][:40]
    assert {"helper", "handoff_target"} <= cloudpickle.list_registry_pickle_by_value()


def test_installed_modules_stay_where_they_are():
    """Only what lies beside the user's module is sent along."""
    with open("uses.py", "w") as file:
        file.write("import wave\nfrom handoff_dask import DAG\ndag = DAG('d')\n")
    sys.modules.pop("wave", None)
    load("uses.py:dag")
    assert "wave" not in cloudpickle.list_registry_pickle_by_value()


def test_a_workflow_file(folder):
    """Its tasks as functions, named after the file; the recorded times, times the scale."""
    target = load(str(write_trace(folder)), scale=2.0)
    assert target.dag.id == "small-chameleon-001"
    assert target.durations == {"first": 5.0, "then_ID0007": 1.0}
    assert target.dag.functions["then_ID0007"].args == ("first",)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("flow.py", [], "'flow.py' names no DAG: a target is module:dag, path/to/file.py:dag or"),
        ("flow:", [], "'flow:' names no DAG"),
        (":dag", [], "':dag' names no DAG"),
        ("gone.py:dag", [], "there is no file gone.py"),
        (".:dag", [], "'.' is neither a Python file"),
        ("gone:dag", [], "there is no module 'gone' here or installed"),
        ("flow.gone:dag", [], "there is no module 'flow.gone' here or installed"),
        ("flow.py:dga", [], "flow.py has no 'dga'. Did you mean 'dag'?"),
        ("flow.py:zzz", [], "flow.py has no 'zzz'. Its DAGs are: dag, lacking."),
        ("flow.py:number", [], "flow.py:number is of type int, not a DAG or a function"),
        ("flow.py:nothing", [], r"flow.py:nothing\(\) returned None, not a DAG"),
        ("flow.py:broken", [], r"flow.py:broken\(\) raised LookupError: no such thing \(flow.py, "),
        ("flow.py:dag", ["a=1"], "flow.py:dag is a DAG and takes no arguments"),
        ("gone.json", ["a=1"], "gone.json is a workflow file: it takes no arguments"),
    ],
)
def test_targets_that_are_none(target, arguments, message):
    """One problem, which says what there is instead."""
    with pytest.raises(Problem, match=message) as caught:
        load(target, arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = (\n", "bad.py, line 1: '\\(' was never closed"),
        ("import gone\n", "bad.py raised ModuleNotFoundError: No module named 'gone' \\(bad.py, l"),
        ("def f():\n    return 1 / 0\nf()\n", "raised ZeroDivisionError: .* \\(bad.py, line 2\\)"),
        ("raise SystemExit(3)\n", "bad.py raised SystemExit: 3 \\(bad.py, line 1\\)"),
        ("import json\njson.loads('{')\n", "raised JSONDecodeError: .* \\(bad.py, line 2\\)"),
    ],
)
@pytest.mark.parametrize("name", ["bad.py:dag", "bad:dag"])
def test_a_module_that_cannot_be_imported(name, content, message):
    """The error, and the line of the user's file that it came from."""
    with open("bad.py", "w") as file:
        file.write(content)
    with pytest.raises(Problem, match=message.replace("bad.py raised", "bad(.py)? raised")):
        load(name)


def test_an_invalid_dag():
    """It is validated before anything else happens."""
    with pytest.raises(MissingFunctionError):
        load("flow.py:lacking")
    with pytest.raises(Problem, match=r"twice.*DuplicateFunctionError") as caught:
        load("flow.py:twice")
    assert isinstance(caught.value.__cause__, DuplicateFunctionError)


def test_the_scale_is_for_workflow_files():
    """Elsewhere it would change nothing, and nobody would notice."""
    with pytest.raises(Problem, match="--scale is for workflow files"):
        load("flow.py:dag", scale=2.0)


def test_names_of_functions():
    """By their text or, exactly, their repr; a typo gets a hint."""
    ids = [1, "1", ("a", 2), "load"]
    assert resolve("1", ids) == 1
    assert resolve("'1'", ids) == "1"
    assert resolve("('a', 2)", ids) == ("a", 2)
    assert resolve("load", ids) == "load"
    with pytest.raises(Problem, match=r"the DAG has no function 'laod'\. Did you mean load\?"):
        resolve("laod", ids)
