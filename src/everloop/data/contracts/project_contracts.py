"""The contract of a project's dataset: a TOML file that is inferred once, edited by people, and checked on each run."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from everloop.errors import ContractError, DataError, NotFoundError
from everloop.records import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.data import ContractReport
    from everloop.stores import Store

FOLDER = "contracts"
_EVENT_VIOLATIONS = 20
"""The event lists at most this many violations, and counts the others."""


def passing_rows(
    store: Store,
    table: pl.DataFrame,
    dataset: str,
    *,
    target: str,
    time: str | None,
    key: str | None,
    declared: str | None,
    run: str | None = None,
) -> tuple[pl.DataFrame, Contract]:
    """The rows that fulfil the contract, and the contract.

    Rows that break it are stored as a snapshot of `quarantine/<dataset>`, and an event lists the violations. If there
    is no contract yet, one is inferred from this table and written to `contracts/<dataset>.toml`.

    Args:
        declared: a contract's key or the path of its TOML file; by default the dataset's own file.
        run: the id of the current run.

    Raises:
        ContractError: the table's columns do not fit, or no row fulfils the contract.
        NotFoundError: a declared contract does not exist.
    """
    from everloop.data import check_contract, quarantine, record_findings

    contract = _contract(store, table, dataset, target=target, time=time, key=key, declared=declared)
    try:
        report = check_contract(table, contract, now=store.now())
    except ContractError as error:
        hint = _hint("Correct the step", dataset, declared)
        raise ContractError(error.message, help=f"{error.help} {hint}" if error.help else hint) from error
    if report.violations:
        _append_event(store, dataset, contract, report, run)
        record_findings(report, dataset, store)
    if report.errors and not report.bad_rows:
        raise ContractError(
            f"The table does not fulfil '{contract.key}': {report.errors[0].message}.",
            help=_hint("Correct the data", dataset, declared),
        )
    if not report.bad_rows:
        return table, contract
    quarantined = quarantine(report, dataset, store)
    good = report.good.collect()
    if good.height == 0:
        problems = "; ".join(violation.message for violation in report.errors[:3])
        where = f" The rows are stored as '{quarantined.key}'." if quarantined else ""
        raise ContractError(
            f"None of the {report.rows:,} rows fulfils '{contract.key}': {problems}.{where}",
            help=_hint("Correct the data", dataset, declared),
        )
    return good, contract


def _hint(first: str, dataset: str, declared: str | None) -> str:
    command = f"everloop data contract {quote(dataset)} --accept"
    if declared is not None and "@" in declared:
        return f"{first}. If the data changed on purpose, accept them as a new version: {command}"
    return f"{first}, or edit {_file(dataset, declared)}. If the data changed on purpose: {command}"


def _contract(
    store: Store,
    table: pl.DataFrame,
    dataset: str,
    *,
    target: str,
    time: str | None,
    key: str | None,
    declared: str | None,
) -> Contract:
    from everloop.data import files_state, infer_contract, save_contract
    from everloop.stores import observe

    contract = find_project_contract(store, dataset, declared)
    if declared is not None and "@" in declared and contract is not None:
        return contract
    name = _file(dataset, declared)
    if contract is None:
        contract = save_contract(infer_contract(table, dataset, store, target=target, time=time, key=key), store)
        write_contract(contract, declared)
    observe("files", {"patterns": [name]}, files_state({"patterns": [name]}))
    return contract


def find_project_contract(store: Store, dataset: str, declared: str | None) -> Contract | None:
    """The contract of a dataset, from its file or the store; None if none has been inferred yet.

    Raises:
        NotFoundError: a declared contract does not exist.
    """
    from everloop.data import save_contract
    from everloop.data.contracts.contract_toml import load_contract
    from everloop.data.sources.file_states import project_folder

    if declared is not None and "@" in declared:
        return store.records.get(Contract, declared)
    path = project_folder() / _file(dataset, declared)
    if path.is_file():
        return save_contract(load_contract(path, store), store)
    if declared is not None:
        raise NotFoundError(
            f"There is no contract file '{path}'.", help="Leave out contract=, and everloop will infer one."
        )
    return None


def write_contract(contract: Contract, declared: str | None) -> Path:
    """Write a contract to its file in the project, atomically. Comments in the file are kept."""
    from everloop.data import contract_to_toml
    from everloop.data.sources.file_states import project_folder

    path = project_folder() / _file(contract.dataset, declared)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    part.write_text(contract_to_toml(contract, before=before), encoding="utf-8")
    part.replace(path)
    return path


def labelled_rows(table: pl.DataFrame, dataset: str, target: str, others: Sequence[str]) -> pl.DataFrame:
    """The rows whose target is known.

    Raises:
        DataError: the target or one of `others` is not in the table, or no row has a label.
    """
    import polars as pl

    from everloop.data.table_inputs import nearest

    if target not in table.columns:
        raise DataError(
            f"The table of '{dataset}' has no target column '{target}'.",
            help=f"{nearest(target, table.columns)} Set it in loop.py: el.Dataset(…, target=…)",
        )
    missing = [name for name in others if name not in table.columns]
    if missing:
        raise DataError(
            f"The table of '{dataset}' has no column '{missing[0]}'.", help=nearest(missing[0], table.columns)
        )
    known = table.filter(pl.col(target).is_not_null())
    if known.height == 0:
        what = "has no rows" if table.height == 0 else f"has {table.height:,} rows, but no label in '{target}'"
        raise DataError(f"The table of '{dataset}' {what}.", help="Check what the step returned.")
    return known


def declared_contract(contract: object) -> str | None:
    """`Dataset.contract` as text: a contract's key, or the path of its TOML file."""
    if contract is None or isinstance(contract, str):
        return contract
    return contract.key if isinstance(contract, Contract) else str(contract)


def _file(dataset: str, declared: str | None) -> str:
    return declared or str(Path(FOLDER) / f"{dataset}.toml")


def _append_event(store: Store, dataset: str, contract: Contract, report: ContractReport, run: str | None) -> None:
    violations = [
        {"column": one.column, "rule": one.rule, "severity": one.severity, "rows": one.rows, "message": one.message}
        for one in (*report.errors, *report.warnings)[:_EVENT_VIOLATIONS]
    ]
    store.records.append_event(
        "contract_broken" if report.errors else "contract_bent",
        "contract",
        contract.id,
        contract.key,
        {"dataset": dataset, "rows": report.rows, "bad_rows": report.bad_rows, "violations": violations,
         "more": max(0, len(report.violations) - _EVENT_VIOLATIONS), "run": run},
    )  # fmt: skip
