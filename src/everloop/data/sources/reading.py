"""`read`: files, queries and Python rows as a lazy Polars frame.

What is read from outside is also observed (`everloop.stores.observe`), so that whoever runs a step can tell later
whether it would read the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import polars as pl

from everloop.data.sources.columnar_files import scan_arrow, scan_delta, scan_parquet
from everloop.data.sources.compression import is_compressed, plain_name, unpacked
from everloop.data.sources.csv_files import scan_csv
from everloop.data.sources.cursors import gathered, read_new
from everloop.data.sources.data_files import DataFile
from everloop.data.sources.dlt_sources import is_dlt, open_dlt
from everloop.data.sources.file_states import files_change, files_state, match_files, project_folder
from everloop.data.sources.json_files import scan_json
from everloop.data.sources.partitions import partition_of, with_partitions
from everloop.data.sources.reading_notes import collect_notes
from everloop.data.sources.reading_options import advice
from everloop.data.sources.remote_files import SCHEMES, fetch, is_remote, remote_state
from everloop.data.sources.row_values import find_problem
from everloop.data.sources.snapshot_sources import SCHEME, is_version, scan_version
from everloop.data.sources.sql_sources import is_sql, query_with_state, redacted, sql_change, sql_state
from everloop.data.table_inputs import Frame, as_lazy, as_utc, is_moment, nearest
from everloop.data.time_travel import find_horizon, horizon_state
from everloop.errors import DataError, SourceError, UsageError
from everloop.stores import observe
from everloop.stores.store_urls import mask_url, remembered

__all__ = ["Format", "files_change", "files_state", "read", "sql_change", "sql_state"]

Format = Literal["csv", "parquet", "json", "arrow", "delta"]
Source = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]] | Frame

_SCANS: dict[str, Callable[[list[DataFile], Mapping[str, Any]], list[pl.LazyFrame]]] = {
    "csv": scan_csv,
    "parquet": scan_parquet,
    "json": scan_json,
    "arrow": scan_arrow,
}
_KNOWN = (*_SCANS, "delta")
_FORMATS: dict[str, str] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}


def read(
    source: Source,
    *,
    format: Format | None = None,
    query: str | None = None,
    columns: Sequence[str] | None = None,
    event_time: str | None = None,
    arrival_time: str | None = None,
    time_zone: str | None = None,
    cursor: str | None = None,
    **options: Any,
) -> pl.LazyFrame:
    """Return the rows of a source, lazily.

    Args:
        source: a path, glob, folder or list of them, relative to the project's folder, also compressed (`.gz`, `.bz2`,
            `.xz`, `.zst`, `.zip` with one file in it); addresses of files (`https://`, `s3://`, `gs://`, `az://`; in
            buckets also globs), fetched once, and again when changed; a database with `query`
            (`sqlite:///file.db`, `postgresql://user@host/name`, `mysql+pymysql://…` and what else SQLAlchemy knows);
            a version of a dataset (`everloop:flights@3`); a function with `cursor`; a source of dlt; rows as dicts
            from any iterable; or a table that speaks Arrow (pandas, pyarrow, Polars, DuckDB).
        format: of files whose names do not say it: `csv`, `parquet`, `json` (lines or an array), `arrow`, `delta`.
        query: one SELECT, for a database.
        columns: only these.
        event_time: the column that says when a row's event happened; returned as UTC, text in ISO 8601 included.
        arrival_time: likewise, when the row became known.
        time_zone: of both where they name none, such as `America/New_York`; without it, that is UTC. A time that the
            clocks there skip or show twice is an error.
        cursor: column by which a function returns only new rows, see `everloop.data.sources.cursors`: it is called with
            the greatest value so far, None at first; its rows are kept and added to the earlier ones.
        options: `schema_overrides` names the types of columns, as Polars types or by name (`{"zip": "string"}`).
            Of csv files: `separator`, `encoding`, `null_values` (texts that mean null in every column, or by column,
            besides the usual ones; an empty list switches those off), `skip_rows`, `comment_prefix`, `decimal_comma`,
            `drop_unnamed` (leave out columns that have no name in the header, such as the index that pandas writes).
            Of a database: `engine` (`sqlalchemy`, `adbc`, `connectorx`). Of a dlt source: `resource`. Of the one file
            behind an address: `sha256`. And those of the Polars reader for the format.

    Folders such as `year=2025/` directly above a file are columns. What was read as null, and what stayed text among
    numbers, is told in notes, see `everloop.data.collect_notes`.

    During a replay, rows whose `arrival_time`, or else `event_time`, lies behind the replay's clock do not exist yet.

    Raises:
        SourceError: nothing matches, or a file cannot be read; names the file, the row and the column.
        UsageError: the arguments do not fit the source.
    """
    if cursor is not None:
        if not callable(source):
            raise UsageError(f"cursor= needs a function, not {_called(source)}.", help="def source(since): yield …")
        frame = read_new(source, cursor)
    else:
        frame = _open(source, format, query, options)
    schema = frame.collect_schema()
    for name in (*(columns or ()), *(name for name in (event_time, arrival_time) if name is not None)):
        if name not in schema:
            raise SourceError(f"{_called(source)} has no column '{name}'.", help=nearest(name, schema))
    for name in dict.fromkeys(filter(None, (event_time, arrival_time))):
        frame = frame.with_columns(_moments(frame, name, schema[name], time_zone))
    known_at = arrival_time or event_time
    if known_at is not None:
        observe("horizon", {}, horizon_state({}))
        horizon = find_horizon()
        if horizon is not None:
            frame = frame.filter(pl.col(known_at) <= horizon)
    return frame if columns is None else frame.select(columns)


def _open(source: Source, format: Format | None, query: str | None, options: Mapping[str, Any]) -> pl.LazyFrame:
    if isinstance(source, str) and is_version(source):
        if query is not None or format is not None or options:
            raise UsageError(f"'{source}' is a version of a dataset and takes no options.", help="Leave them out.")
        frame, state = scan_version(source)
        observe("version", {"ref": source.removeprefix(SCHEME)}, state)
        return frame
    if isinstance(source, str) and is_sql(source):
        engine = options.get("engine")
        if query is None or format is not None or options.keys() - {"engine"}:
            raise UsageError(f"{_called(source)} is read with query='SELECT …' and nothing else than engine=.")
        rows, state = query_with_state(source, query, engine)
        spec = {"url": redacted(source), "query": query} | ({} if engine is None else {"engine": engine})
        observe("sql", spec, state)
        return rows.lazy()
    if query is not None:
        raise UsageError(f"query= needs a database, not {_called(source)}.", help="Write sqlite:///file.db")
    if isinstance(source, str | os.PathLike):
        return _open_files([os.fspath(source)], format, options)
    if is_dlt(source):
        name, given = open_dlt(source, options.get("resource"))
        return gathered(name, given).lazy()
    if isinstance(source, pl.LazyFrame) or hasattr(source, "__arrow_c_stream__"):
        return as_lazy(source)
    if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
        raise UsageError(
            f"{_called(source)} is no source.", help="Give a path, a glob, a database address, rows or a table."
        )
    items = list(source)
    if items and all(isinstance(item, str | os.PathLike) for item in items):
        return _open_files([os.fspath(item) for item in items], format, options)
    return _rows(items)


def _open_files(patterns: list[str], format: Format | None, options: Mapping[str, Any]) -> pl.LazyFrame:
    folder = project_folder()
    if any("://" in pattern for pattern in patterns):
        return _open_remote(patterns, format, dict(options))
    tables = [pattern for pattern in patterns if (folder / pattern / "_delta_log").is_dir()]
    if tables and len(tables) == len(patterns) and format in (None, "delta"):
        # The log alone decides what the table's files are.
        logs = [str(Path(table) / "_delta_log" / "*") for table in tables]
        observe("files", {"patterns": logs}, files_state({"patterns": logs}))
        return scan_delta([folder / table for table in tables], options)
    patterns = [each for pattern in patterns for each in _of_folder(folder, pattern, format)]
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = match_files(pattern)
        if not matched:
            raise _no_match(folder, pattern)
        found.update(dict.fromkeys(matched))
    files = [DataFile(folder / path, str(folder / path), partition_of(path)) for path in found]
    # Before the rows are read: what changes in between is then seen as a change.
    seen = observe("files", {"patterns": patterns}, files_state({"patterns": patterns}))
    return _scan(files, format, options, seen)


def _scan(
    files: list[DataFile], format: Format | None, options: Mapping[str, Any], seen: dict[str, Any]
) -> pl.LazyFrame:
    """The rows of files of one format, with the columns that their folders name."""
    chosen = format or _format_of(files)
    if chosen not in _KNOWN:
        raise UsageError(f"There is no format '{chosen}'.", help=f"There are: {', '.join(_KNOWN)}.")
    if chosen == "delta":
        paths = [file.path for file in files]
        return scan_delta(paths, options)
    if chosen == "csv" and all(_suffix(file) == ".tsv" for file in files):
        options = {"separator": "\t", **options}
    with collect_notes() as notes:
        frames = _SCANS[chosen]([unpacked(file) for file in files], options)
    if notes:
        seen["notes"] = [str(one) for one in notes]
    if len(frames) == len(files):
        frames = with_partitions(files, frames)
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def _open_remote(urls: list[str], format: Format | None, options: dict[str, Any]) -> pl.LazyFrame:
    for url in urls:
        if not is_remote(url):
            raise SourceError(
                f"'{mask_url(url)}' is no address that can be read.",
                help=f"There are: {', '.join(SCHEMES)}; and paths by themselves.",
            )
    # Before the rows are read: what changes in between is then seen as a change.
    seen = observe("remote", {"urls": [remembered(url) for url in urls]}, remote_state({"urls": urls}))
    found = fetch(urls, sha256=options.pop("sha256", None))
    files = [DataFile(path, mask_url(url), partition_of(urlsplit(url).path)) for url, path in found]
    if format == "delta":
        raise UsageError(f"'{format}' cannot be read from an address.", help="Give csv, parquet, json or arrow files.")
    return _scan(files, format, options, seen)


def _of_folder(folder: Path, pattern: str, format: Format | None) -> list[str]:
    """A folder means all its files of one format, whatever their depth."""
    if not (folder / pattern).is_dir():
        return [pattern]
    inside = [item for item in sorted((folder / pattern).rglob("*")) if item.is_file() and item.name[0] not in "._"]
    endings = {_ending(item.name): _FORMATS.get(Path(plain_name(item.name)).suffix.lower()) for item in inside}
    endings = {ending: found for ending, found in endings.items() if found is not None or ending.lower() == ".zip"}
    kinds = {(found, ".tsv" in ending.lower()) for ending, found in endings.items()}
    if len(kinds) == 1:
        return [str(Path(pattern) / "**" / f"*{ending}") for ending in sorted(endings)]
    shown = ", ".join(sorted(endings))
    held = f"files of several formats ({shown})" if endings else "no files that can be read"
    raise SourceError(f"The folder '{pattern}' holds {held}.", help=f"Write a glob, such as '{pattern}/*.parquet'.")


def _ending(name: str) -> str:
    """The suffix of a file's name, with that of its compression: `.csv`, `.csv.gz`."""
    if not is_compressed(name):
        return Path(name).suffix
    return Path(plain_name(name)).suffix + Path(name).suffix


