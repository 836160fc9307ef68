"""A step runs again after an edit of a constant that it depends on, for every type of constant and of access."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from everloop.errors import StepError
from everloop.pipeline import Graph, plan, run_graph
from everloop.pipeline.fingerprint import fingerprint, parts_of, undigestible

if TYPE_CHECKING:
    from conftest import Project
    from everloop.pipeline import GraphRun
    from everloop.stores import Store

HEAD = """
import array, collections, contextlib, dataclasses, datetime as dt, decimal, enum, fractions, functools, operator
import pathlib, re, types, typing, uuid
import numpy as np, pandas as pd, polars as pl, pyarrow as pa
from everloop.pipeline import step

class Plain:
    def __init__(self, held): self.held = held
    def get(self): return self.held
class Slots:
    __slots__ = ("held",)
    def __init__(self, held): self.held = held
class Bare(Slots):
    __slots__ = ()
    def __reduce_ex__(self, protocol): raise TypeError("not to be pickled")
class Hiding(Plain):
    def __getstate__(self): return {}
@dataclasses.dataclass
class Data:
    held: object
@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    held: object
@dataclasses.dataclass
class Unlisted:
    held: dataclasses.InitVar[object]
    def __post_init__(self, held): self.kept = held
class Pair(typing.NamedTuple):
    held: object
    other: int = 0
Triple = collections.namedtuple("Triple", "held other")
class Number(int): pass
class Real(float): pass
class Text(str): pass
class Raw(bytes): pass
class Rows(list): pass
class Table(dict): pass
class Many(set): pass
class Row(tuple): pass
class Users(collections.UserDict): pass
class Tagged(str):
    def __new__(cls, held):
        made = super().__new__(cls, "same")
        made.held = held
        return made
class Described:
    def __set_name__(self, owner, name): self.name = name
    def __init__(self, held): self.held = held
    def __get__(self, instance, owner): return self.held
class Moment(dt.datetime): pass
def helper(*values): return values
def closed(held):
    def inner(): return held
    return inner
def member(held):
    class Kind(enum.Enum):
        ONE = held
    return Kind.ONE
def owner(held):
    class Owner:
        limit = held
    return Owner
def described(held):
    class Owner:
        limit = Described(held)
    return Owner
def ring(held):
    made = [held]
    made.append(made)
    return made
