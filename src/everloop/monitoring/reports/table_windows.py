"""The windows of a table, and how surprising the columns and the pairs of columns are in each of them.

The judgement is that of endpoints: the same noise model, the same limit, the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.monitoring.reports.monitoring_report import TimeWindow
from everloop.stores.durations import format_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.alarm_budget import Verdict
    from everloop.monitoring.baseline import Baseline
    from everloop.monitoring.drift_judge import WindowJudgement
    from everloop.monitoring.pair_shift import PairShift
    from everloop.monitoring.subject_shift import SubjectShift
    from everloop.monitoring.window_counts import Array

MOST_WINDOWS = 1000
ONE_COMPARISON = timedelta(days=1)
"""A comparison without time gets the alarm budget of a window of this length."""
LARGE_CHANGE = 0.3
"""From this change of Fisher's z on, a correlation has changed by a medium amount or more.
Source: J. Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), section 4.2: effect size q."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ALARM_PSI = 0.1
_FEW_ROWS = 30
_LONGER = (timedelta(hours=1), timedelta(days=1), timedelta(weeks=1), timedelta(weeks=4))


@dataclass(frozen=True, slots=True)
class WindowShifts:
    """What one window says.

    Attributes:
        columns: the shift of each column by its key, with the verdict: `alarm` for a reason to open an incident,
            `warning` for a column that is not calm.
        pairs: the same for pairs of columns, by the two keys.
        sketches: distributions by key.
    """

    columns: dict[str, tuple[SubjectShift, Verdict]]
    pairs: dict[tuple[str, str], tuple[PairShift, Verdict]]
    sketches: dict[str, Sketch]


