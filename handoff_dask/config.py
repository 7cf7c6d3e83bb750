"""The ``handoff`` namespace of ``dask.config``."""

from __future__ import annotations

import pkgutil
from typing import Any

import dask.config
import yaml
from dask.utils import parse_timedelta

_DEFAULTS = yaml.safe_load(pkgutil.get_data("handoff_dask", "handoff.yaml") or b"")
dask.config.update_defaults(_DEFAULTS)


def get(name: str) -> Any:
    """Return a setting of the ``handoff`` namespace."""
    # Whoever replaced the configuration as a whole, as Dask's own test tools do, lost our defaults.
    default = dask.config.get(f"handoff.{name}", config=_DEFAULTS)
    return dask.config.get(f"handoff.{name}", default)


def seconds(name: str) -> float:
    """Return a setting that is a time, in seconds."""
    return float(parse_timedelta(get(name)))
