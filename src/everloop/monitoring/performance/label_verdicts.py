"""What labels say about estimates: whether they confirm them, and whether they still follow predictions as before.

The state is kept in the summaries of performance checks. Each labelled row counts once in the sequential test, because
a window continues from the last window that ended before it began.
"""

from __future__ import annotations

import json
import math
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

import numpy as np

from everloop.errors import EverloopError, UsageError
from everloop.monitoring.findings import WINDOW, CheckedSeries
from everloop.monitoring.measures.concept_drift import ConceptTest, sum_labels
from everloop.monitoring.measures.tail_probabilities import normal_quantile
from everloop.monitoring.performance.performance_estimates import PerformanceEstimate, compare_with_labels
from everloop.records import Finding

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from everloop.monitoring.baseline import Baseline
    from everloop.records import Json
    from everloop.stores import Store

CONCEPT, ESTIMATES = "concept", "estimates"
"""Keys in the evidence of a summary: the sequential test, and the comparison with estimates."""
_LOOK_BACK = 50
_Z = normal_quantile(0.025)


class _Measured(Protocol):
    @property
    def value(self) -> float: ...
    @property
    def standard_error(self) -> float: ...


def expectations_digest(baseline: Baseline) -> str:
    """Return what identifies the expectations of a baseline. A verdict about others says nothing about these."""
    return sha256((baseline.packed_expectations or "").encode()).hexdigest()[:16]


def look_at_labels(
    store: Store, check: CheckedSeries, baseline: Baseline, labelled: pl.DataFrame, since: datetime
) -> dict[str, Json] | None:
    """Continue the sequential test of concept drift with the labels of a window.

    Args:
        labelled: the labelled predictions of the window, with `score` and `actual`.
        since: start of the window.

    Returns:
        `drifted`, `p_value`, `since` (start of the window since which the evidence is strongest), `gaps` (see
        `ConceptTest.gaps`) and the `state`; None if the baseline does not say how labels follow predictions.
    """
    known = baseline.expectations()
    if known is None or known.concept is None or "scores" in labelled.columns:
        return None
    digest = expectations_digest(baseline)
    test, starts = ConceptTest(known.concept), {}
    for summary in _summaries(store, check, before=since):
        found = summary.evidence.get(CONCEPT)
        if found and found.get("reference") == digest:
            state = json.loads(zlib.decompress(b64decode(found["state"])))
            test, starts = ConceptTest.from_json(known.concept, state["test"]), dict(state["starts"])
            break
    scores, labels = (labelled[name].cast(float).to_numpy() for name in ("score", "actual"))
    try:
        test = test.look(sum_labels(known.concept, scores.astype(np.float64), labels.astype(np.float64)))
    except UsageError:
        # A score or label is outside the range of the task, for example of another model.
        return None
    starts.setdefault(str(test.looks), since.isoformat())
    kept = {str(look) for look, _ in test.starts}
    starts = {look: start for look, start in starts.items() if look in kept}
    state = {"test": test.to_json(), "starts": starts}
    likely = test.likely_start()
    return {
        "drifted": test.drifted,
        "p_value": test.p_value,
        "since": starts.get(str(likely[0])) if likely is not None and test.drifted else None,
        "gaps": test.gaps() if test.drifted else [],
        "looks": test.looks,
        "reference": digest,
        "state": b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode())).decode(),
    }


def concept_sentence(concept: dict[str, Json] | None) -> str:
    """Return what the test found in a sentence; empty if labels follow predictions as before."""
    if concept is None or not concept["drifted"]:
        return ""
    began = f" since {datetime.fromisoformat(concept['since']):%Y-%m-%d}" if concept["since"] else ""
    return f"Labels{began} no longer follow predictions as they did in the reference."


@dataclass(frozen=True, slots=True)
class _Told:
    """What a drift check expected of a window, and the labelled rows of that window."""

    now: float
    error: float
    predictions: int
    labelled: pl.DataFrame


