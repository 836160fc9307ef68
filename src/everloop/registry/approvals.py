"""Approvals (the four-eyes principle): a guarded alias moves only after other people have approved the move.

    request_alias -> open -> approved -> applied
                          -> rejected    one rejection is enough
                          -> withdrawn   by the person who made the request
                          -> void        the alias has moved in the meantime

A request names one version and the version that held the alias at that time. If the alias moves in any other way, the
request becomes void for good, even if the old holder comes back; make a new one. `set_alias` checks the approvals
before it moves a guarded alias. A rollback to the version that held the alias before needs no new approval: that
version was approved once, and a rollback must not wait for office hours. This works once, not back and forth.

People approve, not credentials: a request made with a password and an approval given with a token of the same user
come from one person.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, TrustError, UsageError
from everloop.records import Alias, AliasPolicy, AliasRequest, Json, ModelVersion, Vote
from everloop.registry.history import last_move
from everloop.registry.model_versions import check_names, find_alias, get_version

if TYPE_CHECKING:
    from everloop.stores import Store

MOST_APPROVALS = 10


class ApprovalError(ConflictError):
    """The alias is guarded by a policy, and too few people have approved the move."""


def person_of(actor: str) -> str:
    """Return the person behind an actor: `user:ada` for `user:ada` and for `user:ada/ci`, Ada's token `ci`."""
    return actor.partition("/")[0]


def find_policy(store: Store, model: str, alias: str) -> AliasPolicy | None:
    """Return the policy that guards `model@alias`, or None."""
    found = store.records.find(AliasPolicy, ("key", "=", f"{model}@{alias}"), limit=1)
    return found[0] if found else None


def set_policy(store: Store, model: str, alias: str, approvals: int) -> AliasPolicy | None:
    """Set how many other people must approve before the alias moves; 0 removes the policy.

    Raises:
        UsageError: the number is below 0 or above 10, or a name is invalid.
    """
    check_names(model, alias)
    if not 0 <= approvals <= MOST_APPROVALS:
        raise UsageError(
            f"A policy cannot require {approvals} approvals.", help=f"Give a number from 0 to {MOST_APPROVALS}."
        )
    with store.records.transaction():
        known = find_policy(store, model, alias)
        if approvals == 0:
            if known is not None:
                store.records.delete(AliasPolicy, known.id, verb="policy_lifted")
            return None
        if known is None:
            made = store.new(AliasPolicy, model=model, alias=alias, approvals=approvals)
            store.records.put(made, verb="policy_set", data={"approvals": approvals})
            return made
        changed = replace(known, approvals=approvals)
        return store.records.update(changed, verb="policy_set", data={"approvals": approvals})[0]


def request_alias(store: Store, model: str, alias: str, version_key: str, reason: str = "") -> AliasRequest:
    """Request approval to move an alias to a version, in the name of the store's actor.

    If the same person has the same request open already, that one is returned.

    Raises:
        NotFoundError: there is no such version.
        UsageError: the version belongs to another model, or holds the alias already.
        ConflictError: the version is archived.
    """
    check_names(model, alias)
    with store.records.transaction():
        version = check_usable(get_version(store, version_key))
        held = find_alias(store, model, alias)
        holder = held.version if held else None
        if version.model != model or version.key == holder:
            problem = f"is not a version of '{model}'" if version.model != model else f"is '{model}@{alias}' already"
            raise UsageError(f"'{version.key}' {problem}.", help=f"See: everloop models ls {model}")
        for known in list_requests(store, model, alias, state="open"):
            same = known.version == version.key and known.holder == holder
            if same and person_of(known.asked_by) == person_of(store.actor):
                return known
        made = store.new(
            AliasRequest,
            model=model,
            alias=alias,
            version=version.key,
            holder=holder,
            asked_by=store.actor,
            reason=reason,
        )
        store.records.put(made, verb="requested", data=_about(made, reason))
        return made


def list_requests(
    store: Store, model: str | None = None, alias: str | None = None, *, state: str | None = None
) -> list[AliasRequest]:
    """Return the requests that match, newest first."""
    terms = [(name, "=", value) for name, value in (("model", model), ("alias", alias), ("state", state)) if value]
    return store.records.find(AliasRequest, *terms, order="-id")  # type: ignore[arg-type]


def get_request(store: Store, id: str) -> AliasRequest:
    """Return the request with this id, or the only one whose id begins with it.

    Raises:
        NotFoundError: no id begins with it, or several do.
    """
    found = store.records.find(AliasRequest, ("id", "prefix", id), limit=2) if id else []
    if len(found) == 1:
        return found[0]
    problem = f"Several requests begin with '{id}'." if found else f"There is no request '{id}'."
    raise NotFoundError(problem, help="See: everloop models requests --all")


def approve(store: Store, request_id: str, reason: str = "") -> AliasRequest:
    """Approve a request in the name of the store's actor. The last approval that is needed makes it `approved`.

    Raises:
        ConflictError: the request is not open (the alias has moved, say), the version is archived or deleted, or the
            actor has approved already.
        TrustError: the actor made the request.
    """
    return _vote(store, request_id, approve=True, reason=reason)


