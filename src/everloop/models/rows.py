"""The quick way for one row: decoded values in, label and probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, RequestError

if TYPE_CHECKING:
    from everloop.models.predictor import Predictor

RowFunction = Callable[[tuple[Any, ...]], tuple[Any, ...]]
Ask = Callable[[tuple[Any, ...]], Sequence[float]]


def row_function(predictor: Predictor) -> RowFunction:
    """See `Predictor.row_function`."""
    ask = _ask(predictor)
    told = predictor.version or predictor.digest or ""
    if predictor.task == "regression":

        def answer(values: tuple[Any, ...]) -> tuple[Any, ...]:
            try:
                return (ask(values)[0],)
            except EverloopError:
                raise
            except Exception as error:
                raise _refusal(told, error) from error

    elif predictor.task == "binary":
        low, high = predictor.classes

        def answer(values: tuple[Any, ...]) -> tuple[Any, ...]:
            try:
                score = ask(values)[0]
            except EverloopError:
                raise
            except Exception as error:
                raise _refusal(told, error) from error
            return (high if score >= 0.5 else low, score)

    else:
        classes = predictor.classes

        def answer(values: tuple[Any, ...]) -> tuple[Any, ...]:
            try:
                scores = ask(values)
            except EverloopError:
                raise
            except Exception as error:
                raise _refusal(told, error) from error
            return (classes[scores.index(max(scores))], *scores)

    return answer


def _ask(predictor: Predictor) -> Ask:
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


def _refusal(told: str, error: Exception) -> RequestError:
    # An adopted estimator raises whatever it likes about rows that it does not take.
    return RequestError(f"The model {told} cannot score this row: {error}")
