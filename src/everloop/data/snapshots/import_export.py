"""Dataset versions by hand: from a source into the store, out of it into a file, and away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.snapshots.export_formats import refuse_unheld
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
    """Read a source (see `read`) and keep its rows as the next version of a dataset, with where they came from.

    Raises:
        SourceError: it cannot be read, or a file changed meanwhile.
        DataError: see `take_snapshot`.
    """
    with collect_observations() as seen:
        frame = read(source, event_time=time, **options) if time is not None else read(source, **options)
    return take_snapshot(frame, dataset, store, target=target, time=time, key=key, sources=seen)


def export_table(snapshot: Snapshot | str, store: Store, path: Path | str) -> Path:
    """Write a version's rows into one new file, whose name says its format.

    Raises:
        UsageError: the format is unknown or cannot hold a column (see `exports`), or the snapshot is of a folder.
        AlreadyExistsError: the file is there.
    """
    found = get_snapshot(snapshot, store) if isinstance(snapshot, str) else snapshot
    target = Path(path)
    if target.suffix not in _WRITERS:
        raise UsageError(f"'{path}' names no format that can be written.", help=f"There are: {', '.join(_WRITERS)}.")
    if target.exists():
        raise AlreadyExistsError(f"'{path}' is there already.", help="Name a new file.")
    if is_folder(found):
        raise UsageError(f"'{found.key}' holds files.", help="Export it to a folder.")
    frame = load_snapshot(found, store)
    refuse_unheld(frame, target.suffix, found.key)
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
    """Delete versions, or with a dataset's name all of its versions; `restore_snapshot` undoes it until `gc`.

    A dataset's newest version stays as long as others do: its number must not come to mean something else.

    Args:
        force: also those that a model version learned from.

    Raises:
        ConflictError: a model learned from one, or only the newest would go.
        NotFoundError: there is no such version.
    """
    chosen: dict[str, Snapshot] = {}
    for ref in refs:
        whole = [] if "@" in ref else store.records.find(Snapshot, ("dataset", "=", ref))
        chosen |= {snapshot.key: snapshot for snapshot in whole or [store.records.get(Snapshot, ref)]}
    for snapshot in chosen.values():
        models = store.records.find(ModelVersion, ("snapshot", "=", snapshot.key), limit=1)
        if models and not force:
            raise ConflictError(
                f"The model {models[0].key} learned from '{snapshot.key}'.",
                help="Add --force to delete it all the same.",
            )
        others = store.records.find(Snapshot, ("dataset", "=", snapshot.dataset), order="-version")
        stay = [other for other in others if other.key not in chosen]
        if stay and stay[0].version < snapshot.version:
            raise ConflictError(
                f"'{snapshot.key}' is the newest version, and its number would be given again.",
                help=f"Delete older ones, or the whole dataset: everloop data rm {snapshot.dataset}",
            )
    for snapshot in chosen.values():
        store.records.delete(Snapshot, snapshot.id)
    return list(chosen.values())


def restore_snapshot(store: Store, ref: str) -> Snapshot:
    """Bring back a deleted version.

    Raises:
        NotFoundError: none of this key was deleted, or `gc` has swept it.
        AlreadyExistsError: another has its number.
    """
    store.records.restore(Snapshot, ref)
    return store.records.get(Snapshot, ref)
