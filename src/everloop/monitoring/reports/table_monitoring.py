"""Monitor plain tables, without a project, an endpoint or a store: drift, quality and performance against a reference.

The current table is compared as a whole or, if it has a time column, window by window. The log of an endpoint that is
served elsewhere is such a table.
"""

from __future__ import annotations

import math
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, EmptySampleError, EverloopError, UsageError
from everloop.monitoring.reports.monitoring_report import (
    ColumnRole,
    JointChange,
    MetricPoint,
    MetricSeries,
    MonitoredColumn,
    MonitoredPair,
    MonitoringReport,
)
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.alarm_budget import AlarmBudget, Verdict
    from everloop.monitoring.baseline import Baseline
    from everloop.monitoring.incidents.drift_harm import ExpectedMetric
    from everloop.monitoring.reports.labelled_tables import LabelledTables
    from everloop.monitoring.reports.table_windows import WindowShifts

_FLAGGED_P = 0.05
_ALARM_P = 0.01


def monitor_tables(
    reference: Any,
    current: Any,
    *,
    target: str | None = None,
    prediction: str | None = None,
    time: str | None = None,
    every: str = "1d",
    incidents_per_month: float = 1.0,
    columns: Sequence[str] | None = None,
    seasons: Sequence[str] = (),
    joint: bool = False,
    names: tuple[str, str] | None = None,
) -> MonitoringReport:
    """Compare a current table with a reference.

    Args:
        reference: the rows that are known to be right, such as the training data: a table of Polars, pandas, pyarrow or
            DuckDB, or whatever else `everloop.data.read` takes.
        current: the rows to judge, likewise.
        target: column with the labels. With `prediction`, performance is measured. The current table may lack it.
        prediction: column with the predicted probability of the greater of two classes, the predicted class, or the
            predicted number.
        time: column with the time of each row. Default: all rows of the current table are one window.
        every: length of a window, such as `1d` or `1w`.
        incidents_per_month: how many incidents a month you tolerate if nothing has changed.
        columns: the columns to monitor, besides target and prediction. Default: all of the reference, except those
            that differ in every table, such as an order number or a date.
        seasons: declared seasons, as for `el.Drift`; they need `time`.
        joint: also measure how all inputs together differ, which takes some seconds: by a classifier that tells the two
            tables apart, and by the main components of the reference.
        names: how reference and current table are called in messages. Default: their paths.

    Raises:
        EmptySampleError: a table has no rows.
        DataError: a column is missing, the tables have no column in common, or the time is not a time.
        SourceError: a table cannot be read.
        UsageError: target and prediction do not fit each other, there would be more than 1,000 windows, or a season
            cannot be read.
    """
    from everloop.monitoring.noise.declared_seasons import parse_seasons

    span = parse_duration(every)
    if span <= timedelta(0):
        raise UsageError(f"A window cannot last '{every}'.", help="Pass a duration such as 1d.")
    if seasons and time is None:
        raise UsageError(
            f"The season '{seasons[0]}' needs the time of each row.",
            help="Name the column with the time, or leave the season out.",
            option_help="Name the column with --time, or leave --season out.",
        )
    parse_seasons(seasons, span)
    names = names or (table_name(reference, "the reference"), table_name(current, "the current table"))
    before, now, remarks = _read_both(reference, current, names, time)
    _check_columns(before, now, names, target, prediction, columns)

    from everloop.data.sketches.column_sketches import add_all
    from everloop.data.sketches.derived_columns import choose_specs, derive
    from everloop.monitoring.alarm_budget import budget_for
    from everloop.monitoring.reports.labelled_tables import label_tables
    from everloop.monitoring.reports.quality_remarks import quality_notes
    from everloop.monitoring.reports.table_columns import read_numbers, uncomparable
    from everloop.monitoring.reports.table_incidents import find_incidents
    from everloop.monitoring.reports.table_windows import (
        ONE_COMPARISON,
        advise_longer_windows,
        compare_windows,
        cut_windows,
    )

    chosen = [name for name in (columns if columns is not None else before.columns) if name != time]
    before, now, unread = read_numbers(before, now, {time, target, prediction})
    remarks += unread
    left_out = {} if columns is not None else uncomparable(before, now, {time, target, prediction})
    chosen = [name for name in chosen if name not in left_out]
    specs = choose_specs(before, [name for name in chosen if name not in (target, prediction)])
    before, now = derive(before, specs), derive(now, specs)
    # Of free texts and vectors, a few numbers are monitored.
    parts_of = {name: [f"{name}.{part}" for part in spec.parts] for name, spec in specs.items()}
    roles: dict[str, ColumnRole] = {part: "input" for name in chosen for part in parts_of.get(name, [name])}
    if prediction is not None:
        roles[prediction] = "prediction"
    if target is not None:
        roles[target] = "target"
    if target is not None and (target not in now.columns or now[target].null_count() == now.height):
        remarks.append(f"The current table has no labels in '{target}', so performance cannot be measured yet.")
        roles.pop(target)

    labelled = None
    if target is not None and prediction is not None:
        labelled = label_tables(before, now, target, prediction, names[0])
        remarks += labelled.remarks
    windows, parts = cut_windows(now, time, span)
    remarks += advise_longer_windows(windows, span)
    baseline, keys = _baseline(before, roles, time, labelled, remarks)
    inputs = {name: key for name, key in _keys(roles).items() if roles[name] == "input"}
    # Half of the budget is for drift and half for performance, if both are watched.
    share = incidents_per_month / (1 if labelled is None else 2)
    length = span if time is not None else ONE_COMPARISON
    budget = budget_for(share, length)
    found = compare_windows(baseline, now, parts, keys, windows, length, share, seasons)
    live = add_all([window.sketches for window in found])
    series = None
    if labelled is not None and baseline.metric is not None and target in roles:
        series = _performance(labelled, baseline, parts, budget, windowed=time is not None)
    monitored = [_column(name, key, roles[name], baseline, live, found) for name, key in keys.items()]
    monitored.sort(key=_order)
    report = MonitoringReport(
        reference_name=names[0],
        current_name=names[1],
        reference_rows=before.height,
        current_rows=now.height,
        windows=windows,
        columns=tuple(monitored),
        joint=_joint(before, now, [name for name in keys if roles[name] == "input"], remarks) if joint else None,
        pairs=_pairs(found, {key: name for name, key in keys.items()}),
        performance=series,
        quality=tuple(quality_notes(before, now, monitored, chosen, time)),
        skipped={
            **{name: baseline.skipped[key] for name, key in _keys(roles).items() if key in baseline.skipped},
            **left_out,
            **dict.fromkeys(_unshared(before, now, columns, {time, target}), "the reference does not have it"),
        },
        remarks=tuple(remarks),
    )
    expect = partial(_expect, baseline, labelled, now, prediction, parts, inputs)
    sketches = [{name: window.sketches[key] for name, key in keys.items()} for window in found]
    return find_incidents(report, sketches, expect)


