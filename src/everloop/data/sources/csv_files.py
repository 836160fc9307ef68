"""Read CSV files with types that hold for every row, and errors that name the file, the row and the column.

Polars guesses types from the first rows. A value further down can then silently change a type, or make a query fail
halfway. everloop streams over every value as text before it returns the lazy frame, and a column's type follows from
all of its values (see `csv_types`). The first rows only decide which type is tried first.

No value is changed to make it fit. Dates are parsed only if they begin with the year, because 01/02/2026 can mean two
days. Texts such as 007 stay text. A whole number that a column of fractions would round, a number too large for a
float, and a time finer than microseconds are errors. Notes list what was read as null, and which columns with numbers
stayed text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.sources.csv_scans import CsvScans
from everloop.data.sources.csv_text import plain_text
from everloop.data.sources.csv_types import ColumnType, ColumnTypes
from everloop.data.sources.csv_values import ValueRules, convert
from everloop.data.sources.reading_options import advice, named_types
from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.data.sources.data_files import DataFile


def scan_csv(files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """Check every file and return the rows of each, in the order of `files`, with the same columns and types.

    Args:
        options: those of `polars.scan_csv`, and `encoding`, such as `cp1252` or `utf-16`. `drop_unnamed=True` leaves
            out columns without a name in the header. `null_values` adds to the usual texts for a missing value; an
            empty list switches those off. `try_parse_dates=False` leaves dates as text, and `infer_schema=False`
            leaves every column as text.

    Raises:
        SourceError: a file is empty or ragged, a value does not fit its column's type, or files differ in columns.
        UsageError: an option does not exist, or it names a column or a type that does not exist.
    """
    _check_options(options)
    prepared = [plain_text(file, options) for file in files]
    remaining = prepared[0][1]
    named = named_types({**(remaining.get("dtypes") or {}), **(remaining.get("schema_overrides") or {})})
    if remaining.get("schema") is not None:
        named |= named_types(dict(remaining["schema"]))
    scans = CsvScans([file for file, _ in prepared], remaining)
    scans.check_column_names(named)
    nulls = remaining.get("null_values")
    rules = ValueRules(
        usual_nulls=not (isinstance(nulls, list | tuple | dict) and not nulls),
        dates=bool(remaining.get("try_parse_dates", True)),
        comma=bool(remaining.get("decimal_comma", False)),
    )
    column_types = ColumnTypes(scans, rules, ignore_errors=bool(remaining.get("ignore_errors", False)))
    infer = remaining.get("infer_schema", True) is not False and remaining.get("infer_schema_length", 1) != 0
    types = column_types.infer([name for name in scans.text_columns if name not in named] if infer else [])
    for name in scans.text_columns:
        if name in named:
            types[name] = column_types.check_named(name, named[name])
    return [_typed_frame(scans, index, rules, types) for index in range(len(files))]


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse values for which Polars would fail without naming the option."""
    for name in ("separator", "quote_char", "eol_char"):
        value = options.get(name)
        if value is not None and not (isinstance(value, str) and len(value.encode()) == 1):
            raise UsageError(
                f"{name}={value!r} must be a single one-byte character.",
                **advice("For example {}.", **dict[str, Any]({name: ";"})),
            )
    for name in ("skip_rows", "skip_lines", "n_rows"):
        value = options.get(name)
        if value is not None and not (isinstance(value, int) and value >= 0):
            raise UsageError(f"{name}={value!r} must be a whole number of rows, 0 or more.", help=f"Try {name}=1.")
    nulls = options.get("null_values")
    if not isinstance(nulls, str | list | tuple | dict | None):
        raise UsageError(f"null_values={nulls!r} must be a list of strings.", help=f"Write null_values=['{nulls}'].")
    texts = [*nulls.values()] if isinstance(nulls, dict) else nulls if isinstance(nulls, list | tuple) else []
    wrong = next((value for value in texts if not isinstance(value, str)), None)
    if wrong is not None:
        raise UsageError(f"null_values contains {wrong!r}, which is not a string.", help=f"Write '{wrong}'.")
    for name in ("schema", "schema_overrides", "dtypes"):
        types = options.get(name)
        if types is not None and not hasattr(types, "keys"):
            raise UsageError(
                f"{name}={types!r} must map column names to types.", help=f"For example {name}={{'a': pl.String}}."
            )


def _typed_frame(scans: CsvScans, index: int, rules: ValueRules, types: Mapping[str, ColumnType]) -> pl.LazyFrame:
    """The rows of one file, with its columns converted to their types."""
    columns = scans.columns[index]
    overrides = {
        name: types[name].dtype if name in types and types[name].native else dtype
        for name, dtype in columns.items()
        if isinstance(dtype, pl.String)
    }
    frame = scans.scan(scans.files[index], schema_overrides=overrides)
    converted = [_converted(rules, name, column) for name, column in types.items() if not column.native]
    if converted:
        frame = frame.with_columns(converted)
    return frame if list(columns) == scans.names else frame.select(scans.names)


def _converted(rules: ValueRules, name: str, column: ColumnType) -> pl.Expr:
    if isinstance(column.dtype, pl.Null):
        return pl.lit(None, pl.String()).alias(name)
    if column.value_format is not None and column.value_format.format is not None:
        return column.value_format.value(name)
    return convert(rules, name, column.dtype)
