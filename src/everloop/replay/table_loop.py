"""Make a loop for a plain table: which columns are features, how the target is judged, and a quick training.

Everything is decided on the rows before the replay begins, so nothing here depends on the future.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, UsageError
from everloop.loop import Canary, Drift, Endpoint, Loop, NotWorseThan, Performance
from everloop.replay.policy_run import replayed_rows
from everloop.stores.durations import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.loop import Gate, GateContext, GateOutcome
    from everloop.loop.new_project.table_inspection import ColumnInspection

NAME = "replay"
LEAST_HELD_OUT = 30
"""Rows that a held-out part should have. These are the newest rows, which a model does not learn from."""
LEAST_OF_CLASS = 20
"""Rows of the rarer of two classes that a held-out part should have."""
CALENDAR = ("month", "weekday", "hour")
"""Parts of a row's time that are its features if a table has no other ones."""
CANARY_ROWS = 1000
"""With fewer rows in a period, a retrained model is not released through a canary."""
_SUSPICION = " on its own (score "


@dataclass(frozen=True, slots=True)
class NotClearlyWorse:
    """Gate: fails a candidate that is certainly worse than the champion by more than `margin`, and passes others.

    Args:
        margin: the loss that is tolerated, in the unit of the metric.
    """

    margin: float

    @property
    def name(self) -> str:
        return "not clearly worse than champion"

    def check(self, context: GateContext) -> GateOutcome:
        """Compare the two versions on the rows held out."""
        outcome = NotWorseThan("champion", margin=self.margin).check(context)
        return replace(outcome, outcome="pass") if outcome.outcome == "undecided" else outcome


@dataclass(frozen=True, kw_only=True)
class TableLoop:
    """A loop for a table, the table with converted columns, and remarks about both."""

    loop: Loop
    table: pl.DataFrame
    remarks: tuple[str, ...]


def read_times(table: pl.DataFrame, time: str) -> pl.DataFrame:
    """Return the table with its time column as dates or times.

    Raises:
        DataError: the column is missing, has no value in a row, or cannot be read as times.
    """
    import polars as pl

    table = as_times(table, time, "--time")
    missing = table[time].null_count()
    if missing:
        if missing > table.height / 2:
            raise DataError(
                f"{missing:,} of {table.height:,} rows have no time in '{time}'.", help="Use another column."
            )
        table = table.filter(pl.col(time).is_not_null())
    return table


def as_times(table: pl.DataFrame, column: str, option: str) -> pl.DataFrame:
    """Return the table with a column of texts or numbers as dates or times; missing ones stay missing.

    Args:
        table: the table.
        column: the column to convert.
        option: the option that named it, for errors.

    Raises:
        DataError: the column is missing or cannot be read as times.
    """
    import polars as pl

    from everloop.data.disguised_columns import find_time
    from everloop.data.table_inputs import nearest

    if column not in table.columns:
        raise DataError(f"The table has no column '{column}' for {option}.", help=nearest(column, table.columns))
    conversion = find_time(table[column])
    if conversion is not None:
        table = table.with_columns(conversion.expression)
    if not (table.schema[column] == pl.Date or isinstance(table.schema[column], pl.Datetime)):
        raise DataError(
            f"The column '{column}' {_why_no_times(table[column])}.",
            help=f"Write all its values in one form, such as 2024-01-31 or 2024-01-31 13:00, or use another column:"
            f" {option} COLUMN",
        )
    return table


def _why_no_times(values: pl.Series) -> str:
    """Say why a column that is not converted cannot be read as times."""
    import polars as pl

    from everloop.data.disguised_columns import find_date

    texts = values.drop_nulls()
    if values.dtype != pl.String or not len(texts):
        return f"holds values of type {values.dtype}, not dates or times"
    first = find_date(texts.head(1))
    if first is None:
        return f"holds texts such as '{texts[0]}', not dates or times"
    other = texts.filter(texts.to_frame().select(first.expression).to_series().is_null())
    return f"mixes several forms of dates: '{texts[0]}', but {len(other):,} values such as '{other[0]}'"


