"""The quick way for one row: decoded values in, label and probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, RequestError
from everloop.training.class_decisions import answer_rows, rule_of

if TYPE_CHECKING:
    from everloop.packages.predictor_view import PredictorView

RowFunction = Callable[[tuple[Any, ...]], tuple[Any, ...]]
Ask = Callable[[tuple[Any, ...]], Sequence[float]]


def row_function(predictor: PredictorView, labels: Sequence[Any] | None = None) -> RowFunction:
    """See `Predictor.row_function`.

    Args:
        labels: what to call each class instead of its own name, in the order of `classes`.
    """
    told = predictor.version or predictor.digest or ""
    found = _answering(predictor, predictor.classes if labels is None else labels)

    def answer(values: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            return found(values)
        except EverloopError:
            raise
        except Exception as error:
            # An adopted estimator raises whatever it likes about rows that it does not take.
            raise RequestError(f"The model {told} cannot score this row: {error}") from error

    return answer


def _answering(predictor: PredictorView, labels: Sequence[Any]) -> RowFunction:
    model: Any = predictor.model
    rule = rule_of(model)
    if rule is None and predictor.task != "regression":
        return _asking(predictor, labels)
    ask = _ask(predictor)
    if predictor.task == "regression":
        return lambda values: (ask(values)[0],)
    if predictor.task == "multiclass":

        def several(values: tuple[Any, ...]) -> tuple[Any, ...]:
            scores = ask(values)
            return (labels[scores.index(max(scores))], *scores)

        return several
    assert rule is not None  # noqa: S101 - looked at above
    (low, high), threshold = labels, rule.threshold
    if rule.strict:

        def above(values: tuple[Any, ...]) -> tuple[Any, ...]:
            score = ask(values)[0]
            return (high if score > threshold else low, score)

        return above

    def from_there(values: tuple[Any, ...]) -> tuple[Any, ...]:
        score = ask(values)[0]
        return (high if score >= threshold else low, score)

    return from_there


def _ask(predictor: PredictorView) -> Ask:
    model: Any = predictor.model
    if not predictor.manifest.lookups and (predictor.compiled or model.format == "mojo"):
        ask: Ask = model.form.row
        return ask
    names = predictor.input_names

    def by_name(values: tuple[Any, ...]) -> Sequence[float]:
        scores = model.predict_rows([dict(zip(names, values, strict=True))])
        found: list[float] = scores.reshape(-1).tolist()
        return found

    return by_name


def _asking(predictor: PredictorView, labels: Sequence[Any]) -> RowFunction:
    model, names = predictor.model, predictor.input_names

    def answer(values: tuple[Any, ...]) -> tuple[Any, ...]:
        scores, places = answer_rows(model, [dict(zip(names, values, strict=True))])
        numbers = scores.reshape(-1).tolist()
        return tuple(numbers) if places is None else (labels[int(places[0])], *numbers)

    return answer
