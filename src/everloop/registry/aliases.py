"""Aliases that move between a model's versions, each move by compare-and-set and kept as an event.

`delays@champion` is held by one version at a time. Of two who move it at once with the same `expect`, one succeeds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import Alias, Json
from everloop.registry.approvals import ApprovalError, check_usable, clear_move, find_policy, void_requests
from everloop.registry.history import last_move
from everloop.registry.model_versions import check_names, find_alias, get_version, what_exists

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.stores import Store

_ANYONE = object()
ANYONE: str = _ANYONE  # type: ignore[assignment]
"""The default of `set_alias(expect=…)`: whoever holds it now."""


def set_alias(
    store: Store,
    model: str,
    alias: str,
    version_key: str,
    *,
    reason: str = "",
    evidence: Mapping[str, Json] | None = None,
    expect: str | None = ANYONE,
) -> Alias:
    """Move an alias to a version; an event keeps reason and evidence. Moving it where it is changes nothing.

    Args:
        version_key: key of one of the model's versions, `delays@3`.
        expect: key of the version that must hold the alias now, or None: nobody must. Without it, anybody may.

    Raises:
        ApprovalError: a policy guards the alias, and not enough others have agreed.
        ConflictError: another version holds the alias than was expected, or the version is archived.
        NotFoundError: no such version.
        UsageError: a name that could be taken for a version's number, or a version of another model.
    """
    check_names(model, alias)
    with store.records.transaction():
        # Read in here: what was read before could be archived or deleted by now.
        version = get_version(store, version_key)
        if version.model != model:
            raise UsageError(f"'{version.key}' is no version of '{model}'.", help=what_exists(store, model))
        held = check_holder(store, model, alias, expect)
        holder = held.version if held else None
        if held is not None and holder == version.key:
            return held
        check_usable(version)
        data = {
            "version": version.key,
            "previous": holder,
            "reason": reason,
            "evidence": dict(evidence or {}),
            **clear_move(store, model, alias, version, held),
        }
        void_requests(store, model, alias)
        if held is None:
            made = store.new(Alias, model=model, name=alias, version=version.key)
            store.records.put(made, verb="alias_set", data=data)
            return made
        return store.records.update(replace(held, version=version.key), verb="alias_set", data=data)[0]


def check_holder(store: Store, model: str, alias: str, expect: str | None = ANYONE) -> Alias | None:
    """The alias as it stands, if the expected version holds it. Ask inside the transaction that moves it.

    Raises:
        ConflictError: another version holds it.
    """
    held = find_alias(store, model, alias)
    holder = held.version if held else None
    if expect is not ANYONE and holder != expect:
        raise ConflictError(
            f"'{model}@{alias}' is held by {holder or 'nobody'}, not by {expect or 'nobody'}.",
            help=f"Look again and decide anew. See: everloop models history {model}@{alias}",
        )
    return held


def take_back_alias(store: Store, model: str, alias: str, *, reason: str = "") -> Alias:
    """Give an alias back to the version that held it before; doing it again goes forth again.

    Raises:
        ApprovalError: a policy guards the alias, and the last move was a way back already.
        ConflictError: the version before is archived.
        NotFoundError: nobody holds the alias, nobody held it before, or the version before is gone.
    """
    with store.records.transaction():
        held = find_alias(store, model, alias)
        move = last_move(store, model, alias)
        if held is None or move is None:
            raise NotFoundError(f"There is no '{model}@{alias}'. {what_exists(store, model)}")
        before = move.data.get("previous")
        if not isinstance(before, str):
            raise NotFoundError(
                f"'{held.version}' is the first to hold '{held.key}': there is none to go back to.",
                help=f"Move it to another: everloop models promote {model}@N --alias {alias}",
            )
        return set_alias(
            store, model, alias, before, reason=reason, evidence={"rolled_back": held.version}, expect=held.version
        )


def remove_alias(store: Store, model: str, alias: str, *, reason: str = "") -> None:
    """Take an alias away; its history stays.

    Raises:
        ApprovalError: a policy guards it: lift that first.
        NotFoundError: nobody holds it.
    """
    with store.records.transaction():
        held = find_alias(store, model, alias)
        if held is None:
            raise NotFoundError(f"There is no '{model}@{alias}'. {what_exists(store, model)}")
        if find_policy(store, model, alias) is not None:
            raise ApprovalError(
                f"'{model}@{alias}' is guarded by a policy and cannot be removed.",
                help=f"An admin may lift it: everloop models policy {model}@{alias} --approvals 0",
            )
        void_requests(store, model, alias)
        store.records.delete(Alias, held.id, verb="alias_removed", data={"version": held.version, "reason": reason})
