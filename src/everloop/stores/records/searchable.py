"""Search entries: the values of a record that can be searched, each as a number and a text.

`searchable` of a record class lists its searchable fields. A dict field has one value per name; the names of nested
dicts are joined by dots, as in `params.model.depth`.
"""

from __future__ import annotations

import hashlib
import math
import re
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from everloop.records import KINDS, Json, Record
from everloop.stores.clock import micros, moment_of
from everloop.stores.records.record_codec import families, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER, TEXT, JSON, NAN, TIME = range(5)
"""How an entry represents its value: as a number, a text, JSON in the text, NaN, or µs since 1970."""

_SPELLED = re.compile(r"[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?")
_SPELLED_LENGTH = 64
_BEGINS = frozenset("+-.0123456789")


class SearchEntry(NamedTuple):
    """One value, as a number and as a text if it has these forms."""

    number: float | None
    text: str | None
    form: int


@lru_cache(maxsize=65_536)
def path_number(project: str, kind: str, path: tuple[str, ...]) -> int:
    """The number that identifies a path in the database: 64 bits of a digest, so that it can be computed anywhere."""
    digest = hashlib.sha256("\0".join((project, kind, *path)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def is_searchable(kind: str) -> bool:
    return bool(KINDS[kind].searchable)


@lru_cache(maxsize=256)
def _fields(kind: str) -> tuple[tuple[str, tuple[str, ...], bool, bool], ...]:
    """Each field with its path, whether it is a number, and whether it is a dict of numbers."""
    return tuple(
        (field, (field,), families(kind, (field,)) == {"number"}, families(kind, (field, "")) == {"number"})
        for field in KINDS[kind].searchable
    )


def entries(record: Record) -> dict[tuple[str, ...], SearchEntry]:
    """All searchable values of a record by path. Runs on every write."""
    found: dict[tuple[str, ...], SearchEntry] = {}
    for field, path, number, numbers in _fields(kind_of(type(record))):
        value = getattr(record, field)
        if value is None:
            continue
        if not isinstance(value, dict):
            found[path] = _number(value) if number else entry(value)
        elif numbers:
            for name, item in value.items():
                found[field, name] = _number(item)
        else:
            for name, item in _leaves(value, ""):
                # `{"a.b": 1}` takes precedence over `{"a": {"b": 2}}`, which has the same path.
                if item is not None and ((field, name) not in found or name in value):
                    found[field, name] = entry(item)
    return found


def entry(value: Any) -> SearchEntry:
    """Convert one value to a search entry."""
    kind = type(value)
    if kind is str:
        return SearchEntry(_spelled(value) if value[:1] in _BEGINS else None, value, TEXT)
    if kind is bool:
        return SearchEntry(None, "true" if value else "false", JSON)
    if kind is int or kind is float:
        number = _number(value)
        # JSON has no infinities, so these stay plain numbers.
        return (
            number
            if number.number is None or math.isinf(number.number)
            else SearchEntry(number.number, repr(value), JSON)
        )
    if isinstance(value, datetime):
        return SearchEntry(float(micros(value)), None, TIME)
    try:
        return SearchEntry(None, msgspec.json.encode(value, enc_hook=_unwrapped).decode(), JSON)
    except TypeError:
        return SearchEntry(None, str(value), TEXT)


def value_of(number: float | None, text: str | None, form: int) -> Json | datetime:
    """Convert a search entry back to its value."""
    match form:
        case 1:
            return text
        case 2:
            return msgspec.json.decode(text or "null")
        case 3:
            return math.nan
        case 4:
            return moment_of(int(number or 0))
    return number


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _number(value: Any) -> SearchEntry:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    return SearchEntry(number, None, NUMBER) if number == number else SearchEntry(None, None, NAN)


def _spelled(text: str) -> float | None:
    """The number that a text represents, if any. Other tools log parameters as texts."""
    if len(text) > _SPELLED_LENGTH or not _SPELLED.fullmatch(text):
        return None
    number = float(text)
    return None if math.isinf(number) else number


def _unwrapped(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError
