"""Prove that a compiled form predicts what its original does: on training rows, edge rows, and beside split thresholds.

Scores may differ slightly, see `TOLERANCES`: absolutely for probabilities, relatively for a regression. The predicted
class must be the same, including ties, and both must refuse the same rows. Wrong conversions raise no errors, so every
form is checked, whichever converter made it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import ParityError
from everloop.packages.parity import edge_rows, frame_of, mixed_rows, plain_rows, predict_each, stacked, try_predict
from everloop.packages.time_budget import TimeBudget
from everloop.training.class_decisions import ClassScores, answer_frame, by_rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.packages.compilation.compiled_model import CompiledModel
    from everloop.packages.signature import Input, Signature
    from everloop.records import Json
    from everloop.training.trained_model import Model

    Scores = NDArray[np.float64]

TOLERANCES = {"binary": 1e-5, "multiclass": 1e-5, "regression": 1e-5}
"""By task: absolute for a probability; for a regression relative to values above one."""
ZERO = 1e-35
"""LightGBM treats smaller numbers as zero. They do not matter in practice, so they are not compared."""
PLAIN_ROWS = 500
"""Rows that are also scored one by one, as an endpoint does."""
BESIDE_ROWS = 1500
"""Rows beside split thresholds that are scored one by one."""
BESIDE_MOST = 200_000
"""Rows beside split thresholds that are scored as frames; they cover all thresholds if this number allows it."""

Row = dict[str, Any]


def prove_compiled(
    original: Model,
    compiled: CompiledModel,
    signature: Signature,
    sample: pl.DataFrame,
    effort: TimeBudget | None = None,
) -> dict[str, Json]:
    """Compare the two models and return the evidence.

    Args:
        effort: how long it may take; it notes the rows that were not compared.

    Raises:
        ParityError: a score or a class differs, or one refuses a row that the other takes.
    """
    effort = effort or TimeBudget()
    edges, infinite = edge_rows(signature, sample), _infinite_rows(signature, sample)
    thresholds = split_thresholds(compiled)
    beside = rows_beside_thresholds(thresholds, signature, sample)
    compared = frames = 0
    with warnings.catch_warnings():
        # Edge rows overflow on purpose; only the predictions matter.
        warnings.simplefilter("ignore")
        prover = _Prover(original, compiled, signature)
        spread = sample.gather_every(max(1, sample.height // PLAIN_ROWS)).head(PLAIN_ROWS)
        prover.rows(plain_rows(spread, signature), "training row")
        effort.report("edge rows", 0, len(edges))
        prover.rows(edges, "edge row")
        prover.rows(infinite, "row with an infinity")
        for piece in effort.pieces(sample, "training rows"):
            prover.frame(piece, "training row")
            compared += piece.height
        mixed = mixed_rows(sample)
        for piece in effort.pieces(mixed, "mixed rows"):
            prover.frame(piece, "mixed row", may_refuse=True)
        prover.rows(beside, "row beside a split")
        for frame in frames_beside_thresholds(thresholds, signature, sample):
            for piece in effort.pieces(frame, "rows beside splits"):
                prover.frame(piece, "row beside a split")
                frames += piece.height
    return {
        "compiled_sample_rows": compared,
        "compiled_edge_rows": len(edges) + len(infinite),
        "compiled_threshold_rows": len(beside) + frames,
        "compiled_refused": prover.refused,
        "compiled_largest_difference": prover.worst,
        "compiled_tolerance": TOLERANCES[signature.task],
    }


def rows_beside_thresholds(
    thresholds: Mapping[int, NDArray[np.float64]], signature: Signature, sample: pl.DataFrame
) -> list[Row]:
    """Return rows whose numbers are split thresholds, or the next double or single below or above one."""
    import numpy as np

    values = dict(thresholds)
    if not values:
        values = {
            index: np.unique(sample[item.name].drop_nulls().to_numpy().astype(np.float64))
            for index, item in enumerate(signature.inputs)
            if item.type == "float" and sample[item.name].drop_nulls().len()
        }
    base = plain_rows(sample.gather_every(max(1, sample.height // 50)).head(50), signature)
    rows: list[Row] = []
    share = max(1, BESIDE_ROWS // (5 * max(1, len(values))))
    for index, splits in values.items():
        item = signature.inputs[index]
        if item.type not in ("float", "int"):
            continue
        some = splits[np.linspace(0, len(splits) - 1, min(share, len(splits))).astype(int)]
        for value in some.tolist():
            for near in _beside(value, item):
                rows.append({**base[len(rows) % len(base)], item.name: near})
    return rows


def frames_beside_thresholds(
    thresholds: Mapping[int, NDArray[np.float64]], signature: Signature, sample: pl.DataFrame
) -> Iterator[pl.DataFrame]:
    """Yield such rows for every split threshold, one frame for each input, limited by `BESIDE_MOST`."""
    import numpy as np
    import polars as pl

    numbers = {index: values for index, values in thresholds.items() if signature.inputs[index].type == "float"}
    if not numbers:
        return
    share = max(1, BESIDE_MOST // (5 * len(numbers)))
    for index, values in numbers.items():
        some = values[np.linspace(0, len(values) - 1, min(share, len(values))).astype(int)]
        narrow = some[np.abs(some) < 3e38].astype(np.float32)
        near = np.concatenate(
            [
                some,
                np.nextafter(some, -np.inf),
                np.nextafter(some, np.inf),
                np.nextafter(narrow, np.float32(-np.inf)).astype(np.float64),
                np.nextafter(narrow, np.float32(np.inf)).astype(np.float64),
            ]
        )
        near = near[np.isfinite(near) & ((near == 0.0) | (np.abs(near) > ZERO))]
        base = sample.head(50)
        rows = base[np.arange(len(near)) % base.height]
        name = signature.inputs[index].name
        yield rows.with_columns(pl.Series(name, near).cast(rows.schema[name]))


def _beside(value: float, item: Input) -> list[float | int]:
    import numpy as np

    if item.type == "int":
        return [int(np.clip(part, -(2**53), 2**53)) for part in (np.floor(value), np.ceil(value))]
    single = np.float32(value) if abs(value) < 3e38 else None
    near = [value, float(np.nextafter(value, -np.inf)), float(np.nextafter(value, np.inf))]
    if single is not None:
        near += [float(np.nextafter(single, np.float32(-np.inf))), float(np.nextafter(single, np.float32(np.inf)))]
    return [part for part in near if np.isfinite(part) and (part == 0.0 or abs(part) > ZERO)]


def split_thresholds(compiled: CompiledModel) -> dict[int, NDArray[np.float64]]:
    """Return the split thresholds of compiled trees in the units of their inputs, by index of the input."""
    import numpy as np

    from everloop.packages.compilation.compiled_model import TreeForm

    if not isinstance(compiled.form, TreeForm):
        return {}
    text = compiled.form.to_files()["trees.txt"].decode()
    owners: list[tuple[int, tuple[Any, ...]] | None] = []
    for segment in compiled.form.preparation.segments:
        owners += [(segment.source, segment.ops) if segment.keys is None else None] * segment.width
    split: list[str] = []
    by_feature: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("split_feature="):
            split = line[14:].split()
        elif line.startswith("threshold="):
            for feature, part in zip(split, line[10:].split(), strict=True):
                by_feature.setdefault(feature, set()).add(part)
    found: dict[int, set[float]] = {}
    for feature, parts in by_feature.items():
        owner = owners[int(feature)]
        if owner is not None:
            values = np.array(sorted(map(float, parts)))
            undone = _undone(values[np.abs(values) < 1e300], owner[1])
            found.setdefault(owner[0], set()).update(undone.tolist())
    return {index: np.array(sorted(values)) for index, values in sorted(found.items()) if values}


def _undone(values: NDArray[np.float64], ops: Sequence[tuple[Any, ...]]) -> NDArray[np.float64]:
    """Return the inputs that the operations turn into `values`, up to rounding."""
    for kind, *numbers in reversed(ops):
        if kind == "sub":
            values = values + numbers[0]
        elif kind == "add":
            values = values - numbers[0]
        elif kind == "mul" and numbers[0]:
            values = values / numbers[0]
        elif kind == "div":
            values = values * numbers[0]
    return values


def _infinite_rows(signature: Signature, sample: pl.DataFrame) -> list[Row]:
    base = plain_rows(sample.head(1), signature)[0]
    names = [item.name for item in signature.inputs if item.type == "float"]
    return [{**base, name: value} for name in names for value in (float("inf"), float("-inf"))]


@dataclass
class _Prover:
    original: Model
    compiled: CompiledModel
    signature: Signature
    worst: float = 0.0
    refused: int = 0

    def frame(self, frame: pl.DataFrame, what: str, *, may_refuse: bool = False) -> None:
        """Compare the predictions for a frame.

        Args:
            may_refuse: the original may refuse rows; those are left out.
        """
        if may_refuse:
            wanted = predict_each(self.original, frame)
            accepted = [index for index, prediction in enumerate(wanted) if not isinstance(prediction, Exception)]
            if not accepted:
                return
            expected = stacked([prediction for prediction in wanted if not isinstance(prediction, Exception)])
            frame = frame[accepted]
        else:
            expected = answer_frame(self.original, frame)
        self._compare(expected, answer_frame(self.compiled, frame), frame, what)

    def rows(self, rows: Sequence[Row], what: str) -> None:
        """Compare row by row, as a frame and as decoded values."""
        if not rows:
            return
        frame = frame_of(rows, self.signature)
        wanted = predict_each(self.original, frame)
        got = [_try_row(self.compiled, tuple(row[name] for name in self.signature.names)) for row in rows]
        for prediction, found, row in zip(wanted, got, rows, strict=True):
            if isinstance(prediction, Exception) and isinstance(found, Exception):
                self.refused += 1
            elif isinstance(prediction, Exception) or isinstance(found, Exception):
                verb = "refuses" if isinstance(found, Exception) else "accepts"
                raise ParityError(
                    f"The compiled form {verb} a row that the original does not ({what} {_short(row)}: "
                    f"{found if isinstance(found, Exception) else prediction})."
                )
        accepted = [index for index, prediction in enumerate(wanted) if not isinstance(prediction, Exception)]
        if accepted:
            chosen = frame[accepted]
            expected = stacked([prediction for prediction in wanted if not isinstance(prediction, Exception)])
            single = stacked([prediction for prediction in got if not isinstance(prediction, Exception)])
            self._compare(expected, single, chosen, what)
            self._compare(expected, answer_frame(self.compiled, chosen), chosen, what)
        refused = [index for index, prediction in enumerate(wanted) if isinstance(prediction, Exception)]
        for index in refused[:20]:
            if not isinstance(try_predict(self.compiled, frame[index : index + 1]), Exception):
                raise ParityError(f"The compiled form accepts a frame that the original refuses ({what}).")

    def _compare(self, expected: ClassScores, found: ClassScores, frame: pl.DataFrame, what: str) -> None:
        import numpy as np

        wanted, got = expected.scores, found.scores
        if wanted.shape != got.shape:
            raise ParityError(f"The compiled form gives scores of shape {got.shape}, not {wanted.shape}.")
        unit = np.maximum(1.0, np.abs(wanted)) if self.signature.task == "regression" else 1.0
        with np.errstate(invalid="ignore"):
            apart = np.where((wanted == got) | (np.isnan(wanted) & np.isnan(got)), 0.0, np.abs(got - wanted) / unit)
        apart = np.nan_to_num(apart, nan=np.inf).reshape(len(wanted), -1).max(axis=1)
        worst = int(np.argmax(apart))
        if apart[worst] > TOLERANCES[self.signature.task]:
            raise ParityError(
                f"The compiled form predicts {got[worst].tolist()}, but the original predicts "
                f"{wanted[worst].tolist()} ({what} {_short(frame.row(worst, named=True))})."
            )
        self.worst = max(self.worst, float(apart[worst]))
        if expected.places is None or found.places is None:
            return
        different = np.flatnonzero(expected.places != found.places)
        if len(different):
            at = int(different[0])
            classes = self.signature.classes
            raise ParityError(
                f"The compiled form predicts {classes[int(found.places[at])]!r}, but the original predicts "
                f"{classes[int(expected.places[at])]!r}, with scores {got[at].tolist()} and {wanted[at].tolist()} "
                f"({what} {_short(frame.row(at, named=True))})."
            )


def _try_row(compiled: CompiledModel, values: tuple[Any, ...]) -> ClassScores | Exception:
    import numpy as np

    try:
        scores = np.array(compiled.form.row(values), dtype=np.float64)
    except Exception as error:  # any exception means that the row is refused
        return error
    if not np.isfinite(scores).all():
        return ParityError("the score is not a finite number")
    return by_rule(compiled, scores[None] if compiled.task == "multiclass" else scores.reshape(1))


def _short(row: Row) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in row.items())
    return text if len(text) < 400 else f"{text[:400]} …"
