"""Digests of values that are the same in every process.

`hash()` and set order change with PYTHONHASHSEED, and `repr` of an object may contain its address. So a value is
written type by type. Everything that can change what code does with a value counts: its type, the order of a dict, the
code of an instance's class. Numbers of different types are different values; a set has no order.

Other objects are taken apart as `pickle` does, into the call that makes them again and their state. So subclasses of
built-in types, slots, compiled patterns and the tables of Polars, pandas and Arrow have a digest too. Objects without
readable content (a connection, a generator, an open file) have none.
"""

from __future__ import annotations

import contextvars
import copyreg
import datetime as dt
import decimal
import enum
import fractions
import hashlib
import pathlib
import re
import struct
import sys
import threading
import types
import uuid
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.code_origin import origin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Refer = Callable[[object], str | None]

_PLAIN_LEAVES: tuple[type, ...] = (
    dt.date,
    dt.timedelta,
    dt.timezone,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    range,
    complex,
    *{type(pathlib.PurePosixPath()), type(pathlib.PureWindowsPath()), type(pathlib.Path())},
)
# Locks and thread-local storage hold nothing that a result could depend on.
_EMPTY_KINDS: tuple[type, ...] = (type(threading.Lock()), type(threading.RLock()), threading.local)
_BUILTINS: tuple[type, ...] = (bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_PROTOCOL = 4
_folders: ContextVar[tuple[str, ...]] = ContextVar("folders", default=())


class UndigestibleError(TypeError):
    """A value whose content cannot be read. Callers in this package catch it; it never reaches users."""


def digest_value(value: object, refer: Refer | None = None) -> str:
    """Return 32 hex digits over a value's content.

    Args:
        value: without `refer`: None, numbers, text, bytes, dates, paths, enums, patterns, NumPy arrays, and lists,
            tuples, sets and dicts of these. With it: any object whose content can be read.
        refer: returns a short text for code (functions, classes, modules), and None for anything else.

    Raises:
        UndigestibleError: the content of something inside cannot be read. Without `refer`, also if something inside
            is not plain, or the value contains itself.
    """
    written = _Writer(refer)
    try:
        written.write(value)
    except RecursionError:
        raise UndigestibleError(f"a {kind_of(value)} that is nested too deeply") from None
    return written.hash.hexdigest()[:32]


@contextmanager
def ignoring_location(folders: Iterable[str]) -> Iterator[None]:
    """Inside of the block, the digest of a path in one of these folders does not depend on where the folder is."""
    token = _folders.set(tuple(sorted(folders, key=len, reverse=True)))
    try:
        yield
    finally:
        _folders.reset(token)


def digest_text(*parts: str) -> str:
    """Return 32 hex digits over texts. The boundaries between the texts count."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(struct.pack("<q", len(data)))
        hasher.update(data)
    return hasher.hexdigest()[:32]


def kind_of(value: object) -> str:
    """The type of a value, as messages name it."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def is_constant(value: object) -> bool:
    """Whether a value can never be changed in place, so that the same object always has the same content."""
    return value is None or type(value) in (bool, int, float, str, bytes, complex, range, *_PLAIN_LEAVES)


class _Writer:
    """Hashes one value. For an element of a set, `outer` is the writer of the set."""

    def __init__(self, refer: Refer | None, outer: _Writer | None = None) -> None:
        self.hash = hashlib.sha256()
        self.refer = refer
        self.outer = outer
        self.folders = _folders.get()
        # Identity to position of first visit. An object that is visited again is written as its position: this ends
        # cycles, and each object is written once. The object is kept alive so that its identity stays unique.
        self.visited: dict[int, tuple[int, object]] = {}
        self.known_types: dict[type, str] = outer.known_types if outer is not None else {}

    def write(self, value: object) -> None:
        kind = type(value)
        if value is None or value is ... or value is NotImplemented:
            self._leaf("singleton", repr(value))
        elif kind is int or kind is bool:
            # Not in decimal: Python refuses to write integers of more than 4300 decimal digits.
            self._leaf(kind.__name__, hex(value))  # type: ignore[arg-type]
        elif kind is float:
            self._leaf("float", value.hex())  # type: ignore[attr-defined]
        elif kind is str:
            self._leaf("str", value)  # type: ignore[arg-type]
        elif kind is bytes:
            self._bytes("bytes", value)  # type: ignore[arg-type]
        elif kind is tuple:
            self._sequence("tuple", value)  # type: ignore[arg-type]
        elif kind is frozenset:
            self._unordered("frozenset", value)  # type: ignore[arg-type]
        elif kind in _PLAIN_LEAVES:
            self._leaf(kind.__name__, repr(value))
        elif kind is re.Pattern:
            self._leaf("pattern", f"{value.pattern!r} {value.flags}")  # type: ignore[attr-defined]
        elif not self._write_code(value) and not self._write_visited(value):
            self._nested(value)

    # --- values that may be visited again -------------------------------------------------------------------

    def _write_code(self, value: object) -> bool:
        text = self.refer(value) if self.refer is not None else None
        if text is None:
            return False
        self._leaf("reference", text)
        return True

    def _write_visited(self, value: object) -> bool:
        position: int | None = None
        writer: _Writer | None = self
        while writer is not None and position is None:
            if id(value) in writer.visited:
                position = writer.visited[id(value)][0]
            writer = writer.outer
        if position is not None:
            if self.refer is None:
                raise UndigestibleError(f"a {kind_of(value)} that contains itself")
            self._leaf("again", str(position))
            return True
        self.visited[id(value)] = (self._count(), value)
        return False

    def _count(self) -> int:
        return len(self.visited) + (self.outer._count() if self.outer is not None else 0)

    def _nested(self, value: Any) -> None:
        kind = type(value)
        if kind is list:
            self._sequence("list", value)
        elif kind is dict:
            self._pairs("dict", value)
        elif kind is set:
            self._unordered("set", value)
        elif kind is bytearray:
            self._bytes("bytearray", bytes(value))
        elif kind in (dt.datetime, dt.time):
            self._leaf(kind.__name__, f"{value.replace(tzinfo=None)!r} {value.fold}")
            self.write(value.tzinfo)
        elif kind is slice:
            self._sequence("slice", (value.start, value.stop, value.step))
        elif isinstance(value, enum.Enum):
            self._leaf("enum", f"{self._type(kind)}.{value._name_}")
            self.write(value._value_)
        elif not self._numpy(value):
            self._object(value)
        if self.refer is None:
            # Plain data is a tree. A value that contains itself was refused above; any other may occur again.
            del self.visited[id(value)]

    def _numpy(self, value: object) -> bool:
        numpy: Any = sys.modules.get("numpy")
        if numpy is None or not (type(value) is numpy.ndarray or isinstance(value, (numpy.generic, numpy.dtype))):
            return False
        if isinstance(value, numpy.dtype):
            self._leaf("dtype", f"{value!r} {value.metadata}")
            return True
        array: Any = value
        if array.dtype.hasobject:
            self._sequence(f"ndarray {array.shape} {array.dtype!r}", array.ravel().tolist())
        else:
            self._bytes(f"{type(value).__name__} {array.dtype!r} {array.shape}", array.tobytes())
        return True

    # --- other objects --------------------------------------------------------------------------------------

    def _object(self, value: Any) -> None:
        kind = type(value)
        if self.refer is None:
            raise UndigestibleError(f"a {kind_of(value)}, which is not plain data")
        if isinstance(value, _EMPTY_KINDS):
            self._leaf("empty", self._type(kind))
            return
        if kind is contextvars.ContextVar:
            self._leaf("variable", value.name)
            return
        if kind in _VIEWS:
            self._sequence(kind.__name__, list(value))
            return
        if kind is types.MappingProxyType:
            self._pairs("mappingproxy", value)
            return
        if kind is memoryview:
            self._bytes(f"memoryview {value.format} {value.shape}", value.tobytes())
            return
        if any(value is stream for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)):
            self._leaf("stream", getattr(value, "name", ""))
            return
        self._leaf("object", self._type(kind))
        of_project = origin_of(kind.__module__) == "project"
        base = next((one for one in _BUILTINS if isinstance(value, one)), None) if of_project else None
        if base is not None:
            self._built_in_content(base, value)
        # A class of the project may leave attributes out of its pickle that its methods use.
        if of_project:
            self._attributes(value)
        if base is None and not (of_project and _is_pure(kind)):
            self._reduced(value)

    def _built_in_content(self, base: type, value: Any) -> None:
        """Write an instance of a subclass of a built-in type as that type, even if it overrides the type's methods."""
        if base in (bool, int):
            self._leaf("int", hex(int.__index__(value)))
        elif base is float:
            self._leaf("float", float.hex(value))
        elif base is complex:
            self._leaf("complex", complex.__repr__(value))
        elif base is str:
            self._leaf("str", str.__str__(value))
        elif base in (bytes, bytearray):
            self._bytes("bytes", bytes(memoryview(value)))
        elif base is tuple:
            self._sequence("tuple", list(tuple.__iter__(value)))
        elif base is list:
            self._sequence("list", list(list.__iter__(value)))
        elif base is dict:
            self._pairs("dict", dict(zip(dict.__iter__(value), dict.values(value), strict=True)))
            if hasattr(value, "default_factory"):
                self.write(value.default_factory)
        else:
            self._unordered("set", list(base.__iter__(value)))  # type: ignore[attr-defined]

    def _attributes(self, value: Any) -> None:
        found: dict[str, Any] = {}
        try:
            found.update(object.__getattribute__(value, "__dict__"))
        except AttributeError:
            # The class has slots only.
            found = {}
        for one in type(value).__mro__:
            slots = vars(one).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else tuple(slots):
                member = vars(one).get(name if not name.startswith("__") else f"_{one.__name__.lstrip('_')}{name}")
                if isinstance(member, types.MemberDescriptorType):
                    try:
                        found[name] = member.__get__(value)
                    except AttributeError:
                        continue  # the slot has no value
        self._pairs("attributes", found)

    def _reduced(self, value: Any) -> None:
        try:
            registered = copyreg.dispatch_table.get(type(value))
            reduced = value.__reduce_ex__(_PROTOCOL) if registered is None else registered(value)
        except RecursionError:
            raise
        except Exception as error:
            # The class may raise any error if it cannot be pickled.
            raise UndigestibleError(f"the content of a {kind_of(value)}, which cannot be read") from error
        if isinstance(reduced, str):
            self._leaf("global", reduced)
            return
        function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
        if origin_of(str(getattr(function, "__module__", None) or "builtins")) == "project":
            self.write(function)
        self._leaf("made by", name)
        # Kept alive: these parts are temporary, and a later object could get the same identity.
        temporary = [arguments, state, list(items or ()), list(pairs or ())]
        self.visited[id(temporary)] = (self._count(), temporary)
        for part in temporary:
            self.write(part)

    def _type(self, kind: type) -> str:
        """The name of a class. For code of the project, `refer` names it, and traces it."""
        if kind not in self.known_types:
            text = self.refer(kind) if self.refer is not None else None
            self.known_types[kind] = text or f"{kind.__module__}.{kind.__qualname__}"
        return self.known_types[kind]

    # --- bytes ----------------------------------------------------------------------------------------------

    def _leaf(self, tag: str, text: str) -> None:
        for folder in self.folders:
            text = text.replace(folder, "")
        self._bytes(tag, text.encode("utf-8", "surrogatepass"))

    def _bytes(self, tag: str, data: bytes) -> None:
        label = tag.encode()
        self.hash.update(struct.pack("<qq", len(label), len(data)) + label)
        self.hash.update(data)

    def _sequence(self, tag: str, items: list[Any] | tuple[Any, ...]) -> None:
        self._leaf(tag, str(len(items)))
        for item in items:
            self.write(item)

    def _pairs(self, tag: str, pairs: Any) -> None:
        # The order of a dict counts: code that loops over it, for example over new column names, depends on it.
        self._leaf(tag, str(len(pairs)))
        for key, item in pairs.items():
            self.write(key)
            self.write(item)

    def _unordered(self, tag: str, items: Iterable[object]) -> None:
        self._bytes(tag, b"".join(sorted(self._element_digest(item) for item in items)))

    def _element_digest(self, value: object) -> bytes:
        inner = _Writer(self.refer, self)
        inner.write(value)
        return inner.hash.digest()


def _is_pure(kind: type) -> bool:
    """Whether an instance holds all of its data in attributes: no base class but `object` is written in C."""
    return all(one is object or origin_of(one.__module__) == "project" or _is_abstract(one) for one in kind.__mro__)


def _is_abstract(kind: type) -> bool:
    return kind.__module__ in ("typing", "abc", "collections.abc", "contextlib", "enum", "typing_extensions")
