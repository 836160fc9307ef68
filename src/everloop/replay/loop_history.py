"""The history of a loop: the rows that its own data step returns, and proof that the step does not look ahead.

The step runs once as of the end, and the rows are cut by their time. To prove that this is the same as running the step
at each moment, it also runs as of a few earlier moments: `el.read` hides what arrived later. If a row then looks
different, the step used the future for it, and the rows are taken as they looked right after their event instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, UsageError
from everloop.replay.replay_history import EVENT, ReplayHistory, build_history
from everloop.replay.replay_store import replay_store, scratch_folder
from everloop.stores.clock import SimulatedClock, moment_of

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.loop import Loop
    from everloop.stores import Store

PROOFS = (0.4, 0.7, 0.9)
"""Shares of the history's time at which the step runs again."""
_REBUILDS = 60
"""At most this many times the step runs if it looks ahead."""


@dataclass(frozen=True, kw_only=True)
class LoopHistory:
    """The history of a loop, with remarks about how it was built."""

    history: ReplayHistory
    remarks: tuple[str, ...]
    ahead: tuple[str, ...] = ()
    """Columns for which the step used the future."""


def loop_history(loop: Loop, labels_after: timedelta, end: datetime | None = None) -> LoopHistory:
    """Run the data step of a loop, and order its rows by time.

    Args:
        loop: a loop whose dataset has a time column.
        labels_after: how long after its event a row's label becomes known.
        end: run the step as of this time. Default: now.

    Raises:
        UsageError: the dataset has no time column.
        DataError: the step returns too few rows.
        StepError: the step failed.
    """
    if loop.data.time is None:
        raise UsageError(f"The dataset of loop '{loop.name}' has no time column.", help="Name it with time=.")
    remarks: list[str] = []
    with scratch_folder() as folder, replay_store(folder / "steps", "steps", _clock(end)) as store:
        table = _rows(loop, store, end)
        history = _history(loop, table, labels_after)
        first, last = int(history.events[0]), int(history.events[-1])
        ahead: dict[str, int] = {}
        cut = False
        for share in PROOFS:
            moment = moment_of(first + int((last - first) * share))
            earlier = _rows(loop, store, moment)
            cut = cut or earlier.height < table.height
            for column, rows in _differences(loop, table, earlier, moment, labels_after).items():
                ahead[column] = max(ahead.get(column, 0), rows)
        if ahead:
            named = ", ".join(f"'{column}' in {rows:,} rows" for column, rows in sorted(ahead.items()))
            remarks.append(
                f"The data step looks into the future: {named}. The rows are replayed as they looked after their event."
            )
            history = _history(loop, _as_they_looked(loop, store, history), labels_after)
        elif not cut:
            remarks.append(
                "What the data step reads has no arrival time, so it counts as known throughout; rows are cut by"
                f" '{loop.data.time}' alone. Name it to have this proved: el.read(..., arrival_time='column')."
            )
    return LoopHistory(history=history, remarks=tuple(remarks), ahead=tuple(sorted(ahead)))


def _clock(end: datetime | None) -> Any:
    from everloop.stores.clock import SystemClock

    return SimulatedClock(end) if end is not None else SystemClock()


def _rows(loop: Loop, store: Store, moment: datetime | None) -> pl.DataFrame:
    """The rows of the data step, as of a moment."""
    from contextlib import nullcontext

    import polars as pl

    from everloop.data.time_travel import as_of
    from everloop.pipeline import Graph, Step, run_graph
    from everloop.tracking import start_run

    source = loop.data.source
    if not isinstance(source, Step):
        raise UsageError(
            f"The dataset of loop '{loop.name}' comes from {source!r}, which is not a step.",
            help="Put @el.step above the function and pass the step: el.Dataset(prepare, target=…)",
        )
    graph = Graph.wire([source], name=loop.name)
    with as_of(moment) if moment is not None else nullcontext(), start_run(loop.name, store=store) as run:
        found = run_graph(graph, store, run=run).value(source.name)
    table = found.collect() if isinstance(found, pl.LazyFrame) else found
    if not isinstance(table, pl.DataFrame):
        raise DataError(f"The step '{source.name}' returned {type(table).__name__}, not a table.")
    return table


def _history(loop: Loop, table: pl.DataFrame, labels_after: timedelta) -> ReplayHistory:
    data = loop.data
    return build_history(table, target=data.target, time=str(data.time), key=data.key, labels_after=labels_after)


def _differences(
    loop: Loop, table: pl.DataFrame, earlier: pl.DataFrame, moment: datetime, labels_after: timedelta
) -> dict[str, int]:
    """The columns of rows before a moment that looked different then, with the number of such rows."""
    import polars as pl

    data = loop.data
    if not earlier.height:
        return {}
    from everloop.data.table_inputs import as_utc

    time = str(data.time)
    known = as_utc(time, table.schema[time]) <= moment - labels_after
    late, early = table.filter(known), earlier.filter(known)
    features = [name for name in data.feature_names(table.columns) if name in early.columns]
    compared = [*features, data.target]
    if data.key is not None:
        both = late.join(early, on=data.key, how="inner", suffix="__then")
    else:
        if late.height != early.height:
            return {}
        late, early = (one.sort(time, *compared) for one in (late, early))
        both = pl.concat([late, early.rename({name: f"{name}__then" for name in early.columns})], how="horizontal")
    found = both.select((pl.col(name).ne_missing(pl.col(f"{name}__then"))).sum().alias(name) for name in compared)
    return {name: int(found[name][0]) for name in compared if found[name][0]}


def _as_they_looked(loop: Loop, store: Store, history: ReplayHistory) -> pl.DataFrame:
    """Every row as the step returned it at the first moment after its event, in up to `_REBUILDS` runs of the step."""
    import polars as pl

    first, last = int(history.events[0]), int(history.events[-1])
    step = max(1, (last - first) // _REBUILDS + 1)
    labels = history.table.select(EVENT, history.target, *([history.key] if history.key else []))
    parts = []
    for number in range(_REBUILDS):
        begin, until = first + number * step, first + (number + 1) * step
        if begin > last:
            break
        seen = _rows(loop, store, moment_of(until))
        if not seen.height:
            continue
        moments = _history_events(seen, history.time)
        parts.append(seen.filter((moments >= begin) & (moments < until)))
    found = pl.concat(parts, how="diagonal_relaxed") if parts else history.table.head(0)
    if history.key is not None:
        # The label is what became known in the end; when it did is cut by the replay.
        final = labels.select(history.key, history.target)
        found = found.drop(history.target).join(final, on=history.key, how="left", maintain_order="left")
    return found


def _history_events(table: pl.DataFrame, time: str) -> pl.Series:
    import polars as pl

    from everloop.data.table_inputs import as_utc

    return table.select(as_utc(time, table.schema[time]).cast(pl.Datetime("us", "UTC")).cast(pl.Int64)).to_series()
