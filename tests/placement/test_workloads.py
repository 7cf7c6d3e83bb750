"""The loader and the yardstick of the makespan suite."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from handoff_dask.cli.wfformat import Task
from tests.benchmarks.listing import best_known, list_schedule, remaining_path
from tests.benchmarks.report import GOAL, Figures, markdown, svg, table
from tests.benchmarks.workloads import (
    TRACES,
    WORKERS,
    Workload,
    load_trace,
    random_dag,
    workloads,
)
from tests.support import write_trace

needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason=f"there is no {TRACES}")


def test_a_trace_becomes_tasks(tmp_path):
    """Parents come first; cpu, memory, seconds and program are those that were measured."""
    loaded = load_trace(write_trace(tmp_path))
    assert loaded.name == "small-001"
    assert loaded.tasks == (
        Task("first", "sort", (), {"cpu": 1.8}, 2.5),
        Task("then_ID0007", "then", ("first",), {"cpu": 1, "memory": 1.5}, 0.5),
    )


def test_a_task_too_big_for_every_worker_is_cut_down(tmp_path):
    """What comes out of a trace fits at least one worker, in all resources at once."""
    path = write_trace(tmp_path, first={"avgCPU": 6400.0, "memoryInBytes": 10**12})
    task = load_trace(path).tasks[0]
    assert task.cost == {"cpu": 8, "memory": 32000}


def test_without_traces_the_random_dags_remain(tmp_path):
    """The project does not need ../shared."""
    names = [workload.name for workload in workloads(folder=tmp_path / "nowhere")]
    assert names == [f"random-{kind}-{seed}" for kind in ("flat", "layered") for seed in (0, 1)]
    assert [w.name for w in workloads(["random-flat"], tmp_path)] == names[:2]


@needs_traces
def test_the_five_traces_load():
    """Each has its tasks, parents first, and every cost fits a worker."""
    traces = [w for w in workloads() if not w.name.startswith("random")]
    assert [len(w.tasks) for w in traces] == [82, 103, 104, 125, 103]
    for workload in traces:
        seen = set()
        for task in workload.tasks:
            assert seen.issuperset(task.parents)
            assert any(fits(task.cost, offer) for offer in WORKERS.values())
            seen.add(task.id)


@pytest.mark.parametrize("layered", [False, True])
def test_a_random_dag_is_the_same_each_time(layered):
    """A seed makes one DAG of 300 functions, another seed another; layered ones have edges."""
    dag = random_dag(0, layered=layered)
    assert dag == random_dag(0, layered=layered)
    assert dag.tasks != random_dag(1, layered=layered).tasks
    assert len(dag.tasks) == 300
    assert any(task.parents for task in dag.tasks) == layered
    assert {name for task in dag.tasks for name in task.cost} == {"cpu", "memory", "gpu"}


def fits(cost, offer):
    return all(offer.get(name, 0) >= amount for name, amount in cost.items())


def assert_feasible(workload, schedule):
    """Nothing starts before its parents end; at no start is more claimed than is offered."""
    placed = schedule.tasks
    assert placed.keys() == {task.id for task in workload.tasks}
    tasks = {task.id: task for task in workload.tasks}
    for id_, task in tasks.items():
        _, start, stop = placed[id_]
        assert stop == start + task.seconds
        assert all(placed[parent][2] <= start for parent in task.parents)
    for worker, offer in WORKERS.items():
        here = [id_ for id_ in tasks if placed[id_][0] == worker]
        for moment in {placed[id_][1] for id_ in here}:
            running = [tasks[i] for i in here if placed[i][1] <= moment < placed[i][2]]
            assert len(running) <= offer["cpu"]
            for name, amount in offer.items():
                assert sum(task.cost.get(name, 0) for task in running) <= amount + 1e-6


@pytest.mark.parametrize("layered", [False, True])
def test_the_best_known_schedule_is_feasible(layered):
    """It respects every resource, the threads of each worker, and who waits for whom."""
    workload = random_dag(3, layered=layered, size=80)
    schedule = best_known(workload, tries=8)
    assert_feasible(workload, schedule)
    assert schedule.makespan >= max(remaining_path(workload).values())


@needs_traces
def test_the_best_known_schedule_of_a_trace_is_feasible():
    """Tenths of cores add up: no worker holds more than it offers."""
    (workload,) = workloads(["1000genome"])
    assert_feasible(workload, best_known(workload, tries=4))


def test_more_tries_never_know_worse():
    """The tries of a seed are a sequence: more of them contain the fewer."""
    workload = random_dag(0, layered=True, size=60)
    spans = [best_known(workload, tries=n).makespan for n in (1, 4, 16)]
    assert all(later <= earlier for earlier, later in pairwise(spans))
    assert best_known(workload, tries=4, seed=5) == best_known(workload, tries=4, seed=5)


def test_the_longest_remaining_path_goes_first():
    """Of two that want the only worker, the one with more after it."""
    tasks = (
        Task("alone", "", (), {"cpu": 2}, 1.0),
        Task("head", "", (), {"cpu": 2}, 1.0),
        Task("tail", "", ("head",), {"cpu": 1}, 5.0),
    )
    workload = Workload("chain", tasks)
    rank = remaining_path(workload)
    assert rank == {"alone": 1.0, "head": 6.0, "tail": 5.0}
    schedule = list_schedule(workload, rank, workers={"one": {"cpu": 2}})
    assert schedule.tasks["head"] == ("one", 0.0, 1.0)
    assert schedule.tasks["alone"] == ("one", 6.0, 7.0)


def test_what_fits_nowhere_is_named():
    """Instead of a schedule that leaves it out."""
    workload = Workload("big", (Task("huge", "", (), {"cpu": 99}, 1.0),))
    with pytest.raises(ValueError, match="big: huge never runs"):
        list_schedule(workload, {"huge": 1.0})


FIGURES = [
    Figures(
        "a & b",
        3,
        {"plain": [9.0], "first": [GOAL, 6.0, 8.0], "second": [GOAL], "plan": [4.9]},
    ),
    Figures("c", 30, {"plain": [GOAL], "first": [GOAL], "second": [GOAL * 1.21], "plan": [GOAL]}),
]


def test_the_table_shows_medians_means_and_the_worst():
    """Ratios are of the median of the rounds; a column that nobody measured is left out."""
    text = table(FIGURES).text()
    lines = text.splitlines()
    assert "Ray" not in text
    assert lines[2].split()[-5:] == ["1.800", "1.200", "1.000", "0.980", "-2.0%"]
    assert lines[-2].split()[2:] == ["1.342", "1.095", "1.100", "0.990", "9.7%"]
    assert lines[-1].split() == ["worst", "1.800", "1.200", "1.210", "1.000", "-17.4%"]


def test_the_page_has_a_row_per_workload_and_says_how_it_was_made():
    """Its table has as many cells in each row, and it shows the plot."""
    page = markdown(FIGURES, {"made with": "`a command`"}, "plot.svg")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 2
    assert len({row.count("|") for row in rows}) == 1
    assert "- made with: `a command`" in page
    assert "(plot.svg)" in page


def test_the_plot_is_well_formed():
    """A dot per workload and column and for the means, and a legend; names are escaped."""
    root = ElementTree.fromstring(svg(FIGURES))
    dots = root.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(dots) == 3 + 3 * 3
    texts = [text.text for text in root.findall(".//{http://www.w3.org/2000/svg}text")]
    assert "a & b" in texts and "geometric mean" in texts
