"""A model that is not asked the same rows twice while it is packaged.

Proving, compiling and recording look at the same training rows and edge rows. A slow model is asked
for each of them once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, cast

from everloop.training.class_decisions import ClassScores, answer_frame, answer_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.trained_model import Model, Task


class CachedModel:
    """The trained model with its answers to whole frames; asks it only for frames that it has not had.

    It is for the trained model alone: what is held against it is always asked. Rows as dicts are not remembered, so
    that measuring measures.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.format = model.format
        self.task: Task = model.task
        self.inputs = model.inputs
        self._known: dict[bytes, ClassScores | Exception] = {}

    @property
    def rule(self) -> Any:
        return getattr(self.model, "rule", None)

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Scores and classes of a frame; raises what the model raised."""
        key = _key(frame.select(self.inputs))
        if key not in self._known:
            try:
                self._known[key] = answer_frame(self.model, frame)
            except Exception as error:  # whatever the model raises is its answer
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, Exception):
            raise known
        return known

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        return answer_rows(self.model, rows)

    def predict_scores(self, frame: pl.DataFrame) -> NDArray[Any]:
        return self.answer_frame(frame).scores

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> NDArray[Any]:
        return self.model.predict_rows(rows)


def plain_model(model: object) -> Model:
    """The model itself."""
    return model.model if isinstance(model, CachedModel) else cast("Model", model)


def _key(frame: pl.DataFrame) -> bytes:
    """A digest of the rows, bit by bit: -0.0 and 0.0 are two questions."""
    # Arrow's bytes do not depend on how the frame was put together once it lies in one piece.
    written = frame.rechunk().write_ipc(None).getvalue()
    return hashlib.blake2b(written, digest_size=16).digest()


__all__ = ["CachedModel", "plain_model"]
