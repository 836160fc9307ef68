"""The distributions behind an incident: each feature in the reference, and in the last window that was found unusual.

Both are counts of cells that exist already, in the version's baseline and in the hourly aggregates; no row is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from everloop.records import Finding, Incident

if TYPE_CHECKING:
    from everloop.data.sketches.column_sketches import Sketch
    from everloop.prediction_log.aggregates.aggregate_reading import WindowSketch
    from everloop.stores import Store

MOST_SUBJECTS = 8
_MOST_CELLS = 24
_PREDICTION = "prediction"


@dataclass(frozen=True, slots=True)
class Distribution:
    """Shares of rows by cell, of the reference and of a window; each sums to one. `left_out`: cells that are not shown
    and together make up the rest."""

    subject: str
    version: str
    since: datetime
    until: datetime
    cells: list[str]
    reference: list[float]
    window: list[float]
    rows: int
    left_out: int = 0


def read_distributions(store: Store, ref: str) -> list[Distribution]:
    """Return the distributions of the features of an incident, the latest window of each; empty if none is known.

    Raises:
        NotFoundError: the incident does not exist.
    """
    from everloop.monitoring.baseline import Baseline, find_baseline
    from everloop.monitoring.incidents.incident_actions import get_incident
    from everloop.monitoring.window_counts import centres_of
    from everloop.prediction_log.aggregates.aggregate_reading import read_aggregates

    baselines: dict[str, Baseline | None] = {}
    windows: dict[tuple[str, datetime, datetime], WindowSketch | None] = {}
    found = []
    incident = get_incident(store, ref)
    for one in _latest(store, incident):
        version = str(one.version)
        if version not in baselines:
            baselines[version] = find_baseline(store, version)
        baseline = baselines[version]
        reference = centres_of(baseline).get(one.subject) if baseline is not None else None
        if reference is None:
            continue
        key = (version, one.window_from, one.window_to)
        if key not in windows:
            read = read_aggregates(store, incident.endpoint, one.window_from, one.window_to, version)
            windows[key] = next((sketch for sketch in read if sketch.version == version), None)
        counted = windows[key]
        live = None if counted is None else _sketch_of(counted, one.subject)
        if live is not None and len(live.counts) == len(reference.counts):
            found.append(_distribution(one, reference, live))
    return found


def _latest(store: Store, incident: Incident) -> list[Finding]:
    by_subject: dict[str, Finding] = {}
    findings = store.records.get_many(Finding, list(incident.findings[-300:]))
    for one in sorted(findings, key=lambda finding: finding.window_from):
        if one.version is not None and one.kind == "drift":
            by_subject[one.subject] = one
    return sorted(by_subject.values(), key=lambda one: -(one.value or 0.0))[:MOST_SUBJECTS]


def _sketch_of(window: WindowSketch, subject: str) -> Sketch | None:
    if subject == _PREDICTION and window.score is not None:
        return window.score
    return window.inputs.get(subject) or window.inputs.get(subject.removeprefix("input_"))


def _distribution(finding: Finding, reference: Sketch, live: Sketch) -> Distribution:
    before, now = _shares(reference), _shares(live)
    labels = reference.bins.labels
    used = [index for index in range(len(labels)) if before[index] > 0 or now[index] > 0]
    # Of many categories the most frequent ones are shown, in the order of the reference.
    largest = sorted(used, key=lambda at: -max(before[at], now[at]))
    shown = sorted(largest[:_MOST_CELLS])
    return Distribution(
        subject=finding.subject,
        version=str(finding.version),
        since=finding.window_from,
        until=finding.window_to,
        cells=[labels[index] for index in shown],
        reference=[before[index] for index in shown],
        window=[now[index] for index in shown],
        rows=int(sum(live.counts)),
        left_out=len(used) - len(shown),
    )


def _shares(sketch: Sketch) -> list[float]:
    total = float(sum(sketch.counts)) or 1.0
    return [float(count) / total for count in sketch.counts]
