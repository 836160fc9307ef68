"""Cache a model's predictions while it is packaged.

Proving, compiling and recording predict the same training rows and edge rows. With the cache, a slow model predicts
each of them once.
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
    """The trained model with a cache of its predictions for frames.

    Only the trained model is cached; a packaged model that is compared with it always predicts. Predictions for dicts
    are not cached, so that measuring their time works.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.format = model.format
        self.task: Task = model.task
        self.inputs = model.inputs
        self._cache: dict[bytes, ClassScores | Exception] = {}

    @property
    def rule(self) -> Any:
        return getattr(self.model, "rule", None)

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Return scores and classes of a frame; raises the model's own errors."""
        key = _key(frame.select(self.inputs))
        if key not in self._cache:
            try:
                self._cache[key] = answer_frame(self.model, frame)
            except Exception as error:  # errors are cached as well
                self._cache[key] = error
        cached = self._cache[key]
        if isinstance(cached, Exception):
            raise cached
        return cached

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        return answer_rows(self.model, rows)

    def predict_scores(self, frame: pl.DataFrame) -> NDArray[Any]:
        return self.answer_frame(frame).scores

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> NDArray[Any]:
        return self.model.predict_rows(rows)


def plain_model(model: object) -> Model:
    """Return the model without its cache."""
    return model.model if isinstance(model, CachedModel) else cast("Model", model)


def _key(frame: pl.DataFrame) -> bytes:
    """Return a digest of the rows, bit by bit: -0.0 and 0.0 differ."""
    # In one chunk, Arrow's bytes do not depend on how the frame was built.
    content = frame.rechunk().write_ipc(None).getvalue()
    return hashlib.blake2b(content, digest_size=16).digest()


__all__ = ["CachedModel", "plain_model"]
