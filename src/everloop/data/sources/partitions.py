"""Columns that folders name: `year=2025/month=01/part.parquet`, as Hive, Spark and pandas write them.

The folders directly above a file count. Values are typed as in a csv: numbers and dates where all of them are, and
texts where one begins with a zero.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import unquote

import polars as pl

from everloop.data.sources.csv_values import ColumnReading, convert, count_kinds, counted, decide, find_marks, marked
from everloop.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.data.sources.data_files import DataFile

NULL = "__HIVE_DEFAULT_PARTITION__"
_READING = ColumnReading(usual_nulls=False)
_INT64_DIGITS = 18
Partition = tuple[tuple[str, str | None], ...]


def partition_of(path: str) -> Partition:
    """The columns that the folders directly above a file name, with their values as texts."""
    found: list[tuple[str, str | None]] = []
    for part in reversed(PurePath(path).parent.parts):
        name, equals, value = part.partition("=")
        if not equals or not name:
            break
        found.append((unquote(name), None if value == NULL else unquote(value)))
    return tuple(reversed(found))


def with_partitions(files: Sequence[DataFile], frames: Sequence[pl.LazyFrame]) -> list[pl.LazyFrame]:
    """The rows of each file, with the columns that its folders name behind.

    Raises:
        SourceError: folders name different columns, or a column that the file holds with other values.
    """
    if not any(file.partition for file in files):
        return list(frames)
    names = [name for name, _ in files[0].partition]
    for file in files:
        if sorted(name for name, _ in file.partition) != sorted(names):
            one, other = (
                " and ".join(f"'{name}='" for name, _ in each.partition) or "none" for each in (files[0], file)
            )
            raise SourceError(
                f"The folders of '{files[0]}' name the columns {one}, and those of '{file}' {other}.",
                help="Read them apart, or move the files into folders of one kind.",
            )
    values = pl.DataFrame(
        {name: [dict(file.partition)[name] for file in files] for name in names},
        schema=dict.fromkeys(names, pl.String()),
    )
    typed = values.select(_typed(values, name) for name in names)
    made = []
    for place, (file, frame) in enumerate(zip(files, frames, strict=True)):
        held = frame.collect_schema()
        literals = [pl.lit(typed[name][place], typed.schema[name]).alias(name) for name in names]
        for name in names:
            if name in held:
                _refuse_other(file, frame, name, dict(file.partition)[name])
        made.append(frame.with_columns(one for one, name in zip(literals, names, strict=True) if name not in held))
    return made


def _typed(values: pl.DataFrame, name: str) -> pl.Expr:
    row = values.select(*count_kinds(name, _READING), *find_marks(name, _READING)).row(0, named=True)
    verdict, kind = decide(counted(name, row, _READING), lambda _: values.height)
    marks = marked(name, row)
    if verdict != "typed" or marks.digits > _INT64_DIGITS or marks.risky or marks.finer:
        return pl.col(name)
    if kind == "number":
        return convert(_READING, name, pl.Float64() if marks.fraction else pl.Int64())
    return _READING.parsed(pl.col(name), kind).alias(name)


def _refuse_other(file: DataFile, frame: pl.LazyFrame, name: str, value: str | None) -> None:
    """A column in the file counts, as long as its folder says the same."""
    said = pl.col(name).cast(pl.String, strict=False)
    same = said.is_null() if value is None else (said == value) | (pl.col(name) == _literal(value, frame, name))
    other = frame.select(pl.col(name).filter(~same.fill_null(value=False)).head(1)).collect(engine="streaming")
    if len(other):
        folder = f"{name}={NULL if value is None else value}"
        raise SourceError(
            f"'{file}' holds {other.item()!r} in column '{name}', and its folder says '{folder}'.",
            help="Correct one of them, or rename the column.",
        )


def _literal(value: str, frame: pl.LazyFrame, name: str) -> pl.Expr:
    dtype = frame.collect_schema()[name]
    cast = pl.Series([value]).cast(dtype, strict=False)[0] if dtype.is_numeric() else None
    return pl.lit(cast, dtype)
