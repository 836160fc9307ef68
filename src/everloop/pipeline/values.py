"""Digests of plain values that are the same in every process.

`hash()` and set order change with PYTHONHASHSEED and `repr` of an object holds its address; here a value is
written type by type. Numbers of different types are different values, dict order is not part of a value.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import hashlib
import pathlib
import re
import struct
import sys
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAVES: tuple[type, ...] = (
    dt.datetime,
    dt.date,
    dt.time,
    dt.timedelta,
    dt.timezone,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    range,
    slice,
    complex,
    pathlib.PurePath,
)


class UndigestibleError(TypeError):
    """A value whose content cannot be told from outside. Never leaves this room."""


def digest_value(value: object, refer: Callable[[object], str] | None = None) -> str:
    """Return 32 hex digits over a value's content.

    Args:
        value: None, numbers, text, bytes, dates, paths, enums, patterns, dataclasses, NumPy arrays, and
            lists, tuples, sets and dicts of these.
        refer: writes what is not data (functions, classes, modules) as a short text; raises
            UndigestibleError for what it does not know either.

    Raises:
        UndigestibleError: there is something else inside, or the value contains itself.
    """
    written = _Writer(refer or _refuse)
    written.write(value)
    return written.hash.hexdigest()[:32]


def digest_text(*parts: str) -> str:
    """Return 32 hex digits over texts; where one ends and the next begins counts."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(struct.pack("<q", len(data)))
        hasher.update(data)
    return hasher.hexdigest()[:32]


def _refuse(value: object) -> str:
    raise UndigestibleError(f"{type(value).__name__} has no digest")


class _Writer:
    def __init__(self, refer: Callable[[object], str]) -> None:
        self.hash = hashlib.sha256()
        self.refer = refer
        self._open: set[int] = set()

    def write(self, value: object) -> None:
        if value is None or value is ... or value is NotImplemented:
            self._leaf("singleton", repr(value))
        elif type(value) in (bool, int):
            self._leaf(type(value).__name__, repr(value))
        elif type(value) is float:
            self._leaf("float", value.hex())
        elif type(value) is str:
            self._leaf("str", value)
        elif type(value) in (bytes, bytearray):
            self._bytes(type(value).__name__, value)  # type: ignore[arg-type]
        elif isinstance(value, enum.Enum):
            self._leaf("enum", f"{_name(type(value))}.{value.name}")
        elif type(value) in _LEAVES or isinstance(value, pathlib.PurePath):
            self._leaf(type(value).__name__, f"{value!r}{getattr(value, 'fold', '')}")
        elif isinstance(value, re.Pattern):
            self._leaf("pattern", f"{value.pattern!r} {value.flags}")
        else:
            self._nested(value)

    def _nested(self, value: object) -> None:
        if id(value) in self._open:
            raise UndigestibleError(f"a {type(value).__name__} contains itself")
        self._open.add(id(value))
        try:
            if type(value) in (list, tuple):
                self._sequence(type(value).__name__, list(value))  # type: ignore[call-overload]
            elif type(value) in (set, frozenset):
                self._unordered(type(value).__name__, [self._apart(item) for item in value])  # type: ignore[attr-defined]
            elif type(value) is dict:
                self._unordered("dict", [self._apart(key) + self._apart(item) for key, item in value.items()])
            elif isinstance(value, tuple) and hasattr(value, "_fields"):
                self._sequence(self.refer(type(value)), list(value))
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
                self._sequence(self.refer(type(value)), [item for pair in fields for item in pair])
            elif not self._numpy(value):
                self._leaf("reference", self.refer(value))
        finally:
            self._open.discard(id(value))

    def _numpy(self, value: object) -> bool:
        numpy: Any = sys.modules.get("numpy")
        if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic, numpy.dtype)):
            return False
        if isinstance(value, numpy.dtype):
            self._leaf("dtype", str(value))
            return True
        array: Any = value
        if array.dtype.hasobject:
            self._sequence(f"ndarray {array.shape}", array.ravel().tolist())
        else:
            self._bytes(f"{type(value).__name__} {array.dtype.str} {array.shape}", array.tobytes())
        return True

    def _leaf(self, tag: str, text: str) -> None:
        self._bytes(tag, text.encode("utf-8", "surrogatepass"))

    def _bytes(self, tag: str, data: bytes) -> None:
        label = tag.encode()
        self.hash.update(struct.pack("<qq", len(label), len(data)) + label)
        self.hash.update(data)

    def _sequence(self, tag: str, items: list[object]) -> None:
        self._leaf(tag, str(len(items)))
        for item in items:
            self.write(item)

    def _unordered(self, tag: str, digests: list[bytes]) -> None:
        self._bytes(tag, b"".join(sorted(digests)))

    def _apart(self, value: object) -> bytes:
        inner = _Writer(self.refer)
        inner._open = self._open
        inner.write(value)
        return inner.hash.digest()


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
