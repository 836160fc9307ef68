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
_NEWEST_ROWS = 30
_LONGEST_CELL = 80


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
    contract_toml: str
    """The dataset's newest contract as it can be edited; empty if it has none."""
    newest_contract: str | None
    """Key of that contract."""
    versions: list[ModelVersion]


@dataclass(frozen=True, slots=True)
class FeatureViewDetail:
    """A feature view, its versions newest first, and its newest rows as text."""

    view: FeatureViewRecord
    versions: list[str]
    rows: int
    event_at: datetime | None
    """Time of the newest event; None without rows."""
    arrived_at: datetime | None
    stale: bool
    """Whether even the newest row is older than the view's time to live."""
    names: list[str]
    newest: list[list[str | None]]


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
    from everloop.data import contract_to_toml, find_contract
    from everloop.data.snapshots.snapshots import get_snapshot

    records = store.records
    snapshot = get_snapshot(ref, store)
    others = records.find(Snapshot, ("dataset", "=", snapshot.dataset), order="-id", limit=200)
    contracts = records.find(Contract, ("key", "=", snapshot.contract), limit=1) if snapshot.contract else []
    versions = records.find(ModelVersion, ("snapshot", "=", snapshot.key), order="-id", limit=50)
    newest = find_contract(snapshot.dataset, store)
    return SnapshotDetail(
        snapshot=snapshot,
        others=others,
        contract=contracts[0] if contracts else newest,
        contract_toml="" if newest is None else contract_to_toml(newest),
        newest_contract=None if newest is None else newest.key,
        versions=versions,
    )


def read_feature_view(store: Store, ref: str) -> FeatureViewDetail:
    """Return a feature view, by name or NAME@VERSION.

    Raises:
        NotFoundError: the view does not exist.
    """
    from everloop.data.features import check_freshness, find_version
    from everloop.data.features.materializing import stored_rows

    view = find_version(store, ref)
    fresh = check_freshness(store, view.key)
    same = store.records.find(FeatureViewRecord, ("name", "=", view.name), order="-version", limit=200)
    names: list[str] = []
    rows: list[list[str | None]] = []
    if fresh.rows:
        newest = stored_rows(store, view).sort("event_at", descending=True).head(_NEWEST_ROWS).collect()
        names = newest.columns
        rows = [[None if value is None else str(value)[:_LONGEST_CELL] for value in row] for row in newest.iter_rows()]
    return FeatureViewDetail(
        view, [one.key for one in same], fresh.rows, fresh.event_at, fresh.arrived_at, fresh.stale, names, rows
    )
