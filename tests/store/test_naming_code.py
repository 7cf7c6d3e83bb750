"""What a function does gives its result its name, and nothing else about the function does."""

from __future__ import annotations

import functools
import operator
import ssl
import sys
import threading
from textwrap import dedent

import numpy
import pytest
import toolz

from handoff_dask.store.naming import Unnameable, changes
from tests.store.naming_support import cell, key_of, name_of, own_module

BASE = """
import helpers
from helpers import LIMIT as limit, util

def clean(x, factor=2, *, offset=1):
    def inner(row):
        return [r for r in row if r not in {"a", "b"}]
    return helpers.util(inner(x)) * factor + offset

def other(x):
    return x - 1
"""
HELPERS = """
LIMIT = 3
def deep(x): return x + LIMIT
def util(x): return deep(x)
def unused(x): return x
"""
DECORATED = "import inspect, typing\ndef d(g): return lambda: %s"


def keys(monkeypatch, base=BASE, helpers=HELPERS, file="/nowhere/helpers.py"):
    own_module(monkeypatch, "helpers", helpers, file)
    script = cell(base)
    return key_of(script.clean, ["a"]), key_of(script.other, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def other", "# A comment.\n\n\ndef other"),
        ("def clean(x, factor=2, *, offset=1):", 'def clean(x, factor=2, *, offset=1):\n    "Doc"'),
        ("def inner(row):", 'def inner(row):\n        """A docstring."""'),
        ("def clean(x,", "def clean(x: 'list[str]',"),
        ("offset=1):", "offset: int = 1) -> int:"),
    ],
)
def test_what_does_not_count(monkeypatch, old, new):
    """Comments, blank lines, docstrings and annotations of functions leave a name."""
    assert old in BASE
    assert keys(monkeypatch, BASE.replace(old, new)) == keys(monkeypatch)


def test_unused_code_and_folders_do_not_count(monkeypatch):
    """What a function does not use, and where its helpers lie, leaves its name."""
    before = keys(monkeypatch)
    assert keys(monkeypatch, helpers=HELPERS.replace("return x\n", "return -x\n")) == before
    assert keys(monkeypatch, file="/elsewhere/helpers.py") == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor=2", "factor=3"),
        ("offset=1", "offset=1.0"),
        ('{"a", "b"}', '{"a", "c"}'),
        ("* factor", "+ factor"),
        ("helpers.util(", "helpers.deep("),
    ],
)
def test_changed_code_counts(monkeypatch, old, new):
    """An edit changes the name of the function, and no other."""
    before = keys(monkeypatch)
    after = keys(monkeypatch, BASE.replace(old, new))
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)


