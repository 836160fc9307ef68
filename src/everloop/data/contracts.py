"""What a table looks like, inferred once and edited by people.

A column of a contract is a dict with `name` and `type`, and of these what applies:

    role          `target`, `time` or `key`; without one the column is a feature
    required      false: the column may be missing
    nullable      false: a null breaks the contract
    nulls         share of nulls that was seen
    max_nulls     more nulls than this share, and than chance explains, is a warning
    unique        true: a repeated value breaks the contract (its first row is good)
    ordered       true: rows out of order are a warning
    min, max      what was seen; a number outside is a warning (times move on: for them it is for the reader)
    least, most   a number outside breaks the contract
    infinite      true: infinities were seen; else they break the contract
    quantiles     of the numbers that were seen, at `QUANTILES`
    categories    text of each value that was seen, with its count; another is a warning, in the target a breach

Numbers are floats or ints, durations seconds. Inference is lenient on purpose: what breaks a contract is taken out of
the data, so only what cannot be right does, such as -9999 among temperatures.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING
from zlib import crc32

import polars as pl

from everloop.data.frames import Frame, as_eager, require_column, type_name
from everloop.data.statistics import as_json
from everloop.errors import AlreadyExistsError, ConflictError, DataError
from everloop.records import Contract, Json

if TYPE_CHECKING:
    from everloop.stores import Store

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MAX_CATEGORIES = 100
_MAX_TARGET_CLASSES = 20
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
) -> Contract:
    """What `frame` looks like, as a contract that it keeps. It is not stored yet: see `save_contract`.

    Raises:
        DataError: the table has no rows, or lacks a named column.
    """
    rows = as_eager(frame)
    if not len(rows) or not rows.width:
        raise DataError("No contract can be inferred from a table without rows.")
    roles = {name: role for role, name in (("target", target), ("time", time), ("key", key)) if name is not None}
    for name, role in roles.items():
        require_column(name, rows.columns, role)
    columns = tuple(_column(rows[name], roles.get(name)) for name in rows.columns)
    newest = find_contract(dataset, store)
    return store.new(Contract, dataset=dataset, version=newest.version + 1 if newest else 1, columns=columns)


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


def category(name: str) -> pl.Expr:
    """The column's values as the texts under which a contract lists them."""
    return pl.col(name).cast(pl.String)


def _column(values: pl.Series, role: str | None) -> dict[str, Json]:
    name, dtype, rows = values.name, values.dtype, len(values)
    nulls = values.null_count() / rows
    found: dict[str, Json] = {"name": name, "type": type_name(dtype)}
    if role is not None:
        found["role"] = role
        # Features may be null: how many is worth a warning, not which.
        found["nullable"] = nulls > 0
    found["nulls"] = round(nulls, 6)
    found["max_nulls"] = _most_nulls(nulls, rows)
    if role == "key" and values.drop_nulls().is_unique().all():
        found["unique"] = True
    if role == "time" and values.drop_nulls().is_sorted():
        found["ordered"] = True
    if role == "key":
        return found  # new rows bring new keys
    if _has_categories(values, role):
        found["categories"] = _categories(values)
    elif (asked := amount(name, dtype)) is not None:
        found.update(_range(values.to_frame().select(asked).to_series(), whole=dtype.is_integer()))
    elif dtype.is_temporal() and nulls < 1:
        found["min"], found["max"] = as_json(values.min()), as_json(values.max())
    return found


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
