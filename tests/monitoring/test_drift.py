"""Checks of drift: what is found in a window, what its summary says, and what awkward windows do."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.bins import NumericBins
from everloop.data.sketches.column_sketches import Sketch
from everloop.errors import EmptySampleError, NotFoundError, UsageError
from everloop.monitoring import (
    build_baseline,
    check_drift,
    compare_window,
    drift_judge,
    keep_baseline,
    logged_windows,
)
from everloop.monitoring.drift import compare_sketches
from everloop.monitoring.drift_judge import MONTH
from everloop.monitoring.incidents.incident_engine import ongoing_incidents, update_incidents
from everloop.monitoring.window_counts import counts_of, unpack_correlations, unpack_window_counts
from everloop.records import Finding

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Airport
    from everloop.monitoring import Baseline
    from everloop.stores import Store

    Move = Callable[[datetime], None]

START = datetime(2024, 3, 4, tzinfo=UTC)
DAY = timedelta(days=1)
FEATURES = ("distance", "carrier", "wind")
PAIRS = ("distance × carrier", "distance × wind", "carrier × wind")


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


def related(frame: pl.DataFrame, share: float = 0.7) -> pl.DataFrame:
    """The same values of each column, but in many rows a long distance has a strong wind."""
    chosen = np.flatnonzero(np.random.default_rng(0).random(frame.height) < share)
    distance, wind = frame["distance"].to_numpy(), frame["wind"].to_numpy().copy()
    ranks = np.argsort(np.argsort(distance[chosen]))
    wind[chosen] = np.sort(wind[chosen])[ranks]
    return frame.with_columns(wind=pl.Series(wind))


def check(store: Store, number: int, **options: Any) -> list[Finding]:
    return check_drift(store, "delays", "delays@1", START + number * DAY, START + (number + 1) * DAY, **options)


def loud(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.severity for finding in findings if finding.severity != "info"}


# --- findings and the summary --------------------------------------------------------------------------------


def test_a_quiet_day_leaves_one_summary(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    day(airport, store, 0)
    at(START + DAY)
    findings = check(store, 0, alarms_per_month=0.01)
    assert loud(findings) == {}
    (summary,) = findings
    assert (summary.kind, summary.severity, summary.subject) == ("drift", "info", "window")
    assert set(summary.evidence["subjects"]) == {*FEATURES, "prediction"}
    assert summary.evidence["rows"] == 500
    assert summary.evidence["reference_rows"] == 6000
    assert summary.evidence["incidents_per_window"] == pytest.approx(0.01 * (DAY / MONTH))
    assert (summary.evidence["opens"], summary.evidence["strong"], summary.evidence["told"]) == ([], [], [])
    assert summary.evidence["harm"] is None
    assert summary.value is not None
    assert summary.value < summary.threshold == 1.0
    assert summary.message == "No drift among 7 subjects in 500 predictions."
    assert summary.created_at == START + DAY
    assert store.records.find(Finding) == findings


def test_the_summary_has_the_counts_and_correlations_of_the_window(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    frame = day(airport, store, 0)
    at(START + DAY)
    evidence = check(store, 0)[-1].evidence
    live = frame.rename({name: f"input_{name}" for name in FEATURES})
    counts = counts_of(baseline, *logged_windows.sketch_window(baseline, live))
    unpacked = unpack_window_counts(evidence["counts"], {name: len(cells) for name, cells in counts.items()})
    assert unpacked is not None
    assert unpacked.keys() == counts.keys() == {*FEATURES, "prediction"}
    for name, cells in counts.items():
        assert unpacked[name].tolist() == cells.tolist()
    correlations = unpack_correlations(evidence["correlations"])
    assert correlations is not None
    ranks = frame["distance"].rank().to_numpy(), frame["wind"].rank().to_numpy()
    assert np.tanh(correlations[1]) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=0.05)
    assert evidence["baseline"] == baseline.digest()


def test_a_process_that_has_just_started_does_not_search_for_the_limit_again(
    airport: Airport, store: Store, baseline: Baseline, at: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1):
        day(airport, store, number)
    at(START + DAY)
    first = check(store, 0)[-1]
    monkeypatch.setattr(drift_judge, "_judges", OrderedDict())
    found: list[float] = []
    monkeypatch.setattr(drift_judge, "find_limit", lambda model, rate: found.append(rate) or 9.0)
    at(START + 2 * DAY)
    assert check(store, 1)[-1].evidence["limit"] == first.evidence["limit"]
    assert found == []
    # Another budget needs another limit.
    check(store, 1, alarms_per_month=3.0)
    assert len(found) == 1
    assert found[0] == pytest.approx(3 * (DAY / MONTH))


@pytest.mark.slow
def test_a_large_change_opens_at_once_and_is_described(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    for number in range(4):
        day(airport, store, number, distance=1.0 if number in (1, 2) else 0.0)
    at(START + 4 * DAY)
    found = [check(store, number, alarms_per_month=0.1) for number in range(4)]
    assert ["distance" in loud(findings) for findings in found] == [False, True, True, False]
    # The last day is as before, which is so clear that the days before it no longer matter.
    states = [findings[-1].evidence["subjects"]["distance"] for findings in found]
    assert [state["verdict"] for state in states] == ["quiet", "alarm", "alarm", "quiet"]
    assert states[3]["calm"]
    assert ["distance" in findings[-1].evidence["strong"] for findings in found[:2]] == [False, True]
    assert states[3]["p_value"] > states[2]["p_value"]
    finding = next(one for one in found[1] if one.subject == "distance")
    assert finding.message == f"'distance' has risen from 997.7 to {finding.evidence['mean'][1]:,.4g} on average."
    assert finding.value == finding.evidence["psi"] > 0.5
    assert finding.evidence["strength"] > 1
    assert finding.evidence["p_value"] < 1e-6
    assert finding.evidence["direction"] == "location"
    assert finding.evidence["ks"] == pytest.approx(0.38, abs=0.08)
    assert finding.evidence["wasserstein"] == pytest.approx(1.0, abs=0.15)
    before, now = finding.evidence["mean"]
    assert now - before == pytest.approx(300, abs=60)
    summary = found[1][-1]
    assert summary.evidence["opens"] == [one.subject for one in found[1][:-1]]
    assert summary.evidence["told"] == [one.id for one in found[1][:-1]]
    assert summary.evidence["harm"]["severity"] in ("notice", "alarm")


def test_findings_come_in_the_order_of_their_surprise(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    day(airport, store, 0, distance=0.7, new_carrier=0.5)
    at(START + DAY)
    findings = check(store, 0)
    strengths = [one.evidence["strength"] for one in findings if one.subject in (*FEATURES, "prediction")]
    assert len(strengths) >= 2
    assert strengths == sorted(strengths, reverse=True)
    assert findings[0].subject == "carrier"


def test_new_categories_and_missing_values_are_named(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    day(airport, store, 0, new_carrier=0.2, wind_missing=0.3)
    at(START + DAY)
    findings = {finding.subject: finding for finding in check(store, 0)}
    new = findings["carrier"].evidence["unseen"]["ZZ"]
    assert new > 60
    assert findings["carrier"].message == f"'carrier' has new values: 'ZZ' ({new / 500:.0%} of the rows)."
    assert findings["carrier"].evidence["cells"][0]["cell"] == "new"
    missing = findings["wind"].evidence["missing"]
    assert missing == [0.0, pytest.approx(0.3, abs=0.07)]
    assert findings["wind"].message == f"'wind' is missing in {missing[1]:.0%} of the rows, before in 0%."


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


# --- a change of a correlation alone -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_change_of_a_correlation_alone_opens_an_incident(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    airport.log(store, related(airport.flights(500, 100)))
    at(START + DAY)
    found = check(store, 0, alarms_per_month=0.1)
    assert list(loud(found)) == ["distance × wind"]
    (finding, summary) = found
    before, now = finding.evidence["correlation"]
    assert abs(before) < 0.05
    assert now > 0.4
    assert finding.message == (
        f"'distance' and 'wind' are related differently than before: their rank correlation is {now:.2f}, "
        f"before it was {before:.2f}."
    )
    assert (finding.value, finding.evidence["direction"]) == (0.0, "correlation")
    assert summary.evidence["opens"] == summary.evidence["strong"] == ["distance × wind"]
    assert set(summary.evidence["subjects"]) == {*FEATURES, "prediction", "distance × wind"}
    (incident,) = update_incidents(store, "delays", found, watch="drift", since=START, until=START + DAY)
    assert incident.subjects == ("distance × wind",)
    assert incident.title == finding.message
    # It is over when the two are related as before.
    for number in range(1, 12):
        day(airport, store, number)
        at(START + (number + 1) * DAY)
        found = check(store, number, alarms_per_month=0.1)
        update_incidents(
            store, "delays", found, watch="drift", since=START + number * DAY, until=START + (number + 1) * DAY
        )
    assert ongoing_incidents(store, "delays") == []


@pytest.mark.slow
def test_correlations_of_a_part_of_the_rows_have_the_chance_of_that_part(
    airport: Airport, store: Store, baseline: Baseline, at: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.array([0.0, 1, 40, 41, 2000])
    monkeypatch.setattr(logged_windows, "MOST_CORRELATED", 40)
    assert logged_windows.correlated_rows(rows) == pytest.approx([0, 1, 40, 20.5, 40])
    for number in range(6):
        day(airport, store, number, rows=2000)
    at(START + 7 * DAY)
    for number in range(6):
        summary = check(store, number)[-1]
        assert unpack_correlations(summary.evidence["correlations"]) is not None
        assert not any("×" in subject for subject in summary.evidence["subjects"])


# --- windows and the ones before them ------------------------------------------------------------------------


@pytest.mark.slow
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
    assert loud(again).keys() >= {"distance"}
    assert check(store, 0) == again


def test_findings_that_are_not_kept_are_not_stored(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    day(airport, store, 0, distance=1.0)
    at(START + DAY)
    found = check_drift(store, "delays", "delays@1", START, START + DAY, keep=False)
    assert len(found) > 1
    assert store.records.find(Finding) == []


def small_shifts(airport: Airport, store: Store, at: Move, numbers: tuple[int, ...]) -> list[Finding]:
    """Check some of seven days with a shift that one day alone cannot show; return what the last one says."""
    for number in range(7):
        day(airport, store, number, distance=0.12)
    at(START + 8 * DAY)
    for number in numbers[:-1]:
        check(store, number, alarms_per_month=0.1)
    return check(store, numbers[-1], alarms_per_month=0.1)


@pytest.mark.slow
def test_a_small_change_that_lasts_is_found_with_the_windows_before_it(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    assert "distance" in loud(small_shifts(airport, store, at, tuple(range(7))))


def test_a_window_alone_does_not_show_a_small_change(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    assert "distance" not in loud(small_shifts(airport, store, at, (6,)))


@pytest.mark.slow
def test_windows_that_overlap_do_not_count_twice(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    day(airport, store, 0, distance=0.12)
    day(airport, store, 1, distance=0.12)
    at(START + 3 * DAY)
    alone = check(store, 1, alarms_per_month=0.1)[-1].evidence["subjects"]["distance"]
    for step in range(1, 24):
        since = START + step * timedelta(hours=1)
        check_drift(store, "delays", "delays@1", since, since + DAY, alarms_per_month=0.1)
    airport.log(store, airport.flights(1, 998, start=START + DAY))
    again = check(store, 1, alarms_per_month=0.1)[-1].evidence["subjects"]["distance"]
    assert again["strength"] == pytest.approx(alone["strength"], rel=0.05)


@pytest.mark.slow
def test_windows_before_teach_the_course_of_a_declared_season(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    options: dict[str, Any] = {"seasons": ["1y"], "alarms_per_month": 0.1}
    for number in range(26):
        day(airport, store, number, distance=0.02 * number + (0.6 if number == 25 else 0.0))
    at(START + 27 * DAY)
    # The training data end 25 days before, so they hardly say where the course is now.
    assert loud(check(store, 25, **options)) == {}
    for number in range(25):
        assert loud(check(store, number, **options)) == {}
    airport.log(store, airport.flights(1, 998, start=START + 25 * DAY))
    found = check(store, 25, **options)
    assert "distance" in loud(found)
    assert found[-1].evidence["seasons"] == ["1y"]
    # Without the declaration, a window is judged again, and the course is drift.
    assert "distance" in loud(check(store, 24, alarms_per_month=0.1))
    assert loud(check(store, 24, **options)) == {}


@pytest.mark.slow
def test_windows_of_another_baseline_do_not_count(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    """They were counted in other cells."""
    before = airport.flights(5000, 11, start=START - 60 * DAY, span=60 * DAY)
    other = build_baseline(before, ("distance", "wind"), time="event_at")
    for number in range(7):
        day(airport, store, number, distance=0.12)
    at(START + 8 * DAY)
    windows = [(START + number * DAY, START + (number + 1) * DAY) for number in range(7)]
    for since, until in windows[:-1]:
        check_drift(store, "delays", "delays@1", since, until, baseline=other)
    after_others = check(store, 6, alarms_per_month=0.1)[-1].evidence["subjects"]["distance"]
    assert "distance" not in loud(check(store, 6, alarms_per_month=0.1))
    (stored,) = [one for one in store.records.find(Finding) if one.evidence.get("baseline") == baseline.digest()]
    assert stored.evidence["subjects"]["distance"] == after_others


# --- awkward windows -----------------------------------------------------------------------------------------


def test_windows_that_cannot_be_checked_are_errors_with_a_reason(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    nothing = r"'delays' has no predictions of delays@1 between 2024-03-0\d 00:00 and 2024-03-0\d 00:00\."
    with pytest.raises(EmptySampleError, match=nothing):
        check(store, 0)
    day(airport, store, 0)
    at(START + 2 * DAY)
    with pytest.raises(EmptySampleError, match=nothing):
        check(store, 1)
    with pytest.raises(NotFoundError, match="'delays@2' has no baseline"):
        check_drift(store, "delays", "delays@2", START, START + DAY)
    with pytest.raises(NotFoundError, match="arrivals"):
        check_drift(store, "arrivals", "delays@1", START, START + DAY)
    with pytest.raises(UsageError, match="must end after it starts"):
        check_drift(store, "delays", "delays@1", START, START)
    with pytest.raises(UsageError, match="must end after it starts"):
        check_drift(store, "delays", "delays@1", START + DAY, START)
    for budget in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="must be a number above 0"):
            check(store, 0, alarms_per_month=budget)
    assert store.records.find(Finding) == []


def test_a_window_of_one_row_says_nothing(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    day(airport, store, 0, rows=1)
    at(START + DAY)
    (summary,) = check(store, 0)
    assert summary.message == "No drift among 4 subjects in 1 prediction."
    assert summary.evidence["correlations"] is None
    assert {state["verdict"] for state in summary.evidence["subjects"].values()} == {"quiet"}


def test_a_window_of_few_rows_may_be_surprising_if_nothing_is_as_before(
    airport: Airport, store: Store, baseline: Baseline, at: Move
) -> None:
    day(airport, store, 0, rows=15, distance=6.0)
    at(START + DAY)
    assert "distance" in loud(check(store, 0))


@pytest.mark.parametrize("how", ["null", "vanished"])
def test_a_feature_that_is_no_longer_logged_is_missing(
    airport: Airport, store: Store, baseline: Baseline, at: Move, how: str
) -> None:
    frame = airport.flights(300, 7).with_columns(wind=pl.lit(None, dtype=pl.Float64))
    if how == "vanished":
        airport.features = ("distance", "carrier")
    airport.log(store, frame)
    at(START + DAY)
    found = check(store, 0)
    wind = next(finding for finding in found if finding.subject == "wind")
    assert wind.message == "'wind' has no values any more."
    assert wind.evidence["missing"] == [0.0, 1.0]
    assert "ks" not in wind.evidence
    # What does not vary has no correlation.
    assert not any("×" in subject and "wind" in subject for subject in loud(found))


def test_a_feature_that_is_new_is_not_compared(airport: Airport, store: Store, baseline: Baseline, at: Move) -> None:
    airport.features = (*FEATURES, "gate")
    airport.log(store, airport.flights(300, 7).with_columns(gate=pl.lit("A1")))
    at(START + DAY)
    (*_, summary) = check(store, 0)
    assert set(summary.evidence["subjects"]) >= {*FEATURES, "prediction"}
    assert "gate" not in summary.evidence["subjects"]


@pytest.mark.parametrize(
    "column",
    [
        pl.lit("strong").alias("wind"),
        pl.lit(True).alias("wind"),
        pl.col("wind").cast(pl.String),
        pl.lit(float("inf")).alias("wind"),
        pl.lit(float("-inf")).alias("wind"),
        pl.lit(float("nan")).alias("wind"),
        pl.lit(1e300).alias("wind"),
        pl.lit(10.0).alias("wind"),
        pl.lit(7).alias("carrier"),
        pl.lit("").alias("carrier"),
        pl.lit(None, dtype=pl.String).alias("carrier"),
    ],
    ids=[
        "text", "bool", "numbers as text", "infinite", "minus infinite", "NaN", "huge", "constant",
        "number", "empty text", "missing category",
    ],
)  # fmt: skip
def test_retyped_and_extreme_inputs_are_drift_and_not_an_error(
    airport: Airport, store: Store, baseline: Baseline, at: Move, column: pl.Expr
) -> None:
    frame = airport.flights(300, 7).with_columns(column)
    airport.log(store, frame)
    at(START + DAY)
    found = check(store, 0)
    name = column.meta.output_name()
    if frame[name].dtype == pl.String and frame[name][0] not in ("strong", "", None):
        # Numbers that were logged as text are read as numbers, or they are missing. Neither is an error.
        assert found[-1].subject == "window"
        return
    finding = next(one for one in found if one.subject == name)
    assert finding.evidence["strength"] > 1
    assert finding.message.startswith(f"'{name}' ")
    assert "nan" not in finding.message


@pytest.mark.slow
def test_small_changes_in_many_rows_are_not_findings(airport: Airport, baseline: Baseline) -> None:
    frame = airport.flights(60_000, 5, distance=0.06).rename({name: f"input_{name}" for name in FEATURES})
    shifts = {shift.subject: shift for shift in compare_window(baseline, frame, span=DAY)}
    assert shifts["distance"].verdict != "alarm"
    assert shifts["distance"].psi < 0.02


@pytest.mark.slow
def test_features_may_have_awkward_names(airport: Airport, store: Store, at: Move) -> None:
    names = ("prediction", "window", "score", "input_x", "^.*$", "wind × x", "x", "")

    def awkward(rows: int, seed: int, **span: timedelta) -> pl.DataFrame:
        flights = airport.flights(rows, seed, start=START - span.get("span", -DAY + DAY), **span)  # type: ignore[arg-type]
        columns = [pl.col("distance").alias(name) for name in names[4:]]
        return flights.select(
            "id", "event_at", pl.col("distance").alias("prediction"), pl.col("wind").alias("window"),
            pl.col("wind").alias("score"), pl.col("carrier").alias("input_x"), *columns,
        )  # fmt: skip

    before = awkward(6000, 1, span=60 * DAY)
    scored = airport.flights(500, 2)
    built = build_baseline(before, names, time="event_at", scored=scored)
    live = awkward(300, 3).rename({name: f"input_{name}" for name in names})
    live = live.with_columns(airport.flights(300, 3)["score"])
    shifts = compare_window(built, live, span=DAY, alarms_per_month=0.01)
    assert {shift.subject for shift in shifts} == {"input_prediction", *names}
    assert all(shift.live.rows == 300 for shift in shifts)
    assert {shift.verdict for shift in shifts} == {"quiet"}


def test_a_feature_may_be_called_like_a_pair(airport: Airport) -> None:
    before = airport.flights(6000, 1, start=START - 60 * DAY, span=60 * DAY)
    before = before.with_columns(pl.col("carrier").alias("distance × wind"))
    built = build_baseline(before, (*FEATURES, "distance × wind"), time="event_at")
    live = airport.flights(500, 3).with_columns(pl.col("carrier").alias("distance × wind"))
    live = live.rename({name: f"input_{name}" for name in (*FEATURES, "distance × wind")})
    shifts = compare_window(built, live, span=DAY, alarms_per_month=0.01)
    assert sorted(shift.subject for shift in shifts) == sorted((*FEATURES, "distance × wind"))
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


@pytest.mark.parametrize("level", [0.0, 0.01, 0.5])
def test_a_window_of_a_hundred_million_rows_is_judged_by_how_levels_wander(baseline: Baseline, level: float) -> None:
    generator = np.random.default_rng(6)
    known = baseline.features.sketches["distance"]
    assert isinstance(known.bins, NumericBins)
    values = np.sort(generator.normal(1000 + 300 * level, 300, 10**6))
    cells = 1 + np.searchsorted(np.asarray(known.bins.edges), values)
    shares = np.bincount(cells, minlength=known.bins.cells) / len(values)
    counts = generator.multinomial(10**8, shares)
    live = Sketch(known.bins, tuple(map(int, counts)))
    found = compare_sketches(baseline, {"distance": live}, None, span=DAY)
    distance = next(shift for shift in found if shift.subject == "distance")
    assert distance.live.rows == 10**8
    assert np.isfinite([distance.strength, distance.psi, distance.p_value]).all()
    # Chance is tiny in so large a window. Only what levels may do anyway keeps it quiet.
    assert (distance.verdict != "quiet") == (level > 0.1)
    assert distance.message()
