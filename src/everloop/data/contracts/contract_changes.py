"""Adapt a contract to data that changed on purpose, with as few changes as possible.

Whatever people wrote into a contract stays if the data still fulfil it. Columns that no longer exist are removed, new
ones are inferred, and columns with a new type are inferred again. If rows break a rule, only that rule is widened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from everloop.data.contracts.contract import infer_contract
from everloop.data.contracts.contract_checks import check_contract, fits
from everloop.data.table_inputs import Frame, as_eager, type_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from everloop.data.contracts.contract_checks import Violation
    from everloop.records import Contract, Json
    from everloop.stores import Store

ChangeKind = Literal["added", "dropped", "retyped", "role", "widened", "rule dropped", "still broken"]
_DESCRIPTIVE = ("nulls", "distinct", "quantiles")
"""Keys that only describe a column and are never checked."""
_RANGES = {"least": ("least", "min"), "min": ("min",), "most": ("most", "max"), "max": ("max",)}
"""Per broken rule, the keys for the same end of the range."""


@dataclass(frozen=True)
class ContractChange:
    """One difference between a contract and what the data require."""

    kind: ChangeKind
    column: str | None
    """None for a rule about rows or the table."""
    message: str


def adapt_contract(
    contract: Contract,
    frame: Frame,
    store: Store,
    *,
    target: str | None = None,
    time: str | None = None,
    key: str | None = None,
    now: datetime | None = None,
) -> tuple[Contract, tuple[ContractChange, ...]]:
    """Change a contract as little as possible so that `frame` fulfils it, and list the changes.

    The result is not stored yet: see `save_contract`. Rules about rows or the table, which people write, are never
    changed. If one is still broken, the list contains a change of the kind `still broken`.

    Raises:
        DataError: the table has no rows, or does not have a column that was named.
    """
    rows = as_eager(frame)
    inferred = infer_contract(rows, contract.dataset, store, target=target, time=time, key=key, now=now)
    fresh = {column["name"]: column for column in inferred.columns}
    changes: list[ContractChange] = []
    columns: list[dict[str, Any]] = []
    for column in contract.columns:
        name = column["name"]
        if name not in fresh:
            if column.get("required", True):
                changes.append(ContractChange("dropped", name, f"was {column['type']}"))
                continue
            columns.append(dict(column))
            continue
        new = fresh.pop(name)
        if not fits(rows.schema[name], column["type"]):
            changes.append(ContractChange("retyped", name, f"{column['type']} → {type_name(rows.schema[name])}"))
            columns.append(dict(new))
        elif column.get("role") != new.get("role"):
            before, after = column.get("role", "feature"), new.get("role", "feature")
            changes.append(ContractChange("role", name, f"{before} → {after}"))
            columns.append(dict(new))
        else:
            columns.append(dict(column))
    for name, new in fresh.items():
        changes.append(ContractChange("added", name, str(new["type"])))
        columns.append(dict(new))
    # Keep the order of the table, so that the file is easy to read. Columns that may be missing come last.
    order = {name: index for index, name in enumerate(rows.columns)}
    columns.sort(key=lambda column: order.get(column["name"], len(order)))
    rules, dropped = _applicable_rules(contract, {column["name"] for column in columns})
    changes += dropped
    adapted = replace(contract, columns=tuple(columns), rules=rules)
    report = check_contract(rows, adapted, now=now)
    described = {column["name"]: column for column in inferred.columns}
    for violation in report.violations:
        changes += _widen(columns, violation, described)
    if changes:
        for column in columns:
            observed = described.get(column["name"], {})
            column.update({name: observed[name] for name in _DESCRIPTIVE if name in observed})
    return replace(adapted, columns=tuple(columns)), tuple(changes)


def _applicable_rules(contract: Contract, known: set[str]) -> tuple[tuple[dict[str, Json], ...], list[ContractChange]]:
    """The rules whose columns still exist, and a change for each of the others. Invalid SQL is left to the check."""
    applicable, dropped = [], []
    for rule in contract.rules:
        named = [*rule.get("columns", ()), *([rule["column"]] if "column" in rule else [])]
        lost = [name for name in named if name not in known]
        if lost:
            dropped.append(ContractChange("rule dropped", lost[0], f"the rule '{rule['rule']}' used this column"))
        elif rule["rule"] == "where" and not _has_columns(rule["sql"], known):
            dropped.append(ContractChange("rule dropped", None, f"{rule['sql']}: one of its columns no longer exists"))
        else:
            applicable.append(rule)
    return tuple(applicable), dropped


def _has_columns(sql: str, known: set[str]) -> bool:
    import polars as pl

    try:
        return set(pl.sql_expr(sql).meta.root_names()) <= known
    except pl.exceptions.PolarsError:
        return True  # the check reports what is wrong with it


def _widen(
    columns: list[dict[str, Any]], broken: Violation, described: dict[str, dict[str, Json]]
) -> Iterator[ContractChange]:
    column = next((one for one in columns if one["name"] == broken.column), None)
    rule = broken.rule
    known = column is not None and (rule in column or rule in ("future", "infinite"))
    # A repeated key cannot identify rows, so that rule is never widened.
    if column is None or not known or (rule == "unique" and column.get("role") == "key"):
        yield ContractChange("still broken", broken.column, f"{broken.message}: edit the file, or correct the data")
        return
    observed = described[column["name"]]
    if rule == "categories" and "categories" in observed:
        before, now = column["categories"], observed["categories"]
        more = [value for value in now if value not in before]
        column["categories"] = {**before, **now}
        shown = ", ".join(map(repr, more[:5])) + (", …" if len(more) > 5 else "")
        yield ContractChange("widened", column["name"], f"also {shown}")
        return
    for name in _RANGES.get(rule, (rule,)):
        before = column.pop(name, None)
        if name in observed:
            column[name] = observed[name]
        if name == rule:
            yield ContractChange("widened", column["name"], f"{rule} {_short(before)} → {_short(observed.get(name))}")


def _short(value: object) -> str:
    if isinstance(value, dict):
        return f"{len(value)} values"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
