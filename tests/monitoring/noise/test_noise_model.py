"""The noise model: surprise, means over several windows, and what is learned from awkward references."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from tests.monitoring.noise.simulated_counts import (
    DAY,
    MONTH,
    Array,
    category_counts,
    incidents_a_month,
    normal_counts,
    simulate,
    sketch_of,
    wandering,
)

from everloop.monitoring.noise.incident_rate import find_limit
from everloop.monitoring.noise.noise_model import SCALES, NoiseModel, ReferenceCounts, _rolling, as_normal


@pytest.fixture(scope="module")
def model() -> NoiseModel:
    return simulate(1, live_days=1).learn()


def test_surprise_is_the_logarithm_of_the_p_value(model: NoiseModel) -> None:
    plain = replace(model, handicap=np.zeros(len(model.names)))
    upward = model.one_sided | model.rising
    for size in (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 40.0):
        for sign in (1, -1):
            found = plain.surprise(np.full((1, len(model.names)), sign * size), normal=True)[0]
            two_sided = -(stats.norm.logsf(size) + np.log(2))
            one_sided = -stats.norm.logsf(size if sign > 0 else 0.0)
            assert found[~upward] == pytest.approx(np.full((~upward).sum(), two_sided), abs=0.25)
            assert found[upward] == pytest.approx(np.full(upward.sum(), one_sided), abs=0.25)


def test_surprise_has_the_tails_of_the_reference(model: NoiseModel) -> None:
    count = len(model.names)
    tails = np.linspace(5, 30, count)
    heavy = replace(model, handicap=np.zeros(count), tails=tails)
    for size in (1.0, 3.0, 5.0, 10.0):
        # A t-distribution of variance 1.
        sides = np.where(heavy.one_sided | heavy.rising, 0.0, np.log(2))
        p_value = stats.t.logsf(size * np.sqrt(tails / (tails - 2)), tails) + sides
        found = heavy.surprise(np.full((1, count), size))[0]
        assert found == pytest.approx(-p_value, abs=0.3, rel=0.03)
        assert (found <= heavy.surprise(np.full((1, count), size), normal=True)[0] + 0.3).all()


@pytest.mark.parametrize("freedom", [5.0, 8.0, 15.0, 50.0, 200.0])
def test_a_deviation_of_heavy_tails_is_brought_to_the_normal_one_that_is_as_rare(freedom: float) -> None:
    size = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0])
    rare = stats.t.logsf(size * np.sqrt(freedom / (freedom - 2)), freedom)
    normal = as_normal(size, np.full(len(size), freedom))
    assert stats.norm.logsf(normal) == pytest.approx(rare, rel=0.03)
    assert (np.diff(normal) > 0).all()
    assert as_normal(np.zeros(1), np.array([freedom])).tolist() == [0.0]


def test_tails_are_those_of_the_reference() -> None:
    generator = np.random.default_rng(12)

    def tails_of(levels: Array) -> float:
        learned = learn({"x": normal_counts(generator, 5000, levels)}, rows=4096)
        return float(learned.tails[learned.names.index(("x", "location"))])

    heavy = stats.t.rvs(5, size=365, random_state=generator) * np.sqrt(3 / 5) * 0.2
    assert tails_of(heavy) < 15
    assert tails_of(0.2 * generator.standard_normal(365)) > 30
    # A few blocks cannot tell.
    assert tails_of(heavy[:10]) == 200
    # One wild day out of sixty is a tail.
    wild = 0.05 * generator.standard_normal(60)
    wild[30] = 1.0
    assert tails_of(wild) < 15


def test_z_scores_are_standard_normal_where_nothing_happens() -> None:
    simulation = simulate(2, days=120, live_days=2000)
    learned = simulation.learn()
    values, variances = learned.deviations(simulation.live, simulation.starts)
    for scale in SCALES:
        z = learned.z_scores(values, variances, scale)[scale - 1 :]
        rare = np.array([direction in ("missing", "outside", "new") for _, direction in learned.names])
        assert np.abs(z[:, ~rare].mean(axis=0)).max() < 0.6
        assert 0.7 < z[:, ~rare].var(axis=0).mean() < 1.05


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.sampled_from(SCALES), st.integers(0, 2**32 - 1))
def test_means_of_windows_are_weighted_by_their_precision(windows: int, scale: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, variances = generator.normal(size=(windows, 2)), generator.uniform(0.1, 10, (windows, 2))
    variances[generator.random((windows, 2)) < 0.3] = np.inf
    mean, chance = _rolling(values, variances, scale)
    for index in range(windows):
        for direction in range(2):
            known = slice(index - scale + 1, index + 1)
            weights = 1 / variances[known, direction] if index >= scale - 1 else np.zeros(1)
            if weights.sum() == 0:
                assert np.isinf(chance[index, direction])
                continue
            assert chance[index, direction] == pytest.approx(1 / weights.sum())
            assert mean[index, direction] == pytest.approx((weights * values[known, direction]).sum() / weights.sum())


def test_a_window_does_not_depend_on_later_ones() -> None:
    simulation = simulate(3, live_days=30)
    learned = simulation.learn()
    whole, _ = learned.strongest(*learned.deviations(simulation.live, simulation.starts))
    first = {name: counts[:11].copy() for name, counts in simulation.live.items()}
    part, _ = learned.strongest(*learned.deviations(first, simulation.starts[:11]))
    assert whole[:11] == pytest.approx(part, rel=1e-6, abs=1e-6)
    # Not even on one of a hundred million rows.
    for counts in simulation.live.values():
        counts[20] *= 1e5
    changed, _ = learned.strongest(*learned.deviations(simulation.live, simulation.starts))
    assert changed[:11] == pytest.approx(part, rel=1e-6, abs=1e-6)


def learn(blocks: dict[str, Array], *, rows: float = 100, span: timedelta = DAY, window: timedelta = DAY) -> NoiseModel:
    number = len(next(iter(blocks.values())))
    starts = np.arange(number) * span.total_seconds()
    sketches = {name: sketch_of(counts) for name, counts in blocks.items()}
    return NoiseModel.learn(ReferenceCounts(sketches, blocks, starts, span), window, rows)


def zeros(*counts: int) -> Array:
    return np.array([counts], dtype=float)


CONSTANT = zeros(0, 0, 100, 0)
MISSING = zeros(100, *[0] * 22)


@pytest.mark.parametrize(
    "blocks",
    [
        {"x": np.repeat(CONSTANT, 30, axis=0)},
        {"x": np.repeat(MISSING, 30, axis=0)},
        {"x": CONSTANT},
        {"x": zeros(0, 100, 0, 0, 0, 0)},
        {"x": np.zeros((30, 23))},
        {"x": np.zeros((1, 23))},
        {"x": normal_counts(np.random.default_rng(1), 100, np.zeros(2))},
        {"x": normal_counts(np.random.default_rng(1), 1, np.zeros(30))},
        {"x": normal_counts(np.random.default_rng(1), 10**8, np.zeros(30))},
        {"x": np.concatenate([np.zeros((29, 23)), normal_counts(np.random.default_rng(1), 500, np.zeros(1))])},
        {
            "x": np.repeat(CONSTANT, 30, axis=0),
            "y": category_counts(np.random.default_rng(1), 100, np.zeros(30)),
            "z": normal_counts(np.random.default_rng(1), 100, np.zeros(30), missing=0.99),
        },
    ],
    ids=[
        "constant",
        "all missing",
        "one block",
        "one category",
        "no rows",
        "one block without rows",
        "two blocks",
        "one row a block",
        "huge blocks",
        "one block with rows",
        "mixed",
    ],
)
def test_awkward_references_give_a_model_and_a_limit(blocks: dict[str, Array]) -> None:
    for rows in (1.0, 1024.0, 4.0**13):
        learned = learn(blocks, rows=rows)
        limit = find_limit(learned, 1 / MONTH)
        assert np.isfinite(limit)
        assert limit > 0
        for number in (learned.residuals, learned.chance, learned.levels.mean, learned.handicap):
            assert np.isfinite(number).all()
        # Windows of no, one and a hundred million rows, in every cell.
        some = {
            name: np.concatenate([np.eye(counts.shape[1]) * size for size in (0, 1, 1e8)])[-30:]
            for name, counts in blocks.items()
        }
        windows = min(len(counts) for counts in some.values())
        some = {name: counts[:windows] for name, counts in some.items()}
        values, variances = learned.deviations(some, np.arange(windows) * 86_400.0)
        strongest, alone = learned.strongest(values, variances)
        assert np.isfinite(strongest).all()
        assert (strongest >= alone).all()


def test_a_constant_feature_is_quiet_until_it_changes() -> None:
    learned = learn({"x": np.repeat(CONSTANT, 30, axis=0)})
    limit = find_limit(learned, 1 / MONTH)
    windows = np.concatenate([np.repeat(CONSTANT, 5, axis=0), zeros(0, 100, 0, 0)])
    strongest, _ = learned.strongest(*learned.deviations({"x": windows}, np.arange(6) * 86_400.0))
    assert (strongest.max(axis=1) > limit).tolist() == [False] * 5 + [True]


def test_a_reference_without_features_or_times_has_a_limit() -> None:
    empty = NoiseModel.learn(ReferenceCounts({}, {}, np.arange(30) * 86_400.0, DAY), DAY, 100)
    assert empty.names == []
    assert find_limit(empty, 1 / MONTH) == pytest.approx(np.log(MONTH))
    values, variances = empty.deviations({}, np.arange(3) * 86_400.0)
    assert empty.strongest(values, variances)[0].shape == (3, 0)
    untimed = simulate(4, times=False, live_days=50)
    assert incidents_a_month([untimed], 1.0) <= 2


def test_an_absent_subject_deviates_in_nothing(model: NoiseModel) -> None:
    values, variances = model.deviations({}, np.zeros(1))
    assert np.isinf(variances).all()
    assert (model.z_scores(values, variances) == 0).all()


def weekly(days: int, rows: int) -> Array:
    level = np.where(np.arange(days) % 7 >= 5, 0.6, 0.0)
    return normal_counts(np.random.default_rng(5), rows, level)


def test_known_seasons_are_not_surprising() -> None:
    counts = weekly(98 + 28, 2000)
    learned = learn({"x": counts[:98]}, rows=1024)
    starts = np.arange(98, 126) * 86_400.0
    z = learned.z_scores(*learned.deviations({"x": counts[98:]}, starts))
    assert np.abs(z).max() < 4
    # The same days judged as other weekdays are.
    late = learned.z_scores(*learned.deviations({"x": counts[98:]}, starts + 86_400 * 3))
    assert np.abs(late).max() > 6


def test_windows_shorter_than_a_block_have_the_season_of_their_day() -> None:
    counts = weekly(98, 2000)
    learned = learn({"x": counts}, rows=256, window=timedelta(hours=6))
    generator = np.random.default_rng(6)
    starts = 98 * 86_400.0 + np.arange(28) * 6 * 3600.0
    level = np.where(np.arange(28) // 4 % 7 >= 5, 0.6, 0.0)
    z = learned.z_scores(*learned.deviations({"x": normal_counts(generator, 500, level)}, starts))
    assert np.abs(z).max() < 4.5


def test_hours_are_merged_into_days_as_days_are_cut() -> None:
    # The reference begins at six in the evening, and values change at midnight.
    hours = 24 * 30
    day = (np.arange(hours) + 18) // 24
    generator = np.random.default_rng(7)
    level = generator.normal(0, 0.3, day.max() + 1)[day]
    counts = normal_counts(generator, 100, level)
    starts = (np.arange(hours) + 18) * 3600.0
    reference = ReferenceCounts({"x": sketch_of(counts)}, {"x": counts}, starts, timedelta(hours=1))
    learned = NoiseModel.learn(reference, DAY, 2400)
    assert len(learned.residuals) == 29
    location = learned.names.index(("x", "location"))
    assert np.sqrt(learned.levels.variance(1)[location]) == pytest.approx(0.3, rel=0.35)


def test_a_wandering_reference_tolerates_what_a_steady_one_does_not() -> None:
    generator = np.random.default_rng(8)
    restless, steady = (
        learn({"x": normal_counts(generator, 1000, wandering(generator, 60, 0.8, deviation))}, rows=1024)
        for deviation in (0.25, 0.0)
    )
    shifted = {"x": normal_counts(generator, 1000, np.full(1, 0.3))}
    z = [
        np.abs(learned.z_scores(*learned.deviations(shifted, np.array([60 * 86_400.0])))).max()
        for learned in (restless, steady)
    ]
    assert z[0] < 3.5
    assert z[1] > 6


def test_the_score_and_pairs_have_fixed_shares_of_the_budget() -> None:
    simulation = simulate(9, live_days=1)
    names = list(simulation.reference.sketches)
    learned = replace(simulation.reference, score=names[0])
    handicap = NoiseModel.learn(learned, DAY, 1000).handicap
    of_score = np.array([name == names[0] for name, _ in NoiseModel.learn(learned, DAY, 1000).names])
    # Two families with shares 0.15 and 0.85: Σ exp(−handicap) is in this proportion.
    weights = np.exp(-handicap)
    assert weights[of_score].sum() / weights.sum() == pytest.approx(0.15)
    assert simulation.learn().handicap.tolist() == [0.0] * len(simulation.learn().names)


def test_correlated_features_share_their_residuals() -> None:
    generator = np.random.default_rng(10)
    counts = normal_counts(generator, 500, wandering(generator, 60, 0.5, 0.2))
    twins = learn({"x": counts, "y": counts.copy()}, rows=512)
    half = len(twins.names) // 2
    assert twins.residuals[:, :half] == pytest.approx(twins.residuals[:, half:])


def test_learning_is_deterministic() -> None:
    one, again = (simulate(11, live_days=1).learn() for _ in range(2))
    assert (one.residuals == again.residuals).all()
    assert find_limit(one, 1 / MONTH) == find_limit(again, 1 / MONTH)


# --- what is over ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.3, 1.0, -2.0])
@pytest.mark.parametrize("lasts", [1, 2, 10])
def test_a_change_that_is_over_is_forgotten_by_the_third_window(model: NoiseModel, size: float, lasts: int) -> None:
    index = model.names.index(("f0", "location"))
    values = np.zeros((30, len(model.names)))
    values[10 : 10 + lasts, index] = size
    variances = np.tile(model.chance, (30, 1))
    strongest, alone = (found[:, index] for found in model.strongest(values, variances))
    assert (strongest[10 : 10 + lasts] > 8).all()
    assert (alone[10 + lasts :] < 1).all()
    # Means of seven windows would deviate until the seventh.
    assert (strongest[12 + lasts :] < 1).all()


def test_a_small_change_that_lasts_is_not_forgotten(model: NoiseModel) -> None:
    index = model.names.index(("f0", "location"))
    generator = np.random.default_rng(5)
    streams = 400
    chance = np.sqrt(model.chance[index] + model.levels.variance(1)[index])
    kept = 0
    for _ in range(streams):
        values = np.zeros((20, len(model.names)))
        values[:, index] = chance * generator.normal(1.7, 1.0, 20)
        strongest, alone = model.strongest(values, np.tile(model.chance, (20, 1)))
        whole = model.surprise(model.z_scores(values, np.tile(model.chance, (20, 1)), 7))
        shown = whole[6:, index] > np.maximum(alone[6:, index], 4.6)
        kept += float((strongest[6:, index] >= whole[6:, index])[shown].mean() > 0.7) if shown.any() else 1.0
    assert kept > 0.9 * streams