@pytest.mark.parametrize(
    ("old", "new", "piece"),
    [
        ("return deep(x)", "return deep(x) + 1", "helpers.util"),
        ("return x + LIMIT", "return x - LIMIT", "helpers.deep"),
        ("LIMIT = 3", "LIMIT = 4", "helpers.LIMIT"),
    ],
)
def test_changed_helpers_count(monkeypatch, old, new, piece):
    """A helper, a helper of a helper and a constant count; `changes` says which it was."""
    own_module(monkeypatch, "helpers", HELPERS)
    before = cell(BASE)
    old_names = name_of(before.clean, 1), name_of(before.other, 1)
    own_module(monkeypatch, "helpers", HELPERS.replace(old, new))
    after = cell(BASE)
    assert changes(name_of(after.clean, 1), old_names[0]) == [f"code of {piece} changed"]
    assert name_of(after.other, 1) == old_names[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # helpers in the same cell, and what they use
        ("def h(): return 1\ndef f(): return h()", "def h(): return 2\ndef f(): return h()"),
        ("N = 1\ndef f(): return N", "N = 2\ndef f(): return N"),
        ("N = [1]\ndef f(): return N", "N = [1.0]\ndef f(): return N"),
        ("def f(): return N", "N = 2\ndef f(): return N"),
        # functions that call each other
        (
            "def f(x): return g(x) if x else 1\ndef g(x): return f(x - 1)",
            "def f(x): return g(x) if x else 1\ndef g(x): return f(x - 2)",
        ),
        # what is inside try
        (
            "def f(a, b):\n try:\n  a(); b()\n except ValueError: pass",
            "def f(a, b):\n a()\n try: b()\n except ValueError: pass",
        ),
        # comprehensions, lambdas, generators, local classes
        ("def f(x): return [i + 1 for i in x]", "def f(x): return [i + 2 for i in x]"),
        ("f = lambda x: (lambda y: y + 1)(x)", "f = lambda x: (lambda y: y + 2)(x)"),
        ("def f(x): yield x", "def f(x): yield -x"),
        ("def f():\n class C: a = 1\n return C", "def f():\n class C: a = 2\n return C"),
        # decorators
        (
            "import functools as t\ndef d(f):\n @t.wraps(f)\n def w(x): return f(x) + 1\n return w"
            "\n@d\ndef f(x): return x",
            "import functools as t\ndef d(f):\n @t.wraps(f)\n def w(x): return f(x) + 2\n return w"
            "\n@d\ndef f(x): return x",
        ),
        (
            "from functools import lru_cache\n@lru_cache\ndef f(x): return x",
            "from functools import lru_cache\n@lru_cache\ndef f(x): return -x",
        ),
        (
            "from functools import singledispatch as s\n@s\ndef f(x): return x\n"
            "f.register(int, lambda x: 1)",
            "from functools import singledispatch as s\n@s\ndef f(x): return x\n"
            "f.register(int, lambda x: 2)",
        ),
        ("import toolz\n@toolz.curry\ndef f(x): return x", "import toolz\nf = toolz.curry(abs)"),
        (
            "from toolz import compose\nf = compose(lambda x: 1, str)",
            "from toolz import compose\nf = compose(lambda x: 2, str)",
        ),
        # classes
        ("class f:\n def m(self): return 1", "class f:\n def m(self): return 2"),
        ("class f:\n x: int", "class f:\n x: str"),
        ("class B: a = 1\nclass f(B): pass", "class B: a = 2\nclass f(B): pass"),
        ("class f: __slots__ = ('a',)", "class f: __slots__ = ('b',)"),
        ("class f:\n @property\n def p(s): return 1", "class f:\n @property\n def p(s): return 2"),
        (
            "class f:\n @staticmethod\n def p(): return 1",
            "class f:\n @staticmethod\n def p(): return 2",
        ),
        (
            "from functools import cached_property as c\nclass f:\n @c\n def p(s): return 1",
            "from functools import cached_property as c\nclass f:\n @c\n def p(s): return 2",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass f:\n a: int = 1",
            "from dataclasses import dataclass\n@dataclass\nclass f:\n a: int = 2",
        ),
        (
            "from enum import Enum\nclass f(Enum): A = 1",
            "from enum import Enum\nclass f(Enum): A = 2",
        ),
        (
            "class M(type):\n a = 1\nclass f(metaclass=M): pass",
            "class M(type):\n a = 2\nclass f(metaclass=M): pass",
        ),
        (
            "class C:\n def __call__(s): return 1\nf = C()",
            "class C:\n def __call__(s): return 2\nf = C()",
        ),
        ("class C:\n def m(s): return 1\nf = C().m", "class C:\n def m(s): return 2\nf = C().m"),
        (
            "class C:\n def __init__(s, a): s.a = a\n def m(s): return s.a\nf = C(1).m",
            "class C:\n def __init__(s, a): s.a = a\n def m(s): return s.a\nf = C(2).m",
        ),
        (
            "class C:\n @classmethod\n def m(c): return c.a\n a = 1\nf = C.m",
            "class C:\n @classmethod\n def m(c): return c.a\n a = 2\nf = C.m",
        ),
        (
            "class A:\n def m(s): return 1\nclass f(A):\n def m(s): return super().m()",
            "class A:\n def m(s): return 2\nclass f(A):\n def m(s): return super().m()",
        ),
        # globals in containers, and instances as globals
        (
            "def h(): return 1\nT = {'a': h}\ndef f(): return T",
            "def h(): return 2\nT = {'a': h}\ndef f(): return T",
        ),
        (
            "class C:\n def __init__(s, a): s.a = a\nG = C(1)\ndef f(): return G",
            "class C:\n def __init__(s, a): s.a = a\nG = C(2)\ndef f(): return G",
        ),
        # attributes of functions
        ("def f(): return f.a\nf.a = 1", "def f(): return f.a\nf.a = 2"),
        (
            "import functools\n@functools.cache\ndef f(): return f.a\nf.a = 1",
            "import functools\n@functools.cache\ndef f(): return f.a\nf.a = 2",
        ),
        (
            "from functools import partial\np = partial(len)\np.a = 1\ndef f(): return p.a",
            "from functools import partial\np = partial(len)\np.a = 2\ndef f(): return p.a",
        ),
        (
            "from typing import TypeVar\nT = TypeVar('T', bound=int)\ndef f(): return T",
            "from typing import TypeVar\nT = TypeVar('T', bound=str)\ndef f(): return T",
        ),
        (
            "from typing import NewType\nT = NewType('T', int)\ndef f(): return T",
            "from typing import NewType\nT = NewType('T', str)\ndef f(): return T",
        ),
        ("import types\n@types.coroutine\ndef f(): yield", "def f(): yield"),
        # variables whose names the function can see
        ("def f():\n a = 1\n return locals()", "def f():\n b = 1\n return locals()"),
        ("def f():\n a = 1\n b = 2\n return a", "def f():\n a = 1\n b = 2\n return b"),
        # what describes functions, where code reads that
        ("def f():\n 'a'\n return f.__doc__", "def f():\n 'b'\n return f.__doc__"),
        ("class C: 'a'\ndef f(): return C.__doc__", "class C: 'b'\ndef f(): return C.__doc__"),
        *(
            (f"{DECORATED % read}\n@d\ndef f(x: int): pass", f"{DECORATED % read}\n@d\n{after}")
            for read, after in [
                ("g.__name__", "def h(x: int): pass\nf = h"),
                ("g.__annotations__", "def f(x: float): pass"),
                ("typing.get_type_hints(g)", "def f(x: float): pass"),
                ("inspect.signature(g)", "def f(x: float): pass"),
            ]
        ),
        # what is installed
        (
            "import numpy\ndef f(x): return numpy.sum(x)",
            "import numpy\ndef f(x): return numpy.mean(x)",
        ),
        ("import numpy\nf = numpy.add", "import numpy\nf = numpy.subtract"),
        ("import numpy\nf = numpy.sum", "import numpy\nf = numpy.mean"),
        ("f = len", "f = repr"),
        ("f = 'x'.join", "f = 'y'.join"),
        ("f = str.upper", "f = str.lower"),
        (
            "import operator\nf = operator.itemgetter(1)",
            "import operator\nf = operator.itemgetter(2)",
        ),
    ],
)
def test_each_kind_of_code(before, after):
    """Whatever code is made of is looked into: the same again is the same, an edit is not."""
    assert key_of(cell(before).f) == key_of(cell(before).f)
    assert key_of(cell(before).f) != key_of(cell(after).f)
    assert key_of(cell("\n\n# moved\n" + before).f) == key_of(cell(before).f)


