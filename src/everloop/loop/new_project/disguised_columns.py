"""Numbers and dates that are written as text, and the line of Polars that makes them what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

NULL_WORDS = ("", "-", "--", ".", "?", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "missing", "unknown")
"""Texts that mean that there is no value, whatever their case."""
LEAST_READ = 0.95
"""A column is in disguise where this share of its texts, null words aside, can be read."""
_ZEROED = r"^0\d"
"""A code such as 007 is a name more often than a number."""
_GROUPED = r"^[-+]?[$€£]?\s?\d{1,3}(,\d{3})+(\.\d+)?\s?[%€]?$|^[-+]?[$€£]?\s?\d+(\.\d+)?\s?[%€]?$"
_COMMA = r"^[-+]?\d+(,\d+)?$"
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y",
          "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y")  # fmt: skip
_CLOCKS = ("%H:%M:%S%.f", "%H:%M:%S", "%H:%M", "%I:%M %p", "%I:%M:%S %p")
_ZONES = ("", "%z", "Z")
_SAMPLE = 200
_TWICE = {"%d/%m/%Y": "%m/%d/%Y", "%d-%m-%Y": "%m-%d-%Y", "%d/%m/%y": "%m/%d/%y"}
"""Formats that can be taken for each other while no day lies above 12."""


@dataclass(frozen=True)
class Conversion:
    """A column as what it means. `code` is the Python of `expression`, for a file that people read."""

    expression: pl.Expr
    code: str
    kind: str
    """`number`, `date` or `time`."""
    unread: int
    """Values that are not null and become null."""
    examples: tuple[str, ...] = ()
    """Of what becomes null."""
    remark: str = ""
    """Where it could be read in two ways."""


def quoted(text: str) -> str:
    """A text as people write it in Python: in double quotes, other letters as they are."""
    import json

    plain = json.dumps(text, ensure_ascii=False)
    return plain.replace("\x7f", "\\x7f").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def column_code(name: str) -> str:
    """The Python that names a column."""
    return f"pl.col({quoted(name)})"


def _text_of(name: str) -> tuple[pl.Expr, str]:
    """The column as trimmed texts, and its Python. A later file in which every value is clean gives another type."""
    import polars as pl

    return pl.col(name).cast(pl.String).str.strip_chars(), f"{column_code(name)}.cast(pl.String).str.strip_chars()"


def find_number(values: pl.Series) -> Conversion | None:
    """How a column of texts is read as numbers, if nearly all of them are."""
    import polars as pl

    texts = _told(values)
    if not len(texts) or texts.str.contains(_ZEROED).any():
        return None
    base, code = _text_of(values.name)
    ways = (
        (None, base, code),
        (_GROUPED, base.str.replace_all(r"[$€£%,\s]", ""), f'{code}.str.replace_all(r"[$€£%,\\s]", "")'),
        (_COMMA, base.str.replace(",", ".", literal=True), f'{code}.str.replace(",", ".", literal=True)'),
    )
    for pattern, expression, written in ways:
        if pattern is not None and texts.str.contains(pattern).mean() < LEAST_READ:  # type: ignore[operator]
            continue
        cast = expression.cast(pl.Float64, strict=False)
        made = _made(values, texts, cast, f"{written}.cast(pl.Float64, strict=False)", "number")
        if made is not None:
            return made
    return None


def find_date(values: pl.Series) -> Conversion | None:
    """How a column of texts, or of whole numbers such as 20240131, is read as dates or times, if nearly all are."""

    if values.dtype.is_integer():
        return _packed_date(values)
    texts = _told(values)
    if not len(texts):
        return None
    few = texts.head(_SAMPLE)
    if not few.str.contains(r"\d").all():
        return None
    base, code = _text_of(values.name)
    for form in _DATES:
        clocks = [f"{form}{gap}{clock}{zone}" for clock in _CLOCKS for gap in (" ", "T", ", ") for zone in _ZONES]
        for whole in (form, *clocks):
            daily = whole == form
            call = "to_date" if daily else "to_datetime"
            zoned = "%z" in whole
            if _parsed(few, whole, daily=daily, zoned=zoned) < LEAST_READ:
                continue
            expression = _parse(base, whole, daily=daily, zoned=zoned)
            zone = ', time_zone="UTC"' if zoned else ""
            written = f"{code}.str.{call}({quoted(whole)}, strict=False{zone})"
            made = _made(values, texts, expression, written, "date" if daily else "time")
            if made is None or not _plausible(values, expression):
                continue
            other = _TWICE.get(form)
            twice = whole.replace(form, other) if other else None
            if twice and _parsed(texts, twice, daily=daily, zoned=zoned) == 1:
                return Conversion(
                    made.expression, made.code, made.kind, made.unread, made.examples, f"could also be {twice}"
                )
            return made
    return None


def _packed_date(values: pl.Series) -> Conversion | None:
    """Whole numbers that are days, year first. A name that says so is needed: such numbers may mean anything."""
    import re

    import polars as pl

    known = values.drop_nulls()
    if not len(known) or not re.search(r"date|day|time|(^|_)dt($|_)|_at$|_on$", values.name, re.IGNORECASE):
        return None
    if not known.is_between(19000101, 22001231).all():
        return None
    name, form = values.name, "%Y%m%d"
    expression = pl.col(name).cast(pl.String).str.to_date(form, strict=False)
    code = f'{column_code(name)}.cast(pl.String).str.to_date("{form}", strict=False)'
    return _made(values, known.cast(pl.String), expression, code, "date")


def _plausible(values: pl.Series, expression: pl.Expr) -> bool:
    """Whether the years are of our time: 24 read with four digits is the year 24."""
    years = values.to_frame().select(expression.dt.year().alias("year")).to_series().drop_nulls()
    return bool(years.is_between(1800, 2300).all())


def _told(values: pl.Series) -> pl.Series:
    """The texts that say something."""
    texts = values.drop_nulls().str.strip_chars()
    return texts.filter(~texts.str.to_lowercase().is_in(list(NULL_WORDS)))


def _parse(base: pl.Expr, form: str, *, daily: bool, zoned: bool) -> pl.Expr:
    if daily:
        return base.str.to_date(form, strict=False)
    return base.str.to_datetime(form, strict=False, time_zone="UTC" if zoned else None)


def _parsed(texts: pl.Series, form: str, *, daily: bool, zoned: bool) -> float:
    import polars as pl

    parsed = texts.to_frame("text").select(_parse(pl.col("text"), form, daily=daily, zoned=zoned)).to_series()
    return 1 - parsed.null_count() / len(texts)


def _made(values: pl.Series, texts: pl.Series, expression: pl.Expr, code: str, kind: str) -> Conversion | None:
    import polars as pl

    made = values.to_frame().select(expression.alias("made")).to_series()
    if not len(texts) or (len(made) - made.null_count()) / len(texts) < LEAST_READ:
        return None
    lost = values.filter(made.is_null() & values.is_not_null()).cast(pl.String)
    return Conversion(expression, code, kind, len(lost), tuple(lost.unique(maintain_order=True).head(3).to_list()))
