"""A dataset's contract in a project: a TOML file that is inferred once, edited by people, and checked each time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import ContractError, NotFoundError
from everloop.records import Contract

if TYPE_CHECKING:
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
) -> tuple[pl.DataFrame, Contract]:
    """The rows that keep the contract, and the contract.

    Rows that break it are kept as a snapshot of `quarantine/<dataset>`; what broke is an event. Without a contract
    yet, one is inferred from this table and written to `contracts/<dataset>.toml`.

    Args:
        declared: a contract's key or the path of its TOML file; default: the dataset's own file.

    Raises:
        ContractError: the table's columns do not fit, or no row keeps the contract.
        NotFoundError: a declared contract is not there.
    """
    from everloop.data import check_contract, quarantine, record_findings

    contract = _contract(store, table, dataset, target=target, time=time, key=key, declared=declared)
    try:
        report = check_contract(table, contract, now=store.now())
    except ContractError as error:
        way = f"Correct the step, or edit {_file(dataset, declared)}."
        raise ContractError(error.message, help=f"{error.help} {way}" if error.help else way) from error
    if report.violations:
        _tell(store, dataset, contract, report)
        record_findings(report, dataset, store)
    if report.errors and not report.bad_rows:
        raise ContractError(f"The table breaks '{contract.key}': {report.errors[0].message}.")
    if not report.bad_rows:
        return table, contract
    kept = quarantine(report, dataset, store)
    good = report.good.collect()
    if good.height == 0:
        said = "; ".join(violation.message for violation in report.errors[:3])
        where = f" They are kept as '{kept.key}'." if kept else ""
        raise ContractError(
            f"All {report.rows:,} rows break '{contract.key}': {said}.{where}",
            help=f"Correct the data, or edit {_file(dataset, declared)}.",
        )
    return good, contract


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
    from everloop.data import contract_from_toml, contract_to_toml, files_state, infer_contract, save_contract
    from everloop.data.file_states import project_folder
    from everloop.stores import observe

    if declared is not None and "@" in declared:
        return store.records.get(Contract, declared)
    name = _file(dataset, declared)
    path = project_folder() / name
    if path.is_file():
        contract = save_contract(contract_from_toml(path.read_text(encoding="utf-8"), store), store)
    elif declared is not None:
        raise NotFoundError(f"There is no contract file '{path}'.", help="Leave contract= out to have one inferred.")
    else:
        contract = save_contract(infer_contract(table, dataset, store, target=target, time=time, key=key), store)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(contract_to_toml(contract), encoding="utf-8")
        part.replace(path)
    observe("files", {"patterns": [name]}, files_state({"patterns": [name]}))
    return contract


def _file(dataset: str, declared: str | None) -> str:
    return declared or str(Path(FOLDER) / f"{dataset}.toml")


def _tell(store: Store, dataset: str, contract: Contract, report: ContractReport) -> None:
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
         "more": max(0, len(report.violations) - _TOLD)},
    )  # fmt: skip
