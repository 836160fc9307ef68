"""Decide the type of every column of a set of CSV files from all of its values.

One pass over the files checks each column against the format that its first rows suggest. Columns with other values
are counted by kind in a second pass, and `csv_values.decide` turns the counts into a type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from everloop.data.sources.csv_text import has_no_rows
from everloop.data.sources.csv_values import (
    KIND_NAMES,
    Kind,
    KindCounts,
    Precision,
    ValueFormat,
    ValueRules,
    common_formats,
    convert,
    count_expressions,
    count_maybe_typed,
    counts_from,
    decide,
    has_decimal_comma,
    looks_typed,
    loses_precision,
    precision_expressions,
    precision_from,
)
from everloop.data.sources.reading_notes import note
from everloop.data.sources.reading_options import Advice, advice
from everloop.data.table_inputs import type_name
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from everloop.data.sources.csv_scans import CsvScans
    from everloop.data.sources.data_files import DataFile

_SAMPLE_ROWS = 1_000
_INT64_DIGITS = 18
_TYPES: dict[Kind, pl.DataType] = {
    "bool": pl.Boolean(),
    "date": pl.Date(),
    "datetime": pl.Datetime("us"),
    "moment": pl.Datetime("us", "UTC"),
    "time": pl.Time(),
    "text": pl.String(),
}


@dataclass
class ColumnType:
    """The type of one column, and how to get it from the text."""

    dtype: pl.DataType
    native: bool = False
    """Polars reads this type itself."""
    value_format: ValueFormat | None = None
    """The format of all values, if they share one."""


class ColumnTypes:
    """Infers and checks the types of columns.

    Args:
        ignore_errors: read values that do not fit as null.
    """

    def __init__(self, scans: CsvScans, rules: ValueRules, *, ignore_errors: bool = False) -> None:
        self._scans = scans
        self._rules = rules
        self._ignore_errors = ignore_errors
        self._notes = _ColumnNotes(scans, rules)
        self._counts: dict[str, list[KindCounts]] = {}
        """Per column, one for each file."""
        self._precision: dict[str, Precision] = {}

    def infer(self, names: list[str]) -> dict[str, ColumnType]:
        """Check every value against the likely format of its column; columns where that fails are counted by kind.

        Raises:
            SourceError: a row is short, a few values do not fit their column, or files disagree about a column's type.
        """
        likely = self._likely_formats(names)
        self._count([name for name, differs in self._check_formats(likely).items() if differs])
        types: dict[str, ColumnType] = {}
        for name, value_format in likely.items():
            if name in self._counts:
                types[name] = self._decide(name)
            elif value_format is None:
                types[name] = ColumnType(pl.String(), native=True)
            else:
                types[name] = ColumnType(value_format.dtype, value_format.native, value_format)
        return types

    def check_named(self, name: str, dtype: pl.DataType) -> ColumnType:
        """Check that every value fits the type that the caller named for its column.

        Raises:
            SourceError: a value does not fit.
            UsageError: text cannot be converted to this type.
        """
        if isinstance(dtype, pl.String):
            return ColumnType(dtype, native=True)
        if dtype.is_nested():
            raise UsageError(
                f"Column '{name}' cannot be read as {type_name(dtype)}: a CSV file only contains text.",
                help="Read it as text and convert it, for example with .str.json_decode().",
            )
        try:
            if not self._ignore_errors:
                text = self._rules.trimmed(name)
                value = convert(self._rules, name, dtype)
                misfits = text.is_not_null() & ~self._rules.is_null(text) & value.is_null()
                found = self._scans.find_first(name, misfits)
                if found is not None:
                    raise _misfit(name, dtype, *found)
        except pl.exceptions.PolarsError as error:
            raise UsageError(
                f"Column '{name}' cannot be read as {type_name(dtype)}: {str(error).splitlines()[0]}.",
                help="Read it as text and convert it.",
            ) from error
        if not self._ignore_errors:
            nulls = count_expressions(name, self._rules)[1:3]
            rows = [self._scans.collect(file, self._scans.scan(file).select(nulls)).row(0) for file in self._files]
            blanks, usual = (sum(row[index] or 0 for row in rows) for index in (0, 1))
            self._notes.note_nulls(name, KindCounts(filled=0, blanks=int(blanks), nulls=int(usual), codes=0))
        return ColumnType(dtype)

    @property
    def _files(self) -> list[DataFile]:
        return self._scans.files

    # Looking at values.

    def _likely_formats(self, names: list[str]) -> dict[str, ValueFormat | None]:
        """The format of each column's first rows, None for text. It is only what is tried first."""
        if not names:
            return {}
        first = next((file for file in self._files if not has_no_rows(file)), self._files[0])
        rows = self._scans.collect(first, self._scans.scan(first).select(names).head(_SAMPLE_ROWS))
        formats = common_formats(self._rules)
        expressions = [
            each.count_matches(name).alias(f"{index} {name}") for name in names for index, each in enumerate(formats)
        ] + [pl.col(name).count().alias(f"all {name}") for name in names]
        found = rows.select(expressions).row(0, named=True)
        return {
            name: next(
                (each for index, each in enumerate(formats) if 0 < found[f"all {name}"] == found[f"{index} {name}"]),
                None,
            )
            for name in names
        }

    def _check_formats(self, likely: dict[str, ValueFormat | None]) -> dict[str, bool]:
        """Whether each column has values that its likely format does not match."""
        differs = dict.fromkeys(likely, False)
        for file, columns in zip(self._files, self._scans.columns, strict=True):
            last = list(columns)[-1]
            expressions = [pl.col(last).is_null().any().alias("short")]
            for name, value_format in likely.items():
                if value_format is None:
                    text = self._rules.trimmed(name)
                    expressions += [
                        count_maybe_typed(name).alias(f"others {name}"),
                        (~self._rules.is_null(text)).any().alias(f"texts {name}"),
                        (pl.col(name) != "").any().alias(f"filled {name}"),
                    ]
                else:
                    others = pl.col(name).count() - value_format.count_matches(name)
                    expressions.append(others.alias(f"others {name}"))
            query = self._scans.scan(file).select(expressions)
            row = self._scans.collect(file, query, width=len(columns)).row(0, named=True)
            if row["short"]:
                self._scans.refuse_short_rows(file, len(columns))
            for name in likely:
                # A column of nothing but blanks and usual nulls is not a text column.
                only_nulls = bool(row.get(f"filled {name}")) and not row.get(f"texts {name}")
                differs[name] |= bool(row[f"others {name}"]) or only_nulls
        return differs

    def _count(self, names: list[str]) -> None:
        """Count the kinds of all values of these columns."""
        if not names:
            return
        expressions = [each for name in names for each in count_expressions(name, self._rules)]
        expressions += [each for name in names for each in precision_expressions(name, self._rules)]
        for file in self._files:
            row = self._scans.collect(file, self._scans.scan(file).select(expressions)).row(0, named=True)
            for name in names:
                self._counts.setdefault(name, []).append(counts_from(name, row, self._rules))
                self._precision[name] = self._precision.get(name, Precision()) | precision_from(name, row)

    # Deciding.

    def _decide(self, name: str) -> ColumnType:
        self._refuse_conflict(name)
        first, *rest = self._counts[name]
        counts = sum(rest, first)
        verdict, kind = decide(counts, lambda kind: self._distinct_others(name, kind))
        if verdict == "odd":
            if not self._ignore_errors:
                dtype = self._number_type(name) if kind == "number" else _TYPES[kind]
                raise _misfit(name, dtype, *self._scans.first(name, self._rules.is_other(name, kind)))
            verdict = "typed"
        if verdict == "typed":
            self._notes.note_nulls(name, counts)
            return ColumnType(self._exact_type(name, kind))
        if verdict == "empty" and counts.filled:
            self._notes.note_nulls(name, counts)
            return ColumnType(pl.Null())
        if verdict in ("codes", "mixed"):
            self._notes.note_text(name, kind, counts)
        elif verdict == "text":
            self._notes.note_commas(name, counts)
        return ColumnType(pl.String(), native=True)

    def _refuse_conflict(self, name: str) -> None:
        """Refuse files that each hold values of one kind, if the kinds differ."""
        first: tuple[DataFile, Kind] | None = None
        for file, counts in zip(self._files, self._counts[name], strict=True):
            kind = counts.only_kind
            if kind is None:
                continue
            if first is None:
                first = file, kind
            elif kind != first[1]:
                one, other = (self._type_in_file(name, *each) for each in (first, (file, kind)))
                raise SourceError(
                    f"Column '{name}' is {one} in '{first[0]}' but {other} in '{file}'.",
                    **advice("To read it as text in every file, pass {}.", schema_overrides={name: pl.String()}),
                )

    def _type_in_file(self, name: str, file: DataFile, kind: Kind) -> str:
        if kind != "number":
            return type_name(_TYPES[kind])
        text = self._rules.trimmed(name)
        fraction = self._rules.is_number(text) & ~self._rules.is_whole(text)
        has_fractions = self._scans.collect(file, self._scans.scan(file).select(fraction.any())).item()
        return "float64" if has_fractions else "int64"

    def _distinct_others(self, name: str, kind: Kind) -> int:
        others = self._rules.trimmed(name).filter(self._rules.is_other(name, kind))
        scans = pl.concat([self._scans.scan(file).select(others) for file in self._files])
        return int(scans.select(pl.col(name).approx_n_unique()).collect(engine="streaming").item())

    def _exact_type(self, name: str, kind: Kind) -> pl.DataType:
        """The type of a column whose values are all of one kind; it must hold each of them exactly."""
        dtype = self._number_type(name) if kind == "number" else _TYPES[kind]
        precision = self._precision[name]
        if (
            (dtype.is_float() and precision.risky)
            or (dtype.is_integer() and precision.digits > _INT64_DIGITS)
            or (isinstance(dtype, pl.Datetime) and precision.finer)
        ):
            found = self._scans.find_first(name, loses_precision(self._rules, name, dtype))
            if found is not None:
                raise _inexact(name, dtype, *found)
        return dtype

    def _number_type(self, name: str) -> pl.DataType:
        precision = self._precision[name]
        if precision.fraction:
            return pl.Float64()
        if precision.digits <= _INT64_DIGITS:
            return pl.Int64()
        text = self._rules.trimmed(name)
        value = pl.when(self._rules.is_whole(text)).then(text).cast(pl.Int128, strict=False)
        ends = [value.min().alias("least"), value.max().alias("most")]
        rows = [self._scans.collect(file, self._scans.scan(file).select(ends)).row(0) for file in self._files]
        least = min((row[0] for row in rows if row[0] is not None), default=0)
        most = max((row[1] for row in rows if row[1] is not None), default=0)
        return pl.UInt64() if least >= 0 and most >= 1 << 63 else pl.Int64()


