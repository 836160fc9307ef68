"""Proof that a packaged model predicts what the trained one did.

The rows are a sample of the training data, and edge rows, on which packaged models tend to fail: nulls, unseen
categories and extremes, in one column at a time and in all columns at once. This catches known traps: scaling before
trees changes predictions in float32; calibrated wrappers convert without an error and predict wrongly; an encoder
sorts its categories again.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, ParityError, TrainingError
from everloop.packages.signature import Input, Signature, polars_type
from everloop.packages.time_budget import TimeBudget
from everloop.training.class_decisions import ClassScores, answer_frame, answer_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from everloop.records import Json
    from everloop.training.trained_model import Model

SAMPLE_ROWS = 100_000
PLAIN_ROWS = 500
"""Sample rows that are also predicted as dicts, as an endpoint does."""
MIXED_ROWS = 2000
ALONE_ROWS = 20
"""Sample rows that are also predicted alone."""
ALONE_TOLERANCE = 1e-4
"""Relative: rounding in single precision depends on the number of rows."""
_FEW_ROWS = 3
"""Up to this number, rows that are refused together are predicted one by one."""
UNSEEN = "\N{REPLACEMENT CHARACTER} never seen in training"

_EDGES: dict[str, tuple[object, ...]] = {
    "float": (0.0, -0.0, 1e-300, -1e300, 1e300, 0.1 + 0.2, 16777217.0),
    "int": (0, -1, 2**31, -(2**31) - 1, 2**53, -(2**63), 2**63 - 1),
    "bool": (True, False),
    "string": (UNSEEN, "", " ", "null", "x" * 1000),
    "date": (date(1970, 1, 1), date(1, 1, 1), date(9999, 12, 31), date(2024, 2, 29)),
    "datetime": (
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2024, 2, 29, 12, tzinfo=UTC),
    ),
    "time": (time(0), time(23, 59, 59, 999999)),
    "duration": (timedelta(0), timedelta(microseconds=-1), timedelta(days=36500)),
}

_OTHER_FORMAT = "Train with a built-in algorithm, or adopt the estimator in its own format."

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Result of a proof: rows compared and the largest difference. `refused`: edge rows that both models refuse."""

    sample_rows: int
    edge_rows: int
    refused: int
    largest_difference: float
    tolerance: float

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def sample_of(frame: pl.DataFrame, signature: Signature, rows: int = SAMPLE_ROWS) -> pl.DataFrame:
    """Return the inputs' columns for at most `rows` rows of `frame`, spread evenly."""
    chosen = frame.select(list(signature.names))
    return chosen if chosen.height <= rows else chosen.gather_every(-(-chosen.height // rows))


def edge_rows(signature: Signature, sample: pl.DataFrame) -> list[Row]:
    """Return rows at the limits of what the signature allows, each built on a row of the sample.

    Deterministic. Values have the types of a decoded request. Rows that have the same value in different inputs are
    neighbours, because a model that refuses one of them usually refuses all.
    """
    base = plain_rows(sample.head(1), signature)[0]
    values = {item.name: _edge_values(item) for item in signature.inputs}
    longest = max(map(len, values.values()))
    rows = [
        {**base, name: known[index]} for index in range(longest) for name, known in values.items() if index < len(known)
    ]
    rows += [{name: _from_end(known, index) for name, known in values.items()} for index in range(longest)]
    return rows


def mixed_rows(sample: pl.DataFrame, rows: int = MIXED_ROWS) -> pl.DataFrame:
    """Return rows whose values come from different rows of the sample: combinations that training did not see.

    Deterministic. Ties are frequent among them.
    """
    import numpy as np

    draw = np.random.default_rng(0)
    return sample.select(series[draw.integers(0, sample.height, rows)] for series in sample.get_columns())


def probe(model: Model, signature: Signature, sample: pl.DataFrame) -> Signature:
    """Try nulls and unseen categories, and mark in the signature which inputs do not take them.

    A model that takes everything keeps its signature. Without the marks, a model that raises on nulls would fail a
    request instead of refusing it.

    Raises:
        TrainingError: the model cannot predict the first row of its training data.
    """
    base = plain_rows(sample.head(1), signature)[0]
    texts = [item.name for item in signature.inputs if item.type == "string" and item.categories]
    probes = [(item.name, None) for item in signature.inputs if item.nullable] + [(name, UNSEEN) for name in texts]
    # The unchanged row comes first, so that one call is enough for a model that takes everything.
    rows = frame_of([base, *({**base, name: value} for name, value in probes)], signature)
    if isinstance(try_predict(model, rows), Exception) and isinstance(try_predict(model, rows[:1]), Exception):
        _predict(model, rows[:1], "the first row of its training sample")
    if not probes:
        return signature
    _, *found = predict_each(model, rows)
    refused = {probe for probe, prediction in zip(probes, found, strict=True) if isinstance(prediction, Exception)}
    return replace(
        signature,
        inputs=tuple(
            replace(
                item,
                nullable=item.nullable and (item.name, None) not in refused,
                closed=item.closed or (item.name, UNSEEN) in refused,
            )
            for item in signature.inputs
        ),
    )


def prove(
    original: Model,
    packaged: Model,
    signature: Signature,
    sample: pl.DataFrame,
    *,
    tolerance: float,
    effort: TimeBudget | None = None,
) -> Parity:
    """Compare scores and classes of two models on the sample and on edge rows, passed as a frame and as dicts.

    Args:
        sample: rows of the training data with at least the signature's columns; limit them with `sample_of`.
        tolerance: the largest difference allowed; relative for scores above one. 0 requires identical bits.
        effort: how long it may take.

    Raises:
        ParityError: a prediction differs, or one of the two refuses rows that the other takes.
    """
    effort = effort or TimeBudget()
    # Edge rows come first: they are few, and most failures occur there.
    edges = edge_rows(signature, sample)
    effort.report("edge rows", 0, len(edges))
    refused, worst = _prove_edges(original, packaged, signature, edges, tolerance)
    compared = 0
    for piece in effort.pieces(sample, "training rows"):
        expected = _predict(original, piece, "the training sample")
        found = _predict(packaged, piece, "the training sample")
        worst = max(worst, compare(expected, found, piece, "frame", tolerance))
        if not compared:
            first = piece.head(PLAIN_ROWS)
            plain = _predict_rows(packaged, plain_rows(first, signature), "the training sample, as dicts")
            indices = None if expected.places is None else expected.places[: first.height]
            wanted = ClassScores(expected.scores[: first.height], indices)
            worst = max(worst, compare(wanted, plain, first, "dicts", tolerance))
            _prove_alone(packaged, plain_rows(first, signature), plain, effort)
        compared += piece.height
    return Parity(
        sample_rows=compared,
        edge_rows=len(edges),
        refused=refused,
        largest_difference=worst,
        tolerance=tolerance,
    )


def _prove_alone(model: Model, rows: list[Row], together: ClassScores, effort: TimeBudget) -> None:
    """Check that a row is predicted alone as it is among others: an endpoint predicts single rows.

    Raises:
        ParityError: the prediction depends on the other rows.
    """
    import numpy as np

    chosen = np.unique(np.linspace(0, len(rows) - 1, min(ALONE_ROWS, len(rows))).astype(int)).tolist()
    for done, index in enumerate(chosen):
        if done >= _FEW_ROWS and effort.over:
            effort.leave_out(f"{len(chosen) - done} of {len(chosen)} training rows alone")
            return
        alone = _predict_rows(model, rows[index : index + 1], f"a row of the training sample alone, {rows[index]}")
        wanted = together.scores[index]
        apart = np.abs(alone.scores[0] - wanted) / np.maximum(1.0, np.abs(wanted))
        if alone.scores.shape[1:] != wanted.shape or (apart > ALONE_TOLERANCE).any():
            raise ParityError(
                f"The prediction of a row depends on the other rows of the request: {alone.scores[0].tolist()} alone, "
                f"{wanted.tolist()} among {len(rows)} rows (row {rows[index]}).",
                help="Compute means, codes, ranks and the columns of dummies in `fit` and keep them on the model; "
                "`predict` must use only these.",
            )


def _prove_edges(
    original: Model, packaged: Model, signature: Signature, edges: list[Row], tolerance: float
) -> tuple[int, float]:
    """Compare edge rows. Return how many rows both models refuse, and the largest difference."""
    together = frame_of(edges, signature)
    wanted = predict_each(original, together)
    accepted = [index for index, prediction in enumerate(wanted) if not isinstance(prediction, Exception)]
    worst = 0.0
    if accepted:
        frame, rows = together[accepted], [edges[index] for index in accepted]
        # Predicted once more as one frame, because rounding in single precision depends on the number of rows.
        again = try_predict(original, frame)
        single = [prediction for prediction in wanted if not isinstance(prediction, Exception)]
        expected = stacked(single) if isinstance(again, Exception) else again
        for found, way in ((try_predict(packaged, frame), "frame"), (_try_predict_rows(packaged, rows), "dicts")):
            if isinstance(found, Exception):
                # Predict row by row, so that the message can name the row that is refused.
                each = (
                    predict_each(packaged, frame)
                    if way == "frame"
                    else [_try_predict_rows(packaged, [row]) for row in rows]
                )
                found = stacked([_accepted(prediction, row, way) for prediction, row in zip(each, rows, strict=True)])
            worst = max(worst, compare(expected, found, frame, f"edge rows as {way}", tolerance))
    refused = [index for index, prediction in enumerate(wanted) if isinstance(prediction, Exception)]
    for index in refused:
        if not isinstance(try_predict(packaged, together[index : index + 1]), Exception):
            raise ParityError(
                f"The packaged model accepts an edge row that the trained one refuses: {edges[index]}.",
                help=_OTHER_FORMAT,
            )
    return len(refused), worst


def _accepted(prediction: ClassScores | Exception, row: Row, way: str) -> ClassScores:
    if isinstance(prediction, Exception):
        raise ParityError(
            f"The packaged model refuses an edge row that the trained one accepts ({way}): {row}: {prediction}",
            help=_OTHER_FORMAT,
        ) from prediction
    return prediction


def predict_each(model: Model, frame: pl.DataFrame) -> list[ClassScores | Exception]:
    """Return for each row its prediction, or the error with which the model refuses it.

    All rows are predicted together. If they are refused, they are halved until each refused row was predicted alone.
    """
    found = try_predict(model, frame)
    return _halve(model, frame, found) if isinstance(found, Exception) else _single(found)


def _halve(model: Model, frame: pl.DataFrame, refusal: Exception) -> list[ClassScores | Exception]:
    """Do the same for rows that are refused together."""
    if frame.height == 1:
        return [refusal]
    if frame.height <= _FEW_ROWS:
        return [found for index in range(frame.height) for found in predict_each(model, frame[index : index + 1])]
    middle = frame.height // 2
    left = try_predict(model, frame[:middle])
    if not isinstance(left, Exception) and frame.height - middle > 1:
        # The refused rows are in the other half, so it need not be tried as a whole.
        return [*_single(left), *_halve(model, frame[middle:], refusal)]
    first = _halve(model, frame[:middle], left) if isinstance(left, Exception) else _single(left)
    return [*first, *predict_each(model, frame[middle:])]


def _single(predictions: ClassScores) -> list[ClassScores | Exception]:
    scores, indices = predictions
    return [
        ClassScores(scores[row : row + 1], None if indices is None else indices[row : row + 1])
        for row in range(len(scores))
    ]


def stacked(predictions: Sequence[ClassScores]) -> ClassScores:
    """Join the predictions of several frames."""
    import numpy as np

    indices = [prediction.places for prediction in predictions if prediction.places is not None]
    scores = np.concatenate([prediction.scores for prediction in predictions])
    return ClassScores(scores, np.concatenate(indices) if indices else None)


def frame_of(rows: Sequence[Mapping[str, object]], signature: Signature) -> pl.DataFrame:
    """Return decoded rows as a frame with the signature's types.

    Raises:
        RequestError: a value does not fit its column.
    """
    import polars as pl

    columns = {
        item.name: pl.Series(item.name, [row[item.name] for row in rows], dtype=polars_type(item.type), strict=True)
        for item in signature.inputs
    }
    return pl.DataFrame(columns)


def plain_rows(frame: pl.DataFrame, signature: Signature) -> list[Row]:
    """Return the rows of a frame with the types of a decoded request: one float type, times in UTC."""
    import polars as pl

    casts = []
    for item in signature.inputs:
        column = pl.col(item.name)
        dtype = frame.schema[item.name]
        if item.type == "datetime" and getattr(dtype, "time_zone", None) is None:
            column = column.dt.cast_time_unit("us").dt.replace_time_zone("UTC")
        elif item.type == "datetime":
            column = column.dt.cast_time_unit("us").dt.convert_time_zone("UTC")
        else:
            column = column.cast(polars_type(item.type))
        casts.append(column)
    return frame.select(casts).to_dicts()


def _edge_values(item: Input) -> tuple[object, ...]:
    values = _EDGES[item.type]
    if item.closed:
        values = item.categories[:1] + item.categories[-1:]
    elif item.categories:
        values = (*values, *item.categories[:1], *item.categories[-1:])
    return (*values, None) if item.nullable else values


def _from_end(values: tuple[object, ...], index: int) -> object:
    # Counted from the end, so that the first combined row is null in every nullable input.
    return values[-1 - index % len(values)]


def _predict(model: Model, frame: pl.DataFrame, rows: str) -> ClassScores:
    prediction = try_predict(model, frame)
    if isinstance(prediction, EverloopError):
        raise prediction
    if isinstance(prediction, Exception):
        raise TrainingError(
            f"The model cannot score {rows}: {prediction}.", help="Pass rows like those that the model was fitted on."
        ) from prediction
    return prediction


def _predict_rows(model: Model, rows: list[Row], what: str) -> ClassScores:
    try:
        return answer_rows(model, rows)
    except Exception as error:
        raise ParityError(f"The packaged model cannot score {what}: {error}.", help=_OTHER_FORMAT) from error


def try_predict(model: Model, frame: pl.DataFrame) -> ClassScores | Exception:
    """Return the predictions, or the error: a foreign estimator can raise anything."""
    import numpy as np

    try:
        # Edge rows overflow on purpose, which is not worth a warning.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            predictions = answer_frame(model, frame)
    except Exception as error:
        return error
    return predictions if np.isfinite(predictions.scores).all() else TrainingError("the score is not a finite number")


def _try_predict_rows(model: Model, rows: Sequence[Row]) -> ClassScores | Exception:
    import numpy as np

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return answer_rows(model, rows)
    except Exception as error:
        return error


def compare(expected: ClassScores, found: ClassScores, frame: pl.DataFrame, way: str, tolerance: float) -> float:
    """Return the largest difference of scores.

    Raises:
        ParityError: it is above `tolerance`, or a predicted class differs.
    """
    import numpy as np

    wanted, got = expected.scores, found.scores
    if wanted.shape != got.shape:
        raise ParityError(
            f"The packaged model gives scores of shape {got.shape} ({way}), not {wanted.shape}.", help=_OTHER_FORMAT
        )
    if not wanted.size:
        return 0.0
    apart = np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))
    apart = np.where(np.isnan(got) == np.isnan(wanted), np.nan_to_num(apart, nan=0.0), np.inf)
    worst = float(apart.max())
    if worst > tolerance:
        at = int(np.argmax(apart.reshape(len(frame), -1).max(axis=1)))
        raise ParityError(
            f"The packaged model predicts {got[at].tolist()}, but the trained one predicts {wanted[at].tolist()} "
            f"({way}, row {frame.row(at, named=True)}); the difference {worst:.3g} is above {tolerance:g}.",
            help=_OTHER_FORMAT,
        )
    if expected.places is not None and found.places is not None:
        different = np.flatnonzero(expected.places != found.places)
        if len(different):
            at = int(different[0])
            raise ParityError(
                f"The packaged model predicts class {found.places[at]}, but the trained one predicts class "
                f"{expected.places[at]} ({way}, row {frame.row(at, named=True)}).",
                help=_OTHER_FORMAT,
            )
    return worst