"""
LEAVES = [
    "{n}", "-{n}.5", "'{n}'", "b'{n}'", "{n}j", "Number({n})", "Real({n})", "Text({n})", "Raw(b'{n}')", "range({n})",
    "10**5000 + {n}", "dt.date(2026, 1, {n})", "dt.timedelta({n})", "dt.datetime(2026, 1, {n}, tzinfo=dt.UTC)",
    "Moment(2026, 1, {n})", "decimal.Decimal({n})", "fractions.Fraction(1, {n} + 1)", "uuid.UUID(int={n})",
    "pathlib.Path('{n}')", "re.compile('{n}')", "np.array([{n}])", "np.float32({n})", "np.datetime64('2026-01-0{n}')",
    "np.array([{n}, 'a'], dtype=object)", "np.ma.array([1, 2], mask=[{n} == 1, 0])", "np.random.default_rng({n})",
    "pl.DataFrame({{'a': [{n}]}})", "pl.LazyFrame({{'a': [{n}]}})", "pl.Series([{n}])", "pl.col('a') > {n}",
    "pl.Enum(['{n}'])", "pd.DataFrame({{'a': [{n}]}})", "pd.Series([{n}], name='a')", "pd.Index(['{n}'])",
    "pd.Timestamp(2026, 1, {n})", "pd.Categorical(['{n}'])", "pa.table({{'a': [{n}]}})", "pa.scalar({n})",
    "array.array('d', [{n}])", "operator.itemgetter({n})", "slice({n})", "enum.Flag('F', 'A B C')({n})",
    "enum.IntEnum('E', {{'A': {n}}}).A", "enum.StrEnum('E', {{'A': '{n}'}}).A", "type('Made', (), {{'limit': {n}}})",
    "functools.partial(round, ndigits={n})", "memoryview(b'{n}')", "collections.Counter({{'a': {n}}})",
    "dict([('a', 0), ('b', 1)][::{n} * 2 - 3])", "Table([('a', 0), ('b', 1)][::{n} * 2 - 3])",
    "collections.OrderedDict([('a', 0), ('b', 1)][::{n} * 2 - 3])",
]  # fmt: skip
AROUND = [
    "{v}", "[0, {v}]", "({v},)", "{{'a': {v}}}", "{{'a': {{'b': [{v}]}}}}", "Plain({v})", "Slots({v})", "Bare({v})",
    "Hiding({v})", "Data({v})", "Frozen({v})", "Unlisted({v})", "Pair({v})", "Triple({v}, 0)", "Rows([{v}])",
    "Table(a={v})", "Row([{v}])", "Users(a={v})", "Tagged({v})", "helper and (lambda: 0, {v})", "closed({v})",
    "functools.partial(helper, {v})", "types.SimpleNamespace(a={v})", "types.MappingProxyType({{'a': {v}}})",
    "collections.deque([{v}])", "collections.defaultdict(list, a={v})", "collections.ChainMap({{'a': {v}}})",
    "owner({v})", "owner({v})()", "described({v})", "ring({v})", "Plain({v}).get", "staticmethod(closed({v}))",
]  # fmt: skip
WAYS = {
    "a name": "C = {v}\n@step\ndef reads(): return [C] and 1\n",
    "a helper": "C = {v}\ndef look(): return C\n@step\ndef reads(): return [look()] and 1\n",
    "a default": "def look(held={v}): return held\n@step\ndef reads(): return [look()] and 1\n",
    "a keyword default": "def look(*, held={v}): return held\n@step\ndef reads(): return [look()] and 1\n",
    "a closure": "def make(held):\n    def reads(): return [held] and 1\n    return step(reads)\nreads = make({v})\n",
    "a class": "class Look:\n    held = {v}\n@step\ndef reads(): return [Look.held] and 1\n",
    "a class, set later": "class Look: pass\nLook.held = {v}\n@step\ndef reads(): return [Look.held] and 1\n",
    "an attribute of a function": "def look(): return look.held\n"
    "look.held = {v}\n@step\ndef reads(): return [look()] and 1\n",
    "a container": "C = {{}}\nC['a'] = {v}\n@step\ndef reads(): return [C['a']] and 1\n",
    "a container that is written to": "C = {{}}\nC['a'] = {v}\n"
    "@step\ndef reads():\n    C['b'] = 1\n    return [C['a']] and 1\n",
    "a name that is bound again": "C = {v}\n@step\ndef reads():\n    global C\n    C = [C]\n    return 1\n",
    "a parameter": "@step\ndef reads(held={v}): return [held] and 1\n",
}


def turn(project: Project, store: Store) -> GraphRun:
    project.forget()
    return run_graph(Graph.wire([project.load().reads]), store)


def key(project: Project, store: Store, text: str) -> str:
    project.edit(loop=text)
    node = Graph.wire([project.load().reads]).get("reads")
    parts = parts_of(node, node.inputs, store.objects)
    assert undigestible(parts) is None
    return fingerprint(parts)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(leaf=st.sampled_from(LEAVES), around=st.lists(st.sampled_from(AROUND), max_size=2), way=st.sampled_from([*WAYS]))
def test_a_constant_that_is_edited_counts(
    project: Project, store: Store, leaf: str, around: list[str], way: str
) -> None:
    # A value that contains itself cannot be a parameter.
    assume(way != "a parameter" or "ring({v})" not in around)

    def text(number: int) -> str:
        value = leaf.format(n=number)
        for one in around:
            value = one.format(v=value)
        return HEAD + WAYS[way].format(v=value)

    before = key(project, store, text(1))
    assert key(project, store, text(1)) == before
    assert key(project, store, text(2)) != before


EDITS = {
    "the value of an enum's member": (
        "import enum\nclass Kind(enum.Enum):\n    ONE = 1\nC = Kind.ONE\n@step\ndef reads(): return C.value",
        ("ONE = 1", "ONE = 2"),
    ),
    "a method of an enum": (
        "import enum\nclass Kind(enum.Enum):\n    ONE = 1\n    def twice(self): return self.value * 2\n"
        "C = [Kind.ONE]\n@step\ndef reads(): return C[0].twice()",
        ("* 2", "* 3"),
    ),
    "an enum as a parameter": (
        "import enum\nclass Kind(enum.Enum):\n    ONE = 1\n    def twice(self): return self.value * 2\n"
        "@step\ndef reads(kind=Kind.ONE): return kind.twice()",
        ("* 2", "* 3"),
    ),
    "the class of an instance as a parameter": (
        "class Scale:\n    def of(self, n): return n * 2\n@step\ndef reads(scale=Scale()): return scale.of(1)",
        ("* 2", "* 3"),
    ),
    "the order of a dict of names": (
        "C = {'a': 'x', 'b': 'y'}\n@step\ndef reads(): return list(C.values())",
        ("{'a': 'x', 'b': 'y'}", "{'b': 'y', 'a': 'x'}"),
    ),
    "a property of a subclass of str": (
        "class Name(str):\n    @property\n    def loud(self): return self.upper()\n"
        "C = Name('a')\n@step\ndef reads(): return C.loud",
        ("upper()", "title()"),
    ),
    "a registered function": (
        "TABLE = {}\ndef register(f):\n    TABLE[f.__name__] = f\n    return f\n"
        "@register\ndef clean(n): return n + 1\n@step\ndef reads(): return TABLE['clean'](1)",
        ("n + 1", "n + 2"),
    ),
    "a registered function whose registry is reached": (
        "TABLE = {}\ndef register(f):\n    TABLE[f.__name__] = f\n    return f\n@register\ndef clean(n): return n + 1\n"
        "@register\ndef other(n): return n\n@step\ndef reads(): return other(TABLE['clean'](1)) or register",
        ("n + 1", "n + 2"),
    ),
    "a value put in by another module": (
        "import store\nimport fill\n@step\ndef reads(): return store.get('a') or store.put('b', 1)",
        ("store.put('a', 1)", "store.put('a', 2)"),
    ),
    "a generator as a context": (
        "import contextlib\n@contextlib.contextmanager\ndef opened():\n    yield 1\n"
        "@step\ndef reads():\n    with opened() as n: return n",
        ("yield 1", "yield 2"),
    ),
    "a single dispatch": (
        "import functools\n@functools.singledispatch\ndef show(x): return 0\n@show.register\ndef _(x: int): return 1\n"
        "@step\ndef reads(): return show(1)",
        ("return 1", "return 2"),
    ),
    "a wrapped helper": (
        "import functools\ndef plain(f):\n    @functools.wraps(f)\n    def call(*a): return f(*a)\n    return call\n"
        "@plain\ndef look(): return 1\n@step\ndef reads(): return look()",
        ("return 1", "return 2"),
    ),
    "a cached property": (
        "import functools\nclass Look:\n    @functools.cached_property\n    def held(self): return 1\nC = Look()\n"
        "@step\ndef reads(): return C.held",
        ("return 1", "return 2"),
    ),
    "a method that was replaced": (
        "class Look:\n    def held(self): return 0\ndef other(self): return 1\nLook.held = other\n"
        "@step\ndef reads(): return Look().held()",
        ("return 1", "return 2"),
    ),
    "a class attribute in a namespace": (
        "import types\nclass Look:\n    held = 1\nC = types.SimpleNamespace(kind=Look)\n"
        "@step\ndef reads(): return C.kind.held",
        ("held = 1", "held = 2"),
    ),
    "an argument of a metaclass": (
        "class Meta(type):\n    def __new__(meta, name, bases, space, size=0):\n"
        "        return super().__new__(meta, name, bases, {**space, 'size': size})\n"
        "class Look(metaclass=Meta, size=1): pass\n@step\ndef reads(): return Look.size",
        ("size=1", "size=2"),
    ),
    "what a package's decorator was given": (
        "import tenacity\n@tenacity.retry(stop=tenacity.stop_after_attempt(1))\ndef look(): return 1\n"
        "@step\ndef reads(): return look()",
        ("attempt(1)", "attempt(2)"),
    ),
    "a module as a value, made from a call": (
        "import table\n@step\ndef reads(): return vars(table)['ROWS']",
        ("ROWS = tuple(map(int, '1'))", "ROWS = tuple(map(int, '2'))"),
    ),
}
OTHERS = {
    "store": "HELD = {}\ndef put(name, value): HELD[name] = value\ndef get(name): return HELD[name]\n",
    "fill": "import store\nstore.put('a', 1)\n",
    "table": "ROWS = tuple(map(int, '1'))\n",
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_counts(project: Project, store: Store, case: str) -> None:
    body, (old, new) = EDITS[case]
    if "tenacity" in body:
        pytest.importorskip("tenacity")
    files = {"loop": f"from everloop.pipeline import step\n{body}\n", **OTHERS}
    project.edit(**files)
    assert turn(project, store).step("reads").status == "ran"
    assert turn(project, store).step("reads").status == "cached"
    changed = {name: text.replace(old, new) for name, text in files.items()}
    assert changed != files
    project.edit(**changed)
    assert turn(project, store).step("reads").status == "ran"


def test_a_table_read_when_a_module_is_imported_counts(project: Project, store: Store) -> None:
    for reader in (
        "pl.read_csv(FILE)",
        "pd.read_csv(FILE)",
        "pathlib.Path(FILE).read_text()",
        "np.loadtxt(FILE, skiprows=1)",
    ):
        file = project.folder / "rates.csv"
        shutil.rmtree(project.folder)
        project.folder.mkdir()
        file.write_text("a\n1\n")
        project.edit(
            loop="import polars as pl, pandas as pd, numpy as np, pathlib\nfrom everloop.pipeline import step\n"
            f"FILE = {str(file)!r}\nRATES = {reader}\n@step\ndef reads(): return repr(RATES), {reader!r}\n"
        )
        turn(project, store)
        assert turn(project, store).step("reads").status == "cached"
        file.write_text("a\n2\n")
        again = turn(project, store).step("reads")
        assert (again.status, again.reason) == ("ran", "code changed: RATES")


def test_an_object_changed_in_memory_counts_and_what_a_step_does_to_its_own_does_not(
    project: Project, store: Store
) -> None:
    project.edit(
        loop="""
        from everloop.pipeline import step

        class Memo:
            def __init__(self): self.calls, self.limit = 0, 1

        MEMO = Memo()

        class Settings:
            limit = 1

        @step
        def reads():
            MEMO.calls += 1
            return MEMO.limit + Settings.limit
        """
    )
    module = project.load()
    graph = Graph.wire([module.reads])
    assert run_graph(graph, store).step("reads").status == "ran"
    assert run_graph(graph, store).step("reads").status == "cached"
    module.MEMO.limit = 2
    changed = run_graph(graph, store).step("reads")
    assert (changed.status, changed.reason) == ("ran", "code changed: MEMO")
    module.Settings.limit = 2
    assert run_graph(graph, store).step("reads").status == "ran"
    assert run_graph(graph, store).step("reads").status == "cached"


UNTOLD = {
    "a connection": ("import sqlite3\nC = sqlite3.connect(':memory:')\n", "C", "sqlite3.Connection"),
    "a generator": ("C = (n for n in range(3))\n", "C", "generator"),
    "an open file": ("C = {'file': open(__file__)}\n", "C", "_io.TextIOWrapper"),
    "a connection inside a class": (
        "import sqlite3\nclass Look:\n    held = sqlite3.connect(':memory:')\n",
        "Look.held",
        "sqlite3.Connection",
    ),
    "a socket inside an instance": (
        "import socket\nclass Look:\n    def __init__(self): self.held = socket.socket()\nC = Look()\n",
        "C",
        "socket.socket",
    ),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", UNTOLD)
def test_a_value_whose_content_cannot_be_told_makes_the_step_run(project: Project, store: Store, case: str) -> None:
    head, name, kind = UNTOLD[case]
    project.edit(loop=f"from everloop.pipeline import step\n{head}\n@step\ndef reads(): return [{name}] and 1\n")
    for _ in range(2):
        found = turn(project, store).step("reads")
        assert found.status == "ran"
        assert found.reason.startswith("not cached: ")
        assert kind in found.reason
    said = plan(Graph.wire([project.load().reads]), store)[0]
    assert (said.status, said.reason) == ("would run", found.reason)


def test_a_parameter_whose_content_cannot_be_told_makes_the_step_run(project: Project, store: Store) -> None:
    project.edit(
        loop="from everloop.pipeline import step\n@step\ndef reads(numbers=iter(map(str, (1, 2)))): return 1\n"
        "def lines(): yield 1\n@step\ndef other(numbers=lines()): return 1\n"
    )
    graph = Graph.wire([project.load().other])
    assert run_graph(graph, store).step("other").reason == (
        "not cached: 'numbers' holds the content of a generator, which cannot be read"
    )


def test_locks_and_loggers_do_not_make_a_step_run(project: Project, store: Store) -> None:
    project.edit(
        loop="import logging, threading, contextvars\nfrom everloop.pipeline import step\n"
        "C = [threading.Lock(), threading.RLock(), threading.Event(), threading.local(), logging.getLogger(__name__),\n"
        "     contextvars.ContextVar('name'), object(), print, len]\n@step\ndef reads(): return len(C)\n"
    )
    turn(project, store)
    assert turn(project, store).step("reads").status == "cached"


def test_a_failing_step_is_still_an_error_of_everloop(project: Project, store: Store) -> None:
    project.edit(
        loop="from everloop.pipeline import step\nclass Odd:\n    def __reduce_ex__(self, n): raise SystemError('x')\n"
        "class Base(BaseException): pass\nC = Odd()\n@step\ndef reads(): raise Base(C)\n"
    )
    with pytest.raises(StepError):
        turn(project, store)
