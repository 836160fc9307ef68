"""What each column of somebody's own table is, and how a first model should treat it.

Nothing here is certain: each column gets a plain sentence that says what it looks like and what follows from that, so
that a person can disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from everloop.errors import DataError, UsageError
from everloop.loop.new_project.disguised_columns import Conversion, find_date, find_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import polars as pl

    Maker = Callable[..., "ColumnInspection"]

Kind = Literal[
    "target", "key", "time", "number", "flag", "date", "category", "number as text", "date as text", "id", "constant",
    "empty", "leak", "copy", "free text", "many values", "other",
]  # fmt: skip
Treatment = Literal["target", "key", "time", "feature", "excluded", "dropped"]
"""`excluded` columns stay in the table and are not shown to the model; `dropped` ones leave the table."""

MANY = 50
"""A text column with more distinct values than this has many."""
NAMES_ROWS = 0.95
"""A text column whose values are this distinct names rows."""
LEAST_TO_NAME = 20
"""Among fewer rows than this, values that never repeat say nothing."""
WORDS = 4
"""Texts of so many words on average are prose."""
LEAK = 0.995
"""A column that alone tells the target this well is left out; see `data.leaks` for the measure."""
SUSPECT = 0.9
_ID_NAME = re.compile(r"(^|[_\W])(id|uuid|guid|key|nr|no|index|idx|row|rownum)$|^unnamed: ?\d+$", re.IGNORECASE)
_ID_ENDING = re.compile(r"[a-z0-9]I[Dd]$")
_YEARLY = re.compile(r"year|date|time|age|month|day", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnInspection:
    """One column: what it is, what happens to it, and why."""

    name: str
    type: str
    kind: Kind
    treatment: Treatment
    message: str
    conversion: Conversion | None = None


@dataclass(frozen=True)
class TableInspection:
    """A table as a first project treats it. `rows` are as `prepare` of that project will give them."""

    columns: tuple[ColumnInspection, ...]
    rows: pl.DataFrame
    target: str
    time: str | None
    key: str | None
    remarks: tuple[str, ...] = ()
    """About the rows: doubles, rows without a target, rare classes."""
    doubles: bool = False
    """Rows that repeat another row entirely are taken out."""
    untimed: int = 0
    """Rows without a time, which are taken out."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Columns whose names no request can carry, and the names that they get."""

    def of(self, treatment: Treatment) -> list[ColumnInspection]:
        """The columns that are treated so, in the order of the table."""
        return [look for look in self.columns if look.treatment == treatment]


def inspect_table(
    table: pl.DataFrame, target: str, *, time: str | None = None, key: str | None = None
) -> TableInspection:
    """Look at every column of a table.

    Args:
        key: without one, the first column that names every row becomes it.

    Raises:
        DataError: the table has no rows, lacks a named column, or one cannot play its role.
        UsageError: one column is to play two roles.
    """

    _check_roles(table, target, time, key)
    renamed = _plain_names(table.columns)
    table = table.rename(renamed)
    target, time, key = renamed.get(target, target), renamed.get(time or "", time), renamed.get(key or "", key)
    if table[target].null_count() == table.height:
        raise DataError(f"The target '{target}' has no value in any of the {table.height:,} rows.")
    looks: dict[str, ColumnInspection] = {target: _target(table[target])}
    if time is not None:
        looks[time] = _time(table[time])
    for name in table.columns:
        if name not in looks and name != key:
            looks[name] = _look(table[name])
    remarks = [f"{old!r} is called {new!r} from here on: names of a request's fields have no quotes and no backslashes."
               for old, new in renamed.items()]  # fmt: skip
    doubles = False
    if key is None:
        key = next((name for name in table.columns if _could_be_key(looks[name], table[name])), None)
    else:
        doubles = _check_key(table, key)
    if key is not None:
        kind = _type(table[key])
        looks[key] = ColumnInspection(
            key, kind, "key", "key", "never repeats: names a row, and is not shown to the model"
        )
    if repeated := table.height - table.unique().height:
        remarks.append(f"{repeated:,} rows repeat another row in every column{': taken out' if doubles else ''}.")
    single = table.unique(maintain_order=True) if doubles else table
    rows = _converted(single, looks.values())
    untimed = rows[time].null_count() if time is not None else 0
    if time is not None and untimed:
        remarks.append(f"{untimed:,} rows have no '{time}': taken out, for time decides which rows are held out.")
        timed = rows[time].is_not_null()
        rows, single = rows.filter(timed), single.filter(timed)
    if unknown := rows[target].null_count():
        remarks.append(f"{unknown:,} rows have no '{target}': nothing can be learned from them, so they are left out.")
    looks |= _knowing(rows, looks, target)
    looks |= _copies(rows, looks)
    ordered = tuple(looks[name] for name in table.columns)
    rows = _converted(single, (look for look in ordered if look.treatment != "excluded"))
    rows = rows.drop([look.name for look in ordered if look.treatment == "dropped"])
    if not any(look.treatment == "feature" for look in ordered):
        told = "; ".join(f"'{look.name}': {look.message}" for look in ordered if look.treatment != "target")
        raise DataError(f"No column is left to predict '{target}' from ({told or 'there is no other'}).")
    return TableInspection(ordered, rows, target, time, key, tuple(remarks), doubles, untimed, renamed)