def _suffix(file: DataFile) -> str:
    return Path(plain_name(file.path.name, file.path)).suffix.lower()


def _format_of(files: list[DataFile]) -> str:
    formats = {_FORMATS.get(_suffix(file)) for file in files}
    if len(formats) > 1:
        shown = ", ".join(str(file) for file in files[:3])
        raise SourceError(f"Files of several formats cannot be read as one: {shown}, ….")
    chosen = formats.pop()
    if chosen is None:
        raise SourceError(
            f"The name of '{files[0]}' does not say its format.",
            **advice("Name it with {}, or another of: " + ", ".join(_KNOWN) + ".", format="csv"),
        )
    return chosen


def _no_match(folder: Path, pattern: str) -> SourceError:
    place = (folder / pattern).parent
    while not place.is_dir():
        place = place.parent
    near = [str(Path(os.path.relpath(item, folder))) for item in sorted(place.iterdir())]
    what = "No file matches" if any(character in pattern for character in "*?[") else "There is no file"
    return SourceError(f"{what} '{pattern}' in '{folder}'.", help=nearest(pattern, near))


def _rows(items: list[Any]) -> pl.LazyFrame:
    if not items:
        raise SourceError("The source gave no rows, so its columns are unknown.", help="Give at least one row.")
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise SourceError(f"Row {number} is {item!r}, no dict of column names to values.")
        wrong = next((name for name in item if not isinstance(name, str)), None)
        if wrong is not None:
            raise SourceError(f"Row {number} has the key {wrong!r}, which is not a text.", help=f"Write '{wrong}'.")
    names = list(dict.fromkeys(name for item in items for name in item))
    rows = [[item.get(name) for name in names] for item in items]
    problem = find_problem(names, rows)
    if problem is not None:
        raise SourceError(problem, help="Convert the values before they are read.")
    if not names:
        raise SourceError("The rows have no keys, so there are no columns.", help="Give at least one.")
    try:
        frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise SourceError(f"The rows are no table: {error}.") from error
    for name, dtype in frame.schema.items():
        if isinstance(dtype, pl.Object):
            number, value = next((number, item) for number, item in enumerate(frame[name], 1) if item is not None)
            raise SourceError(
                f"Column '{name}' of row {number} holds {value!r}, a {type(value).__name__}, which no table can hold.",
                help="Convert it to a number, a text, a time, a list or a dict.",
            )
    return frame.lazy()


