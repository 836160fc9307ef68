"""Find out what a fitted estimator of any library predicts: a number, or one of which classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everloop.errors import TrainingError, UsageError
from everloop.training.estimator_scores import EstimatorScores, last_step, own_copy, question_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.records import Json
    from everloop.training.class_decisions import ClassScores
    from everloop.training.trained_model import Task

_CLASS_TYPES = (str, bool, int, float)


def kind_of(estimator: Any) -> str | None:
    """Return `classifier`, `regressor`, `clusterer`, `outlier_detector`, …; None if the estimator has no such tag."""
    try:
        from sklearn.utils import get_tags

        kind = get_tags(estimator).estimator_type
    except Exception:  # another library, or one that implements an older version of scikit-learn's protocol
        kind = None
    return kind or getattr(estimator, "_estimator_type", None)


def check_one_output(estimator: Any, predicted: Any = None) -> None:
    """Check that an estimator predicts one value per row.

    Args:
        predicted: the result of `predict` for some rows; None if it was not called.

    Raises:
        UsageError: the estimator predicts several targets or several labels.
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
            f"The {type(last).__name__} predicts {width} values for each row, but a model version predicts one target.",
            help="Fit and save one model for each target.",
        )


def known_classes(estimator: Any) -> list[Json] | None:
    """Return the classes of an estimator in its own order, as plain Python values; None if it has no `classes_`.

    Raises:
        UsageError: the classes have a type that predictions cannot have.
    """
    found = getattr(estimator, "classes_", None)
    if found is None:
        found = getattr(last_step(estimator), "classes_", None)
    if found is None or not len(found):
        return None
    return plain_classes(estimator, found)


def plain_classes(estimator: Any, found: Any) -> list[Json]:
    """Return classes as plain Python values, in the same order.

    Raises:
        UsageError: the classes have a type that predictions cannot have, or mix texts and numbers.
    """
    plain = [value.item() if isinstance(value, np.generic) else value for value in found]
    strange = next((value for value in plain if not isinstance(value, _CLASS_TYPES) or value != value), None)
    if strange is not None:
        raise UsageError(
            f"The class {strange!r} of the {type(estimator).__name__} is of type {type(strange).__name__}.",
            help="Classes can be texts, numbers or booleans. Convert the target before fitting.",
        )
    if len({isinstance(value, str) for value in plain}) > 1:
        raise UsageError(
            f"The classes of the {type(estimator).__name__} mix texts and numbers: {plain[:8]}.",
            help="Convert the target to one type before fitting.",
        )
    return plain


def found_classes(estimator: Any, predicted: Any, width: int | None, labels: pl.Series | None) -> list[Json] | None:
    """Return the classes of an estimator without `classes_`; None if they cannot be determined.

    Args:
        predicted: the result of `predict` for the example.
        width: how many probabilities it gives for each row; None if it gives none.
        labels: the labels of the example's rows.
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
    elif labels is not None:
        values |= set(labels.drop_nulls().to_list())
    if not values or (width is not None and len(values) != width):
        return None
    return sorted(plain_classes(estimator, list(values)))


def arranged(plain: Sequence[Json]) -> tuple[list[Json], list[int]]:
    """Return sorted classes, and the index of each in the original order; no indices if the order is the same."""
    order = sorted(range(len(plain)), key=lambda index: plain[index])
    return [plain[index] for index in order], [] if order == list(range(len(plain))) else order


def decides(estimator: Any, predicted: Any) -> bool:
    """Whether an estimator predicts classes, judged by its tags and attributes and by its predictions."""
    if says_classes(estimator):
        return True
    if kind_of(estimator) == "regressor":
        return False
    values = np.asarray(predicted)
    return values.dtype.kind in "USb" or (
        values.dtype == object and any(isinstance(v, str | bool) for v in values.flat)
    )


def says_classes(estimator: Any) -> bool:
    """Whether tags or attributes of an estimator say that it predicts classes."""
    if kind_of(estimator) in ("classifier", "clusterer", "outlier_detector"):
        return True
    return kind_of(estimator) != "regressor" and (hasattr(estimator, "classes_") or hasattr(estimator, "predict_proba"))


def predicted_meaning(
    estimator: Any, predicted: Any, target: pl.Series, task: Task, classes: list[Json]
) -> Literal["labels", "chances", "amounts"]:
    """Find out whether an estimator that does not say it predicts classes, their probabilities or amounts.

    Args:
        predicted: its predictions for rows of the training table.

    Raises:
        TrainingError: none of these fits the target.
    """
    import polars as pl

    values = np.asarray(predicted)
    if values.ndim == 2 and values.shape[1] > 1:
        return "chances"
    distinct = set(values.reshape(-1).tolist())
    if distinct <= set(classes):
        return "labels"
    if all(isinstance(value, int | float) for value in distinct):
        numbers = target.dtype.is_numeric()
        # Zeros and ones for a target of texts are codes, and nothing shows which text is 1.
        chances = numbers or target.dtype == pl.Boolean or not distinct <= {0, 1}
        if task == "binary" and chances and all(0 <= value <= 1 for value in distinct):
            return "chances"
        if numbers:
            return "amounts"
    raise other_classes(estimator, target, sorted(distinct, key=str))


def other_classes(estimator: Any, target: pl.Series, classes: Sequence[Json]) -> TrainingError:
    values = target.drop_nulls().unique().sort().to_list()
    return TrainingError(
        f"The {type(estimator).__name__} predicts {', '.join(map(repr, classes[:8]))}, but the target "
        f"'{target.name}' has the values {', '.join(map(repr, values[:8]))}.",
        help="If the target was encoded before fit (LabelEncoder, 'yes' to 1), encode it in the data step instead, or "
        "return an object whose `predict` returns the original values and whose `classes_` lists them.",
    )


def first_answers(
    estimator: Any, rows: Any, task: Task, order: Sequence[int], classes: Sequence[Json], *, labels: bool = False
) -> tuple[EstimatorScores, ClassScores]:
    """Call an estimator for the first time, and find out how its scores and classes are computed.

    Args:
        labels: whether `predict` is known to return classes although nothing else says so.

    Raises:
        UsageError: the estimator predicts several values for each row.
        Exception: any error that the estimator raises.
    """
    predicted = estimator.predict(own_copy(rows)) if hasattr(estimator, "predict") else None
    has_proba = hasattr(estimator, "predict_proba")
    labels = labels or decides(estimator, predicted)
    if predicted is not None and (task == "regression" or has_proba or labels):
        check_one_output(estimator, predicted)
    chances = has_proba or not labels
    question = question_for(estimator, task, order, classes, chances=chances)
    if predicted is not None and (task == "regression" or not has_proba):
        # Only the result of `predict` is needed, and it is known already.
        return question, question.answer(_Predicted(predicted), rows)
    try:
        return question, question.answer(estimator, own_copy(rows))
    except (AttributeError, NotImplementedError):
        # Some estimators have a `predict_proba` that does not work.
        if not has_proba or predicted is None:
            raise
        question = question_for(estimator, task, order, classes, chances=False)
        return question, question.answer(estimator, rows)


class _Predicted:
    """Stands in for an estimator whose `predict` was called already."""

    def __init__(self, predicted: Any) -> None:
        self._predicted = predicted

    def predict(self, _: Any) -> Any:
        return self._predicted


def task_for(classes: Sequence[Json]) -> Task:
    return "binary" if len(classes) == 2 else "multiclass"


def _whole(values: set[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
