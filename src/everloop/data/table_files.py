"""Parquet, Arrow, JSON and Delta: files that say their types themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.file_states import literal
from everloop.data.frames import nearest, type_name
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

_Scan = Callable[..., pl.LazyFrame]


def scan_parquet(paths: list[Path], options: Mapping[str, Any]) -> pl.LazyFrame:
    """The rows of Parquet files, in the order of `paths`.

    Raises:
        SourceError: a file is no Parquet, or the files differ in columns or types.
    """
    return _scan_alike(pl.scan_parquet, "parquet", paths, options)


def scan_arrow(paths: list[Path], options: Mapping[str, Any]) -> pl.LazyFrame:
    """The rows of Arrow (Feather 2, IPC) files, in the order of `paths`.

    Raises:
        SourceError: a file is no Arrow file, or the files differ in columns or types.
    """
    return _scan_alike(pl.scan_ipc, "arrow", paths, options)


def scan_delta(paths: list[Path], options: Mapping[str, Any]) -> pl.LazyFrame:
    """The rows of a Delta table, given its folder.

    Raises:
        SourceError: several folders, or a table that cannot be read.
    """
    if len(paths) > 1:
        raise SourceError(f"{len(paths)} Delta tables cannot be read as one.", help="Read each, then pl.concat them.")
    try:
        return pl.scan_delta(str(paths[0]), **options)
    except TypeError as error:
        raise UsageError(f"Reading delta failed: {error}.", help="Options are those of polars.scan_delta.") from error
    except Exception as error:  # deltalake raises classes of its own, and not from one root
        raise SourceError(f"'{paths[0]}' cannot be read as a Delta table: {_first_line(error)}.") from error


def scan_json(paths: list[Path], options: Mapping[str, Any]) -> pl.LazyFrame:
    """The rows of JSON files: one object per line, or one array of objects per file.

    Raises:
        SourceError: a file is empty, a line is no object, or values of a column do not fit together.
    """
    chosen = {"infer_schema_length": None, **options}
    return pl.concat([_read_json(path, chosen) for path in paths], how="diagonal_relaxed")


def _scan_alike(scan: _Scan, form: str, paths: list[Path], options: Mapping[str, Any]) -> pl.LazyFrame:
    schemas = []
    for path in paths:
        try:
            schemas.append(scan(literal(path), **options).collect_schema())
        except TypeError as error:
            raise UsageError(f"Reading {form} failed: {error}.", help="Options are those of Polars.") from error
        except (pl.exceptions.PolarsError, OSError) as error:
            raise SourceError(f"'{path}' cannot be read as {form}: {_first_line(error)}.") from error
    if options.get("missing_columns") is None:
        for path, schema in zip(paths, schemas, strict=True):
            _compare(paths[0], schemas[0], path, schema)
    if all(list(schema.items()) == list(schemas[0].items()) for schema in schemas):
        return scan([literal(path) for path in paths], **options)
    scans = [scan(literal(path), **options) for path in paths]
    if options.get("missing_columns") is None:
        scans = [each.select(schemas[0].names()) for each in scans]
    return pl.concat(scans, how="diagonal_relaxed")


def _compare(first: Path, expected: pl.Schema, path: Path, schema: pl.Schema) -> None:
    for name in expected.keys() ^ schema.keys():
        lacking, having, known = (path, first, schema) if name in expected else (first, path, expected)
        raise SourceError(f"'{lacking}' has no column '{name}', which '{having}' has.", help=nearest(name, known))
    for name, dtype in expected.items():
        if dtype != schema[name] and not (dtype.is_numeric() and schema[name].is_numeric()):
            raise SourceError(
                f"Column '{name}' holds {type_name(dtype)} in '{first}' but {type_name(schema[name])} in '{path}'.",
                help="Read them one by one and cast.",
            )


def _read_json(path: Path, options: Mapping[str, Any]) -> pl.LazyFrame:
    with path.open("rb") as file:
        start = file.read(4096).lstrip()[:1]
    if not start:
        raise SourceError(f"'{path}' is empty.", help="Remove it, or write one JSON object per line.")
    try:
        if start == b"[":
            return pl.read_json(path, **options).lazy()
        scan = pl.scan_ndjson(literal(path), **options)
        # Reads every line now: a bad one would fail in the middle of a query, without its number.
        scan.null_count().collect(engine="streaming")
    except TypeError as error:
        raise UsageError(f"Reading json failed: {error}.", help="Options are those of polars.scan_ndjson.") from error
    except pl.exceptions.PolarsError as error:
        raise SourceError(_explain(path, error), help="Correct it, or name types with schema_overrides={…}.") from error
    return scan


def _explain(path: Path, error: Exception) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as problem:
                return f"Line {number} of '{path}' is no JSON: {problem.msg}."
            if not isinstance(value, dict):
                return f"Line {number} of '{path}' is no JSON object."
    return f"'{path}' cannot be read as json: {_first_line(error)}."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