class _ColumnNotes:
    """Notes about what was read as null and what stayed text."""

    def __init__(self, scans: CsvScans, rules: ValueRules) -> None:
        self._scans = scans
        self._rules = rules

    def note_nulls(self, name: str, counts: KindCounts) -> None:
        text = self._rules.trimmed(name)
        if counts.blanks:
            self._note(name, f"{counts.blanks:,} blank value{'' if counts.blanks == 1 else 's'} read as null")
        if not counts.nulls:
            return
        nulls = text.filter(self._rules.is_null(text)).unique()
        scans = pl.concat([self._scans.scan(file).select(nulls) for file in self._scans.files])
        texts = sorted(set(scans.collect(engine="streaming").to_series().to_list()))
        listed = ", ".join(f"'{each}'" for each in texts)
        self._note(name, f"{counts.nulls:,} value{'' if counts.nulls == 1 else 's'} read as null: {listed}")

    def note_text(self, name: str, kind: Kind, counts: KindCounts) -> None:
        """A column that stays text although most of its values are of one other kind."""
        if counts.codes:
            file, row, value = self._scans.first(name, self._rules.is_code(self._rules.trimmed(name)))
            self._note(name, f"kept as text, because row {row} of '{file}' contains '{value}'")
            return
        others = counts.valued - counts.most_common[1]
        file, row, value = self._scans.first(name, self._rules.is_other(name, kind))
        self._note(
            name,
            f"kept as text, because {others:,} of {counts.valued:,} values are not {KIND_NAMES[kind]}, "
            f"such as '{value}' in row {row} of '{file}'",
        )

    def note_commas(self, name: str, counts: KindCounts) -> None:
        """A column that stays text although most of its values are numbers with a decimal comma."""
        if self._rules.comma:
            return
        matches = has_decimal_comma(self._rules.trimmed(name))
        count = sum(
            int(self._scans.collect(file, self._scans.scan(file).select(matches.sum())).item() or 0)
            for file in self._scans.files
        )
        if 2 * count > counts.valued:
            _, row, value = self._scans.first(name, matches)
            message = f"kept as text, because numbers such as '{value}' in row {row} have a decimal comma"
            self._note(name, message, **advice("To read them as numbers, pass {}.", decimal_comma=True))

    def _note(self, name: str, message: str, help: str = "", option_help: str = "") -> None:
        files = self._scans.files
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        note(f"{files[0]}{more}", name, message, help, option_help)


