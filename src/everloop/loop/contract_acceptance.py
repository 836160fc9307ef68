"""Accept data that changed on purpose: adapt the contract to it, and record the changes in an event."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from everloop.data import ContractChange
    from everloop.loop.loop_definition import Loop
    from everloop.records import Contract
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class ContractProposal:
    """A contract that fits the current data. `changes` is empty if the data keep the existing contract."""

    loop: str | None
    """Name of the loop whose table it describes; None for a dataset that no loop produces."""
    contract: Contract
    """Not stored yet if there are changes."""
    before: str | None
    """Key of the existing contract, if there is one."""
    changes: tuple[ContractChange, ...]
    declared: str | None = None
    """The contract that loop.py names: a file, or the key of a stored contract."""


def propose_contract(store: Store, dataset: str, loop: Loop | None = None) -> ContractProposal:
    """Return how accepting the current data would change the contract of a dataset.

    Args:
        loop: the loop whose steps produce the table. Default: the newest snapshot of the dataset is used.

    Raises:
        NotFoundError: no loop is given, and the dataset has no snapshot.
        EverloopError: a step failed.
    """
    from everloop.data import adapt_contract, find_contract, get_snapshot, infer_contract, load_snapshot
    from everloop.data.contracts.project_contracts import declared_contract, find_project_contract, labelled_rows

    declared: str | None = None
    target: str | None
    if loop is not None:
        declared = declared_contract(loop.data.contract)
        time, key = loop.data.time, loop.data.key
        others = [name for name in (time, key) if name is not None]
        rows = labelled_rows(_table_of(loop, store), dataset, loop.data.target, others)
        target = loop.data.target
        existing = find_project_contract(store, dataset, declared)
    else:
        snapshot = get_snapshot(dataset, store)
        rows = load_snapshot(snapshot, store).collect()
        target, time, key = snapshot.target, snapshot.time, snapshot.entity
        existing = find_contract(dataset, store)
    name = loop.name if loop is not None else None
    if existing is None:
        inferred = infer_contract(rows, dataset, store, target=target, time=time, key=key)
        return ContractProposal(name, inferred, None, (), declared)
    adapted, changes = adapt_contract(existing, rows, store, target=target, time=time, key=key, now=store.now())
    return ContractProposal(name, adapted, existing.key, changes, declared)


def accept_contract(store: Store, proposal: ContractProposal) -> tuple[Contract, Path | None]:
    """Store a proposed contract, write it to the project's file, and record the changes in an event.

    Returns:
        The stored contract and the path of its file; None if it has no file.
    """
    from everloop.data import save_contract
    from everloop.data.contracts.project_contracts import write_contract

    stored = save_contract(proposal.contract, store)
    path = None
    if proposal.loop is not None and not (proposal.declared and "@" in proposal.declared):
        path = write_contract(stored, proposal.declared)
    if proposal.changes or proposal.before is None:
        changes = [asdict(change) for change in proposal.changes]
        reason = "; ".join(f"{one.kind} {one.column or ''}".strip() for one in proposal.changes)
        data = {"dataset": stored.dataset, "before": proposal.before, "changes": changes, "reason": reason}
        store.records.append_event("contract_accepted", "contract", stored.id, stored.key, data)
    return stored, path


def find_loop(store: Store, loops: dict[str, Loop], dataset: str) -> Loop | None:
    """Return the loop that produces a dataset; None if the dataset has snapshots but no loop produces it.

    Raises:
        NotFoundError: the dataset has neither a loop nor a snapshot.
    """
    from everloop.records import Snapshot

    by_dataset = {loop.data.name or loop.name: loop for loop in loops.values()}
    if dataset in by_dataset:
        return by_dataset[dataset]
    if store.records.find(Snapshot, ("dataset", "=", dataset), limit=1):
        return None
    listed = f"Datasets of the project's loops: {', '.join(by_dataset)}." if by_dataset else "See: everloop data ls"
    raise NotFoundError(f"There is no dataset '{dataset}'.", help=listed)


def _table_of(loop: Loop, store: Store) -> pl.DataFrame:
    """Return the table that the loop's steps produce now. Steps that have not changed are taken from the cache."""
    from everloop.data.table_inputs import as_eager
    from everloop.loop.stages import graph_of
    from everloop.pipeline import Step, run_graph
    from everloop.tracking import start_run

    source = loop.data.source
    assert isinstance(source, Step)  # noqa: S101 - `graph_of` refuses anything else
    graph = graph_of(loop)
    # No `loop=`: triggers would count this as a run of the loop.
    with start_run(f"{loop.name} contract", store=store, trigger="contract") as run:
        result = run_graph(graph, store, run=run, targets=[source.name])
    return as_eager(result.value(source.name))
