"""Loader module that lets `mlflow.pyfunc.load_model(folder)` read a model folder that everloop wrote.

The file `MLmodel` names this module. MLflow imports it and calls `_load_pyfunc` with the package's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.packages import Predictor


class PyfuncAdapter:
    """A package with the `predict` method that MLflow calls."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Return the predicted class of each row, or its value for a regression.

        The columns of an array are in the order of the signature.
        """
        import numpy as np
        import polars as pl

        names = self.predictor.input_names
        if isinstance(rows, np.ndarray):
            frame = pl.DataFrame({name: rows[:, index] for index, name in enumerate(names)})
        else:
            frame = pl.DataFrame({name: pl.Series(name, list(rows[name])) for name in names if name in rows})
        scores, indices = self.predictor.answer_frame(frame)
        labels = self.predictor.name_places(indices)
        return scores if labels is None else np.asarray(labels)


def _load_pyfunc(path: str) -> PyfuncAdapter:
    from everloop.registry import load_model

    return PyfuncAdapter(load_model(Path(path)))
