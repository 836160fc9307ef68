from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.monitoring.incidents.watched_airport import VERSION, WatchedAirport

from everloop.monitoring.performance.label_verdicts import find_doubt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.records import Incident


@pytest.fixture
def delays(tmp_path: Path) -> Iterator[WatchedAirport]:
    watched = WatchedAirport(tmp_path / "home")
    with watched.store:
        yield watched


def drift_of(delays: WatchedAirport) -> Incident:
    (incident,) = delays.ongoing("drift")
    return incident


@pytest.mark.slow
def test_labels_confirm_what_was_expected(delays: WatchedAirport) -> None:
    since = delays.log(0, rows=2000, distance=0.8)
    delays.watch_drift(since)
    assert "roc_auc is expected to be" in drift_of(delays).message
    summary = delays.watch_performance(since)[-1]
    verdict = summary.evidence["estimates"]
    assert not verdict["contradicted"]
    assert verdict["realised"] == pytest.approx(verdict["estimated"], abs=0.05)
    incident = drift_of(delays)
    assert f"The labels agree with the estimate: roc_auc was {verdict['realised']:.3g}." in incident.message
    assert incident.evidence["labels"] == verdict
    assert find_doubt(delays.store, "delays", VERSION, delays.baseline) == ""


@pytest.mark.slow
def test_labels_contradict_what_was_expected_and_later_estimates_say_so(delays: WatchedAirport) -> None:
    since = delays.log(0, rows=2000, distance=0.8, fog=0.9)
    delays.watch_drift(since)
    expected = drift_of(delays).evidence["harm"]["expected"]
    assert expected["doubt"] == ""
    summary = delays.watch_performance(since)[-1]
    verdict = summary.evidence["estimates"]
    assert verdict["contradicted"]
    assert verdict["estimated"] == pytest.approx(expected["now"])
    assert "The labels contradict the estimate: roc_auc was" in drift_of(delays).message

    later = delays.log(2, rows=2000, distance=0.8, fog=0.9)
    found = delays.watch_drift(later)[-1]
    doubt = found.evidence["harm"]["expected"]["doubt"]
    assert doubt == find_doubt(delays.store, "delays", VERSION, delays.baseline)
    assert doubt.endswith("may be wrong.")
    assert doubt in found.evidence["harm"]["text"]


@pytest.mark.slow
def test_each_window_counts_once_in_the_sequential_test(delays: WatchedAirport) -> None:
    days = [delays.log(day, fog=0.9) for day in range(3)]
    concepts = [delays.watch_performance(since)[-1].evidence["concept"] for since in days]
    assert [one["looks"] for one in concepts] == [1, 2, 3]
    assert concepts[2]["drifted"]
    assert concepts[2]["since"] == days[0].isoformat()
    assert concepts[2]["gaps"]
    # The same window with more labels starts from the window before it.
    more = delays.airport.flights(50, 999, start=days[2], fog=0.9)
    delays.airport.log(delays.store, more, version=VERSION)
    delays.airport.label(delays.store, more, after=days[2] - days[2])
    again = delays.watch_performance(days[2])
    assert again[-1].evidence["concept"]["looks"] == 3
    assert "no longer follow predictions as they did in the reference" in again[-1].message
    assert again[-1].evidence["rows"] == 650


@pytest.mark.slow
def test_labels_that_follow_predictions_are_not_drift(delays: WatchedAirport) -> None:
    for day in range(4):
        summary = delays.watch_performance(delays.log(day))[-1]
    assert not summary.evidence["concept"]["drifted"]
    assert "estimates" not in summary.evidence
    assert "Labels" not in summary.message


@pytest.mark.slow
def test_a_new_baseline_is_not_doubted(delays: WatchedAirport) -> None:
    for day in range(3):
        delays.watch_performance(delays.log(day, fog=0.9))
    assert find_doubt(delays.store, "delays", VERSION, delays.baseline)
    assert find_doubt(delays.store, "delays", VERSION, replace(delays.baseline, packed_expectations="other")) == ""
