"""How a fitted estimator of any library is asked for scores and classes.

Scores come from `predict_proba`, classes from `predict`: nothing but the estimator's own method knows its threshold,
what it does with ties, and whether its classes follow from its probabilities at all. A few estimators are known to take
the first of the largest probabilities; those are asked once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from everloop.errors import RequestError, UsageError
from everloop.training.class_decisions import PLAIN, ClassScores, Rule, votes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from everloop.training.trained_model import Json, Task

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
"""Estimators whose `predict` is, by their source, the first of the largest of `predict_proba`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorScores:
    """How an estimator is asked.

    Attributes:
        order: where the estimator has each class; empty where it has them in order.
        classes: in everloop's order, as plain Python.
        choice: how the class is found. `rule`: by `rule`, from the scores. `largest`: the first of the largest
            probabilities, in the estimator's own order. `predict`: the estimator is asked. `votes`: it is asked, and
            there are no probabilities: the score of the class that it names is 1, of the others 0.
    """

    task: Task
    order: tuple[int, ...] = ()
    classes: tuple[Json, ...] = ()
    choice: Choice = "rule"
    rule: Rule = PLAIN

    def answer(self, estimator: Any, rows: Any) -> ClassScores:
        """Scores and classes of a table that the estimator takes."""
        if self.task == "regression":
            return ClassScores(_numbers(estimator.predict(rows)), None)
        if self.choice == "votes":
            places = self._places(estimator.predict(rows))
            return ClassScores(votes(places, len(self.classes)), places)
        if self.choice == "predict":
            estimator, rows = _prepared(estimator, rows)
            scores = self._arranged(_chances(estimator, rows))
            return ClassScores(scores, self._places(estimator.predict(rows)))
        chances = _chances(estimator, rows)
        scores = self._arranged(chances)
        if self.choice == "largest" and chances.ndim == 2:
            largest = np.argmax(chances, axis=1)
            return ClassScores(scores, np.argsort(self.order)[largest] if self.order else largest)
        return ClassScores(scores, self.rule.places(scores))

    def scores(self, estimator: Any, rows: Any) -> Array:
        """Scores alone, which cost half where the estimator would have to be asked for its classes as well."""
        if self.task == "regression" or self.choice == "votes":
            return self.answer(estimator, rows).scores
        return self._arranged(_chances(estimator, rows))

    def to_json(self) -> dict[str, Json]:
        return {
            "order": list(self.order),
            "classes": list(self.classes),
            "choice": self.choice,
            "rule": self.rule.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], task: Task) -> Self:
        """Read what `to_json` wrote; a package of an earlier version has an order and nothing more."""
        return cls(
            task=task,
            order=tuple(data["order"]),
            classes=tuple(data.get("classes", ())),
            choice=data.get("choice", "rule"),
            rule=Rule.from_json(data["rule"]) if "rule" in data else PLAIN,
        )

    def _arranged(self, chances: Array) -> Array:
        order = self.order
        if self.task == "binary":
            return np.ascontiguousarray(chances[:, order[1] if order else 1]) if chances.ndim == 2 else chances
        return np.ascontiguousarray(chances[:, list(order)]) if order else chances

    def _places(self, predicted: Any) -> Places:
        """Predicted classes as places in `classes`."""
        found = np.asarray(predicted)
        values = found.reshape(-1).tolist()
        if len(values) != len(found):
            raise UsageError(f"`predict` gives {len(values) // max(1, len(found))} values a row, not one class.")
        known = {value: place for place, value in enumerate(self.classes)}
        try:
            return np.fromiter((known[value] for value in values), dtype=np.intp, count=len(values))
        except (KeyError, TypeError):
            strange = next(value for value in values if not _known(value, known))
            raise RequestError(
                f"The model predicts {strange!r}, which is not one of its classes.",
                help=f"They are: {', '.join(map(repr, self.classes[:10]))}",
            ) from None


def question_for(
    estimator: Any, task: Task, order: Sequence[int], classes: Sequence[Json], *, chances: bool = True
) -> EstimatorScores:
    """How an estimator's classes are found.

    Args:
        chances: False where it gives no probabilities.
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
    """The estimator at the end of a pipeline."""
    while is_pipeline(estimator):
        estimator = estimator.steps[-1][1]
    return estimator


def is_pipeline(estimator: Any) -> bool:
    """Whether it is scikit-learn's own `Pipeline`, which predicts by its steps and nothing else."""
    kind = type(estimator)
    return kind.__name__ == "Pipeline" and kind.__module__ == "sklearn.pipeline" and bool(estimator.steps)


def _prepared(estimator: Any, rows: Any) -> tuple[Any, Any]:
    """The last step of a pipeline and the table that it gets, so that two questions prepare it once."""
    while is_pipeline(estimator) and len(estimator.steps) > 1:
        rows, estimator = estimator[:-1].transform(rows), estimator.steps[-1][1]
    return estimator, rows


def _chances(estimator: Any, rows: Any) -> Array:
    # A native booster answers probabilities from `predict`.
    ask = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.predict
    return np.asarray(ask(rows), dtype=np.float64)


def _numbers(predicted: Any) -> Array:
    found = np.asarray(predicted, dtype=np.float64)
    values = found.reshape(-1)
    if len(values) != len(found):
        raise UsageError(f"`predict` gives {len(values) // max(1, len(found))} values a row, not one number.")
    return values


def _known(value: Any, known: Mapping[Any, int]) -> bool:
    try:
        return value in known
    except TypeError:
        return False


__all__ = ["Choice", "EstimatorScores", "is_pipeline", "last_step", "question_for"]
