"""What of a record can be searched: its declared fields, each as single numbers and texts.

A kind of record says by its `searchable` which of its fields these are. A field that is a dict has one value per
name; dicts within it are joined by dots, `params.model.depth`.
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
"""How a value is kept: a number alone, a text as it is, JSON in the text, not a number, or µs since 1970."""

_SPELLED = re.compile(r"[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?")
_SPELLED_LENGTH = 64
_BEGINS = frozenset("+-.0123456789")


class SearchEntry(NamedTuple):
    """One value: as a number and as a text where it has such forms."""

    number: float | None
    text: str | None
    form: int


class Names(NamedTuple):
    """Where a value is: a field, and a name in it or the empty text."""

    field: str
    name: str


@lru_cache(maxsize=65_536)
def path_number(project: str, kind: str, path: tuple[str, ...]) -> int:
    """The number under which the values at a path are kept: 64 bits of a digest, so that nobody has to look it up."""
    digest = hashlib.sha256("\0".join((project, kind, *path)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def is_searchable(kind: str) -> bool:
    return bool(KINDS[kind].searchable)


@lru_cache(maxsize=256)
def _fields(kind: str) -> tuple[tuple[str, tuple[str, ...], bool, bool], ...]:
    """Each field with its path, whether it holds numbers only, and whether the values in it do if it is a dict."""
    return tuple(
        (field, (field,), families(kind, (field,)) == {"number"}, families(kind, (field, "")) == {"number"})
        for field in KINDS[kind].searchable
    )


def entries(record: Record) -> dict[tuple[str, ...], SearchEntry]:
    """Every value of a record that can be searched, by its path. Runs on every write."""
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
                # A name with a dot of its own stands before the dict that spells the same.
                if item is not None and ((field, name) not in found or name in value):
                    found[field, name] = entry(item)
    return found


def entry(value: Any) -> SearchEntry:
    """One value as it is kept."""
    kind = type(value)
    if kind is str:
        return SearchEntry(_spelled(value) if value[:1] in _BEGINS else None, value, TEXT)
    if kind is bool:
        return SearchEntry(None, "true" if value else "false", JSON)
    if kind is int or kind is float:
        number = _number(value)
        # JSON has no infinities.
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
    """The value that an entry was made of."""
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
    """The number that a text spells, as parameters from other tools do."""
    if len(text) > _SPELLED_LENGTH or not _SPELLED.fullmatch(text):
        return None
    number = float(text)
    return None if math.isinf(number) else number


def _unwrapped(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError
