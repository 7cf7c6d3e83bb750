"""The package's order: who may import whom, and where Dask may be touched how."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import handoff_dask

PACKAGE = Path(handoff_dask.__file__).parent
NAME = PACKAGE.name

#: From top to bottom. A module imports only from rooms further down; a package is one room.
ROOMS = """
    __init__
    cli preload
    execution
    runs nodes planning
    run
    watching
    explaining
    gathering
    ends waiting
    connection
    plugin
    dashboard
    registry service retries gate
    losses foreign claims stalls ending inputs
    withdrawal
    local wfformat
    submission annotating
    outline
    options
    results
    collection
    visualizing
    graph
    packing
    records
    worker
    nanny
    shipping
    task
    payload
    devices fetches
    offers
    _compat
    _compat_worker _compat_transfers
    starts
    _bootstrap
    widgets
    placement
    model
    config
    _version
    errors
    jsonable packed_errors
    standins pickling tracebacks
    collector
"""
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS.split("\n")) for room in rooms.split()}
#: Rooms whose modules may import each other freely.
OPEN_ROOMS = {"cli", "dashboard", "model", "placement", "widgets"}
#: Rooms that know nothing of Dask.
WITHOUT_DASK = {"model", "placement", "widgets"}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES]


def room_of(module):
    return module.split(".")[0]


def imports_of(module, source=None):
    """Return (module, name or None) for each import that happens at run time."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    found = []

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import would be missed below: absolute ones are the style here.
            assert node.level == 0, f"{module} has a relative import"
            found.extend((node.module, alias.name) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text() if source is None else source))
    return found


def own_imports(module, source=None):
    """Return the modules of this package that a module imports, below the package's name."""
    found = set()
    for imported, name in imports_of(module, source):
        parts = imported.split(".")
        if parts[0] != NAME:
            continue
        if len(parts) == 1:
            # From the face itself: a submodule, or what only __init__ has.
            parts.append(name if name in FLOORS else "__init__")
        found.add(".".join(parts[1:]))
    return found


def misplaced(module, source=None):
    """Return the imports of a module that lead up, or to a neighbour."""
    here = room_of(module)
    return [
        imported
        for imported in sorted(own_imports(module, source))
        if FLOORS[room_of(imported)] <= FLOORS[here]
        and not (room_of(imported) == here and here in OPEN_ROOMS)
    ]


def dask_imports(module, source=None):
    return [
        (imported, name)
        for imported, name in imports_of(module, source)
        if imported.split(".")[0] in ("dask", "distributed")
    ]


def private(module, source=None):
    """Return the imports of Dask's private modules and names."""
    return [
        (imported, name)
        for imported, name in dask_imports(module, source)
        if any(part.startswith("_") for part in (*imported.split("."), name or ""))
    ]


@pytest.mark.parametrize(
    ("module", "source", "culprits"),
    [
        ("graph", "from handoff_dask.execution import execute", ["execution"]),
        ("graph", "import handoff_dask.plugin", ["plugin"]),
        ("graph", "from handoff_dask import plugin", ["plugin"]),
        ("graph", "from handoff_dask import DAG", ["__init__"]),
        ("graph", "def f():\n    from handoff_dask.run import Run", ["run"]),
        ("graph", "if TYPE_CHECKING:\n    pass\nelse:\n    import handoff_dask.run", ["run"]),
        ("graph", "if typing.TYPE_CHECKING:\n    from handoff_dask.run import Run", []),
        ("graph", "from handoff_dask.graph import translate", ["graph"]),
        ("graph", "from handoff_dask import config, errors", []),
        ("cli.app", "from handoff_dask.preload import dask_setup", ["preload"]),
        ("model.dag", "from handoff_dask.placement.engine import Engine", ["placement.engine"]),
        ("model.dag", "from handoff_dask.model.retry import RetryPolicy", []),
    ],
)
def test_these_tests_see(module, source, culprits):
    """Each way to import upwards is seen; imports for type checkers alone are not counted."""
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
def test_these_tests_see_private_names(source, seen):
    """A private module or name of Dask is seen, wherever the underscore stands."""
    assert bool(private("graph", source)) == seen


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_room(module):
    """A new module gets its place in the order before it gets users."""
    assert room_of(module) in FLOORS


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    """A module imports only from rooms further down the list."""
    assert misplaced(module) == []


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in WITHOUT_DASK])
def test_no_dask_in_the_engine_and_the_model(module):
    """Placement, model and widgets know nothing of Dask, not through another module either."""
    reached, ahead = set(), {module}
    while ahead:
        here = ahead.pop()
        reached.add(here)
        assert dask_imports(here) == [], f"{module} reaches {here}"
        found = {i if i in MODULES else f"{i}.__init__" for i in own_imports(here)}
        ahead |= found - reached


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("_compat")])
def test_private_names_of_dask(module):
    """What is not Dask's public API is touched in _compat and nowhere else."""
    assert private(module) == []
