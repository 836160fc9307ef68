"""HTTP routes of the registry: annotations, aliases and approvals of model versions.

    GET  /api/v1/models/MODEL/versions/N/card                 markdown
    GET  /api/v1/diff?a=MODEL@1&b=MODEL@2
    PATCH /api/v1/models/MODEL/versions/N                     {description?, tags?}
    PUT  /api/v1/models/MODEL/versions/N/archived             {archived, reason?}
    GET  /api/v1/models/MODEL/aliases/ALIAS/history           ?at=TIME: only its version at that time
    PUT  /api/v1/models/MODEL/aliases/ALIAS                   {version, reason, expect?}
    DELETE …/aliases/ALIAS
    PUT  …/aliases/ALIAS/policy                               {approvals}
    POST …/aliases/ALIAS/requests                             {version, reason}
    POST /api/v1/alias-requests/ID/approve | reject | withdraw   {reason}

Moving an alias that has a policy needs that policy's approvals, whatever the user's role.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import MediaType, Response, delete, get, patch, post, put

from everloop.errors import UsageError
from everloop.records import Alias, AliasPolicy, AliasRequest, ModelVersion
from everloop.server.request_context import NEEDS, ApiRequest, JsonBody, store_of
from everloop.server.request_values import Name, Text

MOST_REASON = 10_000
MOST_TAGS = 1_000
"""Tags in one request."""
Why = Annotated[str, msgspec.Meta(max_length=MOST_REASON)]
"""Reasons are stored with the event forever, so their length is limited."""

_READS = {NEEDS: "viewer"}
_WRITES = {NEEDS: "editor"}
_DECIDES = {NEEDS: "approver"}
_RULES = {NEEDS: "admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A move of an alias. `expect`: the version it must point to now, or `nobody` if the alias must not exist yet."""

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
class PolicyBody:
    approvals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curation:
    """Changes of a version's annotations. Fields that are left out stay as they are."""

    description: Text | None = None
    tags: Annotated[dict[Name, Text | None], msgspec.Meta(max_length=MOST_TAGS)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archival:
    archived: bool
    reason: Why = ""


def routes() -> list[Any]:
    return [
        card,
        diff,
        curate,
        archive_version,
        history,
        move,
        remove,
        policy,
        request_move,
        decide_request,
        withdraw_request,
    ]


@get(
    "/api/v1/models/{model:str}/versions/{number:int}/card", sync_to_thread=True, opt=_READS, media_type=MediaType.TEXT
)
def card(request: ApiRequest) -> Response[str]:
    """Return a version's model card, as Markdown."""
    from everloop.registry import version_card

    return Response(version_card(store_of(request), _ref(request)), media_type="text/markdown; charset=utf-8")


@get("/api/v1/diff", sync_to_thread=True, opt=_READS)
def diff(request: ApiRequest) -> Any:
    """Compare the versions `a` and `b`."""
    from everloop.registry import diff_versions

    a, b = request.query_params.get("a"), request.query_params.get("b")
    if not a or not b:
        raise UsageError("The parameters 'a' and 'b' are both needed.", help="Use: /api/v1/diff?a=MODEL@1&b=MODEL@2")
    return diff_versions(store_of(request), a, b)


@patch("/api/v1/models/{model:str}/versions/{number:int}", sync_to_thread=True, opt=_WRITES)
def curate(request: ApiRequest, data: JsonBody[Curation]) -> ModelVersion:
    """Set the description or tags of a version."""
    from everloop.registry import describe, get_version, tag

    store, ref = store_of(request), _ref(request)
    with store.records.transaction():
        if data.description is not None:
            describe(store, ref, data.description)
        if data.tags is not None:
            tag(store, ref, data.tags)
        return get_version(store, ref)


@put("/api/v1/models/{model:str}/versions/{number:int}/archived", sync_to_thread=True, opt=_DECIDES)
def archive_version(request: ApiRequest, data: JsonBody[Archival]) -> ModelVersion:
    """Archive a version, or bring it back: {archived, reason}."""
    from everloop.registry import archive, unarchive

    change = archive if data.archived else unarchive
    return change(store_of(request), _ref(request), data.reason)


@get("/api/v1/models/{model:str}/aliases/{alias:str}/history", sync_to_thread=True, opt=_READS)
def history(request: ApiRequest) -> Any:
    """List the versions that an alias has pointed to, oldest first; with `at`, only the one at that time."""
    from everloop.registry import alias_at, alias_history

    store, model, alias = store_of(request), request.path_params["model"], request.path_params["alias"]
    at = request.query_params.get("at")
    if at is None:
        return alias_history(store, model, alias)
    try:
        # A plus sign that the client did not encode arrives as a space.
        moment = datetime.fromisoformat(at.replace(" ", "+"))
    except ValueError as error:
        raise UsageError(f"at={at[:50]} is not a time.", help="Write it as 2026-05-03T12:00:00Z.") from error
    entry = alias_at(store, model, alias, moment)
    return [] if entry is None else [entry]


@put("/api/v1/models/{model:str}/aliases/{alias:str}", sync_to_thread=True, opt=_WRITES)
def move(request: ApiRequest, data: JsonBody[Move]) -> Alias:
    """Move an alias. If it is the champion of an endpoint, the endpoint's traffic moves too."""
    from everloop.loop import move_alias
    from everloop.registry import get_version
    from everloop.registry.aliases import ANYONE

    store, model, alias = store_of(request), request.path_params["model"], request.path_params["alias"]
    expect: str | None = ANYONE
    if data.expect is not None:
        # The client may give a version's key, its id or an alias.
        expect = None if data.expect == "nobody" else get_version(store, data.expect).key
    return move_alias(store, model, alias, data.version, data.reason, expect=expect)


@delete("/api/v1/models/{model:str}/aliases/{alias:str}", sync_to_thread=True, opt=_DECIDES)
def remove(request: ApiRequest) -> None:
    """Remove an alias, for a `?reason=`."""
    from everloop.registry import remove_alias

    reason = request.query_params.get("reason", "")[:MOST_REASON]
    remove_alias(store_of(request), request.path_params["model"], request.path_params["alias"], reason=reason)


@put("/api/v1/models/{model:str}/aliases/{alias:str}/policy", sync_to_thread=True, opt=_RULES)
def policy(request: ApiRequest, data: JsonBody[PolicyBody]) -> AliasPolicy | None:
    """Set how many approvals a move of the alias needs; 0 removes the policy."""
    from everloop.registry import set_policy

    return set_policy(store_of(request), request.path_params["model"], request.path_params["alias"], data.approvals)


@post("/api/v1/models/{model:str}/aliases/{alias:str}/requests", sync_to_thread=True, opt=_WRITES)
def request_move(request: ApiRequest, data: JsonBody[AliasChange]) -> AliasRequest:
    """Request approvals for moving an alias."""
    from everloop.registry import request_alias

    params = request.path_params
    return request_alias(store_of(request), params["model"], params["alias"], data.version, data.reason)


@post("/api/v1/alias-requests/{id:str}/{verb:str}", sync_to_thread=True, opt=_DECIDES)
def decide_request(request: ApiRequest, data: JsonBody[Reason]) -> AliasRequest:
    """Decide on a request: `approve` or `reject`."""
    from everloop.registry import approve, reject

    verbs = {"approve": approve, "reject": reject}
    verb: Literal["approve", "reject"] = request.path_params["verb"]
    if verb not in verbs:
        raise UsageError(f"Unknown action '{str(verb)[:30]}' for a request.", help="Use approve, reject or withdraw.")
    return verbs[verb](store_of(request), request.path_params["id"], data.reason)


@post("/api/v1/alias-requests/{id:str}/withdraw", sync_to_thread=True, opt=_WRITES)
def withdraw_request(request: ApiRequest, data: JsonBody[Reason]) -> AliasRequest:
    """Withdraw your own request."""
    from everloop.registry import withdraw

    return withdraw(store_of(request), request.path_params["id"], data.reason)


def _ref(request: ApiRequest) -> str:
    return f"{request.path_params['model']}@{request.path_params['number']}"
