"""The rule of incidents, and that as many are opened as the budget says where nothing happens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tests.monitoring.noise.simulated_counts import MONTH, incidents_a_month, simulate

from everloop.monitoring.noise.incident_rate import (
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
        single = alone[index] if alone is not None else surprise
        before = rule.ongoing[0]
        opening = rule.advance(np.array([[surprise]]), np.array([[single]]), LIMIT)
        found.append("open" if opening[0] else "close" if before and not rule.ongoing[0] else "")
    return found


def see(rule: IncidentRule, *surprises: float) -> bool:
    """Show one window of the only stream; return whether an incident opens."""
    values = np.array([surprises])
    return bool(rule.advance(values, values, LIMIT)[0])


def members(rule: IncidentRule) -> list[set[int]]:
    """The directions of each ongoing incident of the only stream, in the order of their first direction."""
    numbers = rule._incident[0]
    return [set(np.flatnonzero(numbers == number).tolist()) for number in dict.fromkeys(numbers[numbers > 0].tolist())]


def test_an_incident_opens_once_and_closes_after_three_calm_windows() -> None:
    assert CALM_WINDOWS == 3
    assert run(1, 9, 9, 9, 1, 1, 1, 1, 9) == ["", "open", "", "", "", "", "close", "", "open"]
    assert run(9, 1, 1, 9, 1, 1, 1) == ["open", "", "", "", "", "", "close"]
    # A window that is restless, but no reason to open an incident, keeps it open.
    assert run(4, 9, 4.7, 4.7, 4.7, 1, 1, 1) == ["", "open", "", "", "", "", "", "close"]
    assert run(9, 4.5, 4.5, 4.5) == ["open", "", "", "close"]


def test_a_mean_of_earlier_windows_keeps_an_incident_open_but_does_not_make_the_window_restless() -> None:
    found = run(9, 4, 4, 4, alone=(9.0, 1.0, 1.0, 1.0))
    assert found == ["open", "", "", "close"]
    assert run(9, 6, 6, 6, alone=(9.0, 1.0, 1.0, 1.0)) == ["open", "", "", ""]


def test_a_direction_that_does_not_belong_to_the_incident_does_not_prolong_it() -> None:
    rule = IncidentRule(2, 2)
    rule.advance(np.array([[9.0, 0], [9.0, 0]]), np.array([[9.0, 0], [9.0, 0]]), LIMIT)
    for _ in range(3):
        assert rule.ongoing.tolist() == [True, True]
        rule.advance(np.array([[0.0, 4.8], [4.8, 0]]), np.array([[0.0, 4.8], [4.8, 0]]), LIMIT)
    assert rule.ongoing.tolist() == [False, True]
    # A new reason joins.
    opening = rule.advance(np.array([[0.0, 0], [0.0, 9]]), np.array([[0.0, 0], [0.0, 9]]), LIMIT)
    assert not opening.any()
    assert (rule._incident[1] == rule._incident[1, 0]).all()


def test_each_direction_counts_its_own_calm_windows() -> None:
    rule = IncidentRule(1, 2)
    found = [see(rule, *window) for window in ((9, 0), (0, 9), (0, 4.8), (0, 4.8), (0, 0), (0, 0))]
    assert found == [True, *[False] * 5]
    assert members(rule) == [{1}]
    assert not see(rule, 0, 0)
    assert not rule.ongoing[0]


def test_a_surprise_far_beyond_the_limit_opens_an_incident_beside_an_ongoing_one() -> None:
    far = LIMIT + STRONG + 0.1
    rule = IncidentRule(1, 5)
    assert see(rule, 9, 0, 0, 0, 0)
    assert not see(rule, far, LIMIT + STRONG - 0.1, 0, 0, 0)
    assert members(rule) == [{0, 1}]
    assert see(rule, 9, 9, far, 6, 0), "all that is new belongs to the one that opens"
    assert members(rule) == [{0, 1}, {2, 3}]
    assert not see(rule, 9, 9, 9, 9, 6)
    assert members(rule) == [{0, 1}, {2, 3, 4}]


def test_no_more_than_three_are_ongoing() -> None:
    rule = IncidentRule(1, 6)
    surprises = np.zeros(6)
    found = []
    for index in range(6):
        surprises[index] = 99
        found.append(see(rule, *surprises))
    assert MOST_ONGOING == 3
    assert found == [True, True, True, False, False, False]
    assert members(rule) == [{0}, {1}, {2, 3, 4, 5}]
    surprises[0] = 0
    for _ in range(CALM_WINDOWS):
        assert not see(rule, *surprises)
    surprises[0] = 99
    assert see(rule, *surprises)
    assert members(rule) == [{0}, {1}, {2, 3, 4, 5}]


def test_what_is_not_strong_joins_the_incident_that_opened_last() -> None:
    """The first incident ends and another one opens in its stead, which is then the newest."""
    rule = IncidentRule(1, 5)
    see(rule, 9, 0, 0, 0, 0)
    see(rule, 0, 99, 0, 0, 0)
    for _ in range(CALM_WINDOWS):
        see(rule, 0, 99, 0, 0, 0)
    assert members(rule) == [{1}]
    assert see(rule, 0, 99, 99, 0, 0)
    assert see(rule, 0, 99, 99, 99, 0)
    for _ in range(CALM_WINDOWS):
        see(rule, 0, 99, 99, 0, 0)
    assert members(rule) == [{1}, {2}]
    assert not see(rule, 0, 99, 99, 0, 9)
    assert members(rule) == [{1}, {2, 4}]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 8))
def test_streams_do_not_disturb_each_other_and_incidents_are_bounded(seed: int, limit: float) -> None:
    generator = np.random.default_rng(seed)
    alone = generator.exponential(size=(4, 40, 3)) * 2
    strongest = np.maximum(alone, generator.exponential(size=alone.shape))
    whole = count_incidents(strongest, alone, [limit])
    assert whole == [sum(count_incidents(strongest[i : i + 1], alone[i : i + 1], [limit])[0] for i in range(4))]
    rule = IncidentRule(4, 3)
    for window in range(40):
        before = rule._incident.copy()
        opening = rule.advance(strongest[:, window], alone[:, window], limit)
        beyond = strongest[:, window] > limit
        # An incident opens at once, or for what is new; what is beyond the limit is always in an incident.
        assert (opening >= (beyond.any(axis=1) & ~before.any(axis=1))).all()
        assert not opening[~(beyond & (before == 0)).any(axis=1)].any()
        assert (rule._incident[beyond] > 0).all()
        assert rule._incident.max() <= MOST_ONGOING
        assert (rule.ongoing == rule._incident.any(axis=1)).all()


def rates(budget: float, seeds: int, **stream: float) -> float:
    return incidents_a_month([simulate(seed, **stream) for seed in range(seeds)], budget)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [
        {},
        {"rho": 0.8, "deviation": 0.25},
        pytest.param({"rho": 0.5, "deviation": 0.25, "rows": 200}, marks=pytest.mark.slow),
        pytest.param({"rows": 20_000}, marks=pytest.mark.slow),
        {"rows": 30},
    ],
    ids=["independent", "level 0.8", "level 0.5, 200 rows", "20,000 rows", "30 rows"],
)
def test_one_incident_a_month_is_one_incident_a_month(stream: dict[str, float]) -> None:
    # Six streams of forty months.
    assert 0.5 <= rates(1.0, 6, **stream) <= 1.5


@pytest.mark.slow
def test_a_smaller_budget_opens_fewer() -> None:
    found = [rates(budget, 4) for budget in (0.2, 1.0, 3.0)]
    assert found[0] < found[1] < found[2]
    assert found[0] <= 0.3
    assert found[2] <= 4.5


@pytest.mark.slow
def test_limits_rise_as_budgets_fall() -> None:
    model = simulate(1, live_days=1).learn()
    limits = [find_limit(model, budget / MONTH) for budget in (1e-9, 1e-3, 0.1, 0.3, 1, 2, 3, 30, 1000)]
    assert limits == sorted(limits, reverse=True)
    assert np.isfinite(limits).all()
    # Below what the simulation can show, each decade of the budget costs a decade of the p-value.
    assert limits[0] - limits[1] == pytest.approx(np.log(1e6))


@pytest.mark.slow
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
    ],
    ids=["level 0.95", "level 0.8, 200 rows", "a month", "a year", "80 features", "one feature", "200,000 rows"],
)
def test_the_budget_holds_on_other_streams(stream: dict[str, float]) -> None:
    assert 0.5 <= rates(1.0, 10, **stream) <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 10])
def test_tiny_windows_keep_below_the_budget(rows: int) -> None:
    assert rates(1.0, 10, rows=rows) <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("days", "rows"), [(1, 200), pytest.param(1, 1000, marks=pytest.mark.slow), (20, 1000)])
def test_a_reference_without_times_keeps_below_the_budget(days: int, rows: int) -> None:
    assert incidents_a_month([simulate(seed, days=days, rows=rows, times=False) for seed in range(4)], 1.0) <= 1.5
