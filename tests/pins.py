"""Writes the versions in this environment as the tested versions: ``make constraints``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

HEADER = "# The versions that are tested. `make constraints` renews them.\n"
#: What comes with an environment, or from this folder.
UNPINNED = {"pip", "handoff-dask"}
#: Versions of Python on which the pins may have to be installed, in order.
PYTHONS = [f"3.{minor}.{patch}" for minor in range(10, 30) for patch in range(30)]


def pins(packages: Iterable[tuple[str, str, str | None]]) -> list[str]:
    """Return a constraint for each package, given as name, version and ``Requires-Python``.

    They fit each other as a whole. Where one of them cannot be installed, because Python is too old
    for it, none of them counts, and pip chooses what fits.

    Examples
    --------
    >>> for line in pins([("Dask", "2026.8.0", ">=3.10"), ("numpy", "2.4.6", ">=3.11")]):
    ...     print(line)
    dask==2026.8.0; python_full_version >= "3.11.0"
    numpy==2.4.6; python_full_version >= "3.11.0"
    """
    versions: dict[str, str] = {}
    oldest = 0
    for name, version, pythons in packages:
        if canonicalize_name(name) in UNPINNED:
            continue
        versions[canonicalize_name(name)] = version
        accepts = SpecifierSet(pythons or "")
        least = next(i for i, python in enumerate(PYTHONS) if python in accepts)
        oldest = max(oldest, least)
    marker = f'; python_full_version >= "{PYTHONS[oldest]}"' if oldest else ""
    return [f"{name}=={version}{marker}" for name, version in sorted(versions.items())]


if __name__ == "__main__":
    installed = ((d.name, d.version, d.metadata["Requires-Python"]) for d in distributions())
    Path(sys.argv[1]).write_text(HEADER + "\n".join(pins(installed)) + "\n")
