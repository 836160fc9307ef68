"""What `judgement.py` judges: one function that watches a live table and returns the incidents that it opens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import polars as pl

RESOLVED_AFTER = 3
"""A run of alarmed windows ends after this many windows without an alarm."""


class Opened(NamedTuple):
    """An incident as monitoring reported it."""

    opened_at: datetime
    resolved_at: datetime | None
    subjects: tuple[str, ...]
    severity: str
    changed: tuple[datetime, ...] = ()
    """When it was changed later, for instance because a subject joined it."""


def everloop_incidents(
    reference: pl.DataFrame,
    current: pl.DataFrame,
    time: str,
    every: str,
    incidents_per_month: float,
    seasons: Sequence[str] = (),
) -> list[Opened]:
    """Return the incidents that everloop opens while it watches the live table window by window."""
    from everloop.monitoring.stream_monitoring import watch_table

    watched = watch_table(
        reference, current, time=time, every=every, incidents_per_month=incidents_per_month, seasons=seasons
    )
    return [
        Opened(
            _naive(item.history[0].at),
            _naive_or_none(item.resolved_at),
            tuple(item.subjects),
            item.severity,
            tuple(_naive(change.at) for change in item.history[1:] if change.action != "resolve"),
        )
        for item in watched.incidents
    ]


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def _naive_or_none(moment: datetime | None) -> datetime | None:
    return None if moment is None else _naive(moment)


def subject_name() -> str:
    return "everloop.monitoring.stream_monitoring.watch_table"


def runs(ends: Sequence[datetime], flags: Sequence[Sequence[str]]) -> list[Opened]:
    """Return the runs of windows that have flagged subjects. `ends`: the ends of all windows, in order."""
    found: list[Opened] = []
    quiet = RESOLVED_AFTER
    for end, subjects in zip(ends, flags, strict=True):
        if subjects and quiet >= RESOLVED_AFTER:
            found.append(Opened(end, None, tuple(subjects), "alarm"))
        elif subjects:
            found[-1] = found[-1]._replace(subjects=tuple(dict.fromkeys([*found[-1].subjects, *subjects])))
        quiet = 0 if subjects else quiet + 1
        if quiet == RESOLVED_AFTER and found:
            found[-1] = found[-1]._replace(resolved_at=end)
    return found
