"""`dask handoff run`."""

from __future__ import annotations

import json
import pickle
import time
from itertools import pairwise

import pytest
from click.testing import CliRunner

from handoff_dask.cli import handoff as group

#: A cluster of the command's own.
EMBEDDED = ("--worker", "cpu=2,memory=1000", "--worker", "name=big,cpu=2,memory=2000,gpu=1")


@pytest.fixture(params=["embedded", "separate"])
def where(request):
    """The options of both kinds of clusters."""
    if request.param == "embedded":
        return EMBEDDED
    return ("--scheduler-file", request.getfixturevalue("scheduler"))


def test_a_dag_runs(handoff, where, folder):
    """Exit code 0, a line at the start and one at the end, and the output file."""
    done = handoff("run", "pipeline.py:dag", *where, "--output", "out.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert first == "three: 3 functions"
    assert last.startswith("three: 3 of 3 functions done in ")
    document = json.loads((folder / "out.json").read_text())
    assert document["dag_id"] == "three"
    assert document["results"] == {
        "source": 42,
        "transform": 84,
        "sink": "The final answer is: 84",
    }
    assert document["allocations"].keys() == document["attempts"].keys() == {*document["results"]}
    assert document["attempts"]["sink"][0]["outcome"] == "ok"
    assert document["errors"] == document["left_out"] == {}
    assert [p.name for p in folder.glob(".out*")] == []


def test_a_function_that_fails(handoff, where, folder):
    """Exit code 1; one paragraph with the function, the user's exception and its place."""
    done = handoff("run", "pipeline.py:failing", *where, "--output", "out.json")
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    line = 1 + (folder / "pipeline.py").read_text().splitlines().index(
        '    raise RuntimeError("out of luck")'
    )
    assert error == (
        "Error: function 'bad' failed after 2 attempts: RuntimeError: out of luck "
        f"(pipeline.py, line {line})"
    )
    assert "Traceback" not in done.stderr
    document = json.loads((folder / "out.json").read_text())
    assert "out of luck" in document["errors"]["bad"]
    assert [a["outcome"] for a in document["attempts"]["bad"]] == ["error", "error"]


def test_going_on_after_an_error(handoff, on, folder):
    """--on-error continue: what does not depend on it is done; exit code 1 all the same."""
    done = handoff(
        "run", "pipeline.py:failing", *on, "--on-error", "continue", "--output", "out.json"
    )
    assert done.returncode == 1
    assert "Error: 2 functions failed or were not run: function 'bad' failed" in done.stderr
    document = json.loads((folder / "out.json").read_text())
    assert document["results"] == {"good": 7}
    assert document["errors"].keys() == {"bad", "after"}


def test_a_function_that_kills_its_worker(handoff):
    """Exit code 1; the death is told, and nothing of Dask's own log."""
    done = handoff("run", "pipeline.py:deadly", "--worker", "cpu=1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "Error: function 'deadly' failed after 1 attempt"
    )
    assert "distributed" not in done.stderr


def test_a_cost_that_nobody_can_hold(handoff, where):
    """Exit code 3, with the nearest worker and what it lacks; nothing runs."""
    done = handoff("run", "pipeline.py:greedy", *where)
    assert done.returncode == 3
    assert "Error: function 'greedy' cannot be placed: no worker can hold it; nearest is" in (
        done.stderr
    )
    assert "needs gpu 99, offers 1" in done.stderr


def test_a_run_out_of_time(handoff, on, gate):
    """Exit code 1, and what was asked for."""
    done = handoff("run", "pipeline.py:waiting", *on, "--timeout", "0.2", "--", gate)
    assert done.returncode == 1
    assert "Error: run 'waiting': it did not end within 0.2 s" in done.stderr


def test_nobody_answers(handoff):
    """Exit code 4, after Dask's own time limit."""
    done = handoff(
        "run", "pipeline.py:dag", "--scheduler", "tcp://127.0.0.1:1",
        env={"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "500ms"},
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.startswith("Error: cannot reach the scheduler tcp://127.0.0.1:1: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_scheduler_file_that_never_comes(handoff):
    """Exit code 4, after the same time."""
    done = handoff(
        "run", "pipeline.py:dag", "--scheduler-file", "gone.json",
        env={"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "200ms"},
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr == "Error: the scheduler file gone.json did not appear within 0.2 s\n"


def test_the_scheduler_of_dasks_own_setting(handoff, scheduler):
    """Without options, DASK_SCHEDULER_ADDRESS says where."""
    address = json.loads(scheduler.read_text())["address"]
    done = handoff("run", "pipeline.py:dag", env={"DASK_SCHEDULER_ADDRESS": address})
    assert done.returncode == 0, done.stderr
    done = handoff("nodes", env={"DASK_SCHEDULER_ADDRESS": address})
    assert done.stdout.count("tcp://") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pipeline.py:cyclic"], "Error: the dependencies form a cycle: "),
        (
            ["pipeline.py:dag", "--worker", "cpu=much"],
            "the amount of 'cpu' must be a finite number",
        ),
        (["pipeline.py:dag", "--output", "gone/out.json"], "cannot write gone/out.json"),
        (["pipeline.py:dag", "--output", "."], "cannot write .: it is a folder"),
        (
            ["pipeline.py:dag", "--results", "sink", "--results", "all"],
            "--results all cannot be combined with another --results",
        ),
        (["pipeline.py:dag", "--results", "sinc"], "the DAG has no function 'sinc'. Did you mean"),
        (["pipeline.py:dag", "--timeout", "-1"], "timeout must be"),
        (["pipeline.py:dag", "--timeout", "-1min"], "timeout must be"),
        (["pipeline.py:dag", "--timeout", "soon"], "'soon' is not a time"),
        (["pipeline.py:dag", "--max-retries", "-1"], "Invalid value for '--max-retries'"),
        (["pipeline.py:dag", "--strategy", "best"], "Invalid value for '--strategy'"),
        (["pipeline.py:dag", "--scale", "2"], "--scale is for workflow files"),
        (["pipeline.py:dag", "--detach"], "--detach needs a cluster that outlives this command"),
        (["pipeline.py:dag", "--scheduler", "here"], "Error: 'here' is not the address of a"),
        (["pipeline.py:dag", "--scheduler", "tls://127.0.0.1:1"], "needs --tls-ca-file"),
        (
            ["pipeline.py:dag", "--worker", "cpu=1", "--scheduler", "a:1"],
            "--worker is for embedded clusters",
        ),
    ],
)
def test_wrong_usage(here, arguments, message):
    """Exit code 2 and one message, before anything is started."""
    done = CliRunner().invoke(group, ["run", *arguments])
    assert done.exit_code == 2
    assert message in done.output
    assert "functions" not in done.output  # the line with which a run starts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.py:dag"], "Error: there is no file gone.py\n"),
        (["pipeline.py:dag", "--output", "gone/out.json"], "Error: cannot write gone/out.json: "),
        (["pipeline.py:dag", "--worker", "cpu=4;memory=1"], "Usage: "),
    ],
)
def test_wrong_usage_of_the_process(handoff, arguments, message):
    """The same seen from outside: on standard error, without a traceback."""
    done = handoff("run", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(handoff):
    """Of ours and the user's, and the message all the same."""
    done = handoff("run", "pipeline.py:cyclic", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: the dependencies form a cycle")


def test_a_pickle_holds_what_json_cannot(handoff, on, folder):
    """Ids of any type, and any value; the classes of the user's file come along."""
    done = handoff("run", "pipeline.py:odd", *on, "--output", "out.pkl")
    assert done.returncode == 0, done.stderr
    outcome = pickle.loads((folder / "out.pkl").read_bytes())
    assert outcome["results"][1] == 1
    assert outcome["results"]["a", 2] == "1"
    assert type(outcome["results"]["reading"]).__name__ == "Reading"
    assert outcome["attempts"][1][0]["outcome"] == "ok"


def test_json_says_what_it_left_out(handoff, on, folder):
    """In the file and on standard error; ids become text."""
    done = handoff("run", "pipeline.py:odd", *on, "--output", "out.json")
    assert done.returncode == 0
    assert "JSON cannot hold 1 of the results ('reading'); a file named *.pkl can" in done.stderr
    document = json.loads((folder / "out.json").read_text())
    assert document["results"] == {"1": 1, "('a', 2)": "1"}
    assert document["left_out"] == {"reading": "Reading"}


def test_some_results(handoff, on, folder):
    """--results sinks, or functions by name; with neither --output nor names, none are fetched."""
    handoff("run", "pipeline.py:dag", *on, "--results", "sinks", "--output", "out.json")
    assert json.loads((folder / "out.json").read_text())["results"].keys() == {"sink"}
    options = ("--results", "source", "--results", "sink")
    handoff("run", "pipeline.py:dag", *on, *options, "--output", "out.json")
    document = json.loads((folder / "out.json").read_text())
    assert document["results"].keys() == {"source", "sink"}
    assert document["allocations"].keys() == {"source", "transform", "sink"}


def test_arguments_of_a_function(handoff, on):
    """After --, as JSON or text."""
    done = handoff("run", "pipeline.py:sleepers", *on, "--", "n=3", "seconds=0.01", "tag=named")
    assert done.returncode == 0, done.stderr
    assert "named: 3 of 3 functions done" in done.stderr


def test_a_module_here(handoff, on, folder):
    """module:dag is looked for in the working directory; workers need not have it."""
    (folder / "mine.py").write_text("import helper\nfrom pipeline import dag\ndag = helper.dag()\n")
    (folder / "helper.py").write_text(
        "from handoff_dask import DAG, Function\n"
        "def answer():\n    return 42\n"
        "def dag():\n    return DAG('mine').add_function(Function(id='a', args=[], code=answer))\n"
    )
    done = handoff("run", "mine:dag", *on, "--output", "out.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "out.json").read_text())["results"] == {"a": 42}


@pytest.mark.parametrize("files", [["__init__.py"], []])
def test_a_package_here(handoff, on, folder, files):
    """A package, with __init__.py or without, and what it imports from itself travel too."""
    package = folder / "mine"
    package.mkdir()
    for name in files:
        (package / name).touch()
    (package / "steps.py").write_text("def answer():\n    return 42\n")
    (package / "flow.py").write_text(
        "from handoff_dask import DAG, Function\nfrom mine.steps import answer\n"
        "dag = DAG('mine').add_function(Function(id='a', args=[], code=answer))\n"
    )
    done = handoff("run", "mine.flow:dag", *on, "--output", "out.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "out.json").read_text())["results"] == {"a": 42}


def test_quiet(handoff, on):
    """Shows nothing but errors."""
    assert handoff("run", "pipeline.py:dag", *on, "--quiet").stderr == ""
    failed = handoff("run", "pipeline.py:failing", *on, "--quiet")
    assert [line[:6] for line in failed.stderr.splitlines()] == ["Error:"]


def test_json_lines(handoff, folder):
    """Events on standard output, and nothing else there, whatever functions print."""
    (folder / "loud.py").write_text(
        "import time\nfrom handoff_dask import DAG, Function\n"
        "def loud():\n    print('I am loud', flush=True)\n    time.sleep(1.5)\n"
        "dag = DAG('loud')\n"
        "for i in range(2):\n"
        "    dag.add_function(Function(id=i, args=[], code=loud, cost={'cpu': 2}))\n"
        "print('importing')\n"
    )
    done = handoff("run", "loud.py:dag", "--json-lines", "--worker", "cpu=2,memory=100")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0].items() >= {"event": "start", "dag_id": "loud", "functions": 2}.items()
    assert events[-1].items() >= {"event": "end", "exit_code": 0, "error": None, "done": 2}.items()
    progress = [event for event in events[1:-1] if event["event"] == "progress"]
    assert len(progress) == len(events) - 2
    (first, *_) = progress
    assert (first["running"], first["held"], first["failed"]) == (1, 1, 0)
    (waits,) = first["waits"].values()
    assert waits["resources"]["cpu"] == {"needed": 2.0, "free": 0.0}
    assert done.stderr.count("I am loud") == 2 and "importing" in done.stderr


def test_json_lines_end_with_the_error(handoff, on):
    """A program need not read the other stream."""
    done = handoff("run", "pipeline.py:failing", *on, "--json-lines")
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["exit_code"] == done.returncode == 1
    assert "function 'bad' failed after 2 attempts" in last["error"]


def test_options_reach_the_run(handoff, on, folder):
    """--max-concurrency and --max-retries, seen in the attempts."""
    done = handoff(
        "run", "pipeline.py:sleepers", *on, "--max-concurrency", "1", "--strategy",
        "first_available", "--priority", "3", "--output", "out.json", "--", "n=4", "seconds=0.05",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    attempts = json.loads((folder / "out.json").read_text())["attempts"].values()
    spans = sorted((a["started"], a["stopped"]) for (a,) in attempts)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))


def test_pins_by_the_names_of_workers(handoff, folder):
    """`name=` of an embedded worker is what node= of a function may say."""
    (folder / "pinned.py").write_text(
        "from handoff_dask import DAG, Function\n"
        "dag = DAG('p').add_function(Function(id='a', args=[], code=int, node='big'))\n"
    )
    done = handoff("run", "pinned.py:dag", *EMBEDDED, "--output", "out.json")
    assert done.returncode == 0, done.stderr
    ((attempt,),) = json.loads((folder / "out.json").read_text())["attempts"].values()
    assert attempt["worker_name"] == "big"


def test_the_machine_itself(handoff):
    """Without --worker, one worker has it all."""
    started = time.monotonic()
    done = handoff("run", "pipeline.py:dag")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() > started
    assert "on 1 worker" in done.stderr
