"""Watch a table as if it had been a stream: window by window, with the incidents that would have been opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.data.sketches.column_sketches import Sketch, sketch_frame
from everloop.data.sketches.derived_columns import derive
from everloop.data.sketches.time_blocks import aligned_grid, moments_of
from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.baseline import PREDICTION, Baseline, build_baseline
from everloop.monitoring.drift_judge import MEMORY, WindowJudgement, incidents_per_window, judge_for, typical_size
from everloop.monitoring.incidents.drift_harm import measure_harm, weight_of
from everloop.monitoring.incidents.expected_metric import SAMPLE_ROWS, expect_metric
from everloop.monitoring.incidents.incident_rules import WindowNews, advance
from everloop.monitoring.logged_windows import INPUT
from everloop.monitoring.pair_shift import PairShift, measure_pairs
from everloop.monitoring.reports.labelled_tables import label_tables
from everloop.monitoring.subject_shift import SubjectShift, measure_shifts
from everloop.monitoring.window_counts import WindowCounts, count_frame
from everloop.records import Incident
from everloop.stores.clock import new_id
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl

    from everloop.monitoring.window_counts import Array

    WindowSketches = tuple[dict[str, Sketch], Sketch | None]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_WINDOWS = 100_000
_ESTIMATED = ("roc_auc", "rmse")
"""Metrics of predictions that are scores. Predicted classes have no distribution from which to estimate."""


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What watching a table found.

    Attributes:
        incidents: oldest first; those that are not over are open.
        windows: counts of all windows.
        judgements: one for each window.
    """

    baseline: Baseline
    windows: WindowCounts
    judgements: list[WindowJudgement]
    incidents: list[Incident]
    sketches: Callable[[int], WindowSketches]

    def shifts(self, index: int) -> list[SubjectShift]:
        """Return the shifts of one window, the most surprising first."""
        return measure_shifts(self.baseline, self.judgements[index], *self.sketches(index))


def watch_table(
    reference: pl.DataFrame,
    current: pl.DataFrame,
    *,
    time: str,
    every: str | timedelta = "1d",
    incidents_per_month: float = 1.0,
    prediction: str | None = None,
    target: str | None = None,
    seasons: Sequence[str] = (),
) -> StreamReport:
    """Watch a table against a reference, window by window.

    Args:
        reference: rows that are known to be right, with the column `time` if it has one; its variation over time is
            learned from it.
        current: the rows to watch, with the column `time`.
        every: length of a window.
        incidents_per_month: how many incidents a month may open if nothing changes.
        prediction: column with the score of a model: a number, or the probability of the greater of two classes.
        target: column of the reference with the labels. With it, incidents say what the metric is expected to be:
            roc_auc for probabilities of two classes, rmse for numbers. The current table needs no labels.
        seasons: declared seasons, as for `el.Drift`.

    Raises:
        EmptySampleError: a table has no rows, or the current table no time.
        UsageError: `time` is not a column of dates or times, `prediction` is not a column, target and prediction do not
            fit each other, the windows have no length or there are more than 100,000 of them, or the budget is not
            above 0.
    """
    for name, table in (("reference", reference), ("current table", current)):
        if prediction is not None and prediction not in table.columns:
            raise UsageError(f"The {name} has no column '{prediction}'.", help=f"Columns: {', '.join(table.columns)}")
    known = time if time in reference.columns else None
    scored, metric = None, None
    if prediction is not None:
        scored = reference.select([prediction, *([known] if known else [])]).rename({prediction: "score"})
        if target is not None:
            labelled = label_tables(reference, reference.clear(), target, prediction, "the reference")
            if labelled.metric in _ESTIMATED:
                scored, metric = scored.with_columns(labelled.reference["actual"]), labelled.metric
    features = [name for name in reference.columns if name not in (time, prediction, target)]
    baseline = build_baseline(
        reference,
        features,
        time=known,
        scored=scored,
        scored_inputs=reference.select(features) if scored is not None else None,
        metric=metric,
    )
    return watch_stream(
        baseline,
        current,
        time=time,
        every=every,
        incidents_per_month=incidents_per_month,
        score=prediction,
        seasons=seasons,
    )


