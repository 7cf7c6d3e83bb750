from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.learning import uses as module
from handoff_dask.learning.uses import Uses


def made(events: list[tuple[str, float, float, float | None]]) -> Uses:
    uses = Uses()
    for code, at, seconds, peak in events:
        if seconds:
            uses.record(code, started=at, seconds=seconds, peak=peak)
        else:
            uses.record_kill(code, exceeded=peak or 0)
    return uses


def merged(*parts: Uses) -> Uses:
    result = Uses()
    for part in parts:
        result.merge(part)
    return result


# Many more than are kept, at few different times.
USES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 40).map(float),
        st.sampled_from([0.0, 1.0, 2.0]),
        st.none() | st.integers(0, 9).map(float),
    ),
    max_size=150,
).map(made)


@given(USES, USES, USES)
def test_merging_has_no_order(a: Uses, b: Uses, c: Uses) -> None:
    """Merging is commutative, associative and idempotent, so nothing counts twice."""
    assert merged(a, b) == merged(b, a)
    assert merged(merged(a, b), c) == merged(a, merged(b, c))
    assert merged(a, a) == a == merged(a, Uses())
    assert merged(merged(a, b), b) == merged(a, b)


@given(USES)
def test_json_keeps_everything(uses: Uses) -> None:
    """What is read from JSON is what was written."""
    assert Uses.from_dict(json.loads(json.dumps(uses.as_dict()))) == uses


@given(
    st.recursive(
        st.none() | st.floats() | st.text(),
        lambda s: (
            st.lists(s)
            | st.dictionaries(st.sampled_from(["code", "durations", "peaks", "exceeded"]), s)
        ),
    )
)
def test_other_json_is_refused(data: Any) -> None:
    """Whatever else JSON can hold is a ValueError, or holds measurements."""
    try:
        Uses.from_dict(data).claim("code", worker_memory=800)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"durations": [[1, 2]], "peaks": [[1, -2]], "exceeded": 0},
        {"durations": [[1, 2]], "peaks": [[1]], "exceeded": 0},
        {"durations": [[1, True]], "peaks": [], "exceeded": 0},
        {"durations": {"a": 1}, "peaks": [], "exceeded": 0},
        {"durations": [], "peaks": [], "exceeded": float("nan")},
    ],
)
def test_measurements_that_cannot_be_are_refused(values: Any) -> None:
    """Numbers that no measurement has are a ValueError."""
    with pytest.raises(ValueError, match="not a"):
        Uses.from_dict({"code": values})


def test_two_at_once_lose_nothing() -> None:
    """What two schedulers measured at the same time is kept, in the order in which it happened."""
    one, two = Uses(), Uses()
    for i in range(5):
        one.record("code", started=2 * i, seconds=1, peak=100)
        two.record("code", started=2 * i + 1, seconds=3, peak=200)
    both = merged(one, two)
    assert both.seconds("code") == 2
    assert [value for _, value in both.as_dict()["code"]["peaks"]] == [100, 200] * 5


def test_the_latest_count() -> None:
    """Old measurements are forgotten: durations sooner than peaks."""
    uses = Uses()
    for i in range(1000):
        uses.record(
            "code", started=i, seconds=1.0 if i < 900 else 2.0, peak=5000 if i < 700 else 100
        )
    assert uses.seconds("code") == 2.0
    assert uses.claim("code", worker_memory=64_000) == 110
    assert len(json.dumps(uses.as_dict())) < 10_000


def test_the_order_of_ends_is_no_trend() -> None:
    """If functions that need more end later, claims are those of functions in any other order."""
    rng = random.Random(0)
    functions = [(started, rng.lognormvariate(6, 0.5)) for started in range(200)]
    in_order, by_end = Uses(), Uses()
    for started, peak in functions:
        in_order.record("code", started=started, seconds=peak / 100, peak=peak)
    for started, peak in sorted(functions, key=lambda function: function[1]):
        by_end.record("code", started=started, seconds=peak / 100, peak=peak)
    assert by_end == in_order
    assert by_end.claim("code", worker_memory=64_000) == in_order.copy().claim(
        "code", worker_memory=64_000
    )


def test_codes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes that ended longest ago are forgotten, whether measured or merged."""
    monkeypatch.setattr(module, "_CODES", 2)
    uses = made([(code, at, 1.0, None) for at, code in enumerate("abac")])
    assert sorted(uses.as_dict()) == ["a", "c"]
    assert sorted(merged(made([("d", 9, 1.0, None)]), uses).as_dict()) == ["c", "d"]


def test_durations_without_peaks() -> None:
    """Functions in threads teach durations only, and nothing is known of other codes."""
    uses = made([("code", 1, 2.0, None)] * 5)
    assert uses.seconds("code") == 2.0
    assert uses.seconds("other") is None
    assert uses.claim("code", worker_memory=800) == uses.claim("other", worker_memory=800) == 100


def test_the_first_kill_spares_the_next() -> None:
    """Until a code is learned, functions do not start where others of it ran out of memory."""
    uses = Uses()
    uses.record_kill("code", exceeded=100)
    assert uses.claim("code", worker_memory=800) == 400
    uses.record_kill("code", exceeded=800)
    assert uses.claim("code", worker_memory=800) == 400
    assert uses.claim("code", worker_memory=800, exceeded=400) == 800
    assert uses.claim("code", worker_memory=800, exceeded=800) is None
    for at in range(3):
        uses.record("code", started=at, seconds=1, peak=10)
    assert uses.claim("code", worker_memory=800) == 11


def test_claims_change_rarely() -> None:
    """A ladder serves ten functions, so that their costs are of few classes."""
    uses = Uses()
    claims = []
    for i in range(100):
        uses.record("code", started=i, seconds=1, peak=1000 + i * 7919 % 503)
        claims.append(uses.claim("code", worker_memory=64_000))
    assert len(set(claims)) < 20


def test_a_merge_is_learned_at_once() -> None:
    """What another scheduler measured changes the next claim."""
    uses = Uses()
    assert uses.claim("code", worker_memory=800) == 100
    other = made([("code", at, 1.0, 10.0) for at in range(9)])
    before = deepcopy(other)
    uses.merge(other)
    assert uses.claim("code", worker_memory=800) == 11
    copy = uses.copy()
    assert copy == uses
    uses.record("code", started=10, seconds=1, peak=700)
    assert other == copy == before, "they share nothing"
