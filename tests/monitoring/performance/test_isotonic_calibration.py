import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.isotonic import IsotonicRegression

from everloop.errors import EmptySampleError
from everloop.monitoring.performance.isotonic_calibration import IsotonicMap, fit_isotonic

ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 1), st.integers(1, 4)),
    min_size=1,
    max_size=60,
)


@pytest.mark.slow
@settings(deadline=None)
@given(ROWS)
def test_the_fit_is_that_of_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    scores, actual, weights = np.array(rows, dtype=float).T
    found = fit_isotonic(scores, actual, weights)
    peer = IsotonicRegression(out_of_bounds="clip").fit(scores, actual, weights)
    asked = np.linspace(-1, 13, 57)
    assert found.apply(asked) == pytest.approx(peer.predict(asked), abs=1e-9)
    assert list(found.probabilities) == sorted(found.probabilities)
    assert IsotonicMap.from_json(found.to_json()) == found


def test_many_continuous_scores_are_fitted_like_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=5000)
    actual = (rng.uniform(size=5000) < 1 / (1 + np.exp(-2 * scores))).astype(float)
    peer = IsotonicRegression(out_of_bounds="clip").fit(scores, actual)
    asked = rng.normal(size=500)
    assert fit_isotonic(scores, actual).apply(asked) == pytest.approx(peer.predict(asked), abs=1e-9)


def test_rows_without_weight_do_not_count() -> None:
    assert fit_isotonic([1, 2, 3], [1, 0, 1], [0, 1, 1]).probabilities == (0.0, 1.0)
    with pytest.raises(EmptySampleError, match="without labelled rows"):
        fit_isotonic([], [])
    with pytest.raises(EmptySampleError):
        fit_isotonic([1.0], [1.0], [0.0])
