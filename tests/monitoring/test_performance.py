from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from everloop.errors import EmptySampleError, NotFoundError, UsageError
from everloop.monitoring import (
    ReferenceMetric,
    build_baseline,
    check_performance,
    keep_baseline,
    measure_labelled,
    performance_by,
)
from everloop.monitoring.performance.performance_checks import worse_than_reference
from everloop.training.intervals import delong

if TYPE_CHECKING:
    from conftest import Airport
    from everloop.records import Finding
    from everloop.stores import Store

START = datetime(2024, 3, 4, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
FEATURES = ("distance", "carrier", "wind")
REFERENCE = (0.78, 0.76, 0.80)
Move = "Callable[[datetime], None]"


def day(
    airport: Airport, store: Store, number: int, rows: int = 500, after: timedelta = HOUR, **shift: float
) -> pl.DataFrame:
    frame = airport.flights(rows, 100 + number, start=START + number * DAY, **shift)
    airport.log(store, frame)
    airport.label(store, frame, after=after)
    return frame


def check(store: Store, number: int, metric: str | None = "roc_auc", **options: object) -> list[Finding]:
    since = START + number * DAY
    given = {"version": "delays@1", "reference": REFERENCE, **options}
    return check_performance(store, "delays", metric, since, since + DAY, **given)  # type: ignore[arg-type]


def test_the_live_metric_is_the_one_of_the_labelled_rows(airport: Airport, store: Store, at: Move) -> None:
    frame = day(airport, store, 0)
    at(START + 2 * DAY)
    (summary,) = check(store, 0)
    exact = delong(frame["late"].to_numpy(), frame["score"].to_numpy())
    assert (summary.kind, summary.severity, summary.subject) == ("performance", "info", "window")
    assert summary.value == pytest.approx(exact.value)
    assert summary.evidence["low"] == pytest.approx(exact.low)
    assert (summary.evidence["rows"], summary.evidence["predictions"]) == (500, 500)
    assert summary.threshold is not None
    assert summary.threshold < REFERENCE[0]


@pytest.mark.slow
def test_a_loss_is_a_warning_first_and_an_alarm_when_it_lasts(airport: Airport, store: Store, at: Move) -> None:
    for number in range(4):
        day(airport, store, number, fog=0.8 if number in (1, 2) else 0.0)
    at(START + 5 * DAY)
    found = [check(store, number, alarms_per_month=0.5) for number in range(4)]
    assert [len(findings) for findings in found] == [1, 2, 2, 1]
    assert [findings[0].severity for findings in found] == ["info", "warning", "alarm", "info"]
    alarm = found[2][0]
    assert alarm.subject == "roc_auc"
    assert alarm.value is not None
    assert alarm.threshold is not None
    assert alarm.value < alarm.threshold < REFERENCE[0]
    assert "before the release it was 0.780 [0.760, 0.800]" in alarm.message
    assert check(store, 2, alarms_per_month=0.5) == found[2]


@pytest.mark.slow
def test_a_better_metric_is_not_a_finding_and_lower_may_be_better(airport: Airport, store: Store, at: Move) -> None:
    day(airport, store, 0)
    at(START + 2 * DAY)
    assert len(check(store, 0, reference=(0.6, 0.59, 0.61))) == 1
    assert len(check(store, 0, "log_loss", reference=(0.9, 0.89, 0.91))) == 1
    (warning, _) = check(store, 0, "log_loss", reference=(0.1, 0.09, 0.11))
    assert warning.severity == "warning"
    assert warning.threshold is not None
    assert warning.threshold > 0.1
    # Two metrics of one endpoint do not lean on each other.
    day(airport, store, 1)
    at(START + 3 * DAY)
    assert check(store, 1, reference=(0.99, 0.98, 1.0))[0].severity == "warning"
    assert check(store, 1, "log_loss", reference=(0.1, 0.09, 0.11))[0].severity == "alarm"


def test_labels_count_when_they_have_arrived(airport: Airport, store: Store, at: Move) -> None:
    day(airport, store, 0, after=DAY)
    at(START + DAY / 2)
    with pytest.raises(EmptySampleError, match=r"None of the 250 predictions .* has a label yet"):
        check(store, 0)
    at(START + DAY + DAY / 2)
    assert check(store, 0)[-1].evidence["rows"] == 251
    at(START + 3 * DAY)
    # More labels have come: the window is judged again.
    assert check(store, 0)[-1].evidence["rows"] == 500


def test_a_corrected_label_is_measured_again(airport: Airport, store: Store, at: Move) -> None:
    frame = day(airport, store, 0)
    at(START + 2 * DAY)
    before = check(store, 0)[-1]
    assert check(store, 0)[-1] == before
    airport.label(store, frame.with_columns(late=~pl.col("late")), after=2 * HOUR)
    (*_, after) = check(store, 0)
    assert after.evidence["rows"] == before.evidence["rows"]
    assert after.value == pytest.approx(1 - (before.value or 0.0))


def test_an_earlier_time_does_not_have_later_labels(airport: Airport, store: Store, at: Move) -> None:
    day(airport, store, 0, after=DAY)
    at(START + 3 * DAY)
    then = store.as_of(START + DAY + DAY / 2)
    seen = performance_by(then, "delays", "roc_auc", "1d")
    assert seen["labelled"].to_list() == [251]
    assert performance_by(store, "delays", "roc_auc", "1d")["labelled"].to_list() == [500]


def test_predictions_too_young_for_labels_wait(airport: Airport, store: Store, at: Move) -> None:
    frame = airport.flights(500, 1)
    airport.log(store, frame)
    # Half of the labels come at once, and they are not like the rest.
    airport.label(store, frame.filter("late"), after=HOUR)
    airport.label(store, frame.filter(~pl.col("late")), after=20 * HOUR)
    at(START + 26 * HOUR)
    early = check(store, 0)[-1]
    fair = check(store, 0, labels_after="20h")[-1]
    assert early.evidence["predictions"] == 500
    assert fair.evidence["predictions"] == fair.evidence["rows"] == 125
    with pytest.raises(EmptySampleError, match="not due yet"):
        check(store, 0, labels_after="3d")


def test_a_corrected_label_replaces_the_earlier_one(airport: Airport, store: Store, at: Move) -> None:
    frame = day(airport, store, 0)
    airport.label(store, frame.with_columns(late=~pl.col("late")), after=2 * HOUR)
    at(START + 2 * DAY)
    exact = delong(~frame["late"].to_numpy(), frame["score"].to_numpy())
    assert check(store, 0)[-1].value == pytest.approx(exact.value)


def test_labels_that_are_not_a_class_are_reported_and_left_out(airport: Airport, store: Store, at: Move) -> None:
    frame = airport.flights(500, 1)
    airport.log(store, frame)
    airport.label(store, frame.tail(450), after=HOUR)
    airport.label(store, frame.head(50), after=HOUR, text=pl.lit("cancelled"), value=pl.lit(None, dtype=pl.Float64))
    at(START + 2 * DAY)
    evidence = check(store, 0)[-1].evidence
    assert (evidence["rows"], evidence["measured"]) == (500, 450)
    assert evidence["unknown_labels"] == {"rows": 50, "values": ["cancelled"]}


def test_a_single_class_cannot_be_measured_and_the_summary_says_so(airport: Airport, store: Store, at: Move) -> None:
    frame = airport.flights(100, 1).with_columns(late=pl.lit(True))
    airport.log(store, frame)
    airport.label(store, frame, after=HOUR)
    at(START + 2 * DAY)
    (summary,) = check(store, 0)
    assert summary.value is None
    assert "cannot be measured: 100 of 100 predictions labelled" in summary.message


def test_the_reference_comes_from_the_baseline(airport: Airport, store: Store, at: Move) -> None:
    day(airport, store, 0)
    at(START + 2 * DAY)
    with pytest.raises(UsageError, match="no reference for 'roc_auc' of delays@1"):
        check(store, 0, reference=None)
    held_out = airport.flights(2000, 5).with_columns(actual=pl.col("late").cast(pl.Int8))
    baseline = build_baseline(airport.flights(500, 4), FEATURES, scored=held_out, metric="roc_auc")
    keep_baseline(store, "delays@1", baseline)
    assert baseline.metric is not None
    evidence = check(store, 0, reference=None)[-1].evidence
    assert evidence["reference"]["value"] == baseline.metric.value
    # Where none is named, the metric is the baseline's.
    assert check(store, 0, None, reference=None)[-1].evidence["metric"] == "roc_auc"
    with pytest.raises(UsageError, match="no reference for 'log_loss'"):
        check(store, 0, "log_loss", reference=None)


def test_wrong_questions_are_refused(airport: Airport, store: Store, at: Move) -> None:
    day(airport, store, 0)
    at(START + 2 * DAY)
    with pytest.raises(NotFoundError, match="arrivals"):
        check_performance(store, "arrivals", "roc_auc", START, START + DAY, reference=REFERENCE)
    with pytest.raises((UsageError, NotFoundError), match="happiness"):
        check(store, 0, "happiness")
    with pytest.raises(UsageError, match="outside its interval"):
        check(store, 0, reference=(0.9, 0.1, 0.2))
    with pytest.raises(EmptySampleError, match="no predictions of delays@2"):
        check(store, 0, version="delays@2")
    with pytest.raises(UsageError, match="'fortnight' is not a period"):
        performance_by(store, "delays", "roc_auc", "fortnight")


@pytest.mark.slow
def test_false_alarms_keep_to_the_budget() -> None:
    generator = np.random.default_rng(3)
    below = 0
    reference = ReferenceMetric("roc_auc", 0.7602, 0.7602, 0.7602, 0.0, 10**9)
    for _ in range(400):
        late = generator.uniform(size=400) < 0.4
        # Two unit normals a standard deviation apart have an area of Φ(1/√2).
        frame = pl.DataFrame({"score": generator.normal(late.astype(float)), "actual": late.astype(float)})
        below += worse_than_reference(measure_labelled(frame, "roc_auc"), reference, greater_is_better=True) <= 0.1
    assert 20 <= below <= 64


def test_variation_of_the_reference_between_blocks_is_tolerated() -> None:
    measured = measure_labelled(pl.DataFrame({"score": [0.1, 0.4, 0.35, 0.8], "actual": [0.0, 0.0, 1.0, 1.0]}), "brier")
    steady = ReferenceMetric("brier", 0.05, 0.04, 0.06, 0.005, 1000)
    restless = ReferenceMetric("brier", 0.05, 0.04, 0.06, 0.005, 1000, between_block_std=0.5)
    p_values = [worse_than_reference(measured, each, greater_is_better=False) for each in (steady, restless)]
    assert p_values[0] < p_values[1] < 0.5


def test_measuring_needs_rows_and_a_fitting_metric() -> None:
    empty = pl.DataFrame({"score": [], "actual": []}, schema={"score": pl.Float64, "actual": pl.Float64})
    with pytest.raises(EmptySampleError):
        measure_labelled(empty, "roc_auc")
    frame = pl.DataFrame({"score": [0.2, None, float("nan"), 0.9], "actual": [0.0, 1.0, 1.0, 1.0]})
    assert measure_labelled(frame, "accuracy").rows == 2
    several = pl.DataFrame(
        {"score": [0.6, 0.7, 0.5], "scores": [[0.6, 0.2, 0.2], [0.1, 0.2, 0.7], [0.3, 0.5, 0.2]], "actual": [0, 2, 0]}
    )
    assert measure_labelled(several, "accuracy").value == pytest.approx(2 / 3)


@pytest.mark.slow
def test_by_period_as_it_was(airport: Airport, store: Store, at: Move) -> None:
    days = [day(airport, store, number, rows=200, fog=0.9 * (number == 2)) for number in (0, 2)]
    airport.log(store, airport.flights(100, 102, start=START + 2 * DAY), version="delays@2", role="shadow")
    airport.log(store, airport.flights(50, 9, start=START + 3 * DAY))
    at(START + 5 * DAY)
    by_day = performance_by(store, "delays", "roc_auc", "1d")
    assert by_day.columns == ["from", "to", "version", "predictions", "labelled", "value", "low", "high"]
    assert by_day["from"].to_list() == [START, START + 2 * DAY, START + 3 * DAY]
    assert by_day["to"].to_list() == [START + DAY, START + 3 * DAY, START + 4 * DAY]
    assert by_day["predictions"].to_list() == [200, 200, 50]
    assert by_day["labelled"].to_list() == [200, 200, 0]
    assert set(by_day["version"]) == {"delays@1"}
    for place, frame in enumerate(days):
        exact = delong(frame["late"].to_numpy(), frame["score"].to_numpy())
        assert by_day["value"][place] == pytest.approx(exact.value)
        assert by_day["high"][place] == pytest.approx(exact.high)
    assert by_day["value"][2] is None
    month = performance_by(store, "delays", "roc_auc")
    assert month.select("from", "predictions").row(0) == (datetime(2024, 3, 1, tzinfo=UTC), 450)
    assert performance_by(store, "delays", "roc_auc", "1d", until=START + DAY).height == 1
    assert performance_by(store, "delays", "roc_auc", "1d", version="delays@2")["predictions"].to_list() == [100]


def test_by_period_as_if_another_version_had_answered(airport: Airport, store: Store, at: Move) -> None:
    from everloop.packages import build_package
    from everloop.registry import load_model, register
    from everloop.training import AutoTrain

    train = airport.flights(1500, 1, start=START - 9 * DAY).select(*FEATURES, "late")
    valid = airport.flights(500, 2, start=START - 8 * DAY).select(*FEATURES, "late")
    recipe = AutoTrain(metric="roc_auc", candidates=("linear",), budget_s=5, trials=1)
    trained = recipe.fit(train, valid, target="late")
    package = build_package(trained, store=store, sample=train)
    rival = register(store, "delays", package)
    frame = day(airport, store, 0, fog=1.0)
    at(START + 2 * DAY)
    as_it_was = performance_by(store, "delays", "roc_auc", "1d")
    as_if = performance_by(store, "delays", "roc_auc", "1d", as_if=rival.key)
    scores = load_model(store, rival.key).predict(frame)
    exact = delong(frame["late"].to_numpy(), scores)
    assert as_if["version"].to_list() == [rival.key]
    assert as_if["value"][0] == pytest.approx(exact.value, abs=1e-9)
    assert as_if["value"][0] > as_it_was["value"][0] + 0.1
    assert as_if["labelled"].to_list() == as_it_was["labelled"].to_list() == [500]


def test_accuracy_is_of_the_labels_that_were_answered() -> None:
    labelled = pl.DataFrame({"score": [0.4, 0.6, 0.4, 0.6], "actual": [1.0, 1.0, 0.0, 0.0]})
    assert measure_labelled(labelled, "accuracy").value == 0.5
    answered = labelled.with_columns(predicted=pl.Series([1.0, 1.0, 0.0, 0.0]))
    assert measure_labelled(answered, "accuracy").value == 1.0
    assert measure_labelled(answered, "roc_auc").value == measure_labelled(labelled, "roc_auc").value
