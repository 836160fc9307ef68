"""The Kalman filter against the multivariate normal distribution, and what the posterior learns."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from tests.monitoring.noise.simulated_counts import Array, wandering

from everloop.monitoring.noise.level_process import (
    CORRELATIONS,
    RATIOS,
    LevelProcess,
    _filter,
    assume_levels,
    learn_levels,
    log_evidence,
    variance_of_mean,
)


def covariance(times: Array, level: float, rho: float, variances: Array) -> Array:
    return np.asarray(level * rho ** np.abs(times[:, None] - times) + np.diag(variances))


def restricted(values: Array, matrix: Array) -> tuple[float, float, float]:
    """Log-likelihood with a flat prior on the mean, its estimate, and its variance: by the textbook's formulae."""
    ones = np.ones(len(values))
    inverse = np.linalg.inv(matrix)
    information = ones @ inverse @ ones
    mean = ones @ inverse @ values / information
    fitted = stats.multivariate_normal(np.full(len(values), mean), matrix).logpdf(values)
    return fitted + 0.5 * len(values) * np.log(2 * np.pi) - 0.5 * np.log(information), mean, 1 / information


@pytest.mark.parametrize("missing", [[], [0], [3, 4], [0, 1, 2, 5, 11]])
def test_the_filter_equals_the_multivariate_normal_distribution(missing: list[int]) -> None:
    generator = np.random.default_rng(len(missing))
    values, variances = generator.normal(2.0, 1.0, (12, 3)), generator.uniform(0.05, 0.5, (12, 3))
    variances[missing] = np.inf
    values[missing] = 99.0
    level = np.mean(variances[~np.isin(np.arange(12), missing)], axis=0)[:, None] * RATIOS
    found = _filter(values, variances, level)
    known = np.setdiff1d(np.arange(12), missing)
    for direction in range(3):
        for pair in range(0, len(RATIOS), 7):
            matrix = covariance(
                known.astype(float), level[direction, pair], CORRELATIONS[pair], variances[known, direction]
            )
            expected = restricted(values[known, direction], matrix)
            assert [part[direction, pair] for part in found] == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_the_evidence_averages_over_the_prior() -> None:
    generator = np.random.default_rng(3)
    values, variances = generator.normal(size=(10, 1)), np.full((10, 1), 1.0)
    each = _filter(values, variances, RATIOS[None, :])[0][0]
    prior = np.where(RATIOS == 0, 0.25, 0.75 / (len(RATIOS) - 1))
    assert log_evidence(values, variances)[0] == pytest.approx(np.log(np.exp(each) @ prior))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.lists(st.floats(0, 0.99), min_size=1, max_size=4))
def test_the_variance_of_a_mean_is_the_sum_over_the_covariance_matrix(blocks: int, correlations: list[float]) -> None:
    lags = np.abs(np.subtract.outer(np.arange(blocks), np.arange(blocks)))
    direct = [(rho**lags).sum() / blocks**2 for rho in correlations]
    assert variance_of_mean(blocks, np.array(correlations)) == pytest.approx(direct)


def test_less_than_a_block_has_the_variance_of_a_block() -> None:
    assert variance_of_mean(0.04, np.array([0.0, 0.9])).tolist() == [1, 1]


def learned(level: Array, chance: float, generator: np.random.Generator) -> LevelProcess:
    values = level + generator.normal(size=level.shape) * np.sqrt(chance)
    return learn_levels(values, np.full(level.shape, chance), np.zeros(level.shape[1]), np.ones(level.shape[1]))


@pytest.mark.parametrize(
    ("rho", "deviation", "factor"), [(0.0, 0.1, 1.1), (0.5, 0.1, 1.1), (0.8, 0.2, 1.25), (0.95, 0.2, 1.7)]
)
def test_the_posterior_finds_the_true_process(rho: float, deviation: float, factor: float) -> None:
    generator = np.random.default_rng(8)
    level = np.stack([wandering(generator, 200, rho, deviation) for _ in range(12)], axis=1)
    found = learned(level, 0.001, generator)
    assert found.correlation().mean() == pytest.approx(rho, abs=0.12)
    # Close to 1, a larger level with a larger correlation has the same steps, and the grid has few such pairs.
    expected = np.sqrt((found.weights * found.level_variances).sum(axis=1).mean())
    assert deviation / factor < expected < deviation * factor
    assert found.steady.max() < 0.01


@pytest.mark.parametrize("chance", [1e-3, 2e-4, 1e-5, 1e-8])
def test_the_level_is_found_in_blocks_of_any_size(chance: float) -> None:
    generator = np.random.default_rng(12)
    level = np.stack([wandering(generator, 60, 0.8, 0.25) for _ in range(30)], axis=1)
    found = learned(level, chance, generator)
    expected = np.sqrt((found.weights * found.level_variances).sum(axis=1).mean())
    assert 0.25 / 1.5 < expected < 0.25 * 1.5


def test_constant_levels_are_steady_and_their_mean_is_known_by_chance_alone() -> None:
    generator = np.random.default_rng(9)
    found = learned(np.full((100, 20), 0.3), 0.01, generator)
    assert found.steady.mean() > 0.4
    assert found.mean == pytest.approx(np.full(20, 0.3), abs=4 * 0.01)
    assert np.median(found.mean_spread) == pytest.approx(0.01 / 100, rel=0.2)
    # What is left to expect of the level is small beside chance.
    assert np.median(found.variance(1)) < 0.2 * 0.01


def test_a_short_reference_expects_more_than_it_has_seen() -> None:
    generator = np.random.default_rng(10)
    level = np.stack([wandering(generator, 400, 0.95, 0.2) for _ in range(20)], axis=1)
    short, long = (learned(part, 0.001, generator) for part in (level[:15], level))
    own = level[:15].var(axis=0).mean()
    assert np.mean(short.variance(1)) > 1.5 * own
    assert np.mean(short.mean_spread) > np.mean(long.mean_spread)


def test_directions_without_two_known_blocks_are_guessed() -> None:
    values, variances = np.zeros((5, 3)), np.full((5, 3), 0.1)
    variances[1:, 0] = variances[:, 1] = np.inf
    found = learn_levels(values, variances, np.zeros(3), np.array([0.5, 0.25, 1.0]))
    assert found.variance(1)[:2] == pytest.approx([0.5, 0.25])
    assert found.mean[:2].tolist() == [0, 0]
    assert found.steady[:2].tolist() == [0, 0]
    for number in (found.weights, found.level_variances, found.mean, found.mean_variances, found.mean_spread):
        assert np.isfinite(number).all()


def test_assumed_levels_wander_as_guessed() -> None:
    found = assume_levels(np.array([0.04, 0.0]), np.array([0.01, 0.0]))
    assert found.variance(1) == pytest.approx([0.05, 0.0])
    assert found.variance(7)[0] == pytest.approx(0.04 * variance_of_mean(7, np.array([0.8]))[0] + 0.01)
    assert found.correlation().tolist() == [pytest.approx(0.8), 0.0]


def test_the_size_of_the_numbers_does_not_matter() -> None:
    generator = np.random.default_rng(11)
    values = wandering(generator, 50, 0.8, 1.0)[:, None] + generator.normal(size=(50, 1))
    variances, groups, guess = np.ones((50, 1)), np.zeros(1), np.ones(1)
    plain = learn_levels(values, variances, groups, guess)
    for scale in (1e-6, 1e6):
        scaled = learn_levels(values * scale, variances * scale**2, groups, guess)
        assert scaled.weights == pytest.approx(plain.weights)
        assert scaled.variance(3) == pytest.approx(plain.variance(3) * scale**2)
