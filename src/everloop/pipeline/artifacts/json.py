"""Plain values as JSON that preserves them exactly.

Types that JSON does not have are written as an object with one key that starts with `$`: tuples, sets, dicts with keys
other than strings, dates, decimals, bytes, NumPy scalars, everloop's records, NaN and infinity. A dict of the user that
has such a key is written as `$dict`, so the two cannot be confused.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import math
import uuid
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError
from everloop.pipeline.artifacts.artifact_formats import Stored, UnkeepableError
from everloop.records import KINDS, Record

if TYPE_CHECKING:
    from everloop.stores import ContentStore

_NATIVE = frozenset({str, int, bool, float, list, dict})
_KIND_OF = {cls: kind for kind, cls in KINDS.items()}
# Values up to this length are also stored in `meta`, so that they can be shown without reading the object.
_SHOWN_CHARACTERS = 2000


class JsonFormat:
    """`meta`: `value`, the JSON text itself if it is short."""

    name = "json"

    def accepts(self, value: object) -> bool:
        kind = type(value)
        return value is None or kind in _NATIVE or kind in _WRITERS or kind in _KIND_OF or _is_numpy(value)

    def keep(self, value: Any, objects: ContentStore) -> Stored:
        text = encode(value)
        data = text.encode("ascii")
        meta = {"value": text} if len(text) <= _SHOWN_CHARACTERS and "\\u0000" not in text else {}
        return Stored(self.name, objects.add(data), len(data), meta)

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Any:
        return decode(objects.read(stored.digest))


def encode(value: Any) -> str:
    """The JSON text of a value.

    Raises:
        UnkeepableError: something inside is not a plain value.
    """
    try:
        return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise UnkeepableError("the value contains itself, or is nested too deeply") from None
    except ValueError as error:
        # Python refuses to write integers of more than 4300 digits.
        raise UnkeepableError(str(error)) from error


def decode(data: bytes | str) -> Any:
    """The inverse of `encode`.

    Raises:
        CorruptionError: `encode` cannot have written this text.
    """
    try:
        return json.loads(data, object_hook=_revive)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptionError(f"A stored value cannot be read: {error}.", help="See: everloop verify") from error


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in (str, int, bool) or value is None:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict:
        if all(type(key) is str for key in value) and not any(key.startswith("$") for key in value):
            return {key: _plain(item) for key, item in value.items()}
        return {"$dict": [[_plain(key), _plain(item)] for key, item in value.items()]}
    writer = _WRITERS.get(kind)
    if writer is not None:
        tag, write = writer
        return {tag: write(value)}
    if kind in _KIND_OF:
        return {"$record": [_KIND_OF[kind], _record_fields(value)]}
    if _is_numpy(value):
        # `item` gives a Python value. float32 is widened without loss, and narrowed again when it is read.
        return {"$numpy": [value.dtype.str, _plain(value.item())]}
    raise UnkeepableError(f"JSON cannot hold a {kind.__name__}")


def _sorted(values: Any) -> list[Any]:
    # The iteration order of a set differs between processes.
    return sorted((_plain(value) for value in values), key=lambda item: json.dumps(item, allow_nan=False))


def _record_fields(record: Record) -> str:
    from everloop.stores.records.record_codec import encode as encode_record

    # As a string inside the JSON: the codec of records has its own rules for types.
    return encode_record(record)


_WRITERS: dict[type, tuple[str, Any]] = {
    tuple: ("$tuple", lambda value: [_plain(item) for item in value]),
    set: ("$set", _sorted),
    frozenset: ("$frozenset", _sorted),
    bytes: ("$bytes", lambda value: base64.b64encode(value).decode()),
    complex: ("$complex", lambda value: [_plain(value.real), _plain(value.imag)]),
    decimal.Decimal: ("$decimal", str),
    uuid.UUID: ("$uuid", str),
    dt.date: ("$date", dt.date.isoformat),
    dt.timedelta: ("$timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
}


def _write_time(value: dt.datetime | dt.time) -> str:
    if value.tzinfo not in (None, dt.UTC) or value.fold:
        raise UnkeepableError(f"JSON cannot hold {value!r}")
    return value.isoformat()


_WRITERS[dt.datetime] = ("$datetime", _write_time)
_WRITERS[dt.time] = ("$time", _write_time)


def _revive(found: dict[str, Any]) -> Any:
    if len(found) != 1:
        return found
    (tag, value), *_ = found.items()
    if not tag.startswith("$"):
        return found
    return _READERS[tag](value)


def _read_numpy(value: list[Any]) -> Any:
    import numpy as np

    kind, item = value
    return np.dtype(kind).type(item)


def _read_record(value: list[Any]) -> Any:
    from everloop.stores.records.record_codec import decode as decode_record

    kind, text = value
    return decode_record(KINDS[kind], text)


_READERS: dict[str, Any] = {
    "$float": float,
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$dict": lambda pairs: {key: item for key, item in pairs},  # noqa: C416 - `dict(pairs)` takes pairs of lists too
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$complex": lambda parts: complex(*parts),
    "$decimal": decimal.Decimal,
    "$uuid": uuid.UUID,
    "$date": dt.date.fromisoformat,
    "$timedelta": lambda parts: dt.timedelta(*parts),
    "$datetime": dt.datetime.fromisoformat,
    "$time": dt.time.fromisoformat,
    "$numpy": _read_numpy,
    "$record": _read_record,
}


def _is_numpy(value: object) -> bool:
    kind = type(value)
    return (
        kind.__module__ == "numpy"
        and getattr(getattr(value, "dtype", None), "kind", "") in "biuf"
        and (getattr(value, "shape", None) == () and kind.__name__ != "ndarray")
    )
