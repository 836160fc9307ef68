"""Metrics from hourly aggregates: equal to those of the rows, with the same intervals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.sketches.score_sketches import sketch_labels
from everloop.monitoring import performance_by
from everloop.monitoring.performance import aggregated_performance as module
from everloop.monitoring.performance.aggregated_performance import aggregated_performance, area_interval
from everloop.training.intervals import delong

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Airport
    from everloop.stores import Store

    Move = Callable[[datetime], None]

START = datetime(2024, 3, 4, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(40, 400), st.floats(0.2, 3))
def test_the_interval_of_the_area_is_that_of_delong(seed: int, rows: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    actual = (np.arange(rows) % 3 == 0).astype(float)
    # Scores in the middle of cells of a thousandth, so that no two different ones share a cell.
    scores = np.round(1 / (1 + np.exp(-strength * (actual - 0.5) - rng.normal(size=rows))), 2)
    exact = delong(actual, scores)
    sketch = sketch_labels("binary", actual, scores, None, classes=2)
    assert area_interval(sketch) == pytest.approx((exact.low, exact.high), abs=2e-3)


@pytest.mark.parametrize("metric", ["roc_auc", "accuracy", "precision", "recall"])
def test_aggregates_and_rows_agree(
    airport: Airport, store: Store, at: Move, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = airport.flights(900, 1, span=3 * DAY)
    airport.log(store, frame)
    airport.label(store, frame.filter(pl.col("event_at") < START + 2.5 * DAY), after=HOUR)
    at(START + 4 * DAY)
    periods = [(START + number * DAY, START + (number + 1) * DAY) for number in range(3)]
    counted = aggregated_performance(store, "delays", metric, periods)
    assert counted is not None
    assert [one.labelled for one in counted][:2] == [300, 300]
    found = performance_by(store, "delays", metric, "1d", approximate=True)
    assert found["value"].to_list() == [one.value for one in counted]
    monkeypatch.setattr(module, "_MOST_PERIODS", 0)
    rows = performance_by(store, "delays", metric, "1d")
    assert found.drop("value", "low", "high").equals(rows.drop("value", "low", "high"))
    for name in ("value", "low", "high"):
        assert found[name].to_list() == pytest.approx(rows[name].to_list(), abs=1e-3)


def test_what_aggregates_do_not_hold_is_measured_on_rows(airport: Airport, store: Store, at: Move) -> None:
    frame = airport.flights(300, 1, span=DAY)
    airport.log(store, frame)
    airport.label(store, frame, after=HOUR)
    at(START + 2 * DAY)
    assert aggregated_performance(store, "delays", "log_loss", [(START, START + DAY)]) is None
    assert performance_by(store, "delays", "log_loss", "1d")["value"].item() > 0
