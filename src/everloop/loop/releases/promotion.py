"""Decisions of people that give all the traffic to a version at once: promote, move the champion alias, roll back.

Each is one transaction, as the steps of a rollout are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import NotFoundError
from everloop.loop.releases.rollout import (
    CHAMPION,
    abort_release,
    champion_of,
    decided,
    find_rolling,
    set_champion,
    set_routes,
    set_version_state,
    start_release,
)
from everloop.records import Alias, EndpointRecord, ModelVersion, Release
from everloop.registry.aliases import ANYONE, check_holder

if TYPE_CHECKING:
    from everloop.stores import Store


def promote(store: Store, endpoint: str, version: ModelVersion, reason: str) -> Release:
    """Give a version all the traffic now, by a person's decision instead of evidence.

    Returns:
        The new release. If the version has all the traffic already, the release that gave it.

    Raises:
        ApprovalError: a policy on the champion requires more approvals.
        ConflictError: the version has no package, or is archived.
    """
    with store.records.transaction():
        endpoints = store.records.find(EndpointRecord, ("name", "=", endpoint), limit=1)
        answering = [route.version for route in endpoints[0].routes if route.role != "shadow"] if endpoints else []
        if answering == [version.key] and champion_of(store, version.model) == version.key:
            completed = _completed(store, endpoint, version.key)
            if completed:
                return completed[0]
        return start_release(store, endpoint, version, steps=(100.0,), trigger="promote", reason=reason)


def move_alias(
    store: Store, model: str, alias: str, version_key: str, reason: str, *, expect: str | None = ANYONE
) -> Alias:
    """Move an alias as `set_alias` does. If it is the champion of an endpoint, the traffic moves with it."""
    from everloop.registry import find_alias, get_version, set_alias

    with store.records.transaction():
        held = check_holder(store, model, alias, expect)
        version = get_version(store, version_key)
        endpoints = store.records.find(EndpointRecord, ("model", "=", model), limit=1) if alias == CHAMPION else []
        if endpoints and version.model == model and (held is None or held.version != version.key):
            promote(store, endpoints[0].name, version, reason)
            moved = find_alias(store, model, alias)
            if moved is not None:
                return moved
        return set_alias(store, model, alias, version.key, reason=reason, expect=expect)


def roll_back(store: Store, endpoint: str, reason: str) -> Release:
    """Undo the newest release: end its rollout, or give the traffic back to the previous champion.

    Raises:
        NotFoundError: nothing was released to the endpoint, or there is no previous champion.
    """
    with store.records.transaction():
        current = find_rolling(store, endpoint)
        if current is not None:
            return abort_release(store, current, reason)
        record = store.records.get(EndpointRecord, endpoint)
        champion = champion_of(store, record.model)
        completed = _completed(store, endpoint, champion) or _completed(store, endpoint)
        if not completed:
            raise NotFoundError(f"Nothing has been released to endpoint '{endpoint}'.", help="See: everloop release ls")
        # A release that gave the champion its traffic back changed no version, so the release before it is undone.
        last = next((release for release in completed if release.previous != release.candidate), completed[0])
        if last.previous is None:
            raise NotFoundError(
                f"'{last.candidate}' is the first champion of '{endpoint}', so there is none to go back to.",
                help="Promote another version with: everloop models promote MODEL@N",
            )
        ended = decided(last, store, "roll_back", 0.0, reason, state="rolled_back")
        (ended,) = store.records.update(ended, verb="rolled_back", data={"reason": reason})
        set_champion(store, last.previous, reason, {"rolled_back": last.candidate})
        set_version_state(store, last.candidate, "rolled_back")
        set_routes(store, last, last.previous, None)
        return ended


def _completed(store: Store, endpoint: str, candidate: str | None = None) -> list[Release]:
    """Return the releases that took all the traffic, newest first."""
    conditions = [("candidate", "=", candidate)] if candidate else []
    return store.records.find(
        Release,
        ("endpoint", "=", endpoint),
        ("state", "=", "completed"),
        *conditions,  # type: ignore[arg-type]
        order="-created_at",
    )


__all__ = ["move_alias", "promote", "roll_back"]
