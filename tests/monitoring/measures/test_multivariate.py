import numpy as np
import polars as pl
import pytest
from sklearn.decomposition import PCA

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.measures.multivariate import ClassifierName, fit_reconstruction, tell_apart

CLASSIFIERS: tuple[ClassifierName, ...] = ("boosting", "logistic")


def table(rows: int, seed: int, *, correlation: float = 0.6, mix: tuple[float, ...] = (0.6, 0.3, 0.1)) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    a, b = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], rows).T
    gaps = pl.Series(generator.random(rows) < 0.1)
    return pl.DataFrame(
        {
            "a": a,
            "b": np.exp(b),
            "c": generator.choice(["u", "v", "w"], rows, p=mix),
            "d": pl.Series(generator.normal(size=rows)).set(gaps, None),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_change_in_correlation_is_told_apart_and_named(classifier: ClassifierName) -> None:
    found = tell_apart(table(2_000, 0), table(1_000, 1, correlation=-0.3), classifier=classifier, rows=1_000)
    assert found.auc > 0.65
    assert found.low < found.auc < found.high
    assert found.p_value < 1e-6
    assert set(list(found.contributions)[:2]) == {"a", "b"}
    assert found.rows == (1_000, 1_000)
    assert found == tell_apart(table(2_000, 0), table(1_000, 1, correlation=-0.3), classifier=classifier, rows=1_000)


@pytest.mark.slow
def test_p_values_are_right_if_nothing_has_changed() -> None:
    p_values = np.array(
        [tell_apart(table(300, seed), table(200, 500 + seed), classifier="logistic").p_value for seed in range(60)]
    )
    assert (p_values < 0.05).sum() <= 8
    assert 18 <= (p_values < 0.5).sum() <= 42


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_new_mix_of_categories_is_told_apart(classifier: ClassifierName) -> None:
    found = tell_apart(table(800, 0), table(800, 1, mix=(0.2, 0.3, 0.5)), classifier=classifier)
    assert found.p_value < 1e-6
    assert next(iter(found.contributions)) == "c"


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_odd_columns_do_not_stop_the_classifier(classifier: ClassifierName) -> None:
    reference = pl.DataFrame(
        {"x": [1.0, None, float("inf")] * 20, "same": [3] * 60, "none": [None] * 60, "t": ["p", "q", None] * 20},
        schema={"x": pl.Float64, "same": pl.Int64, "none": pl.Float64, "t": pl.String},
    )
    window = pl.DataFrame({"x": ["a", "1.0"] * 20, "none": [[1]] * 40, "t": [1, 2] * 20})
    found = tell_apart(reference, window, classifier=classifier)
    assert found.auc > 0.9
    assert 0 <= found.low <= found.high <= 1


def test_the_reconstruction_is_scikit_learns() -> None:
    frame = table(600, 3).select("a", "b")
    model = fit_reconstruction(frame)
    values = frame.to_numpy()
    # The model was fitted on every other row of a shuffled sample: its components must be those of these rows.
    order = np.random.Generator(np.random.PCG64(0)).permutation(600)
    half, rest = values[order][::2], values[order][1::2]
    centre, scale = half.mean(axis=0), half.std(axis=0)
    pca = PCA(n_components=1).fit((half - centre) / scale)
    assert np.abs(model.components) == pytest.approx(np.abs(pca.components_), abs=1e-9)
    standardised = (rest - centre) / scale
    distances = np.linalg.norm(standardised - pca.inverse_transform(pca.transform(standardised)), axis=1)
    assert model.expected == pytest.approx(distances.mean(), rel=1e-9)
    assert model.deviation == pytest.approx(distances.std(ddof=1), rel=1e-9)


def test_reconstruction_errors_of_unchanged_windows_are_as_expected() -> None:
    model = fit_reconstruction(table(10_000, 0))
    scores = np.array([model.measure(table(500, seed)).z for seed in range(1, 81)])
    assert abs(scores.mean()) < 0.6
    assert 0.7 < scores.std() < 1.4


def test_a_change_in_correlation_is_seen_by_the_reconstruction() -> None:
    shift = fit_reconstruction(table(5_000, 0)).measure(table(500, 1, correlation=-0.5))
    assert shift.z > 4
    assert shift.p_value < 1e-4
    assert set(list(shift.contributions)[:2]) == {"a", "b"}


def test_odd_columns_do_not_stop_the_reconstruction() -> None:
    reference = pl.DataFrame(
        {"x": [1.0, None, 1e308, float("inf")] * 20, "same": [3] * 80, "none": [None] * 80, "t": ["p", None] * 40},
        schema={"x": pl.Float64, "same": pl.Int64, "none": pl.Float64, "t": pl.String},
    )
    model = fit_reconstruction(reference)
    for window in (reference, pl.DataFrame({"x": ["a"] * 40, "same": [9] * 40}), pl.DataFrame({"t": ["new"] * 40})):
        shift = model.measure(window)
        assert np.isfinite([shift.error, shift.z, shift.p_value]).all()


def test_what_cannot_be_compared_is_refused() -> None:
    frame = table(100, 0)
    with pytest.raises(EmptySampleError, match="at least 30 rows, not 5"):
        tell_apart(frame, frame.head(5))
    with pytest.raises(EmptySampleError, match="at least 60 rows"):
        fit_reconstruction(frame.head(40))
    with pytest.raises(UsageError, match="no column 'z'"):
        tell_apart(frame, frame, ["z"])
    with pytest.raises(UsageError, match="None of the columns"):
        fit_reconstruction(pl.DataFrame({"l": [[1]] * 100}))
    with pytest.raises(UsageError, match=r"not 1\.5"):
        fit_reconstruction(frame, explained=1.5)
    with pytest.raises(UsageError, match="no classifier 'forest'"):
        tell_apart(frame, frame, classifier="forest")  # type: ignore[arg-type]
