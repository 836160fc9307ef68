"""The pages about data: datasets with their snapshots, and one snapshot with its columns and contract."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.records import Contract, FeatureViewRecord, ModelVersion, Snapshot

if TYPE_CHECKING:
    from everloop.data.snapshots.snapshot_diff import SnapshotDiff
    from everloop.stores import Store

_MOST = 2000


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A dataset in the list."""

    name: str
    snapshots: int
    newest: str
    rows: int
    size_bytes: int
    columns: int
    at: datetime


@dataclass(frozen=True, slots=True)
class DataPage:
    """All datasets and feature views, those with the newest data first."""

    datasets: list[DatasetSummary]
    views: list[FeatureViewRecord]


@dataclass(frozen=True, slots=True)
class SnapshotDetail:
    """A snapshot, the other snapshots of its dataset newest first, its contract, and the versions trained on it."""

    snapshot: Snapshot
    others: list[Snapshot]
    contract: Contract | None
    versions: list[ModelVersion]


def read_diff(store: Store, before: str, after: str) -> SnapshotDiff:
    """Return what has changed from one snapshot to another. It reads the rows of both.

    Raises:
        NotFoundError: there is no such snapshot.
        UsageError: the snapshots belong to different datasets.
    """
    from everloop.data.snapshots.snapshot_diff import diff_snapshots
    from everloop.data.snapshots.snapshots import get_snapshot

    one, two = get_snapshot(before, store), get_snapshot(after, store)
    if one.dataset != two.dataset:
        raise UsageError(
            f"'{one.key}' and '{two.key}' are snapshots of different datasets.",
            help=f"Choose another snapshot of '{two.dataset}'.",
        )
    return diff_snapshots(one, two, store)


def read_data(store: Store) -> DataPage:
    """Return the list of datasets and feature views."""
    by_name: dict[str, list[Snapshot]] = {}
    for snapshot in store.records.find(Snapshot, order="-id", limit=_MOST):
        by_name.setdefault(snapshot.dataset, []).append(snapshot)
    datasets = [
        DatasetSummary(
            name=name,
            snapshots=len(found),
            newest=found[0].key,
            rows=found[0].rows,
            size_bytes=found[0].size_bytes,
            columns=len(found[0].columns),
            at=found[0].created_at,
        )
        for name, found in by_name.items()
    ]
    views = {one.name: one for one in store.records.find(FeatureViewRecord, order="id", limit=_MOST)}
    return DataPage(datasets, list(views.values()))


def read_snapshot(store: Store, ref: str) -> SnapshotDetail:
    """Return one snapshot, as DATASET@VERSION or by id.

    Raises:
        NotFoundError: there is no such snapshot.
    """
    from everloop.data.snapshots.snapshots import get_snapshot

    records = store.records
    snapshot = get_snapshot(ref, store)
    others = records.find(Snapshot, ("dataset", "=", snapshot.dataset), order="-id", limit=200)
    contracts = records.find(Contract, ("key", "=", snapshot.contract), limit=1) if snapshot.contract else []
    versions = records.find(ModelVersion, ("snapshot", "=", snapshot.key), order="-id", limit=50)
    return SnapshotDetail(snapshot, others, contracts[0] if contracts else None, versions)
