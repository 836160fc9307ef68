"""Tests of a window against earlier ones: tail probabilities equal SciPy's, and variation is tolerated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import special, stats

from everloop.errors import UsageError
from everloop.monitoring.measures.window_tests import (
    beta_cdf,
    binomial_tail,
    level_shift,
    share_increase,
    student_tail,
)

SHAPES = st.floats(0.1, 1e5)
COUNTS = st.tuples(st.integers(0, 500), st.integers(0, 500)).map(lambda pair: (min(pair), max(pair)))


@given(SHAPES, SHAPES, st.floats(0.001, 0.999))
def test_the_beta_distribution_is_scipys(a, b, share):
    # Where the probability is neither 0 nor 1: near the mean.
    x = min(0.999999, max(1e-6, (a / (a + b)) * (0.5 + share)))
    assert beta_cdf(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-7, abs=1e-13)


@given(st.floats(-50, 50), st.floats(1, 1e4))
def test_the_t_distribution_is_scipys(t, freedom):
    assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-7, abs=1e-13)


@given(COUNTS, st.floats(0.001, 0.999))
def test_the_binomial_tail_is_scipys(counts, share):
    count, rows = counts
    assert binomial_tail(count, rows, share) == pytest.approx(
        stats.binom.sf(count - 1, rows, share), rel=1e-7, abs=1e-13
    )


@pytest.mark.parametrize(("a", "b", "x", "expected"), [(0, 1, 0.5, 1), (1, 0, 0.5, 0), (2, 3, 0, 0), (2, 3, 1, 1)])
def test_the_edges_of_the_beta_distribution(a, b, x, expected):
    assert beta_cdf(a, b, x) == expected


@pytest.mark.parametrize(("a", "b", "x"), [(-1, 1, 0.5), (1, 1, 1.5), (1, 1, math.nan)])
def test_something_else_has_no_beta_distribution(a, b, x):
    with pytest.raises(UsageError, match="beta distribution"):
        beta_cdf(a, b, x)


# --- shares ------------------------------------------------------------------------------------------------


def test_one_reference_gives_the_exact_conditional_test_of_two_poisson_counts():
    """With a share of 0 before, nothing is divided by a dispersion."""
    found = share_increase(3, 1000, [(0, 9000)])
    assert found.p_value == pytest.approx(stats.binom.sf(2, 3, 0.1))
    assert (found.expected, found.dispersion) == (0, 1)


@given(COUNTS, st.lists(COUNTS, max_size=6))
def test_a_p_value_is_a_probability(counts, earlier):
    found = share_increase(*counts, earlier)
    assert 0 <= found.p_value <= 1
    assert 0 <= found.expected <= 1
    if counts[1] and found.expected >= counts[0] / counts[1]:
        assert found.p_value == 1


def test_a_larger_share_is_less_likely():
    earlier = [(20, 1000), (25, 1000), (15, 1000), (18, 1000)]
    values = [share_increase(count, 1000, earlier).p_value for count in range(20, 200, 5)]
    assert values == sorted(values, reverse=True)


def test_without_earlier_rows_nothing_can_be_unusual():
    for earlier in ([], [(0, 0)]):
        assert share_increase(9, 10, earlier).p_value == 1
    assert share_increase(0, 0, [(1, 10)]).p_value == 1


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5)])
def test_an_impossible_count_is_refused(counts):
    with pytest.raises(UsageError, match="is not a share"):
        share_increase(*counts, [])


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.002, 0.05, 0.4])
def test_shares_that_vary_between_windows_are_flagged_as_often_as_the_level(share, spread):
    rng = np.random.default_rng(1)
    flags, trials = 0, 1500
    for _ in range(trials):
        rates = share * (rng.gamma(1 / spread**2, spread**2, 11) if spread else np.ones(11))
        counts = [int(count) for count in rng.binomial(1000, np.minimum(rates, 1))]
        flags += share_increase(counts[0], 1000, [(count, 1000) for count in counts[1:]]).p_value <= 0.05
    assert flags / trials <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)


def test_a_share_that_doubles_is_found_where_windows_vary_little():
    assert share_increase(100, 1000, [(50, 1000), (45, 1000), (55, 1000), (51, 1000)]).p_value < 0.01


def test_a_share_that_doubles_is_usual_where_it_often_does():
    assert share_increase(100, 1000, [(20, 1000), (110, 1000), (40, 1000), (95, 1000)]).p_value > 0.1


# --- amounts -----------------------------------------------------------------------------------------------


def test_an_amount_is_compared_by_the_t_distribution_of_a_new_observation():
    """These amounts alternate, so their correlation is below 0 and nothing is corrected."""
    earlier = [100.0, 120.0, 90.0, 118.0, 97.0]
    logs = np.log(earlier)
    found = level_shift(150.0, earlier, least_spread=0.01)
    t = (math.log(150) - logs.mean()) / (logs.std(ddof=1) * math.sqrt(1 + 1 / 5))
    assert found.increase == pytest.approx(stats.t.sf(t, 4))
    assert found.increase + found.decrease == pytest.approx(1)
    assert found.expected == pytest.approx(stats.gmean(earlier))
    assert found.two_sided == pytest.approx(2 * found.increase)


def test_two_earlier_windows_are_not_enough():
    assert level_shift(5.0, [1.0, 1.0], least_spread=0.1) is None


def test_equal_amounts_are_not_certain():
    assert 0.01 < level_shift(1.1, [1.0] * 8, least_spread=0.1).increase < 0.5


def test_amounts_that_vary_are_flagged_as_often_as_the_level():
    rng = np.random.default_rng(2)
    trials = 3000
    draws = np.exp(rng.normal(3, 0.5, (trials, 6)))
    flags = sum(level_shift(row[0], list(row[1:]), least_spread=0.01).two_sided <= 0.05 for row in draws)
    assert 0.02 < flags / trials < 0.055


@pytest.mark.parametrize("correlation", [0.5, 0.8])
def test_amounts_of_neighbours_that_resemble_each_other_are_flagged_about_as_often_as_the_level(correlation):
    rng = np.random.default_rng(3)
    trials, windows = 2000, 31
    noise = rng.normal(size=(trials, windows))
    series = noise.copy()
    for index in range(1, windows):
        series[:, index] = correlation * series[:, index - 1] + math.sqrt(1 - correlation**2) * noise[:, index]
    draws = np.exp(3 + 0.5 * series)
    flags = sum(level_shift(row[-1], list(row[:-1]), least_spread=0.01).two_sided <= 0.05 for row in draws)
    assert flags / trials < 0.075
