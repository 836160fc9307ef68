"""Encode columns of any type as one matrix of floats, in the same way for training and serving.

    number, bool    the value; null is NaN
    string          a code: 0 for a rare or unknown category, 1 for null, 2 and above for the known categories
    date, datetime  month, day of month, weekday and (with a time) hour of the day, in the trained time zone
    time, duration  hours, seconds

Frames and single rows (dicts) are encoded by separate code, because building a frame for one row costs ten times as
much as the model. Both use the same tables, and property tests check that their results are equal to the last bit.

The state is plain JSON. Encoding needs only NumPy, and Polars for frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from everloop.errors import RequestError, TrainingError

if TYPE_CHECKING:
    import polars as pl

    from everloop.records import Json

Array = NDArray[np.float64]
Kind = Literal["number", "flag", "category", "date", "datetime", "time", "duration"]

UNSEEN, MISSING, FIRST = 0, 1, 2
"""Codes of a categorical column: a rare or unknown category, null, the first known category."""
MOST_CATEGORIES = 254
"""If there are more categories, the rarest share the code of unknown ones."""
LEAST_ROWS = 5
"""A category with fewer rows than this is rare. Rare and unknown categories share a code, so a model treats an unknown
category like the rare ones of its training."""
_PARTS: dict[str, tuple[str, ...]] = {
    "date": ("month", "day", "weekday"),
    "datetime": ("month", "day", "weekday", "hour"),
}
_NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One input column, as it was in training."""

    name: str
    kind: Kind
    type: str
    """Arrow type."""
    nullable: bool = False
    categories: tuple[str, ...] = ()
    zone: str | None = None
    """Time zone of a datetime."""

    @property
    def width(self) -> int:
        """How many columns of the matrix it becomes."""
        return len(_PARTS.get(self.kind, ("value",)))


class Encoder:
    """Converts frames and rows to matrices. It never changes after `fit`, so it is thread-safe."""

    def __init__(self, features: Iterable[Feature], dropped: Mapping[str, str] | None = None) -> None:
        self.features = tuple(features)
        self.dropped = dict(dropped or {})
        """Columns that `fit` left out, with the reason."""
        self.inputs = tuple(feature.name for feature in self.features)
        self.width = sum(feature.width for feature in self.features)
        self._row = [(feature.name, _row_reader(feature)) for feature in self.features]

    @classmethod
    def fit(cls, frame: pl.DataFrame) -> Encoder:
        """Create an encoder for the columns of `frame`. Columns without information are left out, see `dropped`.

        Raises:
            TrainingError: no column is left.
        """
        features: list[Feature] = []
        dropped: dict[str, str] = {}
        for series in frame.get_columns():
            learned = _learn(series)
            if isinstance(learned, str):
                dropped[series.name] = learned
            else:
                features.append(learned)
        if not features:
            reasons = "; ".join(f"{name}: {why}" for name, why in dropped.items()) or "the table has none"
            raise TrainingError(
                f"No feature column is left to learn from ({reasons}).",
                help="Add columns, or convert these in the step before.",
            )
        return cls(features, dropped)

    @property
    def columns(self) -> list[str]:
        """Names of the matrix columns, such as `carrier` or `departs_at.hour`."""
        return [f"{f.name}.{part}" if f.kind in _PARTS else f.name for f, part in self._parts()]

    @property
    def sources(self) -> list[str]:
        """The input column of each matrix column."""
        return [feature.name for feature, _ in self._parts()]

    @property
    def codes(self) -> list[int]:
        """How many codes each matrix column has; 0 for a number."""
        return [FIRST + len(f.categories) if f.kind == "category" else 0 for f, _ in self._parts()]

    def encode(self, frame: pl.DataFrame) -> Array:
        """Return the matrix of a frame, shape (rows, width), row-major.

        Raises:
            RequestError: a column is missing, or has a type that cannot be read as the trained one.
        """
        matrix = np.empty((frame.height, self.width))
        at = 0
        for feature in self.features:
            for values in _frame_columns(feature, _column(frame, feature)):
                matrix[:, at] = values
                at += 1
        return matrix

    def encode_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        """Return the matrix of plain rows, shape (rows, width). It equals that of the same rows in a frame.

        Raises:
            RequestError: see `encode`.
        """
        values = [value for row in rows for value in self.encode_row(row)]
        return np.array(values, dtype=np.float64).reshape(len(rows), self.width)

    def encode_row(self, row: Mapping[str, object]) -> list[float]:
        """Return one row as `width` floats.

        Raises:
            RequestError: see `encode`.
        """
        out: list[float] = []
        for name, read in self._row:
            try:
                value = row[name]
            except KeyError:
                raise _missing(name, row) from None
            read(value, out)
        return out

    def to_dict(self) -> dict[str, Json]:
        """Return the state, which can be written as JSON."""
        return {
            "features": [
                {
                    "name": f.name,
                    "kind": f.kind,
                    "type": f.type,
                    "nullable": f.nullable,
                    "categories": list(f.categories),
                    "zone": f.zone,
                }
                for f in self.features
            ],
            "dropped": dict(self.dropped),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Json]) -> Encoder:
        """Create an encoder from the result of `to_dict`."""
        features = [Feature(**{**entry, "categories": tuple(entry["categories"])}) for entry in state["features"]]
        return cls(features, state["dropped"])

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.features, self.dropped)

    def _parts(self) -> Iterable[tuple[Feature, str]]:
        return ((f, part) for f in self.features for part in _PARTS.get(f.kind, ("value",)))


