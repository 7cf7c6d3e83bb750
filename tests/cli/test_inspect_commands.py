"""validate, explain, plan, visualize, nodes; help, completion and settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from handoff_dask.cli import handoff as group
from tests.support import write_trace

WORKERS = ("--worker", "cpu=2,memory=1000", "--worker", "name=big,cpu=4,memory=2000")
COMMANDS = (
    "advise", "cancel", "explain", "forget", "nodes", "plan", "result", "run", "runs", "status",
    "validate", "visualize",
)  # fmt: skip


def test_validate(handoff, folder):
    """Tells the size and the largest costs; exit code 0."""
    done = handoff("validate", "pipeline.py:greedy")
    assert (
        done.stdout
        == "greedy: valid, 1 function, 0 dependencies\n  gpu: at most 99 by one function\n"
    )
    assert done.returncode == 0


def test_validate_with_learned_memory(handoff, folder):
    """Amounts that are learned are counted apart."""
    (folder / "learned.py").write_text(
        "from handoff_dask import AUTO, DAG\n"
        "dag = DAG('learned')\n"
        "dag.map(int, range(2), cost={'memory': AUTO, 'cpu': 1})\n"
        "dag.add(float, cost={'memory': 500})\n"
    )
    assert handoff("validate", "learned.py:dag").stdout.splitlines()[1:] == [
        "  cpu: at most 1 by one function",
        "  memory: at most 500 by one function, AUTO for 2 functions",
    ]


def test_validate_finds_mistakes(handoff):
    """Exit code 2, and the whole cycle."""
    done = handoff("validate", "pipeline.py:cyclic")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: the dependencies form a cycle: ")


def test_advise(handoff, folder):
    """Tells from a run's output what was declared, used and should be declared."""
    workers = ("--worker", "cpu=4,memory=8000")
    done = handoff("run", "pipeline.py:dag", *workers, "--output", "out.json")
    assert done.returncode == 0, done.stderr
    done = handoff("advise", "out.json")
    assert done.returncode == 0, done.stderr
    head, *rows, last = done.stdout.splitlines()
    assert head.startswith("code ") and len(rows) >= 3
    assert last == "memory was not measured: only that of isolated functions is"
    advice = json.loads(handoff("advise", "out.json", "--json").stdout)
    assert [row["count"] for row in advice["codes"]] == [1, 1, 1]
    assert advice["makespan"] > 0 and advice["advised_makespan"] > 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[1]", "out.json is not the output of a run"),
        ('{"attempts": {}}', "does not say what the functions cost: an older version wrote it"),
        ('{"attempts": {}, "functions": {"f": {}}}', "out.json is not the output of a run"),
    ],
)
def test_advise_about_other_files(handoff, folder, content, problem):
    """The file is named, and the exit code is 2."""
    (folder / "out.json").write_text(content)
    done = handoff("advise", "out.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr


@pytest.fixture(params=["embedded", "separate"])
def where(request):
    """The options of both kinds of clusters."""
    if request.param == "embedded":
        return ("--worker", "cpu=2,gpu=1")
    return ("--scheduler-file", request.getfixturevalue("scheduler"))


def test_explain(handoff, where):
    """Exit code 0 if everything can run, else 3; the report on standard output."""
    done = handoff("explain", "pipeline.py:dag", *where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("all 3 functions can run on this cluster")
    done = handoff("explain", "pipeline.py:greedy", *where)
    assert done.returncode == 3
    assert "needs gpu 99, offers 1" in done.stdout


def test_plan_on_imagined_workers(handoff, folder):
    """From seconds in a file; they may be text, as ids in JSON are."""
    (folder / "seconds.json").write_text(json.dumps({str(i): 10.0 for i in range(12)}))
    options = ("--durations", "seconds.json", *WORKERS)
    done = handoff("plan", "pipeline.py:sleepers", *options, "--", "n=12")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "makespan 20 s"
    assert any(line.startswith("  big: 8 functions, 80 s") for line in lines)


def test_plan_on_a_cluster(handoff, on, folder):
    """From the output of an earlier run, for the workers that are there."""
    options = ("--output", "out.json", "--", "n=4", "seconds=0.3")
    assert handoff("run", "pipeline.py:sleepers", *on, *options).returncode == 0
    options = ("--durations", "out.json", "--timeline", "--", "n=4")
    done = handoff("plan", "pipeline.py:sleepers", *on, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("makespan 0.3")
    assert done.stdout.count(" s to ") == 4


def test_plan_needs_durations(handoff):
    """Which it says; a workflow file brings its own."""
    done = handoff("plan", "pipeline.py:dag", *WORKERS)
    assert done.returncode == 2
    assert "how long do the functions take? Give --durations FILE" in done.stderr


def test_durations_that_cannot_be_read(handoff):
    """Exit code 2, and the file."""
    done = handoff("plan", "pipeline.py:dag", *WORKERS, "--durations", "gone.json")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: gone.json: No such file")


def test_plan_of_what_cannot_run(handoff, folder):
    """Exit code 3."""
    (folder / "seconds.json").write_text('{"greedy": 1}')
    done = handoff("plan", "pipeline.py:greedy", *WORKERS, "--durations", "seconds.json")
    assert done.returncode == 3
    assert "function 'greedy' cannot be placed" in done.stderr


def test_plan_of_a_workflow_file(handoff, folder):
    """With its recorded times, times the scale."""
    trace = write_trace(folder)
    done = handoff("plan", trace, *WORKERS, "--scale", "2")
    assert done.returncode == 0, done.stderr
    assert 6.0 <= float(done.stdout.split()[1]) < 6.1


def test_visualize(handoff, folder):
    """Draws the file and prints its name."""
    done = handoff("visualize", "pipeline.py:dag", "--output", "drawn.svg")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "drawn.svg\n"
    assert b"<svg" in (folder / "drawn.svg").read_bytes()


def test_visualize_where_it_cannot(handoff, folder):
    """Exit code 2."""
    done = handoff("visualize", "pipeline.py:dag", "--output", "gone/drawn.svg")
    assert done.returncode == 2
    assert "cannot write gone/drawn.svg" in done.stderr


def test_nodes(handoff, on):
    """A row for each worker, a column for each resource."""
    head, *rows = handoff("nodes", *on).stdout.splitlines()
    assert head.split() == ["worker", "cpu", "gpu", "memory"]
    assert sorted(row.split()[1:] for row in rows) == [["2", "-", "1000"], ["2", "1", "2000"]]


def test_help(handoff):
    """The group tells the exit codes and the commands."""
    done = handoff("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: python -m dask handoff [OPTIONS] COMMAND")
    assert "130  interrupted" in done.stdout
    assert all(f"\n  {command} " in done.stdout for command in (*COMMANDS, "store"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command):
    """Every command has it, the larger ones with examples."""
    done = CliRunner().invoke(group, [command, "--help"])
    assert done.exit_code == 0
    assert "--debug" in done.stdout
    simple = ("cancel", "forget", "runs", "status")
    assert f"    dask handoff {command} " in done.stdout or command in simple


def test_completion(environment, folder):
    """As click gives it: commands, options, and files for a target."""

    def complete(words):
        env = {
            **environment,
            "_DASK_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        command = "import sys; sys.argv = ['dask']; from dask.__main__ import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", command], env=env, cwd=folder, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        return done.stdout.split()

    assert complete("dask handoff va") == ["plain,validate"]
    assert "plain,--max-retries" in complete("dask handoff run pipeline.py:dag --max")
    assert complete("dask handoff run pipe") == ["file,pipe"]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DASK_HANDOFF__COMMIT_AHEAD", "soon", "the setting handoff.commit-ahead must be a time"),
        ("DASK_HANDOFF__COMIT_AHEAD", "1s", "Did you mean handoff.commit-ahead?"),
        ("DASK_HANDOFF__EMBEDDED__PROCESSES", "7", "must be true or false, not 7"),
    ],
)
def test_settings_are_checked(handoff, variable, value, message):
    """A setting that is none ends the command at once, with exit code 2."""
    done = handoff("validate", "pipeline.py:dag", env={variable: value})
    assert done.returncode == 2
    assert message in done.stderr


def test_settings_of_a_file(handoff, folder):
    """YAML in Dask's configuration folder counts like the environment."""
    (folder / "config").mkdir()
    (folder / "config" / "handoff.yaml").write_text("handoff:\n  lost-capacity-grace: 5s\n")
    env = {"DASK_CONFIG": str(folder / "config")}
    assert handoff("validate", "pipeline.py:dag", env=env).returncode == 0
    (folder / "config" / "handoff.yaml").write_text("handoff:\n  lost-capacity-grase: 5s\n")
    done = handoff("validate", "pipeline.py:dag", env=env)
    assert done.returncode == 2 and "lost-capacity-grace?" in done.stderr


def test_nothing_is_printed_into_a_closed_pipe(start):
    """`dask handoff ... | head -1` ends quietly."""
    read, write = os.pipe()
    process = start("--help", stdout=write)
    os.close(write)
    os.close(read)
    assert "Traceback" not in process.communicate(timeout=60)[1]