def table_loop(
    table: pl.DataFrame,
    *,
    target: str,
    time: str,
    key: str | None,
    exclude: Sequence[str],
    labels_after: timedelta,
    start: datetime,
    every: timedelta,
    metric: str | None,
    arrival: str | None = None,
    include: Sequence[str] = (),
) -> TableLoop:
    """Decide from the rows before `start` how the table is learned from.

    The column `arrival`, with the time at which a label arrived, is kept but is not a feature. Columns in `include` are
    features although they seem to know the target.

    Raises:
        DataError: nothing can be learned from these rows.
        UsageError: a column is named that does not exist, or the metric does not fit the target.
    """
    import polars as pl

    from everloop.data import Dataset
    from everloop.data.table_inputs import as_utc, nearest
    from everloop.loop.new_project.project_draft import find_goal
    from everloop.loop.new_project.table_inspection import inspect_table
    from everloop.training import AutoTrain
    from everloop.training.metric_tasks import check_metric, metrics_of

    for verb, names in (("exclude", exclude), ("include", include)):
        for name in names:
            if name not in table.columns:
                raise UsageError(f"The table has no column '{name}' to {verb}.", help=nearest(name, table.columns))
    if both := sorted({*exclude, target, time} & set(include)):
        raise UsageError(f"The column '{both[0]}' cannot be included.", help="It is excluded, the target, or the time.")
    moments = table.select(as_utc(time, table.schema[time])).to_series()
    hidden = [name for name in exclude if name not in (target, time, key)] + ([arrival] if arrival is not None else [])
    past = table.filter(moments < start).drop(list(dict.fromkeys(hidden)))
    remarks: list[str] = []
    try:
        inspection = inspect_table(past, target, time=time, key=key)
    except DataError as error:
        # Perhaps there is nothing to learn from but the calendar.
        calendar = _calendar(past, time)
        past, table = past.with_columns(calendar), table.with_columns(calendar)
        try:
            inspection = inspect_table(past, target, time=time, key=key)
        except DataError:
            raise error from None
        remarks.append("The table has no other features, so the calendar is used: month, weekday and hour of its time.")
    goal = find_goal(inspection)
    metric = metric or metrics_of(goal.task)[0]
    check_metric(metric, goal.task)
    remarks += inspection.remarks
    renamed = inspection.renamed
    features: list[str] = []
    wanted = {renamed.get(name, name) for name in include}
    converted = table.rename({old: new for old, new in renamed.items() if old in table.columns})
    target, time = renamed.get(target, target), renamed.get(time, time)
    for column in inspection.columns:
        if column.conversion is not None and column.treatment in ("feature", "target"):
            converted = converted.with_columns(column.conversion.expression)
        if column.treatment == "feature" or (column.treatment == "excluded" and column.name in wanted):
            features.append(column.name)
        elif column.treatment in ("excluded", "dropped"):
            remarks.append(_not_used(column))
        if column.treatment == "feature" and column.name not in wanted and _SUSPICION in column.message:
            suspicion = column.message.rpartition("; ")[2].partition(":")[0]
            advice = f"If it is known only with the target: --exclude {column.name}"
            remarks.append(f"'{column.name}' {suspicion}, but is used. {advice}")
    parts: list[str] = []
    if goal.task == "regression":
        leaks = [column.name for column in inspection.columns if column.kind == "leak"]
        parts = _parts_of_target(inspection.rows, list(dict.fromkeys([*features, *leaks])), target)
        parts = [name for name in parts if name not in wanted]
    if set(parts) & set(features) and set(features) - set(parts):
        features = [name for name in features if name not in parts]
        remarks = [one for one in remarks if not one.startswith(tuple(f"'{name}' " for name in parts))]
        subject = f"{_listed(parts)} {'are' if len(parts) > 1 else 'is'} not used: "
        gives = "together they give" if len(parts) > 1 else "it gives"
        known = "they are" if len(parts) > 1 else "it is"
        remarks.append(
            f"{subject}{gives} '{target}' exactly, so {known} probably known only with it. If not: --include"
            f" {','.join(parts)}"
        )
    if not features:
        raise DataError(f"No column is left to predict '{target}' from.", help="Exclude fewer columns.")
    if goal.task != "regression":
        # A class of the future would stop every comparison.
        known_class = pl.col(target).is_null() | pl.col(target).is_in(inspection.rows[target].unique().to_list())
        before = converted
        converted = converted.filter(known_class)
        if new := before.height - converted.height:
            names = before.filter(~known_class)[target].unique(maintain_order=True).to_list()
            remarks.append(
                f"{new:,} rows are left out, because their '{target}' did not occur before {start:%Y-%m-%d}:"
                f" {_listed(names[:3])}{', …' if len(names) > 3 else ''}."
            )
    delay = format_duration(labels_after) if labels_after else "0s"
    margin = _margin(metric, inspection.rows[target], goal.task)
    gates, rollout = _release(margin, _rows_per_period(moments, start, every), every)
    least = _rows_to_judge(inspection.rows[target], goal.task)
    held_out = _held_out(inspection.rows.height, least, moments, start, every)
    loop = Loop(
        NAME,
        data=Dataset(
            replayed_rows,
            target=target,
            time=time,
            features=features,
            holdout=held_out,
            labels_after=delay if labels_after else None,
        ),
        train=AutoTrain(
            metric=metric,
            task=goal.task,
            positive=goal.positive,
            trials=1,
            candidates=("lightgbm",),
            budget_s=600,
            threads=1,
        ),
        gates=[gates],
        serve=Endpoint(NAME, rollout=rollout),
        watch=[
            Drift(window=format_duration(every)),
            Performance(metric, labels_after=delay, window=format_duration(every)),
        ],
    )
    names = [name for name in converted.columns if name in {target, time, key, arrival, *features}]
    return TableLoop(loop=loop, table=converted.select(names), remarks=tuple(remarks))


