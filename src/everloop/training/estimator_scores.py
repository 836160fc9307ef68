"""Get scores and classes from a fitted estimator of any library.

Scores come from `predict_proba` and classes from `predict`. Only the estimator's own `predict` knows its threshold, how
it resolves ties, and whether its classes follow from its probabilities at all. A few estimators are known to take the
first of the largest probabilities; for these, `predict` is not called.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from everloop.errors import RequestError, UsageError
from everloop.training.class_decisions import PLAIN, ClassScores, Rule, votes
from everloop.training.targets import class_place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.trained_model import Task

    Array = NDArray[np.float64]
    Places = NDArray[np.intp]

Choice = Literal["rule", "largest", "predict", "votes"]

_LARGEST = {
    "sklearn": {
        "BaggingClassifier",
        "CalibratedClassifierCV",
        "DecisionTreeClassifier",
        "ExtraTreeClassifier",
        "ExtraTreesClassifier",
        "RandomForestClassifier",
    },
    "lightgbm": {"LGBMClassifier"},
}
"""Estimators whose source shows that `predict` is the first of the largest probabilities of `predict_proba`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorScores:
    """How the scores and classes of an estimator are computed.

    Attributes:
        order: index of each class in the estimator's own order; empty if the orders are the same.
        classes: the sorted classes, as plain Python values; of two, the positive one is the second.
        choice: how the class is found. `rule`: by `rule`, from the scores. `largest`: the first of the largest
            probabilities, in the estimator's own order. `predict`: by `predict` of the estimator. `votes`: also by
            `predict`, for estimators without probabilities; the score of the predicted class is 1, the others are 0.
        rule: the rule for the choice `rule`.
    """

    task: Task
    order: tuple[int, ...] = ()
    classes: tuple[Json, ...] = ()
    choice: Choice = "rule"
    rule: Rule = PLAIN

    def answer(self, estimator: Any, rows: Any) -> ClassScores:
        """Return scores and classes for a table that the estimator takes."""
        if self.task == "regression":
            return ClassScores(_numbers(estimator.predict(rows)), None)
        if self.choice == "votes":
            places = self._places(estimator.predict(rows))
            return ClassScores(votes(places, len(self.classes)), places)
        if self.choice == "predict":
            estimator, rows = _prepared(estimator, rows)
            # Some estimators change the table that they get, so each call gets its own.
            scores = self._arranged(_probabilities(estimator, own_copy(rows)))
            return ClassScores(scores, self._places(estimator.predict(rows)))
        probabilities = _probabilities(estimator, rows)
        scores = self._arranged(probabilities)
        if self.choice == "largest" and probabilities.ndim == 2:
            largest = np.argmax(probabilities, axis=1)
            return ClassScores(scores, np.argsort(self.order)[largest] if self.order else largest)
        return ClassScores(scores, self.rule.places(scores))

    def scores(self, estimator: Any, rows: Any) -> Array:
        """Return the scores alone. This is twice as fast if the classes would need `predict` as well."""
        if self.task == "regression" or self.choice == "votes":
            return self.answer(estimator, rows).scores
        return self._arranged(_probabilities(estimator, rows))

    def about(self, positive: Json, *, named: bool) -> Self:
        """Return the same for scores that are probabilities of another of the two classes.

        Args:
            positive: the class; it must be one of `classes`.
            named: False if nothing names the class that single probabilities are of. Then they are of `positive`.
        """
        if class_place(positive, self.classes) == 1:
            return self
        order = tuple(reversed(self.order or (0, 1))) if named else self.order
        return replace(self, classes=tuple(reversed(self.classes)), order=() if order == (0, 1) else order)

    def to_json(self) -> dict[str, Json]:
        return {
            "order": list(self.order),
            "classes": list(self.classes),
            "choice": self.choice,
            "rule": self.rule.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], task: Task) -> Self:
        """Read the result of `to_json`. Packages of earlier versions only have an order."""
        return cls(
            task=task,
            order=tuple(data["order"]),
            classes=tuple(data.get("classes", ())),
            choice=data.get("choice", "rule"),
            rule=Rule.from_json(data["rule"]) if "rule" in data else PLAIN,
        )

    def _arranged(self, probabilities: Array) -> Array:
        """Return probabilities in the order of `classes`; for two classes, that of the second."""
        order = self.order
        if self.task == "binary" and probabilities.ndim == 2:
            return np.ascontiguousarray(probabilities[:, order[1] if order else 1])
        if self.task == "binary":
            # One number for each row is the probability of the estimator's second class.
            return 1.0 - probabilities if order == (1, 0) else probabilities
        if not order:
            return probabilities
        return np.ascontiguousarray(probabilities[:, list(order)])

    def _places(self, predicted: Any) -> Places:
        """Return predicted classes as indices into `classes`."""
        found = np.asarray(predicted)
        values = found.reshape(-1).tolist()
        if len(values) != len(found):
            raise UsageError(
                f"`predict` returns {len(values) // max(1, len(found))} values for a row instead of one class.",
                help="Fit and save one model for each target.",
            )
        known = {value: index for index, value in enumerate(self.classes)}
        try:
            return np.fromiter((known[value] for value in values), dtype=np.intp, count=len(values))
        except (KeyError, TypeError):
            strange = next(value for value in values if not _known(value, known))
            raise RequestError(
                f"The model predicts {strange!r}, which is not one of its classes.",
                help=f"Its classes: {', '.join(map(repr, self.classes[:10]))}",
            ) from None


