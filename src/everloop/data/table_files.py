"""Parquet, Arrow, JSON and Delta: files that say their types themselves."""

from __future__ import annotations

import json
import re
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
    _refuse_rounding(list(zip(paths, scans, strict=True)), schemas)
    if options.get("missing_columns") is None:
        scans = [each.select(schemas[0].names()) for each in scans]
    return pl.concat(scans, how="diagonal_relaxed")


def _compare(first: Path, expected: pl.Schema, path: Path, schema: pl.Schema) -> None:
    for name in (
        *(name for name in expected if name not in schema),
        *(name for name in schema if name not in expected),
    ):
        lacking, having, known = (path, first, schema) if name in expected else (first, path, expected)
        raise SourceError(f"'{lacking}' has no column '{name}', which '{having}' has.", help=nearest(name, known))
    for name, dtype in expected.items():
        if dtype != schema[name] and not _go_together(dtype, schema[name]):
            raise SourceError(
                f"Column '{name}' holds {type_name(dtype)} in '{first}' but {type_name(schema[name])} in '{path}'.",
                help="Read them one by one and cast.",
            )


def _go_together(one: pl.DataType, other: pl.DataType) -> bool:
    """Whether a column may hold one type in one file and another in the next."""
    decimals = one.is_decimal() + other.is_decimal()
    return one.is_numeric() and other.is_numeric() and decimals != 1


def _refuse_rounding(scans: list[tuple[Path, pl.LazyFrame]], schemas: list[pl.Schema]) -> None:
    """Where files hold whole numbers and others fractions, the whole ones become floats: not all can."""
    for name in schemas[0]:
        kinds = [schema[name] for schema in schemas if name in schema]
        if not any(kind.is_float() for kind in kinds):
            continue
        for (path, scan), schema in zip(scans, schemas, strict=True):
            if not schema.get(name, pl.Null()).is_integer():
                continue
            most = scan.select(pl.col(name).cast(pl.Int128).abs().max()).collect(engine="streaming").item()
            if most is not None and most > 1 << 53:
                raise SourceError(
                    f"Column '{name}' holds {most} in '{path}' and fractions in another file: float64 cannot hold it.",
                    help="Read them one by one and cast.",
                )


def _read_json(path: Path, options: Mapping[str, Any]) -> pl.LazyFrame:
    with path.open("rb") as file:
        start = file.read(4096).lstrip()[:1]
    if not start:
        raise SourceError(f"'{path}' is empty.", help="Remove it, or write one JSON object per line.")
    try:
        if start == b"[":
            return _read_array(path, options)
        scan = pl.scan_ndjson(literal(path), **options)
        # Reads every line now: a bad one would fail in the middle of a query, without its number.
        texts = [name for name, dtype in scan.collect_schema().items() if isinstance(dtype, pl.String)]
        scan.null_count().collect(engine="streaming")
    except TypeError as error:
        raise UsageError(f"Reading json failed: {error}.", help="Options are those of polars.scan_ndjson.") from error
    except pl.exceptions.PolarsError as error:
        raise SourceError(_explain(path, error), help="Correct it, or name types with schema_overrides={…}.") from error
    _refuse_mixed(path, [name for name in texts if name not in (options.get("schema_overrides") or {})])
    return scan


def _read_array(path: Path, options: Mapping[str, Any]) -> pl.LazyFrame:
    frame = pl.read_json(path, **options)
    texts = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.String)]
    texts = [name for name in texts if name not in (options.get("schema_overrides") or {})]
    for number, item in enumerate(json.loads(path.read_bytes()) if texts else (), 1):
        for name in texts:
            value = item.get(name)
            if value is not None and not isinstance(value, str):
                raise SourceError(
                    f"Column '{name}' holds texts, but object {number} of '{path}' says {json.dumps(value)}.",
                    help=f"Correct it, or name its type: schema_overrides={{'{name}': pl.String}}",
                )
    return frame.lazy()


def _refuse_mixed(path: Path, texts: list[str]) -> None:
    """A column of texts where a line gives a number or a list: Polars would make text of it."""
    if not texts:
        return
    lines = pl.scan_csv(
        literal(path), separator="\x1f", quote_char=None, has_header=False, schema={"line": pl.String}
    ).with_row_index("__row")
    for name in texts:
        # What may be one: the same words can stand in a text, or deeper.
        key = re.escape(json.dumps(name, ensure_ascii=False))
        maybe = lines.filter(pl.col("line").str.contains(rf"{key}\s*:\s*[-0-9tf\[{{]")).collect(engine="streaming")
        for row, line in maybe.iter_rows():
            value = json.loads(line).get(name)
            if value is not None and not isinstance(value, str):
                raise SourceError(
                    f"Column '{name}' holds texts, but line {row + 1} of '{path}' says {json.dumps(value)}.",
                    help=f"Correct it, or name its type: schema_overrides={{'{name}': pl.String}}",
                )


def _explain(path: Path, error: Exception) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as problem:
                return f"Line {number} of '{path}' is no JSON: {problem.msg}."
            if not isinstance(value, dict) and number == 1 and isinstance(value, list):
                break
            if not isinstance(value, dict):
                return f"Line {number} of '{path}' is no JSON object."
    return f"'{path}' cannot be read as json: {_first_line(error)}."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
