from __future__ import annotations

import pickle

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Finding, FunctionSpec

TWO = {"a": {"cpu": 4}, "b": {"cpu": 2, "gpu": 1}}


def test_feasibility_is_by_what_is_declared(drive) -> None:
    """Workers count that could ever hold it, busy or paused, in order of registration."""
    d = drive(TWO)
    d.add({0: {"cpu": 4}})
    d.places()
    d.engine.worker_running("b", False)
    finding = d.engine.questions.feasibility({"cpu": 2})
    assert finding and finding.able == ("a", "b")
    assert str(finding) == "can run on a, b"


def test_an_impossible_cost_names_the_nearest(drive) -> None:
    """The finding says which worker comes closest and what it lacks."""
    finding = drive(TWO).engine.questions.feasibility({"cpu": 3, "gpu": 1})
    assert not finding
    assert finding.nearest == "b" and finding.shortfall == {"cpu": (3, 2)}
    assert str(finding) == "no worker can hold it; nearest is b (b-name): needs cpu 3, offers 2"
    assert pickle.loads(pickle.dumps(finding)) == finding


@pytest.mark.parametrize(
    ("cost", "hint"),
    [
        ({"mem": 100}, "needs mem 100, offers 0 (did you mean 'memory'?)"),
        ({"cores": 1}, "needs cores 1, offers 0 (did you mean 'cpu'?)"),
        ({"memory": 2e9}, "needs memory 2e+09, offers 0 (memory is in MB, not in bytes)"),
        ({"licence": 1}, "needs licence 1, offers 0"),
    ],
)
def test_likely_slips(drive, cost, hint) -> None:
    """A name that no worker offers, and memory in bytes, get a hint."""
    assert str(drive(TWO).engine.questions.feasibility(cost)).endswith(f": {hint}")


def test_names_that_look_like_slips_are_free(drive) -> None:
    """A worker may offer a resource of any name."""
    finding = drive({"a": {"cpus": 2}}).engine.questions.feasibility({"cpus": 3})
    assert str(finding).endswith("needs cpus 3, offers 2")


def test_a_pin_narrows_the_finding(drive) -> None:
    """Only workers that answer to the pin are judged; an unknown pin is told as such."""
    engine = drive(TWO).engine
    assert engine.questions.feasibility({"cpu": 3}, ("a-name",)).able == ("a",)
    finding = engine.questions.feasibility({"cpu": 3}, ("b",))
    assert finding.nearest == "b" and "pinned to 'b'" in str(finding)
    assert not engine.questions.feasibility({}, ("nobody",)).pin_known
    assert str(Engine().questions.feasibility({})) == "no workers"


def test_why_names_the_short_resources(drive) -> None:
    """A function that waits says for what, and the most that one worker has of it."""
    d = drive(TWO)
    d.add({0: {"cpu": 3}, 1: {"cpu": 2}})
    d.places()
    d.add({2: {"cpu": 2}})
    d.poll()
    why = d.engine.questions.why(2)
    assert why.reason == "resources" and why.workers == ("a", "b")
    assert why.resources == {"cpu": (2, 1)}
    assert str(why) == "resources: cpu 2, at most 1 free on a, b"
    assert d.engine.questions.why(0) is None and d.engine.questions.why("unknown") is None


def test_why_knows_what_the_next_poll_does(drive) -> None:
    """A function that was not polled for yet is said to be next."""
    d = drive(TWO)
    d.add({0: {"cpu": 1}})
    assert d.engine.questions.why(0).reason == "next"


def test_unknown_names_are_errors(drive) -> None:
    """Asking about a worker or run that does not exist names it."""
    engine = drive({}).engine
    asks = engine.questions
    for ask in (asks.free, asks.capacity, asks.claimed, asks.slots):
        with pytest.raises(KeyError, match="nobody"):
            ask("nobody")
    with pytest.raises(KeyError, match="nothing"):
        engine.questions.holds("nothing")


def test_verdicts_judge_groups_as_one(drive) -> None:
    """Each function of a run gets its finding; collocated ones share theirs."""
    d = drive(TWO)
    d.specs(
        FunctionSpec("x", {"cpu": 4}),
        FunctionSpec("y", {"gpu": 1}, collocated="x"),
        FunctionSpec("z", {"gpu": 1}),
    )
    verdicts = dict(d.engine.questions.verdicts("run"))
    assert isinstance(verdicts["x"], Finding)
    assert not verdicts["x"] and not verdicts["y"] and verdicts["z"].able == ("b",)
