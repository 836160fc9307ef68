import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.bins import choose_bins
from everloop.data.sketches.column_sketches import sketch_frame
from everloop.errors import UsageError
from everloop.monitoring import ConfidenceEstimator, Harm, LossEstimator, estimate_harm
from everloop.training.metrics import get_metric, score


def steps(rows: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A model that knows one region less well than the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 1, rows)
    truth = np.where(x > 1, 0.5, np.where(x > 0, 0.85, 0.08))
    scores = np.where(x > 1, 0.6, np.where(x > 0, 0.8, 0.15)) + 0.02 * rng.uniform(size=rows)
    return scores, (rng.uniform(size=rows) < truth).astype(float)


def rare(rows: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 1, rows)
    return 1 / (1 + np.exp(1.5 - x)), (rng.uniform(size=rows) < 1 / (1 + np.exp(3.5 - 1.2 * x))).astype(float)


@pytest.mark.parametrize("stream", [steps, rare])
@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_harm_is_within_thirty_percent_of_the_realised_loss(stream: object, metric: str) -> None:
    before = stream(6000, 0)  # type: ignore[operator]
    estimator = ConfidenceEstimator.fit(*before)
    bins, _ = choose_bins(pl.DataFrame({"score": before[0]}), ["score"])
    for shift in (0.7, 1.2):
        scores, labels = stream(20_000, 1, shift)  # type: ignore[operator]
        realised = -get_metric(metric).gain(score(metric, labels, scores), score(metric, before[1], before[0]))
        assert realised > 0.02
        sketch = sketch_frame(pl.DataFrame({"score": scores}), bins)["score"]
        unique, counts = np.unique(np.round(scores, 3), return_counts=True)
        for window in (scores, sketch, (unique, counts), pl.DataFrame({"score": scores})):
            harm = estimate_harm(estimator, window, metric)
            assert harm.reason is None
            assert harm.loss == pytest.approx(realised, rel=0.3)
            assert harm.loss_low < harm.loss < harm.loss_high  # type: ignore[operator]
            assert harm.low < harm.now < harm.high  # type: ignore[operator]
            assert harm.before == pytest.approx(score(metric, before[1], before[0]))


def test_the_same_distribution_does_no_harm() -> None:
    harm = estimate_harm(ConfidenceEstimator.fit(*steps(4000, 0)), steps(4000, 1)[0])
    assert harm.metric == "log_loss"
    assert harm.loss_low < 0 < harm.loss_high  # type: ignore[operator]


@pytest.mark.slow
def test_harm_of_a_regression_needs_rows_with_inputs() -> None:
    rng = np.random.default_rng(0)

    def rows(count: int, shift: float) -> pl.DataFrame:
        x = rng.normal(shift, 1, count)
        actual = 3 * x + rng.normal(size=count) * np.exp(0.5 * x)
        return pl.DataFrame({"input_x": x, "score": 3 * x, "actual": actual})

    known = rows(3000, 0.0)
    estimator = LossEstimator.fit(known.select(x="input_x"), known["score"], known["actual"], ["rmse", "mae"])
    window = rows(10_000, 0.8)
    harm = estimate_harm(estimator, window)
    realised = score("rmse", window["actual"], window["score"]) - score("rmse", known["actual"], known["score"])
    assert harm.metric == "rmse"
    assert harm.loss == pytest.approx(realised, rel=0.3)
    assert "rows with their inputs" in (estimate_harm(estimator, window["score"].to_numpy()).reason or "")
    assert "not mape" in (estimate_harm(estimator, window, "mape").reason or "")


def test_several_classes_have_harm() -> None:
    rng = np.random.default_rng(0)

    def rows(count: int, flat: float) -> pl.DataFrame:
        scores = rng.dirichlet([flat, 1, 1], count)
        actual = (rng.uniform(size=(count, 1)) > scores.cumsum(axis=1)).sum(axis=1).clip(0, 2)
        return pl.DataFrame({"scores": scores.tolist(), "score": scores.max(axis=1), "actual": actual})

    harm = estimate_harm(rows(3000, 6.0), rows(3000, 1.0), "accuracy")
    assert harm.loss is not None
    assert harm.loss > 0.1


def test_what_cannot_be_estimated_has_a_reason() -> None:
    scores, labels = steps(500, 0)
    table = pl.DataFrame({"score": scores, "actual": labels})
    reasons = {
        "no labelled reference": estimate_harm(None, scores),
        "no column 'actual'": estimate_harm(table.drop("actual"), scores),
        "no column 'score'": estimate_harm(table.drop("score"), scores),
        "of the class 0": estimate_harm(table.with_columns(actual=0), scores),
        "both a score and a label": estimate_harm(table.clear(), scores),
        "no row with a score": estimate_harm(table, np.array([])),
        "undefined for these 1 row": estimate_harm(table, np.array([0.5]), "roc_auc"),
        "scores of shape": estimate_harm(table, np.ones((3, 3))),
    }
    for text, harm in reasons.items():
        assert isinstance(harm, Harm)
        assert text in (harm.reason or ""), (text, harm)
        assert harm.loss is None
    with pytest.raises(UsageError, match="no metric"):
        estimate_harm(table, scores, "beauty")