def _moments(frame: pl.LazyFrame, name: str, dtype: pl.DataType, zone: str | None) -> pl.Expr:
    if zone is not None and dtype in (pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns")):
        return _local(frame, name, zone)
    if isinstance(dtype, pl.String):
        if zone is not None:
            raise SourceError(
                f"The time column '{name}' holds texts, and time_zone= needs times.",
                help=f"Parse it before: pl.col('{name}').str.to_datetime(format)",
            )
        parsed = pl.col(name).str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        bad = frame.select(pl.col(name)).with_row_index("__row").filter(pl.col(name).is_not_null() & parsed.is_null())
        first = bad.head(1).collect()
        if len(first):
            row, value = first.row(0)
            raise SourceError(
                f"Row {row + 1} of time column '{name}' says '{value}', no ISO 8601 time.",
                help=f"Parse it: pl.col('{name}').str.to_datetime(format)",
            )
        return parsed
    if not is_moment(dtype):
        raise SourceError(f"The time column '{name}' holds {dtype}, no times.", help="Convert it first.")
    try:
        return as_utc(name, dtype)
    except DataError as error:
        raise SourceError(error.message, help=error.help) from error


def _local(frame: pl.LazyFrame, name: str, zone: str) -> pl.Expr:
    local = pl.col(name).cast(pl.Datetime("us"))
    try:
        moment = local.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
        lost = frame.select(name).with_row_index("__row").filter(pl.col(name).is_not_null() & moment.is_null())
        first = lost.head(1).collect()
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"There is no time zone '{zone}'.", help="Such as Europe/Berlin.") from error
    if len(first):
        row, value = first.row(0)
        exists = pl.select(
            pl.lit(value).dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").is_not_null()
        ).item()
        what = "stands twice on the clocks" if exists else "never stood on the clocks"
        raise SourceError(
            f"Row {row + 1} of time column '{name}' says {value}, which {what} of {zone}.",
            help=f"Decide: pl.col('{name}').dt.replace_time_zone('{zone}', ambiguous=…, non_existent=…)",
        )
    return moment.dt.convert_time_zone("UTC")


def _called(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return f"'{mask_url(str(source)) if '://' in str(source) else source}'"
    return f"A {type(source).__name__}"
