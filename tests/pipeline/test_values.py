"""Digests of plain values."""

from __future__ import annotations

import array
import collections
import datetime as dt
import enum
import functools
import logging
import math
import operator
import re
import socket
import sqlite3
import threading
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from everloop.pipeline.value_digests import UndigestibleError, digest_text, digest_value

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


def rebuilt(value: Any) -> Any:
    """The same value in other objects."""
    if isinstance(value, list | tuple):
        return type(value)(rebuilt(item) for item in value)
    if isinstance(value, dict):
        return {key: rebuilt(item) for key, item in value.items()}
    return value


@given(plain)
def test_equal_values_have_equal_digests(value: Any) -> None:
    assert digest_value(value) == digest_value(rebuilt(value))


@pytest.mark.slow
@given(plain, plain)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    same = repr(rebuilt(one)) == repr(rebuilt(other)) or (one == other and type(one) is type(other))
    if digest_value(one) == digest_value(other):
        assert same


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: int


DISTINCT = [
    0, False, 0.0, -0.0, "0", b"0", None, [], (), {}, set(), [0], (0,), {0}, {0: 0}, [[]], [[], []], ["ab"], ["a", "b"],
    math.nan, math.inf, Decimal("0"), Decimal("0.0"), dt.date(2026, 1, 1), dt.datetime(2026, 1, 1),
    dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.timedelta(1), Path("a"), Path("b"), Colour.RED, Colour.BLUE, range(3),
    np.arange(3), np.arange(3.0), np.arange(3).reshape(3, 1), np.float32(1), np.float64(1), 1, 1.0, 1j,
    np.array(["a"], dtype=object),
]  # fmt: skip


def test_values_of_different_types_are_different() -> None:
    assert len({digest_value(value) for value in DISTINCT}) == len(DISTINCT)


def named(value: object) -> str | None:
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return value.__qualname__
    return None


def test_classes_are_named_by_the_caller() -> None:
    one, other = (digest_value(Point(1, y), named) for y in (1, 2))
    assert one != other
    with pytest.raises(UndigestibleError):
        digest_value(Point(1, 1))


def test_the_order_of_a_dict_counts_and_that_of_a_set_does_not() -> None:
    assert digest_value({"a": 1, "b": 2}) != digest_value({"b": 2, "a": 1})
    assert digest_value({"a", "b", "c"}) == digest_value({"c", "b", "a"})


def test_what_is_not_plain_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), [object()], endless, {"a": [endless]}):
        with pytest.raises(UndigestibleError):
            digest_value(value)
    again = [1]
    assert digest_value([again, again]) == digest_value([[1], [1]])


class Text(str):
    __slots__ = ("more",)


class Slotted:
    __slots__ = ("__private", "left", "unset")

    def __init__(self, left: object, private: object = 0) -> None:
        self.left = left
        self.__private = private


class Hiding:
    """Leaves out of its pickle what its methods use."""

    def __init__(self, seen: object) -> None:
        self.seen = seen

    def __getstate__(self) -> dict[str, object]:
        return {}


class Refusing(Hiding):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("not to be pickled")


class Rows(collections.UserDict[str, int]):
    pass


class Moment(dt.datetime):
    pass


class Level(enum.IntEnum):
    LOW = 1


def ring(value: object) -> list[object]:
    made: list[object] = [value]
    made.append(made)
    return made


def with_more(text: str, more: object) -> Text:
    made = Text(text)
    made.more = more
    return made


