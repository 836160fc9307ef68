"""Which class an answer names.

A model's own `predict` decides, and it need not follow from the probabilities: a threshold may have been tuned, ties go
one way or the other, some classifiers decide by another rule altogether. So an answer is its scores *and* its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]
    Places = NDArray[np.intp]

THRESHOLD = 0.5


class ClassScores(NamedTuple):
    """Scores as `Model` promises them, and the predicted class of each row by its place in `classes`.

    `places` has shape (n,); None for a regression.
    """

    scores: Array
    places: Places | None

    def take(self, rows: Places) -> ClassScores:
        """The answers to some of the rows."""
        return ClassScores(self.scores[rows], None if self.places is None else self.places[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule that reads the class off the scores.

    Two classes: the second from `threshold` on, or only above it where `strict`. Several: the first of the largest.
    """

    threshold: float = THRESHOLD
    strict: bool = False

    def places(self, scores: Array) -> Places:
        """The predicted class of each row; scores of shape (n,) or (n, classes)."""
        if scores.ndim == 2:
            largest: Places = np.argmax(scores, axis=1)
            return largest
        return ((scores > self.threshold) if self.strict else (scores >= self.threshold)).astype(np.intp)

    def to_json(self) -> dict[str, Json]:
        return {"threshold": self.threshold, "strict": self.strict}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(threshold=float(data["threshold"]), strict=bool(data["strict"]))


PLAIN = Rule()
"""What everloop's own models follow, and models that say nothing of classes: from one half on."""


def rule_of(model: Any) -> Rule | None:
    """The rule by which a model's classes follow from its scores; None where only the model itself can tell."""
    if hasattr(model, "answer_frame"):
        rule: Rule | None = getattr(model, "rule", None)
        return rule
    return getattr(model, "rule", PLAIN)


def answer_frame(model: Any, frame: pl.DataFrame) -> ClassScores:
    """Scores and classes of the rows of a frame, from any `Model`."""
    own = getattr(model, "answer_frame", None)
    if own is not None:
        answers: ClassScores = own(frame)
        return answers
    return by_rule(model, model.predict_scores(frame))


def answer_rows(model: Any, rows: Sequence[Mapping[str, object]]) -> ClassScores:
    """The same of plain rows."""
    own = getattr(model, "answer_rows", None)
    if own is not None:
        answers: ClassScores = own(rows)
        return answers
    return by_rule(model, model.predict_rows(rows))


def by_rule(model: Any, scores: Array) -> ClassScores:
    """Scores with the classes that the model's rule reads off them."""
    if getattr(model, "task", None) == "regression":
        return ClassScores(scores, None)
    return ClassScores(scores, (getattr(model, "rule", None) or PLAIN).places(scores))


def votes(places: Places, classes: int) -> Array:
    """Scores that say the class and nothing else: (n,) of 0 and 1 for two classes, (n, classes) for several."""
    if classes == 2:
        return places.astype(np.float64)
    found = np.zeros((len(places), classes))
    found[np.arange(len(places)), places] = 1.0
    return found


__all__ = ["PLAIN", "THRESHOLD", "ClassScores", "Rule", "answer_frame", "answer_rows", "by_rule", "rule_of", "votes"]