def cut_windows(
    now: pl.DataFrame, time: str | None, span: timedelta
) -> tuple[tuple[TimeWindow, ...], list[pl.Series | None]]:
    """Return the windows that have rows, oldest first, and the row numbers of each; None stands for all rows.

    Raises:
        UsageError: there are more than 1,000 windows.
    """
    import polars as pl

    if time is None:
        return (TimeWindow(since=None, until=None, rows=now.height),), [None]
    length = span // timedelta(microseconds=1)
    number = (now[time].dt.epoch("us") // length).rename("window")
    groups = (
        pl.DataFrame({"window": number, "row": pl.int_range(now.height, eager=True)})
        .group_by("window")
        .agg("row")
        .sort("window")
    )
    if groups.height > MOST_WINDOWS:
        raise UsageError(
            f"The current table spans {groups.height:,} windows; the limit is {MOST_WINDOWS:,}.",
            help="Pass a longer `every`, or fewer rows.",
            option_help="Choose longer windows, such as --every 1w.",
        )
    windows = tuple(
        TimeWindow(since=_EPOCH + index * span, until=_EPOCH + (index + 1) * span, rows=len(rows))
        for index, rows in groups.iter_rows()
    )
    return windows, [pl.Series(rows) for rows in groups["row"]]


def advise_longer_windows(windows: Sequence[TimeWindow], span: timedelta) -> list[str]:
    """Say so if the windows have so few rows that only large changes can be found, and which length would do."""
    rows = sum(window.rows for window in windows)
    if len(windows) < 2 or rows >= _FEW_ROWS * len(windows):
        return []
    longer = next((one for one in _LONGER if one > span and rows * (one / span) >= _FEW_ROWS * len(windows)), None)
    mean = rows / len(windows)
    some = f"{mean:.2g} {'row' if mean == 1 else 'rows'}"
    remark = f"The windows have {some} on average, so only large changes can be found."
    if longer is None:
        return [remark]
    return [f"{remark} Windows of {format_duration(longer)} would have about {mean * (longer / span):.0f}."]


def compare_windows(
    baseline: Baseline,
    now: pl.DataFrame,
    parts: Sequence[pl.Series | None],
    keys: Mapping[str, str],
    windows: Sequence[TimeWindow],
    span: timedelta,
    incidents_per_month: float,
    seasons: Sequence[str] = (),
) -> list[WindowShifts]:
    """Judge each window against the baseline, together with those before it.

    Args:
        now: the current table.
        parts: the row numbers of each window; None stands for all rows.
        keys: the baseline's name of each column.
        span: length of a window.
        seasons: declared seasons, as for `el.Drift`.
    """
    from everloop.data.sketches.column_sketches import sketch_frame
    from everloop.monitoring.pair_shift import measure_pairs
    from everloop.monitoring.subject_shift import measure_shifts

    name_of = {key: name for name, key in keys.items()}
    bins = {key: baseline.bins[key] for key in name_of}
    sketches = [sketch_frame(now if rows is None else now[rows], bins, columns=name_of) for rows in parts]
    correlations = [_correlations(baseline, now, rows, name_of) for rows in parts]
    single = windows[0].since is None
    judgements = _judge(baseline, sketches, correlations, windows, span, incidents_per_month, seasons)
    found = []
    for judgement, sketch, known in zip(judgements, sketches, correlations, strict=True):
        columns = {
            one.subject: (one, _single_verdict(one) if single else _window_verdict(one))
            for one in measure_shifts(baseline, judgement, sketch)
        }
        pairs = {
            one.pair: (one, _single_pair_verdict(one) if single else _window_verdict(one))
            for one in measure_pairs(baseline, judgement, known)
        }
        found.append(WindowShifts(columns, pairs, sketch))
    return found


def _correlations(
    baseline: Baseline, now: pl.DataFrame, rows: pl.Series | None, name_of: Mapping[str, str]
) -> Array | None:
    """Return the correlations of the baseline's pairs in one window; of every k-th row if there are very many."""
    import numpy as np
    import polars as pl

    from everloop.data.sketches.pair_correlations import LEAST_ROWS, correlate_blocks
    from everloop.monitoring.logged_windows import MOST_CORRELATED

    height = now.height if rows is None else len(rows)
    if baseline.pairs is None or height < LEAST_ROWS:
        return None
    every = -(-height // MOST_CORRELATED)
    chosen = pl.int_range(0, height, every, eager=True) if rows is None else rows.gather_every(every)
    names = baseline.pairs.names
    # Columns are taken one by one, because a name may look like a pattern.
    part = pl.DataFrame([now[name_of[key]].gather(chosen).alias(key) for key in names if name_of[key] in now.columns])
    block = np.zeros(len(chosen), dtype=np.int64)
    return np.asarray(correlate_blocks(part, baseline.features.sketches, names, block, 1).correlations()[0])


def _judge(
    baseline: Baseline,
    sketches: Sequence[Mapping[str, Sketch]],
    correlations: Sequence[Array | None],
    windows: Sequence[TimeWindow],
    span: timedelta,
    incidents_per_month: float,
    seasons: Sequence[str],
) -> list[WindowJudgement]:
    """Judge the windows that have rows, each with those before it; windows between them have no rows."""
    from everloop.monitoring.drift_judge import judge_alone
    from everloop.monitoring.logged_windows import correlated_rows
    from everloop.monitoring.stream_monitoring import judge_windows
    from everloop.monitoring.window_counts import counts_of, join_windows

    starts = [window.since for window in windows if window.since is not None]
    if not starts:
        joined = join_windows([_EPOCH], span, [counts_of(baseline, sketches[0], None)], [correlations[0]])
        rows = float(joined.rows[0])
        joined = replace(joined, rows=correlated_rows(joined.rows))
        return [judge_alone(baseline, joined, incidents_per_month, rows=rows, seasons=False)]
    index = [round((start - starts[0]) / span) for start in starts]
    every: list[Mapping[str, Array] | None] = [None] * (index[-1] + 1)
    pairs: list[Array | None] = [None] * len(every)
    for at, sketch, known in zip(index, sketches, correlations, strict=True):
        every[at], pairs[at] = counts_of(baseline, sketch, None), known
    joined = join_windows([starts[0] + at * span for at in range(len(every))], span, every, pairs)
    judgements = judge_windows(
        baseline, joined, incidents_per_month, correlated=correlated_rows(joined.rows), seasons=seasons
    )
    return [judgements[at] for at in index]


def _window_verdict(shift: SubjectShift | PairShift) -> Verdict:
    if shift.verdict != "quiet":
        return "alarm"
    return "quiet" if shift.calm else "warning"


def _single_verdict(shift: SubjectShift) -> Verdict:
    """One comparison has no second window that could confirm it, so an alarm needs a change that is not small."""
    if shift.verdict == "quiet":
        return "quiet"
    return "alarm" if shift.psi >= _ALARM_PSI else "warning"


def _single_pair_verdict(shift: PairShift) -> Verdict:
    if shift.verdict == "quiet":
        return "quiet"
    return "alarm" if shift.change >= LARGE_CHANGE else "warning"