def _misfit(name: str, dtype: pl.DataType, file: DataFile, row: int, value: str) -> SourceError:
    return SourceError(
        f"Column '{name}' is {type_name(dtype)}, but row {row} of '{file}' contains '{value}'.",
        **_misfit_advice(name, value),
    )


def _misfit_advice(name: str, value: str) -> Advice:
    """A value with digits is hardly a missing value, so it is not suggested as one."""
    as_text = {name: pl.String()}
    if looks_typed(value):
        return advice("Correct the value, or read the column as text with {}.", schema_overrides=as_text)
    return advice(
        "Correct the value, read it as missing, or read the column as text: {}.",
        null_values=[value.strip()],
        schema_overrides=as_text,
    )


def _inexact(name: str, dtype: pl.DataType, file: DataFile, row: int, value: str) -> SourceError:
    """The error for a value that the column's type would round or cannot hold."""
    types: list[pl.DataType] = [pl.String()]
    purpose = ""
    if isinstance(dtype, pl.Datetime):
        types.append(pl.Datetime("ns", dtype.time_zone))
        purpose = " to keep nanoseconds"
    elif not dtype.is_integer():
        types.append(pl.Float64())
        purpose = " to accept the rounding"
    alternatives = [advice("{}", schema_overrides={name: each}) for each in types]
    return SourceError(
        f"Column '{name}' is {type_name(dtype)}, but row {row} of '{file}' contains '{value}', which "
        f"{type_name(dtype)} cannot hold.",
        help=f"Name the column's type: {' or '.join(each['help'] for each in alternatives)}{purpose}.",
        option_help=f"Name the column's type: {' or '.join(each['option_help'] for each in alternatives)}{purpose}.",
    )