def test_a_function_in_no_order():
    """Functions that call each other have one name, whichever of them was looked at first."""
    source = """
    class C:
        def m(self): return g(C)
    def f(x): return g(x) + h(x) + C().m()
    def g(x): return f(x) if x else h(x)
    def h(x): return g(x - 1)
    """
    first, second = cell(dedent(source)), cell(dedent(source))
    names = {code: key_of(getattr(first, code)) for code in "fghC"}
    assert len(set(names.values())) == 4
    for code in "Chgf":
        # One Namer for all, in another order.
        assert key_of(lambda *_: 0, second.h, getattr(second, code)) == key_of(
            lambda *_: 0, first.h, getattr(first, code)
        )
        assert key_of(getattr(second, code)) == names[code]


def test_functions_that_call_each_other_are_told_apart():
    """In a circle of alike functions, one that differs changes the name of each."""

    def circle(constants):
        source = [
            f"def f{i}(x): return f{(i + 1) % len(constants)}(x) + {constant}"
            for i, constant in enumerate(constants)
        ]
        return key_of(cell("\n".join(source)).f0)

    constants = [[1] * 6, [2, *[1] * 5], *([1] * i + [2] + [1] * (5 - i) for i in range(1, 6))]
    assert len({circle(each) for each in constants}) == len(constants)


