"""Pictures of DAGs in files: the choice of the engine, and the options of Dask's engines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast

import dask

from handoff_dask.model.function import Function, claims
from handoff_dask.widgets import markup
from handoff_dask.wire.keys import Key

Engine = Literal["graphviz", "cytoscape", "handoff"]

#: What each engine can write, the preferred engine first.
_FORMATS: Mapping[Engine, tuple[str, ...]] = {
    "graphviz": ("png", "pdf", "svg", "dot", "jpeg", "jpg"),
    "cytoscape": ("html",),
    "handoff": ("svg",),
}
_NEEDS = {
    "graphviz": "the graphviz engine needs the Python package graphviz, which "
    "pip install 'handoff_dask[notebook]' brings, and Graphviz itself, the program `dot` "
    "(Debian and Ubuntu: apt install graphviz; conda install graphviz)",
    "cytoscape": "the cytoscape engine needs ipycytoscape: pip install ipycytoscape",
}


def choose_engine(filename: str | None, format: str | None, engine: str | None) -> Engine:
    """Return the engine that draws a file: by default Dask's setting, or the first that can.

    Raise ValueError if there is no such engine or format, or the engine cannot write the format,
    and RuntimeError if what it needs is not installed.
    """
    formats = {name for names in _FORMATS.values() for name in names}
    kind: str | None = (format or os.path.splitext(filename or "")[1][1:]).lower()
    if kind not in formats:
        if format:
            raise ValueError(f"format must be one of {sorted(formats)}, not {format!r}")
        kind = None  # a dot in the name is not always the start of an ending
    engine = engine or dask.config.get("visualization.engine", None)
    if engine == "ipycytoscape":  # Dask has two names for it
        engine = "cytoscape"
    if engine is None:
        able = [name for name in _FORMATS if kind is None or kind in _FORMATS[name]]
        chosen = next((name for name in able if _installed(name)), None)
        if chosen is None:
            raise RuntimeError(f"cannot write {kind}: {_NEEDS[able[0]]}")
        return chosen
    if engine not in _FORMATS:
        raise ValueError(f"engine must be one of {list(_FORMATS)} or None, not {engine!r}")
    chosen = cast("Engine", engine)
    if kind is not None and kind not in _FORMATS[chosen]:
        raise ValueError(f"the {engine} engine writes {', '.join(_FORMATS[chosen])}, not {kind}")
    if not _installed(chosen):
        raise RuntimeError(_NEEDS[chosen])
    return chosen


def _installed(engine: Engine) -> bool:
    if engine == "graphviz":
        return find_spec("graphviz") is not None and shutil.which("dot") is not None
    return engine == "handoff" or find_spec("ipycytoscape") is not None


def looks(engine: Engine, keys: Iterable[Key], functions: Iterable[Function]) -> dict[str, Any]:
    """Return what makes Dask's engines show ids and costs instead of keys."""
    attributes = {}
    for key, function in zip(keys, functions, strict=True):
        label = markup.shorten(markup.plain(function.id), 60)
        if cost := claims(function):
            label += f"\n{markup.cost(cost)}"
        if engine == "graphviz":
            # Backslashes and angle brackets would be commands.
            plain = import_module("graphviz").escape(label)
            attributes[key] = {"label": plain, "shape": "box", "style": "rounded"}
        else:
            attributes[key] = {"label": label, "shape": "rectangle"}
    both = {"function_attributes": attributes, "data_attributes": attributes}
    return {"collapse_outputs": True, **both}


def write_svg(svg: str, filename: str | None) -> Any:
    """Write a drawing, unless the filename is None; return it for a notebook to show."""
    if filename is not None:
        if not filename.lower().endswith(".svg"):
            filename += ".svg"
        with open(filename, "w", encoding="utf-8") as file:
            file.write(svg)
    try:
        from IPython.display import SVG
    except ImportError:
        return None
    return SVG(data=svg)
