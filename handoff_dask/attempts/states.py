"""The states of a function."""

from __future__ import annotations

#: States of a function: not ready, ready but without a place, on a worker, and the three ends.
STATES = ("waiting", "held", "running", "done", "failed", "cancelled")
#: States of functions that have not ended.
UNENDED = frozenset(("waiting", "held", "running"))
