"""Checks the size of a Parquet file from its footer and page headers, before anything is decoded.

The footer states the number of rows, but it may lie. The page headers decide how much memory a reader allocates: each
states the decompressed length of its page. So all of them are read and added up. Only flat tables are supported, in
which every column has one value per row.
Source: apache/parquet-format, parquet.thrift; Thrift compact protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import RequestError
from everloop.serving.protocols.unpacked_limits import check_cells, check_rows, check_unpacked

if TYPE_CHECKING:
    from everloop.serving.endpoint_settings import EndpointSettings

MARK = b"PAR1"
MOST_COLUMNS = 5_000
MOST_FOOTER_BYTES = 2 << 20
MOST_VALUES = 150_000
"""Numbers and texts in the footer and the page headers together."""
MOST_FIXED_BYTES = 64
"""Bytes of a fixed-length value. Decimals, UUIDs and half floats have at most 32."""
_DEEPEST = 16
_BYTE_ARRAY, _FIXED = 6, 7
_REPEATED = 2
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_DELTA_BYTE_ARRAY = 7


@dataclass(frozen=True, slots=True)
class Layout:
    """What the reader of a file has to know."""

    rows: int
    dictionaries: tuple[str, ...]
    """The text columns with a dictionary. Reading them as such stores a value once that many rows share."""
    longest: int
    """The longest page of texts that are encoded as prefixes of one another; 0 if there are none. A row may become as
    long as its page."""


def check_file(body: bytes, limits: EndpointSettings) -> Layout:
    """Refuse a file that would become too large, or has columns of unsupported types.

    Raises:
        RequestError: it is damaged, has too many rows or columns, or nested columns.
        TooLargeError: it has too many values, or is too large when decompressed.
    """
    try:
        return _checked(body, limits)
    except (IndexError, KeyError, TypeError, AttributeError, ValueError):
        raise RequestError("Cannot read the table in the body: its footer or a page is damaged.") from None


def _checked(body: bytes, limits: EndpointSettings) -> Layout:
    size = int.from_bytes(body[-8:-4], "little")
    ends = len(body) - 8 - size
    if body[:4] != MARK or body[-4:] != MARK or ends < 4:
        raise RequestError("Cannot read the table in the body: it is not a complete Parquet file.")
    if size > MOST_FOOTER_BYTES:
        raise RequestError(f"The footer has {size} bytes; the limit is {MOST_FOOTER_BYTES}.")
    reader = _Thrift(body, ends, len(body) - 8)
    footer = reader.struct()
    columns = _columns(footer[2])
    rows = footer[3]
    if rows < 0:
        raise ValueError("negative")
    check_rows(rows, limits)
    check_cells(rows * len(columns), limits)
    unpacked, longest, found, dictionaries = 0, 0, 0, set()
    for group in footer.get(4, ()):
        found += group[3]
        if group[3] < 0 or len(group[1]) != len(columns):
            raise ValueError("columns")
        for name, chunk in zip(columns, group[1], strict=True):
            if 1 in chunk:
                raise RequestError("The table refers to another file.")
            pages = _pages(reader, chunk[3], group[3], 4, ends)
            unpacked += pages.unpacked
            check_unpacked(unpacked, limits)
            longest = max(longest, pages.longest)
            if pages.dictionary and chunk[3][1] == _BYTE_ARRAY:
                dictionaries.add(name)
    if found != rows:
        raise ValueError("rows")
    return Layout(rows, tuple(sorted(dictionaries)), longest)


def _columns(schema: list[dict[int, Any]]) -> list[str]:
    """The names of the columns of a flat schema."""
    root, *leaves = schema
    if len(leaves) > MOST_COLUMNS:
        raise RequestError(f"The table has {len(leaves)} columns; the limit is {MOST_COLUMNS}.")
    for leaf in leaves:
        name = leaf[4].decode("utf-8", "replace")
        if leaf.get(5) or leaf.get(3) == _REPEATED or 1 not in leaf:
            raise RequestError(f"{name[:100]}: nested values cannot be inputs.")
        if leaf[1] == _FIXED and not 0 < leaf.get(2, 0) <= MOST_FIXED_BYTES:
            raise RequestError(f"{name[:100]}: values of {leaf.get(2, 0)} bytes each cannot be inputs.")
    if root.get(5) != len(leaves):
        raise ValueError("children")
    return [leaf[4].decode("utf-8") for leaf in leaves]


@dataclass(slots=True)
class _Pages:
    unpacked: int = 0
    longest: int = 0
    dictionary: bool = False


def _pages(reader: _Thrift, chunk: dict[int, Any], rows: int, first: int, end: int) -> _Pages:
    """Check the pages of one column in one row group."""
    begins = chunk[9]
    if 0 < chunk.get(11, 0) < begins:
        begins = chunk[11]
    ends = begins + chunk[7]
    if not first <= begins <= ends <= end or chunk[5] != rows:
        raise ValueError("chunk")
    found, values = _Pages(), 0
    reader.at, reader.end = begins, ends
    while reader.at < ends:
        header = reader.struct()
        unpacked, packed = header[2], header[3]
        if unpacked < 0 or packed < 0 or reader.at + packed > ends:
            raise ValueError("page")
        reader.at += packed
        found.unpacked += unpacked
        kind = header[1]
        if kind == _DICTIONARY_PAGE:
            # Each value takes at least a byte, so a page cannot have more values than bytes.
            if not 0 <= header[7][1] <= unpacked:
                raise ValueError("dictionary")
            found.dictionary = True
        elif kind in (_DATA_PAGE, _DATA_PAGE_V2):
            page = header[5] if kind == _DATA_PAGE else header[8]
            if page[1] < 0:
                raise ValueError("negative")
            values += page[1]
            if page[2 if kind == _DATA_PAGE else 4] == _DELTA_BYTE_ARRAY:
                found.longest = max(found.longest, unpacked, 1)
    if values != rows:
        raise ValueError("values")
    return found


class _Thrift:
    """Reads structs of the Thrift compact protocol into dicts from field number to value."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self.at = at
        self.end = end
        self._left = MOST_VALUES

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while kind := self._byte():
            delta = kind >> 4
            field = field + delta if delta else self._zigzag()
            found[field] = self._value(kind & 15, depth, inside=False)
        return found

    def _value(self, kind: int, depth: int, *, inside: bool) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RequestError(f"The footer and the pages have more than {MOST_VALUES} entries.")
        if kind in (1, 2):
            return self._byte() == 1 if inside else kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if depth >= _DEEPEST:
            raise ValueError("too deep")
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, depth + 1, inside=True) for _ in range(self._counted(size))]
        if kind == 11:
            size = self._varint()
            kinds = self._byte() if size else 0
            return [
                (self._value(kinds >> 4, depth + 1, inside=True), self._value(kinds & 15, depth + 1, inside=True))
                for _ in range(self._counted(size))
            ]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("type")

    def _counted(self, size: int) -> int:
        if size > self._left:
            raise RequestError(f"The footer and the pages have more than {MOST_VALUES} entries.")
        return size

    def _byte(self) -> int:
        at = self.at
        if at >= self.end:
            raise ValueError("end")
        self.at = at + 1
        return self._data[at]

    def _bytes(self, size: int) -> bytes:
        at = self.at
        if at + size > self.end:
            raise ValueError("end")
        self.at = at + size
        return self._data[at : at + size]

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("varint")

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)


__all__ = ["MARK", "Layout", "check_file"]
