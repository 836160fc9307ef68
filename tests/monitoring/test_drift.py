from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.errors import EmptySampleError, NotFoundError, UsageError
from everloop.monitoring import budget_for, build_baseline, check_drift, compare_window, keep_baseline
from everloop.records import Finding

if TYPE_CHECKING:
    from conftest import Airport
    from everloop.monitoring import Baseline
    from everloop.stores import Store

START = datetime(2024, 3, 4, tzinfo=UTC)
DAY = timedelta(days=1)
FEATURES = ("distance", "carrier", "wind")
Move = "Callable[[datetime], None]"


@pytest.fixture
def baseline(airport: Airport, store: Store) -> Baseline:
    before = airport.flights(6000, 1, start=START - 60 * DAY, span=60 * DAY)
    held_out = airport.flights(3000, 2, start=START - 60 * DAY, span=60 * DAY)
    built = build_baseline(before, FEATURES, time="event_at", scored=held_out)
    keep_baseline(store, "delays@1", built)
    return built


def day(airport: Airport, store: Store, number: int, rows: int = 500, **shift: float) -> pl.DataFrame:
    frame = airport.flights(rows, 100 + number, start=START + number * DAY, **shift)
    airport.log(store, frame)
    return frame


def check(store: Store, number: int, **options: float) -> list[Finding]:
    return check_drift(store, "delays", "delays@1", START + number * DAY, START + (number + 1) * DAY, **options)


def loud(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.severity for finding in findings if finding.severity != "info"}


