"""Represent predictions as scores and predicted classes, and derive classes from scores.

A model's own `predict` decides the class, which need not follow from the probabilities: a threshold may have been
tuned, ties may be resolved either way, and some classifiers use another rule. So a prediction has scores *and* a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]
    Places = NDArray[np.intp]

THRESHOLD = 0.5


class ClassScores(NamedTuple):
    """Scores in the shape of `Model.predict_scores`, and the predicted class of each row.

    `places` are indices into the model's `classes`, of shape (n,); None for a regression.
    """

    scores: Array
    places: Places | None

    def take(self, rows: Places) -> ClassScores:
        """Return the predictions for some of the rows."""
        return ClassScores(self.scores[rows], None if self.places is None else self.places[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule that derives the class from the scores.

    For two classes: the second class if the score reaches `threshold`, or exceeds it if `strict`. For several classes:
    the one with the largest score, the first of them in a tie.
    """

    threshold: float = THRESHOLD
    strict: bool = False

    def places(self, scores: Array) -> Places:
        """Return the index of the predicted class of each row, from scores of shape (n,) or (n, classes)."""
        if scores.ndim == 2:
            largest: Places = scores.argmax(axis=1)
            return largest
        return ((scores > self.threshold) if self.strict else (scores >= self.threshold)).astype(int)

    def to_json(self) -> dict[str, Json]:
        return {"threshold": self.threshold, "strict": self.strict}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(threshold=float(data["threshold"]), strict=bool(data["strict"]))


PLAIN = Rule()
"""The rule of everloop's own models, and of models without a rule: the second class from a score of one half."""


def rule_of(model: Any) -> Rule | None:
    """Return the rule by which a model's classes follow from its scores; None if the model decides by itself."""
    if hasattr(model, "answer_frame"):
        rule: Rule | None = getattr(model, "rule", None)
        return rule
    return getattr(model, "rule", PLAIN)


def answer_frame(model: Any, frame: pl.DataFrame) -> ClassScores:
    """Return any model's scores and classes for the rows of a frame."""
    method = getattr(model, "answer_frame", None)
    if method is not None:
        predictions: ClassScores = method(frame)
        return predictions
    return by_rule(model, model.predict_scores(frame))


def answer_rows(model: Any, rows: Sequence[Mapping[str, object]]) -> ClassScores:
    """Return any model's scores and classes for plain rows."""
    method = getattr(model, "answer_rows", None)
    if method is not None:
        predictions: ClassScores = method(rows)
        return predictions
    return by_rule(model, model.predict_rows(rows))


def by_rule(model: Any, scores: Array) -> ClassScores:
    """Return scores with the classes that follow from them by the model's rule."""
    if getattr(model, "task", None) == "regression":
        return ClassScores(scores, None)
    return ClassScores(scores, (getattr(model, "rule", None) or PLAIN).places(scores))


def votes(places: Places, classes: int) -> Array:
    """Return scores of 0 and 1 that only name the class: shape (n,) for two classes, (n, classes) for several."""
    import numpy as np  # not at the top: the server imports this module, and has no use for 13 MB of NumPy

    if classes == 2:
        return places.astype(np.float64)
    found = np.zeros((len(places), classes))
    found[np.arange(len(places)), places] = 1.0
    return found
