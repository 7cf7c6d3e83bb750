"""Which modules belong to what is installed, and in which version."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import site
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Literal

Versions = Literal["exact", "minor", "ignore"]

#: Stands for the interpreter, its builtins and the standard library.
PYTHON = "python"


def distributions(module: str) -> frozenset[str] | None:
    """Return the names of the distributions that a module is from; None if it is the user's own.

    Own is what is neither part of Python nor in a folder of installed packages: an editable
    install is own code, and so is a file in such a folder that no distribution claims.

    Examples
    --------
    >>> sorted(distributions("json.decoder")), sorted(distributions("toolz.functoolz"))
    (['python'], ['toolz'])
    >>> distributions("__main__") is None
    True
    """
    if module in sys.modules:
        return _distributions(module, getattr(sys.modules[module], "__file__", None))
    top = module.partition(".")[0]
    if top != module:
        return distributions(top)
    file = _file_of(module)
    return None if file is None else _distributions(module, file)


@cache
def _file_of(module: str) -> str | None:
    """Return where a module would be imported from."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    return None if spec is None else spec.origin


@cache
def _distributions(module: str, file: str | None) -> frozenset[str] | None:
    top = module.partition(".")[0]
    if top == "__main__":
        return None
    if top == "handoff_dask":
        return frozenset([top])
    if file is None:  # built in, frozen, a namespace, or made by hand
        return frozenset([PYTHON]) if top in sys.stdlib_module_names else _claimed(top)
    path = Path(file).resolve()
    if any(path.is_relative_to(folder) for folder in _package_folders()):
        return _claimed(top)
    if top in sys.stdlib_module_names and path.is_relative_to(_standard_library()):
        return frozenset([PYTHON])
    return None


def _claimed(top: str) -> frozenset[str] | None:
    names = _by_module().get(top)
    return frozenset(names) if names else None


@cache
def _by_module() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


@cache
def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


@cache
def _package_folders() -> tuple[Path, ...]:
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    folders.update(site.getsitepackages(), [site.getusersitepackages()])
    folders.update(p for p in sys.path if Path(p).name in ("site-packages", "dist-packages"))
    return tuple(Path(folder).resolve() for folder in folders)


def version(distribution: str, versions: Versions) -> str:
    """Return the version of a distribution, as far as it counts.

    Examples
    --------
    >>> import toolz
    >>> version("toolz", "exact") == toolz.__version__
    True
    """
    if versions == "ignore":
        return ""
    full = _version(distribution)
    return full if versions == "exact" else ".".join(full.split(".")[:2])


@cache
def _version(distribution: str) -> str:
    if distribution == PYTHON:
        return platform.python_version()
    try:
        installed = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:  # on the path, but not installed
        return str(getattr(sys.modules.get(distribution), "__version__", "unknown"))
    if installed.read_text("direct_url.json") is None:
        return installed.version
    # Installed from a folder or a repository, where the version need not change with the code.
    files = sorted(f"{file} {file.hash.value}" for file in installed.files or () if file.hash)
    code = [line for line in files if ".dist-info/" not in line]
    return f"{installed.version}+{hashlib.sha256(repr(code).encode()).hexdigest()[:12]}"


def compiled(module: ModuleType | None) -> str | None:
    """Return a digest of the file of a compiled module; None if a module has no such file."""
    file = getattr(module, "__file__", None)
    return _digest_of(file) if file and file.endswith(tuple(EXTENSION_SUFFIXES)) else None


@cache
def _digest_of(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
