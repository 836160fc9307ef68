"""The registry over HTTP: what people decide about model versions.

    GET  /api/v1/models/MODEL/versions/N/card                 markdown
    GET  /api/v1/diff?a=MODEL@1&b=MODEL@2
    PATCH /api/v1/models/MODEL/versions/N                     {description?, tags?}
    PUT  /api/v1/models/MODEL/versions/N/archived             {archived, reason?}
    GET  /api/v1/models/MODEL/aliases/ALIAS/history           ?at=TIME: only who held it then
    PUT  /api/v1/models/MODEL/aliases/ALIAS                   {version, reason, expect?}
    DELETE …/aliases/ALIAS
    PUT  …/aliases/ALIAS/policy                               {approvals}
    POST …/aliases/ALIAS/requests                             {version, reason}
    POST /api/v1/alias-requests/ID/approve | reject | withdraw   {reason}

Moving an alias that a policy guards takes its approvals, for whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import MediaType, Request, Response, delete, get, patch, post, put

from everloop.errors import UsageError
from everloop.records import Alias, AliasPolicy, AliasRequest, ModelVersion
from everloop.server.request_context import NEEDS, Sent, store_of
from everloop.server.request_values import Name, Text

MOST_REASON = 10_000
MOST_TAGS = 1_000
"""Of one request."""
Asked = Request[Any, Any, Any]
Why = Annotated[str, msgspec.Meta(max_length=MOST_REASON)]
"""A reason is kept with the event for ever, so it has an end."""

_READS = {NEEDS: "viewer"}
_WRITES = {NEEDS: "editor"}
_DECIDES = {NEEDS: "approver"}
_RULES = {NEEDS: "admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Where an alias shall go. `expect`: the version that must hold it now, or `nobody`."""

    version: Name
    reason: Why = ""
    expect: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasChange:
    version: Name
    reason: Why = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    reason: Why = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    approvals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curation:
    """What to change about a version; what is left out stays."""

    description: Text | None = None
    tags: Annotated[dict[Name, Text | None], msgspec.Meta(max_length=MOST_TAGS)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archival:
    archived: bool
    reason: Why = ""


def routes() -> list[Any]:
    return [card, diff, curate, archive_version, history, move, remove, policy, ask, answer, withdraw_request]


@get(
    "/api/v1/models/{model:str}/versions/{number:int}/card", sync_to_thread=True, opt=_READS, media_type=MediaType.TEXT
)
def card(request: Asked) -> Response[str]:
    """A version's card, as markdown."""
    from everloop.registry import version_card

    return Response(version_card(store_of(request), _ref(request)), media_type="text/markdown; charset=utf-8")


@get("/api/v1/diff", sync_to_thread=True, opt=_READS)
def diff(request: Asked) -> Any:
    """What differs between the versions `a` and `b`."""
    from everloop.registry import diff_versions

    a, b = request.query_params.get("a"), request.query_params.get("b")
    if not a or not b:
        raise UsageError("Two versions are needed.", help="Ask for: /api/v1/diff?a=MODEL@1&b=MODEL@2")
    return diff_versions(store_of(request), a, b)


@patch("/api/v1/models/{model:str}/versions/{number:int}", sync_to_thread=True, opt=_WRITES)
def curate(request: Asked, data: Sent[Curation]) -> ModelVersion:
    """Describe or tag a version."""
    from everloop.registry import describe, get_version, tag

    store, ref = store_of(request), _ref(request)
    with store.records.transaction():
        if data.description is not None:
            describe(store, ref, data.description)
        if data.tags is not None:
            tag(store, ref, data.tags)
        return get_version(store, ref)


@put("/api/v1/models/{model:str}/versions/{number:int}/archived", sync_to_thread=True, opt=_DECIDES)
def archive_version(request: Asked, data: Sent[Archival]) -> ModelVersion:
    """Take a version out of use, or back: {archived, reason}."""
    from everloop.registry import archive, unarchive

    change = archive if data.archived else unarchive
    return change(store_of(request), _ref(request), data.reason)


@get("/api/v1/models/{model:str}/aliases/{alias:str}/history", sync_to_thread=True, opt=_READS)
def history(request: Asked) -> Any:
    """Who held an alias, oldest first; with `at`, only who held it then."""
    from everloop.registry import alias_at, alias_history

    store, model, alias = store_of(request), request.path_params["model"], request.path_params["alias"]
    at = request.query_params.get("at")
    if at is None:
        return alias_history(store, model, alias)
    try:
        # A plus sign that nobody encoded arrives as a space.
        moment = datetime.fromisoformat(at.replace(" ", "+"))
    except ValueError as error:
        raise UsageError(f"at={at[:50]} is no time.", help="Write it as 2026-05-03T12:00:00Z.") from error
    held = alias_at(store, model, alias, moment)
    return [] if held is None else [held]


@put("/api/v1/models/{model:str}/aliases/{alias:str}", sync_to_thread=True, opt=_WRITES)
def move(request: Asked, data: Sent[Move]) -> Alias:
    """Move an alias. Where the champion of an endpoint moves, its traffic moves with it."""
    from everloop.loop import move_alias
    from everloop.registry import get_version
    from everloop.registry.aliases import ANYONE

    store, model, alias = store_of(request), request.path_params["model"], request.path_params["alias"]
    asked = ANYONE if data.expect is None else data.expect
    # An id or an alias names a version as well as its key does.
    expect = asked if asked is ANYONE else None if asked == "nobody" else get_version(store, asked).key
    return move_alias(store, model, alias, data.version, data.reason, expect=expect)


@delete("/api/v1/models/{model:str}/aliases/{alias:str}", sync_to_thread=True, opt=_DECIDES)
def remove(request: Asked) -> None:
    """Take an alias away; `?reason=` says why."""
    from everloop.registry import remove_alias

    reason = request.query_params.get("reason", "")[:MOST_REASON]
    remove_alias(store_of(request), request.path_params["model"], request.path_params["alias"], reason=reason)


@put("/api/v1/models/{model:str}/aliases/{alias:str}/policy", sync_to_thread=True, opt=_RULES)
def policy(request: Asked, data: Sent[Policy]) -> AliasPolicy | None:
    """Say how many others must agree before the alias moves; 0 lifts the guard."""
    from everloop.registry import set_policy

    return set_policy(store_of(request), request.path_params["model"], request.path_params["alias"], data.approvals)


@post("/api/v1/models/{model:str}/aliases/{alias:str}/requests", sync_to_thread=True, opt=_WRITES)
def ask(request: Asked, data: Sent[AliasChange]) -> AliasRequest:
    """Ask the others to let an alias move."""
    from everloop.registry import request_alias

    params = request.path_params
    return request_alias(store_of(request), params["model"], params["alias"], data.version, data.reason)


@post("/api/v1/alias-requests/{id:str}/{verb:str}", sync_to_thread=True, opt=_DECIDES)
def answer(request: Asked, data: Sent[Reason]) -> AliasRequest:
    """Agree to a request, or end it: `approve` or `reject`."""
    from everloop.registry import approve, reject

    verbs = {"approve": approve, "reject": reject}
    verb: Literal["approve", "reject"] = request.path_params["verb"]
    if verb not in verbs:
        raise UsageError(f"A request cannot be '{str(verb)[:30]}'.", help="approve, reject or withdraw")
    return verbs[verb](store_of(request), request.path_params["id"], data.reason)


@post("/api/v1/alias-requests/{id:str}/withdraw", sync_to_thread=True, opt=_WRITES)
def withdraw_request(request: Asked, data: Sent[Reason]) -> AliasRequest:
    """Take one's own request back."""
    from everloop.registry import withdraw

    return withdraw(store_of(request), request.path_params["id"], data.reason)


def _ref(request: Asked) -> str:
    return f"{request.path_params['model']}@{request.path_params['number']}"