def question_for(
    estimator: Any, task: Task, order: Sequence[int], classes: Sequence[Json], *, chances: bool = True
) -> EstimatorScores:
    """Return how the scores and classes of an estimator are computed.

    Args:
        chances: False if the estimator gives no probabilities.
    """
    choice: Choice = "rule"
    if task != "regression" and not chances:
        choice = "votes"
    elif task != "regression" and hasattr(estimator, "predict_proba") and hasattr(estimator, "predict"):
        last = last_step(estimator)
        known = _LARGEST.get(type(last).__module__.partition(".")[0], set())
        choice = "largest" if type(last).__name__ in known else "predict"
    return EstimatorScores(task=task, order=tuple(order), classes=tuple(classes), choice=choice)


def last_step(estimator: Any) -> Any:
    """Return the last estimator of a pipeline, or the estimator itself."""
    while is_pipeline(estimator):
        estimator = estimator.steps[-1][1]
    return estimator


def is_pipeline(estimator: Any) -> bool:
    """Whether this is exactly scikit-learn's `Pipeline`, which predicts only by its steps."""
    kind = type(estimator)
    return kind.__name__ == "Pipeline" and kind.__module__ == "sklearn.pipeline" and bool(estimator.steps)


def own_copy(rows: Any) -> Any:
    """Return a copy of a table that an estimator may change."""
    # Polars frames do not change, and lists and sparse matrices are converted by the estimator.
    return rows.copy() if hasattr(rows, "iloc") or isinstance(rows, np.ndarray) else rows


def _prepared(estimator: Any, rows: Any) -> tuple[Any, Any]:
    """Return the last step of a pipeline and its input, so that two calls of the last step transform the rows once."""
    while is_pipeline(estimator) and len(estimator.steps) > 1:
        rows, estimator = estimator[:-1].transform(rows), estimator.steps[-1][1]
    return estimator, rows


def _probabilities(estimator: Any, rows: Any) -> Array:
    # A native booster returns probabilities from `predict`.
    predict = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.predict
    return np.asarray(predict(rows), dtype=np.float64)


def _numbers(predicted: Any) -> Array:
    found = np.asarray(predicted, dtype=np.float64)
    values = found.reshape(-1)
    if len(values) != len(found):
        raise UsageError(
            f"`predict` returns {len(values) // max(1, len(found))} values for a row instead of one number.",
            help="Fit and save one model for each target.",
        )
    return values


def _known(value: Any, known: Mapping[Any, int]) -> bool:
    try:
        return value in known
    except TypeError:
        return False
