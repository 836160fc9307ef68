"""Data contracts: descriptions of a table that are inferred once and then edited by people.

A column of a contract is a dict with `name` and `type`, and with those of these keys that apply:

    role          `target`, `time` or `key`; a column without a role is a feature
    required      false: the column may be missing
    nullable      false: a null or NaN breaks the contract
    nulls         observed share of nulls and NaNs
    max_nulls     a greater share of nulls, beyond what chance explains, is a warning
    distinct      observed number of distinct values
    unique        true: a repeated value breaks the contract (its first row is good)
    ordered       true: rows that are not sorted by this column are a warning
    min, max      observed range; a value outside is a warning (no `max` if the dates advance with the time column)
    least, most   a value outside breaks the contract; of the column's type, see `bounds`
    infinite      true: infinities were observed; otherwise they break the contract
    quantiles     observed quantiles of numbers, at `QUANTILES`
    pattern       a regular expression; a text that does not match is a warning
    future        true: times after the present are allowed; otherwise they are a warning in the time column
    severities    `error` or `warning` by rule, to override the severities above
    categories    each observed value as text, with its count; another value is a warning, in the target an error

There are rules about rows and tables as well: `rows` (minimum number of rows), `fresh` (age of the newest time),
`where` (a SQL condition for each row), `unique` (columns that together identify a row) and `relation` (each value
occurs in a column of another table).

Numbers are floats or ints, durations are seconds. Inference is deliberately lenient: rows that break a contract are
removed from the data, so only impossible values should break it, such as -9999 among temperatures.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING
from zlib import crc32

import polars as pl

from everloop.data.contracts.bounds import exact_text
from everloop.data.contracts.text_patterns import infer_pattern
from everloop.data.table_inputs import Frame, as_eager, as_utc, is_moment, require_column, type_name
from everloop.errors import AlreadyExistsError, ConflictError, DataError
from everloop.records import Contract, Json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from everloop.stores import Store

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MAX_CATEGORIES = 100
_MAX_TARGET_CLASSES = 20
_UNIQUE_ROWS = 100
"""A column without a role is expected to be unique if it has at least this many values and none repeats."""
_SPANS = 10
"""A number may be outside of the observed range by this many times its width. Beyond that it breaks the contract."""
_NULLS_SLACK = 0.05
_ATTEMPTS = 50
_PER_SECOND = {"ms": 1e3, "us": 1e6, "ns": 1e9}


def infer_contract(
    frame: Frame,
    dataset: str,
    store: Store,
    *,
    target: str | None = None,
    time: str | None = None,
    key: str | None = None,
    now: datetime | None = None,
    tables: Mapping[str, Frame] | None = None,
) -> Contract:
    """Infer a contract that `frame` fulfils. It is not stored yet: see `save_contract`.

    Args:
        now: the store's time. If given, the contract also describes how fresh the rows are, and whether times may be
            after the present.
        tables: other tables that this one may refer to, by the name, path or URL under which checks will find them. A
            column becomes a relation if each of its values occurs in a unique column of such a table.

    Raises:
        DataError: the table has no rows, or does not have a column that was named.
    """
    rows = as_eager(frame)
    if not len(rows) or not rows.width:
        raise DataError(
            "No contract can be inferred from a table without rows.", help="Check the step that returned this table."
        )
    roles = {name: role for role, name in (("target", target), ("time", time), ("key", key)) if name is not None}
    for name, role in roles.items():
        require_column(name, rows.columns, role)
    recent = None if time is None else _recent_from(rows, time)
    columns = tuple(_column(rows[name], roles.get(name), now, recent) for name in rows.columns)
    rules = [*_relations(rows, tables or {})]
    if time is not None and now is not None and (fresh := _freshness(rows, time, now)) is not None:
        rules.append(fresh)
    newest = find_contract(dataset, store)
    version = newest.version + 1 if newest else 1
    return store.new(Contract, dataset=dataset, version=version, columns=columns, rules=tuple(rules))


def describe_columns(frame: Frame) -> tuple[dict[str, Json], ...]:
    """The columns of a contract that `frame` fulfils, without roles. A table without rows has none."""
    rows = as_eager(frame)
    return tuple(_column(rows[name], None, None, None) for name in rows.columns) if len(rows) else ()


def find_contract(dataset: str, store: Store) -> Contract | None:
    """The newest contract of a dataset, or None if it has none."""
    found = store.records.find(Contract, ("dataset", "=", dataset), order="-version", limit=1)
    return found[0] if found else None


def save_contract(contract: Contract, store: Store) -> Contract:
    """Store a contract as the dataset's newest version. If the newest version has the same content, return that one.

    Raises:
        ConflictError: other machines kept taking the next version number.
    """
    with store.lock(f"contract-{crc32(contract.dataset.encode()):08x}"):
        for _ in range(_ATTEMPTS):
            newest = find_contract(contract.dataset, store)
            if newest is not None and (newest.columns, newest.rules) == (contract.columns, contract.rules):
                return newest
            stored = store.new(
                Contract,
                dataset=contract.dataset,
                version=newest.version + 1 if newest else 1,
                columns=contract.columns,
                rules=contract.rules,
            )
            if newest is None and contract.project == store.project:
                stored = replace(stored, id=contract.id, created_at=contract.created_at)
            try:
                store.records.put(stored)
            except AlreadyExistsError:
                continue
            return stored
    raise ConflictError(
        f"The contract of '{contract.dataset}' was not saved: in {_ATTEMPTS} attempts, other processes took each new "
        f"version number.",
        help="Try again.",
    )


def amount(name: str, dtype: pl.DataType) -> pl.Expr | None:
    """The column as float64, durations in seconds; None for types that are not amounts.

    Rounding to float64 keeps the order. So bounds that are rounded in the same way still include the values that they
    were inferred from.
    """
    if dtype.is_numeric():
        return pl.col(name).cast(pl.Float64)
    if isinstance(dtype, pl.Duration):
        # Keep the column's unit: the longest durations do not fit into nanoseconds.
        return pl.col(name).cast(pl.Int64).cast(pl.Float64) / _PER_SECOND[dtype.time_unit]
    return None


def missing(name: str, dtype: pl.DataType) -> pl.Expr:
    """Whether a value is missing: null, or NaN in a float column."""
    column = pl.col(name)
    return column.is_null() | column.is_nan().fill_null(value=False) if dtype.is_float() else column.is_null()


def category(name: str) -> pl.Expr:
    """The column's values as text, as a contract lists them."""
    return pl.col(name).cast(pl.String)


