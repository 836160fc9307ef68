"""Immutable dataset versions: Parquet files by digest, and a manifest that lists them.

The manifest is canonical JSON and is stored by digest as well. Its digest is the snapshot's digest, and covers the
rows, their order, the columns, their types and roles (target, time, key). Parquet is written such that equal content
gives equal bytes, so the same content is the same snapshot and is not stored twice.
"""

from __future__ import annotations

import json
from datetime import UTC
from typing import TYPE_CHECKING
from zlib import crc32

import polars as pl

from everloop.data.snapshots.column_statistics import column_statistics
from everloop.data.snapshots.parquet_parts import scan_parts, write_parts
from everloop.data.sources.file_states import torn_files
from everloop.data.table_inputs import Frame, as_eager, as_utc, nearest, require_column, type_name
from everloop.errors import AlreadyExistsError, DataError, SourceError, UsageError
from everloop.records import Contract, Json, Run, Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from everloop.stores import Store

MANIFEST_VERSION = 1
_ATTEMPTS = 50
_KEYS_AT_ONCE = 1_000_000


def take_snapshot(
    frame: Frame,
    dataset: str,
    store: Store,
    *,
    target: str | None = None,
    time: str | None = None,
    key: str | None = None,
    sources: Sequence[Mapping[str, Json]] = (),
    run: Run | str | None = None,
    contract: Contract | str | None = None,
    tree: str | None = None,
) -> Snapshot:
    """Store a table as the next version of a dataset, or return the existing version with the same content.

    A lazy frame is streamed: memory holds the rows of one file at most, not the whole table.

    Args:
        sources: where the rows came from, as `collect_observations` returns it. Files among the sources are checked
            again, because a file that has changed since may have been read half-written.
        run: the run that creates the version. An existing version keeps the run that created it.
        contract: the contract that the rows were checked against, or its key.
        tree: the digest of the folder that the rows list, see `add_folder`.

    Raises:
        DataError: the table has no rows, a named column is missing, the target is null in all rows, a key is null or
            repeated, the time column contains nulls or no times, or a column cannot be stored.
        SourceError: a file of `sources` changed while it was read.
        UsageError: `dataset` is not a valid name.
    """
    if not dataset or "@" in dataset or dataset != dataset.strip():
        raise UsageError(f"A dataset cannot be called '{dataset}'.", help="Use a name without '@' or outer spaces.")
    given = frame if isinstance(frame, pl.LazyFrame) else as_eager(frame)
    schema = given.collect_schema()
    roles = {"target": target, "time": time, "key": key}
    _refuse_schema(schema, roles)
    if isinstance(given, pl.DataFrame):
        _refuse_rows(given.lazy(), given.height, schema, roles)
    files = write_parts(given, store)
    count = sum(file["rows"] for file in files)
    if isinstance(given, pl.LazyFrame):
        if not count:
            raise DataError("The table has no rows.", help="Check what the step returns, and its sources.")
        given = scan_parts(files, store)
        _refuse_rows(given, count, schema, roles)
    _refuse_changed_files(sources)
    columns = {name: type_name(dtype) for name, dtype in schema.items()}
    manifest = {
        "format": "everloop/snapshot",
        "version": MANIFEST_VERSION,
        "rows": count,
        "columns": list(columns.items()),
        "roles": roles,
        "files": files,
    }
    digest = store.objects.add(json.dumps(manifest, separators=(",", ":"), ensure_ascii=False).encode())
    # The lock works on this machine. Between machines, the store enforces unique keys.
    with store.lock(f"snapshot-{crc32(dataset.encode()):08x}"):
        for _ in range(_ATTEMPTS):
            same = store.records.find(Snapshot, ("dataset", "=", dataset), ("digest", "=", digest), limit=1)
            if same:
                return same[0]
            starts, ends = _span(given, time, schema)
            snapshot = store.new(
                Snapshot,
                dataset=dataset,
                version=_last_version(dataset, store) + 1,
                digest=digest,
                rows=count,
                size_bytes=sum(file["size_bytes"] for file in files),
                columns=columns,
                files=tuple(files if tree is None else [{**file, "tree": tree} for file in files]),
                stats=column_statistics(given, count),
                target=target,
                time=time,
                entity=key,
                starts_at=starts,
                ends_at=ends,
                contract=contract.key if isinstance(contract, Contract) else contract,
                run=run.id if isinstance(run, Run) else run,
                sources=tuple(dict(source) for source in sources),
            )
            try:
                store.records.put(snapshot)
            except AlreadyExistsError:
                continue  # another machine took this number first
            return snapshot
    raise DataError(
        f"'{dataset}' was not stored: in {_ATTEMPTS} attempts, other processes took each new version number.",
        help="Try again.",
    )


def load_snapshot(snapshot: Snapshot | str, store: Store, *, columns: Sequence[str] | None = None) -> pl.LazyFrame:
    """The rows of a snapshot as a lazy frame, in their original order.

    Args:
        snapshot: a snapshot, its key such as `delays@3`, or the name of a dataset for its newest version.
        columns: return only these columns, in this order.

    Raises:
        NotFoundError: the snapshot does not exist.
        DataError: a column does not exist.
        CorruptionError: a file does not match its digest.
    """
    found = get_snapshot(snapshot, store) if isinstance(snapshot, str) else snapshot
    for name in columns or ():
        if name not in found.columns:
            raise DataError(f"The snapshot '{found.key}' has no column '{name}'.", help=nearest(name, found.columns))
    frame = scan_parts(found.files, store)
    return frame if columns is None else frame.select(columns)


