"""Score one row as fast as possible: decoded values in, label and probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, RequestError
from everloop.training.class_decisions import answer_rows, rule_of

if TYPE_CHECKING:
    from everloop.packages.predictor_view import PredictorView

RowFunction = Callable[[tuple[Any, ...]], tuple[Any, ...]]
ScoreRow = Callable[[tuple[Any, ...]], Sequence[float]]


def row_function(predictor: PredictorView, labels: Sequence[Any] | None = None) -> RowFunction:
    """See `Predictor.row_function`.

    Args:
        labels: the label of each class, in the order of `classes`; None takes the classes themselves.
    """
    name = predictor.display_name
    predict = _predict_function(predictor, predictor.classes if labels is None else labels)

    def predict_row(values: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            return predict(values)
        except EverloopError:
            raise
        except Exception as error:
            # A foreign estimator can raise anything on rows that it does not take.
            raise RequestError(f"The model {name} cannot score this row: {error}") from error

    return predict_row


def _predict_function(predictor: PredictorView, labels: Sequence[Any]) -> RowFunction:
    model: Any = predictor.model
    rule = rule_of(model)
    if rule is None and predictor.task != "regression":
        return _predict_with_model_labels(predictor, labels)
    score_row = _score_function(predictor)
    if predictor.task == "regression":
        return lambda values: (score_row(values)[0],)
    if predictor.task == "multiclass":

        def largest(values: tuple[Any, ...]) -> tuple[Any, ...]:
            scores = score_row(values)
            return (labels[scores.index(max(scores))], *scores)

        return largest
    assert rule is not None  # noqa: S101 - checked above
    (low, high), threshold = labels, rule.threshold
    if rule.strict:

        def above(values: tuple[Any, ...]) -> tuple[Any, ...]:
            score = score_row(values)[0]
            return (high if score > threshold else low, score)

        return above

    def at_least(values: tuple[Any, ...]) -> tuple[Any, ...]:
        score = score_row(values)[0]
        return (high if score >= threshold else low, score)

    return at_least


def _score_function(predictor: PredictorView) -> ScoreRow:
    model: Any = predictor.model
    if not predictor.manifest.lookups and (predictor.compiled or model.format == "mojo"):
        score_row: ScoreRow = model.form.row
        return score_row
    names = predictor.input_names

    def by_name(values: tuple[Any, ...]) -> Sequence[float]:
        scores = model.predict_rows([dict(zip(names, values, strict=True))])
        found: list[float] = scores.reshape(-1).tolist()
        return found

    return by_name


def _predict_with_model_labels(predictor: PredictorView, labels: Sequence[Any]) -> RowFunction:
    """For models whose classes do not follow from their scores, so that the model itself must name the class."""
    model, names = predictor.model, predictor.input_names

    def predict(values: tuple[Any, ...]) -> tuple[Any, ...]:
        scores, indices = answer_rows(model, [dict(zip(names, values, strict=True))])
        numbers = scores.reshape(-1).tolist()
        return tuple(numbers) if indices is None else (labels[int(indices[0])], *numbers)

    return predict
