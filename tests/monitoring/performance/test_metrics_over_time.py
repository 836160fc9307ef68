from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from everloop.errors import DataError, EmptySampleError, NotFoundError, UsageError
from everloop.monitoring import (
    ConfidenceEstimator,
    RowMetric,
    compare_versions,
    cost_metric,
    custom_metric,
    estimate_periods,
    estimates_over_time,
    fairness_over_time,
    label_coverage,
    label_coverage_by_age,
    measure_labelled,
    measure_over_time,
    performance_over_time,
)
from everloop.training.intervals import delong, paired_bootstrap, wilson
from everloop.training.metrics import score

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Airport
    from everloop.stores import Store

    Move = Callable[[datetime], None]

START = datetime(2024, 3, 4, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def days(airport: Airport, store: Store, count: int, rows: int = 300, **shift: float) -> pl.DataFrame:
    frame = airport.flights(rows * count, 1, span=count * DAY, **shift)
    airport.log(store, frame)
    airport.label(store, frame, after=HOUR)
    return frame


def test_every_period_and_metric_has_its_value_and_interval(airport: Airport, store: Store, at: Move) -> None:
    frame = days(airport, store, 3)
    at(START + 4 * DAY)
    found = performance_over_time(store, "delays", ["roc_auc", "log_loss", cost_metric(1, 5)], "1d")
    assert found.height == 9
    assert found["metric"].unique().sort().to_list() == ["cost", "log_loss", "roc_auc"]
    first = frame.filter(pl.col("event_at") < START + DAY)
    row = found.row(0, named=True)
    exact = delong(first["late"].to_numpy(), first["score"].to_numpy())
    assert (row["from"], row["to"], row["predictions"], row["labelled"]) == (START, START + DAY, 300, 300)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((exact.value, exact.low, exact.high))
    cost = found.filter(pl.col("metric") == "cost").row(0, named=True)
    decided = first["score"].to_numpy() >= 0.5
    late = first["late"].to_numpy()
    assert cost["value"] == pytest.approx(np.mean((decided & ~late) + 5 * (~decided & late)))
    assert cost["low"] < cost["value"] < cost["high"]


def test_slices_by_input_and_by_version(airport: Airport, store: Store, at: Move) -> None:
    frame = days(airport, store, 1, 600)
    other = airport.flights(200, 9)
    airport.log(store, other, version="delays@2", role="canary")
    at(START + 2 * DAY)
    found = performance_over_time(store, "delays", "accuracy", "1d", by=["version", "carrier"])
    united = found.filter(pl.col("version") == "delays@1", pl.col("carrier") == "UA").row(0, named=True)
    rows = frame.filter(pl.col("carrier") == "UA")
    assert united["value"] == pytest.approx(score("accuracy", rows["late"].cast(float), rows["score"]))
    unlabelled = found.filter(pl.col("version") == "delays@2")
    assert unlabelled["predictions"].sum() == 200
    assert unlabelled["labelled"].sum() == 0
    assert unlabelled["value"].null_count() == unlabelled.height
    quarters = performance_over_time(store, "delays", "accuracy", "1d", by="distance", version="delays@1")
    assert quarters["predictions"].to_list() == pytest.approx([150] * 4, abs=1)
    with pytest.raises(UsageError, match=r"no input 'speed'.*carrier"):
        performance_over_time(store, "delays", "accuracy", by="speed")
    with pytest.raises(UsageError, match="rmse is not for binary"):
        performance_over_time(store, "delays", "rmse")
    with pytest.raises(UsageError, match="'soon' is not a period"):
        performance_over_time(store, "delays", "accuracy", "soon")
    with pytest.raises(NotFoundError):
        performance_over_time(store, "nowhere", "accuracy")


def test_any_table_is_measured_with_functions_of_its_rows() -> None:
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "event_at": [START + HOUR * i for i in range(200)],
            "score": rng.uniform(size=200),
            "actual": [*rng.integers(0, 2, 150).astype(float), *[None] * 50],
            "amount": rng.uniform(1, 9, 200),
        }
    )

    def lost(actual: np.ndarray, scores: np.ndarray, rows: pl.DataFrame) -> float:
        return float((rows["amount"].to_numpy() * (actual > 0) * (scores < 0.5)).sum() / len(actual))

    def gini(actual: np.ndarray, scores: np.ndarray) -> float:
        return 2 * score("roc_auc", actual, scores) - 1 if 0 < actual.mean() < 1 else math.nan

    found = measure_over_time(table, [RowMetric("lost", lost, False), custom_metric("gini", gini), "roc_auc"], "1mo")
    by_name = {row["metric"]: row for row in found.iter_rows(named=True)}
    known = table.filter(pl.col("actual").is_not_null())
    amount, actual, scores = (known[name].to_numpy() for name in ("amount", "actual", "score"))
    assert by_name["lost"]["value"] == pytest.approx(np.mean(amount * actual * (scores < 0.5)))
    assert by_name["lost"]["low"] < by_name["lost"]["value"] < by_name["lost"]["high"]
    assert by_name["gini"]["value"] == pytest.approx(2 * by_name["roc_auc"]["value"] - 1)
    assert (by_name["gini"]["predictions"], by_name["gini"]["labelled"]) == (200, 150)
    with pytest.raises(DataError, match="no column 'actual'"):
        measure_over_time(table.drop("actual"), "roc_auc")
    with pytest.raises(UsageError, match="not a date or a time"):
        measure_over_time(table.with_columns(event_at=1), "roc_auc")
    assert measure_over_time(table.clear(), "roc_auc").is_empty()


