"""Add a source to the store as a dataset version; export, delete and restore versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.snapshots.export_formats import check_exportable
from everloop.data.snapshots.file_folders import is_folder
from everloop.data.snapshots.snapshots import get_snapshot, load_snapshot, take_snapshot
from everloop.data.sources.reading import read
from everloop.errors import AlreadyExistsError, ConflictError, UsageError
from everloop.records import ModelVersion, Snapshot
from everloop.stores import collect_observations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.data.sources.reading import Source
    from everloop.stores import Store

_WRITERS = (".parquet", ".csv", ".jsonl", ".arrow")


def add_table(
    source: Source,
    dataset: str,
    store: Store,
    *,
    target: str | None = None,
    time: str | None = None,
    key: str | None = None,
    **options: Any,
) -> Snapshot:
    """Read a source (see `read`) and store its rows as the next version of a dataset, with a record of the source.

    Raises:
        SourceError: the source cannot be read, or a file changed while it was read.
        DataError: see `take_snapshot`.
    """
    with collect_observations() as seen:
        frame = read(source, event_time=time, **options) if time is not None else read(source, **options)
    return take_snapshot(frame, dataset, store, target=target, time=time, key=key, sources=seen)


def export_table(snapshot: Snapshot | str, store: Store, path: Path | str) -> Path:
    """Write a version's rows to a new file, in the format of its suffix.

    Raises:
        UsageError: the format is unknown or cannot contain a column (see `export_formats`), or the snapshot is of a
            folder.
        AlreadyExistsError: the file exists.
    """
    found = get_snapshot(snapshot, store) if isinstance(snapshot, str) else snapshot
    target = Path(path)
    if target.suffix not in _WRITERS:
        raise UsageError(
            f"'{path}' does not have the suffix of a format that can be written.",
            help=f"Use one of: {', '.join(_WRITERS)}.",
        )
    if target.exists():
        raise AlreadyExistsError(f"'{path}' already exists.", help="Choose the name of a new file.")
    if is_folder(found):
        raise UsageError(f"'{found.key}' is a folder of files, not a table.", help="Export it to a folder.")
    frame = load_snapshot(found, store)
    check_exportable(frame, target.suffix, found.key)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        match target.suffix:
            case ".parquet":
                frame.sink_parquet(part)
            case ".csv":
                frame.sink_csv(part)
            case ".jsonl":
                frame.sink_ndjson(part)
            case _:
                frame.sink_ipc(part)
    except pl.exceptions.PolarsError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"'{found.key}' cannot be written as {target.suffix}: {error}.") from error
    part.replace(target)
    return target


def delete_snapshots(store: Store, refs: Sequence[str], *, force: bool = False) -> list[Snapshot]:
    """Delete versions; the name of a dataset stands for all of its versions. `restore_snapshot` undoes it until `gc`.

    A dataset's newest version cannot be deleted before the older ones, because its number would be used again.

    Args:
        force: also delete versions that a model was trained on.

    Raises:
        ConflictError: a model was trained on a version, or the newest version would be deleted before older ones.
        NotFoundError: a version does not exist.
    """
    chosen: dict[str, Snapshot] = {}
    for ref in refs:
        versions = [] if "@" in ref else store.records.find(Snapshot, ("dataset", "=", ref))
        chosen |= {snapshot.key: snapshot for snapshot in versions or [store.records.get(Snapshot, ref)]}
    for snapshot in chosen.values():
        models = store.records.find(ModelVersion, ("snapshot", "=", snapshot.key), limit=1)
        if models and not force:
            raise ConflictError(
                f"The model {models[0].key} was trained on '{snapshot.key}'.",
                help="To delete it anyway, pass force=True, or --force on the command line.",
            )
        others = store.records.find(Snapshot, ("dataset", "=", snapshot.dataset), order="-version")
        remaining = [other for other in others if other.key not in chosen]
        if remaining and remaining[0].version < snapshot.version:
            raise ConflictError(
                f"'{snapshot.key}' is the newest version; if it is deleted, its number would be used again.",
                help=f"Delete older ones, or the whole dataset: everloop data rm {snapshot.dataset}",
            )
    for snapshot in chosen.values():
        store.records.delete(Snapshot, snapshot.id)
    return list(chosen.values())


def restore_snapshot(store: Store, ref: str) -> Snapshot:
    """Bring back a deleted version.

    Raises:
        NotFoundError: no version with this key was deleted, or `gc` has removed it.
        AlreadyExistsError: another version has its number.
    """
    store.records.restore(Snapshot, ref)
    return store.records.get(Snapshot, ref)
