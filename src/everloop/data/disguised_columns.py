"""Recognise numbers and dates that are stored as text, and convert them with an expression of Polars."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

NULL_WORDS = ("", "-", "--", ".", "?", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "missing", "unknown")
"""Texts that stand for a missing value, in upper or lower case."""
LEAST_READ = 0.95
"""A text column is converted if at least this share of its texts, apart from `NULL_WORDS`, can be converted."""
_LEADING_ZERO = r"^0\d"
"""A code such as 007 is usually an identifier and not a number."""
_SIGNS = "$€£¥₹"
_CODES = ("EUR", "USD", "GBP", "CHF", "JPY", "INR")
_CURRENCY = f"(?:[{_SIGNS}]|{'|'.join(_CODES)})"
_BEFORE, _AFTER = rf"^[-+]?{_CURRENCY}?\s?[-+]?", rf"(?:\s?(?:{_CURRENCY}|%))?$"
_POINT = rf"{_BEFORE}(?:[1-9]\d{{0,2}}(?:,\d{{3}})+|[1-9]\d{{0,2}}(?:['’\s]\d{{3}})+|\d+)(?:\.\d+)?{_AFTER}"
_COMMA = rf"{_BEFORE}(?:[1-9]\d{{0,2}}(?:\.\d{{3}})+|[1-9]\d{{0,2}}(?:['’\s]\d{{3}})+|\d+)(?:,\d+)?{_AFTER}"
"""Numbers with a decimal point and with a decimal comma, with or without thousands separators, currency and percent."""
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y",
          "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y")  # fmt: skip
_CLOCKS = ("%H:%M:%S%.f", "%H:%M:%S", "%H:%M", "%I:%M %p", "%I:%M:%S %p")
_ZONES = ("", "%z", "Z")
_DATE_NAME = re.compile(r"date|day|time|(^|_)dt($|_)|_at$|_on$", re.IGNORECASE)
_FIRST_DAY, _LAST_DAY = 19000101, 22001231
_FIRST_SECOND, _LAST_SECOND = 200_000_000, 4_200_000_000
"""Numbers between these, from 1976 to 2103, are taken for seconds since 1970."""
_SAMPLE = 200
_AMBIGUOUS = {"%d/%m/%Y": "%m/%d/%Y", "%d-%m-%Y": "%m-%d-%Y", "%d/%m/%y": "%m/%d/%y"}
"""Date formats that are ambiguous as long as no day is above 12."""


@dataclass(frozen=True)
class Conversion:
    """How to convert a column. `code` is the Python source of `expression`, for the generated `loop.py`."""

    expression: pl.Expr
    code: str
    kind: str
    """`number`, `date` or `time`."""
    unread: int
    """How many values become null although they are not."""
    examples: tuple[str, ...] = ()
    """Some of the values that become null."""
    remark: str = ""
    """The other possible reading, if the column is ambiguous."""


def quoted(text: str) -> str:
    """Return a text as a Python literal in double quotes, with non-ASCII letters unchanged."""
    import json

    plain = json.dumps(text, ensure_ascii=False)
    return plain.replace("\x7f", "\\x7f").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def column_code(name: str) -> str:
    """Return the Python source of `pl.col` for a column."""
    return f"pl.col({quoted(name)})"


def _text_of(name: str) -> tuple[pl.Expr, str]:
    """Return the column as trimmed texts, as an expression and as source code.

    The cast to text is needed because the column of a later file may be read as numbers, if every value is clean.
    """
    import polars as pl

    return pl.col(name).cast(pl.String).str.strip_chars(), f"{column_code(name)}.cast(pl.String).str.strip_chars()"


def find_number(values: pl.Series) -> Conversion | None:
    """Return the conversion of a text column to numbers; None if too many of its texts are not numbers."""
    texts = _known_texts(values)
    if not len(texts) or texts.str.contains(_LEADING_ZERO).any():
        return None
    base, code = _text_of(values.name)
    plain = _number(values, texts, base, code)
    if plain is not None and not plain.unread:
        return plain
    point, comma = (float(texts.str.contains(pattern).mean()) for pattern in (_POINT, _COMMA))  # type: ignore[arg-type]
    if max(point, comma) < LEAST_READ:
        return plain
    mark, group = (".", ",") if point >= comma else (",", ".")
    if noise := _noise(texts):
        base, code = base.str.replace_all(noise, ""), f'{code}.str.replace_all(r"{noise}", "")'
    # Only before three digits is it a thousands separator: a later 1,5 among values such as 1.5 must not become 15.
    grouped = rf"[{group}'’](\d{{3}})"
    base, code = base.str.replace_all(grouped, "${1}"), f'{code}.str.replace_all(r"{grouped}", "${{1}}")'
    if mark == ",":
        base, code = base.str.replace(",", ".", literal=True), f'{code}.str.replace(",", ".", literal=True)'
    found = _number(values, texts, base, code)
    if plain is not None and (found is None or found.unread >= plain.unread):
        return plain
    if found is not None and point == comma and texts.str.contains(",", literal=True).any():
        example = texts.filter(texts.str.contains(",", literal=True))[0]
        return replace(found, remark=f"'{example}' is read with a thousands separator, but could have a decimal comma")
    return found


def _noise(texts: pl.Series) -> str:
    """A pattern of the currencies, percent signs and spaces in the texts of numbers; empty if there are none."""
    signs = [sign for sign in f"{_SIGNS}%" if texts.str.contains(sign, literal=True).any()]
    codes = [code for code in _CODES if texts.str.contains(code, literal=True).any()]
    if texts.str.contains(r"\s").any():
        signs.append(r"\s")
    return "|".join([*codes, *([f"[{''.join(signs)}]"] if signs else [])])


def _number(values: pl.Series, texts: pl.Series, expression: pl.Expr, code: str) -> Conversion | None:
    import polars as pl

    cast = expression.cast(pl.Float64, strict=False)
    return _conversion(values, texts, cast, f"{code}.cast(pl.Float64, strict=False)", "number")


def find_date(values: pl.Series) -> Conversion | None:
    """Return the conversion of a column to dates or times; None if too many of its values are neither.

    Accepts texts and whole numbers such as 20240131.
    """
    if values.dtype.is_integer():
        # Such numbers can mean many things, so the name must suggest a date as well.
        return _packed_date(values) if values.null_count() < len(values) and _DATE_NAME.search(values.name) else None
    texts = _known_texts(values)
    if not len(texts):
        return None
    sample = texts.head(_SAMPLE)
    if not sample.str.contains(r"\d").all():
        return None
    base, code = _text_of(values.name)
    for form in _DATES:
        clocks = [f"{form}{gap}{clock}{zone}" for clock in _CLOCKS for gap in (" ", "T", ", ") for zone in _ZONES]
        for full in (form, *clocks):
            daily = full == form
            call = "to_date" if daily else "to_datetime"
            zoned = "%z" in full
            if _share_parsed(sample, full, daily=daily, zoned=zoned) < LEAST_READ:
                continue
            expression = _parse(base, full, daily=daily, zoned=zoned)
            zone = ', time_zone="UTC"' if zoned else ""
            source = f"{code}.str.{call}({quoted(full)}, strict=False{zone})"
            conversion = _conversion(values, texts, expression, source, "date" if daily else "time")
            if conversion is None or not _plausible(values, expression):
                continue
            other = _AMBIGUOUS.get(form)
            alternative = full.replace(form, other) if other else None
            if alternative and _share_parsed(texts, alternative, daily=daily, zoned=zoned) == 1:
                return replace(conversion, remark=f"could also be {alternative}")
            return conversion
    return None


def find_time(values: pl.Series) -> Conversion | None:
    """Return the conversion of a column that a person has named as a time; None if its values are not times.

    Like `find_date`, and besides it accepts numbers of seconds, milliseconds, microseconds or nanoseconds since 1970 in
    UTC, and whole numbers such as 20240131 and 2024 whatever the column is called. A year stands for its first day.
    """
    import polars as pl

    dtype = values.dtype
    if dtype == pl.String:
        return find_date(values)
    if not dtype.is_numeric() or isinstance(dtype, pl.Decimal):
        return None
    known = values.drop_nulls().drop_nans() if dtype.is_float() else values.drop_nulls()
    low, high = known.min(), known.max()
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    if dtype.is_integer() and low >= _FIRST_DAY and high <= _LAST_DAY:
        return _packed_date(values)
    if low >= _FIRST_DAY // 10_000 and high <= _LAST_DAY // 10_000 and (known == known.cast(pl.Int64)).all():
        first_day = pl.date(pl.col(values.name).cast(pl.Int32), 1, 1).alias(values.name)
        source = f"pl.date({column_code(values.name)}.cast(pl.Int32), 1, 1).alias({quoted(values.name)})"
        conversion = _conversion(values, known.cast(pl.String), first_day, source, "date")
        return replace(conversion, remark="a year is read as its first day") if conversion else None
    column, code = pl.col(values.name), column_code(values.name)
    for per_second in (1, 1_000, 1_000_000, 1_000_000_000):
        if _FIRST_SECOND * per_second <= low and high <= _LAST_SECOND * per_second:
            scaled, source = column * (1_000_000 // per_second), f"({code} * {1_000_000 // per_second:_})"
            if per_second > 1_000_000:
                scaled, source = column // 1_000, f"({code} // 1_000)"
            moment = scaled.cast(pl.Int64, strict=False).cast(pl.Datetime("us", "UTC"))
            source += '.cast(pl.Int64, strict=False).cast(pl.Datetime("us", "UTC"))'
            return _conversion(values, known.cast(pl.String), moment, source, "time")
    return None


def _packed_date(values: pl.Series) -> Conversion | None:
    """Return the conversion of whole numbers such as 20240131 to dates."""
    import polars as pl

    known = values.drop_nulls()
    if not known.is_between(_FIRST_DAY, _LAST_DAY).all():
        return None
    name, form = values.name, "%Y%m%d"
    expression = pl.col(name).cast(pl.String).str.to_date(form, strict=False)
    code = f'{column_code(name)}.cast(pl.String).str.to_date("{form}", strict=False)'
    return _conversion(values, known.cast(pl.String), expression, code, "date")


def _plausible(values: pl.Series, expression: pl.Expr) -> bool:
    """Whether all years are between 1800 and 2300. A two-digit year that is read as four digits is not."""
    years = values.to_frame().select(expression.dt.year().alias("year")).to_series().drop_nulls()
    return bool(years.is_between(1800, 2300).all())


def _known_texts(values: pl.Series) -> pl.Series:
    """Return the trimmed texts that do not stand for a missing value."""
    texts = values.drop_nulls().str.strip_chars()
    return texts.filter(~texts.str.to_lowercase().is_in(list(NULL_WORDS)))


def _parse(base: pl.Expr, form: str, *, daily: bool, zoned: bool) -> pl.Expr:
    if daily:
        return base.str.to_date(form, strict=False)
    return base.str.to_datetime(form, strict=False, time_zone="UTC" if zoned else None)


def _share_parsed(texts: pl.Series, form: str, *, daily: bool, zoned: bool) -> float:
    """Return the share of the texts that a format can parse."""
    import polars as pl

    parsed = texts.to_frame("text").select(_parse(pl.col("text"), form, daily=daily, zoned=zoned)).to_series()
    return 1 - parsed.null_count() / len(texts)


def _conversion(values: pl.Series, texts: pl.Series, expression: pl.Expr, code: str, kind: str) -> Conversion | None:
    """Return a conversion; None if it converts too few of the texts."""
    import polars as pl

    converted = values.to_frame().select(expression.alias("converted")).to_series()
    if not len(texts) or (len(converted) - converted.null_count()) / len(texts) < LEAST_READ:
        return None
    lost = values.filter(converted.is_null() & values.is_not_null()).cast(pl.String)
    return Conversion(expression, code, kind, len(lost), tuple(lost.unique(maintain_order=True).head(3).to_list()))