def test_closures_of_one_body():
    """What a function closes over counts."""

    def made(n):
        def inner(x):
            return x + n

        return inner

    assert key_of(made(1), 0) == key_of(made(1), 0)
    assert len({key_of(made(n), 0) for n in (1, 2, 1.0, True, "1", made(1))}) == 6


@pytest.mark.parametrize(
    ("source", "edit"),
    [
        ("def f(x):\n a, b = x, 1\n return a", "def f(x):\n c, d = x, 1\n return c"),
        ("def f(x):\n class C: a = 1", "def f(x):\n class C:\n  'A docstring.'\n  a = 1"),
        (
            "from handoff_dask import function\nclass C:\n def __call__(s): pass\nf = C()",
            "from handoff_dask import function\nclass C:\n def __call__(s): pass\n"
            "f = function(cost={'cpu': 2})(C())",
        ),
    ],
)
def test_what_functions_do_not_see(source, edit):
    """Names of local variables, docstrings of local classes and costs of instances leave a name."""
    assert key_of(cell(source).f) == key_of(cell(edit).f)


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("class C: pass", "C().__reduce_ex__(4)"),
        ("class C: pass", "C.__annotations__"),
        ("import enum\nclass C(enum.Flag): A, B = 1, 2", "C.A | C.B"),
        ("import typing as t\n@t.runtime_checkable\nclass C(t.Protocol): ...", "isinstance(1, C)"),
    ],
)
def test_the_use_of_a_class_does_not_count(source, use):
    """What Python itself puts into a class while it is used leaves the name."""
    script = cell(f"{source}\ndef f(): return C")
    before = key_of(script.f)
    exec(use, vars(script))
    assert key_of(script.f) == before


def test_names_of_functions_do_not_count():
    """A function that was renamed does what it did."""
    assert key_of(cell("def f(x): return x").f) == key_of(cell("def g(x): return x").g)


def test_a_global_that_the_function_changes():
    """A global counts as it is when the DAG is submitted, also if the function changes it."""
    script = cell("N = 0\ndef f():\n global N\n N += 1\n return N")
    before = key_of(script.f)
    assert key_of(script.f) == before
    script.f()
    assert key_of(script.f) != before


def test_partial_calls():
    """Arguments of a partial call count; a partial call is not a plain one."""

    def f(*args, **kwargs): ...

    partial, curry = functools.partial, toolz.curry(operator.add)
    calls = [
        partial(f), f, partial(f, 1), partial(f, 2), partial(f, 1, 2), partial(f, a=1),
        partial(f, a=2), partial(partial(f, 1), a=1), curry, curry(1),
    ]  # fmt: skip
    assert len({key_of(call) for call in calls}) == len(calls)
    assert key_of(partial(f, a=1, b=2)) == key_of(partial(f, b=2, a=1))


@pytest.mark.parametrize(
    ("source", "edit"),
    [
        ("from helpers import util\n return util(x)", True),
        ("import helpers\n return helpers.util(x)", True),
        ("import helpers as h\n return h.util(x)", True),
        ("import json, numpy\n return json.dumps(x), numpy", False),
    ],
)
def test_imports_inside_of_functions(monkeypatch, source, edit):
    """What a function imports when it runs counts like what the script imports."""
    own_module(monkeypatch, "helpers", HELPERS)
    before = name_of(cell(f"def f(x):\n {source}").f, 1)
    own_module(monkeypatch, "helpers", HELPERS.replace("x + LIMIT", "x * LIMIT"))
    after = name_of(cell(f"def f(x):\n {source}").f, 1)
    assert changes(after, before) == (["code of helpers.deep changed"] if edit else [])
    assert edit or set(after.code) == {"__main__.f", "numpy", "python"}