def _joint(before: pl.DataFrame, now: pl.DataFrame, names: Sequence[str], remarks: list[str]) -> JointChange | None:
    """Measure how all inputs together differ; if that is not possible, a remark says why."""
    from everloop.monitoring.measures.multivariate import fit_reconstruction, tell_apart

    try:
        found = tell_apart(before, now, names)
    except (UsageError, EmptySampleError) as error:
        remarks.append(f"The columns cannot be compared together: {error.message}")
        return None
    try:
        return JointChange(classifier=found, reconstruction=fit_reconstruction(before, names).measure(now))
    except (UsageError, EmptySampleError):
        return JointChange(classifier=found)


def table_name(source: Any, otherwise: str) -> str:
    """Return how a source is called in messages: its path, or `otherwise` for a table in memory. URLs are masked."""
    from everloop.stores.store_urls import mask_url

    return mask_url(str(source)) if isinstance(source, str | Path) else otherwise


def _read_both(
    reference: Any, current: Any, names: tuple[str, str], time: str | None
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    from everloop.data import read
    from everloop.data.table_inputs import as_eager, require_column
    from everloop.monitoring.reports.table_columns import read_times

    remarks: list[str] = []
    frames: list[pl.DataFrame] = []
    for source, name, must in ((reference, names[0], False), (current, names[1], True)):
        lazy = read(source)
        schema = lazy.collect_schema()
        if time is not None and time not in schema:
            if must:
                require_column(time, schema, f"time of {name}")
            remarks.append(f"{name} has no column '{time}', so its variation over time is not known.")
        elif time is not None:
            lazy = read(read_times(lazy, time), event_time=time)
        frame = as_eager(lazy)
        if frame.height == 0:
            raise EmptySampleError(f"{name} has no rows.", help="Check the file, or choose a longer period.")
        frames.append(frame)
    before, now = frames
    if time is not None:
        undated = now[time].null_count()
        if undated == now.height:
            raise EmptySampleError(f"No row of {names[1]} has a time in '{time}'.", help="Choose another time column.")
        if undated:
            remarks.append(f"{undated:,} {'row has' if undated == 1 else 'rows have'} no '{time}' and were left out.")
            now = now.filter(now[time].is_not_null())
    return before, now, remarks


def _check_columns(
    before: pl.DataFrame,
    now: pl.DataFrame,
    names: tuple[str, str],
    target: str | None,
    prediction: str | None,
    columns: Sequence[str] | None,
) -> None:
    from everloop.data.table_inputs import nearest

    needed = [(target, before, names[0], "target"), (prediction, before, names[0], "prediction")]
    needed += [(prediction, now, names[1], "prediction")]
    needed += [(name, before, names[0], "column to monitor") for name in columns or ()]
    for name, frame, table, what in needed:
        if name is not None and name not in frame.columns:
            raise DataError(f"{table} has no column '{name}' ({what}).", help=nearest(name, frame.columns))
    if target is not None and target == prediction:
        raise UsageError(f"'{target}' cannot be both target and prediction.", help="Name two different columns.")
    if not set(before.columns) & set(now.columns):
        raise DataError(
            f"{names[0]} and {names[1]} have no column in common.",
            help=f"The reference has {', '.join(before.columns[:5])}; the current table {', '.join(now.columns[:5])}.",
        )


def _unshared(
    before: pl.DataFrame, now: pl.DataFrame, columns: Sequence[str] | None, apart: set[str | None]
) -> list[str]:
    if columns is not None:
        return []
    # A column that is missing now is monitored: all of its values are missing.
    return [name for name in now.columns if name not in before.columns and name not in apart]


def _keys(roles: dict[str, ColumnRole]) -> dict[str, str]:
    """Return a short key for each column: in a baseline, none may be called `prediction` or look like a pattern."""
    return {name: f"c{index}" for index, name in enumerate(roles)}


def _baseline(
    before: pl.DataFrame,
    roles: dict[str, ColumnRole],
    time: str | None,
    labelled: LabelledTables | None,
    remarks: list[str],
) -> tuple[Baseline, dict[str, str]]:
    import polars as pl

    from everloop.monitoring.baseline import build_baseline

    keys = _keys(roles)
    frame = pl.DataFrame([before[name].rename(key) for name, key in keys.items() if name in before.columns])
    clock = time if time is not None and time in before.columns else None
    if clock is not None:
        frame = frame.with_columns(before[clock].rename("time"))
    scored = labelled.reference if labelled is not None else None
    if scored is not None and clock is not None:
        scored = scored.with_columns(before[clock].rename("time"))
    features = [key for key in frame.columns if key != "time"]
    paired = [key for name, key in keys.items() if roles[name] == "input"]
    moment = "time" if clock is not None else None
    metric = labelled.metric if labelled is not None else None
    try:
        inputs = frame.select(key for name, key in keys.items() if roles[name] == "input" and key in frame.columns)
        known = inputs if scored is not None and inputs.width else None
        baseline = build_baseline(
            frame, features, time=moment, scored=scored, scored_inputs=known, metric=metric, paired=paired
        )
    except (UsageError, EmptySampleError) as error:
        if labelled is None:
            raise
        remarks.append(f"Performance cannot be measured: {error.message}")
        baseline = build_baseline(frame, features, time=moment, paired=paired)
    if not baseline.features.sketches:
        raise DataError(
            "The reference has no column that can be monitored.",
            help="Numbers, texts and booleans are monitored; dates, lists and columns without values are not.",
        )
    return baseline, {name: key for name, key in keys.items() if key in baseline.features.sketches}


def _expect(
    baseline: Baseline,
    labelled: LabelledTables | None,
    now: pl.DataFrame,
    prediction: str | None,
    parts: Sequence[pl.Series | None],
    inputs: Mapping[str, str],
    first: int,
    last: int,
) -> ExpectedMetric | None:
    """Return what the metric is expected to be in the windows from `first` to `last`, without their labels."""
    import polars as pl

    from everloop.monitoring.incidents.expected_metric import SAMPLE_ROWS, expect_metric
    from everloop.monitoring.logged_windows import INPUT

    if labelled is None or prediction is None or labelled.metric == "accuracy":
        return None
    chosen = [rows for rows in parts[first : last + 1] if rows is not None]
    frame = now[pl.concat(chosen)] if chosen else now
    sample = frame.gather_every(max(1, -(-frame.height // SAMPLE_ROWS)))
    columns = [sample[name].alias(f"{INPUT}{key}") for name, key in inputs.items() if name in sample.columns]
    score = sample[prediction].cast(pl.Float64, strict=False).alias("score")
    return expect_metric(baseline, None, lambda: pl.DataFrame([score, *columns]))


def _column(
    name: str,
    key: str,
    role: ColumnRole,
    baseline: Baseline,
    live: dict[str, Sketch],
    windows: Sequence[WindowShifts],
) -> MonitoredColumn:
    seen = [window.columns[key] for window in windows]
    verdicts = tuple(verdict for _, verdict in seen)
    verdict: Verdict = "alarm" if "alarm" in verdicts else "quiet"
    if len(seen) == 1:
        verdict = verdicts[0]
    # The window with the largest PSI among those with the worst verdict.
    shift = max((one for one, judged in seen if verdict == "quiet" or judged == verdict), key=lambda one: one.psi)
    evidence = shift.evidence()
    names = ("jensen_shannon", "ks", "wasserstein")
    others: dict[str, float] = {each: float(evidence[each]) for each in names if each in evidence}
    return MonitoredColumn(
        name=name,
        role=role,
        reference=baseline.features.sketches[key],
        current=live[key],
        verdict=verdict,
        psi=shift.psi,
        strength=shift.strength,
        p_value=shift.p_value,
        statistics=others,
        psi_by_window=tuple(one.psi for one, _ in seen),
        strengths=tuple(one.strength for one, _ in seen),
        verdicts=verdicts,
        strong=tuple(one.strong for one, _ in seen),
    )


def _pairs(windows: Sequence[WindowShifts], name_of: Mapping[str, str]) -> tuple[MonitoredPair, ...]:
    """Return the pairs that are flagged in some window."""
    flagged = {pair for window in windows for pair, (_, verdict) in window.pairs.items() if verdict != "quiet"}
    made: list[MonitoredPair] = []
    for pair in flagged:
        seen = [window.pairs.get(pair) for window in windows]
        verdicts = tuple(one[1] if one is not None else "quiet" for one in seen)
        verdict: Verdict = "alarm" if "alarm" in verdicts else "quiet"
        if len(seen) == 1:
            verdict = verdicts[0]
        shift = max((one[0] for one in seen if one is not None), key=lambda one: one.strength)
        made.append(
            MonitoredPair(
                names=(name_of[pair[0]], name_of[pair[1]]),
                before=shift.before,
                now=shift.now,
                change=shift.change,
                verdict=verdict,
                strength=shift.strength,
                p_value=shift.p_value,
                verdicts=verdicts,
                strong=tuple(one is not None and one[0].strong for one in seen),
            )
        )
    return tuple(sorted((one for one in made if one.verdict != "quiet"), key=lambda one: (-one.strength, one.names)))


def _order(column: MonitoredColumn) -> tuple[int, float, str]:
    return ("alarm", "warning", "quiet").index(column.verdict), -column.psi, column.name


def _performance(
    labelled: LabelledTables,
    baseline: Baseline,
    parts: Sequence[pl.Series | None],
    budget: AlarmBudget,
    *,
    windowed: bool,
) -> MetricSeries | None:
    from everloop.monitoring import measure_labelled
    from everloop.monitoring.alarm_budget import MEMORY
    from everloop.monitoring.performance.performance_checks import worse_than_reference
    from everloop.training.metrics import higher_is_better

    expected = baseline.metric
    if expected is None or labelled.current is None:
        return None
    greater = higher_is_better(labelled.metric)
    points: list[MetricPoint] = []
    verdicts: list[Verdict] = []
    for rows in parts:
        window = labelled.current if rows is None else labelled.current[rows]
        try:
            measured = measure_labelled(window.filter(window["actual"].is_not_null()), labelled.metric)
        except EverloopError:
            # No labels in this window, or of one class only.
            points.append(MetricPoint())
            verdicts.append("quiet")
            continue
        p_value = worse_than_reference(measured, expected, greater_is_better=greater)
        recently = {labelled.metric} if set(verdicts[-MEMORY:]) - {"quiet"} else set()
        verdict = budget.judge({labelled.metric: p_value}, recently)[labelled.metric]
        if not windowed:
            verdict = "alarm" if p_value <= _ALARM_P else "warning" if p_value <= _FLAGGED_P else "quiet"
        points.append(_point(measured.value, measured.low, measured.high, measured.rows))
        verdicts.append(verdict)
    return MetricSeries(
        metric=labelled.metric,
        greater_is_better=greater,
        reference=_point(expected.value, expected.low, expected.high, expected.rows),
        points=tuple(points),
        verdicts=tuple(verdicts),
    )


def _point(value: float, low: float, high: float, rows: int) -> MetricPoint:
    value, low, high = (number if math.isfinite(number) else None for number in (value, low, high))  # type: ignore[assignment]
    return MetricPoint(value=value, low=low, high=high, rows=rows)
