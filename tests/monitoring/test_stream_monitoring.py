"""Watching a table window by window: which incidents open, what they are about, and when they are over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring import watch_table
from everloop.monitoring.stream_monitoring import StreamReport

START = datetime(2026, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)


def table(
    days: int,
    seed: int,
    *,
    since: int = 0,
    rows: int = 300,
    correlation: float | dict[int, float] = 0.0,
    moved: dict[str, dict[int, float]] | None = None,
    course: float = 0.0,
) -> pl.DataFrame:
    """Four normal features. By day: `correlation` of a and b, and by how much columns have `moved`.

    `course`: how much the hour of the day moves a and b, in standard deviations.
    """
    generator = np.random.default_rng(seed)
    seconds = np.sort(generator.integers(days * 86_400, size=days * rows))
    day = seconds // 86_400
    columns = {name: generator.normal(size=len(seconds)) for name in "abcd"}
    by_day = correlation if isinstance(correlation, dict) else dict.fromkeys(range(days), correlation)
    share = np.array([by_day.get(each, 0.0) for each in range(days)])[day]
    columns["b"] = share * columns["a"] + np.sqrt(1 - share**2) * columns["b"]
    for name, steps in (moved or {}).items():
        columns[name] = columns[name] + np.array([steps.get(each, 0.0) for each in range(days)])[day]
    for name in "ab":
        columns[name] = columns[name] + course * np.sin(seconds / 86_400 * 2 * np.pi)
    times = [START + timedelta(days=since, seconds=int(each)) for each in seconds]
    return pl.DataFrame({"at": times, **columns})


def days(first: int, last: int, value: float) -> dict[int, float]:
    return dict.fromkeys(range(first, last), value)


def watch(current: pl.DataFrame, *, budget: float = 0.1, **reference: float) -> StreamReport:
    before = table(60, 1, **reference)  # type: ignore[arg-type]
    return watch_table(before, current, time="at", incidents_per_month=budget)


def test_a_change_of_a_correlation_alone_opens_one_incident() -> None:
    report = watch(table(30, 2, since=60, correlation=days(10, 15, 0.6)))
    (incident,) = report.incidents
    assert incident.subjects == ("a × b",)
    assert incident.title.startswith("'a' and 'b' are related differently than before: their rank correlation is 0.")
    assert incident.began_at == START + 70 * DAY
    assert incident.state == "resolved"
    assert [change.action for change in incident.history] == ["open", "resolve"]
    # No feature alone shows it.
    names = [subject for subject, _ in report.judgements[0].model.names]
    alone = np.array(["×" not in name for name in names])
    assert max(judged.strongest[alone].max() for judged in report.judgements) < report.judgements[0].limit


@pytest.mark.slow
@pytest.mark.parametrize("rows", [600, 1500])
def test_two_features_with_the_same_course_of_the_day_are_as_before(rows: int) -> None:
    """The reference has blocks of an hour, in which the two are not related; over a day they are."""
    report = watch(table(20, 2, since=60, rows=rows, course=1.0), rows=rows, course=1.0)
    assert report.baseline.features.blocks is not None
    assert report.baseline.features.blocks.span == timedelta(hours=1)
    assert not [one for one in report.incidents if any("×" in subject for subject in one.subjects)]
    # And the noise of their correlation is known, though some hours have few rows.
    assert not report.judgements[0].model.unknown.any()


def test_a_strong_change_opens_an_incident_beside_an_ongoing_one() -> None:
    report = watch(table(40, 2, since=60, moved={"c": days(5, 40, 0.6), "d": days(15, 20, 1.5)}))
    first, second = report.incidents
    assert first.subjects[0] == "c"
    assert second.subjects[0] == "d"
    assert (first.began_at, second.began_at) == (START + 65 * DAY, START + 75 * DAY)
    assert (first.state, second.state) == ("open", "resolved")


def test_at_most_three_are_ongoing() -> None:
    moved = {name: days(5 + 3 * index, 30, 2.0) for index, name in enumerate("abcd")}
    report = watch(table(30, 2, since=60, moved=moved))
    assert [one.state for one in report.incidents] == ["open"] * 3
    assert [one.subjects[0] for one in report.incidents][:2] == ["a", "b"]
    assert set(report.incidents[2].subjects) >= {"c", "d"}
    assert [change.action for change in report.incidents[2].history] == ["open", "join"]


def test_windows_without_rows_are_neither_calm_nor_restless() -> None:
    current = table(30, 2, since=60, moved={"c": days(5, 30, 2.0)})
    gap = current.filter(~pl.col("at").is_between(START + 66 * DAY, START + 76 * DAY))
    (incident,) = watch(gap).incidents
    assert (incident.state, incident.began_at, incident.seen_at) == ("open", START + 65 * DAY, START + 90 * DAY)


def year(amplitude: float, first: int, last: int) -> dict[int, float]:
    """The course of a year, from a day of its fastest move."""
    return {day: amplitude * np.sin(2 * np.pi * (day + first) / 365.2425) for day in range(last - first)}


@pytest.mark.slow
def test_a_declared_year_is_followed_and_a_step_in_it_is_found() -> None:
    """The reference has 60 days. Undeclared, the course is an incident; declared, only a step is, on its first days."""
    before = table(60, 1, moved={name: year(0.8, 0, 60) for name in "ab"})
    later = {name: year(0.8, 60, 360) for name in "ab"}
    now = table(300, 2, since=60, moved=later)
    undeclared = watch_table(before, now, time="at", incidents_per_month=0.1)
    assert {"a", "b"} & {subject for one in undeclared.incidents for subject in one.subjects}
    declared = watch_table(before, now, time="at", incidents_per_month=0.1, seasons=["1y"])
    assert declared.incidents == []
    step = {day: value + (0.5 if day >= 150 else 0.0) for day, value in later["a"].items()}
    moved = table(300, 2, since=60, moved={**later, "a": step})
    first, *more = watch_table(before, moved, time="at", incidents_per_month=0.1, seasons=["1y"]).incidents
    assert first.subjects[0] == "a"
    assert START + 210 * DAY <= first.began_at <= START + 212 * DAY
    assert all("a" in one.subjects for one in more)


@pytest.mark.slow
def test_a_declared_month_is_learned_from_four_of_them() -> None:
    """From 124 days, the days of the month are learned; undeclared, they look like wandering levels."""

    def monthly(first: int, last: int) -> dict[int, float]:
        return {day: 0.6 * np.sin(2 * np.pi * (START + (day + first) * DAY).day / 31) for day in range(last - first)}

    before = table(124, 3, moved={"a": monthly(0, 124)})
    now = table(62, 4, since=124, moved={"a": monthly(124, 186)})
    reports = [watch_table(before, now, time="at", incidents_per_month=0.1, seasons=names) for names in ([], ["month"])]
    index = reports[0].judgements[0].model.names.index(("a", "location"))
    undeclared, declared = (np.std([judged.values[index] for judged in report.judgements]) for report in reports)
    assert declared < 0.4 * undeclared
    assert reports[1].incidents == []


def test_bad_input_is_an_error_with_a_reason() -> None:
    before, now = table(60, 1), table(2, 2)
    with pytest.raises(UsageError, match="The budget of incidents must be a number above 0, not 0"):
        watch_table(before, now, time="at", incidents_per_month=0)
    with pytest.raises(UsageError, match="A window must have a length"):
        watch_table(before, now, time="at", every=timedelta(0))
    with pytest.raises(UsageError, match="no column 'when'"):
        watch_table(before, now, time="when")
    with pytest.raises(UsageError, match="The reference has no column 'p'"):
        watch_table(before, now, time="at", prediction="p")
    with pytest.raises(EmptySampleError, match="No row has a time in 'at'"):
        watch_table(before, now.clear(), time="at")
    with pytest.raises(UsageError, match="windows of 0:00:01, but at most 100,000"):
        watch_table(before, now, time="at", every=timedelta(seconds=1))
    with pytest.raises(UsageError, match="'summer' is not a season"):
        watch_table(before, now, time="at", seasons=["summer"])
