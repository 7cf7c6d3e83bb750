"""What installing the package means."""

from __future__ import annotations

import re
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_dependencies():
    """Installing it without extras asks for nothing but Dask, distributed and toolz."""
    asked = [line for line in requires("handoff_dask") if "extra ==" not in line]
    names = {re.match(r"[\w.-]+", line).group() for line in asked}
    assert names == {"dask", "distributed", "toolz"}


def test_one_place_for_each_fact():
    """setup.cfg says which files belong to the package; pyproject.toml says everything else."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert {name.split(".")[0] for name in config.sections()} == {"options"}
    assert set(config["options"]) == {"packages"}
    tables = re.findall(r"^\[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert [name for name in tables if name.startswith("tool.setuptools")] == [
        "tool.setuptools.dynamic"
    ]
