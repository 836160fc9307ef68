"""A table against its contract: what breaks it, which rows are good, and where the others are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import polars as pl

from everloop.data.contracts.bounds import outside, read_bound
from everloop.data.contracts.contract import category, missing
from everloop.data.snapshots.column_statistics import as_json
from everloop.data.snapshots.snapshots import take_snapshot
from everloop.data.sources.reading import read
from everloop.data.table_inputs import Frame, as_lazy, as_utc, is_moment, nearest, type_name
from everloop.errors import ContractError, UsageError
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from everloop.records import Contract, Json, Run, Snapshot
    from everloop.stores import Store

BROKEN = "_broken"
"""Column of the bad rows that lists what each broke, as `column: rule`."""
_SAMPLES = 5

CheckSeverity = Literal["warning", "error"]


@dataclass(frozen=True)
class Violation:
    """One rule that does not hold. An error about rows makes those rows bad; a warning leaves them good."""

    column: str | None
    rule: str
    severity: CheckSeverity
    rows: int
    """How many rows; 0 where the rule is about the table."""
    message: str
    samples: tuple[Json, ...] = ()
    first_rows: tuple[int, ...] = ()
    """The numbers of the first of these rows, from 1."""


@dataclass(frozen=True)
class ContractReport:
    """What a check saw. `good` and `bad` together hold every row once, each in the table's order."""

    contract: str
    rows: int
    bad_rows: int
    violations: tuple[Violation, ...]
    good: pl.LazyFrame
    bad: pl.LazyFrame

    @property
    def errors(self) -> tuple[Violation, ...]:
        return tuple(found for found in self.violations if found.severity == "error")

    @property
    def warnings(self) -> tuple[Violation, ...]:
        return tuple(found for found in self.violations if found.severity == "warning")

    @property
    def passed(self) -> bool:
        return not self.errors


@dataclass(frozen=True)
class _Rule:
    column: str | None
    name: str
    severity: CheckSeverity
    broken: pl.Expr
    says: str


def check_contract(
    frame: Frame, contract: Contract, *, now: datetime | None = None, tables: Mapping[str, Frame] | None = None
) -> ContractReport:
    """Check every row of a table.

    Args:
        now: for `fresh` rules, and times that lie ahead: the store's time.
        tables: what `relation` rules refer to, by name; what is not here is read from where the name leads.

    Raises:
        ContractError: the table lacks a column, or one has another type: then no row can be judged.
        UsageError: a rule of the contract cannot be used.
    """
    rows = as_lazy(frame)
    schema = rows.collect_schema()
    _refuse_schema(schema, contract)
    rules = [*_column_rules(schema, contract, now), *_where_rules(schema, contract)]
    rules += _relation_rules(schema, contract, tables or {})
    rules += _unique_rules(schema, contract, _any_error(rules))
    asked = [rule.broken.fill_null(value=False).sum().alias(str(index)) for index, rule in enumerate(rules)]
    bad = _any_error(rules)
    present = [column for column in contract.columns if column["name"] in schema]
    nulls = [missing(name, schema[name]).sum().alias(f"null {name}") for name in (each["name"] for each in present)]
    counted = rows.select(pl.len().alias("rows"), bad.sum().alias("bad"), *asked, *nulls).collect().row(0, named=True)
    violations = [
        _violation(rule, counted[str(index)], rows, schema) for index, rule in enumerate(rules) if counted[str(index)]
    ]
    violations += _table_violations(rows, schema, contract, counted, now)
    named = [
        pl.when(rule.broken.fill_null(value=False)).then(
            pl.lit(f"{rule.column}: {rule.name}" if rule.column else rule.name)
        )
        for rule in rules
        if rule.severity == "error"
    ]
    reasons = pl.concat_list(named).list.drop_nulls() if named else pl.lit([], dtype=pl.List(pl.String))
    return ContractReport(
        contract=contract.key,
        rows=counted["rows"],
        bad_rows=counted["bad"],
        violations=tuple(violations),
        good=rows.filter(~bad),
        # Reasons come first: a rule about repeated values reads differently among the bad rows alone.
        bad=rows.with_columns(reasons.alias(BROKEN)).filter(pl.col(BROKEN).list.len() > 0),
    )


def quarantine(report: ContractReport, dataset: str, store: Store, *, run: Run | str | None = None) -> Snapshot | None:
    """Keep the bad rows, with what each broke, as a snapshot of `quarantine/<dataset>`; None if there are none."""
    if not report.bad_rows:
        return None
    return take_snapshot(report.bad, f"quarantine/{dataset}", store, run=run, contract=report.contract)


def fits(dtype: pl.DataType, declared: str) -> bool:
    """Whether a column of this type can be judged by a contract that declares another of the same family."""
    if isinstance(dtype, pl.Null):
        return True  # no value at all, so none of a wrong type
    if declared.startswith(("int", "uint")):
        return dtype.is_integer()
    if declared.startswith("float"):
        return dtype.is_numeric()
    if declared.startswith("decimal"):
        return dtype.is_decimal() or dtype.is_integer()
    if declared in ("string", "categorical", "enum"):
        return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
    if declared.startswith("timestamp"):
        return isinstance(dtype, pl.Datetime)
    if declared.startswith("duration"):
        return isinstance(dtype, pl.Duration)
    return declared in ("null", type_name(dtype))