def compare_told(
    store: Store,
    check: CheckedSeries,
    baseline: Baseline,
    labelled: pl.DataFrame,
    since: datetime,
    until: datetime,
    measure: Callable[[pl.DataFrame], _Measured],
) -> dict[str, Json] | None:
    """Compare what drift checks expected of the metric with what labels show for the same predictions.

    Args:
        check: the performance check, with its metric.
        labelled: the labelled predictions between `since` and `until`, with `event_at`.
        measure: measures the metric.

    Returns:
        The mean estimate, the realised value, the p-value of their difference, `contradicted`, and a `text` for
        people; None if nothing was expected, or the labels do not suffice.
    """
    import polars as pl

    told = _told(store, check, labelled, since, until)
    if not told or check.metric is None:
        return None
    try:
        realised = measure(pl.concat([one.labelled for one in told]))
    except EverloopError:
        return None
    weights = [one.labelled.height for one in told]
    estimated, error = (
        float(np.average([getattr(one, name) for one in told], weights=weights)) for name in ("now", "error")
    )
    missing = 1 - min(1.0, sum(weights) / max(1, sum(one.predictions for one in told)))
    # The estimate is about all predictions of its window, and labels about some of them.
    error = math.hypot(error, realised.standard_error * math.sqrt(missing))
    if not all(map(math.isfinite, (estimated, error, realised.value))):
        return None
    low, high = estimated - _Z * error, estimated + _Z * error
    estimate = PerformanceEstimate(
        metric=check.metric,
        value=estimated,
        low=low,
        high=high,
        window_error=error,
        reference_error=0.0,
        rows=sum(weights),
    )
    (verdict,) = compare_with_labels([(estimate, realised.value)])
    text = f"The labels agree with the estimate: {check.metric} was {realised.value:.3g}."
    if verdict.contradicted:
        text = f"The labels contradict the estimate: {check.metric} was {realised.value:.3g}, not {estimated:.3g}."
    return {
        "metric": check.metric,
        "estimated": estimated,
        "low": low,
        "high": high,
        "realised": realised.value,
        "p_value": verdict.p_value,
        "rows": sum(weights),
        "windows": len(told),
        "contradicted": verdict.contradicted,
        "reference": expectations_digest(baseline),
        "text": text,
    }


def find_doubt(store: Store, endpoint: str, version: str, baseline: Baseline) -> str:
    """Return why estimates of a version are not trusted, as a sentence; empty if labels have not contradicted them.

    A contradiction counts until later labels agree with an estimate, or the version has other expectations.
    """
    digest = expectations_digest(baseline)
    compared = False
    for summary in _summaries(store, CheckedSeries(endpoint, version, "performance"), any_metric=True):
        concept, estimates = summary.evidence.get(CONCEPT), summary.evidence.get(ESTIMATES)
        if concept and concept.get("reference") == digest and concept.get("drifted"):
            return f"{concept_sentence(concept)} So this estimate may be wrong."
        if estimates and estimates.get("reference") == digest and not compared:
            compared = True
            if estimates.get("contradicted"):
                day = f"{summary.window_from:%Y-%m-%d}"
                return f"Labels from {day} contradicted such an estimate, so it may be wrong."
        if compared and concept:
            break
    return ""


def _summaries(
    store: Store, check: CheckedSeries, before: datetime | None = None, *, any_metric: bool = False
) -> list[Finding]:
    """Return the last summaries of a series, newest window first, and of one window the newest check first."""
    found = store.records.find(
        Finding,
        *check.conditions(),
        ("subject", "=", WINDOW),
        *((("window_to", "<=", before),) if before is not None else ()),
        order="-window_to",
        limit=_LOOK_BACK,
    )
    chosen = [one for one in found if "subjects" in one.evidence and (any_metric or check.is_summary(one))]
    return sorted(chosen, key=lambda one: (one.window_to, one.id), reverse=True)


def _told(store: Store, check: CheckedSeries, labelled: pl.DataFrame, since: datetime, until: datetime) -> list[_Told]:
    import polars as pl

    drift = CheckedSeries(check.endpoint, check.version, "drift")
    summaries = store.records.find(
        Finding,
        *drift.conditions(),
        ("subject", "=", WINDOW),
        ("window_from", "<", until),
        ("window_to", ">", since),
        order="id",
    )
    # Of a window that was checked again, the last check counts.
    last = {(one.window_from, one.window_to): one for one in summaries if drift.is_summary(one)}
    told = []
    at = pl.col("event_at")
    for (start, end), summary in sorted(last.items()):
        expected = (summary.evidence.get("harm") or {}).get("expected")
        if not expected or expected["metric"] != check.metric:
            continue
        rows = labelled.filter(at >= start, at < end)
        if rows.height:
            error = (float(expected["high"]) - float(expected["low"])) / (2 * _Z)
            told.append(_Told(float(expected["now"]), error, int(summary.evidence["rows"]), rows))
    return told
