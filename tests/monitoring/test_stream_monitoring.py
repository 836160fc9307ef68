"""Watching a table: what is found, when, in which words; and that nothing depends on later rows or their order."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import EmptySampleError, EverloopError, UsageError
from everloop.monitoring import build_baseline, watch_stream, watch_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.monitoring import Baseline, StreamReport
    from everloop.records import Incident

    Column = Callable[[np.random.Generator, int], object]

START = datetime(2024, 1, 1)
DAY = timedelta(days=1)
FEATURES = [f"x{index}" for index in range(20)]
SHARES = [0.4, 0.3, 0.2, 0.1]


def table(seed: int, days: int, rows: int = 1000, first_day: int = 0) -> pl.DataFrame:
    """Sixteen normal features and four with four categories, independent rows."""
    generator = np.random.default_rng(seed)
    number = days * rows
    columns: dict[str, object] = {"at": [START + first_day * DAY + DAY * index / rows for index in range(number)]}
    for index, name in enumerate(FEATURES):
        categorical = index >= 16
        columns[name] = (
            generator.choice(list("abcd"), number, p=SHARES) if categorical else generator.normal(size=number)
        )
    return pl.DataFrame(columns)


def days_since(frame: pl.DataFrame, day: int) -> pl.Series:
    """Days since a day of the stream, at least 0."""
    return ((frame["at"] - (START + day * DAY)).dt.total_seconds() / 86_400).clip(0)


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    return build_baseline(table(1, 60), time="at")


@pytest.fixture(scope="module")
def quiet() -> pl.DataFrame:
    return table(2, 24, first_day=60)


def watch(baseline: Baseline, frame: pl.DataFrame) -> StreamReport:
    return watch_stream(baseline, frame, time="at", every="1d", incidents_per_month=1.0)


def opened_on(incident: Incident) -> int:
    """Number of the day in which the incident was opened."""
    return (incident.began_at.replace(tzinfo=None) - START).days


def about(report: StreamReport, subject: str) -> list[Incident]:
    return [incident for incident in report.incidents if subject in incident.subjects]


def changed_from(frame: pl.DataFrame, day: int, *changes: pl.Expr) -> pl.DataFrame:
    late = pl.col("at") >= START + day * DAY
    return frame.with_columns(
        pl.when(late).then(change).otherwise(pl.col(change.meta.output_name())).alias(change.meta.output_name())
        for change in changes
    )


def test_nothing_happens_where_nothing_happens(baseline: Baseline, quiet: pl.DataFrame) -> None:
    report = watch(baseline, quiet)
    assert len(report.judgements) == 24
    assert len(report.incidents) <= 1
    assert report.windows.rows.tolist() == [1000] * 24


@pytest.mark.parametrize("seed", range(3))
def test_a_quarter_of_a_standard_deviation_in_one_of_twenty_features_is_found(baseline: Baseline, seed: int) -> None:
    frame = changed_from(table(10 + seed, 8, first_day=60), 64, pl.col("x3") + 0.25)
    found = about(watch(baseline, frame), "x3")
    assert len(found) == 1
    assert opened_on(found[0]) in (64, 65)
    assert found[0].state == "open"
    assert "'x3' has risen from" in found[0].title


def test_creeping_nulls_are_one_incident(baseline: Baseline, quiet: pl.DataFrame) -> None:
    share = days_since(quiet, 64) * 0.01
    gone = pl.Series(np.random.default_rng(3).random(quiet.height)) < share
    frame = quiet.with_columns(x5=pl.when(gone).then(None).otherwise("x5"))
    (incident,) = about(watch(baseline, frame), "x5")
    # The reference has no missing values, so a few are enough.
    assert 64 <= opened_on(incident) <= 66
    assert incident.title.startswith("'x5' is missing in ")
    assert "of the rows, before in 0%" in incident.title


def test_a_changed_category_mix_is_named_with_its_numbers(baseline: Baseline, quiet: pl.DataFrame) -> None:
    generator = np.random.default_rng(4)
    changed = pl.Series(generator.choice(list("abcd"), quiet.height, p=[0.3, 0.3, 0.2, 0.2]))
    frame = changed_from(quiet, 64, pl.lit(changed).alias("x17"))
    (incident,) = about(watch(baseline, frame), "x17")
    assert opened_on(incident) in (64, 65)
    assert incident.title.startswith(("'x17' has the value 'd' in 2", "'x17' has the value 'd' in 1"))
    assert "of the rows, before in " in incident.title


def test_a_new_category_is_named(baseline: Baseline, quiet: pl.DataFrame) -> None:
    fresh = pl.Series(np.random.default_rng(5).random(quiet.height)) < 0.05
    frame = changed_from(quiet, 70, pl.when(fresh).then(pl.lit("zebra")).otherwise("x18").alias("x18"))
    (incident,) = about(watch(baseline, frame), "x18")
    assert opened_on(incident) == 70
    assert "'zebra'" in incident.title


def test_a_slow_trend_is_one_incident(baseline: Baseline, quiet: pl.DataFrame) -> None:
    frame = quiet.with_columns(x2=pl.col("x2") - 0.05 * days_since(quiet, 62))
    report = watch(baseline, frame)
    (incident,) = about(report, "x2")
    assert incident.state == "open"
    assert len(report.incidents) <= 2
    assert incident.title.startswith("'x2' has fallen from")
    # The words are those of the window that deviated most, which is one of the last.
    now = float(incident.title.split(" to ")[1].split(" ")[0])
    assert now == pytest.approx(-0.05 * 21, abs=0.2)


def test_an_incident_is_over_after_three_calm_windows(baseline: Baseline, quiet: pl.DataFrame) -> None:
    middle = pl.col("at").is_between(START + 66 * DAY, START + 68 * DAY, "left")
    report = watch(baseline, quiet.with_columns(x1=pl.when(middle).then(pl.col("x1") + 1).otherwise("x1")))
    (incident,) = about(report, "x1")
    assert opened_on(incident) == 66
    assert incident.state == "resolved"
    assert incident.resolved_at is not None
    days = (incident.resolved_at.replace(tzinfo=None) - START).days
    # Means over three and seven windows may keep it open until the two days have left them.
    assert 68 + 3 <= days <= 68 + 7 + 3
    assert [change.action for change in incident.history if change.action != "join"] == ["open", "resolve"]


def essence(report: StreamReport) -> list[tuple[object, ...]]:
    return [
        (one.state, one.title, one.subjects, one.severity, one.began_at, one.seen_at, one.resolved_at)
        for one in report.incidents
    ]


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(5, 11))
def test_neither_the_order_of_rows_nor_later_rows_change_what_is_found(seed: int, until: int) -> None:
    generator = np.random.default_rng(seed)
    base = build_baseline(SMALL, time="at")
    live = table(int(generator.integers(1000)), 12, rows=60, first_day=40).select("at", "x0", "x1", "x16")
    live = live.with_columns(x0=pl.col("x0") + 0.3 * days_since(live, 44))
    whole = watch(base, live)
    mixed = watch(base, live.sample(fraction=1.0, shuffle=True, seed=seed % 1000))
    assert essence(mixed) == essence(whole)
    part = watch(base, live.filter(pl.col("at") < START + (40 + until) * DAY))
    for index, judgement in enumerate(part.judgements):
        assert judgement.strongest == pytest.approx(whole.judgements[index].strongest, rel=1e-6, abs=1e-9)
        assert judgement.limit == whole.judgements[index].limit
    cut = (START + (40 + until) * DAY).replace(tzinfo=part.windows.starts[0].tzinfo)
    assert [one.began_at for one in part.incidents] == [one.began_at for one in whole.incidents if one.began_at < cut]


SMALL = table(7, 40, rows=60).select("at", "x0", "x1", "x16")


def test_the_order_of_the_reference_does_not_matter() -> None:
    live = table(8, 10, rows=60, first_day=40).select("at", "x0", "x1", "x16")
    shuffled = SMALL.sample(fraction=1.0, shuffle=True, seed=3)
    one, other = (watch(build_baseline(frame, time="at"), live) for frame in (SMALL, shuffled))
    for left, right in zip(one.judgements, other.judgements, strict=True):
        assert left.strongest == pytest.approx(right.strongest, rel=1e-6, abs=1e-9)
        assert left.limit == pytest.approx(right.limit, rel=1e-6)


def test_days_without_rows_are_passed_over(baseline: Baseline, quiet: pl.DataFrame) -> None:
    frame = changed_from(quiet, 66, pl.col("x4") + 1)
    gap = pl.col("at").is_between(START + 67 * DAY, START + 78 * DAY, "left")
    report = watch(baseline, frame.filter(~gap))
    (incident,) = about(report, "x4")
    assert (opened_on(incident), incident.state) == (66, "open")
    assert len(report.judgements) == 24
    assert report.windows.rows[8] == 0


def normal(generator: np.random.Generator, rows: int) -> object:
    return generator.normal(size=rows)


def column(seed: int, days: int, draw: Column, rows: int = 50, first_day: int = 0, **more: Column) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    number = days * rows
    at = [START + first_day * DAY + DAY * index / rows for index in range(number)]
    columns = {name: one(generator, number) for name, one in {"x": draw, **more}.items()}
    return pl.DataFrame({"at": at, **columns}, strict=False)


AWKWARD: dict[str, Column] = {
    "constant": lambda _, n: np.ones(n),
    "null": lambda _, n: [None] * n,
    "nan": lambda _, n: np.full(n, np.nan),
    "infinite": lambda g, n: np.where(g.random(n) < 0.2, np.inf, g.normal(size=n)),
    "enormous": lambda g, n: g.normal(size=n) * 1e307,
    "tiny": lambda g, n: g.normal(size=n) * 1e-310,
    "one category": lambda _, n: ["a"] * n,
    "two categories": lambda g, n: g.choice(["a", "b"], n),
    "unique": lambda g, n: [f"id-{value}" for value in g.permutation(n)],
    "flags": lambda g, n: g.random(n) < 0.3,
    "lists": lambda _, n: [[1.0]] * n,
    "numbers in text": lambda g, n: [str(value) for value in g.integers(0, 9, n)],
    "normal": normal,
}


@pytest.mark.parametrize("before", AWKWARD)
def test_any_column_may_become_any_other(before: str) -> None:
    reference = column(1, 20, AWKWARD[before], rows=40)
    base = build_baseline(reference, time="at", scored=reference.select(score="x"), scored_inputs=reference.select("x"))
    for now, draw in AWKWARD.items():
        live = column(2, 4, draw, rows=40, first_day=20)
        report = watch_stream(base, live, time="at", every="1d", incidents_per_month=1.0, score="x")
        for index, judgement in enumerate(report.judgements):
            assert np.isfinite(judgement.strongest).all(), now
            assert all(np.isfinite(shift.strength) and shift.message() for shift in report.shifts(index))
        if before == now and before in ("constant", "null", "nan", "enormous", "one category", "lists"):
            assert report.incidents == []


@pytest.mark.parametrize("rows", [1, 2, 5, 24])
def test_tiny_references_are_no_reason_for_an_incident_each_day(rows: int) -> None:
    report = watch_table(column(3, rows, normal, rows=1), column(4, 30, normal, first_day=rows), time="at")
    assert len(report.incidents) <= 2
    assert all(np.isfinite(judgement.strongest).all() for judgement in report.judgements)


def test_windows_of_one_row_are_judged() -> None:
    report = watch_table(column(5, 60, normal, rows=20), column(6, 60, normal, rows=1, first_day=60), time="at")
    assert len(report.judgements) == 60
    assert len(report.incidents) <= 3


def test_time_zones_and_dates_are_times() -> None:
    reference, live = column(7, 20, normal), column(8, 5, normal, first_day=20)
    plain = watch_table(reference, live, time="at")
    zoned = watch_table(
        *(frame.with_columns(pl.col("at").dt.replace_time_zone("UTC")) for frame in (reference, live)), time="at"
    )
    assert zoned.windows.starts == plain.windows.starts
    assert [one.limit for one in zoned.judgements] == [one.limit for one in plain.judgements]
    dates = watch_table(*(frame.with_columns(pl.col("at").cast(pl.Date)) for frame in (reference, live)), time="at")
    assert dates.windows.rows.tolist() == plain.windows.rows.tolist()


def test_the_score_is_a_subject_and_harm_is_told() -> None:
    def made(seed: int, days: int, first_day: int, shift: float) -> pl.DataFrame:
        frame = column(seed, days, lambda g, n: g.normal(shift, 1, n), rows=400, first_day=first_day, idle=normal)
        return frame.with_columns(p=0.5 + 0.1 * pl.col("x"))

    report = watch_table(made(9, 30, 0, 0.0), made(10, 3, 30, 1.0), time="at", prediction="p")
    (incident,) = report.incidents
    assert set(incident.subjects) >= {"x", "prediction"}
    assert "idle" not in incident.subjects
    assert incident.severity == "alarm"
    assert "The mean prediction has risen from 0.5 to 0." in incident.message
    assert "mostly because of 'x' (" in incident.message


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": "0d"}, UsageError, "A window must have a length"),
        ({"every": timedelta(days=-1)}, UsageError, "A window must have a length"),
        ({"every": "soon"}, UsageError, "not a duration"),
        ({"every": "1s"}, UsageError, "can be watched at once"),
        ({"incidents_per_month": 0}, UsageError, "must be a number above 0"),
        ({"incidents_per_month": float("nan")}, UsageError, "must be a number above 0"),
        ({"prediction": "p"}, UsageError, "no column 'p'"),
        ({"time": "when"}, UsageError, "no column 'when'"),
        ({"time": "x"}, UsageError, "not a date"),
    ],
)
def test_bad_settings_are_errors(options: dict[str, object], error: type[EverloopError], message: str) -> None:
    reference, live = column(11, 20, normal), column(12, 5, normal, first_day=20)
    with pytest.raises(error, match=message):
        watch_table(reference, live, **{"time": "at", **options})  # type: ignore[arg-type]


def test_tables_without_rows_or_times_are_errors() -> None:
    reference, live = column(13, 20, normal), column(14, 5, normal, first_day=20)
    for frames in ((reference.clear(), live), (reference, live.clear())):
        with pytest.raises(EmptySampleError):
            watch_table(*frames, time="at")
    with pytest.raises(EmptySampleError, match="No row has a time"):
        watch_table(reference, live.with_columns(at=pl.lit(None, pl.Datetime)), time="at")
    wrong = pl.concat([live, live.head(1).with_columns(at=pl.lit(datetime(9999, 12, 31)).cast(live["at"].dtype))])
    with pytest.raises(UsageError, match="leave out rows with a wrong time"):
        watch_table(reference, wrong, time="at")


def test_a_reference_without_features_or_times_can_be_watched() -> None:
    reference, live = column(15, 20, normal), column(16, 5, normal, first_day=20)
    assert watch_table(reference.select("at"), live, time="at").incidents == []
    assert len(watch_table(reference.drop("at"), live, time="at").incidents) <= 1
