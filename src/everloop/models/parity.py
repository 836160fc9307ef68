"""Proof that a packaged model answers as the trained one did.

The rows are a sample of the training data and edge rows, where packaged forms go wrong: nulls, categories that
training never saw, extremes, all of them in one column at a time and in all columns at once. Known traps that this
catches: scaling before trees changes answers in float32; calibrated wrappers convert without any error and answer
wrongly; an encoder that sorts its categories anew.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, ParityError, TrainingError
from everloop.models.signature import Input, Signature, polars_type

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.trained import Model

SAMPLE_ROWS = 100_000
PLAIN_ROWS = 500
"""Sample rows that are also asked as dicts, the way in which an endpoint asks."""
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

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What was compared and how far apart the answers were. `refused`: edge rows that neither form takes."""

    sample_rows: int
    edge_rows: int
    refused: int
    largest_difference: float
    tolerance: float

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def sample_of(frame: pl.DataFrame, signature: Signature, rows: int = SAMPLE_ROWS) -> pl.DataFrame:
    """The inputs' columns of at most `rows` rows of `frame`, spread evenly."""
    chosen = frame.select(list(signature.names))
    return chosen if chosen.height <= rows else chosen.gather_every(-(-chosen.height // rows))


def edge_rows(signature: Signature, sample: pl.DataFrame) -> list[Row]:
    """Rows at the borders of what the signature admits, each built on a row of the sample.

    Deterministic. Values are as a decoded request has them.
    """
    base = plain_rows(sample.head(1), signature)[0]
    rows: list[Row] = []
    for item in signature.inputs:
        rows.extend({**base, item.name: value} for value in _edge_values(item))
    widest = max(len(_edge_values(item)) for item in signature.inputs)
    for turn in range(widest):
        rows.append({item.name: _turn(_edge_values(item), turn) for item in signature.inputs})
    return rows


def probe(model: Model, signature: Signature, sample: pl.DataFrame) -> Signature:
    """Ask the model what it takes: inputs whose nulls or unseen categories it refuses are marked so.

    A model that takes everything keeps its signature; one that raises on nulls would otherwise fail a client's
    request instead of refusing it.

    Raises:
        TrainingError: the model does not even answer the first row of its own training data.
    """
    base = plain_rows(sample.head(1), signature)[0]
    if not _answers(model, signature, base):
        _ask(model, frame_of([base], signature), "the first row of its training sample")
    probes = [{**base, item.name: None} for item in signature.inputs]
    probes += [{**base, item.name: UNSEEN} for item in signature.inputs if item.type == "string"]
    if all(_answers(model, signature, row) for row in probes):
        return signature
    inputs = []
    for item in signature.inputs:
        nullable = item.nullable and _answers(model, signature, {**base, item.name: None})
        closed = bool(item.categories) and not _answers(model, signature, {**base, item.name: UNSEEN})
        inputs.append(replace(item, nullable=nullable, closed=closed))
    return replace(signature, inputs=tuple(inputs))


def prove(original: Model, packaged: Model, signature: Signature, sample: pl.DataFrame, *, tolerance: float) -> Parity:
    """Compare the two on the sample and on edge rows, asked as a frame and as dicts.

    Args:
        sample: rows of the training data with at least the signature's columns; use `sample_of` to bound it.
        tolerance: the largest difference allowed, relative to scores above one. 0 asks for the same bits.

    Raises:
        ParityError: an answer differs, or one of the two refuses rows that the other takes.
    """
    expected = _ask(original, sample, "the training sample")
    worst = _compare(expected, _ask(packaged, sample, "the training sample"), sample, "frame", tolerance)
    few = sample.gather_every(max(1, sample.height // PLAIN_ROWS))
    rows = plain_rows(few, signature)
    plain = _ask_rows(packaged, rows, "the training sample, as dicts")
    worst = max(worst, _compare(_ask(original, few, "the training sample"), plain, few, "dicts", tolerance))
    edges = edge_rows(signature, sample)
    together = frame_of(edges, signature)
    wanted, got = try_scores(original, together), try_scores(packaged, together)
    as_dicts = _try_rows(packaged, edges)
    if not isinstance(wanted, Exception) and not isinstance(got, Exception) and not isinstance(as_dicts, Exception):
        worst = max(worst, _compare(wanted, got, together, "edge rows as frame", tolerance))
        worst = max(worst, _compare(wanted, as_dicts, together, "edge rows as dicts", tolerance))
        refused = 0
    else:
        # Somebody refuses one of them: which, and do both?
        refused, apart = _prove_each(original, packaged, signature, edges, tolerance)
        worst = max(worst, apart)
    return Parity(
        sample_rows=sample.height,
        edge_rows=len(edges),
        refused=refused,
        largest_difference=worst,
        tolerance=tolerance,
    )


def _prove_each(
    original: Model, packaged: Model, signature: Signature, edges: Sequence[Row], tolerance: float
) -> tuple[int, float]:
    """Compare edge rows one by one: how many both refuse, and the largest difference."""
    refused, worst = 0, 0.0
    for row in edges:
        frame = frame_of([row], signature)
        wanted, got, as_dict = try_scores(original, frame), try_scores(packaged, frame), _try_rows(packaged, [row])
        if isinstance(wanted, Exception):
            refused += 1
            if not isinstance(got, Exception):
                raise ParityError(f"The packaged model answers an edge row that the trained one refuses: {row}.")
            continue
        for found, way in ((got, "frame"), (as_dict, "dicts")):
            if isinstance(found, Exception):
                raise ParityError(f"The packaged model refuses an edge row ({way}): {row}: {found}") from found
            worst = max(worst, _compare(wanted, found, frame, f"edge row as {way}", tolerance))
    return refused, worst


def frame_of(rows: Sequence[Mapping[str, object]], signature: Signature) -> pl.DataFrame:
    """Decoded rows as a frame with the signature's types.

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
    """Rows of a frame as a decoded request has them: floats for every float width, UTC times."""
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


def _turn(values: tuple[object, ...], turn: int) -> object:
    # Counted from the back, so that the first combined row is null wherever null may be.
    return values[-1 - turn % len(values)]


def _answers(model: Model, signature: Signature, row: Row) -> bool:
    return not isinstance(try_scores(model, frame_of([row], signature)), Exception)


def _ask(model: Model, frame: pl.DataFrame, what: str) -> NDArray[np.float64]:
    answer = try_scores(model, frame)
    if isinstance(answer, EverloopError):
        raise answer
    if isinstance(answer, Exception):
        raise TrainingError(f"The model cannot score {what}: {answer}.") from answer
    return answer


def _ask_rows(model: Model, rows: list[Row], what: str) -> NDArray[np.float64]:
    try:
        return model.predict_rows(rows)
    except Exception as error:
        raise ParityError(f"The packaged model cannot score {what}: {error}.") from error


def try_scores(model: Model, frame: pl.DataFrame) -> NDArray[np.float64] | Exception:
    """The scores, or why there are none: any estimator may stand behind a model, and it raises whatever it likes."""
    import numpy as np

    try:
        # Rows at the edge are asked on purpose; that they overflow somewhere is nothing to tell the user.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            scores = model.predict_scores(frame)
    except Exception as error:
        return error
    return scores if np.isfinite(scores).all() else TrainingError("the score is not a finite number")


def _try_rows(model: Model, rows: Sequence[Row]) -> NDArray[np.float64] | Exception:
    import numpy as np

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            return model.predict_rows(rows)
    except Exception as error:
        return error


def _compare(
    expected: NDArray[np.float64], found: NDArray[np.float64], frame: pl.DataFrame, way: str, tolerance: float
) -> float:
    import numpy as np

    if expected.shape != found.shape:
        raise ParityError(f"The packaged model gives scores of shape {found.shape} ({way}), not {expected.shape}.")
    if not expected.size:
        return 0.0
    apart = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    apart = np.where(np.isnan(found) == np.isnan(expected), np.nan_to_num(apart, nan=0.0), np.inf)
    worst = float(apart.max())
    if worst > tolerance:
        at = int(np.argmax(apart.reshape(len(frame), -1).max(axis=1)))
        raise ParityError(
            f"The packaged model answers {found[at].tolist()} where the trained one answers {expected[at].tolist()} "
            f"({way}, row {frame.row(at, named=True)}); the difference {worst:.3g} is above {tolerance:g}.",
            help="Train with a built-in algorithm, or adopt the estimator in its own format.",
        )
    return worst
