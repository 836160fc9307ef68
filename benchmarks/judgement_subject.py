"""What `judgement.py` judges: one function that watches a live table and returns the incidents that it opens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    reference: pl.DataFrame, current: pl.DataFrame, time: str, every: str, incidents_per_month: float
) -> list[Opened]:
    """Return the incidents that everloop opens while it watches the live table window by window."""
    try:
        from everloop.monitoring.stream_monitoring import watch_table
    except ImportError:
        return _stand_in(reference, current, time, every, incidents_per_month)
    watched = watch_table(reference, current, time=time, every=every, incidents_per_month=incidents_per_month)
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
    try:
        import everloop.monitoring.stream_monitoring  # noqa: F401
    except ImportError:
        return "everloop's drift alarms as runs of windows (stand-in: everloop has no watch_table)"
    return "everloop.monitoring.stream_monitoring.watch_table"


def _stand_in(
    reference: pl.DataFrame, current: pl.DataFrame, time: str, every: str, incidents_per_month: float
) -> list[Opened]:
    """Return runs of alarmed windows: what everloop's drift check says, one window after the other."""
    from everloop.data.sketches.column_sketches import sketch_frame
    from everloop.monitoring.alarm_budget import budget_for
    from everloop.monitoring.baseline import build_baseline
    from everloop.monitoring.subject_shift import measure_shifts

    span = timedelta(hours=1) if every == "1h" else timedelta(days=1)
    days = (reference[time].max() - reference[time].min()) / timedelta(days=1)  # type: ignore[operator]
    baseline = build_baseline(reference, time=time, blocks=min(365, max(6, round(days))))
    budget = budget_for(incidents_per_month, span)
    ends: list[datetime] = []
    flags: list[list[str]] = []
    flagged: list[set[str]] = []
    for (start,), rows in current.group_by_dynamic(time, every=every):
        features = sketch_frame(rows, baseline.bins)
        recent = frozenset().union(*flagged[-2:])
        shifts = measure_shifts(baseline, features, span=span, budget=budget, recently_flagged=recent, draws=300)
        flagged.append({shift.subject for shift in shifts if shift.verdict != "quiet"})
        assert isinstance(start, datetime)
        ends.append(start + span)
        flags.append([shift.subject for shift in shifts if shift.verdict == "alarm"])
    return runs(ends, flags)


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