def arrow_type(dtype: pl.DataType) -> str:
    """Return the Arrow name of a Polars type, without importing pyarrow."""
    import polars as pl

    if isinstance(dtype, pl.Datetime):
        return (
            f"timestamp[{dtype.time_unit}, tz={dtype.time_zone}]"
            if dtype.time_zone
            else f"timestamp[{dtype.time_unit}]"
        )
    if isinstance(dtype, pl.Duration):
        return f"duration[{dtype.time_unit}]"
    if isinstance(dtype, pl.Decimal):
        return f"decimal128({dtype.precision}, {dtype.scale})"
    special = {
        pl.String: "string",
        pl.Categorical: "string",
        pl.Enum: "string",
        pl.Boolean: "bool",
        pl.Float32: "float",
        pl.Float64: "double",
        pl.Date: "date32[day]",
        pl.Time: "time64[ns]",
        pl.Null: "null",
    }
    return special.get(dtype.base_type(), str(dtype).lower())


# -- learning -----------------------------------------------------------------------------------------------------


def _learn(series: pl.Series) -> Feature | str:
    """Return the feature of a column, or the reason that it cannot be one."""
    import polars as pl

    nulls = series.null_count()
    if series.dtype.is_float():
        nulls += int(series.is_nan().sum() or 0)
    if nulls == len(series):
        return "every value is null"
    kind = _kind(series.dtype)
    if kind is None:
        return f"a column of type {series.dtype} cannot be a feature"
    distinct = series.n_unique()
    if distinct == 1:
        return f"every row has the same value: {series[0]!r}"
    categories: tuple[str, ...] = ()
    if kind == "category":
        known = series.drop_nulls().cast(pl.String)
        if is_identifier(known.n_unique(), len(known)):
            return f"looks like an identifier: {known.n_unique()} distinct values in {len(known)} rows"
        least = min(LEAST_ROWS, len(series) // 50 + 1)
        counted = known.alias("value").value_counts(name="rows").filter(pl.col("rows") >= least)
        kept = counted.sort(["rows", "value"], descending=[True, False]).head(MOST_CATEGORIES)
        categories = tuple(sorted(kept["value"].to_list()))
        if not categories:
            return f"too many different values: {known.n_unique()} in {len(known)} rows, each in fewer than {least}"
    return Feature(
        name=series.name,
        kind=kind,
        type=arrow_type(series.dtype),
        nullable=nulls > 0,
        categories=categories,
        zone=series.dtype.time_zone if isinstance(series.dtype, pl.Datetime) else None,
    )


def is_identifier(distinct: int, known: int) -> bool:
    """Whether a text column has so few repeated values that it identifies rows, and nothing can be learned from it."""
    return distinct > 1000 and distinct > 0.5 * known


def _kind(dtype: pl.DataType) -> Kind | None:
    import polars as pl

    if dtype == pl.Boolean:
        return "flag"
    if dtype.is_numeric():
        return "number"
    kinds: dict[Any, Kind] = {
        pl.String: "category",
        pl.Categorical: "category",
        pl.Enum: "category",
        pl.Date: "date",
        pl.Datetime: "datetime",
        pl.Time: "time",
        pl.Duration: "duration",
    }
    return kinds.get(dtype.base_type())


# -- frames -------------------------------------------------------------------------------------------------------

_READABLE: dict[Kind, tuple[Kind, ...]] = {
    "number": ("number", "flag"),
    "flag": ("number", "flag"),
    "category": ("category",),
    "date": ("date", "datetime"),
    "datetime": ("date", "datetime"),
    "time": ("time",),
    "duration": ("duration",),
}
"""Kinds of columns that a feature can be read from: numbers and flags, or dates and datetimes, from each other."""


def _column(frame: pl.DataFrame, feature: Feature) -> pl.Series:
    import polars as pl

    try:
        series = frame.get_column(feature.name)
    except pl.exceptions.ColumnNotFoundError:
        raise _missing(feature.name, frame.columns) from None
    if series.dtype != pl.Null and _kind(series.dtype) not in _READABLE[feature.kind]:
        raise _wrong_type(feature, str(series.dtype))
    return series


def _frame_columns(feature: Feature, series: pl.Series) -> Iterable[Array]:
    import polars as pl

    if series.dtype == pl.Null:
        empty = float(MISSING) if feature.kind == "category" else _NAN
        return [np.full(len(series), empty)] * feature.width
    if feature.kind in ("number", "flag"):
        # If training had single precision, doubles are rounded to it, so that 0.1 falls on the same side of a split.
        rounded = series.cast(pl.Float32) if feature.type == "float" else series
        return [_floats(rounded)]
    if feature.kind == "category":
        text = series.cast(pl.String)
        known = _floats(text.cast(pl.Enum(list(feature.categories)), strict=False).to_physical()) + FIRST
        codes = np.where(np.isnan(known), float(UNSEEN), known)
        if series.null_count():
            codes[series.is_null().to_numpy()] = float(MISSING)
        return [codes]
    if feature.kind == "time":
        return [_floats(series.cast(pl.Int64) // 1000) / 3.6e9]
    if feature.kind == "duration":
        return [_floats(series.cast(pl.Duration("us")).cast(pl.Int64)) / 1e6]
    return _moment_columns(feature, series)


def _moment_columns(feature: Feature, series: pl.Series) -> Iterable[Array]:
    import polars as pl

    local = series
    if feature.kind == "datetime":
        own_zone = series.dtype.time_zone if isinstance(series.dtype, pl.Datetime) else None
        local = series.cast(pl.Datetime("us", own_zone))
        if feature.zone is not None:
            if own_zone is None:
                local = local.dt.replace_time_zone("UTC")
            local = local.dt.convert_time_zone(feature.zone)
        elif own_zone is not None:
            local = local.dt.convert_time_zone("UTC")
    yield _floats(local.dt.month())
    yield _floats(local.dt.day())
    yield _floats(local.dt.weekday())
    if feature.kind == "datetime":
        seconds = local.dt.hour().cast(pl.Int64) * 3600 + local.dt.minute().cast(pl.Int64) * 60 + local.dt.second()
        yield _floats(seconds) / 3600.0


def _floats(series: pl.Series) -> Array:
    import polars as pl

    # NumPy gets NaN for a null. `fill_null` would build and run a query, which takes most of the time for a few rows.
    return series.cast(pl.Float64).to_numpy()


# -- rows ---------------------------------------------------------------------------------------------------------

RowReader = Callable[[Any, list[float]], None]


def _row_reader(feature: Feature) -> RowReader:
    if feature.kind == "category":
        return _category_reader(feature)
    if feature.kind in ("number", "flag"):
        return _number_reader(feature)
    return _moment_reader(feature)


def _category_reader(feature: Feature) -> RowReader:
    codes: dict[Any, float] = {name: float(FIRST + index) for index, name in enumerate(feature.categories)}
    codes[None] = float(MISSING)

    def read(value: Any, out: list[float]) -> None:
        if value is not None and not isinstance(value, str):
            raise _wrong_type(feature, type(value).__name__)
        out.append(codes.get(value, float(UNSEEN)))

    return read


def _number_reader(feature: Feature) -> RowReader:
    single = feature.type == "float"

    def read(value: Any, out: list[float]) -> None:
        if type(value) is not float:
            if value is None:
                value = _NAN
            elif isinstance(value, (int, float, Decimal, np.number, np.bool_)):
                try:
                    value = float(value)
                except OverflowError:
                    # The whole number is outside the range of a double.
                    value = float("inf") if value > 0 else float("-inf")
            else:
                raise _wrong_type(feature, type(value).__name__)
        out.append(float(np.float32(value)) if single else value)

    return read


def _moment_reader(feature: Feature) -> RowReader:
    zone = ZoneInfo(feature.zone) if feature.zone else None

    def read_duration(value: Any, out: list[float]) -> None:
        if value is not None and not isinstance(value, timedelta):
            raise _wrong_type(feature, type(value).__name__)
        out.append(_NAN if value is None else (value // timedelta(microseconds=1)) / 1e6)

    def read_time(value: Any, out: list[float]) -> None:
        if value is not None and not isinstance(value, time):
            raise _wrong_type(feature, type(value).__name__)
        if value is None:
            out.append(_NAN)
        else:
            seconds = value.hour * 3600 + value.minute * 60 + value.second
            out.append((seconds * 1_000_000 + value.microsecond) / 3.6e9)

    def read_date(value: Any, out: list[float]) -> None:
        if value is None:
            out.extend((_NAN, _NAN, _NAN))
        elif isinstance(value, date):
            out.extend((float(value.month), float(value.day), float(value.isoweekday())))
        else:
            raise _wrong_type(feature, type(value).__name__)

    def read_datetime(value: Any, out: list[float]) -> None:
        if value is None:
            out.extend((_NAN, _NAN, _NAN, _NAN))
            return
        if not isinstance(value, date):
            raise _wrong_type(feature, type(value).__name__)
        moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        try:
            if zone is not None:
                moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(zone)
            elif moment.tzinfo is not None:
                moment = moment.astimezone(UTC)
        except OverflowError:
            raise RequestError(
                f"'{feature.name}' is {value}, which is outside the years 1 to 9999 in {feature.zone or 'UTC'}.",
                help="Send a time in these years, or null.",
            ) from None
        hour = (moment.hour * 3600 + moment.minute * 60 + moment.second) / 3600.0
        out.extend((float(moment.month), float(moment.day), float(moment.isoweekday()), hour))

    return {"duration": read_duration, "time": read_time, "date": read_date, "datetime": read_datetime}[feature.kind]


# -- errors -------------------------------------------------------------------------------------------------------


def _missing(name: str, present: Iterable[str]) -> RequestError:
    return RequestError(f"Column '{name}' is missing.", help=f"Got: {', '.join(list(present)[:30]) or 'no columns'}")


def _wrong_type(feature: Feature, got: str) -> RequestError:
    return RequestError(
        f"Column '{feature.name}' has type {got}, but the model was trained on {feature.type}.",
        help=f"Send '{feature.name}' as {feature.type}.",
    )
