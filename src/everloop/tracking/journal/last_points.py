"""The last point of each metric, whose value a run's record shows.

The last point is the one with the greatest step, then the latest time, then the greatest value, as in MLflow. NaN is
compared as 0, and loses against a number that is equal to it. So the last value does not depend on how points arrived,
nor in which order.
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
"""Metric to its last point: step, µs since 1970 and value."""


def series_of(run: str) -> str:
    """The series that holds the points of the run with this id."""
    return f"run:{run}"


def merge(latest: Latest, rows: Iterable[tuple[str, int, int, float]]) -> None:
    """Update `latest` with points, each given as metric, step, µs since 1970 and value."""
    for key, step, at, value in rows:
        last = latest.get(key)
        # The step is compared first, for speed: it decides nearly always, and a journal may have millions of points.
        if last is None or step > last[0] or (step == last[0] and _rank(at, value) > _rank(*last[1:])):
            latest[key] = (step, at, value)


def rows_of(points: Iterable[Point]) -> list[tuple[str, int, int, float]]:
    """Points in the form that `merge` expects."""
    return [(point.key, point.step, micros(point.at), point.value) for point in points]


def with_latest(store: Store, run: Run, latest: Latest) -> Run:
    """The run's record with these last points, unless its own are later. The same object if nothing changes.

    The points must already be in the store. A record has times in milliseconds only, so for two points with the same
    step and millisecond, the store is read to decide.
    """
    metrics, metric_at = dict(run.metrics), dict(run.metric_at)
    for key, (step, at, value) in latest.items():
        recorded, new = metric_at.get(key), (step, at // 1000)
        if recorded is not None and recorded > new:
            continue
        if recorded == new or (recorded is None and key in metrics):
            last: Latest = {key: (step, at, value)}
            points = store.records.read_points(series_of(run.id), key, since_step=None if recorded is None else step)
            merge(last, rows_of(points))
            step, at, value = last[key]
        # Not every database has -0.0, so it becomes 0.0.
        metrics[key], metric_at[key] = value + 0.0, (step, at // 1000)
    if metric_at == run.metric_at and _same(metrics, run.metrics):
        return run
    return replace(run, metrics=metrics, metric_at=metric_at)


def _rank(at: int, value: float) -> tuple[int, float, bool]:
    return (at, 0.0, False) if value != value else (at, value, True)


def _same(left: dict[str, float], right: dict[str, float]) -> bool:
    # By `repr`, so that NaN equals NaN.
    return left.keys() == right.keys() and all(repr(value) == repr(right[key]) for key, value in left.items())
