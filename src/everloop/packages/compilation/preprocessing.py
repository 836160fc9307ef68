"""Compiled preprocessing: arithmetic and table look-ups turn the inputs into one row of floats.

A segment reads one input and returns one or more floats. A *number* goes through a few operations in the same order and
precision as in the original; a *table* looks a value up. A row of decoded values and a frame give the same floats.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]
    Read = Callable[[Any], float]

SINGLE_MAX = 3.4028234663852886e38
DOUBLE_MAX = 1.7976931348623157e308
_NAN = float("nan")

Op = tuple[Any, ...]
"""An operation: its name and its numbers.

    fill v         a null becomes v                 missing        1 for a null, else 0
    sub add mul div v                               clip low high
    single         round to single precision        bounded        infinity becomes the largest double
    finite         refuse infinities                known          refuse nulls
    narrow         refuse numbers that do not fit into single precision
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSegment:
    """Consecutive floats of the row that come from one input."""

    source: int
    """Index of the input in the signature."""
    name: str
    width: int = 1
    ops: tuple[Op, ...] = ()
    keys: tuple[Any, ...] | None = None
    """The values that a table knows; None for a number."""
    rows: tuple[tuple[float, ...], ...] = ()
    """The floats for each key of a table."""
    null: tuple[float, ...] | None = None
    """The floats for a null; None refuses nulls."""
    unseen: tuple[float, ...] | None = None
    """The floats for a value that is not a key; None refuses such values."""

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputSegment:
        def floats(values: Any) -> tuple[float, ...] | None:
            return None if values is None else tuple(values)

        return cls(
            source=data["source"],
            name=data["name"],
            width=data["width"],
            ops=tuple(tuple(op) for op in data["ops"]),
            keys=None if data["keys"] is None else tuple(data["keys"]),
            rows=tuple(tuple(row) for row in data["rows"]),
            null=floats(data["null"]),
            unseen=floats(data["unseen"]),
        )


class Preparation:
    """Segments in the order of the floats that the estimator takes. Immutable and thread-safe."""

    def __init__(self, segments: Sequence[InputSegment]) -> None:
        self.segments = tuple(segments)
        self.width = sum(segment.width for segment in self.segments)
        numbers = [segment for segment in self.segments if segment.keys is None]
        # If every number ends with rounding to single precision, all are rounded at once; tables hold rounded values.
        self._single = bool(numbers) and all(segment.ops[-1:] == (("single",),) for segment in numbers)
        last = -1 if self._single else None
        self._plan = [
            (
                segment.source,
                *((None, _chain(segment.name, segment.ops[:last])) if segment.keys is None else _table(segment)),
            )
            for segment in self.segments
        ]

    def row(self, values: Sequence[Any]) -> Sequence[float]:
        """Return the floats for one row of decoded values.

        Raises:
            RequestError: the original would refuse the row.
        """
        out: list[float] = []
        append, extend = out.append, out.extend
        for source, table, read in self._plan:
            value = values[source]
            if table is None:
                append(value if read is None and type(value) is float else _number(value, read))
            else:
                found = table.get(value)
                extend(found if found is not None else read(value))
        return array("f", out) if self._single else out

    def matrix(self, frame: pl.DataFrame) -> Array:
        """Return the floats for every row of a frame, shape (n, width).

        Raises:
            RequestError: the original would refuse a row, or a column is missing.
        """
        import numpy as np

        out = np.empty((frame.height, self.width))
        at = 0
        for segment in self.segments:
            values = column_values(segment, frame)
            out[:, at : at + segment.width] = values if values.ndim == 2 else values[:, None]
            at += segment.width
        return out

    def to_json(self) -> list[dict[str, Json]]:
        return [segment.to_json() for segment in self.segments]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> Preparation:
        return cls([InputSegment.from_json(item) for item in data])


def number_reader(segment: InputSegment) -> Read | None:
    """Return a number's operations as one function; None if there are none."""
    return _chain(segment.name, segment.ops)


def _chain(name: str, ops: Sequence[Op]) -> Read | None:
    ops = _without_repeats(ops)
    steps: list[Read] = []
    if [op[0] for op in ops[:4]] == ["finite", "fill", "sub", "div"]:
        # The most frequent preprocessing by far, so it is one call instead of four.
        steps.append(_standard(name, *(op[1] for op in ops[1:4])))
        ops = ops[4:]
    steps += [_step(op, name) for op in ops]
    if not steps:
        return None
    if len(steps) == 1:
        return steps[0]

    def run(value: float) -> float:
        for step in steps:
            value = step(value)
        return value

    return run


def _without_repeats(ops: Sequence[Op]) -> list[Op]:
    """Drop repeated checks for infinities: every step of a pipeline checks again, even if none can have appeared."""
    needed: list[Op] = []
    for op in ops:
        if op[0] == "finite" and needed and {earlier[0] for earlier in needed} <= {"finite", "fill"}:
            continue
        needed.append(op)
    return needed


def _standard(name: str, filled: float, centre: float, scale: float) -> Read:
    def run(value: float) -> float:
        if value - value != 0.0:
            value = filled if value != value else _raise(name, value)
        return (value - centre) / scale

    return run


def column_values(segment: InputSegment, frame: pl.DataFrame) -> Array:
    """Return a segment's floats for a frame: shape (n,) for a number, (n, width) for a table."""
    if segment.name not in frame.columns:
        raise RequestError(f"Column '{segment.name}' is missing.", help=f"Given: {', '.join(frame.columns[:30])}")
    series = frame[segment.name]
    if segment.keys is None:
        return _run_column(segment, _numbers(segment, series))
    return table_rows(segment)[table_codes(segment, series)]


