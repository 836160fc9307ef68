"""Save a contract that a person has edited as text: in the store, and in the project's file if it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.data.contracts.contract import find_contract, save_contract
from everloop.data.contracts.contract_toml import contract_from_toml, contract_to_toml, load_contract
from everloop.data.contracts.project_contracts import FOLDER
from everloop.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.records import Contract
    from everloop.stores import Store


def edit_contract(
    store: Store,
    dataset: str,
    text: str,
    *,
    expect: str | None = None,
    folder: Path | None = None,
    reason: str = "",
) -> tuple[Contract, Path | None]:
    """Make an edited text the newest contract of a dataset, and record the change in an event.

    A loop reads its contract from the project's file, so that file is changed as well if `folder` has one for the
    dataset. Comments in the text are kept there.

    Args:
        text: a contract as TOML.
        expect: key of the contract that was edited. If the dataset has a newer one by now, nothing is saved.
        folder: the project's folder.

    Returns:
        The stored contract, and the path of the file that was written.

    Raises:
        UsageError: the text is not a contract, or is about another dataset.
        ConflictError: another person has changed the contract in the meantime.
    """
    edited = contract_from_toml(text, store)
    if edited.dataset != dataset:
        raise UsageError(
            f"The text is the contract of '{edited.dataset}', not of '{dataset}'.",
            help=f'Write dataset = "{dataset}" at its top.',
        )
    newest = find_contract(dataset, store)
    if expect is not None and (newest is None or newest.key != expect):
        raise ConflictError(
            f"The contract of '{dataset}' has been changed in the meantime: "
            f"it is {newest.key if newest else 'gone'} now, and you edited {expect}.",
            help="Copy your changes, load the contract again and repeat them.",
        )
    stored = save_contract(edited, store)
    path = _file_of(folder, dataset, store) if folder is not None else None
    if path is not None:
        part = path.with_name(f".{path.name}.part")
        part.write_text(contract_to_toml(stored, before=text), encoding="utf-8")
        part.replace(path)
    if newest is None or stored.key != newest.key:
        data = {"dataset": dataset, "before": newest.key if newest else None, "reason": reason}
        store.records.append_event("contract_edited", "contract", stored.id, stored.key, data)
    return stored, path


def _file_of(folder: Path, dataset: str, store: Store) -> Path | None:
    """Return the file of a dataset's contract in a project: found by what it says, not by a name from outside."""
    for path in sorted((folder / FOLDER).glob("*.toml")):
        try:
            if load_contract(path, store).dataset == dataset:
                return path
        except UsageError:
            continue
    return None
