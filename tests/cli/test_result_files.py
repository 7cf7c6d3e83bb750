"""What a run leaves in a file."""

from __future__ import annotations

import json
import os
import pickle
import select
from pathlib import Path

import pytest

from handoff_dask import DAG, Function, Usage, execute_local
from handoff_dask.cli.exit_codes import Problem
from handoff_dask.cli.result_files import (
    OutputFile,
    as_json,
    labels,
    read_durations,
    write_result,
)


def result_of(**values):
    dag = DAG("a dag")
    for id_, value in values.items():
        dag.add_function(Function(id=id_, args=[], code=list, extra_args=[[value]]))
    return execute_local(dag)


def test_the_document():
    """Ids are text, results that do not fit are named with their type."""
    document, left_out = as_json(result_of(good=[1], bad={1, 2}))
    assert document["results"] == {"good": [[1]]}
    assert document["left_out"] == {"bad": "list"} and left_out == ["bad"]
    assert document["allocations"] == {"good": "local", "bad": "local"}
    assert document["dag_id"] == "a dag"
    (attempt,) = document["attempts"]["good"]
    assert set(attempt["usage"]) == {"cpu_time", "peak_memory", "result_bytes"}
    json.dumps(document, allow_nan=False)


def test_ids_that_read_the_same():
    """Are told apart."""
    assert labels(["a", 1, ("b", 2)]) == {"a": "a", 1: "1", ("b", 2): "('b', 2)"}
    assert labels(["1", 1]) == {"1": "'1'", 1: "1"}


def test_a_file_is_complete_or_not_there(tmp_path):
    """It is replaced in one step; nothing else stays in its folder."""
    path = tmp_path / "out.json"
    path.write_text("earlier")
    file = OutputFile(path)
    assert path.read_text() == "earlier"
    write_result(file, result_of(a=1))
    assert json.loads(path.read_text())["results"] == {"a": [1]}
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    """What it points to is written."""
    (tmp_path / "real.pkl").touch()
    (tmp_path / "link.pkl").symlink_to("real.pkl")
    assert write_result(OutputFile(tmp_path / "link.pkl"), result_of(a={1})) == []
    assert (tmp_path / "link.pkl").is_symlink()
    assert pickle.loads((tmp_path / "real.pkl").read_bytes())["results"] == {"a": [{1}]}


def test_pipes_as_a_shell_has_them():
    """`/dev/stdout` before a `|`, and `>(...)`: written once, and not closed before that."""
    reader, writer = os.pipe()
    file = OutputFile(Path(f"/dev/fd/{writer}"))
    write_result(file, result_of(a=1))
    assert json.loads(os.read(reader, 65536))["results"] == {"a": [1]}
    os.close(reader)
    os.close(writer)


def test_a_pipe_is_not_opened_before_there_is_something_to_write(tmp_path):
    """Who reads it already would see the end, and the result would have no reader."""
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with select.epoll() as ends:
        ends.register(reader, select.EPOLLHUP)
        OutputFile(path)
        assert ends.poll(0) == []
    os.close(reader)


def test_a_device_is_written_in_place(tmp_path):
    """A pipe stays one, instead of being replaced by a file."""
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_result(OutputFile(path), result_of(a=1))
    assert path.is_fifo()
    assert json.loads(os.read(reader, 65536))["results"] == {"a": [1]}
    os.close(reader)


@pytest.mark.parametrize("name", [".", "gone/out.json", "file/out.json"])
def test_a_file_that_cannot_be_written(tmp_path, name):
    """Is found out at once, and nothing is left of the attempt."""
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match="cannot write") as caught:
        OutputFile(tmp_path / name)
    assert caught.value.code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["out.json", "out.pkl"])
def test_durations_of_an_earlier_run(tmp_path, name):
    """The attempts, by the ids of the DAG, from both kinds of file."""
    dag = DAG().add_function(Function(id=1, args=[], code=int))
    dag.add_function(Function(id=("a", 2), args=[], code=int))
    result = execute_local(dag)
    write_result(OutputFile(tmp_path / name), result)
    durations = read_durations(tmp_path / name, dag.functions)
    assert durations.attempts == result.attempts


def test_a_file_from_before_usage_was_recorded(tmp_path):
    """Is read like any other."""
    document, _ = as_json(result_of(a=1))
    for attempt in document["attempts"]["a"]:
        del attempt["usage"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert read_durations(tmp_path / "old.json", ["a"]).attempts["a"][0].usage == Usage()


def test_durations_by_hand(tmp_path):
    """{id: seconds}."""
    (tmp_path / "s.json").write_text('{"1": 2.5, "b": 1}')
    assert read_durations(tmp_path / "s.json", [1, "b"]) == {1: 2.5, "b": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "is neither a JSON object of seconds by function nor"),
        ("{", "is neither JSON nor the output of a run"),
    ],
)
def test_durations_that_are_none(tmp_path, content, message):
    """The file is named."""
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(Problem, match=rf"s\.json {message}"):
        read_durations(tmp_path / "s.json", [])
