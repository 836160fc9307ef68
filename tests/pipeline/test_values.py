"""Digests of plain values."""

from __future__ import annotations

import datetime as dt
import enum
import math
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop.pipeline.values import UndigestibleError, digest_text, digest_value

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


def rebuilt(value: Any) -> Any:
    """The same value in other objects, dicts in another order."""
    if isinstance(value, list | tuple):
        return type(value)(rebuilt(item) for item in value)
    if isinstance(value, dict):
        return {key: rebuilt(item) for key, item in reversed(value.items())}
    return value


@given(plain)
def test_equal_values_have_equal_digests(value: Any) -> None:
    assert digest_value(value) == digest_value(rebuilt(value))


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


def test_classes_are_named_by_the_caller() -> None:
    one, other = (digest_value(Point(1, y), lambda cls: cls.__name__) for y in (1, 2))  # type: ignore[attr-defined]
    assert one != other
    with pytest.raises(UndigestibleError):
        digest_value(Point(1, 1))


def test_what_has_no_content_of_its_own_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), [object()], endless):
        with pytest.raises(UndigestibleError):
            digest_value(value)


def test_texts_do_not_run_together() -> None:
    assert digest_text("ab", "c") != digest_text("a", "bc") != digest_text("abc")
