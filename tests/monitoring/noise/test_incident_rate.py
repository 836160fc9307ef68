"""The rule of incidents, and that as many are opened as the budget says where nothing happens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tests.monitoring.noise.simulated_counts import MONTH, Array, simulate

from everloop.monitoring.noise.incident_rate import (
    CALM_SURPRISE,
    CALM_WINDOWS,
    MOST_ONGOING,
    STRONG,
    IncidentRule,
    count_incidents,
    find_limit,
)

LIMIT = 5.0


def run(*surprises: float, alone: tuple[float, ...] | None = None) -> list[str]:
    """What happens to one stream with one direction: `open`, `close`, or nothing."""
    rule = IncidentRule(1, 1)
    found = []
    for index, surprise in enumerate(surprises):
        before = bool(rule.ongoing[0])
        single = alone[index] if alone is not None else surprise
        opening = rule.advance(np.array([[surprise]]), np.array([[single]]), LIMIT)
        found.append("open" if opening[0] else "close" if before and not rule.ongoing[0] else "")
    return found


def test_an_incident_opens_once_and_closes_after_three_calm_windows() -> None:
    assert CALM_WINDOWS == 3
    assert run(1, 9, 9, 9, 1, 1, 1, 1, 9) == ["", "open", "", "", "", "", "close", "", "open"]
    assert run(9, 1, 1, 9, 1, 1, 1) == ["open", "", "", "", "", "", "close"]
    # A window that is restless, but no reason to open an incident, keeps it open.
    restless = (CALM_SURPRISE + LIMIT) / 2
    assert run(restless, 9, restless, restless, restless, 1, 1, 1) == ["", "open", "", "", "", "", "", "close"]


def test_a_mean_of_earlier_windows_keeps_an_incident_open_only_beyond_the_limit() -> None:
    assert run(9, 4, 4, 4, alone=(9.0, 1.0, 1.0, 1.0)) == ["open", "", "", "close"]
    assert run(9, 6, 6, 6, alone=(9.0, 1.0, 1.0, 1.0)) == ["open", "", "", ""]


def naive_openings(strongest: Array, alone: Array, limit: float) -> list[bool]:
    """The rule for one stream, incident by incident, as `incidents/incident_rules.py` applies it to records."""
    ongoing: list[dict[int, int]] = []
    found = []
    for window, single in zip(strongest, alone, strict=True):
        known = set().union(*ongoing) if ongoing else set()
        reasons = {index for index, surprise in enumerate(window) if surprise > limit}
        new = reasons - known
        own = {index for index in new if window[index] > limit + STRONG} if ongoing else new
        opens = bool(own) and len(ongoing) < MOST_ONGOING
        found.append(opens)
        if opens:
            ongoing.append({})
        if new:
            ongoing[-1] |= dict.fromkeys(new, 0)
        for members in ongoing:
            for index in list(members):
                calm = index not in reasons and single[index] <= CALM_SURPRISE
                members[index] = members[index] + 1 if calm else 0
                if members[index] >= CALM_WINDOWS:
                    del members[index]
        ongoing = [members for members in ongoing if members]
    return found


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(1, 8))
def test_streams_follow_the_rule_one_by_one(seed: int, directions: int, limit: float) -> None:
    generator = np.random.default_rng(seed)
    alone = generator.exponential(size=(4, 60, directions)) * 3
    strongest = np.maximum(alone, generator.exponential(size=alone.shape) * 3)
    rule = IncidentRule(4, directions)
    openings = np.array([rule.advance(strongest[:, at], alone[:, at], limit) for at in range(60)]).T
    for stream in range(4):
        assert openings[stream].tolist() == naive_openings(strongest[stream], alone[stream], limit)
    assert count_incidents(strongest, alone, limit) == openings.sum()


def rates(budget: float, seeds: int, **stream: float) -> float:
    return float(np.mean([simulate(seed, **stream).incidents_a_month(budget) for seed in range(seeds)]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stream",
    [
        {},
        {"rho": 0.8, "deviation": 0.25},
        {"rho": 0.5, "deviation": 0.25, "rows": 200},
        {"rows": 20_000},
        {"rows": 30},
    ],
    ids=["independent", "level 0.8", "level 0.5, 200 rows", "20,000 rows", "30 rows"],
)
def test_one_incident_a_month_is_one_incident_a_month(stream: dict[str, float]) -> None:
    # Five streams of forty months.
    assert 0.5 <= rates(1.0, 5, **stream) <= 1.5


def test_a_smaller_budget_opens_fewer() -> None:
    found = [rates(budget, 3) for budget in (0.2, 1.0, 3.0)]
    assert found[0] < found[1] < found[2]
    assert found[0] <= 0.3
    assert found[2] <= 4.5


def test_limits_rise_as_budgets_fall() -> None:
    model = simulate(1, live_days=1).learn()
    limits = [find_limit(model, budget / MONTH) for budget in (1e-9, 1e-3, 0.3, 1, 3, 1000)]
    assert limits == sorted(limits, reverse=True)
    assert np.isfinite(limits).all()
    # Below what the simulation can show, each decade of the budget costs a decade of the p-value.
    assert limits[0] - limits[1] == pytest.approx(np.log(1e6))


def test_a_limit_is_found_again() -> None:
    model = simulate(1, live_days=1).learn()
    assert find_limit(model, 1 / MONTH) == find_limit(model, 1 / MONTH)
    assert find_limit(model, 1 / MONTH, seed=1) == pytest.approx(find_limit(model, 1 / MONTH), abs=0.7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [
        {"rho": 0.95, "deviation": 0.25},
        {"rho": 0.8, "deviation": 0.25, "rows": 200},
        {"days": 30},
        {"days": 365},
        {"features": 80, "live_days": 600},
        {"features": 1},
        {"rows": 200_000},
        {"rho": 0.8, "deviation": 0.25, "rows": 5000},
        {"rho": 0.8, "deviation": 0.25, "rows": 100_000_000},
    ],
    ids=[
        "level 0.95",
        "level 0.8, 200 rows",
        "a month",
        "a year",
        "80 features",
        "one feature",
        "200,000 rows",
        "level 0.8, 5000 rows",
        "level 0.8, 100 million rows",
    ],
)
def test_the_budget_holds_on_other_streams(stream: dict[str, float]) -> None:
    assert 0.5 <= rates(1.0, 10, **stream) <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 10])
def test_tiny_windows_keep_below_the_budget(rows: int) -> None:
    assert rates(1.0, 10, rows=rows) <= 1.5


@pytest.mark.parametrize(("days", "rows"), [(1, 200), (1, 1000), (20, 1000)])
def test_a_reference_without_times_keeps_below_the_budget(days: int, rows: int) -> None:
    found = [simulate(seed, days=days, rows=rows, times=False).incidents_a_month(1.0) for seed in range(3)]
    assert np.mean(found) <= 1.5
