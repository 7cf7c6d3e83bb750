"""Names are the same in every process: with another hash seed, folder, file name and order."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import handoff_dask

HELPERS = """
import enum, dataclasses, logging, functools
import numpy as np

LOG = logging.getLogger("helpers")
TABLE = {"a": {"x", "y", "z"}, "b": frozenset(["p", "q"])}

class Kind(enum.Enum):
    A = "a"
    B = "b"

@dataclasses.dataclass
class Item:
    name: str
    tags: set = dataclasses.field(default_factory=set)
    def size(self):
        return len(self.tags | TABLE["a"])

@functools.lru_cache
def util(x):
    LOG.info("util")
    return np.sum([x, back(x)]) if x in {"u", "v", "w"} else Kind.A

def back(x):
    return util(x)
"""
SCRIPT = """
import sys, json, functools
from handoff_dask import DAG
from handoff_dask.model.expansion import expand
from handoff_dask.store.naming import Namer
import helpers
from helpers import Item, Kind, util
import numpy, pandas

def clean(x, keep={"k", "l", "m"}):
    class Local:
        def run(self):
            return [util(row) for row in x if row in {"a", "b", "c"}]
    return Local().run()

def closing(n):
    return lambda x: helpers.back(x) + n

def main():
    dag = DAG()
    dag.add(clean, "a", id="clean")
    dag.add(clean, {"s", "t", "u"}, Item("i", {"v", "w"}), id="sets")
    dag.add(closing(1), Kind.A, id="closure")
    dag.add(Item("i", {"x", "y"}).size, id="method")
    dag.add(Item, "a", {1: {"n", "m"}}, id="class")
    dag.add(functools.partial(clean, keep={"o", "p"}), numpy.arange(3), id="partial")
    dag.add(clean, pandas.DataFrame({"a": [1], "b": ["x"]}), id="frame")
    dag.add(print, helpers, id="module")
    names = Namer().names(expand(dag.functions))
    if "--backwards" in sys.argv:
        from handoff_dask.model.expansion import expand as again
        namer, nodes = Namer(), again(dag.functions)
        names = [namer.names([node])[0] for node in nodes[::-1]][::-1]
    print(json.dumps([name if isinstance(name, Exception) else name._asdict() for name in names]))

if __name__ == "__main__":
    main()
"""


def names(folder, seed, helpers=HELPERS, script=SCRIPT, name="script.py", *arguments):
    folder.mkdir(exist_ok=True)
    (folder / "helpers.py").write_text(helpers)
    (folder / name).write_text(script)
    root = os.path.dirname(os.path.dirname(handoff_dask.__file__))
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, name, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_names_last(tmp_path):
    """Another process, seed, folder, file name, order, comment and docstring leave every name."""
    first = names(tmp_path / "a", "1")
    assert len(first) == 8
    assert names(tmp_path / "b", "2", name="other.py") == first
    commented = "# A comment.\n\n" + SCRIPT.replace(
        "    class Local:", '    "Doc."\n    class Local:'
    )
    helpers = HELPERS.replace("def back(x):", 'def back(x):\n    """Doc."""  # and more')
    assert commented != SCRIPT and helpers != HELPERS
    assert names(tmp_path / "a", "3", helpers, commented, "script.py", "--backwards") == first


def test_an_edit_changes_what_uses_it(tmp_path):
    """An edited helper changes the functions that use it in the next session, and no other."""
    first = names(tmp_path, "1")
    second = names(tmp_path, "2", HELPERS.replace("self.tags | TABLE", "self.tags & TABLE"))
    changed = [old["key"] != new["key"] for old, new in zip(first, second, strict=True)]
    # "clean" uses util, which does not use Item; the module has everything.
    assert changed == [False, True, False, True, True, False, False, True]
