"""Encoding records as JSON, and decoding them.

Metrics can be NaN or infinite, which JSON cannot represent. Such numbers are encoded as `{"$float": "nan"}`.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from everloop.errors import CorruptionError, UsageError
from everloop.records import KINDS, Json, Record

R = TypeVar("R", bound=Record)

_KIND_NAMES = {record: kind for kind, record in KINDS.items()}
_FLOAT_KEY = "$float"
_PLAIN = frozenset({str, int, bool, datetime, type(None)})


def kind_of(record: type[Record]) -> str:
    """The name of a record class in the store.

    Raises:
        UsageError: the class is not a kind of record.
    """
    kind = next((_KIND_NAMES[one] for one in record.__mro__ if one in _KIND_NAMES), None)
    if kind is None:
        raise UsageError(f"{record.__name__} is not a kind of record.", help=f"Kinds: {', '.join(KINDS)}")
    return kind


@cache
def field_names(kind: str) -> frozenset[str]:
    """The fields that can be used in conditions for a kind."""
    return frozenset(field.name for field in fields(KINDS[kind])) | {"key"}


@cache
def time_fields(kind: str) -> frozenset[str]:
    """The fields of a kind that hold a time."""
    hints = get_type_hints(KINDS[kind])
    return frozenset(name for name, hint in hints.items() if hint is datetime or datetime in get_args(hint))


@cache
def families(kind: str, path: tuple[str, ...]) -> frozenset[str]:
    """The types that a value at a path can have by the record's declaration: `number`, `text`, both or neither."""
    hint: Any = get_type_hints(KINDS[kind]).get(path[0], str)
    for _ in path[1:]:
        inner = [get_args(part)[1] for part in _alternatives(hint) if get_origin(part) is dict]
        hint = inner[0] if inner else Any
    found: set[str] = set()
    for part in _alternatives(hint):
        if part in (str, datetime) or get_origin(part) is Literal:
            found.add("text")
        elif part in (int, float):
            found.add("number")
        elif part is Any:
            found |= {"number", "text"}
    return frozenset(found)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def encode(record: Record) -> str:
    """Encode a record as JSON, with times in UTC.

    Raises:
        UsageError: a time has no timezone, or a value cannot be represented in JSON and in the text of every database.
    """
    changed: dict[str, Any] = {}
    for name in time_fields(kind_of(type(record))):
        moment = getattr(record, name)
        if moment is not None and moment.tzinfo is not UTC:
            if moment.tzinfo is None:
                raise UsageError(f"'{name}' of {_name(record)} has no timezone.", help="Use times in UTC: tzinfo=UTC.")
            changed[name] = moment.astimezone(UTC)
    return encode_value(replace(record, **changed) if changed else record, _name(record))


def encode_value(value: Any, name: str) -> str:
    """Encode any value as JSON. `name` is used in errors."""
    try:
        nonfinite = _has_nonfinite(value)
        text = _ENCODER.encode(
            _encode_nonfinite(msgspec.to_builtins(value, enc_hook=_unwrapped)) if nonfinite else value
        ).decode()
        if f'"{_FLOAT_KEY}":' in text and not nonfinite:
            raise ValueError(f"the name '{_FLOAT_KEY}' is reserved")
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError, ValueError) as error:
        raise UsageError(f"{name} cannot be stored: {error}.", help="Use values that JSON can represent.") from error
    # PostgreSQL's text type does not support NUL, so SQLite must refuse it too: stores can move between them.
    # `\\u0000` with an escaped backslash is harmless, so pairs of backslashes are ignored.
    if "\\u0000" in text and "\\u0000" in text.replace("\\\\", ""):
        raise UsageError(f"{name} cannot be stored: a text contains a NUL character.", help="Remove it.")
    return text


@cache
def _decoder(kind: str) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(KINDS[kind])


def decode(record: type[R], body: str) -> R:
    """The inverse of `encode`. Fields that this version does not know are ignored.

    Raises:
        CorruptionError: the body is not a record of this class.
    """
    try:
        if _FLOAT_KEY in body:
            return msgspec.convert(_decode_nonfinite(msgspec.json.decode(body)), record)
        decoded: R = _decoder(kind_of(record)).decode(body)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptionError(
            f"A stored {kind_of(record)} cannot be read: {error}.", help="See: everloop verify"
        ) from (error)
    return decoded


def decode_value(body: str) -> Any:
    """The inverse of `encode_value` for values of plain JSON types."""
    value = msgspec.json.decode(body)
    return _decode_nonfinite(value) if _FLOAT_KEY in body else value


def _name(record: Record) -> str:
    return f"{kind_of(type(record))} '{record.key}'"


def _has_nonfinite(value: Any) -> bool:
    """Whether a value contains a NaN or an infinity. Runs on every write, so plain types are skipped first."""
    if type(value) is dict:
        value = value.values()
    elif isinstance(value, float):
        return not math.isfinite(value)
    elif type(value) is not list and type(value) is not tuple:
        names = getattr(type(value), "__dataclass_fields__", None)
        if names is None:
            return _has_nonfinite(value.item()) if _is_scalar(value) else False
        value = [getattr(value, name) for name in names]
    return any(_has_nonfinite(item) for item in value if type(item) not in _PLAIN)


def _is_scalar(value: Any) -> bool:
    """Whether a value is a number of an array library, such as `numpy.float32` or a tensor with one element."""
    return hasattr(value, "item") and getattr(value, "shape", None) == ()


def _unwrapped(value: Any) -> Any:
    """Convert a value that msgspec does not support."""
    if _is_scalar(value):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _encode_nonfinite(value: Any) -> Json:
    match value:
        case float() if not math.isfinite(value):
            return {_FLOAT_KEY: repr(value)}
        case dict():
            if _FLOAT_KEY in value:
                raise ValueError(f"the name '{_FLOAT_KEY}' is reserved")
            return {key: _encode_nonfinite(item) for key, item in value.items()}
        case list() | tuple():
            return [_encode_nonfinite(item) for item in value]
    return value


def _decode_nonfinite(value: Json) -> Json:
    match value:
        case {"$float": str() as spelled} if len(value) == 1:
            return float(spelled)
        case dict():
            return {key: _decode_nonfinite(item) for key, item in value.items()}
        case list():
            return [_decode_nonfinite(item) for item in value]
    return value


_ENCODER = msgspec.json.Encoder(enc_hook=_unwrapped)
