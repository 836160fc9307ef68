"""What a fitted estimator of any library predicts: a number, one of some classes, or something that is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.errors import UsageError
from everloop.training.estimator_scores import EstimatorScores, last_step, question_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.training.class_decisions import ClassScores
    from everloop.training.trained_model import Json, Task

_CLASS_TYPES = (str, bool, int, float)


def kind_of(estimator: Any) -> str | None:
    """`classifier`, `regressor`, `clusterer`, `outlier_detector`, …; None where it does not say."""
    try:
        from sklearn.utils import get_tags

        kind = get_tags(estimator).estimator_type
    except Exception:  # not scikit-learn's, or of a library that speaks an older version of its protocol
        kind = None
    return kind or getattr(estimator, "_estimator_type", None)


def check_one_output(estimator: Any, predicted: Any = None) -> None:
    """Refuse an estimator of several targets or several labels.

    Args:
        predicted: what `predict` gave for some rows; None where that is not known.

    Raises:
        UsageError: it has several outputs.
    """
    last = last_step(estimator)
    known = getattr(last, "classes_", None)
    outputs = getattr(last, "n_outputs_", 1)
    width = int(outputs) if isinstance(outputs, int | np.integer) else 1
    if isinstance(known, list | tuple) and any(np.ndim(part) for part in known):
        width = max(width, len(known))
    if getattr(last, "multilabel_", False) is True and known is not None:
        width = max(width, len(known))
    shape = getattr(predicted, "shape", None) or np.shape(predicted if predicted is not None else ())
    if len(shape) > 1:
        width = max(width, int(np.prod(shape[1:])))
    if width > 1:
        raise UsageError(
            f"The {type(last).__name__} predicts {width} values a row. A model version answers one target.",
            help="Fit and save one model for each target.",
        )


def known_classes(estimator: Any) -> list[Json] | None:
    """The classes that an estimator names, in its own order, as plain Python; None where it names none.

    Raises:
        UsageError: a class is of a type that no answer can hold.
    """
    found = getattr(estimator, "classes_", None)
    if found is None:
        found = getattr(last_step(estimator), "classes_", None)
    if found is None or not len(found):
        return None
    return plain_classes(estimator, found)


def plain_classes(estimator: Any, found: Any) -> list[Json]:
    """Classes as plain Python, in the order given."""
    plain = [value.item() if isinstance(value, np.generic) else value for value in found]
    strange = next((value for value in plain if not isinstance(value, _CLASS_TYPES) or value != value), None)
    if strange is not None:
        raise UsageError(
            f"The class {strange!r} of the {type(estimator).__name__} is of type {type(strange).__name__}.",
            help="Classes can be texts, whole numbers, numbers and flags. Convert the target before fitting.",
        )
    if len({isinstance(value, str) for value in plain}) > 1:
        raise UsageError(
            f"The classes of the {type(estimator).__name__} mix texts and numbers: {plain[:8]}.",
            help="Convert the target to one type before fitting.",
        )
    return plain


def found_classes(estimator: Any, predicted: Any, width: int | None, truth: pl.Series | None) -> list[Json] | None:
    """The classes of an estimator that decides between some but does not name them; None where they cannot be found.

    Args:
        predicted: what `predict` gave for the example.
        width: how many probabilities it gives a row; None where it gives none.
        truth: the target of the example's rows.
    """
    kind, last = kind_of(estimator), last_step(estimator)
    values = set(np.asarray(predicted).reshape(-1).tolist())
    if kind == "outlier_detector":
        return [-1, 1]
    if kind == "clusterer":
        values |= {int(label) for label in getattr(last, "labels_", ())}
        values |= set(range(len(getattr(last, "cluster_centers_", ()))))
        values |= {int(label) for label in getattr(last, "subcluster_labels_", ())}
    elif width is not None and _whole(values) and values <= set(range(width)):
        values = set(range(width))
    elif truth is not None:
        values |= set(truth.drop_nulls().to_list())
    if not values or (width is not None and len(values) != width):
        return None
    return sorted(plain_classes(estimator, list(values)))


def arranged(plain: Sequence[Json]) -> tuple[list[Json], list[int]]:
    """Classes in everloop's order, and where the estimator has each; an empty list where they are in order."""
    order = sorted(range(len(plain)), key=lambda place: plain[place])
    return [plain[place] for place in order], [] if order == list(range(len(plain))) else order


def decides(estimator: Any, predicted: Any) -> bool:
    """Whether an estimator decides between classes, by what it says of itself and by what it predicted."""
    kind = kind_of(estimator)
    if kind in ("classifier", "clusterer", "outlier_detector"):
        return True
    if kind == "regressor":
        return False
    if hasattr(estimator, "classes_") or hasattr(estimator, "predict_proba"):
        return True
    values = np.asarray(predicted)
    return values.dtype.kind in "USb" or (
        values.dtype == object and any(isinstance(v, str | bool) for v in values.flat)
    )


def first_answers(
    estimator: Any, rows: Any, task: Task, order: Sequence[int], classes: Sequence[Json]
) -> tuple[EstimatorScores, ClassScores]:
    """Ask an estimator for the first time, and find out how it wants to be asked.

    Raises:
        UsageError: it predicts several values a row.
        Exception: whatever the estimator raises.
    """
    predicted = estimator.predict(rows) if hasattr(estimator, "predict") else None
    estimates = hasattr(estimator, "predict_proba")
    if predicted is not None and (task == "regression" or estimates or decides(estimator, predicted)):
        check_one_output(estimator, predicted)
    chances = estimates or not decides(estimator, predicted)
    question = question_for(estimator, task, order, classes, chances=chances)
    if predicted is not None and (task == "regression" or not estimates):
        # Nothing but `predict` is asked for, and it has answered.
        return question, question.answer(_Predicted(predicted), rows)
    try:
        return question, question.answer(estimator, rows)
    except (AttributeError, NotImplementedError):
        # Some have the method and no probabilities behind it.
        if not estimates or predicted is None:
            raise
        question = question_for(estimator, task, order, classes, chances=False)
        return question, question.answer(estimator, rows)


class _Predicted:
    """An estimator that has answered already."""

    def __init__(self, predicted: Any) -> None:
        self._predicted = predicted

    def predict(self, _: Any) -> Any:
        return self._predicted


def task_for(classes: Sequence[Json]) -> Task:
    return "binary" if len(classes) == 2 else "multiclass"


def _whole(values: set[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


__all__ = [
    "arranged",
    "check_one_output",
    "decides",
    "first_answers",
    "found_classes",
    "kind_of",
    "known_classes",
    "plain_classes",
    "task_for",
]