def test_imports_that_fail():
    """What cannot be imported here cannot be named."""
    with pytest.raises(Unnameable, match=r"^f -> import nowhere_at_all -> cannot be imported here"):
        key_of(cell("def f():\n import nowhere_at_all").f)


def test_code_that_cannot_be_named():
    """The error has the path to what cannot be named, also through helpers."""
    scripts = {
        "f -> global client -> SSLContext": "def f(): return client",
        "f -> global g -> global client -> SSLContext": "def g(): return client\n"
        "def f(): return g()",
        "f -> global T -> ['a'] -> [1] -> SSLContext": "T = {'a': [0, client]}\ndef f(): return T",
        "f -> closure c -> SSLContext": "def make(c):\n def f(): return c\n return f\n"
        "f = make(client)",
        "f -> global G -> class -> attribute c -> SSLContext": "class C: c = client\nG = C()\n"
        "def f(): return G",
    }
    client = ssl.create_default_context()
    for path, source in scripts.items():
        with pytest.raises(Unnameable) as caught:
            key_of(cell(source, client=client).f)
        assert str(caught.value) == path
    with pytest.raises(Unnameable, match="ufunc"):
        key_of(numpy.frompyfunc(abs, 1, 1), 1)
    with pytest.raises(Unnameable, match="lock"):
        key_of(threading.Lock().acquire)


def test_versions(monkeypatch):
    """Installed code counts by its version, as exactly as one wants it."""
    from handoff_dask.store import installed

    def names(numpy_version):
        monkeypatch.setattr(installed, "_version", {"numpy": numpy_version, "python": "3"}.get)
        return [
            name_of(numpy.sum, 1, versions=versions) for versions in ("exact", "minor", "ignore")
        ]

    exact, minor, ignore = names("2.1.0")
    assert (exact.code["numpy"], minor.code["numpy"], "numpy" in ignore.code) == ("2.1.0", "2.1", 0)
    patch, feature = names("2.1.1"), names("2.2.0")
    assert changes(patch[0], exact) == ["numpy is 2.1.1 instead of 2.1.0"]
    assert changes(feature[1], minor) == ["numpy is 2.2 instead of 2.1"]
    assert (patch[1].key, patch[2].key, feature[2].key) == (minor.key, ignore.key, ignore.key)


def test_installed_and_own_code(monkeypatch):
    """What no distribution claims, and what lies outside of the folder of packages, is own."""
    from handoff_dask.store.installed import distributions

    assert distributions("toolz.functoolz") == {"toolz"}
    assert distributions("os") == distributions("sys") == {"python"}
    assert distributions("handoff_dask.store.naming") == {"handoff_dask"}
    folder = toolz.__file__.rpartition("toolz")[0]
    own_module(monkeypatch, "stray_module", "", f"{folder}/stray_module.py")
    own_module(monkeypatch, "queue", "", "/nowhere/queue.py")
    for module in ("stray_module", "queue", "__main__", __name__, "nowhere_at_all", ""):
        assert distributions(module) is None


def test_what_only_pretends_to_be_installed():
    """A function that has a library's module or name counts by what it does."""
    first, second = (cell(f"def dumps(x): return {n}", "json") for n in (1, 2))
    assert key_of(first.dumps, 1) != key_of(second.dumps, 1)
    nameless = [{}, {}]
    for number, namespace in enumerate(nameless):
        exec(f"def len(x): return {number}\nclass int: a = {number}", namespace)
    for name in ("len", "int"):
        assert key_of(nameless[0][name]) != key_of(nameless[1][name])


