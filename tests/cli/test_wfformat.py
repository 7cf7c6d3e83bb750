"""Reading workflow instances, and replaying them."""

from __future__ import annotations

import json

import pytest

from handoff_dask import execute_local
from handoff_dask.cli.wfformat import Task, cores, read, replay
from tests.support import write_trace


def test_a_trace_becomes_tasks(tmp_path):
    """Parents come first; cpu, memory, seconds and program are those that were measured."""
    assert read(write_trace(tmp_path)) == (
        Task("first", "sort", (), {"cpu": 1.8}, 2.5),
        Task("then_ID0007", "then", ("first",), {"cpu": 1, "memory": 1.5}, 0.5),
    )


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(None, 1), (0.6, 1), (99.9, 1), (100.0017, 1), (101.5, 1.1), (148.5, 1.5), (175.23, 1.8)],
)
def test_cpu_is_rounded_up_to_tenths_of_a_core(percent, expected):
    """At least one core; noise just above a step counts as on it."""
    assert cores(percent) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1.4"}, r"WfFormat '1\.4', not '1\.5'"),
        ({"parents": {"first": ["then_ID0007"]}}, "its tasks form a cycle: "),
        ({"parents": {"first": ["nobody"]}}, "'first' has the parent 'nobody', which is missing"),
        (
            {"parents": {"first": None}},
            "task 'first': the field 'parents' is missing, or not a JSON list",
        ),
        ({"first": {"runtimeInSeconds": -1}}, "runtimeInSeconds of task 'first' must be"),
        ({"first": {"runtimeInSeconds": None}}, "runtimeInSeconds of task 'first' must be"),
        ({"first": {"avgCPU": "all"}}, "avgCPU of task 'first' must be"),
    ],
)
def test_what_is_wrong_with_a_trace_is_said(tmp_path, changes, message):
    """The message names the file, the task and the field."""
    with pytest.raises(ValueError, match=rf"^small-chameleon-001\.json: .*{message}"):
        read(write_trace(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{,", "line 1 is not JSON"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        (b"[]", "the document is not a JSON object"),
        (b'{"schemaVersion": "1.5"}', "the field 'workflow' is missing, or not a JSON object"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path, content, message):
    """With what it is instead, not with an error of the parser."""
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^broken\.json.*{message}"):
        read(path)


def test_a_task_that_was_never_executed_is_refused(tmp_path):
    """There is no time to replay."""
    path = write_trace(tmp_path)
    document = json.loads(path.read_text())
    del document["workflow"]["execution"]["tasks"][0]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="task 'first' was not executed"):
        read(path)


def test_a_missing_file_is_refused(tmp_path):
    """By its name."""
    with pytest.raises(ValueError, match=r"gone\.json: No such file"):
        read(tmp_path / "gone.json")


def test_a_replay_waits(tmp_path):
    """Each function waits its time times the scale, after its parents, and costs what it cost."""
    dag = replay(read(write_trace(tmp_path)), "small", scale=0.01)
    assert {id_: f.cost for id_, f in dag.functions.items()} == {
        "first": {"cpu": 1.8},
        "then_ID0007": {"cpu": 1, "memory": 1.5},
    }
    spans = execute_local(dag).results
    assert spans["first"][1] - spans["first"][0] >= 0.025
    assert spans["then_ID0007"][1] - spans["then_ID0007"][0] >= 0.005
    assert spans["first"][1] <= spans["then_ID0007"][0]


def test_functions_of_one_program_share_their_code(tmp_path):
    """So that Dask's measured durations of one tell of the others."""
    tasks = [Task(str(i), ("sort", "merge")[i // 2], (), {"cpu": 1}, 1.0) for i in range(4)]
    codes = [f.code for f in replay(tuple(tasks), "four").functions.values()]
    assert codes[0] is codes[1] and codes[2] is codes[3] and codes[1] is not codes[2]
    assert [code.__name__ for code in codes] == ["sort", "sort", "merge", "merge"]
