"""Counts the predictions and labels of an endpoint by hour, each exactly once, in the table `aggregates/<endpoint>`.

One commit adds the counts of some commits of the tables of predictions and labels, and records how far these have been
counted. It fails if another process has counted them meanwhile. So after a crash at any moment the next call counts
what is left, and several processes and hosts can count at once.

What depends on a setting that has changed since (the bins of a version, its classes, how long labels may take) is
counted again from the rows, a few hours at a time. Until then `read_aggregates` reads these hours from the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from everloop.prediction_log.aggregates.aggregate_rows import (
    AGGREGATES,
    AggregateRow,
    by_cell,
    choose_rows,
    from_frame,
    new_generation,
    to_frame,
)
from everloop.prediction_log.aggregates.hour_matching import HOUR
from everloop.prediction_log.aggregates.hourly_cells import CellKey, HourlyCell, cells_of, decode_sum
from everloop.prediction_log.aggregates.label_cells import (
    chunks_of_hours,
    encode_labels,
    hours_of_labels,
    hours_of_predictions,
    label_cells,
)
from everloop.prediction_log.aggregates.pending_rows import MOST_COMMITS, PendingRows, find_pending, writer_of
from everloop.prediction_log.aggregates.version_bins import VersionBins, find_version_bins
from everloop.prediction_log.log_reading import fold_logs
from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, stream_name, table_name
from everloop.prediction_log.retention import KEEP_FILES_HOURS, forget_old
from everloop.stores.clock import EPOCH
from everloop.stores.tables.delta_tables import MANY_FILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    import polars as pl

    from everloop.stores import Store

_MOST_SKETCHES = 50_000
"""Sketches that are kept decoded while rows are counted, about a kilobyte each."""

_recounted: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
"""For each table, the digests of the versions' bins for which this process has looked for old counts."""


def fold_aggregates(store: Store, endpoint: str) -> int:
    """Fold the endpoint's logs, count what has not been counted, and return the number of counted predictions.

    Safe from several processes at once, and if it is killed. Does nothing in a view of the past.
    """
    if store.read_only:
        return 0
    fold_logs(store, endpoint)
    if not store.tables.exists(table_name(store, PREDICTIONS, endpoint)):
        return 0
    counting = _Counting(store, endpoint)
    # The lock makes other processes on this machine wait. The commit detects those on other machines.
    with store.lock(f"fold-{stream_name(store, AGGREGATES, endpoint)}"):
        rows = counting.run()
        counting.recount()
        counting.merge()
    forget_old(store, endpoint, counting.table)
    return rows


@dataclass
class PendingCells:
    """Counts of pending rows by cell. Memory is bounded: what is too much is encoded."""

    after: int
    upto: int
    source: str
    bins: dict[str, VersionBins]
    generation: str = field(default_factory=new_generation)
    encoded: list[AggregateRow] = field(default_factory=list)
    _cells: dict[CellKey, tuple[HourlyCell, datetime, datetime]] = field(default_factory=dict)
    _sketches: int = 0

    def add(self, rows: pl.DataFrame, version: str) -> None:
        """Count rows of one version."""
        for key, (cell, first, last) in cells_of(rows, version, self.bins[version]).items():
            known = self._cells.get(key)
            if known is not None:
                cell, first, last = known[0] + cell, min(known[1], first), max(known[2], last)
            else:
                self._sketches += len(cell.inputs) + 2
            self._cells[key] = (cell, first, last)
        if self._sketches > _MOST_SKETCHES:
            self._encode()

    def rows(self) -> list[AggregateRow]:
        """The counts as rows of the table."""
        self._encode()
        return self.encoded

    def _encode(self) -> None:
        for key, (cell, first, last) in self._cells.items():
            digest = self.bins[key.version].digest
            self.encoded.append(
                AggregateRow(
                    key=key,
                    kind="inputs",
                    bins=digest,
                    source=self.source,
                    after=self.after,
                    upto=self.upto,
                    generation=self.generation,
                    arrived_from=first,
                    arrived_at=last,
                    payload=cell.encode(),
                )
            )
        self._cells.clear()
        self._sketches = 0


def wanted_columns(names: Iterable[str]) -> list[str]:
    """The columns of a table of predictions that are counted."""
    return [name for name in names if name in _COLUMNS or name.startswith("input_")]


_COLUMNS = ("event_at", "arrived_at", "version", "role", "entity", "score", "seconds")


