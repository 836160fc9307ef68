"""Data that changed on purpose: the contract follows them, and an event says what changed in it."""

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
    """A contract as the data of today ask for it. `changes` is empty where they keep the one that there is."""

    loop: str | None
    """Name of the loop whose table it is; None for a dataset that is kept by hand."""
    contract: Contract
    """Not stored yet where there are changes."""
    before: str | None
    """Key of the contract until now, if there is one."""
    changes: tuple[ContractChange, ...]
    declared: str | None = None


def propose_contract(store: Store, dataset: str, loop: Loop | None = None) -> ContractProposal:
    """What accepting the data of today would change in a dataset's contract.

    Args:
        loop: whose steps give the table; without one the newest snapshot of the dataset is it.

    Raises:
        NotFoundError: without a loop, there is no snapshot of that name.
        EverloopError: a step failed.
    """
    from everloop.data import adapt_contract, find_contract, get_snapshot, infer_contract, load_snapshot
    from everloop.data.contracts.project_contracts import declared_contract, find_project_contract, labelled_rows

    declared: str | None = None
    target: str | None
    if loop is not None:
        declared = declared_contract(loop.data.contract)
        goal, time, key = loop.data.target, loop.data.time, loop.data.key
        others = [name for name in (time, key) if name is not None]
        rows, target = labelled_rows(_table_of(loop, store), dataset, goal, others), goal
        kept = find_project_contract(store, dataset, declared)
    else:
        snapshot = get_snapshot(dataset, store)
        rows = load_snapshot(snapshot, store).collect()
        target, time, key = snapshot.target, snapshot.time, snapshot.entity
        kept = find_contract(dataset, store)
    name = loop.name if loop is not None else None
    if kept is None:
        inferred = infer_contract(rows, dataset, store, target=target, time=time, key=key)
        return ContractProposal(name, inferred, None, (), declared)
    adapted, changes = adapt_contract(kept, rows, store, target=target, time=time, key=key, now=store.now())
    return ContractProposal(name, adapted, kept.key, changes, declared)


def accept_contract(store: Store, proposal: ContractProposal) -> tuple[Contract, Path | None]:
    """Store what was proposed, write it to the project's file, and say so in an event.

    Returns:
        The contract, and its file; None where it has none.
    """
    from everloop.data import save_contract
    from everloop.data.contracts.project_contracts import write_contract

    stored = save_contract(proposal.contract, store)
    path = None
    if proposal.loop is not None and not (proposal.declared and "@" in proposal.declared):
        path = write_contract(stored, proposal.declared)
    if proposal.changes or proposal.before is None:
        told = [asdict(change) for change in proposal.changes]
        reason = "; ".join(f"{one.kind} {one.column or ''}".strip() for one in proposal.changes)
        data = {"dataset": stored.dataset, "before": proposal.before, "changes": told, "reason": reason}
        store.records.append_event("contract_accepted", "contract", stored.id, stored.key, data)
    return stored, path


def find_loop(store: Store, loops: dict[str, Loop], dataset: str) -> Loop | None:
    """The loop whose dataset has this name; None for one that is kept by hand.

    Raises:
        NotFoundError: it is neither.
    """
    from everloop.records import Snapshot

    named = {loop.data.name or loop.name: loop for loop in loops.values()}
    if dataset in named:
        return named[dataset]
    if store.records.find(Snapshot, ("dataset", "=", dataset), limit=1):
        return None
    listed = f"Datasets of the project's loops: {', '.join(named)}." if named else "See: everloop data ls"
    raise NotFoundError(f"There is no dataset '{dataset}'.", help=listed)


def _table_of(loop: Loop, store: Store) -> pl.DataFrame:
    """What the loop's steps give now; those that have not changed are taken from the cache."""
    from everloop.data.table_inputs import as_eager
    from everloop.loop.stages import graph_of
    from everloop.pipeline import Step, run_graph
    from everloop.tracking import start_run

    source = loop.data.source
    assert isinstance(source, Step)  # noqa: S101 - `graph_of` refuses anything else
    graph = graph_of(loop)
    # Not a turn of the loop: triggers count those by the loop's name.
    with start_run(f"{loop.name} contract", store=store, trigger="contract") as run:
        done = run_graph(graph, store, run=run, targets=[source.name])
    return as_eager(done.value(source.name))
