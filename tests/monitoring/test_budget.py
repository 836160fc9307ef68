from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from everloop.errors import UsageError
from everloop.monitoring import AlarmBudget, benjamini_hochberg, budget_for
from everloop.monitoring.alarm_budget import adjusted

p_lists = st.lists(st.floats(1e-12, 1), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(p_lists, st.floats(0.001, 0.5))
def test_benjamini_hochberg_is_scipys(values: list[float], level: float) -> None:
    p_values = {str(place): value for place, value in enumerate(values)}
    expected = stats.false_discovery_control(values)
    assert list(adjusted(p_values).values()) == pytest.approx(expected, rel=1e-12)
    clear = {str(place) for place, value in enumerate(expected) if value <= level * (1 - 1e-9)}
    at_most = {str(place) for place, value in enumerate(expected) if value <= level * (1 + 1e-9)}
    assert clear <= benjamini_hochberg(p_values, level) <= at_most


@pytest.mark.parametrize(
    ("subjects", "windows", "alarms"), [(1, 30.4, 1.0), (20, 30.4, 1.0), (20, 4.35, 1.0), (5, 730.0, 2.0)]
)
def test_alarms_come_at_the_budgeted_rate_when_p_values_are_uniform(
    subjects: int, windows: float, alarms: float
) -> None:
    budget = AlarmBudget(alarms, windows)
    generator = np.random.default_rng(5)
    months = 12_000 / windows
    raised = 0
    before: list[set[str]] = [set(), set()]
    for row in generator.uniform(size=(12_000, subjects)):
        verdicts = budget.judge({str(place): float(p) for place, p in enumerate(row)}, before[0] | before[1])
        raised += sum(verdict == "alarm" for verdict in verdicts.values())
        before = [before[1], {subject for subject, verdict in verdicts.items() if verdict != "quiet"}]
    expected = alarms * months
    # The chain leaves out how rejections cluster, hence ten percent beside four standard deviations of a count.
    assert abs(raised - expected) < 0.1 * expected + 4 * expected**0.5
    assert raised > 0.5 * expected


def test_an_alarm_needs_a_recently_flagged_subject() -> None:
    budget = AlarmBudget(1, 30)
    p_values = {"a": 1e-9, "b": 0.08, "c": 0.9}
    assert budget.judge(p_values, set()) == {"a": "warning", "b": "quiet", "c": "quiet"}
    assert budget.judge(p_values, {"a", "b", "c"}) == {"a": "alarm", "b": "alarm", "c": "quiet"}


def test_the_level_follows_the_budget() -> None:
    assert AlarmBudget(1, 30).level(20) < AlarmBudget(2, 30).level(20) < AlarmBudget(2, 10).level(20)
    assert AlarmBudget(100, 1).level(3) == pytest.approx(0.5)
    assert AlarmBudget(1, 730).level(20) < 0.03


def test_the_limit_is_where_a_verdict_changes() -> None:
    budget = AlarmBudget(1, 30)
    others = {"b": 0.5, "c": 0.7, "d": 1e-8}
    for recently_flagged in (set(), {"a"}):
        limit = budget.limit_of({"a": 0.6, **others}, "a", recently_flagged)
        assert budget.judge({"a": limit * 0.999, **others}, recently_flagged)["a"] != "quiet"
        assert budget.judge({"a": limit * 1.001, **others}, recently_flagged)["a"] == "quiet"


def test_windows_per_month_follow_from_the_window() -> None:
    assert budget_for(1, timedelta(days=1)).windows_per_month == pytest.approx(30.4375)
    assert budget_for(1, timedelta(days=1), 12.0).windows_per_month == 12


@pytest.mark.parametrize(("alarms", "windows"), [(0, 30), (-1, 30), (1, 0), (float("nan"), 30), (1, float("inf"))])
def test_invalid_budgets_are_errors(alarms: float, windows: float) -> None:
    with pytest.raises(UsageError, match="must be a number above 0"):
        AlarmBudget(alarms, windows)


def test_a_window_has_a_length() -> None:
    with pytest.raises(UsageError, match="must end after it starts"):
        budget_for(1, timedelta(0))
