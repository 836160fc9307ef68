"""Replays of tables with a few rows in a period, such as one row a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

import everloop as el
from everloop.replay.hindsight import mean_metric
from everloop.replay.table_loop import CANARY_ROWS, NotClearlyWorse, table_loop

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
