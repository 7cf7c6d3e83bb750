"""Makes the package importable where it is not installed, from files in memory.

The source of this module is sent to schedulers and workers and executed there, so it may only use
the standard library. Nothing is written to their disks.
"""

from __future__ import annotations

import importlib.abc
import logging
import os
import pickle
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: The only package that is shipped, and the folder in which its files seem to be.
NAME = "handoff_dask"
PLACE = "shipped"


class ShippedPackage(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):  # type: ignore[misc]
    """Finds and loads the package's modules among files in memory.

    Parameters
    ----------
    files
        {path from the package's parent, with slashes: content}.
    """

    #: Identifies instances of other copies of this class.
    ships = NAME

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the package, and no other."""
        if fullname.partition(".")[0] != NAME:
            return None
        stem = fullname.replace(".", "/")
        for file, package in ((f"{stem}/__init__.py", True), (f"{stem}.py", False)):
            if file in self.files:
                spec = ModuleSpec(fullname, self, origin=f"{PLACE}/{file}", is_package=package)
                spec.has_location = True  # modules get a __file__
                if package:
                    spec.submodule_search_locations = [f"{PLACE}/{stem}"]
                return spec
        return None

    def get_filename(self, fullname: str) -> str:
        """Return the file in which a module seems to be."""
        spec = self.find_spec(fullname)
        if spec is None or spec.origin is None:
            raise ImportError(f"{fullname} was not shipped", name=fullname)
        return spec.origin

    def get_data(self, path: str) -> bytes:
        """Return the content of a file."""
        try:
            return self.files[path.replace("\\", "/").removeprefix(f"{PLACE}/")]
        except KeyError:
            raise OSError(f"{path} was not shipped") from None


def unpack(files: bytes, parcel: bytes, version: str, base: str | None = None) -> Any:
    """Unpack a parcel, with the installed package or else with the copy that was sent along.

    A parcel is a pickled pair: what to call, and the arguments. `files`, of that version, is the
    package: a mapping, pickled and compressed.

    For a plugin that its server can do without, `base` is the name of its base class in
    distributed. If the package cannot be used, the result is a plugin that only reports this.
    Without a `base`, ImportError is raised.
    """
    came_along = False
    try:
        try:
            importlib.import_module(NAME)
        except ModuleNotFoundError as error:
            if error.name != NAME:
                raise
            came_along = True
            sys.meta_path.append(ShippedPackage(pickle.loads(zlib.decompress(files))))
        here = importlib.import_module(f"{NAME}._version").__version__
        if base is not None and here.split(".")[:2] != version.split(".")[:2]:
            raise ImportError(f"its version {here} does not match {version}")
        make, arguments = pickle.loads(parcel)
        return make(*arguments)
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        problem = f"the copy of {NAME} {_place()} cannot be used; repair or remove it: {what}"
        if came_along:
            remove()
        if base is None:
            raise ImportError(problem) from error
        return _idle(base, problem)


def _place() -> str:
    """Describe where the package here was imported from."""
    if shipped():
        return "that was sent along"
    for folder in sys.path:
        if os.path.isdir(place := os.path.join(folder or os.curdir, NAME)):
            return f"in {os.path.abspath(place)}"
    return "that is installed there"


def _idle(base: str, problem: str) -> Any:
    """Return a plugin that does nothing but report why."""

    class Idle(getattr(importlib.import_module("distributed"), base)):  # type: ignore[misc]
        async def setup(self, worker: Any = None, nanny: Any = None) -> None:
            server = worker or nanny
            log = logging.getLogger(f"distributed.{NAME}")
            log.warning("%s gets no Handoff functions: %s", server.address, problem)
            if worker is not None:
                await worker.scheduler.handoff_unable(
                    worker=worker.contact_address, problem=problem
                )

    return Idle()


def shipped() -> list[Any]:
    """Return the finders of a shipped package: one or none."""
    return [finder for finder in sys.meta_path if getattr(finder, "ships", None) == NAME]


def remove() -> None:
    """Forget the package if it was shipped here."""
    finders = shipped()
    for finder in finders:
        sys.meta_path.remove(finder)
    if finders:
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
