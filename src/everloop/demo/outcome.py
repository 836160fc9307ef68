"""Read the outcome of the simulated year from the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.records import Incident, ModelVersion, Release, Run, Snapshot

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.stores import Store

METRIC = "roc_auc"
LABELS_AFTER = "1d"


@dataclass(frozen=True, slots=True)
class LoopRunOutcome:
    """One run of the loop and its result."""

    at: datetime
    run: str
    trigger: str
    candidate: str | None
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class Month:
    """The metric of one month with its 95 % interval, live and as it would be if the first version had stayed."""

    month: str
    predictions: int
    labelled: int
    versions: str
    live: float | None
    low: float | None
    high: float | None
    frozen: float | None


@dataclass(frozen=True, slots=True)
class JudgedIncident:
    """An incident, and what happened to the live metric meanwhile.

    `expected` is the metric before the release; `live` the metric of the predictions during the incident, with its 95 %
    interval. None if it cannot be measured.
    """

    incident: Incident
    expected: float | None
    live: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """What hindsight says: `needed` if the metric was worse for certain, `not needed` if it was not worse."""
        if self.expected is None or self.live is None or self.low is None or self.high is None:
            return "unknown"
        if self.high < self.expected:
            return "needed"
        return "not needed" if self.live >= self.expected else "open"


@dataclass(frozen=True, slots=True)
class YearOutcome:
    """Everything that happened in the simulated year."""

    snapshots: list[Snapshot]
    runs: list[Run]
    versions: list[ModelVersion]
    incidents: list[JudgedIncident]
    releases: list[Release]
    loop_runs: list[LoopRunOutcome]
    months: list[Month]
    sample: str | None
    """Id of one prediction, as an example for `everloop lineage`."""

    @property
    def retrainings(self) -> list[LoopRunOutcome]:
        """The runs after the first one, without those that were interrupted or lost and then repeated."""
        return [run for run in self.loop_runs[1:] if run.state not in ("interrupted", "lost")]

    @property
    def promotions(self) -> list[Release]:
        """Releases that replaced a champion."""
        return [release for release in self.releases if release.state == "completed" and release.previous]

    @property
    def rollbacks(self) -> list[Release]:
        return [release for release in self.releases if release.state == "rolled_back"]


def judge_incident(store: Store, incident: Incident) -> JudgedIncident:
    """Compare the live metric during an incident with the metric before the release of the version that answered."""
    from everloop.errors import EmptySampleError
    from everloop.monitoring import find_baseline, measure_labelled
    from everloop.monitoring.logged_windows import read_labels

    version = incident.versions[0] if incident.versions else None
    baseline = find_baseline(store, version) if version is not None else None
    expected = baseline.metric.value if baseline is not None and baseline.metric is not None else None
    try:
        labelled = read_labels(store, incident.endpoint, incident.began_at, incident.seen_at, version=version)
        measured = measure_labelled(labelled, METRIC)
    except EmptySampleError:
        return JudgedIncident(incident, expected, None, None, None)
    return JudgedIncident(incident, expected, measured.value, measured.low, measured.high)


def read_outcome(store: Store, loop: str, endpoint: str) -> YearOutcome:
    """Read the outcome of the year.

    For `Month.frozen`, all logged requests are scored again with the first version.
    """
    import polars as pl

    from everloop.monitoring import performance_by
    from everloop.prediction_log import read_predictions

    versions = store.records.find(ModelVersion, order="id")
    runs = store.records.find(Run, ("loop", "=", loop), order="id")
    releases = store.records.find(Release, ("endpoint", "=", endpoint), order="id")
    live = performance_by(store, endpoint, METRIC, "1mo", labels_after=LABELS_AFTER)
    frozen = performance_by(store, endpoint, METRIC, "1mo", labels_after=LABELS_AFTER, as_if=versions[0].key)
    frozen_values = dict(zip(frozen["from"].to_list(), frozen["value"].to_list(), strict=True))
    months = [
        Month(
            month=f"{row['from']:%Y-%m}",
            predictions=row["predictions"],
            labelled=row["labelled"],
            versions=row["version"],
            live=row["value"],
            low=row["low"],
            high=row["high"],
            frozen=frozen_values.get(row["from"]),
        )
        for row in live.iter_rows(named=True)
    ]
    by_run = {release.run: release for release in releases if release.run}
    loop_runs = []
    for run in runs:
        release = by_run.get(run.id)
        loop_runs.append(
            LoopRunOutcome(
                at=run.started_at,
                run=run.id,
                trigger=run.trigger or "",
                candidate=release.candidate if release else None,
                state=release.state if release else run.state,
                why=release.decisions[-1].reason
                if release and release.decisions
                else run.error or "no new data or code",
            )
        )
    newest = read_predictions(store, endpoint).filter(pl.col("role") != "shadow").select("id").last().collect()
    return YearOutcome(
        snapshots=store.records.find(Snapshot, order="id"),
        runs=runs,
        versions=versions,
        incidents=[judge_incident(store, one) for one in store.records.find(Incident, order="id")],
        releases=releases,
        loop_runs=loop_runs,
        months=months,
        sample=newest["id"][0] if newest.height else None,
    )
