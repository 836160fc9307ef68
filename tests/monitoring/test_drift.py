from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.errors import EmptySampleError, NotFoundError, UsageError
from everloop.monitoring import build_baseline, check_drift, compare_window, keep_baseline
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


def test_drift_is_found_at_once_and_told_with_its_numbers(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    for number in range(4):
        day(airport, store, number, distance=1.0 if number in (1, 2) else 0.0)
    at(START + 4 * DAY)
    checked = [check(store, number, alarms_per_month=0.1) for number in range(4)]
    assert loud(checked[0]) == {}
    assert {"distance", "prediction"} <= loud(checked[1]).keys()
    assert checked[1][-1].evidence["opens"] == [finding.subject for finding in checked[1][:-1]]
    assert checked[1][-1].value > 1
    found = next(finding for finding in checked[1] if finding.subject == "distance")
    assert found.severity == "alarm"
    assert found.message.startswith("'distance' has risen from ")
    assert found.evidence["direction"] == "location"
    assert found.evidence["deviation_in_direction"] == pytest.approx(1.0, abs=0.15)
    assert found.evidence["ks"] == pytest.approx(0.38, abs=0.08)
    assert found.evidence["wasserstein"] == pytest.approx(1.0, abs=0.15)
    before, now = found.evidence["mean"]
    assert now - before == pytest.approx(300, abs=60)
    # On the day after, this day alone is calm, but the three and seven days up to it are not.
    state = checked[3][-1].evidence["subjects"]["distance"]
    assert state["psi"] < 0.2
    assert state["strength"] > 1


def test_a_small_shift_that_lasts_is_found(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    for number in range(7):
        day(airport, store, number, distance=0.25)
    at(START + 7 * DAY)
    strengths = [
        check(store, number, alarms_per_month=0.1)[-1].evidence["subjects"]["distance"]["strength"]
        for number in range(7)
    ]
    assert strengths[6] > 1
    assert strengths[6] > strengths[0]


def test_windows_before_count_only_if_they_have_the_same_length_and_baseline(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    for number in range(7):
        day(airport, store, number, distance=0.25)
    at(START + 7 * DAY)

    def strength(findings: list[Finding]) -> float:
        return float(findings[-1].evidence["subjects"]["distance"]["strength"])

    alone = strength(check(store, 6, alarms_per_month=0.1))
    for number in range(6):
        check(store, number, alarms_per_month=0.1)
    together = strength(check(store, 6, alarms_per_month=0.11))
    assert together > alone
    # Another baseline has other cells, so that counts of days checked before mean nothing to it.
    before = airport.flights(6000, 3, start=START - 60 * DAY, span=60 * DAY)
    other = build_baseline(before, FEATURES, time="event_at", scored=before)
    again = check_drift(
        store, "delays", "delays@1", START + 6 * DAY, START + 7 * DAY, alarms_per_month=0.11, baseline=other
    )
    assert again[-1].evidence["baseline"] == other.digest()
    assert strength(again) < together


def test_new_categories_and_missing_values_are_named(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    day(airport, store, 0, new_carrier=0.2, wind_missing=0.3)
    at(START + DAY)
    found = {finding.subject: finding for finding in check(store, 0)}
    assert "'carrier' has new values: 'ZZ'" in found["carrier"].message
    assert found["carrier"].evidence["unseen"]["ZZ"] > 60
    assert found["carrier"].evidence["cells"][0]["cell"] == "new"
    assert found["wind"].message.startswith(("'wind' is missing in 3", "'wind' is missing in 2"))
    assert found["wind"].evidence["missing"][1] == pytest.approx(0.3, abs=0.07)


def test_a_feature_that_is_no_longer_logged_is_missing(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    frame = airport.flights(300, 7).with_columns(wind=pl.lit(None, dtype=pl.Float64))
    airport.log(store, frame)
    at(START + DAY)
    wind = next(finding for finding in check(store, 0) if finding.subject == "wind")
    assert wind.message == "'wind' has no values any more."
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


def test_versions_share_the_budget(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    day(airport, store, 0, distance=0.2)
    at(START + DAY)
    alone, shared = (check(store, 0, versions=versions)[-1].evidence for versions in (1, 4))
    assert shared["incidents_per_window"] == pytest.approx(alone["incidents_per_window"] / 4)
    assert shared["subjects"]["distance"]["strength"] < alone["subjects"]["distance"]["strength"]


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
    with pytest.raises(EmptySampleError, match="no predictions of delays@1 between 2024-03-04 00:00 and"):
        check(store, 0)
    day(airport, store, 0)
    at(START + 2 * DAY)
    with pytest.raises(EmptySampleError, match="no predictions of delays@1 between 2024-03-05 00:00 and"):
        check(store, 1)
    with pytest.raises(NotFoundError, match="'delays@2' has no baseline"):
        check_drift(store, "delays", "delays@2", START, START + DAY)
    with pytest.raises(NotFoundError, match="arrivals"):
        check_drift(store, "arrivals", "delays@1", START, START + DAY)
    with pytest.raises(UsageError, match="must end after it starts"):
        check_drift(store, "delays", "delays@1", START, START)
    with pytest.raises(UsageError, match="budget of incidents must be a number above 0"):
        check(store, 0, alarms_per_month=0)


def test_small_changes_are_called_small(airport: Airport, baseline: Baseline) -> None:
    frame = airport.flights(60_000, 5, distance=0.06).rename({name: f"input_{name}" for name in FEATURES})
    found = {shift.subject: shift for shift in compare_window(baseline, frame, span=DAY)}
    assert found["distance"].psi < 0.02
    assert found["distance"].verdict in ("quiet", "warning")


def test_features_may_have_awkward_names(airport: Airport) -> None:
    frame = airport.flights(2000, 1).select(
        prediction="distance", window="wind", score="wind", input_x="carrier", **{"^.*$": pl.col("distance")}
    )
    baseline = build_baseline(frame, scored=airport.flights(500, 2))
    live = frame.head(300).rename(lambda name: f"input_{name}").with_columns(airport.flights(300, 3)["score"])
    shifts = compare_window(baseline, live, span=DAY, alarms_per_month=0.01)
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


def test_a_frame_with_a_time_is_compared_with_its_season(airport: Airport) -> None:
    def week(seed: int, weeks: int) -> pl.DataFrame:
        frame = airport.flights(weeks * 7 * 400, seed, span=weeks * 7 * DAY)
        weekend = pl.col("event_at").dt.weekday() >= 6
        return frame.with_columns(distance=pl.col("distance") + pl.when(weekend).then(300.0).otherwise(0.0))

    baseline = build_baseline(week(1, 12), FEATURES, time="event_at")
    saturday = week(2, 1).filter(pl.col("event_at").dt.weekday() == 6).rename(lambda name: f"input_{name}")
    known, unknown, wrong = (
        {
            shift.subject: shift.strength
            for shift in compare_window(baseline, saturday, span=DAY, since=since, alarms_per_month=0.1)
        }["distance"]
        for since in (START + 5 * DAY, None, START)
    )
    assert known < 1
    assert known < unknown < wrong
    assert wrong > 1


def test_a_reference_without_features_to_monitor_is_summarised(airport: Airport, store: Store, at: Move) -> None:
    frame = airport.flights(100, 1)
    built = build_baseline(frame, ["event_at"])
    assert list(built.skipped) == ["event_at"]
    airport.log(store, frame)
    at(START + DAY)
    (summary,) = check_drift(store, "delays", "delays@1", START, START + DAY, baseline=built)
    assert summary.message == "No drift among 0 subjects in 100 predictions."
    assert summary.evidence["skipped"] == built.skipped