def watch_stream(
    baseline: Baseline,
    current: pl.DataFrame,
    *,
    time: str,
    every: str | timedelta,
    incidents_per_month: float,
    score: str | None = None,
    seasons: Sequence[str] = (),
) -> StreamReport:
    """Watch a table against a baseline; see `watch_table`."""
    span = parse_duration(every) if isinstance(every, str) else every
    if span <= timedelta(0):
        raise UsageError(f"A window must have a length, not {span}.", help="Pass a longer one, such as '1d'.")
    moments = moments_of(current, time)
    low, high = moments.min(), moments.max()
    if not isinstance(low, int) or not isinstance(high, int):
        raise EmptySampleError(f"No row has a time in '{time}'.", help="Choose another column.")
    first, last = (_EPOCH + timedelta(microseconds=moment) for moment in (low, high))
    grid = aligned_grid(first, last, span)
    if grid.number > _MOST_WINDOWS:
        raise UsageError(
            f"From {first:%Y-%m-%d} to {last:%Y-%m-%d} there are {grid.number:,} windows of {span}, but at most "
            f"{_MOST_WINDOWS:,} can be watched at once.",
            help=f"Pass longer windows, or leave out rows with a wrong time in '{time}'.",
        )
    windows = count_frame(baseline, current, moments, grid, score=score)
    number = grid.number_of(moments)
    order = np.argsort(number, kind="stable")
    borders = np.searchsorted(number[order], np.arange(grid.number + 1))

    def sketches(index: int) -> WindowSketches:
        rows = current[order[borders[index] : borders[index + 1]]]
        features = sketch_frame(derive(rows, baseline.derived), baseline.bins)
        if baseline.score is None or score is None or score not in rows.columns:
            return features, None
        cells = {PREDICTION: baseline.score.sketches[PREDICTION].bins}
        return features, sketch_frame(rows, cells, columns={PREDICTION: score})[PREDICTION]

    def sample(index: int) -> pl.DataFrame | None:
        if score is None or score not in current.columns:
            return None
        places = order[borders[index] : borders[index + 1]]
        rows = current[places[:: max(1, -(-len(places) // SAMPLE_ROWS))]]
        # The prefix keeps a feature called `score` apart from the score.
        features = [rows[name].alias(f"{INPUT}{name}") for name in baseline.columns if name in rows.columns]
        return rows.select(rows[score].alias("score"), *features)

    return watch_windows(baseline, windows, incidents_per_month, sketches, sample, seasons=seasons)


def watch_windows(
    baseline: Baseline,
    windows: WindowCounts,
    incidents_per_month: float,
    sketches: Callable[[int], WindowSketches],
    sample: Callable[[int], pl.DataFrame | None] = lambda index: None,
    *,
    seasons: Sequence[str] = (),
) -> StreamReport:
    """Judge windows in a row, and open and resolve incidents as they come.

    Args:
        sketches: returns the sketches of a window that has rows, by its index.
        sample: returns rows of such a window with `score` and the inputs, if the metric can be estimated from them.
    """
    judgements = judge_windows(baseline, windows, incidents_per_month, seasons=seasons)
    incidents: list[Incident] = []
    ongoing: list[Incident] = []
    known: dict[str, int] = {}
    for index, judgement in enumerate(judgements):
        if not windows.rows[index] or not (ongoing or (judgement.strongest > judgement.limit).any()):
            continue
        until = windows.starts[index] + windows.span
        pairs = windows.correlations[index] if windows.correlations is not None else None
        rows = partial(sample, index)
        news = _news(baseline, judgement, windows.starts[index], until, sketches(index), pairs, rows)
        for step in advance(ongoing, news, until, lambda until=until, **fields: _new(until, fields)):
            at = known.setdefault(step.incident.id, len(incidents))
            incidents[at : at + 1] = [step.incident]
        ongoing = [incident for incident in incidents if incident.state == "open"]
    return StreamReport(baseline, windows, judgements, incidents, sketches)


def judge_windows(
    baseline: Baseline,
    windows: WindowCounts,
    incidents_per_month: float,
    *,
    correlated: Array | None = None,
    seasons: Sequence[str] = (),
) -> list[WindowJudgement]:
    """Judge each window with the judge for the size of the windows up to it.

    Args:
        correlated: the rows of each window from which its correlations were measured. Default: all.
    """
    rate = incidents_per_window(incidents_per_month, windows.span)
    sizes: list[float] = []
    for index in range(len(windows.rows)):
        recent = windows.rows[max(0, index - MEMORY) : index + 1]
        # A long gap has no windows of its own size.
        sizes.append(typical_size(float(np.median(recent[recent > 0]))) if recent.any() else sizes[-1])
    stacked = windows if correlated is None else replace(windows, rows=correlated)
    judged = {
        size: judge_for(baseline, windows.span, size, rate, seasons=seasons).judge(stacked) for size in set(sizes)
    }
    return [judged[size][index] for index, size in enumerate(sizes)]


def _news(
    baseline: Baseline,
    judgement: WindowJudgement,
    since: datetime,
    until: datetime,
    sketches: WindowSketches,
    correlations: Array | None,
    sample: Callable[[], pl.DataFrame | None],
) -> WindowNews:
    features, score = sketches
    columns = measure_shifts(baseline, judgement, features, score)
    shifts: list[SubjectShift | PairShift] = [*columns, *measure_pairs(baseline, judgement, correlations)]
    flagged = [shift for shift in shifts if shift.verdict != "quiet"]
    expected = expect_metric(baseline, score, sample) if flagged else None
    harm = measure_harm(baseline, flagged, features, score, expected)
    return WindowNews(
        kind="drift",
        since=since,
        until=until,
        reasons={shift.subject: shift.message() for shift in flagged},
        weights={shift.subject: weight_of(shift.psi, harm.importance.get(shift.subject)) for shift in flagged},
        strong=frozenset(shift.subject for shift in flagged if shift.strong),
        restless=frozenset(shift.subject for shift in shifts if not shift.calm),
        severity=harm.severity,
        harm=" ".join(harm.sentences()),
        evidence={"harm": harm.to_json()},
    )


def _new(moment: datetime, fields: dict[str, Any]) -> Incident:
    return Incident(id=new_id(moment), project="", created_at=moment, **fields)
