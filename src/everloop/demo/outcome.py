"""What became of the year, read back from the store alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.records import Finding, ModelVersion, Release, Run, Snapshot

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.stores import Store

METRIC = "roc_auc"
LABELS_AFTER = "1d"


@dataclass(frozen=True, slots=True)
class LoopRunOutcome:
    """One turn of the loop and what came of it."""

    at: datetime
    run: str
    trigger: str
    candidate: str | None
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class Month:
    """The metric of one month, with its 95 % interval, as lived and as it would have been."""

    month: str
    predictions: int
    labelled: int
    versions: str
    live: float | None
    low: float | None
    high: float | None
    frozen: float | None


@dataclass(frozen=True, slots=True)
class YearOutcome:
    """The demo's result."""

    snapshots: list[Snapshot]
    runs: list[Run]
    versions: list[ModelVersion]
    alarms: list[Finding]
    releases: list[Release]
    turns: list[LoopRunOutcome]
    months: list[Month]
    sample: str | None
    """Id of one prediction, to trace."""

    @property
    def retrainings(self) -> list[LoopRunOutcome]:
        """The turns after the first, but those that were cut off and taken again."""
        return [turn for turn in self.turns[1:] if turn.state not in ("interrupted", "lost")]

    @property
    def promotions(self) -> list[Release]:
        """Releases that took over from a champion."""
        return [release for release in self.releases if release.state == "completed" and release.previous]

    @property
    def rollbacks(self) -> list[Release]:
        return [release for release in self.releases if release.state == "rolled_back"]


def read_outcome(store: Store, loop: str, endpoint: str) -> YearOutcome:
    """Gather the outcome. The frozen column scores the logged questions again with the first version."""
    import polars as pl

    from everloop.monitoring import performance_by
    from everloop.prediction_log import read_predictions

    versions = store.records.find(ModelVersion, order="id")
    runs = store.records.find(Run, ("loop", "=", loop), order="id")
    releases = store.records.find(Release, ("endpoint", "=", endpoint), order="id")
    live = performance_by(store, endpoint, METRIC, "1mo", labels_after=LABELS_AFTER)
    frozen = performance_by(store, endpoint, METRIC, "1mo", labels_after=LABELS_AFTER, as_if=versions[0].key)
    would = dict(zip(frozen["from"].to_list(), frozen["value"].to_list(), strict=True))
    months = [
        Month(
            month=f"{row['from']:%Y-%m}",
            predictions=row["predictions"],
            labelled=row["labelled"],
            versions=row["version"],
            live=row["value"],
            low=row["low"],
            high=row["high"],
            frozen=would.get(row["from"]),
        )
        for row in live.iter_rows(named=True)
    ]
    by_run = {release.run: release for release in releases if release.run}
    turns = []
    for run in runs:
        release = by_run.get(run.id)
        turns.append(
            LoopRunOutcome(
                at=run.started_at,
                run=run.id,
                trigger=run.trigger or "",
                candidate=release.candidate if release else None,
                state=release.state if release else run.state,
                why=release.decisions[-1].reason
                if release and release.decisions
                else run.error or "nothing new to learn",
            )
        )
    newest = read_predictions(store, endpoint).filter(pl.col("role") != "shadow").select("id").last().collect()
    return YearOutcome(
        snapshots=store.records.find(Snapshot, order="id"),
        runs=runs,
        versions=versions,
        alarms=store.records.find(Finding, ("severity", "=", "alarm"), order="id"),
        releases=releases,
        turns=turns,
        months=months,
        sample=newest["id"][0] if newest.height else None,
    )
