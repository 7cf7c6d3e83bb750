"""The architecture: which wing may import which, and where Dask may be touched how."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import handoff_dask

PACKAGE = Path(handoff_dask.__file__).parent
NAME = PACKAGE.name

#: From top to bottom. A module imports only from wings further down, and from its own wing.
WINGS = (
    "__init__",
    "preload",
    "cli",
    "client",
    "scheduler",
    "graph",
    "worker",
    "compat",
    "wire",
    "widgets",
    "attempts",
    "store",
    "learning",
    "placement",
    "model",
    "shipping",
    "config",
    "errors",
    "packed_errors",
    "tracebacks",
    "standins",
    "pickling",
    "collector",
    "_version",
)
#: Wings of one module that must not import each other, although one is above the other.
FORBIDDEN = {("worker", "scheduler"), ("scheduler", "client"), ("scheduler", "store")}
#: The only modules below the face that may import the scheduler's wing, and what they need.
SCHEDULER_USERS = {"client.connection", "preload"}
#: Wings that know nothing of Dask, and do no I/O.
PURE = {"placement", "attempts", "learning", "model", "widgets"}
#: Wings that know nothing of ours but these.
ALONE = {"compat": {"compat", "standins"}}
#: Names that two modules share because one is about the other's side of Dask.
SHARED_NAMES = {"scheduler", "worker"}

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
)


class Import(NamedTuple):
    """One imported module, or one name imported from it."""

    module: str
    name: str | None


def wing_of(module):
    return module.split(".")[0]


def imports_of(module, source=None) -> Iterator[Import]:
    """Yield each import, those for type checkers included."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import would be missed below: absolute ones are the style here.
            assert node.level == 0, f"{module} has a relative import"
            yield from (Import(node.module, alias.name) for alias in node.names)


def own_imports(module, source=None) -> Iterator[tuple[str, str | None]]:
    """Yield (module below the package's name, name) for each import of this package."""
    for imported, name in imports_of(module, source):
        top, _, rest = imported.partition(".")
        if top != NAME:
            continue
        joined = f"{rest}.{name}".strip(".") if name else rest
        if joined in MODULES or f"{joined}.__init__" in MODULES:
            rest, name = joined, None  # a module, imported from its package
        if rest not in MODULES:
            rest = f"{rest}.__init__".strip(".")
        yield rest, name


def misplaced(module, source=None):
    """Return the imports of a module that lead up, or where they must not."""
    here = wing_of(module)
    culprits = set()
    for imported, _ in own_imports(module, source):
        there = wing_of(imported)
        if here == there:
            continue
        up = WINGS.index(there) <= WINGS.index(here)
        barred = (here, there) in FORBIDDEN
        unasked = there == "scheduler" and here != "__init__" and module not in SCHEDULER_USERS
        stranger = here in ALONE and there not in ALONE[here]
        if up or barred or unasked or stranger:
            culprits.add(imported)
    return sorted(culprits)


def dask_imports(module, source=None):
    return [
        imported
        for imported in imports_of(module, source)
        if imported.module.split(".")[0] in ("dask", "distributed")
    ]


def private_of_dask(module, source=None):
    """Return the imports of Dask's private modules and names."""
    return [
        (imported, name)
        for imported, name in dask_imports(module, source)
        if any(part.startswith("_") for part in (*imported.split("."), name or ""))
    ]


