"""Four eyes: an alias that a policy guards moves only when others than the one who asks agree.

    request_alias -> open -> approved -> applied
                          -> rejected    one "no" is enough
                          -> withdrawn   by the one who asked
                          -> void        the alias has moved meanwhile

A request is about one version and the holder of that moment: when the alias moves by anything else, the request is
void for good and must be made anew, even if that holder comes back. `set_alias` looks here before it moves a guarded
alias. One way needs no new agreement: straight back to the version that held the alias before, as that one was agreed
upon and a rollback must not wait for an office to open; it can be taken once, not to and fro.

Eyes are people's, not credentials': who asks with a password and agrees with a token of his own is one person.
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
    """An alias is guarded, and not enough others have agreed."""


def person_of(actor: str) -> str:
    """Whose doing an actor's is: `user:ada` of both `user:ada` and `user:ada/ci`, where her token `ci` acts."""
    return actor.partition("/")[0]


def find_policy(store: Store, model: str, alias: str) -> AliasPolicy | None:
    """The policy that guards `model@alias`, or None."""
    found = store.records.find(AliasPolicy, ("key", "=", f"{model}@{alias}"), limit=1)
    return found[0] if found else None


def set_policy(store: Store, model: str, alias: str, approvals: int) -> AliasPolicy | None:
    """Say how many others must agree before the alias moves; 0 lifts the guard.

    Raises:
        UsageError: a number below 0 or above 10, or names that make no key.
    """
    check_names(model, alias)
    if not 0 <= approvals <= MOST_APPROVALS:
        raise UsageError(
            f"{approvals} approvals cannot be asked for.", help=f"Give a number from 0 to {MOST_APPROVALS}."
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
    """Ask the others to let an alias move to a version. The store's actor is who asks.

    Asking again for what is open already gives the open request.

    Raises:
        NotFoundError: no such version.
        UsageError: a version of another model, or one that holds the alias.
        ConflictError: the version is archived.
    """
    check_names(model, alias)
    with store.records.transaction():
        version = check_usable(get_version(store, version_key))
        held = find_alias(store, model, alias)
        holder = held.version if held else None
        if version.model != model or version.key == holder:
            problem = f"is no version of '{model}'" if version.model != model else f"is '{model}@{alias}' already"
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
    """Requests, newest first."""
    asked = [(name, "=", value) for name, value in (("model", model), ("alias", alias), ("state", state)) if value]
    return store.records.find(AliasRequest, *asked, order="-id")  # type: ignore[arg-type]


def get_request(store: Store, id: str) -> AliasRequest:
    """The request with this id, or with the only id that begins like this.

    Raises:
        NotFoundError: there is none, or there are several.
    """
    found = store.records.find(AliasRequest, ("id", "prefix", id), limit=2) if id else []
    if len(found) == 1:
        return found[0]
    problem = f"Several requests begin with '{id}'." if found else f"There is no request '{id}'."
    raise NotFoundError(problem, help="See: everloop models requests --all")


def approve(store: Store, request_id: str, reason: str = "") -> AliasRequest:
    """Agree, in the name of the store's actor. With the last voice that is needed the request is `approved`.

    Raises:
        ConflictError: it is not open, as where the alias has moved meanwhile, or the version is archived or gone, or
            the actor has voted already.
        TrustError: the actor is the one who asked.
    """
    return _vote(store, request_id, approve=True, reason=reason)


def reject(store: Store, request_id: str, reason: str = "") -> AliasRequest:
    """Disagree, which ends the request."""
    return _vote(store, request_id, approve=False, reason=reason)


def withdraw(store: Store, request_id: str, reason: str = "") -> AliasRequest:
    """Take one's own request back.

    Raises:
        ConflictError: it is over.
        TrustError: somebody else made it.
    """
    with store.records.transaction():
        request = get_request(store, request_id)
        if person_of(request.asked_by) != person_of(store.actor):
            raise TrustError(f"{request.asked_by} asked, not {store.actor}.", help="Reject it instead.")
        if request.state not in ("open", "approved"):
            raise ConflictError(f"The request is over: {request.state}.")
        ended = replace(request, state="withdrawn")
        return store.records.update(ended, verb="withdrawn", data=_about(ended, reason))[0]


def clear_move(store: Store, model: str, alias: str, version: ModelVersion, held: Alias | None) -> dict[str, Json]:
    """Let a guarded alias move, using up the agreement, or refuse; nothing to do where no policy stands.

    Called by `set_alias` inside its transaction.

    Returns:
        What the event of the move shall say: the request and who agreed, or that it is a way back.

    Raises:
        ApprovalError: not enough others have agreed.
    """
    policy = find_policy(store, model, alias)
    if policy is None:
        return {}
    holder = held.version if held else None
    for request in list_requests(store, model, alias, state="approved"):
        agreed = _voices(request)
        if request.version == version.key and request.holder == holder and len(agreed) >= policy.approvals:
            store.records.update(replace(request, state="applied"), verb="applied", data=_about(request, ""))
            return {"request": request.id, "asked_by": request.asked_by, "approved_by": list(agreed)}
    move = last_move(store, model, alias)
    if move is not None and not move.data.get("way_back"):
        came_from, led_to = move.data.get("previous"), move.data.get("version")
        if came_from == version.key and led_to == holder:
            return {"way_back": True}
    raise ApprovalError(
        f"'{model}@{alias}' moves only when {policy.approvals} other than who asks agree.",
        help=f"Ask for it: everloop models promote {version.key} --alias {alias}; others: everloop models approve ID",
    )


def void_requests(
    store: Store,
    model: str,
    alias: str | None = None,
    *,
    version: str | None = None,
    reason: str = "the alias has moved",
) -> None:
    """End what is asked for an alias that has just moved, or for a version that is going, or for a whole model; inside
    the transaction that does so."""
    for request in list_requests(store, model, alias):
        if request.state in ("open", "approved") and version in (None, request.version):
            ended = replace(request, state="void")
            store.records.update(ended, verb="void", data=_about(request, reason))


def check_usable(version: ModelVersion) -> ModelVersion:
    """The version, if it is not archived.

    Raises:
        ConflictError: it is.
    """
    if version.state == "archived":
        raise ConflictError(
            f"'{version.key}' is archived.", help=f"Take it back first: everloop models unarchive {version.key}"
        )
    return version


def _vote(store: Store, request_id: str, *, approve: bool, reason: str) -> AliasRequest:
    with store.records.transaction():
        request = get_request(store, request_id)
        if request.state != "open":
            raise ConflictError(
                f"The request is not open any more: {request.state}.", help="See: everloop models requests --all"
            )
        me = person_of(store.actor)
        if approve and person_of(request.asked_by) == me:
            raise TrustError(f"{store.actor} asked for this and cannot agree to it.", help="Somebody else must.")
        if approve and any(person_of(vote.by) == me and vote.approve for vote in request.votes):
            raise ConflictError(f"{store.actor} has agreed already.", help="Somebody else must agree, too.")
        if approve:
            _check_still_there(store, request)
        policy = find_policy(store, request.model, request.alias)
        vote = Vote(by=store.actor, at=store.now(), approve=approve, reason=reason)
        voted = replace(request, votes=(*request.votes, vote))
        if not approve:
            voted = replace(voted, state="rejected")
        elif len(_voices(voted)) >= (policy.approvals if policy else 1):
            voted = replace(voted, state="approved")
        verb = {"open": "agreed", "approved": "approved", "rejected": "rejected"}[voted.state]
        return store.records.update(voted, verb=verb, data=_about(voted, reason))[0]


def _about(request: AliasRequest, reason: str) -> dict[str, Json]:
    """What every event of a request says, so that whoever is told of it need not look it up."""
    return {"alias": f"{request.model}@{request.alias}", "version": request.version, "reason": reason}


def _voices(request: AliasRequest) -> tuple[str, ...]:
    """Who has agreed, each person once."""
    agreed = {person_of(vote.by): vote.by for vote in request.votes if vote.approve}
    agreed.pop(person_of(request.asked_by), None)
    return tuple(sorted(agreed.values()))


def _check_still_there(store: Store, request: AliasRequest) -> None:
    try:
        check_usable(get_version(store, request.version))
    except NotFoundError as error:
        raise ConflictError(f"'{request.version}' is gone.", help="Reject the request.") from error
