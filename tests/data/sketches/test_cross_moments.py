import functools
import itertools
import json
import operator

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from everloop.data.sketches.bins import CategoryBins, NumericBins, choose_bins
from everloop.data.sketches.column_sketches import Sketch, sketch_cells, sketch_frame
from everloop.data.sketches.cross_moments import (
    MOST_COLUMNS,
    STEPS,
    CrossMoments,
    cell_scores,
    cross_moments,
    moments_of_cells,
)
from everloop.errors import EmptySampleError, UsageError


def reference_of(frame: pl.DataFrame, **options: int) -> dict[str, Sketch]:
    return sketch_frame(frame, choose_bins(frame, frame.columns, **options)[0])


def some_frame(rows: int, seed: int = 0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    x, y = generator.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], rows).T
    return pl.DataFrame(
        {"x": x, "y": np.exp(y), "c": np.where(x + generator.normal(size=rows) > 0.3, "yes", "no"), "z": [1.0] * rows}
    )


def test_scores_are_means_of_the_normal_distribution_in_the_cells() -> None:
    scores = np.array(cell_scores(Sketch(NumericBins((0.0, 1.0, 2.0, 3.0)), (9, 5, 20, 40, 30, 5)))) / STEPS
    borders = stats.norm.ppf(np.cumsum([0, 0.05, 0.2, 0.4, 0.3, 0.05]).clip(0, 1))
    expected = [stats.truncnorm.mean(low, high) for low, high in itertools.pairwise(borders)]
    assert scores[0] == 0
    assert scores[1:] == pytest.approx(expected, abs=1 / STEPS)


def test_two_categories_score_as_any_two_numbers() -> None:
    frame = some_frame(4_000)
    moments = cross_moments(frame, reference_of(frame))
    exact = np.corrcoef(frame["c"] == "yes", frame["x"])[0, 1]
    assert abs(moments.correlations()[0, 2]) == pytest.approx(abs(exact), abs=0.02)
    assert moments.correlations()[3].tolist() == [0, 0, 0, 1]


def test_correlations_are_numpys_of_the_same_scores() -> None:
    frame = some_frame(40_000)
    reference = reference_of(frame)
    live = some_frame(40_001, seed=1).drop("z")
    reference.pop("z")
    bins = {name: sketch.bins for name, sketch in reference.items()}
    _, codes = sketch_cells(live, bins, keep=bins)
    scores = np.stack([np.array(cell_scores(reference[name]))[codes[name]] for name in bins])
    moments = moments_of_cells(codes, reference)
    assert moments == cross_moments(live, reference)
    assert moments.correlations() == pytest.approx(np.corrcoef(scores), abs=1e-9)
    assert moments.sums[0] == int((scores[0].astype(np.int64) ** 2).sum())
    # The correlation of ranks of a bivariate normal sample, whatever the margins.
    assert moments.correlations()[0, 1] == pytest.approx(0.6, abs=0.02)


rows = st.lists(
    st.tuples(st.one_of(st.none(), st.floats(width=16)), st.sampled_from(["a", "b", "new", None])), max_size=40
)


@settings(max_examples=40, deadline=None)
@given(rows, rows, rows)
def test_the_moments_of_all_rows_are_the_sum_of_the_parts(
    first: list[tuple[float | None, str | None]],
    second: list[tuple[float | None, str | None]],
    third: list[tuple[float | None, str | None]],
) -> None:
    reference = {
        "x": Sketch(NumericBins((-1.0, 0.0, 2.0)), (1, 1, 5, 9, 2)),
        "c": Sketch(CategoryBins(("a", "b")), (3, 10, 4, 0)),
    }
    schema = {"x": pl.Float64, "c": pl.String}
    frames = [pl.DataFrame(part, schema=schema, orient="row") for part in (first, second, third) if part]
    if not frames:
        return
    parts = [cross_moments(frame, reference) for frame in frames]
    whole = cross_moments(pl.concat(frames), reference)
    assert functools.reduce(operator.add, parts) == whole
    assert functools.reduce(operator.add, reversed(parts)) == whole
    if len(parts) == 3:
        assert parts[0] + (parts[1] + parts[2]) == whole
    assert CrossMoments.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_wrong_questions_are_refused() -> None:
    frame = some_frame(50)
    reference = reference_of(frame)
    moments = cross_moments(frame, reference)
    with pytest.raises(UsageError, match="cannot be added"):
        moments + cross_moments(frame, reference_of(frame, bins=3))
    with pytest.raises(UsageError, match="at most 40"):
        cross_moments(frame, {f"x{index}": reference["x"] for index in range(MOST_COLUMNS + 1)})
    with pytest.raises(UsageError, match="no cell numbers of 'x'"):
        moments_of_cells({}, reference)
    with pytest.raises(UsageError, match="cannot have"):
        CrossMoments(("x",), "", 3, (1,), ())
    with pytest.raises(EmptySampleError):
        cross_moments(frame.clear(), reference)
    assert cross_moments(frame, {}).rows == 0
    assert cross_moments(frame.drop("x"), reference).correlations()[0].tolist() == [1, 0, 0, 0]