def _column(values: pl.Series, role: str | None, now: datetime | None, recent: datetime | None) -> dict[str, Json]:
    name, dtype, rows = values.name, values.dtype, len(values)
    nulls = values.to_frame().select(missing(name, dtype).mean()).item()
    found: dict[str, Json] = {"name": name, "type": type_name(dtype)}
    if role is not None:
        found["role"] = role
        # Features may be null; only their share of nulls is checked.
        found["nullable"] = nulls > 0
    found["nulls"] = round(nulls, 6)
    found["max_nulls"] = _most_nulls(nulls, rows)
    if isinstance(dtype, pl.String) or dtype.is_integer():
        found["distinct"] = values.drop_nulls().n_unique()
        all_distinct = found["distinct"] == rows - values.null_count()
        if all_distinct and (role == "key" or (role is None and rows >= _UNIQUE_ROWS)):
            found["unique"] = True
            if role is None:
                found["severities"] = {"unique": "warning"}
    elif role == "key" and values.drop_nulls().is_unique().all():
        found["unique"] = True
    if role == "time" and is_moment(dtype):
        if values.drop_nulls().is_sorted():
            found["ordered"] = True
        if now is not None and nulls < 1 and values.to_frame().select(as_utc(name, dtype).max()).item() > now:
            found["future"] = True
    if isinstance(dtype, pl.String) and not _has_categories(values, role):
        pattern = infer_pattern(values)
        if pattern is not None:
            found["pattern"] = pattern
    if role == "key":
        return found  # new rows have new keys
    if _has_categories(values, role):
        found["categories"] = _categories(values)
    elif (amounts := amount(name, dtype)) is not None:
        found.update(_range(values.to_frame().select(amounts).to_series(), whole=dtype.is_integer()))
    elif dtype.is_temporal() and nulls < 1 and _has_iso_text(values):
        found["min"] = exact_text(values, "min")
        newest = values.to_frame().select(as_utc(name, dtype).max()).item() if is_moment(dtype) else None
        # A column that reaches into the most recent rows gets later dates with every new row.
        if newest is None or recent is None or newest < recent:
            found["max"] = exact_text(values, "max")
    return found


