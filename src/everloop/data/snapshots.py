"""Immutable dataset versions: Parquet files by digest and a manifest that lists them.

The manifest, as canonical JSON, is itself kept by digest, and that digest is the snapshot's: rows, their order,
columns, types and roles (target, time, key). Parquet is written so that equal content gives equal bytes, hence the
same content is the same snapshot and costs no second copy.
"""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from zlib import crc32

import polars as pl

from everloop.data.frames import Frame, as_eager, as_utc, nearest, require_column, type_name
from everloop.data.statistics import column_statistics
from everloop.errors import AlreadyExistsError, DataError, UsageError
from everloop.records import Contract, Json, Run, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from everloop.stores import Store

MANIFEST_VERSION = 1
_FILE_ROWS = 1_000_000
_ATTEMPTS = 50


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
) -> Snapshot:
    """Keep a table as the next version of a dataset, or return the version that holds the same already.

    Args:
        sources: what the rows were made of, as `collect_observations` tells it.
        run: the run that makes it; a version that exists keeps the run that made it first.
        contract: what the rows were checked against, or its key.

    Raises:
        DataError: no rows; a named column is missing; a target of nulls only; keys that are null or repeated; a time
            column without times, or with nulls; a column of Python objects.
        UsageError: `dataset` is no name.
    """
    if not dataset or "@" in dataset or dataset != dataset.strip():
        raise UsageError(f"A dataset cannot be called '{dataset}'.", help="Use a short name without '@'.")
    rows = as_eager(frame).rechunk()
    _refuse(rows, target=target, time=time, key=key)
    files = [_keep(part, store) for part in _parts(rows)]
    columns = {name: type_name(dtype) for name, dtype in rows.schema.items()}
    manifest = {
        "format": "everloop/snapshot",
        "version": MANIFEST_VERSION,
        "rows": len(rows),
        "columns": list(columns.items()),
        "roles": {"target": target, "time": time, "key": key},
        "files": files,
    }
    digest = store.objects.add(json.dumps(manifest, separators=(",", ":"), ensure_ascii=False).encode())
    # A lock on this machine, and the store's own uniqueness of keys between machines.
    with store.lock(f"snapshot-{crc32(dataset.encode()):08x}"):
        for _ in range(_ATTEMPTS):
            same = store.records.find(Snapshot, ("dataset", "=", dataset), ("digest", "=", digest), limit=1)
            if same:
                return same[0]
            starts, ends = _span(rows, time)
            snapshot = store.new(
                Snapshot,
                dataset=dataset,
                version=_last_version(dataset, store) + 1,
                digest=digest,
                rows=len(rows),
                size_bytes=sum(file["size_bytes"] for file in files),
                columns=columns,
                files=tuple(files),
                stats=column_statistics(rows),
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
    frame = pl.scan_parquet([store.objects.path(file["digest"]) for file in found.files], glob=False)
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


def _refuse(rows: pl.DataFrame, *, target: str | None, time: str | None, key: str | None) -> None:
    if not rows.width or not len(rows):
        raise DataError("The table has no rows.", help="See what the step returns, and its sources.")
    for name, role in ((target, "target"), (time, "time column"), (key, "key")):
        if name is not None:
            require_column(name, rows.columns, role)
    for name, dtype in rows.schema.items():
        if not _can_keep(dtype):
            raise DataError(f"The column '{name}' holds {dtype}, which no file can keep.", help="Cast it or drop it.")
    if target is not None and rows[target].null_count() == len(rows):
        raise DataError(f"The target '{target}' is null in all {len(rows)} rows.", help="Have the labels arrived yet?")
    if time is not None:
        as_utc(time, rows.schema[time])
        if nulls := rows[time].null_count():
            raise DataError(f"The time column '{time}' is null in {nulls} rows.", help="Drop them, or fill them.")
    if key is not None:
        if nulls := rows[key].null_count():
            raise DataError(f"The key '{key}' is null in {nulls} rows.", help="Drop them, or name another key.")
        doubled = rows.lazy().group_by(key, maintain_order=True).len().filter(pl.col("len") > 1).collect()
        if len(doubled):
            examples = ", ".join(f"{value!r} ({count} times)" for value, count in doubled.head(3).rows())
            raise DataError(
                f"The key '{key}' repeats: {len(doubled)} values stand in more than one row, such as {examples}.",
                help=f"Keep one row each, for example with .unique('{key}', keep='last'), or name another key.",
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


def _parts(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for start in range(0, len(rows), _FILE_ROWS):
        yield rows.slice(start, _FILE_ROWS)


def _keep(part: pl.DataFrame, store: Store) -> dict[str, Any]:
    """Write one Parquet file into the store; settings are fixed, since they decide the digest."""
    with TemporaryDirectory(dir=store.home) as folder:
        path = Path(folder) / "part.parquet"
        part.write_parquet(path, compression="zstd", compression_level=3, statistics=True, row_group_size=250_000)
        size = path.stat().st_size
        return {"digest": store.objects.add_file(path), "rows": len(part), "size_bytes": size}


def _last_version(dataset: str, store: Store) -> int:
    newest = store.records.find(Snapshot, ("dataset", "=", dataset), order="-version", limit=1)
    return newest[0].version if newest else 0


def _span(rows: pl.DataFrame, time: str | None) -> tuple[datetime | None, datetime | None]:
    if time is None:
        return None, None
    moment = as_utc(time, rows.schema[time])
    first, last = rows.select(moment.min().alias("first"), moment.max().alias("last")).row(0)
    return first.astimezone(UTC), last.astimezone(UTC)