class _Counting:
    """One call of `fold_aggregates`."""

    def __init__(self, store: Store, endpoint: str) -> None:
        self._store = store
        self._tables = store.tables
        self._endpoint = endpoint
        self._predictions = table_name(store, PREDICTIONS, endpoint)
        self.table = table_name(store, AGGREGATES, endpoint)
        self._bins: dict[str, VersionBins] = {}

    def run(self) -> int:
        """Count what is pending, and return the number of predictions."""
        total = 0
        while True:
            counted = self._step()
            if counted is None:
                return total
            total += counted

    def _step(self) -> int | None:
        """Count some pending commits; None if there are none, or another process is counting them."""
        predictions = self._tables.snapshot(self._predictions)
        if predictions is None:
            return None
        counted = self._tables.last_batch(self.table, writer_of(predictions))
        if counted > predictions.version:
            # The table was restored to an earlier state, so the counts are of rows that may not exist any more.
            self._tables.drop(self.table)
        made = self._pending(self._predictions)
        labels = self._pending(table_name(self._store, LABELS, self._endpoint))
        matched = self._labels_counted(None) >= 0
        if made is None and labels is None:
            return None
        hours: set[datetime] = set()
        rows: list[AggregateRow] = []
        total = 0
        # What depends on the new rows was not known before they arrived.
        newest = EPOCH
        upto = made.upto if made is not None else predictions.version
        if made is not None:
            cells = PendingCells(made.after, made.upto, predictions.id, self._bins)
            for part in self._slices(made):
                total += part.height
                newest = max(newest, _latest(part))
                for (version,), of_version in part.group_by("version", maintain_order=True):
                    self._bins_of(str(version))
                    cells.add(of_version, str(version))
                hours |= hours_of_predictions(self._store, self._endpoint, part, matched=matched)
            rows += cells.rows()
        for new in labels.slices(["entity", "event_at", "arrived_at"]) if labels is not None else ():
            newest = max(newest, _latest(new))
            hours |= hours_of_labels(self._store, self._endpoint, new)
        known = self._labels_counted(labels)
        rows += self._label_rows(hours, predictions.id, upto + known + 1, newest)
        progress = [
            (pending.writer, self._tables.last_batch(self.table, pending.writer), pending.upto)
            for pending in (made, labels)
            if pending is not None
        ]
        return total if self._tables.append(self.table, to_frame(rows), progress=progress) else None

    def _pending(self, name: str) -> PendingRows | None:
        return find_pending(
            self._tables, name, lambda writer: self._tables.last_batch(self.table, writer), most_commits=MOST_COMMITS
        )

    def _labels_counted(self, labels: PendingRows | None) -> int:
        """How far the labels are counted after this step."""
        if labels is not None:
            return labels.upto
        snapshot = self._tables.snapshot(table_name(self._store, LABELS, self._endpoint))
        return -1 if snapshot is None else self._tables.last_batch(self.table, writer_of(snapshot))

    def _slices(self, pending: PendingRows) -> Iterator[pl.DataFrame]:
        for path in pending.files:
            names = pending.snapshot.scan(path).collect_schema().names()
            one = replace(pending, files=(path,))
            yield from one.slices(wanted_columns(names))

    def _label_rows(self, hours: Iterable[datetime], source: str, upto: int, newest: datetime) -> list[AggregateRow]:
        """Match the labels of some hours again."""
        wanted = set(hours)
        if not wanted:
            return []
        generation = new_generation()
        earlier = {key: row.arrived_at for key, row in self._label_times(wanted).items()}
        rows = []
        for cells in label_cells(self._store, self._endpoint, wanted, self._bins_of):
            for key, (sketch, last) in cells.items():
                times = [newest, *(time for time in (last, earlier.get(key)) if time is not None)]
                rows.append(
                    AggregateRow(
                        key=key,
                        kind="labels",
                        bins=self._bins_of(key.version).label_digest,
                        source=source,
                        after=-1,
                        upto=upto,
                        generation=generation,
                        arrived_from=EPOCH,
                        arrived_at=max(times),
                        payload=encode_labels(sketch),
                    )
                )
        return rows

    def _label_times(self, hours: set[datetime]) -> dict[CellKey, AggregateRow]:
        """The newest rows of labels in some hours."""
        import polars as pl

        if not self._tables.exists(self.table):
            return {}
        rows = self._tables.scan(self.table, since=min(hours), until=max(hours) + HOUR)
        found = rows.filter(pl.col("kind") == "labels").drop("payload").sort("arrived_at").collect()
        return {row.key: row for row in from_frame(found)}

    def _bins_of(self, version: str) -> VersionBins:
        if version not in self._bins:
            self._bins[version] = find_version_bins(self._store, self._endpoint, version)
        return self._bins[version]

    # -- counting again -----------------------------------------------------------------------------------------------

    def recount(self) -> None:
        """Count the hours again whose counts have other bins than those of the version's present baseline."""
        predictions = self._tables.snapshot(self._predictions)
        if predictions is None or not self._tables.exists(self.table):
            return
        if self._tables.last_batch(self.table, writer_of(predictions)) != predictions.version:
            # More has been logged meanwhile. It is counted first, by the next call.
            return
        place = (self._tables.root, self.table)
        stored = self._tables.scan(self.table, columns=["version", "source"])
        versions = sorted(stored.collect().filter(source=predictions.id)["version"].unique().to_list())
        digests = {name: (self._bins_of(name).digest, self._bins_of(name).label_digest) for name in versions}
        if _recounted.get(place) == digests:
            return
        rows = from_frame(self._tables.scan(self.table).drop("payload").collect().filter(source=predictions.id))
        inputs: dict[str, set[datetime]] = {}
        labels: set[datetime] = set()
        for (key, kind), of_cell in by_cell(rows).items():
            bins = self._bins_of(key.version)
            if choose_rows(of_cell, bins.digest if kind == "inputs" else bins.label_digest).stale:
                (labels if kind == "labels" else inputs.setdefault(key.version, set())).add(key.hour)
        for version, hours in sorted(inputs.items()):
            for chunk, _ in chunks_of_hours(self._store, self._endpoint, hours, version):
                self._recount_inputs(
                    PendingRows(predictions, -1, predictions.version, predictions.files), version, chunk
                )
        upto = max((row.upto for row in rows if row.kind == "labels"), default=0)
        replaced = self._label_rows(labels, predictions.id, upto, EPOCH)
        if replaced:
            self._tables.append(self.table, to_frame(replaced))
        _recounted[place] = digests

    def _recount_inputs(self, everything: PendingRows, version: str, hours: list[datetime]) -> None:
        import polars as pl

        cells = PendingCells(-1, everything.upto, everything.snapshot.id, self._bins)
        at = pl.col("event_at")
        for path in everything.files:
            rows = everything.snapshot.scan(path)
            wanted = rows.filter(
                at >= min(hours),
                at < max(hours) + HOUR,
                at.dt.truncate("1h").is_in(hours),
                pl.col("version") == version,
            )
            found = wanted.select(wanted_columns(rows.collect_schema().names())).collect()
            if found.height:
                cells.add(found, version)
        counted = cells.rows()
        if counted:
            self._tables.append(self.table, to_frame(counted))

    # -- merging ------------------------------------------------------------------------------------------------------

    def merge(self) -> None:
        """Add the rows of each hour once the table has many files."""
        snapshot, predictions = (self._tables.snapshot(name) for name in (self.table, self._predictions))
        if snapshot is None or predictions is None or len(snapshot.files) <= MANY_FILES:
            return
        known = self._tables.scan(self.table).drop("payload").collect()
        several = known.filter(known.select("event_at", "version", "role", "kind").is_duplicated())
        if several.height:
            since: datetime = several["event_at"].min()  # type: ignore[assignment]
            self._tables.rewrite(self.table, since, lambda rows: self._merged(rows, predictions.id))
        self._tables.tidy(self.table, most_files=MANY_FILES // 2)
        self._tables.vacuum(self.table, keep_hours=KEEP_FILES_HOURS)

    def _merged(self, frame: pl.DataFrame, source: str) -> pl.DataFrame:
        rows = [row for row in from_frame(frame) if row.source == source]
        merged: list[AggregateRow] = []
        for (key, kind), of_cell in sorted(by_cell(rows).items()):
            bins = self._bins_of(key.version)
            digest = bins.digest if kind == "inputs" else bins.label_digest
            chosen = choose_rows(of_cell, digest)
            if chosen.stale or len(of_cell) == 1:
                # It is counted again later.
                merged += of_cell
            elif kind == "labels":
                merged += chosen.rows
            else:
                merged.append(_sum(chosen.rows, bins))
        return to_frame(merged)


def _latest(rows: pl.DataFrame) -> datetime:
    found: datetime | None = rows["arrived_at"].max()  # type: ignore[assignment]
    return EPOCH if found is None else found


def _sum(rows: list[AggregateRow], bins: VersionBins) -> AggregateRow:
    return replace(
        rows[0],
        upto=rows[-1].upto,
        generation=new_generation(),
        arrived_from=min(row.arrived_from for row in rows),
        arrived_at=max(row.arrived_at for row in rows),
        payload=decode_sum([row.payload for row in rows], bins).encode(),
    )


__all__ = ["PendingCells", "fold_aggregates", "wanted_columns"]
