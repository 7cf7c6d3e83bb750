"""The members of a bundle: whatever is reported and lost, the ledger has each start once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.attempts.losses import End, KnownStart, Lost
from handoff_dask.attempts.members import DONE, FAILED, OPEN, Members, with_dependents, with_sources

COUNT = 6
#: What each member of the bundles needs: those of two chains, and the end of one of them.
SOURCES = [[], [0], [], [1], [2], [3, 4]]
#: The attempts of a member that is sure to fail.
MOST = 3


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
        #: By position: failures and deaths.
        self.faults = Counter()

    def place(self, ran, failing, reported, how, known):
        """Play a placement.

        Parameters
        ----------
        ran, failing
            How many members ran, and how often each position failed; it fails for good the
            ``MOST``th time.
        reported
            How many attempts that ended were reported.
        how, known
            How the placement ended, and whether it is known what had started.
        """
        self.number += 1
        members, number = self.members, self.number
        attempts = self.attempts(ran, failing)
        for position, _ in attempts:
            self.starts[position] += 1
        running = attempts[-1:] if how != "given back" else []
        ended = attempts[: len(attempts) - len(running)]
        told = ended if how == "given back" else ended[:reported]
        self.faults.update(position for position, end in ended if end != "ok")
        at = float(number * 1000 + 1)
        self.report(told, at)
        if how == "given back":
            return
        starts = {}
        for position, _ in running:
            failed = [-1 - p if end == "failed for good" else p for p, end in ended if end != "ok"]
            begun, attempt = at + 2 * len(ended), self.starts[position]
            starts[number] = (KnownStart(position, begun, attempt, len(failed), failed[-16:]),)
        losses = members.lost(
            lost(number, at + 100, gone=how != "taken back", died=how == "died"),
            End(starts if known else None),
            SOURCES,
        )
        for position, charge in losses.charges:
            assert charge.started <= charge.stopped
            self.entries[position] += 1
            self.counted[position] += charge.counts
        unreported = ended[len(told) :]
        if how == "taken back":
            assert not any(members.uncharged(number, [position]) for position, _ in running)
            self.report(unreported, at + 99)
        elif known:
            died = [position for position, _ in running if how == "died"]
            gone = [position for position, end in unreported if end == "failed for good"]
            assert losses.leave == {*died, *gone}
            self.faults.update(died)
        for position in with_dependents(losses.leave, SOURCES):
            if members.states[position] == OPEN:
                members.leave(position)

    def attempts(self, ran, failing):
        """Return (position, how it ends) of the attempts of a placement, in order."""
        attempts, gone = [], set()
        for position in self.members.open:
            if ran and position not in with_dependents(gone, SOURCES):
                ran -= 1
                left = MOST - self.faults[position]
                attempts += [(position, "failed")] * min(failing[position], left)
                if failing[position] < left:
                    attempts.append((position, "ok"))
                else:
                    attempts[-1] = position, "failed for good"
                    gone.add(position)
        return attempts

    def report(self, attempts, at):
        """Report attempts in order, as a worker does."""
        members, number = self.members, self.number
        for place, (position, end) in enumerate(attempts):
            if members.uncharged(number, [position]):
                failed = end != "ok"
                members.reported(number, [position], at + 2 * place + 1, failures=failed)
                self.entries[position] += 1
                self.counted[position] += failed
                if not failed:
                    members.end([position], DONE)
                elif end == "failed for good":
                    reached = with_dependents({position}, SOURCES)
                    members.end([p for p in reached if members.states[p] == OPEN], FAILED)


@given(
    st.lists(
        st.tuples(
            st.integers(0, COUNT),
            st.lists(st.sampled_from([0, 0, 1, MOST]), min_size=COUNT, max_size=COUNT),
            st.integers(0, 2 * COUNT),
            st.sampled_from(["given back", "died", "closed", "taken back"]),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_each_start_is_in_the_ledger_once(placements, reopened):
    """Failures and deaths count, whether they were reported or not; no other start does."""
    bundle = Bundle()
    for placement in placements:
        bundle.place(*placement, known=True)
        assert bundle.entries == bundle.starts
        assert +bundle.counted == +bundle.faults
        assert list(bundle.members.tries) == [bundle.starts[p] for p in range(COUNT)]
        assert bundle.members.open_count == len(bundle.members.open)
        if reopened:
            bundle.members.reopen(bundle.members.having(DONE))


def test_nobody_knows():
    """Each whose end was not reported is charged once, and travels alone."""
    bundle = Bundle()
    bundle.place(3, [0] * COUNT, 2, "died", known=False)
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
