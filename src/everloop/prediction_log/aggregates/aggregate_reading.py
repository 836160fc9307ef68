"""Reads the aggregates of any window of an endpoint's prediction log, without reading its rows.

Whole hours come from the table of aggregates. The parts of hours at the window's ends are counted from their rows, and
so are hours that the table does not show as they were known at the store's time, or not with the present bins.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from everloop.data.sketches.score_sketches import LabelSketch, add_label_sketches
from everloop.errors import UsageError
from everloop.prediction_log.aggregates.aggregate_folding import PendingCells, fold_aggregates, wanted_columns
from everloop.prediction_log.aggregates.aggregate_rows import AGGREGATES, AggregateRow, by_cell, choose_rows, from_frame
from everloop.prediction_log.aggregates.hour_matching import HOUR
from everloop.prediction_log.aggregates.hourly_cells import HourlyCell, add_cells, cells_of, decode_sum
from everloop.prediction_log.aggregates.label_cells import (
    chunks_of_hours,
    decode_labels,
    hours_of_labels,
    hours_of_predictions,
    sketch_labelled,
)
from everloop.prediction_log.aggregates.pending_rows import find_pending
from everloop.prediction_log.aggregates.version_bins import VersionBins, find_version_bins
from everloop.prediction_log.label_matching import ANSWERED
from everloop.prediction_log.log_reading import read_labelled
from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name
from everloop.records import EndpointRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import polars as pl

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class WindowSketch:
    """The predictions of one version in a window.

    Attributes:
        version: key of the model version.
        rows: number of predictions.
        inputs: sketches by input, with the bins of the version's baseline; empty if it has none.
        score: sketch of the score with the baseline's bins; None if the baseline has no scores.
        seconds: distribution of the time that the answers took.
        labels: scores and labels of the predictions whose label has arrived; None if there are none.
    """

    version: str
    since: datetime
    until: datetime
    rows: int
    seconds: Sketch
    inputs: dict[str, Sketch] = field(default_factory=dict)
    score: Sketch | None = None
    labels: LabelSketch | None = None


def read_aggregates(
    store: Store,
    endpoint: str,
    since: datetime,
    until: datetime,
    version: str | None = None,
    *,
    roles: Sequence[str] | None = None,
) -> list[WindowSketch]:
    """Return what is known about the predictions with `since <= event_at < until`, one sketch for each version.

    Only what had arrived by the time of the store's clock counts. Reading first counts what has been logged, so no
    other process has to run; a view of the past counts it in memory.

    Args:
        since: with a time zone.
        until: with a time zone.
        version: key of a model version, for its predictions in any role. None: all predictions that clients received.
        roles: only predictions in these roles. Default: see `version`.

    Returns:
        The versions that have predictions, sorted by key.

    Raises:
        NotFoundError: the endpoint does not exist.
        UsageError: the window ends before it begins, or a time has no time zone.
    """
    for moment in (since, until):
        if moment.tzinfo is None:
            raise UsageError(f"The time {moment} has no time zone.", help="Pass a datetime in UTC.")
    if until < since:
        raise UsageError(f"The window ends at {until}, before it begins at {since}.", help="Swap the two times.")
    fold_aggregates(store, endpoint)
    if not store.tables.exists(table_name(store, PREDICTIONS, endpoint)):
        store.records.get(EndpointRecord, endpoint)
        return []
    if roles is None and version is None:
        roles = ANSWERED
    window = _Window(store, endpoint, since.astimezone(UTC), until.astimezone(UTC), version, roles)
    return window.read()


class _Window:
    """One call of `read_aggregates`."""

    def __init__(
        self,
        store: Store,
        endpoint: str,
        since: datetime,
        until: datetime,
        version: str | None,
        roles: Sequence[str] | None,
    ) -> None:
        self._store = store
        self._as_of = store.now()
        self._view = store.as_of(self._as_of)
        self._endpoint = endpoint
        self._since, self._until = since, until
        self._first = _hour(since) if since == _hour(since) else _hour(since) + HOUR
        self._last = _hour(until)
        """Whole hours are those with `first <= hour < last`."""
        self._version, self._roles = version, roles
        self._bins: dict[str, VersionBins] = {}
        self._cells: dict[str, list[HourlyCell]] = defaultdict(list)
        self._labels: dict[str, list[LabelSketch]] = defaultdict(list)

    def read(self) -> list[WindowSketch]:
        self._read_whole_hours()
        if self._first <= self._last:
            self._read_rows(self._since, self._first)
            self._read_rows(self._last, self._until)
        else:
            self._read_rows(self._since, self._until)
        found = []
        for version, cells in sorted(self._cells.items()):
            total = add_cells(cells)
            labels = add_label_sketches(self._labels[version])
            found.append(
                WindowSketch(
                    version=version,
                    since=self._since,
                    until=self._until,
                    rows=total.rows,
                    seconds=total.seconds,
                    inputs=total.inputs,
                    score=total.score,
                    labels=labels if labels is not None and labels.rows + labels.unknown else None,
                )
            )
        return found

    def _read_whole_hours(self) -> None:
        if self._first >= self._last:
            return
        rows, counted = self._stored()
        made = find_pending(self._store.tables, table_name(self._store, PREDICTIONS, self._endpoint), counted)
        pending: list[AggregateRow] = []
        changed: set[datetime] = set()
        if made is not None:
            pending, changed = self._pending_rows(made)
            if made.after < 0:
                rows = []
        new_labels = find_pending(self._store.tables, table_name(self._store, LABELS, self._endpoint), counted)
        for new in new_labels.slices(["entity", "event_at"]) if new_labels is not None else ():
            changed |= hours_of_labels(self._view, self._endpoint, new)
        stale: dict[str, set[datetime]] = {"inputs": set(), "labels": changed}
        cells = by_cell([*rows, *pending])
        for (key, kind), of_cell in sorted(cells.items()):
            bins = self._bins_of(key.version)
            chosen = choose_rows(of_cell, bins.digest if kind == "inputs" else bins.label_digest, self._as_of)
            if chosen.stale:
                stale[kind].add(key.hour)
        payloads: dict[str, list[bytes]] = defaultdict(list)
        for (key, kind), of_cell in sorted(cells.items()):
            if key.hour in stale[kind]:
                continue
            bins = self._bins_of(key.version)
            if kind == "inputs":
                chosen = choose_rows(of_cell, bins.digest, self._as_of)
                payloads[key.version] += [row.payload for row in chosen.rows]
                continue
            for row in choose_rows(of_cell, bins.label_digest, self._as_of).rows:
                labels = decode_labels(row.payload)
                if labels is not None:
                    self._labels[key.version].append(labels)
        for version, encoded in payloads.items():
            # Of a version whose predictions have all arrived since the moment of the view, nothing is known yet.
            if encoded:
                self._cells[version].append(decode_sum(encoded, self._bins_of(version)))
        inside = {kind: {hour for hour in hours if self._first <= hour < self._last} for kind, hours in stale.items()}
        for chunk, _ in chunks_of_hours(self._view, self._endpoint, inside["inputs"], self._version):
            self._count_rows(chunk[0], chunk[-1] + HOUR, set(chunk))
        for chunk, _ in chunks_of_hours(self._view, self._endpoint, inside["labels"], self._version):
            self._match_rows(chunk[0], chunk[-1] + HOUR, set(chunk))

    def _stored(self) -> tuple[list[AggregateRow], Callable[[str], int]]:
        """The stored rows of the window, and how far the logs have been counted at the same moment."""
        import polars as pl

        name = table_name(self._store, AGGREGATES, self._endpoint)
        predictions = self._store.tables.snapshot(table_name(self._store, PREDICTIONS, self._endpoint))
        table = self._store.tables.snapshot(name)
        if table is None or predictions is None:
            return [], lambda writer: -1
        # The rows and the progress are of one version.
        at = pl.col("event_at")
        frame = table.rows().filter(
            at >= self._first, at < self._last, pl.col("source") == predictions.id, *self._filters()
        )
        rows = from_frame(frame.collect())
        known = {what: table.last_batch(what) for what in self._writers()}
        return rows, lambda writer: known.get(writer, -1)

    def _writers(self) -> list[str]:
        from everloop.prediction_log.aggregates.pending_rows import writer_of

        names = [table_name(self._store, what, self._endpoint) for what in (PREDICTIONS, LABELS)]
        return [writer_of(one) for one in (self._store.tables.snapshot(name) for name in names) if one is not None]

    def _pending_rows(self, made: Any) -> tuple[list[AggregateRow], set[datetime]]:
        """Counts of what has been logged since, and the hours whose labels may have changed by it."""
        import polars as pl

        pending = PendingCells(made.after, made.upto, made.snapshot.id, self._bins)
        changed: set[datetime] = set()
        at = pl.col("event_at")
        for part in made.slices():
            changed |= hours_of_predictions(self._view, self._endpoint, part)
            inside = part.select(wanted_columns(part.columns)).filter(
                at >= self._first, at < self._last, *self._filters()
            )
            for (version,), of_version in inside.group_by("version", maintain_order=True):
                self._bins_of(str(version))
                pending.add(of_version, str(version))
        if made.after < 0:
            changed |= {row.key.hour for row in pending.rows()}
        return pending.rows(), changed

    def _read_rows(self, since: datetime, until: datetime) -> None:
        if since < until:
            self._count_rows(since, until, None)
            self._match_rows(since, until, None)

    def _count_rows(self, since: datetime, until: datetime, hours: set[datetime] | None) -> None:
        """Count the rows of a short time, or of some hours of it."""
        rows = self._view.tables.scan(table_name(self._store, PREDICTIONS, self._endpoint), since=since, until=until)
        rows = rows.select(wanted_columns(rows.collect_schema().names())).filter(*self._filters(), *_among(hours))
        for (version,), part in rows.collect().group_by("version", maintain_order=True):
            name = str(version)
            counted = cells_of(part, name, self._bins_of(name))
            self._cells[name] += [counted[key][0] for key in sorted(counted)]

    def _match_rows(self, since: datetime, until: datetime, hours: set[datetime] | None) -> None:
        rows = read_labelled(self._view, self._endpoint, since, until, self._version, roles=self._roles)
        versions = self._view.tables.scan(
            table_name(self._store, PREDICTIONS, self._endpoint), since=since, until=until, columns=["version"]
        )
        for version in versions.unique().collect()["version"]:
            self._bins_of(version)
        sketched = sketch_labelled(rows.filter(*_among(hours)), self._bins)
        for key in sorted(sketched):
            self._labels[key.version].append(sketched[key][0])

    def _filters(self) -> list[pl.Expr]:
        import polars as pl

        found = [] if self._version is None else [pl.col("version") == self._version]
        return found if self._roles is None else [*found, pl.col("role").is_in(list(self._roles))]

    def _bins_of(self, version: str) -> VersionBins:
        if version not in self._bins:
            self._bins[version] = find_version_bins(self._view, self._endpoint, version)
        return self._bins[version]


def _among(hours: Iterable[datetime] | None) -> list[pl.Expr]:
    import polars as pl

    return [] if hours is None else [pl.col("event_at").dt.truncate("1h").is_in(sorted(hours))]


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


__all__ = ["WindowSketch", "read_aggregates"]
