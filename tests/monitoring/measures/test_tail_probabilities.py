import math

import pytest
from hypothesis import given, settings, strategies as st
from scipy import special, stats

from everloop.errors import UsageError
from everloop.monitoring.measures.tail_probabilities import chi_square_tail, gamma_tail, normal_quantile, normal_tail


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 3000), st.floats(0, 6000))
def test_gamma_tail_is_scipys(shape: float, x: float) -> None:
    assert gamma_tail(shape, x) == pytest.approx(special.gammaincc(shape, x), rel=1e-8, abs=1e-14)


def test_gamma_tail_far_out_keeps_its_relative_accuracy() -> None:
    for shape, x in ((10.0, 80.0), (0.5, 200.0), (11.0, 400.0)):
        assert gamma_tail(shape, x) == pytest.approx(special.gammaincc(shape, x), rel=1e-9)


def test_gamma_tail_at_the_ends() -> None:
    assert gamma_tail(2.0, 0.0) == 1.0
    assert gamma_tail(2.0, math.inf) == 0.0
    with pytest.raises(UsageError, match="above 0, not 0"):
        gamma_tail(0.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 500), st.integers(1, 300))
def test_chi_square_tail_is_scipys(x: float, freedom: int) -> None:
    assert chi_square_tail(x, freedom) == pytest.approx(stats.chi2.sf(x, freedom), rel=1e-8, abs=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.floats(-8, 8))
def test_normal_tail_and_quantile_are_scipys(z: float) -> None:
    assert normal_tail(z) == pytest.approx(stats.norm.sf(z), rel=1e-9)
    if -5 < z < 5:
        assert normal_quantile(normal_tail(z)) == pytest.approx(z, abs=1e-7)


def test_a_quantile_of_an_invalid_probability_is_an_error() -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        normal_quantile(1.0)