def test_equal_rows_do_not_bound_a_metric_of_unknown_range() -> None:
    same = pl.DataFrame({"score": [0.9] * 20, "actual": [1.0] * 20})
    measured = measure_labelled(same, cost_metric(100, 100))
    assert measured.value == 0
    assert math.isnan(measured.high)


def test_coverage_and_delay_of_labels(airport: Airport, store: Store, at: Move) -> None:
    frame = airport.flights(400, 1, span=2 * DAY)
    airport.log(store, frame)
    soon, late = frame.head(200), frame.slice(200, 100)
    airport.label(store, soon, after=2 * HOUR)
    airport.label(store, soon, after=30 * HOUR)  # the same labels a second time
    airport.label(store, late, after=20 * HOUR)
    airport.label(store, frame.tail(10), after=-HOUR)
    at(START + 10 * DAY)
    first, second = label_coverage(store, "delays", "1d").iter_rows(named=True)
    assert (first["predictions"], first["labelled"], first["coverage"], first["without_key"]) == (200, 200, 1.0, 0)
    assert first["delay_p90_s"] == pytest.approx(2 * 3600)
    assert (second["labelled"], second["early"]) == (110, 10)
    assert (second["low"], second["high"]) == pytest.approx(wilson(110, 200))
    assert second["delay_p50_s"] == pytest.approx(20 * 3600)
    by_age = label_coverage_by_age(store, "delays", ["6h", "1d", "30d"])
    assert by_age["age"].to_list() == ["6h", "1d", "30d"]
    assert by_age["labelled"].to_list() == [210, 310, 0]
    assert by_age["predictions"].to_list() == [400, 400, 0]
    assert by_age["coverage"].to_list() == [210 / 400, 310 / 400, None]
    with pytest.raises(UsageError, match="above zero"):
        label_coverage_by_age(store, "delays", ["0s"])
    with pytest.raises(EmptySampleError):
        label_coverage(store, "delays", since=START + 5 * DAY)


