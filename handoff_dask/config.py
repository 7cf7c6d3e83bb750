"""The ``handoff`` namespace of ``dask.config``."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterator
from typing import Any

import dask.config
import yaml
from dask.utils import parse_timedelta


def _read(name: str) -> Any:
    return yaml.safe_load(pkgutil.get_data("handoff_dask", name) or b"")


_DEFAULTS = _read("handoff.yaml")
dask.config.update_defaults(_DEFAULTS)


def get(name: str) -> Any:
    """Return a setting of the ``handoff`` namespace."""
    # The defaults are gone if somebody replaced the whole configuration, as Dask's test tools do.
    default = dask.config.get(f"handoff.{name}", config=_DEFAULTS)
    return dask.config.get(f"handoff.{name}", default)


def seconds(name: str) -> float:
    """Return a duration setting, in seconds."""
    return float(parse_timedelta(get(name)))


def problems() -> list[str]:
    """Check the settings of the ``handoff`` namespace against its schema; return the problems."""
    settings = dask.config.get("handoff", _DEFAULTS["handoff"])
    if settings == _DEFAULTS["handoff"]:
        return []  # reading the schema takes time
    schema = _read("handoff-schema.yaml")
    return list(_misfits("handoff", settings, schema["properties"]["handoff"]))


_KINDS: dict[str, tuple[Any, str]] = {
    "object": (dict, "a group of settings"),
    "boolean": (bool, "true or false"),
    "string": (str, "text"),
    "number": ((int, float), "a number"),
    "integer": (int, "a whole number"),
    "null": (type(None), "empty"),
}


def _fits(value: Any, type_: str) -> bool:
    # True and False are whole numbers to Python.
    return isinstance(value, _KINDS[type_][0]) and (type_ == "boolean") == isinstance(value, bool)


def _misfits(name: str, value: Any, schema: dict[str, Any]) -> Iterator[str]:
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_fits(value, type_) for type_ in types):
        described = " or ".join(_KINDS[type_][1] for type_ in types)
        shown = "" if schema.get("writeOnly") else f", not {value!r}"  # secrets are not shown
        yield f"the setting {name} must be {described}{shown}"
        return
    if schema.get("format") == "duration" and value is not False:
        try:
            parse_timedelta(value)
        except (KeyError, ValueError):
            yield f"the setting {name} must be a time such as 60s or 50ms, not {value!r}"
    known = schema.get("properties", {})
    for key, inner in value.items() if known and isinstance(value, dict) else ():
        # Dask accepts both spellings; environment variables can only have underscores.
        canonical = str(key).replace("_", "-")
        if canonical in known:
            yield from _misfits(f"{name}.{canonical}", inner, known[canonical])
        else:
            near = difflib.get_close_matches(canonical, known, 1)
            hint = f". Did you mean {name}.{near[0]}?" if near else ""
            yield f"there is no setting {name}.{key}{hint}"
