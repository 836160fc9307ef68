"""Limits the size of a decoded request, counted before memory is allocated for it.

The size of a body says little: two bytes of JSON can become an object of 64 bytes, a kilobyte of Parquet a gigabyte of
text. So rows, cells and decompressed bytes are counted. Text formats are counted by their separators, which takes a few
milliseconds for 8 MB. Only if there are too many is the count repeated without quoted texts, which may contain
separators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import RequestError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from everloop.serving.endpoint_settings import EndpointSettings

SMALL_BYTES = 64 << 10
"""Shorter texts cannot become large, so they are not counted."""
_CONTAINERS_PER_ROW = 5
"""JSON lists and objects per row: the row itself, and its share of a protocol's columns."""
TYPED_CONTAINERS_PER_ROW = 20
"""The same if the decoder knows the type of a row and stops at the first value of another type."""
LONGEST_NUMBER = 400
"""Digits of a number. The largest float has 309. Parsing time grows with the square of the digits."""
_CHUNK_BYTES = 1 << 20
_QUOTE, _COMMA, _LINE_FEED, _RETURN, _ZERO, _NINE = b'",\n\r09'


def check_json(body: bytes, limits: EndpointSettings, containers_per_row: int = _CONTAINERS_PER_ROW) -> None:
    """Refuse JSON with too many values.

    Args:
        containers_per_row: how many lists and objects are allowed for each of `max_rows`.

    Raises:
        TooLargeError: there are more than `max_cells` values, or more lists and objects than `max_rows` rows need.
    """
    if len(body) <= SMALL_BYTES or _json_fits(body, limits, containers_per_row):
        return
    # A quote within a text follows a backslash, which may itself follow a backslash.
    bare = _unquoted(body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body)
    if not _json_fits(bare, limits, containers_per_row):
        raise TooLargeError(
            f"The body has more than {limits.max_cells} values, more lists and objects than {limits.max_rows} rows"
            f" need, or a number of {LONGEST_NUMBER} digits.",
            help=_fewer("max_cells", "max_rows"),
        )


def check_csv(body: bytes, limits: EndpointSettings) -> None:
    """Refuse CSV with too many lines or cells, as far as its separators show; see `checked_lines` for the rest.

    Raises:
        RequestError: there are more than `max_rows` lines.
        TooLargeError: there are more than `max_cells` cells.
    """
    if len(body) <= SMALL_BYTES:
        return
    # One more line for the header.
    if _lines(body) > limits.max_rows + 1 or _count(body, _COMMA) > limits.max_cells:
        bare = _unquoted(body)
        check_rows(_lines(bare) - 1, limits)
        check_cells(_count(bare, _COMMA), limits)


def checked_lines(lines: Iterable[str], limits: EndpointSettings) -> Iterator[str]:
    """The lines of a CSV text, for its reader, with their cells counted.

    A quote in the middle of a field is an ordinary character, so `check_csv` may have taken cells for quoted text.

    Raises:
        TooLargeError: a line has more than `max_cells` cells.
    """
    for line in lines:
        if len(line) > SMALL_BYTES:
            check_cells(line.count(","), limits)
        yield line


def check_rows(rows: int, limits: EndpointSettings) -> None:
    """Refuse more rows than a request may have.

    Raises:
        RequestError: there are too many.
    """
    if rows > limits.max_rows:
        raise RequestError(
            f"rows: {rows} rows are too many for one request.",
            help=f"Send at most {limits.max_rows}, or use 'everloop predict' for whole files.",
        )


def check_cells(cells: int, limits: EndpointSettings) -> None:
    """Refuse more values than a request may have.

    Raises:
        TooLargeError: there are too many.
    """
    if cells > limits.max_cells:
        raise TooLargeError(
            f"The request has {cells} values; the limit is {limits.max_cells}.", help=_fewer("max_cells")
        )


