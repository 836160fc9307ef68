"""Replays of tables with a few rows in a period, such as one row a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

import everloop as el
from everloop.errors import DataError, UsageError
from everloop.replay.hindsight import Judge, mean_metric
from everloop.replay.policy_run import Schedule
from everloop.replay.replay_history import build_history
from everloop.replay.replaying import _schedule
from everloop.replay.table_loop import CANARY_ROWS, NotClearlyWorse, table_loop
from everloop.stores.clock import micros
from everloop.stores.durations import parse_duration

STARTS = datetime(2024, 1, 1, tzinfo=UTC)


def daily(days: int, seed: int = 0) -> pl.DataFrame:
    """One row a day. After two thirds of the time, the amount follows the temperature the other way."""
    chance = np.random.default_rng(seed)
    warm = chance.normal(15, 6, days)
    slope = np.where(np.arange(days) < days * 2 // 3, 30.0, -30.0)
    return pl.DataFrame(
        {
            "day": [STARTS + timedelta(days=number) for number in range(days)],
            "warm": warm,
            "wet": chance.random(days),
            "count": 2000 + slope * warm + chance.normal(0, 40, days),
        }
    )


@pytest.mark.parametrize(("rows_a_week", "canary"), [(7, False), (CANARY_ROWS + 50, True)])
def test_a_canary_needs_rows(rows_a_week, canary):
    weeks = 40
    table = daily(weeks * rows_a_week)
    step = timedelta(weeks=weeks) / table.height
    table = table.with_columns(pl.Series("day", [STARTS + number * step for number in range(table.height)]))
    made = table_loop(
        table,
        target="count",
        time="day",
        key=None,
        exclude=(),
        labels_after=timedelta(0),
        start=STARTS + timedelta(weeks=20),
        every=timedelta(weeks=1),
        metric=None,
    )
    assert (made.loop.serve.rollout is not None) == canary
    assert isinstance(made.loop.gates[0], NotClearlyWorse) != canary


def two_forms(day: pl.Expr) -> pl.Expr:
    """Dates of which every other one is written in another form."""
    return pl.when(pl.int_range(pl.len()) % 2 == 0).then(day.dt.strftime("%Y-%m-%d")).otherwise(
        day.dt.strftime("%d.%m.%Y")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (daily(200).with_columns(day=two_forms(pl.col("day"))), "'2024-01-01', but 100 values such as '02.01.2024'"),
        (daily(200).with_columns(day=pl.lit("soon")), "holds texts such as 'soon', not dates or times"),
        (daily(200).with_columns(day=pl.lit(None, pl.String)), "holds values of type String, not dates or times"),
        (daily(200).with_columns(count=pl.lit(None, pl.Float64)), "'count' has no value in any row"),
        (daily(200).head(0).cast({"day": pl.String}), "The table has 0 rows."),
        (daily(200).head(1), "The table has 1 row."),
    ],
)
def test_a_table_that_cannot_be_replayed_says_why(table, says):
    with pytest.raises(DataError) as raised:
        el.replay(table, target="count", time="day")
    assert says in raised.value.message


@pytest.mark.slow
def test_one_row_a_day_is_enough_for_a_recommendation():
    result = el.replay(
        daily(800), target="count", time="day", policies=["never", "monthly"], windows=False, processes=1
    )
    never, monthly = result.outcome("never"), result.outcome("monthly")
    measured = [one.value for one in never.periods]
    assert len(measured) >= 6
    assert None not in measured
    assert any("periods at a time" in one for one in result.remarks)
    assert monthly.promotions > 0
    assert monthly.rollbacks == 0
    # The relation has turned round; models that learn from all the past follow slowly.
    assert mean_metric(monthly.periods) < 0.9 * mean_metric(never.periods)
    assert result.recommendation.name == "monthly"


def drafted(table, target="count", time="day", **options):
    given = {
        "key": None, "exclude": (), "labels_after": timedelta(0), "start": STARTS + timedelta(days=200),
        "every": timedelta(weeks=1), "metric": None,
    }  # fmt: skip
    return table_loop(table, target=target, time=time, **{**given, **options})


def test_targets_without_a_value_leave_the_margin_of_the_gate():
    table = daily(400)
    holes = table.with_columns(pl.when(pl.int_range(400) % 9 == 0).then(float("nan")).otherwise("count").alias("count"))
    whole, torn = (drafted(one).loop.gates[0].margin for one in (table, holes))
    assert torn == pytest.approx(whole, rel=0.1)


def test_a_table_of_times_and_a_target_is_learned_from_the_calendar():
    made = drafted(daily(400).select("day", "count"))
    assert set(made.loop.data.features) == {"month of day", "weekday of day"}
    assert any("the calendar is used" in one for one in made.remarks)
    # Identifiers are not features either.
    ids = daily(400).select("day", "count", pl.Series("order", [f"order {number:05}" for number in range(400)]))
    assert set(drafted(ids).loop.data.features) == {"month of day", "weekday of day"}


def test_leaks_are_named_once_and_can_be_included():
    table = daily(400).with_columns((pl.col("count") / 1000).alias("thousands"))
    made = drafted(table)
    assert set(made.loop.data.features) == {"warm", "wet"}
    named = [one for one in made.remarks if "'thousands'" in one]
    assert len(named) == 1
    assert named[0].endswith("--include thousands")
    assert "thousands" in drafted(table, include=["thousands"]).loop.data.features
    with pytest.raises(UsageError, match="'wet' cannot be included"):
        drafted(table, include=["wet"], exclude=["wet"])


def test_a_column_that_may_be_a_leak_is_used_and_named():
    noise = np.random.default_rng(1).normal(0, 50, 400)
    made = drafted(daily(400).with_columns((pl.col("count") + noise).alias("billed")))
    assert "billed" in made.loop.data.features
    assert any("--exclude billed" in one and "but is used" in one for one in made.remarks)


def test_a_rare_class_has_enough_rows_to_be_judged_by():
    chance = np.random.default_rng(2)
    rows = 20_000
    table = pl.DataFrame(
        {
            "day": [STARTS + number * timedelta(hours=0.5) for number in range(rows)],
            "x": chance.normal(size=rows),
            "fraud": chance.random(rows) < 0.01,
        }
    )
    # Twenty of one in a hundred are two thousand rows, which are about 42 days; but at most 15 % of the past.
    assert parse_duration(drafted(table, "fraud").loop.data.holdout) == pytest.approx(timedelta(days=30), rel=0.01)
    schedule = Schedule(start=STARTS + timedelta(days=200), end=STARTS + timedelta(days=403), every=timedelta(weeks=1))
    history = build_history(table, target="fraud", time="day")
    assert Judge(history, schedule, "roc_auc", "binary", (False, True)).together in (3, 4)


def test_classes_of_the_future_are_left_out_by_name():
    table = daily(400).with_columns(
        pl.when(pl.int_range(400) >= 300).then(pl.lit("gold")).otherwise(
            pl.when(pl.col("warm") > 15).then(pl.lit("silver")).otherwise(pl.lit("bronze"))
        ).alias("medal")
    )  # fmt: skip
    made = drafted(table.drop("count"), "medal")
    assert made.table.height == 300
    assert any(one.startswith("100 rows are left out") and "'gold'" in one for one in made.remarks)


def test_a_label_is_not_known_at_the_moment_of_its_request():
    history = build_history(daily(400), target="count", time="day")
    monday = STARTS + timedelta(weeks=30)
    # The row of this Monday is answered after the training at this moment, so the training must not learn it.
    assert history.known_at(monday)["day"].max() == monday - timedelta(days=1)
    first, _ = history.between(monday, monday + timedelta(weeks=1))
    assert history.table["day"][first] == monday


def test_a_short_history_begins_later_and_a_long_one_ends_in_two_years():
    short = build_history(daily(180), target="count", time="day")
    week = timedelta(weeks=1)
    schedule = _schedule(short, None, None, week, timedelta(0))
    assert schedule.periods >= 8
    assert int((short.known <= micros(schedule.start)).sum()) >= 100
    long = build_history(daily(2_000), target="count", time="day")
    assert 100 <= _schedule(long, None, None, week, timedelta(0)).periods <= 104
    assert _schedule(long, STARTS + 30 * week, None, week, timedelta(0)).periods > 200


def test_a_result_that_nothing_measured_says_what_to_do():
    from everloop.replay.replay_page import replay_page
    from everloop.replay.replay_result import ReplayResult

    result = ReplayResult(
        title="short", metric="rmse", greater_is_better=False, start=STARTS, end=STARTS + timedelta(weeks=3),
        every="1w", labels_after="0s", rows=104, policies=[], recommendation=None, seconds=1.0, remarks=[],
    )  # fmt: skip
    assert "No period has enough labels to measure a policy. Use an earlier --from" in replay_page(result)


@pytest.mark.slow
@pytest.mark.parametrize("policies", ["never", "never,monthly"])
def test_policies_are_compared_only_if_there_are_several(tmp_path, policies):
    from typer.testing import CliRunner

    from everloop.cli.app import app

    table, page = tmp_path / "daily.csv", tmp_path / "page.html"
    daily(260).write_csv(table)
    options = ["--target", "count", "--time", "day", "--policies", policies, "--no-windows", "--processes", "1"]
    done = CliRunner().invoke(app, ["replay", str(table), *options, "--html", str(page)])
    assert done.exit_code == 0, done.output
    for text in (" ".join(done.output.split()), page.read_text()):  # a narrow terminal wraps titles
        several = "," in policies
        assert ("difference from never retraining" in text) == several
        assert ("Recommended: " in text) == several
        assert ("The only policy: never" in text) == (not several)
        assert ("nothing is compared" in text) == (not several)
    assert ("To compare policies: --policies never,weekly" in " ".join(done.output.split())) == (not several)