def test_a_shadow_is_compared_on_the_rows_that_both_scored(airport: Airport, store: Store, at: Move) -> None:
    frame = airport.flights(500, 1)
    airport.log(store, frame)
    worse = frame.with_columns(score=(pl.col("score") + pl.Series(np.random.default_rng(0).uniform(size=500))) / 2)
    shadow = worse.select(
        pl.concat_str(pl.col("id"), pl.lit("-delays@1~delays@2")).alias("id"),
        "event_at",
        pl.col("event_at").alias("arrived_at"),
        pl.lit("delays@2").alias("version"),
        pl.lit("shadow").alias("role"),
        pl.col("id").alias("entity"),
        "score",
        *(pl.col(name).alias(f"input_{name}") for name in airport.features),
    )
    store.tables.append("predictions/delays", shadow)
    airport.label(store, frame, after=HOUR)
    at(START + 3 * DAY)
    found = compare_versions(store, "delays", "delays@1", "delays@2", "roc_auc")
    labels = frame["late"].cast(float).to_numpy()
    exact = paired_bootstrap(labels, worse["score"].to_numpy(), frame["score"].to_numpy(), "roc_auc")
    assert (found.paired, found.champion_rows, found.challenger_rows) == (True, 500, 500)
    assert found.gain == pytest.approx(exact.value)
    assert found.low < found.gain < found.high < 0
    assert found.p_worse > 0.99
    loss = compare_versions(store, "delays", "delays@1", "delays@2", "log_loss")
    assert loss.gain == pytest.approx(loss.champion_value - loss.challenger_value)


def test_a_canary_is_compared_on_its_own_rows(airport: Airport, store: Store, at: Move) -> None:
    frame, canary = airport.flights(500, 1), airport.flights(300, 2, fog=0.9)
    for rows, version, role in ((frame, "delays@1", "champion"), (canary, "delays@2", "canary")):
        airport.log(store, rows, version=version, role=role)
        airport.label(store, rows, after=HOUR)
    at(START + 3 * DAY)
    found = compare_versions(store, "delays", "delays@1", "delays@2")
    assert (found.metric, found.paired, found.champion_rows, found.challenger_rows) == ("roc_auc", False, 500, 300)
    assert found.challenger_value == pytest.approx(score("roc_auc", canary["late"].cast(float), canary["score"]))
    assert found.gain == pytest.approx(found.challenger_value - found.champion_value)
    assert found.low < found.gain < found.high
    assert found.p_worse > 0.95
    with pytest.raises(UsageError, match="with itself"):
        compare_versions(store, "delays", "delays@1", "delays@1")
    with pytest.raises(EmptySampleError, match="no labelled predictions"):
        compare_versions(store, "delays", "delays@1", "delays@2", until=START)


def test_fairness_of_logged_predictions(airport: Airport, store: Store, at: Move) -> None:
    frame = days(airport, store, 1, 600)
    at(START + 2 * DAY)
    found = fairness_over_time(store, "delays", "carrier", "1d")
    delta = found.filter(pl.col("carrier") == "DL", pl.col("measure") == "selection_rate").row(0, named=True)
    rows = frame.filter(pl.col("carrier") == "DL")
    assert delta["value"] == pytest.approx((rows["score"] >= 0.5).mean())
    assert delta["rows"] == rows.height


def test_estimates_stand_beside_labels_and_stop_being_trusted(airport: Airport, store: Store, at: Move) -> None:
    before = airport.flights(2000, 5)
    estimator = ConfidenceEstimator.fit(before["score"], before["late"].cast(float))
    frame = days(airport, store, 2, 500)
    flipped = airport.flights(500, 8, start=START + 2 * DAY).with_columns(late=pl.col("score") < 0.5)
    unlabelled = airport.flights(500, 9, start=START + 3 * DAY)
    for rows in (flipped, unlabelled):
        airport.log(store, rows)
    airport.label(store, flipped, after=HOUR)
    at(START + 5 * DAY)
    found = estimates_over_time(store, "delays", estimator, "roc_auc", "1d")
    assert found["predictions"].to_list() == [500] * 4
    assert found["labelled"].to_list() == [500, 500, 500, 0]
    first = frame.filter(pl.col("event_at") < START + DAY)
    assert found["realised"][0] == pytest.approx(score("roc_auc", first["late"].cast(float), first["score"]))
    assert [reason is None for reason in found["reason"]] == [True, True, False, False]
    assert found["realised"][3] is None
    assert estimate_periods(unlabelled.select("event_at", "score"), estimator, "f1", "1d")["estimate"].null_count() == 0
    with pytest.raises(DataError, match="event_at"):
        estimate_periods(unlabelled.select("score"), estimator)
