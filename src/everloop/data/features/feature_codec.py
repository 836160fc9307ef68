"""Encode the features of an entity as bytes, and decode them to the same values and Python types as in the join.

MessagePack has numbers, text, bytes, lists and maps. Dates, times, durations, decimals and larger integers are written
as extensions, so a blob can be decoded without the view's declaration.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
import polars as pl

from everloop.data.sources.nested_types import instance
from everloop.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_DATE, _TIME, _NAIVE, _ZONED, _DURATION, _DECIMAL, _WHOLE = range(1, 8)
_EPOCH = datetime(1970, 1, 1)
_US = timedelta(microseconds=1)


def encode_rows(features: pl.DataFrame) -> Iterator[bytes]:
    """One blob per row."""
    encode = msgspec.msgpack.encode
    names = features.columns
    converters = [(index, convert) for index, kind in enumerate(features.dtypes) if (convert := _writer(kind))]
    for row in features.iter_rows():
        values = list(row)
        for index, convert in converters:
            if values[index] is not None:
                values[index] = convert(values[index])
        yield encode(dict(zip(names, values, strict=True)))


def decode_row(blob: bytes) -> dict[str, Any]:
    values: dict[str, Any] = _DECODER.decode(blob)
    return values


def entity_key(values: Sequence[Any]) -> bytes:
    """The key of an entity in an online store: the same bytes for equal values of different types."""
    return msgspec.msgpack.encode([_key_value(value) for value in values])


def _key_value(value: Any) -> Any:
    match value:
        case bool() | int() | str() | bytes() | None:
            return value
        case datetime():
            return value.astimezone(UTC) if value.tzinfo is not None else value
        case Decimal():
            return format(value.normalize(), "f")
        case float():
            return value + 0.0  # -0.0 is 0.0
        case timedelta():
            return ["duration", value // _US]
    return value


def _writer(dtype: pl.DataType) -> Any:
    """A function that converts values of this type for MessagePack; None if that is not necessary."""
    match dtype:
        case pl.Date():
            return lambda value: _ext(_DATE, value.isoformat())
        case pl.Time():
            return lambda value: _ext(_TIME, value.isoformat())
        case pl.Datetime(time_zone=None):
            return lambda value: _ext(_NAIVE, value.isoformat())
        case pl.Datetime(time_zone=zone):
            epoch = _EPOCH.replace(tzinfo=UTC)
            return lambda value: _ext(_ZONED, f"{(value - epoch) // _US} {zone}")
        case pl.Duration():
            return lambda value: _ext(_DURATION, str(value // _US))
        case pl.Decimal():
            return lambda value: _ext(_DECIMAL, str(value))
        case pl.Int128() | pl.UInt128():
            return lambda value: _ext(_WHOLE, str(value))
        case pl.List() | pl.Array():
            inner = _writer(instance(dtype.inner))
            return inner and (lambda values: [None if value is None else inner(value) for value in values])
        case pl.Struct(fields=fields):
            writers = {field.name: writer for field in fields if (writer := _writer(instance(field.dtype)))}
            return writers and (lambda values: _struct(values, writers))
    return None


def _struct(values: dict[str, Any], writers: dict[str, Any]) -> dict[str, Any]:
    return {
        name: writers[name](value) if value is not None and name in writers else value for name, value in values.items()
    }


def _ext(code: int, text: str) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, text.encode())


def _read(code: int, data: memoryview) -> Any:
    if code not in _READERS:
        raise CorruptionError(
            f"A row of the online store contains an unknown MessagePack extension {code}.",
            help="Drop the view from the online store, and materialize it again.",
        )
    return _READERS[code](bytes(data).decode())


def _zoned(text: str) -> datetime:
    micros, _, zone = text.partition(" ")
    moment = _EPOCH.replace(tzinfo=UTC) + int(micros) * _US
    return moment.astimezone(ZoneInfo(zone))


_READERS: dict[int, Callable[[str], Any]] = {
    _DATE: date.fromisoformat,
    _TIME: time.fromisoformat,
    _NAIVE: datetime.fromisoformat,
    _ZONED: _zoned,
    _DURATION: lambda text: int(text) * _US,
    _DECIMAL: Decimal,
    _WHOLE: int,
}
_DECODER = msgspec.msgpack.Decoder(ext_hook=_read)