def check_unpacked(size_bytes: int, limits: EndpointSettings) -> None:
    """Refuse a table that is too large when decompressed.

    Raises:
        TooLargeError: it is too large.
    """
    if size_bytes > limits.max_unpacked_bytes:
        raise TooLargeError(
            f"The table has {size_bytes} bytes when decompressed; the limit is {limits.max_unpacked_bytes}.",
            help=_fewer("max_unpacked_bytes"),
        )


def check_row_sizes(
    rows: Iterable[Iterable[Any]], keys: Sequence[str | None] | None, limits: EndpointSettings, what: str = "rows"
) -> None:
    """Refuse a row that is too long for the log.

    Raises:
        TooLargeError: the texts of a row and its key have more than `max_row_bytes` bytes.
    """
    most = limits.max_row_bytes
    for number, row in enumerate(rows):
        size = 0
        for value in row:
            if type(value) is str:
                size += len(value)
        if keys is not None and (key := keys[number]) is not None:
            size += len(key)
        # A character has at most four bytes.
        if size * 4 > most:
            texts = [value for value in row if type(value) is str]
            if keys is not None and (key := keys[number]) is not None:
                texts.append(key)
            size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
            if size > most:
                raise TooLargeError(
                    f"{what}[{number}]: there are {size} bytes of text; the limit is {most}.",
                    help=f"Send shorter texts, or raise the limit: everloop endpoints set NAME max_row_bytes={size}",
                )


def _json_fits(text: bytes, limits: EndpointSettings, containers_per_row: int) -> bool:
    containers = _count(text, *b"[{")
    if containers > containers_per_row * limits.max_rows:
        return False
    if containers + _count(text, _COMMA) > limits.max_cells + _CONTAINERS_PER_ROW * limits.max_rows:
        return False
    return not _has_long_number(text)


def _count(text: bytes, *letters: int) -> int:
    """Count these bytes in a text. If they are dense, `bytes.count` takes fifty times as long."""
    import numpy as np

    found = 0
    for begins in range(0, len(text), _CHUNK_BYTES):
        chunk = np.frombuffer(text, np.uint8, min(_CHUNK_BYTES, len(text) - begins), begins)
        found += sum(int(np.count_nonzero(chunk == letter)) for letter in letters)
    return found


def _lines(text: bytes) -> int:
    found = _count(text, _LINE_FEED)
    returns = _count(text, _RETURN)
    return max(found, returns) if returns and b"\r\n" in text else found + returns


def _unquoted(text: bytes) -> bytes:
    """A text without everything between one quote and the next."""
    if b'"' not in text:
        return text
    import numpy as np

    parts, inside = [], False
    for begins in range(0, len(text), _CHUNK_BYTES):
        chunk = np.frombuffer(text, np.uint8, min(_CHUNK_BYTES, len(text) - begins), begins)
        quoted = np.logical_xor.accumulate(chunk == _QUOTE)
        if inside:
            quoted = ~quoted
        inside = bool(quoted[-1])
        parts.append(chunk[~quoted].tobytes())
    return b"".join(parts)


def _has_long_number(text: bytes) -> bool:
    """Whether there is a number of `LONGEST_NUMBER` digits. If so, a block of half that length is all digits."""
    import numpy as np

    size = LONGEST_NUMBER // 2
    blocks = np.frombuffer(text, np.uint8, len(text) // size * size).reshape(-1, size)
    # Few blocks have digits at each of four positions, so few are checked in full.
    blocks = blocks[_all_digits(blocks[:, :: size // 4])]
    return bool(_all_digits(blocks).any())


def _all_digits(blocks: Any) -> Any:
    return ((blocks >= _ZERO) & (blocks <= _NINE)).all(axis=1)


def _fewer(*names: str) -> str:
    raised = " or ".join(f"{name}=N" for name in names)
    return f"Send fewer rows at once, or raise the limit: everloop endpoints set NAME {raised}"


__all__ = [
    "check_cells",
    "check_csv",
    "check_json",
    "check_row_sizes",
    "check_rows",
    "check_unpacked",
    "checked_lines",
]
