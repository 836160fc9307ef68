"""Immutable dataset versions: Parquet files by digest and a manifest that lists them.

The manifest, as canonical JSON, is itself kept by digest, and that digest is the snapshot's: rows, their order,
columns, types and roles (target, time, key). Parquet is written so that equal content gives equal bytes, hence the
same content is the same snapshot and costs no second copy.
"""

from __future__ import annotations

import json
from datetime import UTC
from typing import TYPE_CHECKING
from zlib import crc32

import polars as pl

from everloop.data.snapshots.column_statistics import column_statistics
from everloop.data.snapshots.parquet_parts import keep_parts, scan_parts
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
    """Keep a table as the next version of a dataset, or return the version that holds the same already.

    A lazy frame is kept as it streams: memory holds the rows of one file at most, not the table.

    Args:
        sources: what the rows were made of, as `collect_observations` tells it. Files among them are looked at again:
            those that have changed since may have been read half.
        run: the run that makes it; a version that exists keeps the run that made it first.
        contract: what the rows were checked against, or its key.
        tree: digest of the folder that the rows list, see `add_folder`.

    Raises:
        DataError: no rows; a named column is missing; a target of nulls only; keys that are null or repeated; a time
            column without times, or with nulls; a column of Python objects.
        SourceError: a file of `sources` changed while it was read.
        UsageError: `dataset` is no name.
    """
    if not dataset or "@" in dataset or dataset != dataset.strip():
        raise UsageError(f"A dataset cannot be called '{dataset}'.", help="Use a short name without '@'.")
    given = frame if isinstance(frame, pl.LazyFrame) else as_eager(frame)
    schema = given.collect_schema()
    roles = {"target": target, "time": time, "key": key}
    _refuse_schema(schema, roles)
    if isinstance(given, pl.DataFrame):
        _refuse_rows(given.lazy(), given.height, schema, roles)
    files = keep_parts(given, store)
    count = sum(file["rows"] for file in files)
    if isinstance(given, pl.LazyFrame):
        if not count:
            raise DataError("The table has no rows.", help="See what the step returns, and its sources.")
        given = scan_parts(files, store)
        _refuse_rows(given, count, schema, roles)
    _refuse_torn(sources)
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
    # A lock on this machine, and the store's own uniqueness of keys between machines.
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
                continue  # another machine was first with this number
            return snapshot
    raise DataError(f"No version number of '{dataset}' was free in {_ATTEMPTS} attempts.")


def load_snapshot(snapshot: Snapshot | str, store: Store, *, columns: Sequence[str] | None = None) -> pl.LazyFrame:
    """The rows of a snapshot, lazily, in the order in which they were taken.

    Args:
        snapshot: or its key, `delays@3`, or its dataset, whose newest version is taken.
        columns: only these, in this order.

    Raises:
        NotFoundError: no such snapshot.
        DataError: it has no such column.
        CorruptionError: a file differs from its digest.
    """
    found = get_snapshot(snapshot, store) if isinstance(snapshot, str) else snapshot
    for name in columns or ():
        if name not in found.columns:
            raise DataError(f"The snapshot '{found.key}' has no column '{name}'.", help=nearest(name, found.columns))
    frame = scan_parts(found.files, store)
    return frame if columns is None else frame.select(columns)


def get_snapshot(ref: str, store: Store) -> Snapshot:
    """The snapshot with this key or id; for a dataset's name its newest version.

    Raises:
        NotFoundError: there is none; the message names what there is.
    """
    if "@" not in ref:
        newest = store.records.find(Snapshot, ("dataset", "=", ref), order="-version", limit=1)
        if newest:
            return newest[0]
    return store.records.get(Snapshot, ref)


def _refuse_schema(schema: pl.Schema, roles: Mapping[str, str | None]) -> None:
    if not schema:
        raise DataError("The table has no rows.", help="See what the step returns, and its sources.")
    for role, name in roles.items():
        if name is not None:
            require_column(name, schema, "time column" if role == "time" else role)
    for name, dtype in schema.items():
        if not _can_keep(dtype):
            raise DataError(f"The column '{name}' holds {dtype}, which no file can keep.", help="Cast it or drop it.")
    time = roles["time"]
    if time is not None:
        as_utc(time, schema[time])


def _refuse_rows(rows: pl.LazyFrame, count: int, schema: pl.Schema, roles: Mapping[str, str | None]) -> None:
    if not count:
        raise DataError("The table has no rows.", help="See what the step returns, and its sources.")
    named = {role: name for role, name in roles.items() if name is not None}
    asked = [pl.col(name).null_count().alias(role) for role, name in named.items()]
    nulls = rows.select(asked).collect(engine="streaming").row(0, named=True) if asked else {}
    for role, name in named.items():
        if role == "target" and nulls[role] == count:
            raise DataError(f"The target '{name}' is null in all {count} rows.", help="Have the labels arrived yet?")
        if role == "time" and nulls[role]:
            raise DataError(f"The time column '{name}' is null in {nulls[role]} rows.", help="Drop them, or fill them.")
        if role == "time" and isinstance(schema[name], pl.Date | pl.Datetime):
            far = rows.select((~pl.col(name).dt.year().is_between(1, 9999)).sum()).collect(engine="streaming").item()
            if far:
                raise DataError(f"The time column '{name}' lies outside of the years 1 to 9999 in {far} rows.")
        if role == "key":
            if nulls[role]:
                raise DataError(f"The key '{name}' is null in {nulls[role]} rows.", help="Drop them, or name another.")
            _refuse_repeats(rows, name, count)


def _refuse_repeats(rows: pl.LazyFrame, key: str, count: int) -> None:
    # By hash, a share of the keys at a time: all of them need not fit into memory.
    shares = -(-count // _KEYS_AT_ONCE)
    for share in range(shares):
        keys = rows.select(key)
        if shares > 1:
            keys = keys.filter(pl.col(key).hash() % shares == share)
        doubled = keys.group_by(key, maintain_order=True).len().filter(pl.col("len") > 1).collect(engine="streaming")
        if len(doubled):
            examples = ", ".join(f"{value!r} ({times} times)" for value, times in doubled.head(3).rows())
            raise DataError(
                f"The key '{key}' repeats: {len(doubled)} values stand in more than one row, such as {examples}.",
                help=f"Keep one row each, for example with .unique('{key}', keep='last'), or name another key.",
            )


def _refuse_torn(sources: Sequence[Mapping[str, Json]]) -> None:
    for source in sources:
        if source.get("kind") == "files" and "state" in source:
            torn = torn_files(source["spec"], source["state"])
            if torn:
                raise SourceError(
                    f"'{torn[0]}' changed while it was read, so its rows may be of two versions.",
                    help="Read again when its writer is done; writers should write beside it and rename.",
                )


def _can_keep(dtype: pl.DataType) -> bool:
    match dtype:
        case pl.Object() | pl.Unknown():
            return False
        case pl.List(inner=inner) | pl.Array(inner=inner):
            return _can_keep(inner() if isinstance(inner, type) else inner)
        case pl.Struct(fields=fields):
            kept = [field.dtype() if isinstance(field.dtype, type) else field.dtype for field in fields]
            return bool(kept) and all(_can_keep(each) for each in kept)
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
    asked = rows.lazy().select(moment.min().alias("first"), moment.max().alias("last"))
    first, last = asked.collect(engine="streaming").row(0)
    return first.astimezone(UTC), last.astimezone(UTC)
