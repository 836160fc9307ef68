"""The boundaries against published values, and their error under any times of looks by direct simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import UsageError
from everloop.loop.releases.spending_boundaries import boundaries, spent_error

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        # Reboussin, DeMets, Kim and Lan, "Computations for group sequential boundaries using the Lan-DeMets spending
        # function method", Controlled Clinical Trials 21 (2000): one-sided 0.025, five equal looks.
        ("late", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("even", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_boundaries_are_those_that_are_published(shape, published):
    assert boundaries(FIFTHS, 0.025, shape, reserve=0.0) == pytest.approx(published, abs=0.003)


@given(st.floats(0.001, 20), st.floats(1.001, 3), st.sampled_from(["late", "even"]), st.floats(0.001, 0.2))
def test_the_spent_error_rises_and_never_exceeds_the_whole(fraction, factor, shape, error):
    spent, later = (spent_error(one, error, shape) for one in (fraction, fraction * factor))
    assert 0 <= spent <= later * (1 + 1e-12)
    assert later <= error


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(0.03, 0.8), min_size=1, max_size=12),
    st.sampled_from(["late", "even"]),
    st.sampled_from([0.01, 0.05]),
)
def test_at_any_times_of_looks_the_error_is_kept(increments, shape, error):
    """A Brownian motion without drift crosses the boundaries as often as the error that was spent says."""
    fractions = np.cumsum(increments)
    limits = np.array(boundaries(fractions.tolist(), error, shape))
    paths = 40_000
    steps = np.random.default_rng(3).normal(size=(paths, len(fractions))) * np.sqrt(increments)
    crossed = (np.cumsum(steps, axis=1) / np.sqrt(fractions) > limits).any(axis=1).mean()
    spent = spent_error(float(fractions[-1]), error, shape)
    assert crossed == pytest.approx(spent, abs=4 * math.sqrt(error / paths) + 0.02 * error)


def test_looks_cannot_go_back_and_the_error_is_a_small_share():
    with pytest.raises(UsageError, match="must rise"):
        boundaries([0.2, 0.2], 0.05, "late")
    with pytest.raises(UsageError, match="between 0 and"):
        boundaries([0.2], 0.7, "late")
    assert boundaries([], 0.05, "late") == ()
