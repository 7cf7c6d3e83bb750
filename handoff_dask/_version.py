"""The version, readable without package metadata: a cluster may get the bare package."""

from __future__ import annotations

import re

__version__ = "0.2.0"


def fits(other: str) -> bool:
    """Whether a scheduler or worker of another version understands this one.

    The first two numbers must be equal: 0.2.0 and 0.2.7 work together, 0.2.0 and 0.3.0 do not.
    """
    return re.findall(r"\d+", other)[:2] == re.findall(r"\d+", __version__)[:2]
