"""Check for drift: compare the inputs and scores of a window with a version's baseline."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from everloop.data.sketches.column_sketches import Sketch, sketch_frame
from everloop.errors import EmptySampleError
from everloop.monitoring.alarm_budget import AlarmBudget, budget_for
from everloop.monitoring.baseline import PREDICTION, Baseline, load_baseline
from everloop.monitoring.findings import WINDOW, CheckedSeries, find_checked, find_recently_flagged, new_finding
from everloop.monitoring.logged_windows import INPUT, read_inputs_and_score
from everloop.monitoring.subject_shift import LEAST_PSI, SubjectShift, measure_shifts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.records import Finding, Json
    from everloop.stores import Store


def check_drift(
    store: Store,
    endpoint: str,
    version: str,
    since: datetime,
    until: datetime,
    *,
    alarms_per_month: float = 1.0,
    windows_per_month: float | None = None,
    baseline: Baseline | None = None,
    least_psi: float = LEAST_PSI,
) -> list[Finding]:
    """Compare one window of a version's predictions with its baseline, and store the findings.

    There is one finding for each warning and alarm. One more summarises the window: its subject is `window`, its
    severity `info`, and its evidence has the PSI of every subject. A subject can only become an alarm if it was a
    warning or an alarm in one of the two windows checked before. Checking a window again returns the earlier findings,
    unless more predictions have arrived in the meantime.

    Args:
        since: start of the window, by `event_at` of the predictions.
        until: end of the window, exclusive.
        alarms_per_month: how many false alarms a month are tolerated, over all subjects together.
        windows_per_month: how many windows a month are checked. Default: as many as fit into a month.
        baseline: default: the stored baseline of the version.
        least_psi: a smaller PSI is never a finding.

    Returns:
        The findings: alarms first, the summary of the window last.

    Raises:
        EmptySampleError: the version has no predictions in the window.
        NotFoundError: the version has no baseline.
        UsageError: the window has no length or the budget is not above 0.
    """
    budget = budget_for(alarms_per_month, until - since, windows_per_month)
    known = baseline if baseline is not None else load_baseline(store, version)
    rows = read_inputs_and_score(store, endpoint, version, since, until, list(known.bins))
    check = CheckedSeries(endpoint, version, "drift")
    earlier = find_checked(store, check, since, until, {"rows": rows.height, **asdict(budget)})
    if earlier:
        return earlier
    recently_flagged = find_recently_flagged(store, check, since, until)
    features, score = sketch_window(known, rows)
    shifts = measure_shifts(
        known,
        features,
        score,
        span=until - since,
        budget=budget,
        recently_flagged=recently_flagged,
        least_psi=least_psi,
    )
    found = [
        new_finding(
            store,
            endpoint=endpoint,
            version=version,
            kind="drift",
            severity=shift.verdict,
            subject=shift.subject,
            window_from=since,
            window_to=until,
            value=shift.psi,
            threshold=shift.limit,
            message=f"{_named(shift)} has drifted: {shift.message()}.",
            evidence=shift.evidence(),
        )
        for shift in sorted(shifts, key=lambda shift: shift.verdict)
        if shift.verdict != "quiet"
    ]
    found.append(
        new_finding(
            store,
            endpoint=endpoint,
            version=version,
            kind="drift",
            severity="info",
            subject=WINDOW,
            window_from=since,
            window_to=until,
            value=shifts[0].adjusted_p_value if shifts else None,
            threshold=budget.level(max(1, len(shifts))),
            message=_summary(shifts, rows.height),
            evidence={
                **_overview(shifts, rows.height, budget, recently_flagged, known),
                "told": [item.id for item in found],
            },
        )
    )
    store.records.put(*found)
    return found


def sketch_window(baseline: Baseline, predictions: pl.DataFrame) -> tuple[dict[str, Sketch], Sketch | None]:
    """Sketch logged predictions with the bins of the baseline: the features, and the score if both sides have one.

    Raises:
        EmptySampleError: there are no predictions.
    """
    if predictions.height == 0:
        raise EmptySampleError("A window without predictions cannot be compared.", help="Choose a longer window.")
    bins = baseline.bins
    # One pass for features and score together. The prefix keeps a feature called `score` apart from the score.
    keyed = {f"{INPUT}{name}": cells for name, cells in bins.items()}
    if baseline.score is not None and "score" in predictions.columns:
        keyed["score"] = baseline.score.sketches[PREDICTION].bins
    sketches = sketch_frame(predictions, keyed)
    score = sketches.pop("score", None)
    return {key.removeprefix(INPUT): sketch for key, sketch in sketches.items()}, score


def compare_window(
    baseline: Baseline,
    predictions: pl.DataFrame,
    *,
    span: timedelta,
    budget: AlarmBudget,
    recently_flagged: Sequence[str] = (),
    least_psi: float = LEAST_PSI,
) -> list[SubjectShift]:
    """Compare a frame of predictions with a baseline, without a store. The arguments are those of `measure_shifts`."""
    features, score = sketch_window(baseline, predictions)
    return measure_shifts(
        baseline,
        features,
        score,
        span=span,
        budget=budget,
        recently_flagged=frozenset(recently_flagged),
        least_psi=least_psi,
    )


def _named(shift: SubjectShift) -> str:
    return "The score" if shift.subject == PREDICTION else f"'{shift.subject}'"


def _summary(shifts: Sequence[SubjectShift], rows: int) -> str:
    counts = {verdict: sum(shift.verdict == verdict for shift in shifts) for verdict in ("alarm", "warning")}
    flagged = [f"{count} {verdict}{'s' if count > 1 else ''}" for verdict, count in counts.items() if count]
    return f"{' and '.join(flagged) or 'No drift'} among {len(shifts)} subjects in {rows} predictions."


def _overview(
    shifts: Sequence[SubjectShift], rows: int, budget: AlarmBudget, recently_flagged: set[str], baseline: Baseline
) -> dict[str, Json]:
    return {
        "rows": rows,
        "reference_rows": baseline.rows,
        **asdict(budget),
        "suspects": sorted(recently_flagged),
        "skipped": dict(baseline.skipped),
        "subjects": {
            shift.subject: {
                "psi": shift.psi,
                "limit": shift.limit,
                "p_value": shift.p_value,
                "verdict": shift.verdict,
            }
            for shift in shifts
        },
    }
