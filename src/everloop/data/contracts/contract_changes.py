"""A contract after its data have changed on purpose: what has to change in it, and nothing else.

What people wrote into a contract stays as long as the data keep it. Columns that are gone are taken out, new ones are
inferred, retyped ones are inferred again, and of a rule that rows break only that rule is widened.
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
_SEEN = ("nulls", "distinct", "quantiles")
"""What a contract says of a column without ever judging by it."""
_RANGES = {"least": ("least", "min"), "min": ("min",), "most": ("most", "max"), "max": ("max",)}
"""The keys that describe the same end of a range as the rule that broke."""


@dataclass(frozen=True)
class ContractChange:
    """One difference between a contract and what the data ask for."""

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
    """The contract that `frame` keeps, as near to `contract` as can be, and what is different in it.

    It is not stored yet: see `save_contract`. A rule that people wrote about rows or the table is never changed for
    the data: where it is still broken, a change of the kind `still broken` says so.

    Raises:
        DataError: the table has no rows, or lacks a named column.
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
                changes.append(ContractChange("dropped", name, f"held {column['type']}"))
                continue
            columns.append(dict(column))
            continue
        new = fresh.pop(name)
        if not fits(rows.schema[name], column["type"]):
            changes.append(ContractChange("retyped", name, f"{column['type']} → {type_name(rows.schema[name])}"))
            columns.append(dict(new))
        elif column.get("role") != new.get("role"):
            was, role = column.get("role", "feature"), new.get("role", "feature")
            changes.append(ContractChange("role", name, f"{was} → {role}"))
            columns.append(dict(new))
        else:
            columns.append(dict(column))
    for name, new in fresh.items():
        changes.append(ContractChange("added", name, str(new["type"])))
        columns.append(dict(new))
    # In the order of the table, so that the file reads like it; columns that may be missing come last.
    order = {name: place for place, name in enumerate(rows.columns)}
    columns.sort(key=lambda column: order.get(column["name"], len(order)))
    rules, gone = _rules(contract, {column["name"] for column in columns})
    changes += gone
    adapted = replace(contract, columns=tuple(columns), rules=rules)
    report = check_contract(rows, adapted, now=now)
    described = {column["name"]: column for column in inferred.columns}
    for violation in report.violations:
        changes += _widen(columns, violation, described)
    if changes:
        for column in columns:
            seen = described.get(column["name"], {})
            column.update({name: seen[name] for name in _SEEN if name in seen})
    return replace(adapted, columns=tuple(columns)), tuple(changes)


def _rules(contract: Contract, known: set[str]) -> tuple[tuple[dict[str, Json], ...], list[ContractChange]]:
    """The rules whose columns are all still there; SQL is left to be judged by its own check."""
    kept, gone = [], []
    for rule in contract.rules:
        named = [*rule.get("columns", ()), *([rule["column"]] if "column" in rule else [])]
        lost = [name for name in named if name not in known]
        if lost:
            gone.append(ContractChange("rule dropped", lost[0], f"'{rule['rule']}' was about it"))
        elif rule["rule"] == "where" and not _can_be_asked(rule["sql"], known):
            gone.append(ContractChange("rule dropped", None, f"{rule['sql']}: a column of it is gone"))
        else:
            kept.append(rule)
    return tuple(kept), gone


def _can_be_asked(sql: str, known: set[str]) -> bool:
    import polars as pl

    try:
        return set(pl.sql_expr(sql).meta.root_names()) <= known
    except pl.exceptions.PolarsError:
        return True  # the check says what is wrong with it


def _widen(
    columns: list[dict[str, Any]], broken: Violation, described: dict[str, dict[str, Json]]
) -> Iterator[ContractChange]:
    column = next((one for one in columns if one["name"] == broken.column), None)
    rule = broken.rule
    known = column is not None and (rule in column or rule in ("future", "infinite"))
    # A key that repeats names no row, whoever accepts it.
    if column is None or not known or (rule == "unique" and column.get("role") == "key"):
        yield ContractChange("still broken", broken.column, f"{broken.message}: edit the file, or correct the data")
        return
    seen = described[column["name"]]
    if rule == "categories" and "categories" in seen:
        before, now = column["categories"], seen["categories"]
        more = [value for value in now if value not in before]
        column["categories"] = {**before, **now}
        shown = ", ".join(map(repr, more[:5])) + (", …" if len(more) > 5 else "")
        yield ContractChange("widened", column["name"], f"also {shown}")
        return
    for name in _RANGES.get(rule, (rule,)):
        was = column.pop(name, None)
        if name in seen:
            column[name] = seen[name]
        if name == rule:
            told = f"{rule} {_short(was)} → {_short(seen.get(name))}"
            yield ContractChange("widened", column["name"], told)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return f"{len(value)} values"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
