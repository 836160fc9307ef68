"""Remembers what a model's package answers to logged rows, so that each tick of a rollout scores only new rows."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl
    from numpy.typing import NDArray

    from everloop.packages import Predictor
    from everloop.training.class_decisions import ClassScores

_MOST_KEPT = 4
"""Models whose answers are remembered: candidate and champion of two rollouts."""
_kept: OrderedDict[tuple[str, datetime, str], ScoredRows] = OrderedDict()


class ScoredRows:
    """The answers of one model to rows of a prediction log, about 24 bytes for each row and class."""

    def __init__(self) -> None:
        self._keys: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._scores: NDArray[np.float64] | None = None
        self._places: NDArray[np.intp] | None = None

    def answer(self, model: Predictor, rows: pl.DataFrame) -> ClassScores:
        """Return the model's scores and classes for logged rows. Only rows whose id is new are scored."""
        from everloop.prediction_log import read_inputs
        from everloop.training.class_decisions import ClassScores

        if "id" not in rows.columns or rows["id"].null_count():
            return model.answer_frame(read_inputs(rows, model.signature))
        keys = rows["id"].hash(seed=0).to_numpy()
        new = ~np.isin(keys, self._keys)
        if self._scores is None or bool(new.any()):
            fresh = rows.filter(new)
            self._add(keys[new], model.answer_frame(read_inputs(fresh, model.signature)))
        assert self._scores is not None  # noqa: S101 - for the type checker
        found = np.searchsorted(self._keys, keys)
        return ClassScores(self._scores[found], None if self._places is None else self._places[found])

    def _add(self, keys: NDArray[np.uint64], answers: ClassScores) -> None:
        scores, places = answers
        if self._scores is not None:
            keys, scores = np.concatenate([self._keys, keys]), np.concatenate([self._scores, scores])
        if self._places is not None and places is not None:
            places = np.concatenate([self._places, places])
        order: NDArray[Any] = np.argsort(keys, kind="stable")
        self._keys, self._scores = keys[order], scores[order]
        self._places = None if places is None else places[order]


def scored_rows(root: str, began: datetime, version: str) -> ScoredRows:
    """What this process remembers of a version's answers during a release.

    Args:
        root: where the store's tables are.
        began: when the release began.
    """
    key = (root, began, version)
    kept = _kept.pop(key, None) or ScoredRows()
    _kept[key] = kept
    while len(_kept) > _MOST_KEPT:
        _kept.popitem(last=False)
    return kept


__all__ = ["ScoredRows", "scored_rows"]
