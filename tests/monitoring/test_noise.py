import numpy as np
import pytest
from scipy import stats

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring import noise_floor, psi
from everloop.monitoring.measures.distances import Array, live_shares, smoothed_shares
from everloop.monitoring.noise import WINDOWS, NoiseFloor, between_block_weight, simulate_windows

SHARES = np.array([0.02, 0.08, 0.1, 0.2, 0.2, 0.2, 0.1, 0.08, 0.02])


def psi_from(reference: Array):  # type: ignore[no-untyped-def]
    shares = smoothed_shares(reference)
    return lambda counts: psi(shares, live_shares(counts, shares))


def test_p_values_are_uniform_when_nothing_changes() -> None:
    generator = np.random.default_rng(0)
    reference = generator.multinomial(200_000, SHARES).astype(float)
    measure = psi_from(reference)
    floor = noise_floor(measure, reference, 300, seed=1)
    distances = measure(generator.multinomial(300, SHARES, size=20_000).astype(float))
    p_values = np.array([floor.p_value(distance) for distance in distances])
    for level in (0.3, 0.1, 0.03, 0.01, 0.003):
        assert (p_values <= level).mean() == pytest.approx(level, rel=0.2, abs=3 * (level / 20_000) ** 0.5)


def test_the_fitted_tail_follows_chi_square_far_out() -> None:
    # The PSI of a large window times its rows is chi-square distributed with cells - 1 degrees of freedom.
    reference = SHARES * 1e9
    floor = noise_floor(psi_from(reference), reference, 100_000, draws=4000, seed=2)
    for probability in (1e-3, 1e-5, 1e-7):
        distance = stats.chi2.isf(probability, len(SHARES) - 1) / 100_000
        assert np.log(floor.p_value(distance)) == pytest.approx(np.log(probability), rel=0.12)


def test_p_values_fall_and_limits_invert_them() -> None:
    reference = SHARES * 1000
    floor = noise_floor(psi_from(reference), reference, 100)
    grid = np.linspace(0, 3, 400)
    p_values = np.array([floor.p_value(distance) for distance in grid])
    assert (np.diff(p_values) <= 1e-12).all()
    assert p_values[0] == 1
    assert p_values[-1] > 0
    for probability in (0.5, 0.1, 0.05, 1e-3, 1e-6):
        assert floor.p_value(floor.limit(probability)) == pytest.approx(probability, rel=0.1)
    assert floor.p_value(float("nan")) == 1
    with pytest.raises(UsageError, match="between 0 and 1"):
        floor.limit(0)


def test_the_same_seed_gives_the_same_floor() -> None:
    reference = SHARES * 1000
    one, again, other = (noise_floor(psi_from(reference), reference, 100, seed=seed) for seed in (7, 7, 8))
    assert (one.pairs == again.pairs).all()
    assert (one.pairs != other.pairs).any()


def test_small_references_and_small_windows_are_noisier() -> None:
    def mean(rows: int, reference_rows: float) -> float:
        reference = SHARES * reference_rows
        return noise_floor(psi_from(reference), reference, rows).mean

    assert mean(100, 1e6) > 3 * mean(1000, 1e6)
    assert mean(1000, 1000) > 1.5 * mean(1000, 1e6)
    assert mean(1000, 1e6) == pytest.approx((len(SHARES) - 1) / 1000, rel=0.1)


def test_windows_with_the_same_reference_noise_agree_more_often() -> None:
    # With a reference as small as the window, its own luck moves all windows the same way.
    reference = SHARES * 500
    measure = psi_from(reference)
    draws = measure(simulate_windows(reference, 500, draws=4000))
    plain = float((draws >= np.quantile(draws, 0.95)).mean())
    floor = NoiseFloor.of(draws)
    assert floor.p_value(float(np.quantile(draws, 0.95))) > 1.3 * plain
    both = (draws[:, 0] >= floor.limit(0.1)) & (draws[:, 1] >= floor.limit(0.1))
    assert both.mean() == pytest.approx(0.01, rel=0.35)


def test_a_constant_reference_has_no_variation_between_blocks() -> None:
    generator = np.random.default_rng(1)
    quiet = 0
    for _ in range(40):
        blocks = generator.multinomial(400, SHARES, size=30).astype(float)
        quiet += between_block_weight(blocks.sum(axis=0), blocks) == 0
    assert quiet >= 36


def test_the_weight_recovers_how_much_blocks_differ() -> None:
    generator = np.random.default_rng(2)
    truths = generator.dirichlet(SHARES * 50, size=60)
    blocks = np.stack([generator.multinomial(500, truth) for truth in truths]).astype(float)
    reference = blocks.sum(axis=0)
    real = ((blocks / 500 - SHARES) ** 2 / SHARES).sum(axis=1).mean()
    windows = simulate_windows(reference, 500, blocks=blocks, draws=3000)
    simulated = ((windows / 500 - SHARES) ** 2 / SHARES).sum(axis=-1).mean()
    assert simulated == pytest.approx(real, rel=0.1)
    assert 0.5 < between_block_weight(reference, blocks) <= 1


def test_neighbouring_windows_keep_the_season() -> None:
    # Slow waves: neighbouring blocks are alike, so windows in a row are far out together.
    angle = np.linspace(0, 4 * np.pi, 60)
    tilt = 1 + 0.5 * np.sin(angle)[:, None] * np.linspace(-1, 1, len(SHARES))
    truths = SHARES * tilt / (SHARES * tilt).sum(axis=1, keepdims=True)
    slow = np.round(truths * 5000)
    fast = slow[np.random.default_rng(0).permutation(60)]
    reference = slow.sum(axis=0)
    measure = psi_from(reference)
    correlations = []
    for blocks in (slow, fast):
        draws = measure(simulate_windows(reference, 5000, blocks=blocks, draws=2000))
        correlations.append(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1])
    assert correlations[0] > 0.7
    assert correlations[1] < 0.3


def test_few_or_tiny_blocks_give_no_weight() -> None:
    blocks = np.stack([SHARES * 100, SHARES[::-1] * 300, SHARES * 20])
    assert between_block_weight(blocks.sum(axis=0), blocks) == 0
    tiny = np.eye(9) * 5
    assert between_block_weight(tiny.sum(axis=0), tiny) == 0


def test_a_constant_feature_has_a_noise_floor_of_zero() -> None:
    reference = np.array([0.0, 0.0, 1e6, 0.0])
    measure = psi_from(reference)
    floor = noise_floor(measure, reference, 100)
    same = float(measure(np.array([0.0, 0.0, 100.0, 0.0])))
    assert floor.p_value(same) > 0.5
    assert floor.p_value(float(measure(np.array([0.0, 0.0, 50.0, 50.0])))) < 0.03


def test_shapes_and_empty_windows() -> None:
    assert simulate_windows(SHARES * 100, 50, draws=11).shape == (11, WINDOWS, 9)
    assert (simulate_windows(SHARES * 100, 50, draws=11).sum(axis=-1) == 50).all()
    with pytest.raises(EmptySampleError):
        noise_floor(psi_from(SHARES), SHARES, 0)