def private_of_ours(module, source=None):
    """Return private names of other modules that a module imports or reads off them."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text() if source is None else source)
    modules = set()
    culprits = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module.split(".")[0] != NAME:
            continue
        for alias in node.names:
            full = f"{node.module}.{alias.name}".removeprefix(f"{NAME}.")
            if full in MODULES or f"{full}.__init__" in MODULES:
                modules.add(alias.asname or alias.name)
            elif alias.name.startswith("_") and not alias.name.startswith("__"):
                culprits.append(alias.name)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        ):
            culprits.append(f"{node.value.id}.{node.attr}")
    return culprits


def cycles(arrows):
    """Return the modules that import each other in a circle."""
    arrows = {module: set(targets) - {module} for module, targets in arrows.items()}
    while leaves := [module for module, targets in arrows.items() if not targets & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    # What only leads to a circle is none of it.
    while roots := [m for m in arrows if not any(m in targets for targets in arrows.values())]:
        for module in roots:
            del arrows[module]
    return sorted(arrows)


@pytest.mark.parametrize(
    ("module", "source", "culprits"),
    [
        ("graph.packing", "from handoff_dask.client.run import Run", ["client.run"]),
        ("graph.packing", "import handoff_dask.client.run", ["client.run"]),
        ("graph.packing", "from handoff_dask.client import run", ["client.run"]),
        ("graph.packing", "from handoff_dask import DAG", ["__init__"]),
        ("graph.packing", "def f():\n    from handoff_dask.client.run import Run", ["client.run"]),
        (
            "graph.packing",
            "if TYPE_CHECKING:\n    from handoff_dask.client.run import Run",
            ["client.run"],
        ),
        ("graph.packing", "from handoff_dask.graph.translation import translate", []),
        ("graph.packing", "from handoff_dask import config, errors", []),
        ("client.run", "from handoff_dask.scheduler import plugin", ["scheduler.plugin"]),
        ("client.connection", "from handoff_dask.scheduler import plugin", []),
        ("compat.worker", "from handoff_dask.model.dag import DAG", ["model.dag"]),
    ],
)
def test_misplaced_imports_are_seen(module, source, culprits):
    """Each way to import from where a module must not is seen, for type checkers too."""
    assert misplaced(module, source) == culprits


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("from dask._task_spec import Task", True),
        ("import distributed._stories", True),
        ("from distributed.worker import _deserialize", True),
        ("from dask import _version", True),
        ("from distributed.core import Status", False),
        ("from _pytest import nothing", False),
    ],
)
def test_private_names_of_dask_are_seen(source, seen):
    """A private module or name of Dask is seen, wherever the underscore stands."""
    assert bool(private_of_dask("graph.packing", source)) == seen


@pytest.mark.parametrize(
    ("source", "culprits"),
    [
        ("from handoff_dask.graph.packing import _Part", ["_Part"]),
        ("from handoff_dask.graph import packing\npacking._Part", ["packing._Part"]),
        ("from handoff_dask._version import __version__", []),
        ("from handoff_dask.graph import packing\npacking.Packer", []),
    ],
)
def test_private_names_of_modules_are_seen(source, culprits):
    """A private name of another module is seen, imported or read off the module."""
    assert private_of_ours("client.run", source) == culprits


def test_cycles_are_seen():
    """Modules in a circle are found, and what leads to it or from it is not."""
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_wing(module):
    """A new wing gets its place in the order before it gets users."""
    assert wing_of(module) in WINGS


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    """A module imports from its own wing and from wings further down the list."""
    assert misplaced(module) == []


def test_no_cycles():
    """No module imports itself through others, not even for type checkers."""
    assert cycles({m: {imported for imported, _ in own_imports(m)} for m in MODULES}) == []


def test_no_two_modules_of_one_name():
    """A module's name says which it is."""
    names = [module.split(".")[-1] for module in MODULES]
    wings = {wing_of(module) for module in MODULES if "." in module}
    taken = Counter([name for name in names if name != "__init__"] + sorted(wings))
    assert {name for name, times in taken.items() if times > 1} <= SHARED_NAMES


@pytest.mark.parametrize("module", [m for m in MODULES if wing_of(m) in PURE])
def test_pure_wings_know_no_dask(module):
    """Decisions, model and drawings know nothing of Dask, not through another module either."""
    reached, ahead = set(), {module}
    while ahead:
        here = ahead.pop()
        reached.add(here)
        assert dask_imports(here) == [], f"{module} reaches {here}"
        ahead |= {imported for imported, _ in own_imports(here)} - reached


@pytest.mark.parametrize("module", [m for m in MODULES if wing_of(m) != "compat"])
def test_private_names_of_dask(module):
    """What is not Dask's public API is touched in compat and nowhere else."""
    assert private_of_dask(module) == []


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_in_their_module(module):
    """No module touches a private name of another."""
    assert private_of_ours(module) == []
