"""A dataset's contract in a project: a TOML file that is inferred once, edited by people, and checked each time."""

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
_TOLD = 20
"""So many violations are written into the event; the rest is counted."""


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
    """The rows that keep the contract, and the contract.

    Rows that break it are kept as a snapshot of `quarantine/<dataset>`; what broke is an event. Without a contract
    yet, one is inferred from this table and written to `contracts/<dataset>.toml`.

    Args:
        declared: a contract's key or the path of its TOML file; default: the dataset's own file.
        run: id of the run that asks.

    Raises:
        ContractError: the table's columns do not fit, or no row keeps the contract.
        NotFoundError: a declared contract is not there.
    """
    from everloop.data import check_contract, quarantine, record_findings

    contract = _contract(store, table, dataset, target=target, time=time, key=key, declared=declared)
    try:
        report = check_contract(table, contract, now=store.now())
    except ContractError as error:
        way = _way_out("Correct the step", dataset, declared)
        raise ContractError(error.message, help=f"{error.help} {way}" if error.help else way) from error
    if report.violations:
        _tell(store, dataset, contract, report, run)
        record_findings(report, dataset, store)
    if report.errors and not report.bad_rows:
        raise ContractError(
            f"The table breaks '{contract.key}': {report.errors[0].message}.",
            help=_way_out("Correct the data", dataset, declared),
        )
    if not report.bad_rows:
        return table, contract
    kept = quarantine(report, dataset, store)
    good = report.good.collect()
    if good.height == 0:
        said = "; ".join(violation.message for violation in report.errors[:3])
        where = f" They are kept as '{kept.key}'." if kept else ""
        raise ContractError(
            f"All {report.rows:,} rows break '{contract.key}': {said}.{where}",
            help=_way_out("Correct the data", dataset, declared),
        )
    return good, contract


def _way_out(first: str, dataset: str, declared: str | None) -> str:
    command = f"everloop data contract {quote(dataset)} --accept"
    if declared is not None and "@" in declared:
        return f"{first}, or if the data changed on purpose, accept them as a new version: {command}"
    return f"{first}, edit {_file(dataset, declared)}, or if the data changed on purpose: {command}"


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
    """The contract that a dataset is held to, from its file or the store; None where none has been inferred yet.

    Raises:
        NotFoundError: a declared contract is not there.
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
        raise NotFoundError(f"There is no contract file '{path}'.", help="Leave contract= out to have one inferred.")
    return None


def write_contract(contract: Contract, declared: str | None) -> Path:
    """Write a contract to its file in the project, whole or not at all."""
    from everloop.data import contract_to_toml
    from everloop.data.sources.file_states import project_folder

    path = project_folder() / _file(contract.dataset, declared)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(contract_to_toml(contract), encoding="utf-8")
    part.replace(path)
    return path


def labelled_rows(table: pl.DataFrame, dataset: str, target: str, others: Sequence[str]) -> pl.DataFrame:
    """The rows whose target is known.

    Raises:
        DataError: the table lacks the target or one of `others`, or has no such row.
    """
    import polars as pl

    from everloop.data.table_inputs import nearest

    if target not in table.columns:
        raise DataError(
            f"The table of '{dataset}' has no target '{target}'.",
            help=f"{nearest(target, table.columns)} Name it in loop.py: el.Dataset(…, target=…)",
        )
    missing = [name for name in others if name not in table.columns]
    if missing:
        raise DataError(
            f"The table of '{dataset}' has no column '{missing[0]}'.", help=nearest(missing[0], table.columns)
        )
    known = table.filter(pl.col(target).is_not_null())
    if known.height == 0:
        what = "has no rows" if table.height == 0 else f"has {table.height:,} rows, but no label in '{target}'"
        raise DataError(f"The table of '{dataset}' {what}.", help="See what the step before it returned.")
    return known


def declared_contract(contract: object) -> str | None:
    """What `Dataset.contract` names: a contract's key, or the path of its TOML file."""
    if contract is None or isinstance(contract, str):
        return contract
    return contract.key if isinstance(contract, Contract) else str(contract)


def _file(dataset: str, declared: str | None) -> str:
    return declared or str(Path(FOLDER) / f"{dataset}.toml")


def _tell(store: Store, dataset: str, contract: Contract, report: ContractReport, run: str | None) -> None:
    told = [
        {"column": one.column, "rule": one.rule, "severity": one.severity, "rows": one.rows, "message": one.message}
        for one in (*report.errors, *report.warnings)[:_TOLD]
    ]
    store.records.append_event(
        "contract_broken" if report.errors else "contract_bent",
        "contract",
        contract.id,
        contract.key,
        {"dataset": dataset, "rows": report.rows, "bad_rows": report.bad_rows, "violations": told,
         "more": max(0, len(report.violations) - _TOLD), "run": run},
    )  # fmt: skip
