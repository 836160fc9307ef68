"""What people decide about a release under way: pause, resume, approve, reject. Each decision is an event."""

from __future__ import annotations

from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING

from everloop.errors import ConflictError
from everloop.loop.releases.rollout import CHAMPION, abort_release, check_rolling, decided

if TYPE_CHECKING:
    from everloop.records import Release
    from everloop.stores import Store


def pause_release(store: Store, release: Release, reason: str) -> Release:
    """Pause a release: it keeps its share and takes no step forward. It is still rolled back on harm.

    Raises:
        ConflictError: it has ended, is paused already, or another person decided in the meantime.
    """
    check_rolling(release)
    if release.paused:
        raise ConflictError(
            f"The release of {release.candidate} to '{release.endpoint}' is paused already.",
            help=f"Resume it with: everloop release resume {quote(release.endpoint)}",
        )
    paused = replace(decided(release, store, "pause", release.percent, reason), paused=True)
    return store.records.update(paused, verb="paused", data={"reason": reason})[0]


def resume_release(store: Store, release: Release, reason: str) -> Release:
    """Resume a paused release.

    Raises:
        ConflictError: it has ended, is not paused, or another person decided in the meantime.
    """
    check_rolling(release)
    if not release.paused:
        raise ConflictError(
            f"The release of {release.candidate} to '{release.endpoint}' is not paused.",
            help=f"See: everloop release show {quote(release.endpoint)}",
        )
    resumed = replace(decided(release, store, "resume", release.percent, reason), paused=False)
    return store.records.update(resumed, verb="resumed", data={"reason": reason})[0]


def approve_release(store: Store, release: Release, reason: str) -> Release:
    """Approve that the candidate takes all the traffic, in the name of the store's actor.

    If a policy on the champion asks for approvals, this is one of them as well. The worker completes the release at its
    next tick, unless it is paused, a freeze window is open, or the evidence still has to prove success.

    Raises:
        ConflictError: it has ended, or the actor has approved it already.
        TrustError: a policy asks for approvals, and the actor has requested the move.
    """
    from everloop.registry import approve
    from everloop.registry.approvals import person_of

    check_rolling(release)
    if release.approved_by is not None and person_of(release.approved_by) == person_of(store.actor):
        raise ConflictError(
            f"You ({store.actor}) have approved the release of {release.candidate} already.",
            help=f"See: everloop release show {quote(release.endpoint)}",
        )
    with store.records.transaction():
        for request in _open_requests(store, release):
            approve(store, request, reason)
        approved = decided(release, store, "approve", release.percent, reason)
        approved = replace(approved, approved_by=release.approved_by or store.actor)
        return store.records.update(approved, verb="approved", data={"reason": reason})[0]


def reject_release(store: Store, release: Release, reason: str) -> Release:
    """Reject a release: the champion gets all the traffic, and open requests for approval end.

    Raises:
        ConflictError: it has ended, or another person decided in the meantime.
    """
    from everloop.registry import reject

    check_rolling(release)
    with store.records.transaction():
        for request in _open_requests(store, release):
            reject(store, request, reason)
        return abort_release(store, release, f"rejected: {reason}")


def _open_requests(store: Store, release: Release) -> list[str]:
    from everloop.registry import list_requests

    model = release.candidate.rpartition("@")[0]
    found = list_requests(store, model, CHAMPION, state="open")
    return [request.id for request in found if request.version == release.candidate]


__all__ = ["approve_release", "pause_release", "reject_release", "resume_release"]
