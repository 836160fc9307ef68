"""Classify the texts of a CSV column: numbers, dates, times, booleans, missing values, or text.

Every value has one kind, whatever its neighbours are, and a column's type follows from how many values of each kind it
has (`decide`). So the type depends neither on the order of the rows nor on how they are spread over files.
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
"""Texts that mean a missing value in a column of numbers, dates or booleans, in upper or lower case. So do blanks."""

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

_SURE_DIGITS = 15
"""A float always keeps this many digits of a number."""
_DAY = r"(?:\d{4}-\d{1,2}-\d{1,2}|\d{4}/\d{1,2}/\d{1,2})"
_CLOCK = r"\d{2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
_DATE = rf"^(?:{_DAY}|\d{{4}}\.\d{{1,2}}\.\d{{1,2}})$"
_DATETIME = rf"^{_DAY}[T ]{_CLOCK}$"
_MOMENT = rf"^{_DAY}[T ]{_CLOCK} ?(?:[Zz]|UTC|[+-]\d{{2}}(?::?\d{{2}})?)$"
_TIME = rf"^{_CLOCK}$"
_FINER = r"[.,]\d{6}\d*[1-9]\d*"
"""A fraction of a second that microseconds cannot hold."""


@dataclass(frozen=True)
class ValueRules:
    """How the texts of a source are to be understood."""

    usual_nulls: bool = True
    dates: bool = True
    comma: bool = False
    """Numbers have a decimal comma."""

    def trimmed(self, name: str) -> pl.Expr:
        """The text without surrounding blanks; null if nothing is left."""
        text = pl.col(name).str.strip_chars()
        return pl.when(text != "").then(text)

    def is_null(self, text: pl.Expr) -> pl.Expr:
        """Whether a trimmed text is one of `USUAL_NULLS`."""
        if not self.usual_nulls:
            return pl.lit(value=False)
        return text.str.to_lowercase().is_in([usual.lower() for usual in USUAL_NULLS])

    def is_whole(self, text: pl.Expr) -> pl.Expr:
        return text.str.contains(r"^-?(?:0|[1-9][0-9]*)$")

    def is_number(self, text: pl.Expr) -> pl.Expr:
        """Whether a text is a number, without a leading zero or plus that would be lost."""
        point = "," if self.comma else r"\."
        fraction = rf"^-?(?:(?:0|[1-9][0-9]*)(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?$"
        words = "inf|infinity" if self.usual_nulls else "inf|infinity|nan"
        return text.str.contains(rf"{fraction}|^-?(?i:{words})$")

    def is_code(self, text: pl.Expr) -> pl.Expr:
        """Whether digits follow a zero or a plus, as in 007, 007.50 and +5: more often a code than a number."""
        point = "," if self.comma else r"\."
        digits = rf"^[+-]?(?:[0-9]+(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?$"
        return text.str.contains(digits) & ~self.is_number(text)

    def number(self, text: pl.Expr) -> pl.Expr:
        """The text with a decimal point instead of a comma."""
        return text.str.replace(",", ".", literal=True) if self.comma else text

    def parsed(self, text: pl.Expr, kind: Kind) -> pl.Expr:
        """The values of one kind other than number and text; null for everything else."""
        return _PARSERS[kind](text)

    def is_kind(self, text: pl.Expr, kind: Kind) -> pl.Expr:
        if kind == "number":
            return self.is_number(text)
        if kind == "bool":
            return text.str.to_lowercase().is_in(["true", "false"])
        return _PARSERS[kind](text).is_not_null()

    def is_other(self, name: str, kind: Kind) -> pl.Expr:
        """Whether a value of a column is neither missing nor of this kind. Codes count as numbers."""
        text = self.trimmed(name)
        code = self.is_code(text) if kind == "number" else pl.lit(value=False)
        return text.is_not_null() & ~(self.is_kind(text, kind) | code | self.is_null(text))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        dated: tuple[Kind, ...] = ("date", "datetime", "moment", "time")
        return ("number", "bool", *(dated if self.dates else ()))


@dataclass(frozen=True)
class KindCounts:
    """How many values of each kind a column has."""

    filled: int
    """Values that are not empty."""
    blanks: int
    nulls: int
    """Values that are one of `USUAL_NULLS`."""
    codes: int
    """Values such as 007, see `ValueRules.is_code`."""
    kinds: dict[Kind, int] = field(default_factory=dict)

    def __add__(self, other: KindCounts) -> KindCounts:
        return KindCounts(
            self.filled + other.filled,
            self.blanks + other.blanks,
            self.nulls + other.nulls,
            self.codes + other.codes,
            {kind: self.kinds.get(kind, 0) + other.kinds.get(kind, 0) for kind in {**self.kinds, **other.kinds}},
        )

    @property
    def valued(self) -> int:
        return self.filled - self.blanks - self.nulls

    @property
    def most_common(self) -> tuple[Kind, int]:
        """The kind with the most values, and how many. Codes count as numbers."""
        counts: dict[Kind, int] = {**self.kinds, "number": self.kinds.get("number", 0) + self.codes}
        kind = max(counts, key=lambda each: counts[each])
        return (kind, counts[kind]) if counts[kind] else ("text", self.valued)

    @property
    def only_kind(self) -> Kind | None:
        """The kind of all values, if they share one."""
        if not self.valued:
            return None
        kind, count = self.most_common
        return kind if count == self.valued else None


@dataclass(frozen=True)
class ValueFormat:
    """A common format that all values of a column may share, and that is quick to check.

    If every value of a column matches, no second pass is needed: the type is the one that `decide` would choose, and
    no value loses anything.
    """

    kind: Kind
    dtype: pl.DataType
    pattern: str
    native: bool = False
    """Polars reads this type itself."""
    format: str | None = None
    """The `strptime` format of a date or a time."""

    def value(self, name: str) -> pl.Expr:
        if self.format is None:
            return pl.col(name)
        if isinstance(self.dtype, pl.Date):
            return pl.col(name).str.to_date(self.format, strict=False)
        zone = "UTC" if self.kind == "moment" else None
        text = pl.col(name) if zone is None else pl.col(name).str.replace("Z$", "+00:00")
        return text.str.to_datetime(self.format, time_unit="us", time_zone=zone, strict=False)

    def count_matches(self, name: str) -> pl.Expr:
        """How many values have this format."""
        matches = pl.col(name).str.contains(self.pattern)
        if self.format is not None:
            matches = matches & self.value(name).is_not_null()
        return matches.sum()


def common_formats(rules: ValueRules) -> list[ValueFormat]:
    """The formats to try, in this order."""
    point = "," if rules.comma else r"\."
    number = [
        ValueFormat("number", pl.Int64(), r"^-?(?:0|[1-9][0-9]{0,16})$", native=True),
        # Without an exponent and with few digits before the point, a float is as exact as a fraction can be.
        ValueFormat(
            "number",
            pl.Float64(),
            rf"^-?(?:0|[1-9][0-9]{{0,14}})(?:{point}[0-9]{{1,20}})?$",
            native=not rules.comma,
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
    return [*number, *(dates if rules.dates else [])]


def count_maybe_typed(name: str) -> pl.Expr:
    """How many values might not be text, by a quick check."""
    return pl.col(name).str.contains(r"^\s*(?:[+-]?[.,]?[0-9]|-?(?i:inf|infinity|nan|true|false)\s*$)").sum()


Verdict = Literal["empty", "text", "codes", "mixed", "odd", "typed"]
"""`mixed`: stays text although most values are of one kind. `odd`: all but a few values are of one kind: an error."""


def decide(counts: KindCounts, distinct_others: Callable[[Kind], int]) -> tuple[Verdict, Kind]:
    """Decide what a column is.

    Args:
        distinct_others: returns how many different values are not of a kind. Called only when the counts alone do not
            decide.
    """
    if not counts.valued:
        return "empty", "text"
    kind, count = counts.most_common
    others = counts.valued - count
    if kind == "text":
        return "text", kind
    if not others:
        return ("codes" if counts.codes else "typed"), kind
    if count <= others:
        return "text", "text"
    if counts.codes:
        return "mixed", kind
    few = others <= FEW_SHARE * counts.valued or distinct_others(kind) <= FEW_VALUES
    return ("odd" if few else "mixed"), kind


@dataclass(frozen=True)
class Precision:
    """How precise the values of a column are. It decides between number types, and whether a type may lose digits."""

    fraction: bool = False
    """Some number is not whole."""
    digits: int = 0
    """The length of the longest whole number."""
    risky: bool = False
    """Some number is so long or so large that a float may not hold it exactly."""
    finer: bool = False
    """Some time is finer than microseconds."""

    def __or__(self, other: Precision) -> Precision:
        return Precision(
            self.fraction or other.fraction,
            max(self.digits, other.digits),
            self.risky or other.risky,
            self.finer or other.finer,
        )


def precision_expressions(name: str, rules: ValueRules) -> list[pl.Expr]:
    """Expressions for the `Precision` of a column."""
    text = rules.trimmed(name)
    whole = rules.is_whole(text)
    number = rules.is_number(text)
    fraction = number & ~whole & ~rules.is_null(text)
    risky = number & ((text.str.len_bytes() > _SURE_DIGITS) | text.str.contains("[eEiI]"))
    expressions = [
        fraction.any(),
        pl.when(whole).then(text.str.len_bytes()).max(),
        risky.any(),
        text.str.contains(_FINER).any(),
    ]
    return [each.alias(f"precision {index} {name}") for index, each in enumerate(expressions)]


def precision_from(name: str, row: dict[str, Any]) -> Precision:
    """The precision from the results of `precision_expressions`."""
    fraction, digits, risky, finer = (row[f"precision {index} {name}"] for index in range(4))
    return Precision(bool(fraction), int(digits or 0), bool(risky), bool(finer))


def count_expressions(name: str, rules: ValueRules) -> list[pl.Expr]:
    """Expressions for the `KindCounts` of a column, in the order of its fields."""
    text = rules.trimmed(name)
    null = rules.is_null(text).fill_null(value=False)
    value = pl.when(~null).then(text)
    expressions = [
        (pl.col(name) != "").sum(),
        (pl.col(name) != "").sum() - text.is_not_null().sum(),
        null.sum(),
        rules.is_code(value).sum(),
        *(rules.is_kind(value, kind).sum() for kind in rules.kinds),
    ]
    return [each.alias(f"{index} {name}") for index, each in enumerate(expressions)]


def counts_from(name: str, row: dict[str, Any], rules: ValueRules) -> KindCounts:
    """The counts from the results of `count_expressions`."""
    filled, blanks, nulls, codes, *kinds = (int(row[f"{index} {name}"] or 0) for index in range(4 + len(rules.kinds)))
    return KindCounts(filled, blanks, nulls, codes, dict(zip(rules.kinds, kinds, strict=True)))


def loses_precision(rules: ValueRules, name: str, dtype: pl.DataType) -> pl.Expr:
    """Which values of a column its type cannot hold exactly."""
    text = rules.trimmed(name)
    if dtype.is_float():
        number = rules.number(text)
        whole = number.cast(pl.Int128, strict=False)
        rounded = rules.is_whole(number) & (
            whole.is_null() | (whole.cast(pl.Float64).cast(pl.Int128, strict=False) != whole)
        )
        value = number.cast(pl.Float64, strict=False)
        over = value.is_infinite() & number.str.contains(r"\d")
        under = (value == 0.0) & number.str.contains(r"^-?[0.]*[1-9]")
        return (rounded | over | under).fill_null(value=False)
    if dtype.is_integer():
        return (rules.is_whole(text) & text.cast(dtype, strict=False).is_null()).fill_null(value=False)
    if dtype.is_temporal():
        return text.str.contains(_FINER).fill_null(value=False)
    return pl.lit(value=False)


def looks_typed(value: str) -> bool:
    """Whether a text contains digits or is a boolean word."""
    return any(letter.isdigit() for letter in value) or value.strip().lower() in ("true", "false", "yes", "no")


def has_decimal_comma(text: pl.Expr) -> pl.Expr:
    """Whether a text is a number such as 1,5 or 1.234,50. Not 1,234, where the comma may separate thousands."""
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


def convert(rules: ValueRules, name: str, dtype: pl.DataType) -> pl.Expr:
    """The column converted to a type; null if a value is missing or does not fit."""
    if isinstance(dtype, pl.String):
        return pl.col(name)
    text = rules.trimmed(name)
    value: pl.Expr = pl.when(~rules.is_null(text)).then(text)
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
        value = rules.number(value)
    return value.cast(dtype, strict=False).alias(name)
