"""What a table looks like, inferred once and edited by people.

A column of a contract is a dict with `name` and `type`, and of these what applies:

    role          `target`, `time` or `key`; without one the column is a feature
    required      false: the column may be missing
    nullable      false: a null breaks the contract, and so does a NaN
    nulls         share of nulls and NaNs that was seen
    max_nulls     more nulls than this share, and than chance explains, is a warning
    distinct      how many values were seen
    unique        true: a repeated value breaks the contract (its first row is good)
    ordered       true: rows out of order are a warning
    min, max      what was seen; a value outside is a warning (without `max` where dates move on with the time column)
    least, most   a value outside breaks the contract; of the column's type, see `bounds`
    infinite      true: infinities were seen; else they break the contract
    quantiles     of the numbers that were seen, at `QUANTILES`
    pattern       a regular expression that each text has; one without it is a warning
    future        true: times behind the present are welcome; else, in the time column, a warning
    severities    by rule `error` or `warning`, where it should not be as said here
    categories    text of each value that was seen, with its count; another is a warning, in the target a breach

Rules about rows and tables: `rows` (at least so many), `fresh` (the newest time), `where` (SQL that holds for a row),
`unique` (columns that together name a row), `relation` (each value stands in a column of another table).

Numbers are floats or ints, durations seconds. Inference is lenient on purpose: what breaks a contract is taken out of
the data, so only what cannot be right does, such as -9999 among temperatures.
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
"""A column without a role is expected never to repeat where none of so many values has."""
_SPANS = 10
"""How many times the seen range a number may lie outside of it before it cannot be right."""
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
    """What `frame` looks like, as a contract that it keeps. It is not stored yet: see `save_contract`.

    Args:
        now: the store's time: then also how fresh the rows are, and whether times may lie ahead.
        tables: others that this one may refer to, by the name, path or address under which checks will find them: each
            column whose every value stands in a column of theirs that never repeats becomes a relation.

    Raises:
        DataError: the table has no rows, or lacks a named column.
    """
    rows = as_eager(frame)
    if not len(rows) or not rows.width:
        raise DataError("No contract can be inferred from a table without rows.")
    roles = {name: role for role, name in (("target", target), ("time", time), ("key", key)) if name is not None}
    for name, role in roles.items():
        require_column(name, rows.columns, role)
    moving = None if time is None else _moving_from(rows, time)
    columns = tuple(_column(rows[name], roles.get(name), now, moving) for name in rows.columns)
    rules = [*_relations(rows, tables or {})]
    if time is not None and now is not None and (fresh := _freshness(rows, time, now)) is not None:
        rules.append(fresh)
    newest = find_contract(dataset, store)
    version = newest.version + 1 if newest else 1
    return store.new(Contract, dataset=dataset, version=version, columns=columns, rules=tuple(rules))


def find_contract(dataset: str, store: Store) -> Contract | None:
    """The newest contract of a dataset, if it has one."""
    found = store.records.find(Contract, ("dataset", "=", dataset), order="-version", limit=1)
    return found[0] if found else None


def save_contract(contract: Contract, store: Store) -> Contract:
    """Store a contract as the dataset's newest version; one that says the same as the newest is that one.

    Raises:
        ConflictError: other machines kept taking the version's number.
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
    raise ConflictError(f"No version number of the contract of '{contract.dataset}' was free.")


def amount(name: str, dtype: pl.DataType) -> pl.Expr | None:
    """The column as float64, durations in seconds; None for what is no amount.

    Rounding to float64 keeps the order, so bounds that are rounded likewise hold for the values that gave them.
    """
    if dtype.is_numeric():
        return pl.col(name).cast(pl.Float64)
    if isinstance(dtype, pl.Duration):
        # By its own unit: the longest durations do not fit into nanoseconds.
        return pl.col(name).cast(pl.Int64).cast(pl.Float64) / _PER_SECOND[dtype.time_unit]
    return None


def missing(name: str, dtype: pl.DataType) -> pl.Expr:
    """Whether there is no value: null, or NaN where a column can hold it."""
    column = pl.col(name)
    return column.is_null() | column.is_nan().fill_null(value=False) if dtype.is_float() else column.is_null()


def category(name: str) -> pl.Expr:
    """The column's values as the texts under which a contract lists them."""
    return pl.col(name).cast(pl.String)


def _column(values: pl.Series, role: str | None, now: datetime | None, moving: datetime | None) -> dict[str, Json]:
    name, dtype, rows = values.name, values.dtype, len(values)
    nulls = values.to_frame().select(missing(name, dtype).mean()).item()
    found: dict[str, Json] = {"name": name, "type": type_name(dtype)}
    if role is not None:
        found["role"] = role
        # Features may be null: how many is worth a warning, not which.
        found["nullable"] = nulls > 0
    found["nulls"] = round(nulls, 6)
    found["max_nulls"] = _most_nulls(nulls, rows)
    if isinstance(dtype, pl.String) or dtype.is_integer():
        found["distinct"] = values.drop_nulls().n_unique()
        whole = found["distinct"] == rows - values.null_count()
        if whole and (role == "key" or (role is None and rows >= _UNIQUE_ROWS)):
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
        return found  # new rows bring new keys
    if _has_categories(values, role):
        found["categories"] = _categories(values)
    elif (asked := amount(name, dtype)) is not None:
        found.update(_range(values.to_frame().select(asked).to_series(), whole=dtype.is_integer()))
    elif dtype.is_temporal() and nulls < 1 and _sayable(values):
        found["min"] = exact_text(values, "min")
        newest = values.to_frame().select(as_utc(name, dtype).max()).item() if is_moment(dtype) else None
        if newest is None or moving is None or newest < moving:
            found["max"] = exact_text(values, "max")
    return found


def _sayable(values: pl.Series) -> bool:
    """Whether ISO 8601 has a text for each date."""
    return not is_moment(values.dtype) or bool(values.drop_nulls().dt.year().is_between(1, 9999).all())


def _moving_from(rows: pl.DataFrame, time: str) -> datetime | None:
    """From here on a date moves on with the rows: it lies in the last tenth of the time that they span, or after."""
    if not is_moment(rows.schema[time]):
        return None
    moments = as_utc(time, rows.schema[time])
    first, last = rows.select(moments.min().alias("first"), moments.max().alias("last")).row(0)
    return None if first is None else last - (last - first) / 10


def _freshness(rows: pl.DataFrame, time: str, now: datetime) -> dict[str, Json] | None:
    """Twice what is seen now, or ten times what usually lies between two rows: older than that is worth a word."""
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
            if key not in rows.columns or other.schema[key] != rows.schema[key] or not _names_things(other[key]):
                continue
            if rows[key].drop_nulls().is_in(other[key].implode()).all():
                yield {"rule": "relation", "column": key, "table": table, "key": key, "severity": "warning"}


def _names_things(values: pl.Series) -> bool:
    named = isinstance(values.dtype, pl.String) or values.dtype.is_integer()
    return named and len(values) > 0 and not values.null_count() and bool(values.is_unique().all())


def _most_nulls(share: float, rows: int) -> float:
    """What a sample of this share may reach by chance (four standard errors), and some slack."""
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
        raise TypeError(f"{value!r} is no amount")
    return value
