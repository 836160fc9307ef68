"""Answers that travel with a package: rows, and what the trained model said to each.

With them any machine can show that the package answers there as the model that was evaluated, whatever versions of
libraries stand between the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, EverloopError, ParityError
from everloop.packages.parity import each_answer, edge_rows, frame_of, plain_rows
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
"""So many rows of the training sample, and as many edge rows."""
TOLERANCE = 1e-5
"""Absolute below one, relative above. Nothing but another arithmetic is as near."""


def record_answers(model: Model, signature: Signature, sample: pl.DataFrame) -> bytes:
    """What `model` answers to some rows of the sample and to edge rows that it takes, as JSON."""
    import msgspec

    # Asked as the proof asks for them, so that a model that remembers need not be asked again.
    some, edges = TimeBudget.first_piece(sample), edge_rows(signature, sample)
    asked = [
        *_some(plain_rows(some, signature), each_answer(model, some)),
        *_some(edges, each_answer(model, frame_of(edges, signature))),
    ]
    kept: list[dict[str, Any]] = []
    for row, answer in asked:
        if not isinstance(answer, Exception):
            told = {} if answer.places is None else {"label": signature.classes[int(answer.places[0])]}
            kept.append({"row": row, "scores": answer.scores[0].tolist(), **told})
    return msgspec.json.format(msgspec.json.encode(kept, order="deterministic"), indent=1) + b"\n"


def _some(rows: list[Row], answers: list[ClassScores | Exception]) -> list[tuple[Row, ClassScores | Exception]]:
    return list(zip(rows, answers, strict=True))[:: max(1, len(rows) // ROWS)][:ROWS]


def check_answers(predictor: PredictorView, recorded: bytes) -> tuple[int, float]:
    """Ask the same again: how many rows, and the largest difference.

    Raises:
        ParityError: an answer is another, or a row is refused.
        CorruptionError: the file holds no answers.
    """
    import msgspec
    import numpy as np

    try:
        kept = msgspec.json.decode(recorded)
        # Where features are looked up, the model behind the look-ups is held to its word: they change, it does not.
        model: Any = getattr(predictor.model, "inner", predictor.model)
        signature = getattr(predictor.model, "signature", predictor.signature)
        values = signature.rows_of([entry["row"] for entry in kept])
        rows = [dict(zip(signature.names, row, strict=True)) for row in values]
        wanted = np.array([entry["scores"] for entry in kept], dtype=np.float64)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, EverloopError) as error:
        raise CorruptionError(f"The package's {FILE} cannot be read: {error}") from error
    if not kept:
        return 0, 0.0
    try:
        scores, places = answer_rows(model, rows)
        found = np.asarray(scores, dtype=np.float64)
    except Exception as error:  # any estimator may stand behind it
        raise ParityError(
            f"The model {predictor.told} refuses a row that it answered when it was packaged: {error}"
        ) from error
    if found.shape != wanted.shape:
        raise ParityError(f"The model {predictor.told} gives scores of shape {found.shape}, not {wanted.shape}.")
    apart = np.nan_to_num(np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted)), nan=np.inf)
    if apart.max() > TOLERANCE:
        at = int(np.argmax(apart.reshape(len(kept), -1).max(axis=1)))
        raise ParityError(
            f"The model {predictor.told} answers {found[at].tolist()} where it answered {wanted[at].tolist()} "
            "when it was packaged.",
            help="A library here may be of another version: everloop models verify tells which.",
        )
    for entry, place in zip(kept, () if places is None else places.tolist(), strict=False):
        # A package of an earlier version holds no labels.
        if entry.get("label", predictor.classes[place]) != predictor.classes[place]:
            raise ParityError(
                f"The model {predictor.told} predicts {predictor.classes[place]!r} where it predicted "
                f"{entry['label']!r} when it was packaged ({entry['row']}).",
                help="A library here may be of another version: everloop models verify tells which.",
            )
    return len(kept), float(apart.max())
