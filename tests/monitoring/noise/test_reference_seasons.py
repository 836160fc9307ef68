"""Seasons: those that are there are found, those that are not are hardly invented."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tests.monitoring.noise.simulated_counts import Array, wandering

from everloop.monitoring.noise.declared_seasons import parse_season
from everloop.monitoring.noise.reference_seasons import (
    DAY,
    CyclicSeason,
    LearnedCycle,
    YearlySeason,
    can_learn,
    effect_of,
    learn_seasons,
    seconds_of,
)

HOUR = timedelta(hours=1)
CHANCE = 0.01
"""Variance by chance of a block."""


def blocks(span: timedelta, number: int) -> Array:
    return seconds_of(datetime(2024, 1, 1, tzinfo=UTC)) + span.total_seconds() * np.arange(number)


def noisy(pattern: Array, seed: int, directions: int = 1) -> tuple[Array, Array]:
    values = pattern[:, None] + np.random.default_rng(seed).normal(0, CHANCE**0.5, (len(pattern), directions))
    return values, np.full(values.shape, CHANCE)


def test_seconds_begin_on_a_monday() -> None:
    assert seconds_of(datetime(1970, 1, 5, tzinfo=UTC)) == 0
    assert (seconds_of(datetime(2024, 1, 1, tzinfo=UTC)) / 86_400) % 7 == 0


def test_a_weekday_is_learned_and_applied_to_windows_of_any_length() -> None:
    starts = blocks(DAY, 140)
    week = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 0.7])
    week -= week.mean()
    seasons = learn_seasons(*noisy(np.tile(week, 20), 1), starts, DAY)
    assert [season.steps for season in seasons if isinstance(season, CyclicSeason)] == [7]
    daily, variance = effect_of(seasons, starts[:7], DAY, 1)
    assert daily[:, 0] == pytest.approx(week, abs=0.08)
    assert variance == pytest.approx([CHANCE / 20], rel=0.5)
    two_days, _ = effect_of(seasons, starts[:7], 2 * DAY, 1)
    assert two_days[:, 0] == pytest.approx((week + np.roll(week, -1)) / 2, abs=0.08)
    whole_weeks, _ = effect_of(seasons, starts[:7], 14 * DAY, 1)
    assert (whole_weeks == 0).all()
    # A part of a day belongs to its day, also in the evening.
    for hours in (0, 6, 12, 18):
        parts, _ = effect_of(seasons, starts[:7] + hours * 3600, 6 * HOUR, 1)
        assert parts == pytest.approx(daily)


def test_an_hour_of_the_day_is_learned() -> None:
    hours = 24 * 14
    pattern = np.sin(2 * np.pi * np.arange(hours) / 24)
    starts = blocks(HOUR, hours)
    seasons = learn_seasons(*noisy(pattern, 2), starts, HOUR)
    found, _ = effect_of(seasons, starts[:24], HOUR, 1)
    assert found[:, 0] == pytest.approx(pattern[:24], abs=0.1)
    days, _ = effect_of(seasons, starts[::24], DAY, 1)
    assert days == pytest.approx(np.zeros((14, 1)), abs=0.03)


def test_hours_and_weekdays_add_up() -> None:
    hours = 24 * 35
    index = np.arange(hours)
    pattern = 0.5 * np.sin(2 * np.pi * index / 24) + np.where(index // 24 % 7 >= 5, 0.5, -0.2)
    starts = blocks(HOUR, hours)
    seasons = learn_seasons(*noisy(pattern, 3), starts, HOUR)
    assert [season.steps for season in seasons if isinstance(season, CyclicSeason)] == [24, 7]
    found, _ = effect_of(seasons, starts, HOUR, 1)
    assert found[:, 0] == pytest.approx(pattern - pattern.mean(), abs=0.12)


def test_the_course_of_a_year_is_learned() -> None:
    starts = blocks(DAY, 730)
    pattern = 0.5 * np.sin(2 * np.pi * np.arange(730) / 365.2425) + 0.2 * np.cos(4 * np.pi * np.arange(730) / 365.2425)
    values, variances = noisy(pattern, 4, directions=2)
    values[:, 1] -= pattern
    (season,) = learn_seasons(values, variances, starts, DAY)
    assert isinstance(season, YearlySeason)
    later = blocks(DAY, 1095)[730:]
    found, variance = effect_of([season], later, DAY, 2)
    assert found[:, 0] - found[:, 0].mean() == pytest.approx(pattern[:365], abs=0.06)
    assert (found[:, 1] == 0).all()
    assert variance[0] == pytest.approx(4 * CHANCE / 730, rel=0.5)
    assert variance[1] == 0


def test_seasons_that_are_not_there_are_hardly_invented() -> None:
    generator = np.random.default_rng(5)
    for span, number in ((DAY, 84), (HOUR, 24 * 21), (DAY, 400)):
        starts = blocks(span, number)
        values, variances = noisy(np.zeros(number), int(generator.integers(1000)), directions=40)
        seasons = learn_seasons(values, variances, starts, span)
        effect, _ = effect_of(seasons, starts, span, 40)
        # What is invented is far smaller than chance.
        assert (effect**2).mean() < 0.03 * CHANCE
        assert not any(isinstance(season, YearlySeason) for season in seasons)


def test_a_wandering_level_is_not_a_year() -> None:
    generator = np.random.default_rng(6)
    level = np.stack([wandering(generator, 400, 0.95, 0.3) for _ in range(30)], axis=1)
    values = level + generator.normal(0, CHANCE**0.5, level.shape)
    seasons = learn_seasons(values, np.full(level.shape, CHANCE), blocks(DAY, 400), DAY)
    years = [season for season in seasons if isinstance(season, YearlySeason)]
    invented = (np.abs(years[0].coefficients).max(axis=0) > 0).mean() if years else 0.0
    assert invented <= 0.2


def test_seasons_need_enough_cycles() -> None:
    week = np.array([1.0, 0, 0, 0, 0, 0, 0])
    assert learn_seasons(*noisy(np.tile(week, 2), 7), blocks(DAY, 14), DAY) == []
    assert learn_seasons(*noisy(np.tile(week, 3), 7), blocks(DAY, 21), DAY) != []
    year = np.sin(2 * np.pi * np.arange(200) / 365.2425)
    assert not any(isinstance(season, YearlySeason) for season in learn_seasons(*noisy(year, 7), blocks(DAY, 200), DAY))
    # Weeks have no weekdays.
    assert learn_seasons(*noisy(np.tile([1.0, 0.0], 20), 7), blocks(7 * DAY, 40), 7 * DAY) == []


def cycle_of(name: str, span: timedelta, number: int) -> Array:
    """Values that differ by the part of a season, without any smooth course."""
    season = parse_season(name)
    middles = blocks(span, number) + span.total_seconds() / 2
    steps = min(31, int(season.length / span))
    by_step = np.random.default_rng(11).normal(0, 0.5, steps)
    by_step -= by_step.mean()
    return np.asarray(by_step[np.floor(season.phase(middles) * steps).astype(int)])


@pytest.mark.parametrize(
    ("name", "span", "number"),
    [("28d", DAY, 28 * 6), ("12h", 2 * HOUR, 12 * 28), ("month", DAY, 240), ("60d", DAY, 60 * 12), ("4w", 7 * DAY, 40)],
)
def test_a_declared_cycle_is_learned(name: str, span: timedelta, number: int) -> None:
    season = parse_season(name)
    pattern = cycle_of(name, span, number + 100)
    starts = blocks(span, number + 100)
    values, variances = noisy(pattern[:number], 12, directions=3)
    found = learn_seasons(values, variances, starts[:number], span, [season])
    assert isinstance(found[-1], LearnedCycle)
    effect, variance = effect_of(found, starts[number:], span, 3)
    assert np.sqrt(((effect - pattern[number:, None]) ** 2).mean()) < 0.08
    assert (variance < CHANCE).all()
    # Without the declaration it is not known.
    assert not [one for one in learn_seasons(values, variances, starts[:number], span) if isinstance(one, LearnedCycle)]


def test_a_declared_cycle_averages_over_longer_windows() -> None:
    pattern = cycle_of("28d", DAY, 28 * 6)
    starts = blocks(DAY, 28 * 6)
    found = learn_seasons(*noisy(pattern, 13), starts, DAY, [parse_season("28d")])[-1]
    assert isinstance(found, LearnedCycle)
    daily = found.at(starts[:28], DAY)
    np.testing.assert_allclose(found.at(starts[:28:7], 7 * DAY), daily.reshape(4, 7, 1).mean(axis=1))
    np.testing.assert_allclose(found.at(starts[:3] + 6 * 3600, 12 * HOUR), daily[:3])


def test_a_declared_cycle_needs_three_of_them_and_short_blocks() -> None:
    month, year, week = (parse_season(name) for name in ("month", "1y", "1w"))
    assert [can_learn(month, days, DAY) for days in (40, 92, 93)] == [False, False, True]
    assert [can_learn(year, days, DAY) for days in (60, 292, 293)] == [False, False, True]
    assert [can_learn(week, 100, span) for span in (DAY, 3 * DAY, 4 * DAY)] == [True, True, False]
    values, variances = noisy(cycle_of("month", DAY, 92), 14)
    assert learn_seasons(values, variances, blocks(DAY, 92), DAY, [month]) == []


def test_a_declared_cycle_that_is_not_there_is_hardly_invented() -> None:
    declared = [parse_season(name) for name in ("28d", "month", "1w", "1y")]
    values, variances = noisy(np.zeros(200), 15, directions=40)
    effect, _ = effect_of(learn_seasons(values, variances, blocks(DAY, 200), DAY, declared), blocks(DAY, 200), DAY, 40)
    assert (effect**2).mean() < 0.05 * CHANCE


def test_a_declared_day_or_week_is_the_one_that_is_always_looked_for() -> None:
    week = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 0.7])
    values, variances = noisy(np.tile(week, 20), 16)
    plain, declared = (
        effect_of(learn_seasons(values, variances, blocks(DAY, 140), DAY, names), blocks(DAY, 14), DAY, 1)[0]
        for names in ([], [parse_season("1w")])
    )
    np.testing.assert_array_equal(plain, declared)
    # Blocks of two days have no weekdays, but a declared week is learned from them.
    (found,) = learn_seasons(values[::2], variances[::2], blocks(2 * DAY, 70), 2 * DAY, [parse_season("1w")])
    assert isinstance(found, LearnedCycle)


def test_blocks_without_rows_are_ignored() -> None:
    week = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 0.7])
    values, variances = noisy(np.tile(week, 20), 8)
    starts = blocks(DAY, 140)
    gone = np.random.default_rng(8).random(140) < 0.3
    values[gone], variances[gone] = 1e6, np.inf
    found, _ = effect_of(learn_seasons(values, variances, starts, DAY), starts[:7], DAY, 1)
    assert found[:, 0] - found[0, 0] == pytest.approx(week, abs=0.12)
    # A weekday that never has rows has no effect.
    values, variances = noisy(np.tile(week, 20), 9)
    variances[6::7] = np.inf
    found, _ = effect_of(learn_seasons(values, variances, starts, DAY), starts[:7], DAY, 1)
    assert found[6, 0] == 0


@pytest.mark.parametrize("known", [0, 1, 2, 5])
def test_few_blocks_show_no_season(known: int) -> None:
    values, variances = noisy(np.tile([1.0, 0, 0, 0, 0, 0, 0], 80), 10)
    variances[known:] = np.inf
    seasons = learn_seasons(values, variances, blocks(DAY, 560), DAY)
    effect, variance = effect_of(seasons, blocks(DAY, 560), DAY, 1)
    assert (effect == 0).all()
    assert (variance == 0).all()


def test_constant_values_have_no_season() -> None:
    for number in (21, 400):
        values = np.full((number, 2), 0.5)
        seasons = learn_seasons(values, np.full(values.shape, CHANCE), blocks(DAY, number), DAY)
        effect, _ = effect_of(seasons, blocks(DAY, number), DAY, 2)
        assert effect == pytest.approx(np.zeros((number, 2)), abs=1e-9)
