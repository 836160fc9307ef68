"""CSV files: types that hold for every row, and errors that name the file, the row and the column.

Polars reads lazily and guesses types from the first rows, so a bad row far down would fail in the middle of a
query, as a byte offset. Here each file is parsed once, streaming, before the lazy frame is handed out. Types are
guessed from the first 10,000 rows; numbers may turn out wider later (whole to fractional), anything else is an
error, because a number column that silently became text is worse. A row that is too short, which Polars fills with
nulls, is an error like one that is too long.

Nothing is bent to fit: dates are parsed where they begin with the year, for 01/02/2026 is two days; texts such as 007
stay texts; a whole number that a column of fractions would round, and a fraction too large for one, are errors.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.csv_text import check_text, recoded, refused_bytes
from everloop.data.file_states import literal
from everloop.data.frames import nearest, type_name
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_GUESS_ROWS = 10_000
# With other options the shape of a row is not ours to judge.
_PLAIN_OPTIONS = frozenset(
    {"separator", "quote_char", "null_values", "schema_overrides", "try_parse_dates", "infer_schema_length", "n_rows"}
)
_EXACT = float(1 << 53)
"""Up to here every whole number has a float of its own."""
_UNIT = "\x1f"  # a separator that no text has: reads whole lines

Schema = dict[str, pl.DataType]


def scan_csv(paths: list[Path], options: Mapping[str, Any]) -> pl.LazyFrame:
    """Check every file and return the rows of all, in the order of `paths`.

    Args:
        options: of `polars.scan_csv`, and `encoding`, such as `cp1252` or `utf-16`. Dates are parsed unless
            `try_parse_dates=False`.

    Raises:
        SourceError: a file is empty or ragged, a value does not fit its column's type, or files differ in columns.
    """
    chosen = {"try_parse_dates": True, "infer_schema_length": _GUESS_ROWS, **options}
    encoding = str(chosen.pop("encoding", "utf8"))
    if encoding not in ("utf8", "utf8-lossy"):
        paths = [recoded(path, encoding) for path in paths]
    elif encoding == "utf8-lossy":
        chosen["encoding"] = encoding
    else:
        for path in paths:
            check_text(path, chosen)
    guesses = [(path, _guess(path, chosen)) for path in paths]
    schema = _agree(guesses)
    # What the caller has named is not ours to widen, and settled types must not be guessed again.
    named = {*(chosen.get("schema_overrides") or {}), *(chosen.get("schema") or {})}
    settled = {name: value for name, value in chosen.items() if name not in ("infer_schema_length", "schema_overrides")}
    wholes: dict[str, Path] = {}
    for path, guess in guesses:
        schema = _check(path, list(guess), schema, settled, named, wholes)
    for name, path in wholes.items():
        if schema[name].is_float() and name not in named:
            raise _inexact(path, name, settled)
    scans = []
    for path, guess in guesses:
        scan = pl.scan_csv(literal(path), **{**settled, "schema": {name: schema[name] for name in guess}})
        scans.append(scan if list(guess) == list(schema) else scan.select(list(schema)))
    return scans[0] if len(scans) == 1 else pl.concat(scans)


def _guess(path: Path, options: Mapping[str, Any], **changes: Any) -> Schema:
    try:
        guess = dict(pl.scan_csv(literal(path), **{**options, **changes}).collect_schema())
    except pl.exceptions.NoDataError as error:
        raise SourceError(
            f"'{path}' is empty: it has not even a header.", help="Remove it, or write the header."
        ) from error
    except TypeError as error:
        raise UsageError(f"Reading csv failed: {error}.", help="Options are those of polars.scan_csv.") from error
    except pl.exceptions.PolarsError as error:
        raise _explain(path, {}, options, error) from error
    return _as_written(path, guess, options)


def _as_written(path: Path, guess: Schema, options: Mapping[str, Any]) -> Schema:
    """Texts where the first rows show that a number or a date would say something else."""
    named = {*(options.get("schema_overrides") or {}), *(options.get("schema") or {})}
    doubtful = {
        name: dtype
        for name, dtype in guess.items()
        if name not in named and (dtype.is_integer() or isinstance(dtype, pl.Date | pl.Datetime))
    }
    if not doubtful:
        return guess
    texts = _texts(path, options).select(list(doubtful)).head(_GUESS_ROWS)
    asked = [
        (_zeroed(name) if dtype.is_integer() else ~pl.col(name).str.contains(r"^\s*\d{4}\D")).any().alias(name)
        for name, dtype in doubtful.items()
    ]
    try:
        changed = texts.select(asked).collect().row(0, named=True)
    except pl.exceptions.PolarsError:
        return guess  # ragged: told later, with the row
    return {name: pl.String() if changed.get(name) else dtype for name, dtype in guess.items()}


def _zeroed(name: str) -> pl.Expr:
    """Digits behind a zero, as in 007: a name more often than a number."""
    text = pl.col(name).str.strip_chars()
    return text.str.starts_with("0") & (text.str.len_bytes() > 1)


def _texts(path: Path, options: Mapping[str, Any]) -> pl.LazyFrame:
    raw = {name: value for name, value in options.items() if name not in ("schema", "infer_schema_length")}
    raw.pop("schema_overrides", None)
    return pl.scan_csv(literal(path), **{**raw, "infer_schema": False, "try_parse_dates": False})


def _agree(guesses: list[tuple[Path, Schema]]) -> Schema:
    """One schema for all files, in the column order of the first."""
    first, agreed = guesses[0][0], dict(guesses[0][1])
    # A file with a header only says nothing about types: Polars calls everything text.
    blank = {path for path, _ in guesses if _has_no_rows(path)}
    typed = first not in blank
    for path, schema in guesses[1:]:
        for name in (
            *(name for name in agreed if name not in schema),
            *(name for name in schema if name not in agreed),
        ):
            lacking, having = (path, first) if name in agreed else (first, path)
            raise SourceError(
                f"'{lacking}' has no column '{name}', which '{having}' has.",
                help=nearest(name, schema if lacking == path else agreed),
            )
        if path in blank:
            continue
        for name, dtype in schema.items():
            wider = dtype if not typed else _wider(agreed[name], dtype)
            if wider is None:
                raise SourceError(
                    f"Column '{name}' holds {type_name(agreed[name])} in '{first}' but {type_name(dtype)} in '{path}'.",
                    help=f"Name its type: schema_overrides={{'{name}': pl.String}}",
                )
            agreed[name] = wider
        typed = True
    return agreed


def _has_no_rows(path: Path) -> bool:
    with path.open("rb") as file:
        file.readline()
        return not file.readline().strip()


def _wider(one: pl.DataType, other: pl.DataType) -> pl.DataType | None:
    if one == other:
        return one
    if one.is_numeric() and other.is_numeric():
        return pl.Int64() if one.is_integer() and other.is_integer() else pl.Float64()
    return None


def _check(
    path: Path,
    columns: list[str],
    schema: Schema,
    options: Mapping[str, Any],
    named: set[str],
    wholes: dict[str, Path],
) -> Schema:
    """Parse all of one file; return the schema, with types widened where this file needs it.

    Args:
        wholes: takes up columns of whole numbers that no float could hold, and a file with one.
    """
    own = {name: schema[name] for name in columns}
    scan = pl.scan_csv(literal(path), **{**options, "schema": own})
    numbers = [name for name, dtype in own.items() if dtype.is_numeric() and name not in named]
    most = [pl.col(name).cast(pl.Float64).abs().max().alias(f"most {name}") for name in numbers]
    asked = [pl.col(name).null_count().alias(f"nulls {name}") for name in columns]
    try:
        found = scan.select(*asked, *most).collect(engine="streaming").row(0, named=True)
    except pl.exceptions.PolarsError as error:
        whole = _guess(path, options, infer_schema_length=None)
        free = {name: dtype for name, dtype in own.items() if name not in named}
        wider = {**own, **{name: _wider(dtype, whole.get(name, dtype)) or dtype for name, dtype in free.items()}}
        if wider == own:
            raise _explain(path, own, options, error) from error
        return _check(path, columns, {**schema, **wider}, options, named, wholes)
    if options.keys() <= _PLAIN_OPTIONS and len(columns) > 1 and found[f"nulls {columns[-1]}"]:
        _refuse_short_rows(path, len(columns), options)
    for name in numbers:
        if (found[f"most {name}"] or 0.0) < _EXACT:
            continue
        if own[name].is_integer():
            wholes.setdefault(name, path)
        elif (problem := _find_inexact(path, name, options)) is not None:
            raise problem
    _refuse_zeroed(path, [name for name in numbers if own[name].is_integer()], options)
    return schema


def _refuse_zeroed(path: Path, columns: list[str], options: Mapping[str, Any]) -> None:
    if not columns:
        return
    texts = _texts(path, options).select(columns)
    found = texts.select(_zeroed(name).any() for name in columns).collect(engine="streaming").row(0, named=True)
    for name in columns:
        if found[name]:
            row, value = _first(path, name, _zeroed(name), options)
            raise SourceError(
                f"Column '{name}' holds whole numbers, but row {row} of '{path}' says '{value}', which is no such one.",
                help=f"Name its type: schema_overrides={{'{name}': pl.String}}",
            )


def _find_inexact(path: Path, name: str, options: Mapping[str, Any]) -> SourceError | None:
    """What a column of fractions says that its numbers do not: whole numbers that are rounded, and overflows."""
    text = pl.col(name).str.strip_chars()
    whole = text.cast(pl.Int128, strict=False)
    rounded = whole.is_not_null() & (whole.cast(pl.Float64).cast(pl.Int128, strict=False) != whole)
    over = text.cast(pl.Float64, strict=False).is_infinite() & text.str.contains(r"\d")
    wrong = (rounded | over).fill_null(value=False)
    if not _texts(path, options).select(wrong.any()).collect(engine="streaming").item():
        return None
    return _told_inexact(path, name, *_first(path, name, wrong, options))


def _inexact(path: Path, name: str, options: Mapping[str, Any]) -> SourceError:
    most = pl.col(name).str.strip_chars().cast(pl.Float64, strict=False).abs() >= _EXACT
    return _told_inexact(path, name, *_first(path, name, most, options))


def _told_inexact(path: Path, name: str, row: int, value: str) -> SourceError:
    return SourceError(
        f"Column '{name}' holds float64, but row {row} of '{path}' says '{value}', which no float64 can hold.",
        help=f"Name its type: schema_overrides={{'{name}': pl.String}}, or pl.Float64 to have it rounded.",
    )


def _first(path: Path, name: str, wrong: pl.Expr, options: Mapping[str, Any]) -> tuple[int, str]:
    rows = _texts(path, options).select(name).with_row_index("__row").filter(wrong).head(1).collect()
    row, value = rows.row(0)
    return int(row) + 1, str(value)


def _refuse_short_rows(path: Path, width: int, options: Mapping[str, Any]) -> None:
    separator = options.get("separator", ",")
    lines = pl.scan_csv(literal(path), separator=_UNIT, quote_char=None, has_header=False, schema={"line": pl.String})
    text = pl.col("line").str.strip_chars_end("\r")
    short = (text.str.count_matches(separator, literal=True) < width - 1) & (text.str.len_bytes() > 0)
    if not lines.select(short.any()).collect(engine="streaming").item():
        return
    # Short lines may be parts of a quoted value that spans lines: only a real parser knows.
    row = _ragged_row(path, width, options)
    if row is not None:
        raise _ragged(path, width, row)


def _explain(path: Path, schema: Schema, options: Mapping[str, Any], error: Exception) -> SourceError:
    """Turn what Polars says about a file into the row and the column."""
    said = str(error)
    if "utf-8" in said or "utf8" in said:
        found_bytes = refused_bytes(path)
        if found_bytes is not None:
            return found_bytes
    if "found more fields" in said:
        row = _ragged_row(path, len(schema) or None, options)
        if row is not None:
            return _ragged(path, len(schema) or None, row)
    found = re.search(r"could not parse `(.*)` as dtype `(.+?)` at column '(.*?)'", said, re.DOTALL)
    if found is None:
        return SourceError(f"'{path}' cannot be read as csv: {said.splitlines()[0]}.")
    value, name = found[1], found[3]
    if "\n" in value and value.startswith('"'):
        start = value.split("\n", 1)[0]
        return SourceError(f"A quote in '{path}' is never closed: it opens at {start!r}.", help="Close or double it.")
    place = _row_of(path, name, value, options)
    where = f"row {place} of '{path}'" if place is not None else f"'{path}'"
    kind = type_name(schema[name]) if name in schema else found[2]
    return SourceError(
        f"Column '{name}' holds {kind}, but {where} says '{value}'.",
        help=f"Correct it, or say what it means: null_values=['{value}'], or schema_overrides={{'{name}': pl.String}}",
    )


def _row_of(path: Path, name: str, value: str, options: Mapping[str, Any]) -> int | None:
    """The first data row, counted from 1, that holds `value` in the column."""
    raw = {key: item for key, item in options.items() if key not in ("schema", "infer_schema_length")}
    texts = pl.scan_csv(literal(path), **{**raw, "infer_schema": False, "try_parse_dates": False}).with_row_index(
        "__row"
    )
    match = texts.filter(pl.col(name).str.strip_chars() == value.strip().strip('"')).select("__row").head(1)
    try:
        rows = match.collect().get_column("__row")
    except pl.exceptions.PolarsError:
        return None  # ragged as well: the message does without the row
    return int(rows[0]) + 1 if len(rows) else None


def _ragged_row(path: Path, width: int | None, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Number, from 1 without the header, and field count of the first row of another width than the header."""
    quote = options.get("quote_char", '"')
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(
            file,
            delimiter=options.get("separator", ","),
            quotechar=quote,
            quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL,
        )
        expected = width or len(next(rows))
        if width is not None:
            next(rows, None)
        for number, row in enumerate(rows, 1):
            if row and len(row) != expected:
                return number, len(row)
    return None


def _ragged(path: Path, width: int | None, row: tuple[int, int]) -> SourceError:
    number, fields = row
    expected = f", not {width}" if width else ", unlike the header"
    return SourceError(
        f"Row {number} of '{path}' has {fields} field{'s' if fields != 1 else ''}{expected}.",
        help="Correct it, or pass truncate_ragged_lines=True to take short and long rows as they are.",
    )
