"""What the texts of a csv column are: numbers, dates, times, booleans, missing values, or texts.

Every value is of one kind, whatever stands around it, and a column's type follows from how many values of each kind it
has (`decide`). So the type does not depend on the order of the rows, or on how many files they stand in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["number", "bool", "date", "datetime", "moment", "time", "text"]
"""`datetime` has no offset from UTC, `moment` has one."""

USUAL_NULLS = ("NA", "N/A", "#N/A", "<NA>", "NULL", "NaN", "-NaN", "None", "-", "--", "?", ".")
"""Texts that mean a missing value among numbers, dates and booleans, in any case; so do blanks."""

KIND_NAMES: dict[Kind, str] = {
    "number": "numbers",
    "bool": "booleans",
    "date": "dates",
    "datetime": "times",
    "moment": "times with an offset",
    "time": "times of day",
    "text": "texts",
}
FEW_VALUES = 10
FEW_SHARE = 0.01
EXACT = float(1 << 53)
"""Up to here every whole number has a float of its own."""

_SURE_DIGITS = 15
"""So many digits of a number are always kept by a float."""
_DAY = r"(?:\d{4}-\d{1,2}-\d{1,2}|\d{4}/\d{1,2}/\d{1,2})"
_CLOCK = r"\d{2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
_DATE = rf"^(?:{_DAY}|\d{{4}}\.\d{{1,2}}\.\d{{1,2}})$"
_DATETIME = rf"^{_DAY}[T ]{_CLOCK}$"
_MOMENT = rf"^{_DAY}[T ]{_CLOCK} ?(?:[Zz]|UTC|[+-]\d{{2}}(?::?\d{{2}})?)$"
_TIME = rf"^{_CLOCK}$"
_FINER = r"[.,]\d{6}\d*[1-9]\d*"
"""A fraction of a second that microseconds cannot hold."""


@dataclass(frozen=True)
class ColumnReading:
    """How values are written."""

    usual_nulls: bool = True
    dates: bool = True
    comma: bool = False
    """Numbers have a decimal comma."""

    def trimmed(self, name: str) -> pl.Expr:
        """The text without blanks around it; null where nothing is left."""
        text = pl.col(name).str.strip_chars()
        return pl.when(text != "").then(text)

    def is_null(self, text: pl.Expr) -> pl.Expr:
        """Whether a trimmed text is one of the usual ones for a missing value."""
        if not self.usual_nulls:
            return pl.lit(value=False)
        return text.str.to_lowercase().is_in([usual.lower() for usual in USUAL_NULLS])

    def is_whole(self, text: pl.Expr) -> pl.Expr:
        return text.str.contains(r"^-?(?:0|[1-9][0-9]*)$")

    def is_number(self, text: pl.Expr) -> pl.Expr:
        """Numbers as a number writes itself: no sign or zero in front that it would lose."""
        point = "," if self.comma else r"\."
        fraction = rf"^-?(?:(?:0|[1-9][0-9]*)(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?$"
        words = "inf|infinity" if self.usual_nulls else "inf|infinity|nan"
        return text.str.contains(rf"{fraction}|^-?(?i:{words})$")

    def is_name(self, text: pl.Expr) -> pl.Expr:
        """Digits behind a zero or a plus, as in 007, 007.50 and +5: a name more often than a number."""
        point = "," if self.comma else r"\."
        digits = rf"^[+-]?(?:[0-9]+(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?$"
        return text.str.contains(digits) & ~self.is_number(text)

    def number(self, text: pl.Expr) -> pl.Expr:
        """The text with a decimal point."""
        return text.str.replace(",", ".", literal=True) if self.comma else text

    def parsed(self, text: pl.Expr, kind: Kind) -> pl.Expr:
        """Values of a kind other than numbers and texts; null for everything else."""
        return _PARSERS[kind](text)

    def is_kind(self, text: pl.Expr, kind: Kind) -> pl.Expr:
        if kind == "number":
            return self.is_number(text)
        if kind == "bool":
            return text.str.to_lowercase().is_in(["true", "false"])
        return _PARSERS[kind](text).is_not_null()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        dated: tuple[Kind, ...] = ("date", "datetime", "moment", "time")
        return ("number", "bool", *(dated if self.dates else ()))


@dataclass(frozen=True)
class Tally:
    """How many values of each kind a column has."""

    filled: int
    """Values that are not empty."""
    blanks: int
    nulls: int
    """Usual texts for a missing value."""
    names: int
    whole: int
    kinds: dict[Kind, int] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.filled + other.filled,
            self.blanks + other.blanks,
            self.nulls + other.nulls,
            self.names + other.names,
            self.whole + other.whole,
            {kind: self.kinds.get(kind, 0) + other.kinds.get(kind, 0) for kind in {**self.kinds, **other.kinds}},
        )

    @property
    def valued(self) -> int:
        return self.filled - self.blanks - self.nulls

    @property
    def most(self) -> tuple[Kind, int]:
        """The kind with most values. Names count as numbers."""
        counts: dict[Kind, int] = {**self.kinds, "number": self.kinds.get("number", 0) + self.names}
        kind = max(counts, key=lambda each: counts[each])
        return (kind, counts[kind]) if counts[kind] else ("text", self.valued)

    @property
    def pure(self) -> Kind | None:
        """The one kind that all values are of."""
        if not self.valued:
            return None
        kind, count = self.most
        return kind if count == self.valued else None


@dataclass(frozen=True)
class ValueFormat:
    """A way in which all values of a column are often written, which is quick to tell.

    A column whose every value has one form needs no second look: its type is as `decide` would have it, and loses
    nothing.
    """

    kind: Kind
    dtype: pl.DataType
    pattern: str
    native: bool = False
    """Polars reads the type itself."""
    format: str | None = None
    """Of a date or a time."""

    def value(self, name: str) -> pl.Expr:
        if self.format is None:
            return pl.col(name)
        if isinstance(self.dtype, pl.Date):
            return pl.col(name).str.to_date(self.format, strict=False)
        zone = "UTC" if self.kind == "moment" else None
        text = pl.col(name) if zone is None else pl.col(name).str.replace("Z$", "+00:00")
        return text.str.to_datetime(self.format, time_unit="us", time_zone=zone, strict=False)

    def fits(self, name: str) -> pl.Expr:
        """How many values have this form."""
        fits = pl.col(name).str.contains(self.pattern)
        if self.format is not None:
            fits = fits & self.value(name).is_not_null()
        return fits.sum()


def forms(reading: ColumnReading) -> list[ValueFormat]:
    """The forms to look for, in this order."""
    point = "," if reading.comma else r"\."
    number = [
        ValueFormat("number", pl.Int64(), r"^-?(?:0|[1-9][0-9]{0,16})$", native=True),
        # No exponent and few digits in front of the point: exact, as far as a fraction is.
        ValueFormat(
            "number",
            pl.Float64(),
            rf"^-?(?:0|[1-9][0-9]{{0,14}})(?:{point}[0-9]{{1,20}})?$",
            native=not reading.comma,
        ),
    ]
    day, clock = r"^\d{4}-\d{2}-\d{2}", r"\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?"
    dates = [ValueFormat("date", pl.Date(), rf"{day}$", format="%Y-%m-%d")]
    for between in ("T", " "):
        pattern = f"%Y-%m-%d{between}%H:%M:%S%.f"
        dates += [
            ValueFormat("datetime", pl.Datetime("us"), rf"{day}{between}{clock}$", format=pattern),
            ValueFormat(
                "moment",
                pl.Datetime("us", "UTC"),
                rf"{day}{between}{clock}(?:Z|[+-]\d{{2}}:\d{{2}})$",
                format=f"{pattern}%z",
            ),
        ]
    return [*number, *(dates if reading.dates else [])]


def maybe_typed(name: str) -> pl.Expr:
    """How many values may be something else than texts; quick to tell."""
    return pl.col(name).str.contains(r"^\s*(?:[+-]?[.,]?[0-9]|-?(?i:inf|infinity|nan|true|false)\s*$)").sum()


Verdict = Literal["empty", "text", "names", "mixed", "odd", "typed"]
"""`mixed`: kept as text though most are of one kind; `odd`: most are of one kind, and a few values cannot be."""


def decide(tally: Tally, distinct_others: Callable[[Kind], int]) -> tuple[Verdict, Kind]:
    """What the column is.

    Args:
        distinct_others: how many different values are not of a kind; asked only where it matters.
    """
    if not tally.valued:
        return "empty", "text"
    kind, count = tally.most
    others = tally.valued - count
    if kind == "text":
        return "text", kind
    if not others:
        return ("names" if tally.names else "typed"), kind
    if count <= others:
        return "text", "text"
    if tally.names:
        return "mixed", kind
    few = others <= FEW_SHARE * tally.valued or distinct_others(kind) <= FEW_VALUES
    return ("odd" if few else "mixed"), kind


@dataclass(frozen=True)
class Marks:
    """What decides the type of a column of numbers, and whether a type may lose something."""

    fraction: bool = False
    """A number is not whole."""
    digits: int = 0
    """Of the longest whole number."""
    risky: bool = False
    """A number is so long, or so large, that a float may not hold it."""
    finer: bool = False
    """A time has more than microseconds."""

    def __or__(self, other: Marks) -> Marks:
        return Marks(
            self.fraction or other.fraction,
            max(self.digits, other.digits),
            self.risky or other.risky,
            self.finer or other.finer,
        )


def find_marks(name: str, reading: ColumnReading) -> list[pl.Expr]:
    """Expressions for the `Marks` of a column."""
    text = reading.trimmed(name)
    whole = reading.is_whole(text)
    number = reading.is_number(text)
    fraction = number & ~whole & ~reading.is_null(text)
    risky = number & ((text.str.len_bytes() > _SURE_DIGITS) | text.str.contains("[eEiI]"))
    asked = [
        fraction.any(),
        pl.when(whole).then(text.str.len_bytes()).max(),
        risky.any(),
        text.str.contains(_FINER).any(),
    ]
    return [each.alias(f"mark {place} {name}") for place, each in enumerate(asked)]


def marked(name: str, row: dict[str, Any]) -> Marks:
    """The marks from the results of `find_marks`."""
    fraction, digits, risky, finer = (row[f"mark {place} {name}"] for place in range(4))
    return Marks(bool(fraction), int(digits or 0), bool(risky), bool(finer))


def count_kinds(name: str, reading: ColumnReading) -> list[pl.Expr]:
    """Expressions for a `Tally` of a column, in the order of its fields."""
    text = reading.trimmed(name)
    null = reading.is_null(text).fill_null(value=False)
    value = pl.when(~null).then(text)
    asked = [
        (pl.col(name) != "").sum(),
        (pl.col(name) != "").sum() - text.is_not_null().sum(),
        null.sum(),
        reading.is_name(value).sum(),
        reading.is_whole(value).sum(),
        *(reading.is_kind(value, kind).sum() for kind in reading.kinds),
    ]
    return [each.alias(f"{place} {name}") for place, each in enumerate(asked)]


def counted(name: str, row: dict[str, Any], reading: ColumnReading) -> Tally:
    """The tally from the results of `count_kinds`."""
    filled, blanks, nulls, names, whole, *kinds = (
        int(row[f"{place} {name}"] or 0) for place in range(5 + len(reading.kinds))
    )
    return Tally(filled, blanks, nulls, names, whole, dict(zip(reading.kinds, kinds, strict=True)))


def loses(reading: ColumnReading, name: str, dtype: pl.DataType) -> pl.Expr:
    """Which values of a typed column its type cannot hold as they are written."""
    text = reading.trimmed(name)
    if dtype.is_float():
        number = reading.number(text)
        whole = number.cast(pl.Int128, strict=False)
        rounded = reading.is_whole(number) & (
            whole.is_null() | (whole.cast(pl.Float64).cast(pl.Int128, strict=False) != whole)
        )
        value = number.cast(pl.Float64, strict=False)
        over = value.is_infinite() & number.str.contains(r"\d")
        under = (value == 0.0) & number.str.contains(r"^-?[0.]*[1-9]")
        return (rounded | over | under).fill_null(value=False)
    if dtype.is_integer():
        return (reading.is_whole(text) & text.cast(dtype, strict=False).is_null()).fill_null(value=False)
    if dtype.is_temporal():
        return text.str.contains(_FINER).fill_null(value=False)
    return pl.lit(value=False)


def looks_typed(value: str) -> bool:
    """Whether a text has digits, or is one of the words for a boolean."""
    return any(letter.isdigit() for letter in value) or value.strip().lower() in ("true", "false", "yes", "no")


def has_decimal_comma(text: pl.Expr) -> pl.Expr:
    """Whether a text is a number such as 1,5 or 1.234,50; not 1,234, which may be a thousand."""
    return text.str.contains(r"^-?(?:[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+),(?:[0-9]{1,2}|[0-9]{4,})$")


def _date(text: pl.Expr) -> pl.Expr:
    day = pl.when(text.str.contains(_DATE)).then(text.str.replace_all(r"[/.]", "-"))
    return day.str.to_date("%Y-%m-%d", strict=False)


def _datetime(text: pl.Expr, unit: Literal["us", "ns"] = "us") -> pl.Expr:
    value = pl.when(text.str.contains(_DATETIME)).then(_plain(text))
    return pl.coalesce(
        value.str.to_datetime(pattern, time_unit=unit, strict=False)
        for pattern in ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")
    )


def _moment(text: pl.Expr, unit: Literal["us", "ns"] = "us") -> pl.Expr:
    value = _plain(pl.when(text.str.contains(_MOMENT)).then(text)).str.replace(r" ?(?:[Zz]|UTC)$", "+00:00")
    value = value.str.replace(r" ?([+-]\d{2}):?(\d{2})?$", "$1:$2").str.replace(r":$", ":00")
    return pl.coalesce(
        value.str.to_datetime(pattern, time_unit=unit, time_zone="UTC", strict=False)
        for pattern in ("%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%dT%H:%M%z")
    )


def _time(text: pl.Expr) -> pl.Expr:
    value = pl.when(text.str.contains(_TIME)).then(text.str.replace(",", ".", literal=True))
    return pl.coalesce(value.str.to_time(pattern, strict=False) for pattern in ("%H:%M:%S%.f", "%H:%M"))


def _bool(text: pl.Expr) -> pl.Expr:
    lower = text.str.to_lowercase()
    return pl.when(lower.is_in(["true", "false"])).then(lower == "true")


def _plain(text: pl.Expr) -> pl.Expr:
    return (
        text.str.replace_all("/", "-", literal=True)
        .str.replace(" ", "T", literal=True)
        .str.replace(",", ".", literal=True)
    )


_PARSERS: dict[Kind, Callable[[pl.Expr], pl.Expr]] = {
    "bool": _bool,
    "date": _date,
    "datetime": _datetime,
    "moment": _moment,
    "time": _time,
}


def convert(reading: ColumnReading, name: str, dtype: pl.DataType) -> pl.Expr:
    """The column in a type; null where a value is missing or does not fit."""
    if isinstance(dtype, pl.String):
        return pl.col(name)
    text = reading.trimmed(name)
    value: pl.Expr = pl.when(~reading.is_null(text)).then(text)
    if isinstance(dtype, pl.Boolean):
        lower = value.str.to_lowercase()
        return pl.when(lower.is_in(["true", "false", "1", "0"])).then(lower.is_in(["true", "1"])).alias(name)
    if isinstance(dtype, pl.Date):
        return _date(value).alias(name)
    if isinstance(dtype, pl.Time):
        return _time(value).alias(name)
    if isinstance(dtype, pl.Datetime):
        unit: Literal["us", "ns"] = "ns" if dtype.time_unit == "ns" else "us"
        if dtype.time_zone is None:
            return _datetime(value, unit).cast(dtype).alias(name)
        naive = _datetime(value, unit).dt.replace_time_zone(dtype.time_zone, ambiguous="null", non_existent="null")
        return pl.coalesce(_moment(value, unit).dt.convert_time_zone(dtype.time_zone), naive).cast(dtype).alias(name)
    if dtype.is_numeric():
        value = reading.number(value)
    return value.cast(dtype, strict=False).alias(name)