def reject(store: Store, request_id: str, reason: str = "") -> AliasRequest:
    """Reject a request in the name of the store's actor. This ends it."""
    return _vote(store, request_id, approve=False, reason=reason)


def withdraw(store: Store, request_id: str, reason: str = "") -> AliasRequest:
    """Withdraw a request that the store's actor has made.

    Raises:
        ConflictError: the request has ended already.
        TrustError: another person made it.
    """
    with store.records.transaction():
        request = get_request(store, request_id)
        if person_of(request.asked_by) != person_of(store.actor):
            raise TrustError(
                f"You ({store.actor}) cannot withdraw a request that {request.asked_by} made.",
                help="Reject it instead: everloop models reject ID",
            )
        if request.state not in ("open", "approved"):
            raise ConflictError(f"The request has ended already: {request.state}.")
        ended = replace(request, state="withdrawn")
        return store.records.update(ended, verb="withdrawn", data=_about(ended, reason))[0]


def clear_move(store: Store, model: str, alias: str, version: ModelVersion, held: Alias | None) -> dict[str, Json]:
    """Use up the approved request that allows a guarded alias to move. Does nothing if there is no policy.

    Called by `set_alias` inside its transaction.

    Returns:
        Fields for the event of the move: the request and who approved it, or `way_back` for a rollback.

    Raises:
        ApprovalError: too few people have approved the move.
    """
    policy = find_policy(store, model, alias)
    if policy is None:
        return {}
    holder = held.version if held else None
    for request in list_requests(store, model, alias, state="approved"):
        approvers = _approvers(request)
        if request.version == version.key and request.holder == holder and len(approvers) >= policy.approvals:
            store.records.update(replace(request, state="applied"), verb="applied", data=_about(request, ""))
            return {"request": request.id, "asked_by": request.asked_by, "approved_by": list(approvers)}
    move = last_move(store, model, alias)
    if move is not None and not move.data.get("way_back"):
        came_from, led_to = move.data.get("previous"), move.data.get("version")
        if came_from == version.key and led_to == holder:
            return {"way_back": True}
    people = f"{policy.approvals} other {'person has' if policy.approvals == 1 else 'people have'}"
    raise ApprovalError(
        f"'{model}@{alias}' is guarded: it moves to {version.key} only after {people} approved that.",
        help=f"Request it: everloop models promote {version.key} --alias {alias}. "
        "Others approve it: everloop models approve ID",
    )


def void_requests(
    store: Store,
    model: str,
    alias: str | None = None,
    *,
    version: str | None = None,
    reason: str = "the alias has moved",
) -> None:
    """End the open requests for an alias that has moved, for a version that is archived or deleted, or for a model.

    Call it inside the transaction that makes the change.
    """
    for request in list_requests(store, model, alias):
        if request.state in ("open", "approved") and version in (None, request.version):
            ended = replace(request, state="void")
            store.records.update(ended, verb="void", data=_about(request, reason))


def check_usable(version: ModelVersion) -> ModelVersion:
    """Return the version if it is not archived.

    Raises:
        ConflictError: it is archived.
    """
    if version.state == "archived":
        raise ConflictError(
            f"'{version.key}' is archived.", help=f"Restore it first: everloop models unarchive {version.key}"
        )
    return version


def _vote(store: Store, request_id: str, *, approve: bool, reason: str) -> AliasRequest:
    with store.records.transaction():
        request = get_request(store, request_id)
        if request.state != "open":
            raise ConflictError(
                f"The request is not open any more: {request.state}.", help="See: everloop models requests --all"
            )
        voter = person_of(store.actor)
        if approve and person_of(request.asked_by) == voter:
            raise TrustError(
                f"You cannot approve your own request ({store.actor} made it).", help="Another person must approve it."
            )
        if approve and any(person_of(vote.by) == voter and vote.approve for vote in request.votes):
            raise ConflictError(
                f"{store.actor} has approved this request already.", help="Another person must approve it too."
            )
        if approve:
            _check_version(store, request)
        policy = find_policy(store, request.model, request.alias)
        vote = Vote(by=store.actor, at=store.now(), approve=approve, reason=reason)
        voted = replace(request, votes=(*request.votes, vote))
        if not approve:
            voted = replace(voted, state="rejected")
        elif len(_approvers(voted)) >= (policy.approvals if policy else 1):
            voted = replace(voted, state="approved")
        verb = {"open": "agreed", "approved": "approved", "rejected": "rejected"}[voted.state]
        return store.records.update(voted, verb=verb, data=_about(voted, reason))[0]


def _about(request: AliasRequest, reason: str) -> dict[str, Json]:
    """Return the fields that every event of a request has, so that its readers need not look the request up."""
    return {"alias": f"{request.model}@{request.alias}", "version": request.version, "reason": reason}


def _approvers(request: AliasRequest) -> tuple[str, ...]:
    """Return the actors who have approved, one for each person, without the one who made the request."""
    actors = {person_of(vote.by): vote.by for vote in request.votes if vote.approve}
    actors.pop(person_of(request.asked_by), None)
    return tuple(sorted(actors.values()))


def _check_version(store: Store, request: AliasRequest) -> None:
    try:
        check_usable(get_version(store, request.version))
    except NotFoundError as error:
        raise ConflictError(f"'{request.version}' has been deleted.", help="Reject the request.") from error
