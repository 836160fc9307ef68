"""Partition columns: values in folder names such as `year=2025/month=01/part.parquet`, as Hive, Spark and pandas write.

Only the folders directly above a file count. Their values get types as in a CSV file: a number or a date if all of
them are, text if one begins with a zero.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import unquote

import polars as pl

from everloop.data.sources.csv_values import (
    ValueRules,
    convert,
    count_expressions,
    counts_from,
    decide,
    precision_expressions,
    precision_from,
)
from everloop.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.data.sources.data_files import DataFile

NULL = "__HIVE_DEFAULT_PARTITION__"
_RULES = ValueRules(usual_nulls=False)
_INT64_DIGITS = 18
Partition = tuple[tuple[str, str | None], ...]


def partition_of(path: str) -> Partition:
    """The partition columns of a file and their values, still as text."""
    found: list[tuple[str, str | None]] = []
    for part in reversed(PurePath(path).parent.parts):
        name, equals, value = part.partition("=")
        if not equals or not name:
            break
        found.append((unquote(name), None if value == NULL else unquote(value)))
    return tuple(reversed(found))


def with_partitions(files: Sequence[DataFile], frames: Sequence[pl.LazyFrame]) -> list[pl.LazyFrame]:
    """The rows of each file, followed by its partition columns.

    Raises:
        SourceError: the folders of different files name different columns, or a folder contradicts a column of the
            file.
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
                f"The folders of '{files[0]}' name the columns {one}, but those of '{file}' name {other}.",
                help="Read them separately, or move the files into folders that name the same columns.",
            )
    values = pl.DataFrame(
        {name: [dict(file.partition)[name] for file in files] for name in names},
        schema=dict.fromkeys(names, pl.String()),
    )
    typed = values.select(_typed(values, name) for name in names)
    result = []
    for index, (file, frame) in enumerate(zip(files, frames, strict=True)):
        schema = frame.collect_schema()
        literals = [pl.lit(typed[name][index], typed.schema[name]).alias(name) for name in names if name not in schema]
        for name in names:
            if name in schema:
                _refuse_contradiction(file, frame, name, dict(file.partition)[name])
        result.append(frame.with_columns(literals))
    return result


def _typed(values: pl.DataFrame, name: str) -> pl.Expr:
    row = values.select(*count_expressions(name, _RULES), *precision_expressions(name, _RULES)).row(0, named=True)
    verdict, kind = decide(counts_from(name, row, _RULES), lambda _: values.height)
    precision = precision_from(name, row)
    if verdict != "typed" or precision.digits > _INT64_DIGITS or precision.risky or precision.finer:
        return pl.col(name)
    if kind == "number":
        return convert(_RULES, name, pl.Float64() if precision.fraction else pl.Int64())
    return _RULES.parsed(pl.col(name), kind).alias(name)


def _refuse_contradiction(file: DataFile, frame: pl.LazyFrame, name: str, value: str | None) -> None:
    """The file's own column is used, but it must agree with the folder."""
    text = pl.col(name).cast(pl.String, strict=False)
    same = text.is_null() if value is None else (text == value) | (pl.col(name) == _literal(value, frame, name))
    other = frame.select(pl.col(name).filter(~same.fill_null(value=False)).head(1)).collect(engine="streaming")
    if len(other):
        folder = f"{name}={NULL if value is None else value}"
        raise SourceError(
            f"'{file}' has {other.item()!r} in column '{name}', but its folder is called '{folder}'.",
            help="Correct one of them, or rename the column.",
        )


def _literal(value: str, frame: pl.LazyFrame, name: str) -> pl.Expr:
    dtype = frame.collect_schema()[name]
    cast = pl.Series([value]).cast(dtype, strict=False)[0] if dtype.is_numeric() else None
    return pl.lit(cast, dtype)
