"""Parquet, Arrow and Delta: files that say their types themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.sources.data_files import DataFile
from everloop.data.sources.file_states import literal
from everloop.data.sources.reading_options import advice, named_types
from everloop.data.sources.unified_types import unified
from everloop.data.table_inputs import nearest, type_name
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

_Scan = Callable[..., pl.LazyFrame]
_OURS = ("schema_overrides", "missing_columns")


def scan_parquet(files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """The rows of Parquet files, of each by itself, in the order of `files`, with the same columns and types.

    Raises:
        SourceError: a file is no Parquet, or the files differ in columns, or in types that do not go together.
    """
    return _scan_alike(pl.scan_parquet, "parquet", files, options)


def scan_arrow(files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """The rows of Arrow (Feather 2, IPC) files, likewise.

    Raises:
        SourceError: a file is no Arrow file, or the files differ in columns, or in types that do not go together.
    """
    return _scan_alike(pl.scan_ipc, "arrow", files, options)


def scan_delta(paths: list[Path], options: Mapping[str, Any]) -> pl.LazyFrame:
    """The rows of a Delta table, given its folder.

    Raises:
        SourceError: several folders, or a table that cannot be read.
    """
    if len(paths) > 1:
        raise SourceError(f"{len(paths)} Delta tables cannot be read as one.", help="Read each, then pl.concat them.")
    given = {name: value for name, value in options.items() if name != "schema_overrides"}
    try:
        scan = pl.scan_delta(str(paths[0]), **given)
    except TypeError as error:
        raise UsageError(f"Reading delta failed: {error}.", help="Options are those of polars.scan_delta.") from error
    except Exception as error:  # deltalake raises classes of its own, and not from one root
        raise SourceError(f"'{paths[0]}' cannot be read as a Delta table: {_first_line(error)}.") from error
    file = DataFile.of(paths[0])
    return _cast([(file, scan, scan.collect_schema())], _named(options, file, scan.collect_schema()))[0]


def _scan_alike(scan: _Scan, form: str, files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    # A folder's name is no column of Polars': everloop reads it, for every format alike.
    hive = {"hive_partitioning": False}
    given = {**hive, **{name: value for name, value in options.items() if name not in _OURS}}
    schemas = []
    for file in files:
        try:
            schemas.append(scan(literal(file.path), **given).collect_schema())
        except TypeError as error:
            raise UsageError(f"Reading {form} failed: {error}.", help="Options are those of Polars.") from error
        except (pl.exceptions.PolarsError, OSError) as error:
            raise SourceError(f"'{file}' cannot be read as {form}: {_first_line(error)}.") from error
    inserted = options.get("missing_columns") == "insert"
    if not inserted:
        for file, schema in zip(files, schemas, strict=True):
            _compare(files[0], schemas[0], file, schema)
    named = _named(options, files[0], {name: None for schema in schemas for name in schema})
    if not named and all(list(schema.items()) == list(schemas[0].items()) for schema in schemas):
        if any(file.partition for file in files):
            return [scan(literal(file.path), **given) for file in files]
        return [scan([literal(file.path) for file in files], **given)]
    held = [(file, scan(literal(file.path), **given), schema) for file, schema in zip(files, schemas, strict=True)]
    types = _together(held, named)
    return _cast(held, types)


def _named(options: Mapping[str, Any], file: DataFile, known: Mapping[str, Any]) -> dict[str, pl.DataType]:
    named = named_types(options.get("schema_overrides") or {})
    for name in named:
        if name not in known:
            raise UsageError(f"'{file}' has no column '{name}', which an option names.", help=nearest(name, known))
    return named


def _compare(first: DataFile, expected: pl.Schema, file: DataFile, schema: pl.Schema) -> None:
    for name in (
        *(name for name in expected if name not in schema),
        *(name for name in schema if name not in expected),
    ):
        lacking, having, known = (file, first, schema) if name in expected else (first, file, expected)
        raise SourceError(f"'{lacking}' has no column '{name}', which '{having}' has.", help=nearest(name, known))


_Held = list[tuple[DataFile, pl.LazyFrame, pl.Schema]]


def _together(held: _Held, named: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """The type of every column that holds what all files say.

    Raises:
        SourceError: there is none.
    """
    types: dict[str, pl.DataType] = dict(named)
    for name in {name: None for _, _, schema in held for name in schema}:
        if name in named:
            continue
        first = next((file, schema[name]) for file, _, schema in held if name in schema)
        together: pl.DataType = first[1]
        for file, _, schema in held:
            if name not in schema:
                continue
            if isinstance(first[1], pl.Null):
                first = file, schema[name]
            wider = unified(together, schema[name])
            if wider is None:
                raise SourceError(
                    f"Column '{name}' holds {type_name(first[1])} in '{first[0]}' but {type_name(schema[name])} "
                    f"in '{file}'.",
                    **advice(
                        "Write the files with one type, or take the column as text, which keeps every value, with {}.",
                        schema_overrides={name: pl.String()},
                    ),
                )
            together = wider
        types[name] = together
        _refuse_loss(held, name, together)
    return types


def _refuse_loss(held: _Held, name: str, together: pl.DataType) -> None:
    """What a file holds that the common type cannot: long whole numbers, times far from today."""
    for file, scan, schema in held:
        dtype = schema.get(name)
        if dtype is None or dtype == together:
            continue
        column = pl.col(name)
        if together.is_float() and dtype.is_integer():
            number = column.cast(pl.Int128)
            lost = number.cast(pl.Float64).cast(pl.Int128, strict=False) != number
            said = "and fractions in another file: float64 cannot hold it"
        elif together.is_integer() and dtype == pl.UInt64():
            lost, said = column > (1 << 63) - 1, "and signed numbers in another file: int64 cannot hold it"
        elif isinstance(together, pl.Datetime) and together.time_unit == "ns" and isinstance(dtype, pl.Datetime):
            lost = (column.dt.year() < _NS_YEARS[0]) | (column.dt.year() > _NS_YEARS[1])
            said = "and nanoseconds in another file, which end in 2262"
        else:
            continue
        found = scan.select(column.filter(lost.fill_null(value=False)).head(1)).collect(engine="streaming")
        if len(found):
            raise SourceError(
                f"Column '{name}' holds {found.item()} in '{file}' {said}.",
                **advice("Take it as text, with {}.", schema_overrides={name: pl.String()}),
            )


_NS_YEARS = (1678, 2261)


def _cast(held: _Held, types: Mapping[str, pl.DataType]) -> list[pl.LazyFrame]:
    """Every file with the same columns, in the same order and types."""
    names = list({name: None for _, _, schema in held for name in schema})
    scans = []
    for file, scan, schema in held:
        columns = []
        for name in names:
            dtype = types.get(name, schema.get(name))
            if name not in schema:
                columns.append(pl.lit(None, dtype).alias(name))
            elif dtype is None or dtype == schema[name]:
                columns.append(pl.col(name))
            else:
                _refuse_cast(file, scan, name, schema[name], dtype)
                columns.append(pl.col(name).cast(dtype))
        scans.append(scan.select(columns))
    return scans


def _refuse_cast(file: DataFile, scan: pl.LazyFrame, name: str, before: pl.DataType, after: pl.DataType) -> None:
    """A type that was named must hold every value."""
    if unified(before, after) == after or isinstance(after, pl.String):
        return
    lost = pl.col(name).filter(pl.col(name).is_not_null() & pl.col(name).cast(after, strict=False).is_null()).head(1)
    try:
        found = scan.select(lost).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            f"Column '{name}' of '{file}' holds {type_name(before)}, which cannot become {type_name(after)}: "
            f"{_first_line(error)}."
        ) from error
    if len(found):
        raise SourceError(f"Column '{name}' of '{file}' holds {found.item()!r}, which no {type_name(after)} can hold.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
