"""The proof that a compiled form answers as its original: on training rows, edge rows, and beside split thresholds.

Numbers may differ by a little, see `TOLERANCES`: absolute for probabilities, relative for a regression. Classes must be
the same, and what one of the two refuses the other must refuse. Where a form goes wrong it goes wrong silently, so
nothing is taken on trust, whatever converter made it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import ParityError
from everloop.models.parity import edge_rows, frame_of, plain_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.models.compilation.compiled import CompiledModel
    from everloop.models.signature import Input, Signature
    from everloop.records import Json
    from everloop.training.trained import Model

    Scores = NDArray[np.float64]

TOLERANCES = {"binary": 1e-5, "multiclass": 1e-5, "regression": 1e-5}
"""By task: of a probability; of a regression's answer relative to what is above one."""
TIE = 1e-12
"""Two classes whose probabilities are this near have no order to keep."""
PLAIN_ROWS = 500
"""Rows that are also asked one by one, the way in which an endpoint asks."""
BESIDE_ROWS = 1500
"""Rows beside split thresholds that are asked one by one."""
BESIDE_MOST = 200_000
"""Rows beside split thresholds that are asked as frames: of all thresholds, unless there are more than this holds."""

Row = dict[str, Any]


def prove_compiled(
    original: Model, compiled: CompiledModel, signature: Signature, sample: pl.DataFrame
) -> dict[str, Json]:
    """Compare the two; returns the evidence.

    Raises:
        ParityError: an answer differs, or one refuses a row that the other takes.
    """
    edges, infinite = edge_rows(signature, sample), _infinite_rows(signature, sample)
    beside = rows_beside_thresholds(compiled, signature, sample)
    with warnings.catch_warnings():
        # Edge rows overflow where they should; the answers are compared all the same.
        warnings.simplefilter("ignore")
        prover = _Prover(original, compiled, signature)
        prover.frame(sample, "training row")
        few = sample.gather_every(max(1, sample.height // PLAIN_ROWS)).head(PLAIN_ROWS)
        prover.rows(plain_rows(few, signature), "training row")
        prover.rows(edges, "edge row")
        prover.rows(infinite, "row with an infinity")
        prover.rows(beside, "row beside a split")
        frames = 0
        for frame in frames_beside_thresholds(compiled, signature, sample):
            prover.frame(frame, "row beside a split")
            frames += frame.height
    return {
        "compiled_sample_rows": sample.height,
        "compiled_edge_rows": len(edges) + len(infinite),
        "compiled_threshold_rows": len(beside) + frames,
        "compiled_refused": prover.refused,
        "compiled_largest_difference": prover.worst,
        "compiled_tolerance": TOLERANCES[signature.task],
    }


def rows_beside_thresholds(compiled: CompiledModel, signature: Signature, sample: pl.DataFrame) -> list[Row]:
    """Rows whose numbers lie on split thresholds and the next doubles and singles beside them."""
    import numpy as np

    values = _thresholds(compiled)
    if not values:
        values = {
            place: np.unique(sample[item.name].drop_nulls().to_numpy().astype(np.float64))
            for place, item in enumerate(signature.inputs)
            if item.type == "float" and sample[item.name].drop_nulls().len()
        }
    base = plain_rows(sample.gather_every(max(1, sample.height // 50)).head(50), signature)
    rows: list[Row] = []
    share = max(1, BESIDE_ROWS // (5 * max(1, len(values))))
    for place, every in values.items():
        item = signature.inputs[place]
        if item.type not in ("float", "int"):
            continue
        some = every[np.linspace(0, len(every) - 1, min(share, len(every))).astype(int)]
        for value in some.tolist():
            for near in _beside(value, item):
                rows.append({**base[len(rows) % len(base)], item.name: near})
    return rows


def frames_beside_thresholds(
    compiled: CompiledModel, signature: Signature, sample: pl.DataFrame
) -> Iterator[pl.DataFrame]:
    """The same for every split threshold, one frame for each input, as far as `BESIDE_MOST` goes."""
    import numpy as np
    import polars as pl

    thresholds = _thresholds(compiled)
    numbers = {place: values for place, values in thresholds.items() if signature.inputs[place].type == "float"}
    if not numbers:
        return
    share = max(1, BESIDE_MOST // (5 * len(numbers)))
    for place, values in numbers.items():
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
        near = near[np.isfinite(near)]
        base = sample.head(50)
        rows = base[np.arange(len(near)) % base.height]
        name = signature.inputs[place].name
        yield rows.with_columns(pl.Series(name, near).cast(rows.schema[name]))


def _beside(value: float, item: Input) -> list[float | int]:
    import numpy as np

    if item.type == "int":
        return [int(np.clip(part, -(2**53), 2**53)) for part in (np.floor(value), np.ceil(value))]
    single = np.float32(value) if abs(value) < 3e38 else None
    near = [value, float(np.nextafter(value, -np.inf)), float(np.nextafter(value, np.inf))]
    if single is not None:
        near += [float(np.nextafter(single, np.float32(-np.inf))), float(np.nextafter(single, np.float32(np.inf)))]
    return [part for part in near if np.isfinite(part)]


def _thresholds(compiled: CompiledModel) -> dict[int, NDArray[np.float64]]:
    """Split thresholds of compiled trees in the unit of their inputs, by the input's place."""
    import numpy as np

    from everloop.models.compilation.compiled import TreeForm

    if not isinstance(compiled.form, TreeForm):
        return {}
    text = compiled.form.to_files()["trees.txt"].decode()
    found: dict[int, set[float]] = {}
    split: list[int] = []
    owners: list[tuple[int, tuple[Any, ...]] | None] = []
    for segment in compiled.form.preparation.segments:
        owners += [(segment.source, segment.ops) if segment.keys is None else None] * segment.width
    for line in text.splitlines():
        if line.startswith("split_feature="):
            split = [int(part) for part in line[14:].split()]
        elif line.startswith("threshold="):
            for feature, part in zip(split, line[10:].split(), strict=True):
                owner = owners[feature]
                value = float(part)
                if owner is not None and abs(value) < 1e300:
                    found.setdefault(owner[0], set()).add(_undone(value, owner[1]))
    return {place: np.array(sorted(values)) for place, values in sorted(found.items())}


def _undone(value: float, ops: Sequence[tuple[Any, ...]]) -> float:
    """The input that operations turn into `value`, to within rounding."""
    for kind, *numbers in reversed(ops):
        if kind == "sub":
            value += numbers[0]
        elif kind == "add":
            value -= numbers[0]
        elif kind == "mul" and numbers[0]:
            value /= numbers[0]
        elif kind == "div":
            value *= numbers[0]
    return value


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

    def frame(self, frame: pl.DataFrame, what: str) -> None:
        self._compare(self.original.predict_scores(frame), self.compiled.predict_scores(frame), frame, what)

    def rows(self, rows: Sequence[Row], what: str) -> None:
        """Compare row by row, as a frame and as decoded values."""
        if not rows:
            return
        frame = frame_of(rows, self.signature)
        wanted = self._answers(frame)
        for place, row in enumerate(rows):
            answer = wanted[place]
            got = _try_row(self.compiled, tuple(row[name] for name in self.signature.names))
            if isinstance(answer, Exception) or isinstance(got, Exception):
                if isinstance(answer, Exception) and isinstance(got, Exception):
                    self.refused += 1
                    continue
                who = "refuses" if isinstance(got, Exception) else "answers"
                raise ParityError(
                    f"The compiled form {who} a row that the original does not ({what} {_short(row)}: "
                    f"{got if isinstance(got, Exception) else answer})."
                )
            self._compare(answer[None], got[None], frame[place : place + 1], what)
        taken = [place for place, answer in enumerate(wanted) if not isinstance(answer, Exception)]
        if taken:
            import numpy as np

            kept = frame[taken]
            expected = np.stack([wanted[place] for place in taken])
            self._compare(expected, self.compiled.predict_scores(kept), kept, what)
        for place in [place for place, answer in enumerate(wanted) if isinstance(answer, Exception)][:20]:
            one = frame[place : place + 1]
            if not isinstance(_try(self.compiled, one), Exception):
                raise ParityError(f"The compiled form answers a frame that the original refuses ({what}).")

    def _answers(self, frame: pl.DataFrame) -> list[Any]:
        """The original's answer to each row, or why it gives none; halves what is refused until it stands alone."""
        found = _try(self.original, frame)
        if not isinstance(found, Exception):
            return list(found)
        if frame.height == 1:
            return [found]
        middle = frame.height // 2
        return [*self._answers(frame[:middle]), *self._answers(frame[middle:])]

    def _compare(self, wanted: Scores, got: Scores, frame: pl.DataFrame, what: str) -> None:
        import numpy as np

        if wanted.shape != got.shape:
            raise ParityError(f"The compiled form gives scores of shape {got.shape}, not {wanted.shape}.")
        unit = np.maximum(1.0, np.abs(wanted)) if self.signature.task == "regression" else 1.0
        with np.errstate(invalid="ignore"):
            apart = np.where((wanted == got) | (np.isnan(wanted) & np.isnan(got)), 0.0, np.abs(got - wanted) / unit)
        apart = np.nan_to_num(apart, nan=np.inf).reshape(len(wanted), -1).max(axis=1)
        apart[self._other_class(wanted, got)] = np.inf
        worst = int(np.argmax(apart))
        if apart[worst] > TOLERANCES[self.signature.task]:
            raise ParityError(
                f"The compiled form answers {got[worst].tolist()} where the original answers "
                f"{wanted[worst].tolist()} ({what} {_short(frame.row(worst, named=True))})."
            )
        self.worst = max(self.worst, float(apart[worst]))

    def _other_class(self, wanted: Scores, got: Scores) -> Any:
        import numpy as np

        if self.signature.task == "regression":
            return np.zeros(len(wanted), dtype=bool)
        if self.signature.task == "binary":
            return ((wanted >= 0.5) != (got >= 0.5)) & (np.abs(wanted - 0.5) > TIE)
        ordered = np.sort(wanted, axis=1)
        return (wanted.argmax(axis=1) != got.argmax(axis=1)) & (ordered[:, -1] - ordered[:, -2] > TIE)


def _try(model: Any, frame: pl.DataFrame) -> Any:
    import numpy as np

    try:
        scores = model.predict_scores(frame)
    except Exception as error:  # any estimator may stand behind it, and any exception means "I do not take this"
        return error
    return scores if np.isfinite(scores).all() else ParityError("the score is not a finite number")


def _try_row(compiled: CompiledModel, values: tuple[Any, ...]) -> Any:
    import numpy as np

    try:
        scores = np.array(compiled.form.row(values), dtype=np.float64)
    except Exception as error:
        return error
    if not np.isfinite(scores).all():
        return ParityError("the score is not a finite number")
    return scores if compiled.task == "multiclass" else scores.reshape(())


def _short(row: Row) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in row.items())
    return text if len(text) < 400 else f"{text[:400]} …"
