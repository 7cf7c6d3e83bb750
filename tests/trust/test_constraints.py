"""The versions that environments install."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = {
    canonicalize_name(requirement.name): requirement
    for line in (ROOT / "tests" / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for requirement in [Requirement(line)]
}
NEEDED = [
    Requirement(text)
    for text in re.findall(r'"([\w-]+>=[^"]+)"', (ROOT / "pyproject.toml").read_text())
]


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_what_the_project_needs_is_pinned(needed):
    """Everything that an environment installs has a tested version; the metadata has no caps."""
    assert [specifier.operator for specifier in needed.specifier] == [">="]
    (pin,) = PINS[canonicalize_name(needed.name)].specifier
    assert pin.operator == "==" and pin.version in needed.specifier


def test_pins_fit_any_machine():
    """They are versions, not paths on some machine."""
    assert all(requirement.url is None for requirement in PINS.values())


def test_pins_count_as_a_whole():
    """If Python is too old for one of them, none prevents pip from choosing versions that fit."""
    (marker,) = {str(requirement.marker) for requirement in PINS.values()}
    assert re.fullmatch(r'None|python_full_version >= "3\.\d+\.\d+"', marker)
