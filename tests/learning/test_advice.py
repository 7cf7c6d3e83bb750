from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.client.advising import Advice
from handoff_dask.learning.advice import Spread, Use, advise


def test_memory_is_advised_with_headroom() -> None:
    """The most that was used and 10 %, rounded up to two digits that people read."""
    uses = [Use(1.0, peak_memory=float(peak)) for peak in range(1, 101)]
    row = advise("code", {"memory": 8000, "gpu": 1}, uses)
    assert row.memory == Spread(50, 95, 100)
    assert row.advised == {"memory": 110}
    assert row.cost == {"memory": 110, "gpu": 1}
    for most, advised in ((0.2, 1), (9, 10), (1234, 1400), (30_000, 33_000)):
        assert advise("code", None, [Use(1, peak_memory=most)]).advised == {"memory": advised}


@pytest.mark.parametrize(
    ("cpu_time", "cores"), [(0.1, 0.5), (9, 1), (10.4, 1), (11, 1.5), (38, 4), (0, 0.5)]
)
def test_cores_are_advised_in_halves(cpu_time: float, cores: float) -> None:
    """What was busy on average, where a little above a step does not count."""
    assert advise("code", {"cpu": 8}, [Use(10, cpu_time)]).advised == {"cpu": cores}


def test_short_functions_say_little_of_cores() -> None:
    """Functions weigh by their durations."""
    uses = [Use(100.0, cpu_time=200.0), *[Use(0.001, cpu_time=0.01)] * 100]
    assert advise("code", None, uses).advised == {"cpu": 2}


def test_what_was_not_measured_is_not_advised() -> None:
    """Threads do not know their memory; an instant says nothing of cores."""
    row = advise("code", {"cpu": 1}, [Use(1.0), Use(0.0, cpu_time=0.0)])
    assert (row.count, row.memory, row.cores, row.advised) == (2, None, None, {})
    assert row.cost == {"cpu": 1}
    assert advise("code", None, []).advised == {}


@given(st.lists(st.floats(0, 1e7), min_size=1))
def test_advised_memory_is_enough(peaks: list[float]) -> None:
    """What is advised holds all that was seen, and not much more."""
    row = advise("code", None, [Use(1.0, peak_memory=peak) for peak in peaks])
    assert max(peaks) <= row.advised["memory"] <= max(1.1 * max(peaks) * 1.1 + 1, 2)


def test_advice_reads_as_a_table() -> None:
    """A row by code, aligned, and what the advice would change."""
    rows = (
        advise("etl.load", {"memory": 8000, "cpu": 4}, [Use(10, 14, 1100), Use(10, 14, 2300)]),
        advise("etl.merge", {"memory": "AUTO"}, [Use(2.0)]),
    )
    lines = str(Advice(rows, 100.0, 40.0)).splitlines()
    assert lines[0].split("  ")[0] == "code" and lines[0].endswith("advised cpu")
    assert lines[1].split() == "etl.load 2 8,000 1,100 2,300 2,300 2,600 4 1.4 1.5".split()
    assert lines[2].split() == ["etl.merge", "1", "AUTO"]
    assert (
        lines[3]
        == "predicted makespan: 1 min 40 s with the declared costs, 40 s with the advised ones"
    )
    assert str(Advice(())) == "nothing was measured"
    assert len(str(Advice(rows)).splitlines()) == 3


def test_advice_as_html_and_json() -> None:
    """Notebooks get a table in which nothing is markup by accident; JSON has everything."""
    advice = Advice((advise("<b>", {"memory": 100}, [Use(10, 14, 50)]),), 2.0, 1.0)
    html = advice._repr_html_()
    assert "&lt;b&gt;" in html and "<b>&lt;" not in html and "advised MB" in html
    assert json.loads(json.dumps(advice.as_dict())) == {
        "codes": [
            {
                "code": "<b>",
                "count": 1,
                "declared": {"memory": 100},
                "memory": {"median": 50, "high": 50, "most": 50},
                "cores": 1.4,
                "advised": {"memory": 55, "cpu": 1.5},
            }
        ],
        "makespan": 2.0,
        "advised_makespan": 1.0,
    }
