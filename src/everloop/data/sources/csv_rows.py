"""Find malformed rows of a CSV file: too short, too long, or with a quote that is never closed.

Polars reports that a file is malformed. Only a parser that reads it row by row can say where.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.sources.csv_text import lines_of
from everloop.data.sources.file_states import literal
from everloop.data.sources.reading_options import advice
from everloop.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from everloop.data.sources.data_files import DataFile

_UNIT = "\x1f"  # a separator that does not occur in text, so each line is read as one field
_SHOWN = 40
_TOP_LINES = 30
_LONGEST_FIELD = 1 << 30


def refuse_short_rows(file: DataFile, width: int, options: Mapping[str, Any]) -> None:
    """Refuse a file with a row that is too short, which Polars would fill with nulls.

    Raises:
        SourceError: a row has fewer than `width` fields.
    """
    separator = options.get("separator", ",")
    lines = pl.scan_csv(
        literal(file.path), separator=_UNIT, quote_char=None, has_header=False, schema={"line": pl.String}
    )
    text = pl.col("line").str.strip_chars_end("\r")
    short = (text.str.count_matches(separator, literal=True) < width - 1) & (text.str.len_bytes() > 0)
    if not lines.select(short.any()).collect(engine="streaming").item():
        return
    # A short line may be part of a quoted value that spans several lines. Only a real parser can tell.
    row = _ragged_row(file, width, options)
    if row is not None:
        raise _ragged(file, width, row, options)


def explain(file: DataFile, width: int | None, options: Mapping[str, Any], error: Exception) -> SourceError:
    """Turn a Polars error about the shape of a file into one that names the row."""
    message = str(error)
    quote = options.get("quote_char", '"')
    if quote is not None and (problem := _quote_problem(file, options)) is not None:
        return problem
    if "found more fields" in message:
        row = _ragged_row(file, width, options)
        if row is not None:
            return _ragged(file, width, row, options)
    return SourceError(f"'{file}' cannot be read as csv: {message.splitlines()[0]}.")


def _parser(file: Any, options: Mapping[str, Any], *, strict: bool = False) -> Iterator[list[str]]:
    quote = options.get("quote_char", '"')
    csv.field_size_limit(_LONGEST_FIELD)
    return csv.reader(
        file,
        delimiter=options.get("separator", ","),
        quotechar=quote,
        quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL,
        strict=strict,
    )


def _ragged_row(file: DataFile, width: int | None, options: Mapping[str, Any]) -> tuple[int, list[str], int] | None:
    """The number and values of the first row with a wrong number of fields, and how many were expected."""
    with file.path.open(newline="", encoding="utf-8-sig", errors="replace") as text:
        rows = _parser(text, options)
        header = options.get("has_header", True) is not False
        expected = len(next(rows)) if header or width is None else width
        for number, row in enumerate(rows, 1):
            if row and len(row) != expected:
                return number, row, expected
    return None


def _ragged(
    file: DataFile, width: int | None, row: tuple[int, list[str], int], options: Mapping[str, Any]
) -> SourceError:
    number, values, expected = row
    fields = len(values)
    message = f"Row {number} of '{file}' has {fields} field{'s' if fields != 1 else ''}, but {expected} were expected."
    if values[0].startswith("#"):
        return SourceError(message, **advice("If this is a comment, skip comments with {}.", comment_prefix="#"))
    header = _later_header(file, options)
    if header is not None and not options.get("skip_rows"):
        shown = _short(header[1]).replace("{", "{{").replace("}", "}}")
        return SourceError(
            message, **advice(f"If the header is '{shown}', skip the lines above it with {{}}.", skip_rows=header[0])
        )
    return SourceError(
        message,
        **advice(
            "Correct the row, quote values that contain the separator, or pass {} to fill up short rows and cut long "
            "ones.",
            otherwise="Correct the row, or put quotes around values that contain the separator.",
            truncate_ragged_lines=True,
        ),
    )


def _later_header(file: DataFile, options: Mapping[str, Any]) -> tuple[int, str] | None:
    """The number of lines at the top with fewer fields than the rest, such as a report's title, and the next line."""
    lines = lines_of(file.path, _TOP_LINES)
    widths = [len(next(_parser([line], options), [])) for line in lines]
    for index in range(1, len(widths) - 1):
        wide = [width for width in widths[index:] if width]
        if len(wide) > 1 and len(set(wide)) == 1 and wide[0] > max(widths[:index]):
            return index, lines[index]
    return None


def _quote_problem(file: DataFile, options: Mapping[str, Any]) -> SourceError | None:
    """The error for the first row with a quote that is never closed, or a quote inside an unquoted value."""
    quote = options.get("quote_char") or '"'
    separator = options.get("separator", ",")
    with file.path.open(newline="", encoding="utf-8-sig", errors="replace") as text:
        rows = _parser(text, options, strict=True)
        number = 0 if options.get("has_header", True) is not False else 1
        try:
            for row in rows:
                for value in row:
                    # The parser keeps a quote in the value only if it was doubled or the value was not quoted.
                    if quote in value and _is_bare(value, quote, separator) and value.count(quote) % 2:
                        break
                else:
                    number += 1
                    continue
                break
            else:
                return None
        except csv.Error as error:
            unclosed = "unexpected end" in str(error)
            what = (
                "a quote that is never closed" if unclosed else f"a closing quote that is not followed by '{separator}'"
            )
            opened = _opened_at(file, number, options)
            return SourceError(
                f"{_row(number)} of '{file}' has {what}: {opened!r}.",
                **advice(
                    "Close it. If it belongs to the value, double it. If quotes have no meaning in this file, pass {}.",
                    otherwise="Close it. If it belongs to the value, double it and put quotes around the value.",
                    quote_char=None,
                ),
            )
    return SourceError(
        f"{_row(number)} of '{file}' has a single quote character inside a value: {_short(value)!r}.",
        **advice(
            "Double it and put quotes around the value. If quotes have no meaning in this file, pass {}.",
            otherwise="Double it and put quotes around the value.",
            quote_char=None,
        ),
    )


def _row(number: int) -> str:
    return f"Row {number}" if number else "The header"


def _is_bare(value: str, quote: str, separator: str) -> bool:
    """Whether a value may have been unquoted in the file."""
    return separator not in value and "\n" not in value and not value.startswith(quote)


def _opened_at(file: DataFile, number: int, options: Mapping[str, Any]) -> str:
    """The beginning of the row at which a strict parser fails."""
    rows = 0
    header = options.get("has_header", True) is not False
    with file.path.open(newline="", encoding="utf-8-sig", errors="replace") as text:
        parsed = _Lines(text)
        reader = _parser(parsed, options, strict=True)
        try:
            for _ in reader:
                rows += 1
                parsed.mark()
        except csv.Error:
            return _short(parsed.first)
    return _short(f"row {number if header else rows}")


class _Lines:
    """An iterator over lines that remembers the first line since the last mark."""

    def __init__(self, lines: Any) -> None:
        self._lines = iter(lines)
        self.first = ""
        self._marked = True

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line: str = next(self._lines)
        if self._marked:
            self.first, self._marked = line, False
        return line

    def mark(self) -> None:
        self._marked = True


def _short(text: str) -> str:
    line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