def _check_roles(table: pl.DataFrame, target: str, time: str | None, key: str | None) -> None:
    from everloop.data.table_inputs import nearest

    if not table.width or not table.height:
        raise DataError("The table has no rows.", help="See whether the file is the right one.")
    for column in table.columns:
        if column == "*" or (column.startswith("^") and column.endswith("$")):
            raise DataError(
                f"The column name '{column}' means a pattern to Polars, not one column.", help="Rename it in the file."
            )
    named = {"target": target, "time": time, "key": key}
    for role, name in named.items():
        if name is not None and name not in table.columns:
            raise DataError(f"The table has no column '{name}' for --{role}.", help=nearest(name, table.columns))
    given = [name for name in named.values() if name is not None]
    doubled = next((name for name in given if given.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(f"The column '{doubled}' cannot be two of --target, --time and --key.")


def _converted(rows: pl.DataFrame, looks: Iterable[ColumnInspection]) -> pl.DataFrame:
    casts = [look.conversion.expression for look in looks if look.conversion is not None]
    return rows.with_columns(casts) if casts else rows


def _plain_names(names: list[str]) -> dict[str, str]:
    """Other names for columns that could not be an input of a model."""
    renamed: dict[str, str] = {}
    for name in names:
        if name and re.search(r'[\\"\x00-\x1f]', name):
            plain = re.sub(r'[\\"\x00-\x1f]+', "_", name)
            while plain in names or plain in renamed.values():
                plain += "_"
            renamed[name] = plain
    return renamed


def _target(values: pl.Series) -> ColumnInspection:
    import polars as pl

    made = find_number(values) if isinstance(values.dtype, pl.String) else None
    told = f"numbers written as text{_lost(made)}" if made is not None else "what is predicted"
    return ColumnInspection(values.name, _type(values), "target", "target", told, made)


def _time(values: pl.Series) -> ColumnInspection:
    import polars as pl

    from everloop.data.table_inputs import is_moment

    told = "says when a row happened: the later rows are held out; not shown to the model"
    if is_moment(values.dtype):
        return ColumnInspection(values.name, _type(values), "time", "time", told)
    textual = isinstance(values.dtype, pl.String) or values.dtype.is_integer()
    made = find_date(values) if textual else None
    if made is None:
        shown = ", ".join(repr(value) for value in values.drop_nulls().unique(maintain_order=True).head(3).to_list())
        raise DataError(
            f"The column '{values.name}' cannot be read as times: it holds {_type(values)}"
            + (f", such as {shown}." if shown else ", and no value."),
            help="Name a column of dates with --time, or leave it out: then rows are held out at random.",
        )
    twice = f" ({made.remark})" if made.remark else ""
    return ColumnInspection(
        values.name, _type(values), "time", "time", f"{told}; read from text{_lost(made)}{twice}", made
    )


def _check_key(table: pl.DataFrame, key: str) -> bool:
    """Whether rows that repeat another entirely have to go, so that the key names each row once."""
    values = table[key]
    if nulls := values.null_count():
        raise DataError(f"The key '{key}' is null in {nulls:,} rows.", help="A key names every row; leave out --key.")
    if values.is_unique().all():
        return False
    if table.unique()[key].is_unique().all():
        return True
    again = values.filter(values.is_duplicated()).unique(maintain_order=True)
    shown = ", ".join(repr(value) for value in again.head(3).to_list())
    unique = [repr(name) for name in table.columns if _names_all(table[name])]
    raise DataError(
        f"The key '{key}' is not unique: {len(again):,} of its values stand in several rows, such as {shown}.",
        help=f"A key names one row. Columns that do: {', '.join(unique)}." if unique else
        "A key names one row, and no column does here: leave out --key.",
    )  # fmt: skip


def _could_be_key(look: ColumnInspection, values: pl.Series) -> bool:
    return look.kind == "id" and look.treatment == "excluded" and _names_all(values)


def _names_all(values: pl.Series) -> bool:
    import polars as pl

    plain = isinstance(values.dtype, pl.String) or values.dtype.is_integer()
    return plain and not values.null_count() and bool(values.is_unique().all())


def _look(values: pl.Series) -> ColumnInspection:
    """A column without a role, seen alone."""
    import polars as pl

    dtype, name, kind = values.dtype, values.name, _type(values)

    def made(what: Kind, treatment: Treatment, message: str, conversion: Conversion | None = None) -> ColumnInspection:
        return ColumnInspection(name, kind, what, treatment, message, conversion)

    if not name:
        return made("id", "dropped", "has no name, as the row numbers that pandas writes: dropped")
    known = values.drop_nulls()
    if isinstance(dtype, pl.String):
        known = known.filter(known.str.strip_chars() != "")
    if not len(known):
        return made("empty", "dropped", "has no value in any row: dropped")
    nested = dtype.is_nested() or isinstance(dtype, pl.Object | pl.Binary)
    if nested:
        return made("other", "dropped", f"a column of {kind} cannot be a feature: dropped")
    distinct, nulls = known.n_unique(), values.null_count()
    missing = f", {nulls:,} null" if nulls else ""
    if distinct == 1 and len(known) == len(values):
        return made("constant", "feature", f"always {known[0]!r}: training leaves it out until it varies")
    if isinstance(dtype, pl.Boolean):
        return made("flag", "feature", f"true or false{missing}")
    if dtype.is_temporal():
        return made("date", "feature", f"{kind}: month, day and weekday are the features{missing}")
    if dtype.is_integer() and (packed := find_date(values)) is not None:
        return made("date as text", "feature", f"a date written as a number{missing}", packed)
    if dtype.is_numeric():
        if dtype.is_integer() and distinct == len(values) >= LEAST_TO_NAME and _names_by_number(values):
            return made("id", "excluded", "a whole number that never repeats: names rows, so it is excluded")
        return made("number", "feature", f"a number{missing}")
    if not isinstance(dtype, pl.String):
        return made("category", "feature", f"{distinct:,} values{missing}")
    return _text(values, known, made)


def _text(values: pl.Series, known: pl.Series, made: Maker) -> ColumnInspection:
    distinct, nulls = known.n_unique(), values.null_count()
    missing = f", {nulls:,} null" if nulls else ""
    if (number := find_number(values)) is not None:
        return made("number as text", "feature", f"a number written as text{_lost(number)}", number)
    if (date := find_date(values)) is not None:
        twice = f"; {date.remark}: check it" if date.remark else ""
        told = f"a {date.kind} written as text{_lost(date)}{twice}: month, day and weekday are the features"
        return made("date as text", "feature", told, date)
    words = known.head(2000).str.count_matches(r"\S+").mean()
    prose = isinstance(words, float) and words >= WORDS
    if prose and distinct > MANY:
        return made("free text", "excluded", "free text: a model of tables learns nothing from it, so it is excluded")
    if len(known) >= LEAST_TO_NAME and distinct >= NAMES_ROWS * len(known):
        told = "never repeats" if distinct == len(known) else f"hardly ever repeats ({distinct:,} of {len(known):,})"
        return made("id", "excluded", f"{told}: names rows and says nothing of new ones, so it is excluded")
    if distinct > MANY:
        return made("many values", "feature", f"{distinct:,} values{missing}: rare ones count as one")
    return made("category", "feature", f"{distinct:,} values{missing}")


def _names_by_number(values: pl.Series) -> bool:
    """Whether whole numbers that never repeat are named like ids, or count the rows."""
    if _YEARLY.search(values.name):
        return False
    if _ID_ENDING.search(values.name) or _ID_NAME.search(values.name):
        return True
    low, high = values.min(), values.max()
    counted = isinstance(low, int) and isinstance(high, int) and high - low == len(values) - 1
    return counted and low in (0, 1) and bool(values.is_sorted())


def _knowing(rows: pl.DataFrame, looks: dict[str, ColumnInspection], target: str) -> dict[str, ColumnInspection]:
    """Columns that tell the target too well to have been known before it."""
    from everloop.data.profiling.leakage import column_scores

    asked = [name for name, look in looks.items() if look.treatment == "feature" and look.kind != "constant"]
    scores = column_scores(rows.select(*asked, target), target)
    found: dict[str, ColumnInspection] = {}
    for name in asked:
        score = scores.get(name, 0.0)
        same = _is_target(rows[name], rows[target])
        if same or score >= LEAK:
            told = "is the target in other words" if same else f"alone tells {score:.1%} of '{target}'"
            why = f"{told}: known only together with it? Excluded; take it out of exclude= if it is known before"
            found[name] = replace(looks[name], kind="leak", treatment="excluded", message=why)
        elif score >= SUSPECT:
            told = f"{looks[name].message}; alone tells {score:.0%} of '{target}': is it known before?"
            found[name] = replace(looks[name], message=told)
    others = [name for name in asked if name not in found or found[name].treatment == "feature"]
    # A table of one strong column is a table of one strong column.
    return found if others else {}


def _is_target(values: pl.Series, target: pl.Series) -> bool:
    """Whether each value stands for one value of the target and back."""
    import polars as pl

    both = pl.DataFrame({"x": values.cast(pl.String), "y": target.cast(pl.String)}).drop_nulls()
    if both.height < LEAST_TO_NAME:
        return False
    pairs, left, right = both.n_unique(), both["x"].n_unique(), both["y"].n_unique()
    if pairs == left == right and left <= both.height / 2:
        return True
    if values.dtype.is_numeric() and target.dtype.is_numeric() and right > MANY:
        apart = both.height > MANY and pl.DataFrame({"x": values, "y": target}).select(pl.corr("x", "y")).item()
        return isinstance(apart, float) and abs(apart) > 1 - 1e-9
    return False


def _copies(rows: pl.DataFrame, looks: dict[str, ColumnInspection]) -> dict[str, ColumnInspection]:
    """Features that are the same as an earlier one in every row."""
    seen: dict[tuple[str, int], str] = {}
    found: dict[str, ColumnInspection] = {}
    for name, look in looks.items():
        if look.treatment != "feature" or look.kind == "constant":
            continue
        values = rows[name]
        mark = (str(values.dtype), int(values.hash().sum() or 0))
        first = seen.setdefault(mark, name)
        if first != name and values.equals(rows[first], null_equal=True):
            told = f"the same as '{first}' in every row, so it is excluded"
            found[name] = replace(look, kind="copy", treatment="excluded", message=told)
    return found


def _lost(made: Conversion | None) -> str:
    if made is None or not made.unread:
        return ""
    shown = ", ".join(repr(example) for example in made.examples)
    return f" ({made.unread:,} values such as {shown} become null)"


def _type(values: pl.Series) -> str:
    from everloop.data.table_inputs import type_name

    return type_name(values.dtype)
