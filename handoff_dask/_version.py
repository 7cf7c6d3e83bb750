"""The version, readable without package metadata: a cluster may get the bare package."""

from __future__ import annotations

__version__ = "0.1.0"