def _refuse_schema(schema: pl.Schema, contract: Contract) -> None:
    problems: list[str] = []
    way_out = None
    for column in contract.columns:
        name = column["name"]
        if name not in schema:
            if column.get("required", True):
                problems.append(f"column '{name}' is missing")
                way_out = way_out or nearest(name, schema)
        elif not fits(schema[name], column["type"]):
            problems.append(f"column '{name}' holds {type_name(schema[name])}, not {column['type']}")
    if problems:
        raise ContractError(f"The table breaks '{contract.key}': {'; '.join(problems)}.", help=way_out)


def _column_rules(schema: pl.Schema, contract: Contract, now: datetime | None) -> Iterator[_Rule]:
    for column in contract.columns:
        name = column["name"]
        if name not in schema:
            continue
        dtype = schema[name]
        if not column.get("nullable", True):
            gone = missing(name, dtype)
            yield _Rule(name, "nullable", _severity(column, "nullable", "error"), gone, "are null or NaN")
        if "categories" in column and not isinstance(dtype, pl.Null):
            severity = _severity(column, "categories", "error" if column.get("role") == "target" else "warning")
            known = pl.Series(list(column["categories"]), dtype=pl.String)
            yield _Rule(name, "categories", severity, ~category(name).is_in(known.implode()), "were never seen")
        if "pattern" in column and not isinstance(dtype, pl.Null):
            alike = category(name).str.contains(column["pattern"])
            severity = _severity(column, "pattern", "warning")
            yield _Rule(name, "pattern", severity, ~alike, f"do not look like {column['pattern']}")
        if column.get("role") == "time" and now is not None and not column.get("future") and is_moment(dtype):
            ahead = as_utc(name, dtype) > now
            yield _Rule(name, "future", _severity(column, "future", "warning"), ahead, f"lie after {now.isoformat()}")
        if dtype.is_float() and not column.get("infinite"):
            severity = _severity(column, "infinite", "error")
            yield _Rule(name, "infinite", severity, pl.col(name).is_infinite(), "are infinite")
        bounds: tuple[tuple[str, CheckSeverity], ...] = (
            ("least", "error"),
            ("most", "error"),
            ("min", "warning"),
            ("max", "warning"),
        )
        for bound, usual in bounds:
            if column.get(bound) is None:
                continue
            limit = read_bound(f"Column '{name}' of '{contract.key}'", bound, column[bound], column["type"])
            below = bound in ("least", "min")
            broken = outside(name, dtype, limit, below=below)
            if broken is not None:
                severity = _severity(column, bound, usual)
                yield _Rule(name, bound, severity, broken, f"are {'below' if below else 'above'} {column[bound]}")


def _unique_rules(schema: pl.Schema, contract: Contract, bad: pl.Expr) -> Iterator[_Rule]:
    """Of rows with one value the first is good, and a row that is bad for another reason counts for none of them."""
    for column in contract.columns:
        name = column["name"]
        if column.get("unique") and name in schema:
            first = pl.struct(pl.col(name), bad.alias(BROKEN)).is_first_distinct()
            broken = ~first & ~bad & ~missing(name, schema[name])
            yield _Rule(name, "unique", _severity(column, "unique", "error"), broken, "repeat")
    for rule in contract.rules:
        if rule["rule"] == "unique":
            names = list(rule["columns"])
            _require(rule, names, schema)
            first = pl.struct(*names, bad.alias(BROKEN)).is_first_distinct()
            said = f"repeat in {', '.join(names)}"
            yield _Rule(None, said, rule.get("severity", "error"), ~first & ~bad, said)


def _relation_rules(schema: pl.Schema, contract: Contract, tables: Mapping[str, Frame]) -> Iterator[_Rule]:
    for rule in contract.rules:
        if rule["rule"] != "relation":
            continue
        name, table, key = rule["column"], rule["table"], rule["key"]
        _require(rule, [name], schema)
        other = as_lazy(tables[table]) if table in tables else read(table)
        known = other.collect_schema()
        if key not in known:
            raise UsageError(f"'{table}' has no column '{key}' to relate '{name}' to.", help=nearest(key, known))
        if not isinstance(schema[name], pl.Null) and not fits(schema[name], type_name(known[key])):
            kinds = f"{type_name(schema[name])} and {type_name(known[key])}"
            raise UsageError(f"'{name}' cannot be related to '{key}' of '{table}': they hold {kinds}.")
        keys = other.select(pl.col(key).cast(pl.String)).unique().collect().to_series()
        lonely = ~category(name).is_in(keys.implode()) & pl.col(name).is_not_null()
        severity: CheckSeverity = rule.get("severity", "error")
        yield _Rule(name, f"relation to {table}", severity, lonely, f"are no '{key}' of {table}")


