"""Which point of a metric is its last one: the value that a run's record shows.

The greatest step counts, then the latest time, then the greatest value, as in MLflow; NaN counts as 0 there, and
gives way to a number that equals it. So the last value does not depend on the way by which points came, nor on the
order in which they arrived.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.stores.clock import micros

if TYPE_CHECKING:
    from collections.abc import Iterable

    from everloop.records import Point, Run
    from everloop.stores import Store

Latest = dict[str, tuple[int, int, float]]
"""Of each metric the last point: its step, µs since 1970 and value."""


def series_of(run: str) -> str:
    """The series that holds the points of the run with this id."""
    return f"run:{run}"


def merge(latest: Latest, rows: Iterable[tuple[str, int, int, float]]) -> None:
    """Bring points, each as metric, step, µs since 1970 and value, into the last ones."""
    for key, step, at, value in rows:
        held = latest.get(key)
        # Nearly all points are decided by their steps, and a journal can have millions.
        if held is None or step > held[0] or (step == held[0] and _rank(at, value) > _rank(*held[1:])):
            latest[key] = (step, at, value)


def rows_of(points: Iterable[Point]) -> list[tuple[str, int, int, float]]:
    """Points as `merge` takes them."""
    return [(point.key, point.step, micros(point.at), point.value) for point in points]


def with_latest(store: Store, run: Run, latest: Latest) -> Run:
    """The run's record with these last points, where its own are not later; the same object if nothing changes.

    The points have to be in the store already: a record keeps times in milliseconds, so two points of one step and
    one millisecond are told apart by what the store has.
    """
    metrics, metric_at = dict(run.metrics), dict(run.metric_at)
    for key, (step, at, value) in latest.items():
        known, here = metric_at.get(key), (step, at // 1000)
        if known is not None and known > here:
            continue
        if known == here or (known is None and key in metrics):
            found: Latest = {key: (step, at, value)}
            points = store.records.read_points(series_of(run.id), key, since_step=None if known is None else step)
            merge(found, rows_of(points))
            step, at, value = found[key]
        # Not every database knows -0, so it is 0 here as well.
        metrics[key], metric_at[key] = value + 0.0, (step, at // 1000)
    if metric_at == run.metric_at and _same(metrics, run.metrics):
        return run
    return replace(run, metrics=metrics, metric_at=metric_at)


def _rank(at: int, value: float) -> tuple[int, float, bool]:
    return (at, 0.0, False) if value != value else (at, value, True)


def _same(left: dict[str, float], right: dict[str, float]) -> bool:
    # NaN is like NaN here.
    return left.keys() == right.keys() and all(repr(value) == repr(right[key]) for key, value in left.items())