def test_fields_of_a_function_do_not_count():
    """The fields that ``@function`` gives to code leave its name."""
    source = "from handoff_dask import function\n@function(cost={'cpu': %d})\ndef f(x): return x"
    assert key_of(cell(source % 1).f) == key_of(cell(source % 2).f)


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return globals()['util'](x)",
        "def f(x): return eval('util(x)')",
        "def f(x): exec('util(x)')",
        "def f(x): return __import__('helpers').util(x)",
        "import importlib\ndef f(x): return importlib.import_module('helpers').util(x)",
        "from importlib import import_module\ndef f(x): return import_module('helpers').util(x)",
        "def f(x):\n import importlib as i\n return i.import_module('helpers').util(x)",
        "def f(x):\n from importlib import import_module as i\n return i('helpers').util(x)",
        "import sys\ndef f(x): return getattr(sys.modules[__name__], 'util')(x)",
        "def f(x):\n import sys\n return sys.modules['helpers'].util(x)",
        "import builtins\ndef f(x): return builtins.eval('util(x)')",
    ],
)
def test_code_that_is_found_while_it_runs(source):
    """What makes or finds code by a text can do anything, so that it has no name."""
    with pytest.raises(Unnameable, match=r"-> finds code while it runs$"):
        key_of(cell(source).f, 1)


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        # what a module has is not only what its functions are
        ("def f():\n import helpers\n return helpers.__version__", "__version__ = 1", 2),
        ("import helpers\ndef f(): return getattr(helpers, 'A')", "A = 1", 2),
        # attributes that a module makes when it is asked
        ("import helpers\ndef f(): return helpers.a", "def __getattr__(name): return 1", 2),
        ("def f():\n import helpers\n return helpers.a", "def __getattr__(name): return 1", 2),
        ("def f():\n from helpers import a\n return a", "def __getattr__(name): return 1", 2),
        # the package of a module that is imported
        ("def f():\n import helpers.sub\n return helpers.util()", "def util(): return 1", 2),
        # what was put into an installed module, under another name or in the place of its own
        (
            "import json, helpers as h\njson.x = h.x\ndef f(): return json.x()",
            "def x(): return 1",
            2,
        ),
        (
            "import json, helpers as h\njson.x = h.x\ndef f():\n from json import x\n return x()",
            "def x(): return 1",
            2,
        ),
        (
            "import json, helpers as h\njson.x = h.x\ndef f():\n import json\n return json.x()",
            "def x(): return 1",
            2,
        ),
        (
            "import json, helpers as h\njson.x = h.loads\ndef f(): return json.x()",
            "import json, functools\n@functools.wraps(json.loads)\ndef loads(*a): return 1",
            2,
        ),
    ],
)
def test_modules_that_functions_refer_to(monkeypatch, source, before, after):
    """Whatever a function can get from a module counts, however it gets it."""
    import json

    monkeypatch.setattr(json, "x", None, raising=False)
    keys = []
    for helpers in (before, before, before[:-1] + str(after)):
        own_module(monkeypatch, "helpers", helpers)
        package = sys.modules["helpers"]
        package.sub = own_module(monkeypatch, "helpers.sub", "def util(): return 1")
        keys.append(key_of(cell(source).f))
    assert keys[0] == keys[1] != keys[2]


def test_a_module_that_is_imported_by_another_name(monkeypatch):
    """A submodule that a function imports by a name of its own counts by what it has."""
    keys = []
    for number in (1, 1, 2):
        package = own_module(monkeypatch, "helpers", "")
        package.sub = own_module(monkeypatch, "helpers.sub", f"def util(): return {number}")
        keys.append(key_of(cell("def f():\n import helpers.sub as sub\n return sub.util()").f))
    assert keys[0] == keys[1] != keys[2]


def test_builtins_of_a_function():
    """A function may have builtins of its own."""
    first, second = (eval("lambda: g()", {"__builtins__": {"g": g}}) for g in (len, repr))
    assert key_of(first) != key_of(second)