def _release(margin: float, rows: float, every: timedelta) -> tuple[Gate, Canary | None]:
    """Return how a retrained model replaces the one before, depending on the rows of a period.

    With many rows a canary decides by live evidence. A sequential test of few rows would hardly ever decide, and the
    first model would stay whatever the policy; then a candidate takes over unless it is clearly worse on the rows held
    out.
    """
    if rows < CANARY_ROWS:
        return NotClearlyWorse(margin=margin), None
    canary = Canary(steps=[50, 100], least_labels=30, patience=format_duration(every), margin=margin, least_days=1)
    return NotWorseThan("champion", margin=margin), canary


def _rows_per_period(moments: pl.Series, start: datetime, every: timedelta) -> float:
    last: Any = moments.max()
    if last is None or last <= start:
        return 0.0
    rows = int((moments >= start).sum())
    periods: float = (last - start) / every
    return rows / max(1.0, periods)


def _margin(metric: str, target: pl.Series, task: str) -> float:
    """The loss that gates tolerate: one hundredth of a score, or of the target's spread for errors in its unit."""
    if task == "regression" and metric != "r2" and metric != "mape":
        import polars as pl

        spread = target.cast(pl.Float64).drop_nulls().drop_nans().std()
        return 0.01 * float(spread) if isinstance(spread, float) and spread > 0 else 0.0
    return 0.01


def _rows_to_judge(target: pl.Series, task: str) -> int:
    """How many rows judge a model: more if one of two classes is rare."""
    if task != "binary":
        return LEAST_HELD_OUT
    known = target.drop_nulls()
    counts: list[int] = known.value_counts()["count"].to_list()
    return max(LEAST_HELD_OUT, -(-LEAST_OF_CLASS * len(known) // min(counts, default=1)))


def _held_out(rows: int, least: int, moments: pl.Series, start: datetime, every: timedelta) -> str:
    """How much of the newest past tests a model: a period, more if that has few rows, at most 15 % of the past."""
    first: Any = moments.min()
    if first is None or rows == 0:
        raise DataError("The replay begins before the first row.", help="Choose a later --from.")
    span: timedelta = start - first
    enough = span * min(1.0, least / rows)
    chosen = min(max(every, enough), span * 0.15)
    return f"{max(60, round(chosen.total_seconds()))}s"


def _calendar(past: pl.DataFrame, time: str) -> list[pl.Expr]:
    """The parts of a row's time that vary in the past, as columns."""
    import polars as pl

    parts = CALENDAR if past.schema[time] != pl.Date else CALENDAR[:2]
    columns = [getattr(pl.col(time).dt, part)().cast(pl.Int64).alias(f"{part} of {time}") for part in parts]
    return [one for one in columns if past.select(one).to_series().n_unique() > 1]


def _not_used(column: ColumnInspection) -> str:
    message = column.message
    if column.kind != "leak":
        return f"'{column.name}' is not used: {message.removesuffix(': dropped')}."
    reason = message.partition(", so excluded")[0]
    return (
        f"'{column.name}' is not used: it {reason}, so it is probably known only with it. If not: --include"
        f" {column.name}"
    )


def _parts_of_target(rows: pl.DataFrame, features: Sequence[str], target: str) -> list[str]:
    """The numeric columns of which the target is an exact linear combination, such as two parts of a sum."""
    import numpy as np
    import polars as pl

    numeric = [name for name in features if rows.schema[name].is_numeric()]
    known = rows.select(*(pl.col(name).cast(pl.Float64) for name in (*numeric, target))).drop_nulls().drop_nans()
    sample = known.head(5_000)
    if len(numeric) < 2 or sample.height < 4 * (len(numeric) + 1):
        return []
    y = sample[target].to_numpy()
    matrix = sample.select(numeric).to_numpy()
    spread = matrix.std(axis=0)
    moving = np.flatnonzero(spread > 0)
    if not len(moving) or y.std() == 0:
        return []
    scaled = np.column_stack([(matrix[:, moving] - matrix[:, moving].mean(axis=0)) / spread[moving], np.ones(len(y))])
    solution, *_ = np.linalg.lstsq(scaled, y, rcond=None)
    if np.abs(scaled @ solution - y).max() > 1e-6 * y.std():
        return []
    return [numeric[index] for index, weight in zip(moving, solution[:-1], strict=True) if abs(weight) > 1e-6 * y.std()]


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]
