"""Write the state of monitoring as Prometheus text (exposition format 0.0.4): incidents, and the newest measurements.

The number of series is bounded: at most 100 endpoints, and of each endpoint the 20 subjects that have moved most.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, get_args

from everloop.monitoring.findings import WINDOW
from everloop.monitoring.incidents.incident_actions import ONGOING, list_incidents
from everloop.records import EndpointRecord, Finding, IncidentSeverity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.records import FindingKind, Incident, Json
    from everloop.stores import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_ENDPOINTS = 100
MOST_SUBJECTS = 20

_VERDICTS = ("quiet", "warning", "alarm")
_MEANINGS = {
    "everloop_incidents_ongoing": "Incidents that are not over, by severity and state.",
    "everloop_drift_psi": "PSI of the newest window against the baseline, for the subjects that have moved most.",
    "everloop_drift_strength": "How surprising the newest window is; from 1 on it opens an incident.",
    "everloop_drift_subjects": "Subjects of the newest window, by verdict.",
    "everloop_drift_window_end_seconds": "End of the newest window that was checked for drift, in seconds since 1970.",
    "everloop_performance": "Metric of the newest window with labels.",
    "everloop_performance_low": "Lower end of the metric's 95 % interval.",
    "everloop_performance_high": "Upper end of the metric's 95 % interval.",
    "everloop_performance_window_end_seconds": "End of the newest window with a metric, in seconds since 1970.",
}

_Sample = tuple[dict[str, str], float]


def monitoring_metrics(store: Store) -> str:
    """Return the metrics of a project. Reads the ongoing incidents and two findings of each endpoint."""
    incidents = list_incidents(store)
    known = [endpoint.name for endpoint in store.records.find(EndpointRecord, order="name", limit=MOST_ENDPOINTS)]
    # An endpoint that is served elsewhere has no record here.
    names = list(dict.fromkeys([*known, *sorted({one.endpoint for one in incidents})]))[:MOST_ENDPOINTS]
    samples: dict[str, list[_Sample]] = {name: [] for name in _MEANINGS}
    samples["everloop_incidents_ongoing"] = list(_ongoing(names, incidents))
    for name in names:
        for metric, sample in (*_drift(store, name), *_performance(store, name)):
            samples[metric].append(sample)
    lines = []
    for metric, meaning in _MEANINGS.items():
        lines += [f"# HELP {metric} {meaning}", f"# TYPE {metric} gauge"]
        lines += [f"{metric}{{{_labels(labels)}}} {value!r}" for labels, value in samples[metric]]
    return "\n".join(lines) + "\n"


def _ongoing(names: Iterable[str], incidents: Iterable[Incident]) -> Iterable[_Sample]:
    counts: dict[tuple[str, str, str], int] = {}
    for one in incidents:
        key = one.endpoint, one.severity, one.state
        counts[key] = counts.get(key, 0) + 1
    # Zeros are written as well, so that rules about a missing series are not needed.
    for name, severity, state in product(names, get_args(IncidentSeverity), ONGOING):
        labels = {"endpoint": name, "severity": severity, "state": state}
        yield labels, float(counts.get((name, severity, state), 0))


def _drift(store: Store, endpoint: str) -> Iterable[tuple[str, _Sample]]:
    newest = _newest(store, endpoint, "drift")
    if newest is None:
        return
    subjects: Mapping[str, Mapping[str, Json]] = newest.evidence["subjects"]
    moved = {name: seen for name, seen in subjects.items() if _number(seen.get("psi")) is not None}
    largest = sorted(moved, key=lambda name: (-float(moved[name]["psi"]), name))[:MOST_SUBJECTS]
    for name in largest:
        labels = {"endpoint": endpoint, "subject": name}
        yield "everloop_drift_psi", (labels, float(moved[name]["psi"]))
        if (strength := _number(moved[name].get("strength"))) is not None:
            yield "everloop_drift_strength", (labels, strength)
    for verdict in _VERDICTS:
        count = sum(seen.get("verdict") == verdict for seen in subjects.values())
        yield "everloop_drift_subjects", ({"endpoint": endpoint, "verdict": verdict}, float(count))
    yield "everloop_drift_window_end_seconds", ({"endpoint": endpoint}, newest.window_to.timestamp())


def _performance(store: Store, endpoint: str) -> Iterable[tuple[str, _Sample]]:
    newest = _newest(store, endpoint, "performance")
    if newest is None:
        return
    labels = {"endpoint": endpoint, "metric": str(newest.evidence.get("metric", ""))}
    for metric, value in (
        ("everloop_performance", newest.value),
        ("everloop_performance_low", newest.evidence.get("low")),
        ("everloop_performance_high", newest.evidence.get("high")),
    ):
        if (number := _number(value)) is not None:
            yield metric, (labels, number)
    yield "everloop_performance_window_end_seconds", (labels, newest.window_to.timestamp())


def _newest(store: Store, endpoint: str, kind: FindingKind) -> Finding | None:
    """Return the summary of the newest window that could be measured."""
    found = store.records.find(
        Finding,
        ("endpoint", "=", endpoint),
        ("kind", "=", kind),
        ("subject", "=", WINDOW),
        order="-window_to",
        limit=5,
    )
    # Windows without predictions have no subjects.
    return next((one for one in found if isinstance(one.evidence.get("subjects"), dict)), None)


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
