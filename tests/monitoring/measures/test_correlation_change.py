import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.bins import choose_bins
from everloop.data.sketches.column_sketches import Sketch, sketch_frame
from everloop.data.sketches.cross_moments import CrossMoments, cross_moments
from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.measures.correlation_change import correlation_changes


def stream(rows: int, seed: int, correlation: float = 0.5) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    a, b = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], rows).T
    return pl.DataFrame({"a": a, "b": np.exp(b), "c": generator.choice(["u", "v", "w"], rows, p=[0.6, 0.3, 0.1])})


def baseline(rows: int = 20_000) -> tuple[dict[str, Sketch], CrossMoments]:
    frame = stream(rows, 0)
    sketches = sketch_frame(frame, choose_bins(frame, frame.columns)[0])
    return sketches, cross_moments(frame, sketches)


def test_p_values_of_unchanged_windows_are_uniform() -> None:
    sketches, reference = baseline()
    p_values = np.array(
        [
            [
                change.p_value
                for change in sorted(
                    correlation_changes(reference, cross_moments(stream(500, seed), sketches)),
                    key=lambda change: (change.first, change.second),
                )
            ]
            for seed in range(1, 301)
        ]
    )
    # 300 windows: the standard error of a rate of 5 % is 1.3 %.
    assert ((p_values < 0.05).mean(axis=0) < 0.095).all()
    assert ((p_values < 0.5).mean(axis=0) > 0.4).all()


def test_a_change_in_correlation_alone_is_found_and_named() -> None:
    sketches, reference = baseline()
    changes = correlation_changes(reference, cross_moments(stream(1_000, 9, correlation=-0.2), sketches))
    first = changes[0]
    assert (first.first, first.second) == ("a", "b")
    assert first.p_value < 1e-12
    assert first.before == pytest.approx(0.5, abs=0.02)
    assert first.now == pytest.approx(-0.2, abs=0.1)
    assert first.z < 0
    assert all(change.p_value > 0.001 for change in changes[1:])


def test_what_cannot_be_compared_is_refused() -> None:
    sketches, reference = baseline(200)
    with pytest.raises(EmptySampleError, match="at least 10 rows"):
        correlation_changes(reference, cross_moments(stream(5, 1), sketches))
    with pytest.raises(UsageError, match="same columns"):
        correlation_changes(reference, baseline(300)[1])
