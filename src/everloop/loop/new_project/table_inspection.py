"""Inspect the columns of a user's table and decide how a first model should use each of them.

The decisions are guesses. Each column gets a message that explains them, so that the user can disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import TYPE_CHECKING, Literal

from everloop.data.disguised_columns import Conversion, find_date, find_number, find_time
from everloop.errors import DataError, UsageError
from everloop.training.encoding import is_identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import polars as pl

    InspectionFactory = Callable[..., "ColumnInspection"]

Kind = Literal[
    "target", "key", "time", "number", "flag", "date", "category", "number as text", "date as text", "id", "constant",
    "empty", "leak", "copy", "free text", "many values", "other",
]  # fmt: skip
Treatment = Literal["target", "key", "time", "feature", "excluded", "dropped"]
"""`excluded` columns stay in the table but are not features. `dropped` columns are removed from the table."""

MANY = 50
"""A text column with more distinct values than this is of the kind `many values`."""
DISTINCT_SHARE = 0.95
"""A text column is an identifier if at least this share of its values is distinct."""
LEAST_ROWS = 20
"""Distinct values make a column an identifier only if the table has at least this many rows."""
WORDS = 4
"""Texts with at least this many words on average are free text."""
LEAK = 0.995
"""A column that predicts the target this well on its own is excluded; see `data.profiling.leakage` for the score."""
SUSPECT = 0.9
"""A column that predicts the target this well on its own gets a remark; same score as `LEAK`."""
_ID_NAME = re.compile(r"(^|[_\W])(id|uuid|guid|key|nr|no|index|idx|row|rownum)$|^unnamed: ?\d+$", re.IGNORECASE)
_ID_ENDING = re.compile(r"[a-z0-9]I[Dd]$")
_YEARLY = re.compile(r"year|date|time|age|month|day", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnInspection:
    """One column: what it looks like, how it is treated, and why."""

    name: str
    type: str
    kind: Kind
    treatment: Treatment
    message: str
    conversion: Conversion | None = None


@dataclass(frozen=True)
class TableInspection:
    """An inspected table. `rows` are those that the step `prepare` of the drafted project returns."""

    columns: tuple[ColumnInspection, ...]
    rows: pl.DataFrame
    target: str
    time: str | None
    key: str | None
    remarks: tuple[str, ...] = ()
    """About rows and names: repeated rows, rows without a target or time, renamed columns, how rows are held out."""
    doubles: bool = False
    """Whether rows that repeat another row in every column are removed."""
    untimed: int = 0
    """How many rows have no time and are removed."""
    renamed: dict[str, str] = field(default_factory=dict)
    """New names of columns whose names cannot be fields of a request."""

    def of(self, treatment: Treatment) -> list[ColumnInspection]:
        """Return the columns with a treatment, in the order of the table."""
        return [column for column in self.columns if column.treatment == treatment]


def inspect_table(
    table: pl.DataFrame, target: str, *, time: str | None = None, key: str | None = None
) -> TableInspection:
    """Inspect every column of a table.

    Args:
        table: the table as it was read.
        target: the column to predict.
        time: the column with the time of a row. Default: rows are held out at random.
        key: the column that identifies a row. Default: the first identifier without repeated or missing values.

    Raises:
        DataError: the table has no rows, lacks a named column, or a named column does not fit its role.
        UsageError: one column is named for two roles.
    """
    _check_roles(table, target, time, key)
    renamed = _plain_names(table.columns)
    table = table.rename(renamed)
    target, time, key = renamed.get(target, target), renamed.get(time or "", time), renamed.get(key or "", key)
    if table[target].null_count() == table.height:
        raise DataError(
            f"The target '{target}' has no value in any of the {table.height:,} rows.",
            help="Name a column with values as the target.",
        )
    inspected: dict[str, ColumnInspection] = {target: _inspect_target(table[target])}
    if time is not None:
        inspected[time] = _inspect_time(table[time])
    for name in table.columns:
        if name not in inspected and name != key:
            inspected[name] = _inspect_column(table[name])
    remarks = [f"{old!r} was renamed to {new!r}, because fields of a request cannot contain quotes or backslashes."
               for old, new in renamed.items()]  # fmt: skip
    doubles = False
    if key is None:
        key = next((name for name in table.columns if _could_be_key(inspected[name], table[name])), None)
    else:
        doubles = _check_key(table, key)
    if key is not None:
        inspected[key] = ColumnInspection(
            key, _type(table[key]), "key", "key", "never repeats: identifies a row and is not a feature"
        )
    if repeated := table.height - table.unique().height:
        remarks.append(f"{repeated:,} rows repeat another row in every column{' and are removed' if doubles else ''}.")
    single = table.unique(maintain_order=True) if doubles else table
    rows = _converted(single, inspected.values())
    untimed = rows[time].null_count() if time is not None else 0
    if time is not None and untimed:
        remarks.append(f"{untimed:,} rows have no '{time}' and are removed, because the time decides what is held out.")
        timed = rows[time].is_not_null()
        rows, single = rows.filter(timed), single.filter(timed)
    if unlabelled := rows[target].null_count():
        remarks.append(f"{unlabelled:,} rows have no '{target}' and are not used for training.")
    inspected |= _leaks(rows, inspected, target)
    inspected |= _copies(rows, inspected)
    ordered = tuple(inspected[name] for name in table.columns)
    rows = _converted(single, (column for column in ordered if column.treatment != "excluded"))
    rows = rows.drop([column.name for column in ordered if column.treatment == "dropped"])
    if not any(column.treatment == "feature" for column in ordered):
        others = "; ".join(f"'{column.name}': {column.message}" for column in ordered if column.treatment != "target")
        raise DataError(
            f"No column is left to predict '{target}' from ({others or 'the table has no other column'}).",
            help="Add columns that are known before the target, such as amounts, dates or categories.",
        )
    dates = [
        column.name for column in ordered if column.kind in ("date", "date as text") and column.treatment == "feature"
    ]
    if time is None and dates:
        remarks.append(
            "Rows are held out at random, so training sees rows that are later than those it is tested on. "
            f"If {' or '.join(map(repr, dates[:3]))} says when a row happened, add --time {quote(dates[0])}: "
            "then the newest rows are held out, and 'everloop replay' can go through the history."
        )
    return TableInspection(ordered, rows, target, time, key, tuple(remarks), doubles, untimed, renamed)


def _check_roles(table: pl.DataFrame, target: str, time: str | None, key: str | None) -> None:
    from everloop.data.table_inputs import nearest

    if not table.width or not table.height:
        raise DataError("The table has no rows.", help="Check that this is the right file.")
    for column in table.columns:
        if column == "*" or (column.startswith("^") and column.endswith("$")):
            raise DataError(
                f"Polars reads the column name '{column}' as a pattern, not as one column.",
                help="Rename the column in the file.",
            )
    roles = {"target": target, "time": time, "key": key}
    for role, name in roles.items():
        if name is not None and name not in table.columns:
            raise DataError(f"The table has no column '{name}' for --{role}.", help=nearest(name, table.columns))
    names = [name for name in roles.values() if name is not None]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(
            f"The column '{doubled}' cannot be two of --target, --time and --key.",
            help="Name a different column for each.",
        )


def _converted(rows: pl.DataFrame, columns: Iterable[ColumnInspection]) -> pl.DataFrame:
    casts = [column.conversion.expression for column in columns if column.conversion is not None]
    return rows.with_columns(casts) if casts else rows


def _plain_names(names: list[str]) -> dict[str, str]:
    """Return new names for columns whose names cannot be inputs of a model."""
    renamed: dict[str, str] = {}
    for name in names:
        if name and re.search(r'[\\"\x00-\x1f]', name):
            plain = re.sub(r'[\\"\x00-\x1f]+', "_", name)
            while plain in names or plain in renamed.values():
                plain += "_"
            renamed[name] = plain
    return renamed


def _inspect_target(values: pl.Series) -> ColumnInspection:
    import polars as pl

    conversion = find_number(values) if isinstance(values.dtype, pl.String) else None
    message = "what is predicted"
    if conversion is not None:
        remark = f"; {conversion.remark}, so check it" if conversion.remark else ""
        message = f"numbers stored as text{_lost(conversion)}{remark}"
    return ColumnInspection(values.name, _type(values), "target", "target", message, conversion)


def _inspect_time(values: pl.Series) -> ColumnInspection:
    import polars as pl

    from everloop.data.table_inputs import is_moment

    message = "the time of a row: the latest rows are held out; not a feature"
    if is_moment(values.dtype):
        return ColumnInspection(values.name, _type(values), "time", "time", message)
    conversion = find_time(values)
    if conversion is None:
        shown = ", ".join(repr(value) for value in values.drop_nulls().unique(maintain_order=True).head(3).to_list())
        raise DataError(
            f"The column '{values.name}' cannot be read as times: it holds {_type(values)}"
            + (f", such as {shown}." if shown else ", and no value."),
            help="Name a column of dates with --time, or leave --time out to hold out rows at random.",
        )
    remark = f" ({conversion.remark})" if conversion.remark else ""
    source = "text" if isinstance(values.dtype, pl.String) else "numbers"
    message = f"{message}; converted from {source}{_lost(conversion)}{remark}"
    return ColumnInspection(values.name, _type(values), "time", "time", message, conversion)


def _check_key(table: pl.DataFrame, key: str) -> bool:
    """Return whether repeated rows have to be removed to make the key unique.

    Raises:
        DataError: the key has missing values, or is not unique even without repeated rows.
    """
    values = table[key]
    if nulls := values.null_count():
        raise DataError(
            f"The key '{key}' is null in {nulls:,} rows, but a key identifies every row.",
            help="Name another column, or leave out --key.",
        )
    if values.is_unique().all():
        return False
    if table.unique()[key].is_unique().all():
        return True
    repeated = values.filter(values.is_duplicated()).unique(maintain_order=True)
    shown = ", ".join(repr(value) for value in repeated.head(3).to_list())
    unique = [repr(name) for name in table.columns if _identifies_rows(table[name])]
    raise DataError(
        f"The key '{key}' is not unique: {len(repeated):,} of its values are in several rows, such as {shown}.",
        help=f"Columns that are unique: {', '.join(unique)}." if unique else
        "No column of this table is unique, so leave out --key.",
    )  # fmt: skip


def _could_be_key(column: ColumnInspection, values: pl.Series) -> bool:
    return column.kind == "id" and column.treatment == "excluded" and _identifies_rows(values)


def _identifies_rows(values: pl.Series) -> bool:
    """Whether a column of texts or whole numbers is unique and never null."""
    import polars as pl

    plain = isinstance(values.dtype, pl.String) or values.dtype.is_integer()
    return plain and not values.null_count() and bool(values.is_unique().all())


def _inspect_column(values: pl.Series) -> ColumnInspection:
    """Inspect a column without a role, apart from the other columns."""
    import polars as pl

    dtype, name, type_name = values.dtype, values.name, _type(values)

    def inspection(
        kind: Kind, treatment: Treatment, message: str, conversion: Conversion | None = None
    ) -> ColumnInspection:
        return ColumnInspection(name, type_name, kind, treatment, message, conversion)

    if not name:
        return inspection("id", "dropped", "has no name, like the row numbers that pandas writes: dropped")
    known = values.drop_nulls()
    if isinstance(dtype, pl.String):
        known = known.filter(known.str.strip_chars() != "")
    if not len(known):
        return inspection("empty", "dropped", "has no value in any row: dropped")
    nested = dtype.is_nested() or isinstance(dtype, pl.Object | pl.Binary)
    if nested:
        return inspection("other", "dropped", f"a column of {type_name} cannot be a feature: dropped")
    distinct, nulls = known.n_unique(), values.null_count()
    missing = f", {nulls:,} null" if nulls else ""
    if distinct == 1 and len(known) == len(values):
        return inspection("constant", "feature", f"always {known[0]!r}: training leaves it out until the value varies")
    if isinstance(dtype, pl.Boolean):
        return inspection("flag", "feature", f"true or false{missing}")
    if dtype in (pl.Duration, pl.Time):
        unit = "seconds" if dtype == pl.Duration else "hours"
        return inspection("number", "feature", f"{type_name}, in {unit}{missing}")
    if dtype.is_temporal():
        return inspection("date", "feature", f"{type_name}: {_time_parts(dtype == pl.Date)} are the features{missing}")
    if dtype.is_integer() and (packed := find_date(values)) is not None:
        return inspection("date as text", "feature", f"dates stored as numbers{missing}", packed)
    if dtype.is_numeric():
        if dtype.is_integer() and distinct == len(values) >= LEAST_ROWS and _is_numeric_id(values):
            return inspection("id", "excluded", "whole numbers that never repeat: they identify rows, so excluded")
        return inspection("number", "feature", f"numbers{missing}")
    if not isinstance(dtype, pl.String):
        return inspection("category", "feature", f"{distinct:,} values{missing}")
    return _inspect_text(values, known, inspection)


def _time_parts(date: bool) -> str:
    return "month, day and weekday" if date else "month, day, weekday and hour"


def _inspect_text(values: pl.Series, known: pl.Series, inspection: InspectionFactory) -> ColumnInspection:
    distinct, nulls = known.n_unique(), values.null_count()
    missing = f", {nulls:,} null" if nulls else ""
    if (number := find_number(values)) is not None:
        remark = f"; {number.remark}, so check it" if number.remark else ""
        return inspection("number as text", "feature", f"numbers stored as text{_lost(number)}{remark}", number)
    if (date := find_date(values)) is not None:
        remark = f"; {date.remark}, so check it" if date.remark else ""
        parts = _time_parts(date.kind == "date")
        message = f"{date.kind}s stored as text{_lost(date)}{remark}: {parts} are the features"
        return inspection("date as text", "feature", message, date)
    words = known.head(2000).str.count_matches(r"\S+").mean()
    prose = isinstance(words, float) and words >= WORDS
    if prose and distinct > MANY:
        return inspection("free text", "excluded", "free text: models of tables cannot learn from it, so excluded")
    unique = len(known) >= LEAST_ROWS and distinct >= DISTINCT_SHARE * len(known)
    if unique or is_identifier(distinct, len(known)):
        reason = "never repeats" if distinct == len(known) else f"hardly ever repeats ({distinct:,} of {len(known):,})"
        return inspection(
            "id", "excluded", f"{reason}: identifies rows and cannot help to predict new ones, so excluded"
        )
    if distinct > MANY:
        return inspection("many values", "feature", f"{distinct:,} values{missing}: rare ones are grouped together")
    return inspection("category", "feature", f"{distinct:,} values{missing}")


def _is_numeric_id(values: pl.Series) -> bool:
    """Whether distinct whole numbers have the name of an id, or number the rows in order."""
    if _YEARLY.search(values.name):
        return False
    if _ID_ENDING.search(values.name) or _ID_NAME.search(values.name):
        return True
    low, high = values.min(), values.max()
    counted = isinstance(low, int) and isinstance(high, int) and high - low == len(values) - 1
    return counted and low in (0, 1) and bool(values.is_sorted())


def _leaks(rows: pl.DataFrame, inspected: dict[str, ColumnInspection], target: str) -> dict[str, ColumnInspection]:
    """Return the columns that predict the target so well that they are probably not known before it."""
    from everloop.data.profiling.leakage import column_scores, null_scores

    features = [
        name for name, column in inspected.items() if column.treatment == "feature" and column.kind != "constant"
    ]
    scores = column_scores(rows.select(*features, target), target)
    found: dict[str, ColumnInspection] = {}
    for name in features:
        score = scores.get(name, 0.0)
        same = _is_target(rows[name], rows[target])
        if same or score >= LEAK:
            reason = "has the same information as the target"
            if not same and null_scores(rows.select(name, target), target).get(name) == score:
                reason = f"predicts '{target}' by being null or not (score {score:.1%})"
            elif not same:
                reason = f"predicts '{target}' on its own (score {score:.1%})"
            message = f"{reason}, so excluded as a leak; remove it from exclude= if it is known before the target"
            found[name] = replace(inspected[name], kind="leak", treatment="excluded", message=message)
        elif score >= SUSPECT:
            message = (
                f"{inspected[name].message}; predicts '{target}' on its own (score {score:.0%}): is it known before?"
            )
            found[name] = replace(inspected[name], message=message)
    others = [name for name in features if name not in found or found[name].treatment == "feature"]
    # If every feature would be excluded, the table simply has strong features: keep them.
    return found if others else {}


def _is_target(values: pl.Series, target: pl.Series) -> bool:
    """Whether a column maps one to one to the target."""
    import polars as pl

    # Polars has no texts of durations.
    x, y = (side.to_physical() if side.dtype.is_temporal() else side.cast(pl.String) for side in (values, target))
    both = pl.DataFrame({"x": x, "y": y}).drop_nulls()
    if both.height < LEAST_ROWS:
        return False
    pairs, left, right = both.n_unique(), both["x"].n_unique(), both["y"].n_unique()
    if pairs == left == right and left <= both.height / 2:
        return True
    if values.dtype.is_numeric() and target.dtype.is_numeric() and right > MANY:
        correlation = both.height > MANY and pl.DataFrame({"x": values, "y": target}).select(pl.corr("x", "y")).item()
        return isinstance(correlation, float) and abs(correlation) > 1 - 1e-9
    return False


def _copies(rows: pl.DataFrame, inspected: dict[str, ColumnInspection]) -> dict[str, ColumnInspection]:
    """Return the features that equal an earlier feature in every row."""
    first_with: dict[tuple[str, int], str] = {}
    found: dict[str, ColumnInspection] = {}
    for name, column in inspected.items():
        if column.treatment != "feature" or column.kind == "constant":
            continue
        values = rows[name]
        fingerprint = (str(values.dtype), int(values.hash().sum() or 0))
        first = first_with.setdefault(fingerprint, name)
        if first != name and values.equals(rows[first], null_equal=True):
            message = f"the same as '{first}' in every row, so excluded"
            found[name] = replace(column, kind="copy", treatment="excluded", message=message)
    return found


def _lost(conversion: Conversion | None) -> str:
    """Describe the values that a conversion cannot convert; empty if there are none."""
    if conversion is None or not conversion.unread:
        return ""
    shown = ", ".join(repr(example) for example in conversion.examples)
    return f" ({conversion.unread:,} values such as {shown} become null)"


def _type(values: pl.Series) -> str:
    from everloop.data.table_inputs import type_name

    return type_name(values.dtype)
