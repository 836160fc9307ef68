"""Golden predictions of a package: rows, and the prediction of the trained model for each.

With them any machine can check that the package predicts there what the evaluated model predicted, even if versions of
libraries differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, EverloopError, ParityError
from everloop.packages.parity import edge_rows, frame_of, plain_rows, predict_each
from everloop.packages.time_budget import TimeBudget
from everloop.training.class_decisions import answer_rows

if TYPE_CHECKING:
    import polars as pl

    from everloop.packages.parity import Row
    from everloop.packages.predictor_view import PredictorView
    from everloop.packages.signature import Signature
    from everloop.training.class_decisions import ClassScores
    from everloop.training.trained_model import Model

FILE = "answers.json"
ROWS = 20
"""Number of rows of the training sample, and of edge rows."""
TOLERANCE = 1e-5
"""Absolute for values below one, relative above. Only a difference in floating-point arithmetic is smaller."""


_OTHER_LIBRARY = "A library may have another version here. List the differences: everloop models verify MODEL@VERSION"


def record_predictions(model: Model, signature: Signature, sample: pl.DataFrame) -> bytes:
    """Return the model's predictions for some rows of the sample and for the edge rows that it takes, as JSON."""
    import msgspec

    # The same frames as in the proof, so that `CachedModel` has their predictions already.
    first, edges = TimeBudget.first_piece(sample), edge_rows(signature, sample)
    predicted = [
        *_some(plain_rows(first, signature), predict_each(model, first)),
        *_some(edges, predict_each(model, frame_of(edges, signature))),
    ]
    entries: list[dict[str, Any]] = []
    for row, prediction in predicted:
        if not isinstance(prediction, Exception):
            label = {} if prediction.places is None else {"label": signature.classes[int(prediction.places[0])]}
            entries.append({"row": row, "scores": prediction.scores[0].tolist(), **label})
    return msgspec.json.format(msgspec.json.encode(entries, order="deterministic"), indent=1) + b"\n"


def _some(rows: list[Row], predictions: list[ClassScores | Exception]) -> list[tuple[Row, ClassScores | Exception]]:
    return list(zip(rows, predictions, strict=True))[:: max(1, len(rows) // ROWS)][:ROWS]


def check_predictions(predictor: PredictorView, recorded: bytes) -> tuple[int, float]:
    """Predict the golden rows again. Return their number and the largest difference.

    Raises:
        ParityError: a prediction differs, or a row is refused.
        CorruptionError: the file does not hold golden rows.
    """
    import msgspec
    import numpy as np

    try:
        entries = msgspec.json.decode(recorded)
        # Looked-up features change over time, so the inner model is checked, which does not.
        model: Any = getattr(predictor.model, "inner", predictor.model)
        signature = getattr(predictor.model, "signature", predictor.signature)
        values = signature.rows_of([entry["row"] for entry in entries])
        rows = [dict(zip(signature.names, row, strict=True)) for row in values]
        wanted = np.array([entry["scores"] for entry in entries], dtype=np.float64)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, EverloopError) as error:
        raise CorruptionError(f"The package's {FILE} cannot be read: {error}") from error
    if not entries:
        return 0, 0.0
    try:
        scores, indices = answer_rows(model, rows)
        found = np.asarray(scores, dtype=np.float64)
    except Exception as error:  # a foreign estimator can raise anything
        raise ParityError(
            f"The model {predictor.display_name} refuses a row that it predicted when it was packaged: {error}",
            help=_OTHER_LIBRARY,
        ) from error
    if found.shape != wanted.shape:
        raise ParityError(
            f"The model {predictor.display_name} gives scores of shape {found.shape}, not {wanted.shape}.",
            help=_OTHER_LIBRARY,
        )
    apart = np.nan_to_num(np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted)), nan=np.inf)
    if apart.max() > TOLERANCE:
        at = int(np.argmax(apart.reshape(len(entries), -1).max(axis=1)))
        raise ParityError(
            f"The model {predictor.display_name} predicts {found[at].tolist()}, but it predicted "
            f"{wanted[at].tolist()} for the same row when it was packaged.",
            help=_OTHER_LIBRARY,
        )
    for entry, index in zip(entries, () if indices is None else indices.tolist(), strict=False):
        # Packages of earlier everloop versions hold no labels.
        if entry.get("label", predictor.classes[index]) != predictor.classes[index]:
            raise ParityError(
                f"The model {predictor.display_name} predicts {predictor.classes[index]!r}, but it predicted "
                f"{entry['label']!r} for the same row when it was packaged ({entry['row']}).",
                help=_OTHER_LIBRARY,
            )
    return len(entries), float(apart.max())