# Two values of one kind that differ, in ways that a digest could overlook.
PAIRS: dict[str, Callable[[], tuple[object, object]]] = {
    "subclass of str": lambda: (Text("a"), Text("b")),
    "attribute of a subclass of str": lambda: (with_more("a", 1), with_more("a", 2)),
    "slots": lambda: (Slotted(1), Slotted(2)),
    "private slots": lambda: (Slotted(1, 1), Slotted(1, 2)),
    "left out of the pickle": lambda: (Hiding(1), Hiding(2)),
    "no pickle at all": lambda: (Refusing(1), Refusing(2)),
    "an instance inside a dict": lambda: ({"a": [Hiding(1)]}, {"a": [Hiding(2)]}),
    "subclass of UserDict": lambda: (Rows(a=1), Rows(a=2)),
    "order of an OrderedDict": lambda: (
        collections.OrderedDict([("a", 1), ("b", 2)]),
        collections.OrderedDict([("b", 2), ("a", 1)]),
    ),
    "defaultdict": lambda: (collections.defaultdict(int), collections.defaultdict(list)),
    "deque": lambda: (collections.deque([1, 2]), collections.deque([1, 3])),
    "length of a deque": lambda: (collections.deque([1], 2), collections.deque([1], 3)),
    "counter": lambda: (collections.Counter("ab"), collections.Counter("aa")),
    "proxy": lambda: (types.MappingProxyType({"a": 1}), types.MappingProxyType({"a": 2})),
    "namespace": lambda: (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
    "view": lambda: ({"a": 1}.items(), {"a": 2}.items()),
    "array": lambda: (array.array("d", [1]), array.array("d", [2])),
    "memory": lambda: (memoryview(b"a"), memoryview(b"b")),
    "slice": lambda: (slice(1), slice(2)),
    "flags of a pattern": lambda: (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "zone": lambda: (
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Paris")),
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    ),
    "subclass of datetime": lambda: (Moment(2026, 1, 1), Moment(2026, 1, 2)),
    "arguments of a partial": lambda: (functools.partial(round, ndigits=1), functools.partial(round, ndigits=2)),
    "getter": lambda: (operator.itemgetter(1), operator.itemgetter(2)),
    "cycle": lambda: (ring(1), ring(2)),
    "long number": lambda: (10**5000, 10**5000 + 1),
    "flag": lambda: (re.IGNORECASE, re.IGNORECASE | re.MULTILINE),
    "masked array": lambda: (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),  # type: ignore[no-untyped-call]
    "names of fields": lambda: (np.zeros(2, [("a", "i4")]), np.zeros(2, [("b", "i4")])),
    "function of numpy": lambda: (np.add, np.subtract),
    "union": lambda: (int | str, int | bytes),
    "generator of numbers": lambda: (np.random.default_rng(1), np.random.default_rng(2)),
    "polars frame": lambda: (pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [2]})),
    "columns of a polars frame": lambda: (pl.DataFrame({"a": [1]}), pl.DataFrame({"b": [1]})),
    "polars series": lambda: (pl.Series("a", [1]), pl.Series("b", [1])),
    "polars expression": lambda: (pl.col("a") > 1, pl.col("a") > 2),
    "polars type": lambda: (pl.Datetime("us"), pl.Datetime("ms")),
    "pandas frame": lambda: (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})),
    "index of a pandas frame": lambda: (pd.DataFrame({"a": [1]}, index=[1]), pd.DataFrame({"a": [1]}, index=[2])),
    "pandas timestamp": lambda: (pd.Timestamp("2026-01-01"), pd.Timestamp("2026-01-02")),
    "arrow table": lambda: (pa.table({"a": [1]}), pa.table({"a": [2]})),
    "arrow schema": lambda: (pa.schema([("a", pa.int8())]), pa.schema([("a", pa.int16())])),
    "type of a number": lambda: (Level.LOW, 1),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_difference_in_content_is_a_difference_in_digest(case: str) -> None:
    one, other = PAIRS[case]()
    again, _ = PAIRS[case]()
    assert digest_value(one, named) != digest_value(other, named)
    assert digest_value(one, named) == digest_value(again, named)


@pytest.mark.parametrize(
    "value", [(number for number in ()), sqlite3.connect(":memory:"), socket.socket(), weakref.ref(Point), iter([])]
)
def test_what_has_no_content_of_its_own_is_refused(value: object) -> None:
    if isinstance(value, type(iter([]))):
        assert digest_value(value, named)  # an iterator over a list can be told
        return
    with pytest.raises(UndigestibleError, match="cannot be read"):
        digest_value([value], named)
    if isinstance(value, sqlite3.Connection | socket.socket):
        value.close()


def test_locks_hold_nothing(tmp_path: Path) -> None:
    held = [threading.Lock(), threading.RLock(), threading.Event(), threading.local(), logging.getLogger("a")]
    assert digest_value(held, named) == digest_value(list(held), named)
    with (tmp_path / "file").open("w") as opened, pytest.raises(UndigestibleError):
        digest_value(opened, named)


def test_a_net_of_objects_is_written_in_its_length() -> None:
    nodes = [types.SimpleNamespace(number=number, near=[]) for number in range(60)]
    for node in nodes:
        node.near = nodes
    before = digest_value(nodes, named)
    nodes[30].number = -1
    assert digest_value(nodes, named) != before


def test_texts_do_not_run_together() -> None:
    assert digest_text("ab", "c") != digest_text("a", "bc") != digest_text("abc")