def _require(rule: dict[str, Json], names: list[str], schema: pl.Schema) -> None:
    for name in names:
        if name not in schema:
            raise ContractError(f"The table has no '{name}', which a rule '{rule['rule']}' is about.")


def _severity(column: dict[str, Json], rule: str, usual: CheckSeverity) -> CheckSeverity:
    said: CheckSeverity = column.get("severities", {}).get(rule, usual)
    return said


def _where_rules(schema: pl.Schema, contract: Contract) -> Iterator[_Rule]:
    for rule in contract.rules:
        if rule["rule"] != "where":
            continue
        try:
            holds = pl.sql_expr(rule["sql"])
            kind = pl.LazyFrame(schema=schema).select(holds.alias("holds")).collect_schema()["holds"]
        except pl.exceptions.PolarsError as error:
            raise UsageError(f'The rule "{rule["sql"]}" cannot be used: {str(error).splitlines()[0]}.') from error
        if not isinstance(kind, pl.Boolean):
            raise UsageError(f'The rule "{rule["sql"]}" gives {type_name(kind)}, not true or false.')
        yield _Rule(None, rule["sql"], rule.get("severity", "error"), ~holds, f"do not have {rule['sql']}")


def _any_error(rules: list[_Rule]) -> pl.Expr:
    # The literal keeps the expression as long as the table where there is no rule.
    errors = [rule.broken.fill_null(value=False) for rule in rules if rule.severity == "error"]
    return pl.any_horizontal(pl.repeat(value=False, n=pl.len()), *errors)


def _violation(rule: _Rule, count: int, rows: pl.LazyFrame, schema: pl.Schema) -> Violation:
    samples: tuple[Json, ...] = ()
    if rule.column is not None and rule.name != "nullable":
        broken = rows.filter(rule.broken).select(rule.column).unique(maintain_order=True).head(_SAMPLES).collect()
        found = broken.to_series()
        if is_moment(found.dtype):
            # Python has no dates beyond the year 9999.
            found = found.filter(found.dt.year().is_between(1, 9999).fill_null(value=True))
        samples = tuple(_sample(value) for value in found)
    numbers = rows.select(pl.arg_where(rule.broken.fill_null(value=False)).head(_SAMPLES) + 1).collect().to_series()
    subject = f"values of '{rule.column}'" if rule.column is not None else "rows"
    shown = f": {', '.join(map(str, samples))}" if samples else ""
    message = f"{count} {subject} {rule.says}{shown} (first in row {numbers[0]})"
    return Violation(rule.column, rule.name, rule.severity, count, message, samples, tuple(numbers.to_list()))


def _sample(value: object) -> Json:
    try:
        return as_json(value)
    except TypeError:
        return str(value)


def _table_violations(
    rows: pl.LazyFrame, schema: pl.Schema, contract: Contract, counted: dict[str, int], now: datetime | None
) -> Iterator[Violation]:
    total = counted["rows"]
    known = {column["name"]: column for column in contract.columns}
    for name in schema:
        if name not in known:
            yield Violation(name, "unexpected", "warning", 0, f"The contract does not know the column '{name}'")
    for name, column in known.items():
        if name not in schema or not total:
            continue
        share = counted[f"null {name}"] / total
        most = column.get("max_nulls", 1.0)
        # A small sample may exceed it by chance: four standard errors.
        if share > most and (share == 1 or share - most > 4 * math.sqrt(most * (1 - most) / total)):
            message = f"{share:.1%} of '{name}' are null or NaN, more than {most:.1%}"
            severity = _severity(column, "max_nulls", "warning")
            yield Violation(name, "max_nulls", severity, counted[f"null {name}"], message)
        if column.get("ordered") and not rows.select(pl.col(name).drop_nulls()).collect().to_series().is_sorted():
            severity = _severity(column, "ordered", "warning")
            yield Violation(name, "ordered", severity, 0, f"The rows are not in the order of '{name}'")
    for rule in contract.rules:
        if rule["rule"] == "rows" and total < rule["least"]:
            message = f"The table has {total} rows, fewer than {rule['least']}"
            yield Violation(None, "rows", rule.get("severity", "error"), 0, message)
        if rule["rule"] == "fresh":
            yield from _stale(rows, schema, rule, now)


def _stale(rows: pl.LazyFrame, schema: pl.Schema, rule: dict[str, Json], now: datetime | None) -> Iterator[Violation]:
    name = rule["column"]
    if now is None:
        raise UsageError(
            "The contract asks for fresh data, which needs to know the time.", help="Pass now=store.now()."
        )
    empty = isinstance(schema[name], pl.Null)
    if not empty and not is_moment(schema[name]):
        raise UsageError(f"The rule 'fresh' needs times, and '{name}' holds {type_name(schema[name])}.")
    newest = None if empty else rows.select(as_utc(name, schema[name]).max()).collect().item()
    if newest is None or now - newest > parse_duration(rule["within"]):
        seen = "there is no time at all" if newest is None else f"the newest is of {newest.isoformat()}"
        message = f"'{name}' should lie within {rule['within']} of {now.isoformat()}, but {seen}"
        yield Violation(name, "fresh", rule.get("severity", "error"), 0, message)
