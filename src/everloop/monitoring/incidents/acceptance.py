"""Make what an incident is about the new normal: the baselines of the versions that answered meanwhile change.

After drift, later windows are compared with the distributions of the incident's windows. After a change of performance,
the metric of these windows is the new expectation, and what their labels show is what later labels should show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from everloop.data.sketches.pair_correlations import pairs_of
from everloop.errors import EverloopError
from everloop.monitoring.accepted_subjects import AcceptedPair, AcceptedSubject
from everloop.monitoring.baseline import PREDICTION, answered, find_baseline, keep_baseline
from everloop.monitoring.logged_windows import read_correlations, read_labels, read_sketches
from everloop.monitoring.noise.noise_model import pair_subject
from everloop.monitoring.performance.label_expectations import learn_expectations
from everloop.monitoring.performance.performance_checks import measure_labelled
from everloop.monitoring.performance.score_columns import plain_inputs
from everloop.monitoring.window_counts import subject_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.monitoring.baseline import Baseline
    from everloop.records import Artifact, Incident, Json
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class RebasedBaseline:
    """A new baseline of a version, not stored yet. `subjects`: what was accepted."""

    version: str
    baseline: Baseline
    subjects: tuple[str, ...]


def rebase(store: Store, incident: Incident) -> list[RebasedBaseline]:
    """Return the baselines in which the subjects of an incident are as in its windows.

    Versions without a baseline or without predictions in these windows are left out, and so are subjects that the
    baseline does not have. Nothing is stored.
    """
    found = []
    for version in incident.versions:
        baseline = find_baseline(store, version)
        if baseline is None:
            continue
        if incident.kind == "drift":
            rebased = _accept_drift(store, incident, version, baseline)
        elif incident.kind == "performance":
            rebased = _accept_performance(store, incident, version, baseline)
        else:
            continue
        if rebased is not None:
            found.append(rebased)
    return found


def keep_rebased(store: Store, incident: Incident, rebased: RebasedBaseline) -> Artifact:
    """Store a new baseline. Its record names the incident and its windows."""
    accepted: dict[str, Json] = {
        "incident": incident.id,
        "since": incident.began_at.isoformat(),
        "until": incident.seen_at.isoformat(),
        "subjects": list(rebased.subjects),
    }
    return keep_baseline(store, rebased.version, rebased.baseline, accepted=accepted)


def _accept_drift(store: Store, incident: Incident, version: str, baseline: Baseline) -> RebasedBaseline | None:
    since, until = incident.began_at, incident.seen_at
    window = read_sketches(store, incident.endpoint, version, since, until, baseline)
    if window is None:
        return None
    live = {subject_of(name, baseline): sketch for name, sketch in window.features.items()}
    if baseline.score is not None and window.score is not None:
        live[PREDICTION] = window.score
    accepted = {
        subject: AcceptedSubject(live[subject], since, until, incident.id)
        for subject in incident.subjects
        if subject in live
    }
    pairs = _accepted_pairs(store, incident, version, baseline, window.rows, accepted)
    if not accepted and not pairs:
        return None
    rebased = replace(
        baseline,
        accepted={**baseline.accepted, **accepted},
        accepted_pairs={**baseline.accepted_pairs, **pairs},
    )
    return RebasedBaseline(version, rebased, tuple(sorted((*accepted, *pairs))))


def _accepted_pairs(
    store: Store,
    incident: Incident,
    version: str,
    baseline: Baseline,
    rows: int,
    accepted: Mapping[str, AcceptedSubject],
) -> dict[str, AcceptedPair]:
    """Return the new correlations of the incident's pairs, and of the pairs of features that have moved."""
    since, until = incident.began_at, incident.seen_at
    correlations = read_correlations(store, incident.endpoint, version, since, until, baseline, rows)
    if baseline.pairs is None or correlations is None:
        return {}
    found: dict[str, AcceptedPair] = {}
    for (one, other), value in zip(pairs_of(baseline.pairs.names), correlations.tolist(), strict=True):
        members = subject_of(one, baseline), subject_of(other, baseline)
        pair = pair_subject(*members)
        if math.isfinite(value) and (pair in incident.subjects or not accepted.keys().isdisjoint(members)):
            found[pair] = AcceptedPair(value, rows, since, until, incident.id)
    return found


def _accept_performance(store: Store, incident: Incident, version: str, baseline: Baseline) -> RebasedBaseline | None:
    known = baseline.metric
    if known is None or known.name not in incident.subjects:
        return None
    labelled = read_labels(store, incident.endpoint, incident.began_at, incident.seen_at, version=version)
    try:
        measured = measure_labelled(labelled, known.name)
    except EverloopError:
        # There are no labels, or they do not fit the metric, so they say nothing about the new normal.
        return None
    if math.isnan(measured.standard_error):
        return None
    metric = replace(
        known,
        value=measured.value,
        low=measured.low,
        high=measured.high,
        standard_error=measured.standard_error,
        rows=measured.rows,
    )
    rows = answered(labelled)
    learned = learn_expectations(rows, known.name, inputs=plain_inputs(rows), time="event_at")
    packed = learned.pack() if learned is not None else None
    return RebasedBaseline(version, replace(baseline, metric=metric, packed_expectations=packed), (known.name,))
