"""Declared seasons: a smooth course is followed, a step is not, and a whole season later the course is known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tests.monitoring.noise.simulated_counts import DAY, Array, wandering

from everloop.errors import UsageError
from everloop.monitoring.noise.declared_seasons import LAG, YEAR, SeasonCourse, parse_season, parse_seasons
from everloop.monitoring.noise.level_process import LevelProcess, learn_levels, learn_levels_and_course
from everloop.monitoring.noise.reference_seasons import seconds_of

CHANCE = 1e-3
"""Variance by chance of a day: about that of a mean of 1,000 rows."""
REFERENCE = 60


def days(number: int, start: datetime = datetime(2024, 1, 1, tzinfo=UTC)) -> Array:
    return seconds_of(start) + 86_400.0 * np.arange(number)


def yearly(number: int, directions: int, amplitude: float, seed: int) -> Array:
    """The course of a year, with a phase for each direction, and chance."""
    generator = np.random.default_rng(seed)
    phase = generator.uniform(size=directions)
    course = amplitude * np.sin(2 * np.pi * (np.arange(number)[:, None] / 365.2425 + phase))
    return course + generator.normal(0, CHANCE**0.5, (number, directions))


def learned(values: Array, names: tuple[str, ...] = ("1y",)) -> tuple[SeasonCourse, LevelProcess]:
    """The courses that the first days show."""
    m = values.shape[1]
    zero = np.zeros(m)
    course = SeasonCourse.unseen(parse_seasons(names, DAY), DAY, np.zeros(m, dtype=bool))
    variances = np.full(values.shape, CHANCE)
    course, levels = course.learned(values, variances, days(len(values)), DAY, zero, zero)
    return course.with_levels(levels, 1.0), levels


def expected(course: SeasonCourse, values: Array) -> tuple[Array, Array]:
    """The course of the days after the reference."""
    starts = days(REFERENCE + len(values))[REFERENCE:]
    return course.expect(values, np.full(values.shape, CHANCE), starts)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("12h", timedelta(hours=12)),
        ("28d", 28 * DAY),
        (" 1W ", 7 * DAY),
        ("1y", YEAR),
        ("month", timedelta(days=31)),
    ],
)
def test_a_season_is_a_length_or_a_name(text: str, length: timedelta) -> None:
    assert parse_season(text).length == length


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["summer"], "'summer' is not a season"),
        (["2y"], "'2y' is not a season"),
        (["0d"], "'0d' has no length"),
        ([28], "A season is 28, but must be a string"),
        ("1y", "The seasons are '1y', but must be a list"),
        (None, "The seasons are None, but must be a list"),
        (["1d"], "'1d' is not longer than a window, which lasts 1d"),
        (["1y", "1y"], "'1y' is declared twice"),
        (["1w", "7d"], "'7d' is declared twice"),
    ],
)
def test_what_is_not_a_season_is_named_with_a_way_out(texts: object, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_seasons(texts, DAY)
    assert problem in caught.value.message
    assert caught.value.help


def test_the_month_is_that_of_the_calendar() -> None:
    month = parse_season("month")
    moments = [datetime(2024, 2, 1), datetime(2024, 2, 29), datetime(2024, 3, 1), datetime(2024, 3, 31, 12)]
    phases = month.phase(np.array([seconds_of(moment.replace(tzinfo=UTC)) for moment in moments]))
    assert phases * 31 == pytest.approx([0, 28, 0, 30.5])
    assert parse_season("1w").phase(days(8)) * 7 == pytest.approx([0, 1, 2, 3, 4, 5, 6, 0])


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_a_course_of_the_year_is_followed_and_its_uncertainty_is_honest(rho: float) -> None:
    values = yearly(660, 30, 0.5, 1)
    if rho:
        generator = np.random.default_rng(2)
        values += np.stack([wandering(generator, 660, rho, 0.25) for _ in range(30)], axis=1)
    course, levels = learned(values[:REFERENCE])
    live = values[REFERENCE:]
    followed, unsure = expected(course, live)
    z = (live - followed) / np.sqrt(CHANCE + levels.variance(1) + unsure)
    assert 0.8 < z.std() < 1.3
    # Without the course, the deviations are those of a whole year.
    assert (live - values[:REFERENCE].mean(axis=0)).std() > 1.5 * (live - followed).std()


def test_a_step_stands_out_for_as_long_as_windows_are_judged_together() -> None:
    values = yearly(700, 20, 0.5, 3)
    values[150:] += 0.5
    course, _ = learned(values[:REFERENCE])
    live = values[REFERENCE:]
    followed, unsure = expected(course, live)
    z = (live - followed) / np.sqrt(CHANCE + unsure)
    first = 150 - REFERENCE
    assert (np.abs(z[first - LAG : first]) < 5).all()
    assert (z[first : first + LAG] > 5).all()
    # The step does not become part of the course, however long it lasts.
    assert (np.median(z[first:], axis=1) > 4).all()
    assert live[300:] - followed[300:] == pytest.approx(np.full((340, 20), 0.5), abs=0.2)


def test_after_a_second_step_the_deviation_is_their_sum() -> None:
    values = yearly(400, 10, 0.5, 12)
    values[150:] += 0.5
    values[250:] -= 0.5
    course, _ = learned(values[:REFERENCE])
    live = values[REFERENCE:]
    left = live - expected(course, live)[0]
    assert left[150:190].mean(axis=0) == pytest.approx(np.full(10, 0.5), abs=0.2)
    assert left[-50:].mean(axis=0) == pytest.approx(np.zeros(10), abs=0.2)


def test_a_phase_that_deviates_in_each_cycle_is_learned() -> None:
    """One weekday is beyond what three other days let expect. It must not be an incident in every week."""
    generator = np.random.default_rng(14)
    week = np.array([0.0, 0.0, 0.0, 0.0, 1.2, 0.0, 0.0])
    values = np.tile(week, 20)[:, None] + generator.normal(0, CHANCE**0.5, (140, 5))
    course = SeasonCourse.unseen(parse_seasons(["1w"], DAY), DAY, np.zeros(5, dtype=bool))
    zero = np.zeros(5)
    course, levels = course.learned(values[:3], np.full((3, 5), CHANCE), days(140)[:3], DAY, zero, zero)
    course = course.with_levels(levels, 1.0)
    followed, unsure = course.expect(values[3:], np.full((137, 5), CHANCE), days(140)[3:])
    left = values[3:] - followed
    assert np.abs(left[1]).min() > 0.5
    assert np.abs(left[28:]).max() < 0.25
    assert (np.abs(left[28:]) < 5 * np.sqrt(CHANCE + unsure[28:])).all()


def test_single_odd_windows_hardly_teach() -> None:
    values = yearly(300, 10, 0.5, 13)
    odd = values.copy()
    odd[70:300:9] += 3.0
    course, _ = learned(values[:REFERENCE])
    plain, beside = expected(course, values[REFERENCE:])[0], expected(course, odd[REFERENCE:])[0]
    assert np.abs(plain - beside).max() < 0.1


@pytest.mark.slow
def test_a_whole_season_later_the_same_phase_is_known() -> None:
    values = yearly(REFERENCE + 800, 10, 0.5, 4)
    course, _ = learned(values[:REFERENCE])
    _, unsure = expected(course, values[REFERENCE:])
    assert (unsure[500:] < 0.1 * unsure[100]).all()
    # Half a season without windows: the course of the first season is known also where nothing is recent.
    variances = np.full((800, 10), CHANCE)
    variances[450:620] = np.inf
    _, after_gap = course.expect(values[REFERENCE:], variances, days(REFERENCE + 800)[REFERENCE:])
    assert (after_gap[620] < 0.1 * unsure[100]).all()
    variances[50:620] = np.inf
    _, unseen = course.expect(values[REFERENCE:], variances, days(REFERENCE + 800)[REFERENCE:])
    assert (unseen[620] > 10 * after_gap[620]).all()


def test_the_course_depends_on_earlier_windows_only() -> None:
    values = yearly(260, 5, 0.5, 5)
    course, _ = learned(values[:REFERENCE])
    live = values[REFERENCE:]
    whole, part = expected(course, live)[0], expected(course, live[:90])[0]
    np.testing.assert_allclose(whole[:90], part, rtol=1e-9)
    changed = live.copy()
    changed[100 - LAG + 1 :] += 1.0
    np.testing.assert_allclose(expected(course, changed)[0][:101], whole[:101], rtol=1e-9)


def test_a_reference_without_times_is_the_mean_of_a_season() -> None:
    course = SeasonCourse.unseen(parse_seasons(["1y"], DAY), DAY, np.array([False, True]))
    followed, unsure = course.expect(np.zeros((1, 2)), np.full((1, 2), CHANCE), days(1))
    assert followed.tolist() == [[0.0, 0.0]]
    # The standard deviations of the harmonics are 1/2, 1/4 and 1/6; those of the rest 2, 1 and 2/3.
    scale = (1 + 1 / 4 + 1 / 9) ** 0.5
    assert np.sqrt(unsure) == pytest.approx(np.array([[0.5 * scale, 2 * scale]]), rel=1e-4)
    seen = np.full((100, 2), 0.7)
    followed, _ = course.expect(seen, np.full((100, 2), CHANCE), days(100))
    assert followed[-1] == pytest.approx([0.7, 0.7], abs=0.1)


def test_an_accepted_centre_forgets_what_was_before_it() -> None:
    values = yearly(160, 2, 0.5, 6)
    course, _ = learned(values[:REFERENCE])
    until = days(160)[100]
    moved = course.recentred(np.array([True, False]), until - 3 * 86_400, until, np.full(2, 1e-4))
    live = values[REFERENCE:].copy()
    # From the accepted windows on, the first direction is measured from where it was then.
    live[:, 0] = np.where(np.arange(100) < 40, 9.0, 0.0)
    followed, unsure = expected(moved, live)
    assert followed[41, 0] == pytest.approx(0.0, abs=0.05)
    assert unsure[41, 0] < 0.01
    np.testing.assert_allclose(followed[:, 1], expected(course, values[REFERENCE:])[0][:, 1])


def test_a_constant_course_is_the_mean_of_the_levels() -> None:
    generator = np.random.default_rng(7)
    values = np.stack([wandering(generator, 80, rho, 0.2) + 0.3 for rho in (0.0, 0.5, 0.9)], axis=1)
    variances = np.full(values.shape, CHANCE)
    variances[5] = np.inf
    groups, guess = np.zeros(3), np.full(3, 0.01)
    plain = learn_levels(values, variances, groups, guess)
    around, precision, product = learn_levels_and_course(
        values, variances, groups, guess, np.ones((80, 1)), np.full((3, 1), 1e-9)
    )
    assert around.weights == pytest.approx(plain.weights, rel=1e-4, abs=1e-9)
    assert (product / precision[:, :, 0])[:, 0] == pytest.approx(plain.mean, abs=0.02)


def test_levels_around_a_course_are_not_hidden_by_it() -> None:
    """A course that follows the levels of sixty days must not make them look smaller."""
    generator = np.random.default_rng(8)
    values = np.stack([wandering(generator, REFERENCE, 0.8, 0.25) for _ in range(60)], axis=1)
    values += yearly(REFERENCE, 60, 0.5, 9)
    course, levels = learned(values)
    deviation = np.sqrt(levels.variance(1).mean())
    assert 0.2 < deviation < 0.35
    # The levels of what is left when the course has been subtracted are smaller than the true ones.
    left = values - course.at(days(REFERENCE), DAY)[0]
    zero = np.zeros(60)
    hidden = learn_levels(left, np.full(left.shape, CHANCE), zero, zero)
    assert np.sqrt(hidden.variance(1).mean()) < deviation


def test_memory_is_two_seasons_within_limits() -> None:
    def memory(name: str, window: timedelta) -> int:
        return SeasonCourse.unseen(parse_seasons([name], window), window, np.zeros(1, dtype=bool)).memory

    assert memory("1y", DAY) == 731
    assert memory("1y", 7 * DAY) == 105
    assert memory("1w", DAY) == 60
    assert memory("1y", timedelta(hours=1)) == 800


def test_two_seasons_are_learned_together() -> None:
    values = yearly(300, 5, 0.5, 10)
    month = np.array([moment.day for moment in (datetime(2024, 1, 1) + index * DAY for index in range(300))])
    values += 0.3 * np.sin(2 * np.pi * month / 31)[:, None]
    course, levels = learned(values[:REFERENCE], ("1y", "month"))
    live = values[REFERENCE:]
    followed, unsure = expected(course, live)
    z = (live - followed) / np.sqrt(CHANCE + levels.variance(1) + unsure)
    assert np.abs(z[60:]).max() < 6
    only, _ = learned(values[:REFERENCE])
    assert (live - expected(only, live)[0])[60:].std() > 2 * (live - followed)[60:].std()
