"""The history of aliases and versions, read from the events, so that nothing is missing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from everloop.records import Event, Json
    from everloop.stores import Store

ALIAS_SET = "alias_set"
_ENDS = frozenset({"deleted", "alias_removed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasTenure:
    """The time in which one version held an alias. `until` is None for the current holder."""

    version: str
    since: datetime
    until: datetime | None
    reason: str
    evidence: dict[str, Json]
    actor: str
    approved_by: tuple[str, ...] = ()
    """The actors who approved the move, if a policy guards the alias."""


def alias_history(store: Store, model: str, alias: str) -> list[AliasTenure]:
    """Return which version held an alias when and why, oldest first; empty if it was never set.

    If the alias was removed for a while, there is a gap between two tenures.
    """
    moves = [event for event in _events_of(store, f"{model}@{alias}") if _changes_holder(event)]
    tenures = []
    for event, later in zip_longest(moves, moves[1:]):
        if event.verb in _ENDS:
            continue
        tenures.append(
            AliasTenure(
                version=str(event.data["version"]),
                since=event.at,
                until=later.at if later else None,
                reason=str(event.data.get("reason", "")),
                evidence=dict(event.data.get("evidence") or {}),
                actor=event.actor,
                approved_by=tuple(event.data.get("approved_by") or ()),
            )
        )
    return tenures


def alias_at(store: Store, model: str, alias: str, moment: datetime) -> AliasTenure | None:
    """Return the tenure of an alias at a moment; None if it was not set then.

    Raises:
        UsageError: the moment has no timezone.
    """
    if moment.tzinfo is None:
        raise UsageError(
            f"The time {moment.isoformat()} has no timezone.", help="Write it with one: 2026-05-03T12:00Z."
        )
    for tenure in reversed(alias_history(store, model, alias)):
        if tenure.since <= moment:
            return tenure if tenure.until is None or moment < tenure.until else None
    return None


def version_history(store: Store, key: str) -> list[Event]:
    """Return every event about a version, oldest first: its changes, aliases, requests, approvals and rejections.

    A deleted version keeps its history.
    """
    found, seq = [], 0
    while events := store.records.events_since(seq, kinds=("model_version", "alias", "alias_request"), limit=10_000):
        seq = events[-1].seq
        for event in events:
            about = (event.data.get("version"), event.data.get("previous"))
            if (event.key == key) if event.kind == "model_version" else (key in about):
                found.append(event)
    return found


def last_move(store: Store, model: str, alias: str) -> Event | None:
    """Return the event of the alias's last move, or None if it was never set."""
    last = None
    for event in _events_of(store, f"{model}@{alias}"):
        if event.verb == ALIAS_SET:
            last = event
    return last


def _changes_holder(event: Event) -> bool:
    return event.verb in _ENDS or (event.verb == ALIAS_SET and "version" in event.data)


def _events_of(store: Store, key: str) -> Iterator[Event]:
    """Return every event of aliases with this key, oldest first; one set again after its removal is a new record."""
    seq = 0
    while events := store.records.events_since(seq, kinds=("alias",), limit=10_000):
        seq = events[-1].seq
        yield from (event for event in events if event.key == key)
