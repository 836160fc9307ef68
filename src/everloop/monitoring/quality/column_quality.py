"""Measure the columns of a window: rows that break the contract, missing values, constant and repeated values.

Everything here is a share of rows. Whether a share is unusual depends on earlier windows or on a reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from everloop.monitoring.measures.window_tests import LEAST_WINDOWS, share_increase
from everloop.monitoring.quality.quality_result import QualityResult, result_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from everloop.records import Contract, Json

LEAST_SHARE = 0.001
"""A share is not reported unless it exceeds the expected one by this much."""
LEAST_COUNT = 3
"""Fewer rows than this are not reported."""
LEAST_CONSTANT_ROWS = 30
"""With fewer rows, a column may be constant by chance."""

_EXAMPLES = 5
_DROPPED = ("role", "unique", "ordered", "max_nulls", "required")
"""Rules of a contract about a whole table. They do not apply to a window."""


@dataclass(frozen=True, slots=True)
class RowShare:
    """How many rows of a window have a property. `usual`: share in the reference; None if it is not known."""

    subject: str
    rule: str
    count: int
    rows: int
    message: str
    usual: float | None = None
    samples: tuple[Json, ...] = ()

    @property
    def key(self) -> str:
        return result_key(self.subject, self.rule)


def measure_columns(frame: pl.DataFrame, contract: Contract | None) -> list[RowShare]:
    """Measure a window's columns. There is a share for every rule that is broken, and for the nulls of every column.

    Args:
        frame: the inputs, typed as the model expects them.
        contract: the contract of the training data. Columns that it lacks are checked for missing values only.
    """
    from everloop.data.contracts.contract import missing
    from everloop.data.contracts.contract_checks import check_contract

    rows = frame.height
    if rows == 0 or frame.width == 0:
        return []
    columns = contract.columns if contract is not None else ()
    usual = {column["name"]: float(column["nulls"]) for column in columns if column.get("nulls") is not None}
    nulls = frame.select(missing(name, dtype).sum().alias(name) for name, dtype in frame.schema.items())
    shares = [
        RowShare(
            name,
            "nulls",
            count,
            rows,
            f"{percent(count / rows)} of '{name}' is missing",
            usual.get(name),
        )
        for name, count in nulls.row(0, named=True).items()
    ]
    if contract is None:
        return shares
    for broken in check_contract(frame, live_contract(contract, frame)).violations:
        if broken.rows == 0 or broken.rule == "nullable":
            continue
        subject = broken.column if broken.column is not None else "rows"
        shares.append(
            RowShare(subject, broken.rule, broken.rows, rows, broken.message, 0.0, broken.samples[:_EXAMPLES])
        )
    return shares


def measure_repeats(rows: pl.DataFrame, inputs: Sequence[str], key: str | None) -> list[RowShare]:
    """Measure how many rows repeat an earlier one of the window: in the key, and in all inputs."""
    found = []
    total = rows.height
    if key is not None and key in rows.columns:
        keys = rows[key].drop_nulls()
        repeated = len(keys) - keys.n_unique()
        if len(keys):
            text = f"{repeated} of {len(keys)} rows repeat the key of an earlier row"
            found.append(RowShare("rows", "repeated keys", repeated, len(keys), text))
    names = [name for name in inputs if not rows.schema[name].is_nested()]
    if names and total:
        repeated = total - rows.select(names).n_unique()
        text = f"{repeated} of {total} rows repeat the inputs of an earlier row"
        found.append(RowShare("rows", "repeated inputs", repeated, total, text))
    return found


def constant_columns(frame: pl.DataFrame) -> dict[str, Json]:
    """Return the columns that have one value, with that value. Columns without any value are not among them."""
    import polars as pl

    if frame.height < LEAST_CONSTANT_ROWS:
        return {}
    found: dict[str, Json] = {}
    for name, dtype in frame.schema.items():
        if dtype.is_nested() or isinstance(dtype, pl.Null | pl.Object):
            continue
        values = frame[name].drop_nulls()
        if len(values) >= LEAST_CONSTANT_ROWS and values.n_unique() == 1:
            found[name] = str(values[0])
    return found


def compare_share(share: RowShare, earlier: Sequence[tuple[float, float]], reference_rows: int) -> QualityResult:
    """Compare a share with earlier windows if there are enough of them, otherwise with the reference.

    Args:
        earlier: `(count, rows)` of earlier windows.
        reference_rows: how many rows the reference has; 0 if that is not known.
    """
    value = share.count / share.rows if share.rows else 0.0
    windows = [window for window in earlier if window[1] > 0]
    result = QualityResult(
        "quality",
        share.subject,
        share.rule,
        share.message,
        value,
        counts=(share.count, share.rows),
        evidence={"rows": share.rows, "count": share.count, "samples": list(share.samples)},
    )
    if len(windows) >= LEAST_WINDOWS:
        test, basis = share_increase(share.count, share.rows, windows), "windows"
    elif share.usual is not None and reference_rows > 0:
        usual = min(1.0, max(0.0, share.usual))
        test, basis = share_increase(share.count, share.rows, [(usual * reference_rows, reference_rows)]), "reference"
    else:
        return result
    matters = share.count >= LEAST_COUNT and value - test.expected >= LEAST_SHARE
    p_value = test.p_value if matters else 1.0
    return replace(
        result,
        message=f"{share.message}; usually {percent(test.expected)}",
        expected=test.expected,
        p_value=p_value,
        basis="windows" if basis == "windows" else "reference",
        evidence={**result.evidence, "dispersion": test.dispersion, "windows": len(windows)},
    )


def compare_constants(
    constant: Mapping[str, Json], earlier: Sequence[Sequence[str]], varied: Sequence[str] = ()
) -> list[QualityResult]:
    """Return a fact for each column that has become constant.

    Args:
        constant: the constant columns of this window.
        earlier: the names of the constant columns of each earlier window. With fewer than three windows, only `varied`
            counts.
        varied: columns of which the reference has several values.
    """
    enough = len(earlier) >= LEAST_WINDOWS
    results = []
    for name, value in constant.items():
        before = sum(name in window for window in earlier)
        # Some columns, such as the weekday, have one value in every window.
        if (enough and before == 0) or (not earlier and name in varied):
            message = f"'{name}' has one value only: {value}"
            results.append(QualityResult("quality", name, "constant", message, basis="fact", evidence={"value": value}))
    return results


def compare_schema(before: Mapping[str, pl.DataType], after: Mapping[str, pl.DataType]) -> list[QualityResult]:
    """Return a fact for each column that has vanished or has another type, and a warning for each new one.

    A column of nulls has no type.
    """
    from everloop.data.contracts.contract_checks import fits
    from everloop.data.table_inputs import type_name

    results = []
    for name, dtype in before.items():
        if name not in after:
            results.append(QualityResult("quality", name, "vanished", f"The column '{name}' is missing", basis="fact"))
        elif type_name(dtype) != "null" and not fits(after[name], type_name(dtype)):
            was, now = type_name(dtype), type_name(after[name])
            message = f"'{name}' is {now}, before it was {was}"
            results.append(
                QualityResult("quality", name, "type", message, basis="fact", evidence={"types": [was, now]})
            )
    for name in after:
        if name not in before:
            message = f"The column '{name}' is new"
            results.append(QualityResult("quality", name, "new column", message, p_value=0.0, basis="reference"))
    return results


def live_contract(contract: Contract, frame: pl.DataFrame) -> Contract:
    """Return the part of a contract that applies to each row of a window with these columns."""
    from everloop.data.contracts.contract_checks import fits

    columns = tuple(
        {name: value for name, value in column.items() if name not in _DROPPED}
        for column in contract.columns
        if column["name"] in frame.columns and fits(frame.schema[column["name"]], column["type"])
    )
    known = {column["name"] for column in columns}
    rules = tuple(rule for rule in contract.rules if rule["rule"] == "where" and _roots(rule["sql"]) <= known)
    return replace(contract, columns=columns, rules=rules)


def _roots(sql: str) -> set[str]:
    """The columns that a condition uses. A condition that cannot be read uses a column that no table has."""
    import polars as pl

    try:
        return set(pl.sql_expr(sql).meta.root_names())
    except pl.exceptions.PolarsError:
        return {""}


def percent(share: float) -> str:
    if share == 0:
        return "0%"
    digits = max(0, -math.floor(math.log10(share)) - 2)
    return f"{share:.{min(digits + 1, 4)}%}"