def get_snapshot(ref: str, store: Store) -> Snapshot:
    """The snapshot with this key or id; for the name of a dataset its newest version.

    Raises:
        NotFoundError: it does not exist; the message lists similar ones.
    """
    if "@" not in ref:
        newest = store.records.find(Snapshot, ("dataset", "=", ref), order="-version", limit=1)
        if newest:
            return newest[0]
    return store.records.get(Snapshot, ref)


def _refuse_schema(schema: pl.Schema, roles: Mapping[str, str | None]) -> None:
    if not schema:
        raise DataError(
            "The table has no columns, so it has no rows.", help="Check what the step returns, and its sources."
        )
    for role, name in roles.items():
        if name is not None:
            require_column(name, schema, "time column" if role == "time" else role)
    for name, dtype in schema.items():
        if not _can_store(dtype):
            raise DataError(f"The column '{name}' is {dtype}, which cannot be stored.", help="Cast it, or drop it.")
    time = roles["time"]
    if time is not None:
        as_utc(time, schema[time])


def _refuse_rows(rows: pl.LazyFrame, count: int, schema: pl.Schema, roles: Mapping[str, str | None]) -> None:
    if not count:
        raise DataError("The table has no rows.", help="Check what the step returns, and its sources.")
    named = {role: name for role, name in roles.items() if name is not None}
    null_counts = [pl.col(name).null_count().alias(role) for role, name in named.items()]
    nulls = rows.select(null_counts).collect(engine="streaming").row(0, named=True) if null_counts else {}
    for role, name in named.items():
        if role == "target" and nulls[role] == count:
            raise DataError(
                f"The target '{name}' is null in all {count} rows.", help="Check whether the labels have arrived."
            )
        if role == "time" and nulls[role]:
            raise DataError(f"The time column '{name}' is null in {nulls[role]} rows.", help="Drop them, or fill them.")
        if role == "time" and isinstance(schema[name], pl.Date | pl.Datetime):
            far = rows.select((~pl.col(name).dt.year().is_between(1, 9999)).sum()).collect(engine="streaming").item()
            if far:
                raise DataError(
                    f"The time column '{name}' is outside of the years 1 to 9999 in {far} rows.",
                    help="Drop these rows, or correct them.",
                )
        if role == "key":
            if nulls[role]:
                raise DataError(
                    f"The key '{name}' is null in {nulls[role]} rows.", help="Drop them, or choose another key."
                )
            _refuse_repeats(rows, name, count)


def _refuse_repeats(rows: pl.LazyFrame, key: str, count: int) -> None:
    # Check one share of the keys at a time, by hash, because all of them may not fit into memory.
    shares = -(-count // _KEYS_AT_ONCE)
    for share in range(shares):
        keys = rows.select(key)
        if shares > 1:
            keys = keys.filter(pl.col(key).hash() % shares == share)
        repeated = keys.group_by(key, maintain_order=True).len().filter(pl.col("len") > 1).collect(engine="streaming")
        if len(repeated):
            examples = ", ".join(f"{value!r} ({times} times)" for value, times in repeated.head(3).rows())
            subject = "1 value occurs" if len(repeated) == 1 else f"{len(repeated)} values occur"
            raise DataError(
                f"The key '{key}' is not unique: {subject} in more than one row, such as {examples}.",
                help=f"Keep one row each, for example with .unique('{key}', keep='last'), or choose another key.",
            )


def _refuse_changed_files(sources: Sequence[Mapping[str, Json]]) -> None:
    for source in sources:
        if source.get("kind") == "files" and "state" in source:
            changed = torn_files(source["spec"], source["state"])
            if changed:
                raise SourceError(
                    f"'{changed[0]}' changed while it was read, so its rows may be a mix of two versions.",
                    help="Read it again when the program that writes it is done. A program should write to another "
                    "file and rename it.",
                )


def _can_store(dtype: pl.DataType) -> bool:
    match dtype:
        case pl.Object() | pl.Unknown():
            return False
        case pl.List(inner=inner) | pl.Array(inner=inner):
            return _can_store(inner() if isinstance(inner, type) else inner)
        case pl.Struct(fields=fields):
            types = [field.dtype() if isinstance(field.dtype, type) else field.dtype for field in fields]
            return bool(types) and all(_can_store(each) for each in types)
    return True


def _last_version(dataset: str, store: Store) -> int:
    newest = store.records.find(Snapshot, ("dataset", "=", dataset), order="-version", limit=1)
    return newest[0].version if newest else 0


def _span(
    rows: pl.DataFrame | pl.LazyFrame, time: str | None, schema: pl.Schema
) -> tuple[datetime | None, datetime | None]:
    if time is None:
        return None, None
    moment = as_utc(time, schema[time])
    ends = rows.lazy().select(moment.min().alias("first"), moment.max().alias("last"))
    first, last = ends.collect(engine="streaming").row(0)
    return first.astimezone(UTC), last.astimezone(UTC)