def test_a_quiet_day_leaves_one_summary(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    day(airport, store, 0)
    at(START + DAY)
    findings = check(store, 0, alarms_per_month=0.01)
    assert loud(findings) == {}
    (summary,) = findings
    assert (summary.kind, summary.severity, summary.subject) == ("drift", "info", "window")
    assert set(summary.evidence["subjects"]) == {*FEATURES, "prediction"}
    assert summary.evidence["rows"] == 500
    assert summary.created_at == START + DAY
    assert store.records.find(Finding) == findings


def test_drift_is_a_warning_first_and_an_alarm_when_it_lasts(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    for number in range(4):
        day(airport, store, number, distance=1.0 if number in (1, 2) else 0.0)
    at(START + 4 * DAY)
    severities = [loud(check(store, number, alarms_per_month=0.1)).get("distance") for number in range(4)]
    assert severities == [None, "warning", "alarm", None]
    alarm = store.records.find(Finding, ("severity", "=", "alarm"), ("subject", "=", "distance"))[0]
    assert alarm.value is not None
    assert alarm.threshold is not None
    assert alarm.value > 5 * alarm.threshold
    assert "'distance' has drifted: PSI" in alarm.message
    assert "; mean 9" in alarm.message
    assert alarm.evidence["ks"] == pytest.approx(0.38, abs=0.08)
    assert alarm.evidence["wasserstein"] == pytest.approx(1.0, abs=0.15)
    before, now = alarm.evidence["mean"]
    assert now - before == pytest.approx(300, abs=60)


def test_an_alarm_survives_one_quiet_window_in_between(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    for number, shift in enumerate((1.0, 0.0, 1.0, 0.0, 0.0, 1.0)):
        day(airport, store, number, distance=shift)
    at(START + 6 * DAY)
    severities = [loud(check(store, number, alarms_per_month=0.1)).get("distance") for number in range(6)]
    assert severities == ["warning", None, "alarm", None, None, "warning"]


def test_new_categories_and_missing_values_are_named(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    day(airport, store, 0, new_carrier=0.2, wind_missing=0.3)
    at(START + DAY)
    messages = {finding.subject: finding for finding in check(store, 0)}
    assert "new: 'ZZ'" in messages["carrier"].message
    assert messages["carrier"].evidence["unseen"]["ZZ"] > 60
    assert messages["carrier"].evidence["cells"][0]["cell"] == "new"
    assert "missing 0.0% → 3" in messages["wind"].message or "missing 0.0% → 2" in messages["wind"].message
    assert messages["wind"].evidence["missing"][1] == pytest.approx(0.3, abs=0.07)


def test_a_feature_that_is_no_longer_logged_is_missing(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    frame = airport.flights(300, 7).with_columns(wind=pl.lit(None, dtype=pl.Float64))
    airport.log(store, frame)
    at(START + DAY)
    wind = next(finding for finding in check(store, 0) if finding.subject == "wind")
    assert wind.severity == "warning"
    assert "missing 0.0% → 100.0%" in wind.message
    assert "ks" not in wind.evidence


def test_a_window_is_judged_once(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    day(airport, store, 0, distance=1.0)
    at(START + 2 * DAY)
    first = check(store, 0)
    assert check(store, 0) == first
    assert store.records.find(Finding) == sorted(first, key=lambda finding: finding.id)
    # Another budget is another question, and rows that came late are another window.
    assert len(check(store, 0, alarms_per_month=5)) >= len(first)
    late = airport.flights(50, 999)
    airport.log(store, late)
    again = check(store, 0)
    assert again[-1].evidence["rows"] == 550
    assert again[-1].id != first[-1].id
    # A second look at the same rows is no second window.
    assert loud(again)["distance"] == "warning"


def test_overlapping_windows_do_not_count_twice(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    day(airport, store, 0, distance=1.0)
    day(airport, store, 1, distance=1.0)
    at(START + 2 * DAY)
    hour = timedelta(hours=6)
    for step in range(4):
        since = START + step * hour
        found = loud(check_drift(store, "delays", "delays@1", since, since + DAY, alarms_per_month=0.1))
        assert found["distance"] == "warning"
    assert loud(check(store, 1, alarms_per_month=0.1))["distance"] == "alarm"


def test_old_flags_are_ignored(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    day(airport, store, 0, distance=1.0)
    day(airport, store, 3, distance=1.0)
    day(airport, store, 20, distance=1.0)
    at(START + 21 * DAY)
    severities = [loud(check(store, number, alarms_per_month=0.1))["distance"] for number in (0, 3, 20)]
    # Days without traffic are passed over, two quiet weeks are not.
    assert severities == ["warning", "alarm", "warning"]


def test_only_predictions_of_the_version_that_have_arrived_count(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    day(airport, store, 0)
    airport.log(store, airport.flights(400, 55, distance=3.0), version="delays@2", role="shadow")
    at(START + DAY / 2)
    (summary,) = [finding for finding in check(store, 0, alarms_per_month=0.01) if finding.severity == "info"]
    assert summary.evidence["rows"] == 251
    assert summary.evidence["subjects"]["distance"]["psi"] < 0.3
    at(START + DAY)
    assert check(store, 0, alarms_per_month=0.01)[-1].evidence["rows"] == 500


def test_windows_that_cannot_be_checked_are_errors_with_a_reason(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    with pytest.raises(EmptySampleError, match=r"no predictions of delays@1 between .* It has no predictions yet"):
        check(store, 0)
    day(airport, store, 0)
    at(START + 2 * DAY)
    with pytest.raises(EmptySampleError, match="Its last prediction, of any version, is from 2024-03-04 23:57"):
        check(store, 1)
    with pytest.raises(NotFoundError, match="'delays@2' has no baseline"):
        check_drift(store, "delays", "delays@2", START, START + DAY)
    with pytest.raises(NotFoundError, match="arrivals"):
        check_drift(store, "arrivals", "delays@1", START, START + DAY)
    with pytest.raises(UsageError, match="must end after it starts"):
        check_drift(store, "delays", "delays@1", START, START)
    with pytest.raises(UsageError, match="alarms_per_month must be"):
        check(store, 0, alarms_per_month=0)


def test_small_changes_in_many_rows_are_not_findings(airport: Airport, baseline: Baseline) -> None:
    frame = airport.flights(60_000, 5, distance=0.06).rename({name: f"input_{name}" for name in FEATURES})
    budget = budget_for(1, DAY)
    by_default = {shift.subject: shift for shift in compare_window(baseline, frame, span=DAY, budget=budget)}
    assert by_default["distance"].verdict == "quiet"
    assert by_default["distance"].limit >= 0.01


def test_features_may_have_awkward_names(airport: Airport) -> None:
    frame = airport.flights(2000, 1).select(
        prediction="distance", window="wind", score="wind", input_x="carrier", **{"^.*$": pl.col("distance")}
    )
    baseline = build_baseline(frame, scored=airport.flights(500, 2))
    live = frame.head(300).rename(lambda name: f"input_{name}").with_columns(airport.flights(300, 3)["score"])
    shifts = compare_window(baseline, live, span=DAY, budget=budget_for(0.01, DAY))
    assert {shift.subject for shift in shifts} == {
        "input_prediction",
        "window",
        "score",
        "input_x",
        "^.*$",
        "prediction",
    }
    assert all(shift.live.rows == 300 for shift in shifts)
    assert {shift.verdict for shift in shifts} == {"quiet"}


def test_a_reference_without_features_to_monitor_is_summarised(airport: Airport, store: Store, at: Move) -> None:
    frame = airport.flights(100, 1)
    built = build_baseline(frame, ["event_at"])
    assert list(built.skipped) == ["event_at"]
    airport.log(store, frame)
    at(START + DAY)
    (summary,) = check_drift(store, "delays", "delays@1", START, START + DAY, baseline=built)
    assert summary.message == "No drift among 0 subjects in 100 predictions."
    assert summary.evidence["skipped"] == built.skipped
