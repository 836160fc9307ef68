"""Check for drift: compare the inputs and scores of a window with the baseline of the version that answered in it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.monitoring.baseline import Baseline, load_baseline
from everloop.monitoring.drift_judge import MEMORY, incidents_per_window, judge_alone, judge_for, limit_key
from everloop.monitoring.findings import WINDOW, CheckedSeries, find_checked, find_summaries, new_finding
from everloop.monitoring.incidents.drift_harm import DriftHarm, ExpectedMetric, measure_harm
from everloop.monitoring.logged_windows import (
    LoggedWindow,
    correlated_rows,
    read_correlations,
    read_sample,
    read_sketches,
    sketch_window,
)
from everloop.monitoring.pair_shift import PairShift, measure_pairs
from everloop.monitoring.performance.label_verdicts import find_doubt
from everloop.monitoring.subject_shift import SubjectShift, measure_shifts
from everloop.monitoring.window_counts import (
    counts_of,
    join_windows,
    pack_correlations,
    pack_window_counts,
    unpack_correlations,
    unpack_window_counts,
)
from everloop.stores.clock import EPOCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.window_counts import Array
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
    versions: int = 1,
    baseline: Baseline | None = None,
    seasons: Sequence[str] = (),
    keep: bool = True,
) -> list[Finding]:
    """Compare one window of a version's predictions with its baseline, and store the findings.

    The window is judged alone, and together with the two and the six windows before it. There is one finding for each
    subject (an input or `prediction`) that is a reason to open an incident. One more summarises the window: its subject
    is `window`, its severity `info`, and its evidence has the state of every subject and what the drift does to the
    predictions. Checking a window again returns the earlier findings, unless more predictions have arrived meanwhile.

    Args:
        since: start of the window, by `event_at` of the predictions.
        until: end of the window, exclusive.
        alarms_per_month: how many incidents a month may open without need, over all subjects together.
        versions: how many versions answered in the window; they share the budget.
        baseline: default: the stored baseline of the version.
        seasons: declared seasons, as for `el.Drift`. If the baseline does not show one, the windows that were checked
            before are compared as well.
        keep: False returns the findings without storing them, for a watch, whose findings are stored together with
            the incidents that follow from them.

    Returns:
        The findings about subjects, the most surprising first, and the summary of the window last.

    Raises:
        EmptySampleError: the version has no predictions in the window.
        NotFoundError: the version has no baseline.
        UsageError: the window has no length, the budget is not above 0, or a season cannot be read.
    """
    known = baseline if baseline is not None else load_baseline(store, version)
    span = until - since
    rate = incidents_per_window(alarms_per_month, span, versions)
    window = read_sketches(store, endpoint, version, since, until, known)
    if window is None:
        raise EmptySampleError(
            f"'{endpoint}' has no predictions of {version} between {since:%Y-%m-%d %H:%M} and {until:%Y-%m-%d %H:%M}.",
            help="Choose another window.",
        )
    check = CheckedSeries(endpoint, version, "drift")
    digest = known.digest()
    facts: Mapping[str, Json] = {
        "rows": window.rows,
        "incidents_per_window": rate,
        "baseline": digest,
        "seasons": list(seasons) or None,
    }
    earlier = find_checked(store, check, since, until, facts)
    if earlier:
        return earlier
    counts = counts_of(known, window.features, window.score)
    correlations = read_correlations(store, endpoint, version, since, until, known, window.rows)
    summaries = find_summaries(store, check, since - MEMORY * span, since)
    starts = _starts_before(since, span, MEMORY)
    before, pairs = _counts_before(summaries, starts, span, counts, digest)
    rows = _typical_rows([*before, counts])
    judge = judge_for(known, span, rows, rate, limits=_limits_before(summaries, digest), seasons=seasons)
    if judge.memory > MEMORY:
        summaries = find_summaries(store, check, since - judge.memory * span, since)
        starts = _starts_before(since, span, judge.memory)
        before, pairs = _counts_before(summaries, starts, span, counts, digest)
    starts.append(since)
    stacked = join_windows(starts, span, [*before, counts], [*pairs, correlations])
    # Only correlations depend on these rows: those that they were measured from.
    stacked = replace(stacked, rows=correlated_rows(stacked.rows))
    judgement = judge.judge(stacked)[-1]
    columns = measure_shifts(known, judgement, window.features, window.score)
    shifts: list[SubjectShift | PairShift] = [*columns, *measure_pairs(known, judgement, correlations)]
    flagged = [shift for shift in shifts if shift.verdict != "quiet"]
    harm = None
    if flagged:
        expected = _expected(store, check, since, until, known, window)
        harm = measure_harm(known, flagged, window.features, window.score, expected)
    found = [
        new_finding(
            store,
            endpoint=endpoint,
            version=version,
            kind="drift",
            severity="alarm"
            if harm is not None and harm.severity == "alarm" and shift.verdict == "alarm"
            else "warning",
            subject=shift.subject,
            window_from=since,
            window_to=until,
            value=shift.psi,
            message=shift.message(),
            evidence=shift.evidence(),
        )
        for shift in flagged
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
            value=max((shift.strength for shift in shifts), default=None),
            threshold=1.0,
            message=_summary(flagged, len(shifts), window.rows),
            evidence={
                **_overview(shifts, window.rows, rate, known, harm),
                "baseline": digest,
                "seasons": list(seasons) or None,
                "counts": pack_window_counts(counts),
                "correlations": pack_correlations(correlations),
                "limit": {limit_key(span, rows, rate, seasons): judge.limit},
                "opens": [shift.subject for shift in flagged],
                "strong": [shift.subject for shift in flagged if shift.strong],
                "told": [item.id for item in found],
            },
        )
    )
    if keep:
        store.records.put(*found)
    return found


def compare_window(
    baseline: Baseline,
    predictions: pl.DataFrame,
    *,
    span: timedelta,
    since: datetime | None = None,
    alarms_per_month: float = 1.0,
) -> list[SubjectShift]:
    """Compare a frame of predictions with a baseline as one window, without a store.

    Args:
        predictions: columns `input_<feature>` and, if scores are compared, `score`.
        span: length of the window.
        since: its start, for seasons. Default: unknown, so seasons are not taken into account.
        alarms_per_month: how many incidents a month may open without need.

    Raises:
        EmptySampleError: there are no predictions.
    """
    features, score = sketch_window(baseline, predictions)
    return compare_sketches(baseline, features, score, span=span, since=since, alarms_per_month=alarms_per_month)


def compare_sketches(
    baseline: Baseline,
    features: Mapping[str, Sketch],
    score: Sketch | None,
    *,
    span: timedelta,
    since: datetime | None = None,
    alarms_per_month: float = 1.0,
) -> list[SubjectShift]:
    """Compare the sketches of one window with a baseline; see `compare_window`."""
    counts = counts_of(baseline, features, score)
    stacked = join_windows([since or EPOCH], span, [counts])
    judgement = judge_alone(
        baseline, stacked, alarms_per_month, rows=_typical_rows([counts]), seasons=since is not None
    )
    return measure_shifts(baseline, judgement, features, score)


def _expected(
    store: Store, check: CheckedSeries, since: datetime, until: datetime, baseline: Baseline, window: LoggedWindow
) -> ExpectedMetric | None:
    """Return what the metric is expected to be in the window."""
    if baseline.packed_expectations is None or check.version is None:
        return None
    from everloop.monitoring.incidents.expected_metric import SAMPLE_ROWS, expect_metric

    version = check.version

    def sample() -> pl.DataFrame | None:
        return read_sample(store, check.endpoint, version, since, until, rows=window.rows, most=SAMPLE_ROWS)

    return expect_metric(baseline, window.score, sample, find_doubt(store, check.endpoint, version, baseline))


def _starts_before(since: datetime, span: timedelta, windows: int) -> list[datetime]:
    """Return the starts of that many windows before a window, oldest first; fewer if they would begin before 1970."""
    return [since - step * span for step in range(min(windows, (since - EPOCH) // span), 0, -1)]


def _counts_before(
    summaries: Sequence[Finding],
    starts: Sequence[datetime],
    span: timedelta,
    counts: Mapping[str, Array],
    baseline: str,
) -> tuple[list[Mapping[str, Array] | None], list[Array | None]]:
    """Return the counts and correlations of earlier windows, which their summaries hold; None where not checked.

    Windows that were checked against another baseline were counted in other cells.
    """
    cells = {subject: len(found) for subject, found in counts.items()}
    known: dict[datetime, Mapping[str, Array] | None] = {}
    pairs: dict[datetime, Array | None] = {}
    for summary in summaries:
        packed = summary.evidence.get("counts") if summary.evidence.get("baseline") == baseline else None
        if packed is not None and summary.window_to - summary.window_from == span:
            known[summary.window_from] = unpack_window_counts(packed, cells)
            pairs[summary.window_from] = unpack_correlations(summary.evidence.get("correlations"))
    return [known.get(start) for start in starts], [pairs.get(start) for start in starts]


def _limits_before(summaries: Sequence[Finding], baseline: str) -> dict[str, float]:
    """Return the limits that earlier windows were judged by, so that a process that has just started finds them."""
    limits: dict[str, float] = {}
    for summary in summaries:
        if summary.evidence.get("baseline") == baseline:
            limits |= summary.evidence.get("limit", {})
    return limits


def _typical_rows(windows: Sequence[Mapping[str, Array] | None]) -> float:
    """Return the median number of rows of the windows that have any."""
    rows = sorted(max((float(found.sum()) for found in window.values()), default=0.0) for window in windows if window)
    return rows[len(rows) // 2] if rows else 0.0


def _summary(flagged: Sequence[SubjectShift | PairShift], subjects: int, rows: int) -> str:
    count = f"{rows:,} prediction{'' if rows == 1 else 's'}"
    if not flagged:
        return f"No drift among {subjects} subjects in {count}."
    return f"{len(flagged)} of {subjects} subjects {'has' if len(flagged) == 1 else 'have'} drifted in {count}."


def _overview(
    shifts: Sequence[SubjectShift | PairShift], rows: int, rate: float, baseline: Baseline, harm: DriftHarm | None
) -> Mapping[str, Json]:
    return {
        "rows": rows,
        "reference_rows": baseline.rows,
        "incidents_per_window": rate,
        "skipped": dict(baseline.skipped),
        "harm": harm.to_json() if harm is not None else None,
        "subjects": {
            shift.subject: {
                "psi": shift.psi,
                "p_value": shift.p_value,
                "strength": shift.strength,
                "verdict": shift.verdict,
                "calm": shift.calm,
            }
            for shift in shifts
            # Pairs are many, so those that are as before are left out.
            if isinstance(shift, SubjectShift) or shift.verdict != "quiet" or not shift.calm
        },
    }
