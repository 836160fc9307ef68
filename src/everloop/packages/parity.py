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
"""Sample rows that are also asked as dicts, the way in which an endpoint asks."""
MIXED_ROWS = 2000
_ALONE = 3
"""As few rows as these are asked one by one when they are refused together."""
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

    Deterministic. Values are as a decoded request has them. Rows with the same value in one input after the other are
    neighbours: what refuses one of them mostly refuses all.
    """
    base = plain_rows(sample.head(1), signature)[0]
    values = {item.name: _edge_values(item) for item in signature.inputs}
    widest = max(map(len, values.values()))
    rows = [
        {**base, name: known[turn]} for turn in range(widest) for name, known in values.items() if turn < len(known)
    ]
    rows += [{name: _turn(known, turn) for name, known in values.items()} for turn in range(widest)]
    return rows


def mixed_rows(sample: pl.DataFrame, rows: int = MIXED_ROWS) -> pl.DataFrame:
    """Rows whose values come from different rows of the sample: what training did not see, and where ties are.

    Deterministic.
    """
    import numpy as np

    draw = np.random.default_rng(0)
    return sample.select(series[draw.integers(0, sample.height, rows)] for series in sample.get_columns())


def probe(model: Model, signature: Signature, sample: pl.DataFrame) -> Signature:
    """Ask the model what it takes: inputs whose nulls or unseen categories it refuses are marked so.

    A model that takes everything keeps its signature; one that raises on nulls would otherwise fail a client's
    request instead of refusing it.

    Raises:
        TrainingError: the model does not even answer the first row of its own training data.
    """
    base = plain_rows(sample.head(1), signature)[0]
    texts = [item.name for item in signature.inputs if item.type == "string" and item.categories]
    probes = [(item.name, None) for item in signature.inputs if item.nullable] + [(name, UNSEEN) for name in texts]
    # The row itself first, so that one call is enough for a model that takes everything.
    asked = frame_of([base, *({**base, name: value} for name, value in probes)], signature)
    if isinstance(try_answers(model, asked), Exception) and isinstance(try_answers(model, asked[:1]), Exception):
        _ask(model, asked[:1], "the first row of its training sample")
    if not probes:
        return signature
    _, *found = each_answer(model, asked)
    refused = {probe for probe, answer in zip(probes, found, strict=True) if isinstance(answer, Exception)}
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
    """Compare scores and classes of the two on the sample and on edge rows, asked as a frame and as dicts.

    Args:
        sample: rows of the training data with at least the signature's columns; use `sample_of` to bound it.
        tolerance: the largest difference allowed, relative to scores above one. 0 asks for the same bits.
        effort: how long it may take.

    Raises:
        ParityError: an answer differs, or one of the two refuses rows that the other takes.
    """
    effort = effort or TimeBudget()
    # Edge rows first: they are few, and most of what goes wrong goes wrong there.
    edges = edge_rows(signature, sample)
    effort.tell("edge rows", 0, len(edges))
    refused, worst = _prove_edges(original, packaged, signature, edges, tolerance)
    compared = 0
    for piece in effort.pieces(sample, "training rows"):
        expected = _ask(original, piece, "the training sample")
        found = _ask(packaged, piece, "the training sample")
        worst = max(worst, compare(expected, found, piece, "frame", tolerance))
        if not compared:
            few = piece.head(PLAIN_ROWS)
            plain = _ask_rows(packaged, plain_rows(few, signature), "the training sample, as dicts")
            places = None if expected.places is None else expected.places[: few.height]
            wanted = ClassScores(expected.scores[: few.height], places)
            worst = max(worst, compare(wanted, plain, few, "dicts", tolerance))
        compared += piece.height
    return Parity(
        sample_rows=compared,
        edge_rows=len(edges),
        refused=refused,
        largest_difference=worst,
        tolerance=tolerance,
    )


def _prove_edges(
    original: Model, packaged: Model, signature: Signature, edges: list[Row], tolerance: float
) -> tuple[int, float]:
    """Compare edge rows: how many both refuse, and the largest difference."""
    together = frame_of(edges, signature)
    wanted = each_answer(original, together)
    taken = [place for place, answer in enumerate(wanted) if not isinstance(answer, Exception)]
    worst = 0.0
    if taken:
        kept, rows = together[taken], [edges[place] for place in taken]
        # Asked together once more: single precision rounds by how many rows are asked at once.
        again = try_answers(original, kept)
        alone = [answer for answer in wanted if not isinstance(answer, Exception)]
        expected = stacked(alone) if isinstance(again, Exception) else again
        for found, way in ((try_answers(packaged, kept), "frame"), (_try_rows(packaged, rows), "dicts")):
            if isinstance(found, Exception):
                # It may be one row of them; the message shall name that.
                each = each_answer(packaged, kept) if way == "frame" else [_try_rows(packaged, [row]) for row in rows]
                found = stacked([_taken(answer, row, way) for answer, row in zip(each, rows, strict=True)])
            worst = max(worst, compare(expected, found, kept, f"edge rows as {way}", tolerance))
    refused = [place for place, answer in enumerate(wanted) if isinstance(answer, Exception)]
    if refused:
        for place in refused:
            if not isinstance(try_answers(packaged, together[place : place + 1]), Exception):
                raise ParityError(
                    f"The packaged model answers an edge row that the trained one refuses: {edges[place]}."
                )
    return len(refused), worst


def _taken(answer: ClassScores | Exception, row: Row, way: str) -> ClassScores:
    if isinstance(answer, Exception):
        raise ParityError(f"The packaged model refuses an edge row ({way}): {row}: {answer}") from answer
    return answer


def each_answer(model: Model, frame: pl.DataFrame) -> list[ClassScores | Exception]:
    """The answer to each row, each of one row, or why there is none.

    Asks for all rows together, and halves what is refused until each refused row has been asked alone.
    """
    found = try_answers(model, frame)
    return _halved(model, frame, found) if isinstance(found, Exception) else _single(found)


def _halved(model: Model, frame: pl.DataFrame, refusal: Exception) -> list[ClassScores | Exception]:
    """The same of rows that are refused together."""
    if frame.height == 1:
        return [refusal]
    if frame.height <= _ALONE:
        return [found for place in range(frame.height) for found in each_answer(model, frame[place : place + 1])]
    middle = frame.height // 2
    left = try_answers(model, frame[:middle])
    if not isinstance(left, Exception) and frame.height - middle > 1:
        # What is refused is in the other half, which need not be asked to know that.
        return [*_single(left), *_halved(model, frame[middle:], refusal)]
    first = _halved(model, frame[:middle], left) if isinstance(left, Exception) else _single(left)
    return [*first, *each_answer(model, frame[middle:])]


def _single(answers: ClassScores) -> list[ClassScores | Exception]:
    scores, places = answers
    return [
        ClassScores(scores[place : place + 1], None if places is None else places[place : place + 1])
        for place in range(len(scores))
    ]


def stacked(answers: Sequence[ClassScores]) -> ClassScores:
    """Answers to several rows as one."""
    import numpy as np

    places = [answer.places for answer in answers if answer.places is not None]
    scores = np.concatenate([answer.scores for answer in answers])
    return ClassScores(scores, np.concatenate(places) if places else None)


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


def _ask(model: Model, frame: pl.DataFrame, what: str) -> ClassScores:
    answer = try_answers(model, frame)
    if isinstance(answer, EverloopError):
        raise answer
    if isinstance(answer, Exception):
        raise TrainingError(f"The model cannot score {what}: {answer}.") from answer
    return answer


def _ask_rows(model: Model, rows: list[Row], what: str) -> ClassScores:
    try:
        return answer_rows(model, rows)
    except Exception as error:
        raise ParityError(f"The packaged model cannot score {what}: {error}.") from error


def try_answers(model: Model, frame: pl.DataFrame) -> ClassScores | Exception:
    """The answers, or why there are none: any estimator may stand behind a model, and it raises whatever it likes."""
    import numpy as np

    try:
        # Rows at the edge are asked on purpose; that they overflow somewhere is nothing to tell the user.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            answers = answer_frame(model, frame)
    except Exception as error:
        return error
    return answers if np.isfinite(answers.scores).all() else TrainingError("the score is not a finite number")


def _try_rows(model: Model, rows: Sequence[Row]) -> ClassScores | Exception:
    import numpy as np

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return answer_rows(model, rows)
    except Exception as error:
        return error


def compare(expected: ClassScores, found: ClassScores, frame: pl.DataFrame, way: str, tolerance: float) -> float:
    """The largest difference of scores.

    Raises:
        ParityError: it is above `tolerance`, or a class is another.
    """
    import numpy as np

    wanted, got = expected.scores, found.scores
    if wanted.shape != got.shape:
        raise ParityError(f"The packaged model gives scores of shape {got.shape} ({way}), not {wanted.shape}.")
    if not wanted.size:
        return 0.0
    apart = np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))
    apart = np.where(np.isnan(got) == np.isnan(wanted), np.nan_to_num(apart, nan=0.0), np.inf)
    worst = float(apart.max())
    if worst > tolerance:
        at = int(np.argmax(apart.reshape(len(frame), -1).max(axis=1)))
        raise ParityError(
            f"The packaged model answers {got[at].tolist()} where the trained one answers {wanted[at].tolist()} "
            f"({way}, row {frame.row(at, named=True)}); the difference {worst:.3g} is above {tolerance:g}.",
            help="Train with a built-in algorithm, or adopt the estimator in its own format.",
        )
    if expected.places is not None and found.places is not None:
        others = np.flatnonzero(expected.places != found.places)
        if len(others):
            at = int(others[0])
            raise ParityError(
                f"The packaged model predicts class {found.places[at]} where the trained one predicts class "
                f"{expected.places[at]} ({way}, row {frame.row(at, named=True)}).",
            )
    return worst
