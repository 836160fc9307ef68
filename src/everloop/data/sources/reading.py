"""`read`: open files, queries and Python rows as a lazy Polars frame.

Every outside source is also recorded (`everloop.stores.observe`), so that the pipeline can check later whether a step
would read the same data again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from errno import ENOENT
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import polars as pl

from everloop.data.sources.columnar_files import scan_arrow, scan_delta, scan_parquet
from everloop.data.sources.compression import is_compressed, plain_name, unpacked
from everloop.data.sources.csv_files import scan_csv
from everloop.data.sources.cursors import collect_items, read_new
from everloop.data.sources.data_files import DataFile
from everloop.data.sources.dlt_sources import is_dlt, open_dlt
from everloop.data.sources.file_states import files_change, files_state, match_files, project_folder
from everloop.data.sources.json_files import scan_json
from everloop.data.sources.partitions import partition_of, with_partitions
from everloop.data.sources.reading_notes import collect_notes
from everloop.data.sources.reading_options import advice
from everloop.data.sources.remote_files import SCHEMES, fetch, is_remote, remote_state
from everloop.data.sources.row_values import find_problem, short_text
from everloop.data.sources.snapshot_sources import SCHEME, is_version, scan_version
from everloop.data.sources.sql_sources import is_sql, query_with_state, redacted, sql_change, sql_state
from everloop.data.table_inputs import Frame, as_lazy, as_utc, is_moment, nearest
from everloop.data.time_travel import find_horizon, horizon_state
from everloop.errors import DataError, SourceError, UsageError
from everloop.plugins import load
from everloop.stores import observe
from everloop.stores.store_urls import mask_url, remembered

__all__ = ["Format", "files_change", "files_state", "read", "sql_change", "sql_state"]

Format = Literal["csv", "parquet", "json", "arrow", "delta"]
Source = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]] | Frame

PREDICTIONS = "predictions:"
"""Scheme of the answers of an endpoint."""

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
    """Return the rows of a source as a lazy frame.

    Args:
        source: one of

            - a path, glob or folder, or a list of them, relative to the project folder. Files may be compressed:
              `.gz`, `.bz2`, `.xz`, `.zst`, or `.zip` with a single file.
            - a URL (`https://`, `s3://`, `gs://`, `az://`), or a list of them. Bucket URLs may be globs. Each file is
              downloaded once, and again when it has changed.
            - a database URL, with `query`: `sqlite:///file.db`, `postgresql://user@host/name`, `mysql+pymysql://…`,
              and whatever else SQLAlchemy supports.
            - a dataset version: `everloop:flights@3`.
            - the answers of an endpoint to its clients: `predictions:returns`, see `prediction_log.prediction_source`.
            - a function, with `cursor`.
            - a dlt source or resource.
            - an iterable of dicts, one per row.
            - a table with an Arrow interface (pandas, pyarrow, Polars, DuckDB).
        format: `csv`, `parquet`, `json` (one object per line, or one array), `arrow` or `delta`. Needed only if the
            file names do not show it.
        query: the SELECT statement to run, for a database.
        columns: return only these columns.
        event_time: the column with the time of each row's event. It is returned in UTC; text must be ISO 8601.
        arrival_time: the column with the time when each row became known, treated in the same way.
        time_zone: the time zone of both columns if their values have none, such as `America/New_York`; UTC by default.
            A local time that daylight saving skips or repeats is an error.
        cursor: the column by which a function returns only new rows, see `everloop.data.sources.cursors`. The function
            is called with the greatest value so far (None at first), and its rows are added to the stored ones.
        options: `schema_overrides` sets the types of columns, as Polars types or type names (`{"zip": "string"}`).

            - CSV: `separator`, `encoding`, `skip_rows`, `comment_prefix`, `decimal_comma`, `null_values` (texts that
              mean null, for all columns or per column, besides the usual ones; an empty list switches those off), and
              `drop_unnamed` (leave out columns without a name in the header, such as the index that pandas writes).
            - database: `engine` (`sqlalchemy`, `adbc`, `connectorx`).
            - dlt source: `resource`.
            - URL of a single file: `sha256`.

            All other options go to the Polars reader of the format.

    Folders such as `year=2025/` directly above a file become columns. Notes list what was read as null, and which
    columns with numbers stayed text; see `everloop.data.collect_notes`.

    During a replay, rows whose `arrival_time` (or else `event_time`) is later than the replay clock are left out.

    Raises:
        SourceError: nothing matches, or a file cannot be read. The message names the file, the row and the column.
        UsageError: the arguments do not fit the source.
    """
    if cursor is not None:
        if not callable(source):
            raise UsageError(
                f"cursor= needs a function as the source, but this is {_describe(source)}.",
                help="Write a function with one parameter: def source(since): yield …",
            )
        frame = read_new(source, cursor)
    else:
        frame = _open(source, format, query, options)
    schema = frame.collect_schema()
    for name in (*(columns or ()), *(name for name in (event_time, arrival_time) if name is not None)):
        if name not in schema:
            raise SourceError(f"{_capitalized(_describe(source))} has no column '{name}'.", help=nearest(name, schema))
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
            raise UsageError(
                f"'{source}' is a dataset version, which takes no query=, format= or other options.",
                help="Leave them out.",
            )
        frame, state = scan_version(source)
        observe("version", {"ref": source.removeprefix(SCHEME)}, state)
        return frame
    if isinstance(source, str) and source.startswith(PREDICTIONS):
        if query is not None or format is not None or options:
            raise UsageError(
                f"'{source}' is the log of an endpoint, which takes no query=, format= or other options.",
                help="Leave them out.",
            )
        endpoint = source.removeprefix(PREDICTIONS)
        frame, state = load("source", "predictions")(endpoint)
        observe("predictions", {"url": source}, state)
        return cast("pl.LazyFrame", frame)
    if isinstance(source, str) and is_sql(source):
        engine = options.get("engine")
        if query is None or format is not None or options.keys() - {"engine"}:
            raise UsageError(
                f"{_describe(source)} is a database, which needs query= and takes no other option but engine=.",
                help="Write query='SELECT …'.",
            )
        rows, state = query_with_state(source, query, engine)
        spec = {"url": redacted(source), "query": query} | ({} if engine is None else {"engine": engine})
        observe("sql", spec, state)
        return rows.lazy()
    if query is not None:
        raise UsageError(
            f"query= needs a database URL as the source, but this is {_describe(source)}.",
            help="Write for example sqlite:///file.db.",
        )
    if isinstance(source, str | os.PathLike):
        return _open_files([os.fspath(source)], format, options)
    if is_dlt(source):
        name, items = open_dlt(source, options.get("resource"))
        return collect_items(name, items).lazy()
    if isinstance(source, pl.LazyFrame) or hasattr(source, "__arrow_c_stream__"):
        return as_lazy(source)
    if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
        raise UsageError(
            f"{_capitalized(_describe(source))} cannot be read.",
            help="Pass a path, a glob, a URL, a database URL with query=, rows as dicts, or a table.",
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
        # A Delta table's log alone defines which files belong to it.
        logs = [str(Path(table) / "_delta_log" / "*") for table in tables]
        observe("files", {"patterns": logs}, files_state({"patterns": logs}))
        return scan_delta([folder / table for table in tables], options)
    patterns = [each for pattern in patterns for each in _expand_folder(folder, pattern, format)]
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = match_files(pattern)
        if not matched:
            # The cause tells a step that runs on another machine that its file is not there.
            raise _no_match(folder, pattern) from FileNotFoundError(ENOENT, os.strerror(ENOENT), pattern)
        found.update(dict.fromkeys(matched))
    files = [DataFile(folder / path, str(folder / path), partition_of(path)) for path in found]
    # Observe before reading, so that a change in between is noticed later.
    seen = observe("files", {"patterns": patterns}, files_state({"patterns": patterns}))
    return _scan(files, format, options, seen)


def _scan(
    files: list[DataFile], format: Format | None, options: Mapping[str, Any], seen: dict[str, Any]
) -> pl.LazyFrame:
    """The rows of files of one format, with their partition columns."""
    chosen = format or _format_of(files)
    if chosen not in _KNOWN:
        raise UsageError(f"There is no format '{chosen}'.", help=f"Use one of: {', '.join(_KNOWN)}.")
    if chosen == "delta":
        paths = [file.path for file in files]
        return scan_delta(paths, options)
    if chosen == "csv" and all(_suffix(file) == ".tsv" for file in files):
        options = {"separator": "\t", **options}
    with collect_notes() as notes:
        frames = _SCANS[chosen]([unpacked(file) for file in files], options)
    if notes:
        seen["notes"] = [str(note) for note in notes]
    if len(frames) == len(files):
        frames = with_partitions(files, frames)
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def _open_remote(urls: list[str], format: Format | None, options: dict[str, Any]) -> pl.LazyFrame:
    for url in urls:
        if not is_remote(url):
            if "://" not in url:
                raise SourceError(
                    f"'{url}' is a local path, which cannot be read together with URLs.", help="Read it separately."
                )
            raise SourceError(
                f"'{mask_url(url)}' cannot be read: its URL scheme is not supported.",
                help=f"Use one of {', '.join(SCHEMES)}, or a local path.",
            )
    # Observe before reading, so that a change in between is noticed later.
    seen = observe("remote", {"urls": [remembered(url) for url in urls]}, remote_state({"urls": urls}))
    found = fetch(urls, sha256=options.pop("sha256", None))
    files = [DataFile(path, mask_url(url), partition_of(urlsplit(url).path)) for url, path in found]
    if format == "delta":
        raise UsageError(f"A {format} table cannot be read from a URL.", help="Use csv, parquet, json or arrow files.")
    return _scan(files, format, options, seen)


def _expand_folder(folder: Path, pattern: str, format: Format | None) -> list[str]:
    """Turn a folder into globs for all of its files, at any depth; they must have one format."""
    if not (folder / pattern).is_dir():
        return [pattern]
    inside = [item for item in sorted((folder / pattern).rglob("*")) if item.is_file() and item.name[0] not in "._"]
    endings = {_ending(item.name): _FORMATS.get(Path(plain_name(item.name)).suffix.lower()) for item in inside}
    endings = {ending: found for ending, found in endings.items() if found is not None or ending.lower() == ".zip"}
    kinds = {(found, ".tsv" in ending.lower()) for ending, found in endings.items()}
    if len(kinds) == 1:
        return [str(Path(pattern) / "**" / f"*{ending}") for ending in sorted(endings)]
    shown = ", ".join(sorted(endings))
    content = f"files of several formats ({shown})" if endings else "no files that can be read"
    raise SourceError(
        f"The folder '{pattern}' contains {content}.", help=f"Write a glob, such as '{pattern}/*.parquet'."
    )


def _ending(name: str) -> str:
    """The suffix of a file name including that of its compression, such as `.csv` or `.csv.gz`."""
    if not is_compressed(name):
        return Path(name).suffix
    return Path(plain_name(name)).suffix + Path(name).suffix


def _suffix(file: DataFile) -> str:
    return Path(plain_name(file.path.name, file.path)).suffix.lower()


def _format_of(files: list[DataFile]) -> str:
    formats = {_FORMATS.get(_suffix(file)) for file in files}
    if len(formats) > 1:
        shown = ", ".join(str(file) for file in files[:3])
        raise SourceError(
            f"Files of several formats cannot be read together: {shown}, ….", help="Read each format separately."
        )
    chosen = formats.pop()
    if chosen is None:
        raise SourceError(
            f"The format of '{files[0]}' is unknown: its name does not end in a known suffix.",
            **advice("Pass it with {}, or another of: " + ", ".join(_KNOWN) + ".", format="csv"),
        )
    return chosen


def _no_match(folder: Path, pattern: str) -> SourceError:
    parent = (folder / pattern).parent
    while not parent.is_dir():
        parent = parent.parent
    near = [str(Path(os.path.relpath(item, folder))) for item in sorted(parent.iterdir())]
    what = "No file matches" if any(character in pattern for character in "*?[") else "There is no file"
    return SourceError(f"{what} '{pattern}' in '{folder}'.", help=nearest(pattern, near))


def _rows(items: list[Any]) -> pl.LazyFrame:
    if not items:
        raise SourceError("The source has no rows, so its columns are unknown.", help="Give at least one row.")
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise SourceError(
                f"Row {number} is {short_text(item, repr)}, but each row must be a dict.",
                help="Write rows such as {'column': 1}.",
            )
        wrong = next((name for name in item if not isinstance(name, str)), None)
        if wrong is not None:
            shown = short_text(wrong, repr)
            raise SourceError(f"Row {number} has the key {shown}, which is not a string.", help="Write it as a string.")
    names = list(dict.fromkeys(name for item in items for name in item))
    rows = [[item.get(name) for name in names] for item in items]
    problem = find_problem(names, rows)
    if problem is not None:
        raise SourceError(problem, help="Convert the values before passing them to read.")
    if not names:
        raise SourceError("The rows have no keys, so there are no columns.", help="Give each row at least one key.")
    try:
        frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise SourceError(f"The rows do not form a table: {error}.") from error
    for name, dtype in frame.schema.items():
        if isinstance(dtype, pl.Object):
            number, value = next((number, item) for number, item in enumerate(frame[name], 1) if item is not None)
            raise SourceError(
                f"Column '{name}' of row {number} contains {short_text(value, repr)}, a {type(value).__name__}, which "
                f"a table cannot hold.",
                help="Convert it to a number, a string, a time, a list or a dict.",
            )
    return frame.lazy()


def _moments(frame: pl.LazyFrame, name: str, dtype: pl.DataType, zone: str | None) -> pl.Expr:
    if zone is not None and dtype in (pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns")):
        return _local(frame, name, zone)
    if isinstance(dtype, pl.String):
        if zone is not None:
            raise SourceError(
                f"The time column '{name}' contains text, but time_zone= needs times.",
                help=f"Parse it first: pl.col('{name}').str.to_datetime(format)",
            )
        parsed = pl.col(name).str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        bad = frame.select(pl.col(name)).with_row_index("__row").filter(pl.col(name).is_not_null() & parsed.is_null())
        first = bad.head(1).collect()
        if len(first):
            row, value = first.row(0)
            raise SourceError(
                f"Row {row + 1} of time column '{name}' contains '{value}', which is not a time in ISO 8601.",
                help=f"Parse it: pl.col('{name}').str.to_datetime(format)",
            )
        return parsed
    if not is_moment(dtype):
        raise SourceError(
            f"The time column '{name}' has type {dtype}, but must contain times.", help="Convert it first."
        )
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
        raise UsageError(f"There is no time zone '{zone}'.", help="Use an IANA name such as Europe/Berlin.") from error
    if len(first):
        row, value = first.row(0)
        exists = pl.select(
            pl.lit(value).dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").is_not_null()
        ).item()
        what = "occurs twice" if exists else "does not exist"
        raise SourceError(
            f"Row {row + 1} of time column '{name}' contains {value}, which {what} in {zone}: the clocks change then.",
            help=f"Convert it yourself: pl.col('{name}').dt.replace_time_zone('{zone}', ambiguous=…, non_existent=…)",
        )
    return moment.dt.convert_time_zone("UTC")


def _describe(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return f"'{mask_url(str(source)) if '://' in str(source) else source}'"
    return f"an object of type {type(source).__name__}"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
