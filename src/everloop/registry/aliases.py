"""Aliases that move between the versions of a model. Each move is a compare-and-set and is recorded as an event.

One version holds `delays@champion` at a time. If two callers move it at once with the same `expect`, one succeeds.
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
"""The default of `set_alias(expect=…)`: the current holder does not matter."""


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
    """Move an alias to a version, and record reason and evidence in an event. Does nothing if it is there already.

    Args:
        version_key: key of one of the model's versions, `delays@3`.
        expect: key of the version that must hold the alias now; None if it must not be set. By default the current
            holder is not checked.

    Raises:
        ApprovalError: a policy guards the alias, and too few people have approved the move.
        ConflictError: the alias is not held by the expected version, or the new version is archived.
        NotFoundError: there is no such version.
        UsageError: the alias reads like a version number, or the version belongs to another model.
    """
    check_names(model, alias)
    with store.records.transaction():
        # Read inside the transaction: a version read earlier could be archived or deleted by now.
        version = get_version(store, version_key)
        if version.model != model:
            raise UsageError(f"'{version.key}' is not a version of '{model}'.", help=what_exists(store, model))
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
    """Return the alias if the expected version holds it; None if it is not set.

    Call it inside the transaction that moves the alias.

    Raises:
        ConflictError: another version holds it.
    """
    held = find_alias(store, model, alias)
    holder = held.version if held else None
    if expect is not ANYONE and holder != expect:
        raise ConflictError(
            # Over HTTP and on the command line, `nobody` stands for an alias that is not set.
            f"'{model}@{alias}' is held by {holder or 'nobody'}, not by {expect or 'nobody'}.",
            help=f"It has moved. Check its history and decide again: everloop models history {model}@{alias}",
        )
    return held


def take_back_alias(store: Store, model: str, alias: str, *, reason: str = "") -> Alias:
    """Move an alias back to the version that held it before. A second call moves it forward again.

    Raises:
        ApprovalError: a policy guards the alias, and its last move was a rollback already.
        ConflictError: the earlier version is archived.
        NotFoundError: the alias is not set, had no earlier version, or that version is deleted.
    """
    with store.records.transaction():
        held = find_alias(store, model, alias)
        move = last_move(store, model, alias)
        if held is None or move is None:
            raise NotFoundError(f"There is no '{model}@{alias}'. {what_exists(store, model)}")
        before = move.data.get("previous")
        if not isinstance(before, str):
            raise NotFoundError(
                f"'{held.version}' is the first to hold '{held.key}', so there is no earlier version to go back to.",
                help=f"Move it to another version: everloop models promote {model}@N --alias {alias}",
            )
        return set_alias(
            store, model, alias, before, reason=reason, evidence={"rolled_back": held.version}, expect=held.version
        )


def remove_alias(store: Store, model: str, alias: str, *, reason: str = "") -> None:
    """Remove an alias. Its history stays.

    Raises:
        ApprovalError: a policy guards it. Lift the policy first.
        NotFoundError: the alias is not set.
    """
    with store.records.transaction():
        held = find_alias(store, model, alias)
        if held is None:
            raise NotFoundError(f"There is no '{model}@{alias}'. {what_exists(store, model)}")
        if find_policy(store, model, alias) is not None:
            raise ApprovalError(
                f"'{model}@{alias}' is guarded by a policy and cannot be removed.",
                help=f"An admin can lift the policy: everloop models policy {model}@{alias} --approvals 0",
            )
        void_requests(store, model, alias)
        store.records.delete(Alias, held.id, verb="alias_removed", data={"version": held.version, "reason": reason})