def table_rows(segment: InputSegment) -> Array:
    """Return a table as a matrix: the rows of its keys, then the row for unseen values, then the row for nulls."""
    import numpy as np

    empty = (_NAN,) * segment.width
    return np.array([*segment.rows, segment.unseen or empty, segment.null or empty], dtype=np.float64)


def table_codes(segment: InputSegment, series: pl.Series) -> NDArray[np.intp]:
    """Return indices into `table_rows`, shape (n,).

    Raises:
        RequestError: a value that the table refuses.
    """
    import numpy as np
    import polars as pl

    keys = segment.keys or ()
    if keys and isinstance(keys[0], str):
        text = _cast(segment, series, pl.String())
        codes = text.cast(pl.Enum(list(keys)), strict=False).to_physical().cast(pl.Int64).fill_null(len(keys))
        found = codes.to_numpy().astype(np.intp)
        null = series.is_null().to_numpy()
    else:
        values = _numbers(segment, series)
        order = np.argsort(np.array(keys, dtype=np.float64), kind="stable")
        known = np.array(keys, dtype=np.float64)[order]
        position = np.minimum(np.searchsorted(known, values), len(known) - 1)
        found = np.where(known[position] == values, order[position], len(keys)).astype(np.intp)
        null = np.isnan(values)
    found[null] = len(keys) + 1
    if segment.unseen is None and (found == len(keys)).any():
        value = series[int(np.argmax(found == len(keys)))]
        raise _refused(segment.name, value)
    if segment.null is None and null.any():
        raise _refused(segment.name, None)
    return found


def _number(value: Any, read: Read | None) -> float:
    if type(value) is not float:
        try:
            value = _NAN if value is None else float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(f"{value!r} is not a number.", help="Send a JSON number, or null.") from error
    return value if read is None else read(value)


def _table(segment: InputSegment) -> tuple[dict[Any, tuple[float, ...]], Callable[[Any], tuple[float, ...]]]:
    table: dict[Any, tuple[float, ...]] = dict(zip(segment.keys or (), segment.rows, strict=True))
    if segment.null is not None:
        table[None] = segment.null
    unseen, null, name = segment.unseen, segment.null, segment.name

    def read(value: Any) -> tuple[float, ...]:
        if value is None or value != value:
            if null is None:
                raise _refused(name, None)
            return null
        if unseen is None:
            raise _refused(name, value)
        return unseen

    return table, read


def _step(op: Op, name: str) -> Read:
    import numpy as np

    kind, *numbers = op
    if kind == "fill":
        filled = numbers[0]
        return lambda x: filled if x != x else x
    if kind == "finite":
        return lambda x: x if x - x == 0.0 or x != x else _raise(name, x)
    if kind == "known":
        return lambda x: x if x == x else _raise(name, None)
    if kind == "narrow":
        return lambda x: _raise(name, x) if abs(x) > SINGLE_MAX else x
    if kind == "single":
        single = np.float32
        # Beyond the range of single precision the result is an infinity, and NumPy would warn.
        return lambda x: float(single(x)) if abs(x) <= SINGLE_MAX or x != x else _wide_single(x)
    first = numbers[0] if numbers else 0.0
    second = numbers[1] if len(numbers) > 1 else 0.0
    steps: dict[str, Read] = {
        "sub": lambda x: x - first,
        "add": lambda x: x + first,
        "mul": lambda x: x * first,
        "div": lambda x: x / first,
        "clip": lambda x: first if x < first else second if x > second else x,
        "missing": lambda x: 1.0 if x != x else 0.0,
        "bounded": lambda x: DOUBLE_MAX if x > DOUBLE_MAX else x,
    }
    return steps[kind]


def _wide_single(value: float) -> float:
    import numpy as np

    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _run_column(segment: InputSegment, values: Array) -> Array:
    import numpy as np

    for kind, *numbers in segment.ops:
        if kind == "fill":
            values = np.where(np.isnan(values), numbers[0], values)
        elif kind == "finite":
            _check(segment, values, np.isinf(values))
        elif kind == "known":
            _check(segment, values, np.isnan(values))
        elif kind == "narrow":
            _check(segment, values, np.abs(values) > SINGLE_MAX)
        elif kind == "single":
            with np.errstate(over="ignore"):
                values = values.astype(np.float32).astype(np.float64)
        elif kind == "clip":
            values = np.clip(values, *numbers)
        elif kind == "missing":
            values = np.isnan(values).astype(np.float64)
        elif kind == "bounded":
            values = np.minimum(values, DOUBLE_MAX)
        else:
            with np.errstate(over="ignore"):
                operation = {"sub": np.subtract, "add": np.add, "mul": np.multiply, "div": np.divide}[kind]
                values = operation(values, numbers[0])
    return values


def _numbers(segment: InputSegment, series: pl.Series) -> Array:
    import polars as pl

    found: Array = _cast(segment, series, pl.Float64()).fill_null(math.nan).to_numpy()
    return found


def _cast(segment: InputSegment, series: pl.Series, dtype: pl.DataType) -> pl.Series:
    import polars as pl

    try:
        return series if series.dtype == dtype else series.cast(dtype)
    except pl.exceptions.PolarsError as error:
        raise RequestError(
            f"Column '{segment.name}' has the type {series.dtype}, which the model cannot read.",
            help=f"Cast it to {dtype}.",
        ) from error


def _check(segment: InputSegment, values: Array, bad: NDArray[np.bool_]) -> None:
    import numpy as np

    if bad.any():
        raise _refused(segment.name, float(values[int(np.argmax(bad))]))


def _raise(name: str, value: float | None) -> float:
    raise _refused(name, value)


def _refused(name: str, value: Any) -> RequestError:
    shown = "null" if value is None or value != value else repr(value)
    return RequestError(f"'{name}' is {shown}, which the model does not take.")
