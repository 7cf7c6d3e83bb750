"""The members of a bundle: whatever is reported and lost, the ledger has each start once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.attempts.losses import End, KnownStart, Lost
from handoff_dask.attempts.members import DONE, OPEN, Members, with_dependents, with_sources

COUNT = 6


def lost(number, at, *, gone=True, died=True):
    return Lost("a worker", float(number * 1000), number, at, gone, died)


class Bundle:
    """A bundle whose placements are played; what really happened is recorded beside."""

    def __init__(self):
        self.members = Members(COUNT)
        self.number = 0
        #: By position: starts that happened, entries in the ledger, and those of them that count.
        self.starts = Counter()
        self.entries = Counter()
        self.counted = Counter()
        self.deaths = Counter()

    def place(self, ran, reported, how, known):
        """Play a placement: how many members ran, how many ends were reported, how it ended."""
        self.number += 1
        members, number = self.members, self.number
        positions = members.open
        ran = positions[:ran]
        for position in ran:
            self.starts[position] += 1
        running = ran[-1:] if how != "given back" else []
        ended = ran[: len(ran) - len(running)]
        reported = ended if how == "given back" else ended[:reported]
        at = float(number * 1000 + 1)
        if reported:
            members.reported(number, reported, at + 2 * positions.index(reported[-1]) + 1)
            members.end(reported, DONE)
            self.entries.update(reported)
        if how == "given back":
            return
        starts = {}
        if running:
            begun = at + 2 * positions.index(running[0])
            starts[number] = (KnownStart(running[0], begun, self.starts[running[0]]),)
        losses = members.lost(
            lost(number, at + 100, gone=how != "taken back", died=how == "died"),
            End(starts if known else None),
        )
        for position, charge in losses.charges:
            assert charge.started <= charge.stopped
            self.entries[position] += 1
            self.counted[position] += charge.counts
        if how == "died" and known:
            assert losses.leave == set(running)
            self.deaths.update(running)
        if how == "taken back" and known:
            late = [p for p in ended if p not in reported]
            late += running  # its thread went on
            places = members.uncharged(number, late)
            assert [late[p] for p in places] == late[: len(late) - len(running)]
            members.reported(number, [late[p] for p in places], at + 99)
            self.entries.update(late[p] for p in places)
            members.end([late[p] for p in places], DONE)
        for position in losses.leave:
            members.leave(position)


@given(
    st.lists(
        st.tuples(
            st.integers(0, COUNT),
            st.integers(0, COUNT),
            st.sampled_from(["given back", "died", "closed", "taken back"]),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_each_start_is_in_the_ledger_once(placements, reopened):
    """Those that ran when their worker died are charged and leave; no other start counts."""
    bundle = Bundle()
    for placement in placements:
        bundle.place(*placement, known=True)
        assert bundle.entries == bundle.starts
        assert +bundle.counted == bundle.deaths
        assert list(bundle.members.tries) == [bundle.starts[p] for p in range(COUNT)]
        assert bundle.members.open_count == len(bundle.members.open)
        if reopened:
            bundle.members.reopen(bundle.members.having(DONE))


def test_nobody_knows():
    """Each whose end was not reported is charged once, and travels alone."""
    bundle = Bundle()
    bundle.place(3, 2, "died", known=False)
    assert bundle.members.open == []
    assert +bundle.counted == {p: 1 for p in range(2, COUNT)}


def test_a_failure_that_was_reported():
    """A start whose failure was reported is not charged once more."""
    members = Members(3)
    members.reported(1, [0], 1005.0)
    losses = members.lost(lost(1, 1100.0), End({1: (KnownStart(0, 1001.0, 1),)}))
    assert losses == ([], set())
    losses = members.lost(lost(1, 1100.0), End({1: (KnownStart(0, 1006.0, 2),)}))
    assert [position for position, _ in losses.charges] == [0] and losses.leave == {0}


def test_failures_that_were_not_reported():
    """Attempts that failed just before the one that ended their worker count, each once."""
    members = Members(3)
    members.reported(1, [0, 1], 1005.0)
    members.end([0], DONE)
    losses = members.lost(lost(1, 1100.0), End({1: (KnownStart(1, 1011.0, 4),)}))
    assert [(p, due[:3], due.counts) for p, due in losses.charges] == [
        (1, (1005.0, 1008.0, "error"), True),
        (1, (1008.0, 1011.0, "error"), True),
        (1, (1011.0, 1100.0, "worker-lost"), True),
    ]
    assert losses.leave == {1} and list(members.tries) == [1, 4, 0]


def test_a_bundle_that_had_ended():
    """Nothing in it counts; as its result may have ended the worker, all of them travel alone."""
    members = Members(4)
    losses = members.lost(lost(1, 1100.0), End({1: (KnownStart(-2 - 3, 1050.0),)}))
    assert [(p, due.counts) for p, due in losses.charges] == [(0, False), (1, False), (2, False)]
    assert losses.leave == {0, 1, 2} and members.states[3] == OPEN


def test_dependents_and_sources():
    """They are followed through all members."""
    sources = [[], [0], [], [1, 2], [3]]
    assert with_dependents({1}, sources) == {1, 3, 4}
    assert with_sources({3}, sources) == {0, 1, 2, 3}
