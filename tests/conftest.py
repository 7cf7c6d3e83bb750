"""Settings that all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# Examples are scripts of events for a state machine: cheap, and worth having many of.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=2000)
settings.load_profile("ci" if os.environ.get("CI") else "default")
