"""Read Parquet, Arrow and Delta: formats that store the types of their columns."""

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
_EVERLOOP_OPTIONS = ("schema_overrides", "missing_columns")


def scan_parquet(files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """The rows of each Parquet file, in the order of `files`, with the same columns and types.

    Raises:
        SourceError: a file is not a Parquet file, or the files differ in columns or have incompatible types.
    """
    return _scan_alike(pl.scan_parquet, "parquet", files, options)


def scan_arrow(files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """The rows of each Arrow file (Feather 2, IPC), in the order of `files`, with the same columns and types.

    Raises:
        SourceError: a file is not an Arrow file, or the files differ in columns or have incompatible types.
    """
    return _scan_alike(pl.scan_ipc, "arrow", files, options)


def scan_delta(paths: list[Path], options: Mapping[str, Any]) -> pl.LazyFrame:
    """The rows of a Delta table, given its folder.

    Raises:
        SourceError: several folders are given, or the table cannot be read.
    """
    if len(paths) > 1:
        raise SourceError(
            f"{len(paths)} Delta tables cannot be read together.", help="Read each one, then join them with pl.concat."
        )
    polars_options = {name: value for name, value in options.items() if name != "schema_overrides"}
    try:
        scan = pl.scan_delta(str(paths[0]), **polars_options)
    except TypeError as error:
        raise UsageError(
            f"Reading delta failed: {error}.", help="The options are those of polars.scan_delta."
        ) from error
    except Exception as error:  # the exceptions of deltalake have no common base class
        raise SourceError(f"'{paths[0]}' cannot be read as a Delta table: {_first_line(error)}.") from error
    file = DataFile.of(paths[0])
    return _cast([(file, scan, scan.collect_schema())], _named(options, file, scan.collect_schema()))[0]


def _scan_alike(scan: _Scan, format: str, files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    # everloop reads partition columns itself, in the same way for every format.
    polars_options = {"hive_partitioning": False}
    polars_options |= {name: value for name, value in options.items() if name not in _EVERLOOP_OPTIONS}
    schemas = []
    for file in files:
        try:
            schemas.append(scan(literal(file.path), **polars_options).collect_schema())
        except TypeError as error:
            raise UsageError(
                f"Reading {format} failed: {error}.", help="The options are those of the Polars reader."
            ) from error
        except (pl.exceptions.PolarsError, OSError) as error:
            raise SourceError(f"'{file}' cannot be read as {format}: {_first_line(error)}.") from error
    if options.get("missing_columns") != "insert":
        for file, schema in zip(files, schemas, strict=True):
            _compare(files[0], schemas[0], file, schema)
    named = _named(options, files[0], {name: None for schema in schemas for name in schema})
    if not named and all(list(schema.items()) == list(schemas[0].items()) for schema in schemas):
        if any(file.partition for file in files):
            return [scan(literal(file.path), **polars_options) for file in files]
        return [scan([literal(file.path) for file in files], **polars_options)]
    opened = [
        (file, scan(literal(file.path), **polars_options), schema) for file, schema in zip(files, schemas, strict=True)
    ]
    return _cast(opened, _common_types(opened, named))


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


_Opened = list[tuple[DataFile, pl.LazyFrame, pl.Schema]]


def _common_types(opened: _Opened, named: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """The type of every column that can hold the values of all files.

    Raises:
        SourceError: a column has no such type.
    """
    types: dict[str, pl.DataType] = dict(named)
    for name in {name: None for _, _, schema in opened for name in schema}:
        if name in named:
            continue
        first = next((file, schema[name]) for file, _, schema in opened if name in schema)
        common: pl.DataType = first[1]
        for file, _, schema in opened:
            if name not in schema:
                continue
            if isinstance(first[1], pl.Null):
                first = file, schema[name]
            wider = unified(common, schema[name])
            if wider is None:
                raise SourceError(
                    f"Column '{name}' is {type_name(first[1])} in '{first[0]}' but {type_name(schema[name])} "
                    f"in '{file}'.",
                    **advice(
                        "Write the files with one type, or read the column as text, which keeps every value, with {}.",
                        schema_overrides={name: pl.String()},
                    ),
                )
            common = wider
        types[name] = common
        _refuse_loss(opened, name, common)
    return types


def _refuse_loss(opened: _Opened, name: str, common: pl.DataType) -> None:
    """Refuse values that the common type cannot hold: long whole numbers, and times far from today."""
    for file, scan, schema in opened:
        dtype = schema.get(name)
        if dtype is None or dtype == common:
            continue
        column = pl.col(name)
        if common.is_float() and dtype.is_integer():
            wide = pl.UInt128 if dtype == pl.UInt128() else pl.Int128
            number = column.cast(wide)
            # A null comes from a float beyond the integer type.
            lost = number.cast(pl.Float64).cast(wide, strict=False).ne_missing(number)
            reason = "another file has fractions, and float64 cannot hold both exactly"
        elif common == pl.Int64() and dtype == pl.UInt64():
            lost, reason = column > (1 << 63) - 1, "another file has signed numbers, and int64 cannot hold both"
        elif common == pl.Int128() and dtype == pl.UInt128():
            lost = column > pl.lit((1 << 127) - 1, pl.UInt128)
            reason = "another file has signed numbers, and int128 cannot hold both"
        elif isinstance(common, pl.Datetime) and common.time_unit == "ns" and isinstance(dtype, pl.Datetime):
            lost = (column.dt.year() < _NS_YEARS[0]) | (column.dt.year() > _NS_YEARS[1])
            reason = "another file has nanoseconds, which only reach from 1678 to 2262"
        else:
            continue
        found = scan.select(column.filter(lost.fill_null(value=False)).head(1)).collect(engine="streaming")
        if len(found):
            raise SourceError(
                f"Column '{name}' contains {found.item()} in '{file}', but {reason}.",
                **advice("To read it as text, pass {}.", schema_overrides={name: pl.String()}),
            )


_NS_YEARS = (1678, 2261)


def _cast(opened: _Opened, types: Mapping[str, pl.DataType]) -> list[pl.LazyFrame]:
    """Every file with the same columns, in the same order and with the same types."""
    names = list({name: None for _, _, schema in opened for name in schema})
    scans = []
    for file, scan, schema in opened:
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
    """Refuse a type that cannot hold every value of the column."""
    if unified(before, after) == after or isinstance(after, pl.String):
        return
    lost = pl.col(name).filter(pl.col(name).is_not_null() & pl.col(name).cast(after, strict=False).is_null()).head(1)
    try:
        found = scan.select(lost).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            f"Column '{name}' of '{file}' is {type_name(before)}, which cannot be converted to {type_name(after)}: "
            f"{_first_line(error)}."
        ) from error
    if len(found):
        raise SourceError(
            f"Column '{name}' of '{file}' contains {found.item()!r}, which {type_name(after)} cannot hold.",
            help="Name a wider type for the column in schema_overrides=.",
            option_help="Name a wider type for the column with --schema.",
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