def _has_iso_text(values: pl.Series) -> bool:
    """Whether ISO 8601 can express every date."""
    return not is_moment(values.dtype) or bool(values.drop_nulls().dt.year().is_between(1, 9999).all())


def _recent_from(rows: pl.DataFrame, time: str) -> datetime | None:
    """The start of the last tenth of the time that the rows cover."""
    if not is_moment(rows.schema[time]):
        return None
    moments = as_utc(time, rows.schema[time])
    first, last = rows.select(moments.min().alias("first"), moments.max().alias("last")).row(0)
    return None if first is None else last - (last - first) / 10


def _freshness(rows: pl.DataFrame, time: str, now: datetime) -> dict[str, Json] | None:
    """A rule that warns if the newest row is older than twice its present age, or ten times the usual gap of rows."""
    if not is_moment(rows.schema[time]):
        return None
    moments = rows.select(as_utc(time, rows.schema[time])).to_series().drop_nulls().unique().sort()
    if not len(moments):
        return None
    age = max((now - moments[-1]).total_seconds(), 0.0)
    steps = moments.diff().drop_nulls().dt.total_seconds()
    usual = steps.median() if len(steps) else 0
    hours = math.ceil(max(2 * age, 10 * float(usual if isinstance(usual, int | float) else 0), 3600) / 3600)
    return {"rule": "fresh", "column": time, "within": f"{hours}h", "severity": "warning"}


def _relations(rows: pl.DataFrame, tables: Mapping[str, Frame]) -> Iterator[dict[str, Json]]:
    for table, frame in tables.items():
        other = as_eager(frame)
        for key in other.columns:
            if key not in rows.columns or other.schema[key] != rows.schema[key] or not _is_key(other[key]):
                continue
            if rows[key].drop_nulls().is_in(other[key].implode()).all():
                yield {"rule": "relation", "column": key, "table": table, "key": key, "severity": "warning"}


def _is_key(values: pl.Series) -> bool:
    may_be_key = isinstance(values.dtype, pl.String) or values.dtype.is_integer()
    return may_be_key and len(values) > 0 and not values.null_count() and bool(values.is_unique().all())


def _most_nulls(share: float, rows: int) -> float:
    """The share of nulls that another sample may reach by chance (four standard errors), or with some slack."""
    chance = 4 * math.sqrt(share * (1 - share) / rows)
    return min(1.0, math.ceil((share + max(_NULLS_SLACK, chance)) * 1e4) / 1e4)


def _has_categories(values: pl.Series, role: str | None) -> bool:
    dtype = values.dtype
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Boolean):
        return values.n_unique() <= MAX_CATEGORIES
    return role == "target" and dtype.is_integer() and values.n_unique() <= _MAX_TARGET_CLASSES


def _categories(values: pl.Series) -> dict[str, int]:
    counted = values.drop_nulls().to_frame().group_by(category(values.name).alias("value")).len().sort("value")
    return dict(counted.rows())


def _range(amounts: pl.Series, *, whole: bool) -> dict[str, Json]:
    finite = amounts.filter(amounts.is_finite())
    found: dict[str, Json] = {}
    if amounts.is_infinite().any():
        found["infinite"] = True
    if not len(finite):
        return found
    low, high = _extreme(finite.min()), _extreme(finite.max())
    span = (high - low) or max(abs(high), 1.0)
    for bound, value in (("min", low), ("max", high), ("least", low - _SPANS * span), ("most", high + _SPANS * span)):
        if math.isfinite(value):
            found[bound] = int(value) if whole and value.is_integer() and abs(value) < 1 << 53 else value
    found["quantiles"] = [finite.quantile(share, "nearest") for share in QUANTILES]
    return found


def _extreme(value: object) -> float:
    if not isinstance(value, float):
        raise TypeError(f"{value!r} is not a float")
    return value
