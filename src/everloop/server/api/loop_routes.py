"""HTTP routes that call a loop, so that it runs again. They need the role `editor`.

POST /api/v1/loops/LOOP/trigger   {reason?, idempotency?}; answered by a loop with el.OnCall()
POST /api/v1/loops/LOOP/commits   a push message of GitHub, GitLab or Gitea; answered by a loop with el.OnCommit()
GET  /api/v1/loops/LOOP/calls     the newest calls; needs the role `viewer`

A call is recorded with its user and reason. The loop's worker answers it: each call leads to at most one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import get, post

from everloop.errors import UsageError
from everloop.records import TriggerCall
from everloop.server.request_context import NEEDS, ApiRequest, JsonBody, store_of
from everloop.server.request_values import Name

MOST_CALLS = 100
MOST_COMMITS = 5_000
MOST_FILES = 1_000
"""If a push changes more files, their names are not kept, and every path counts as changed."""
_BRANCH = "refs/heads/"
_READS = {NEEDS: "viewer"}
_WRITES = {NEEDS: "editor"}
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{7,64}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopCall:
    """A call. If the same `idempotency` is sent again, the first call is returned and nothing new happens."""

    reason: Annotated[str, msgspec.Meta(max_length=2_000)] = ""
    idempotency: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedCommit:
    message: str = ""
    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """The part of a push message that GitHub, GitLab and Gitea have in common.

    Source: GitHub's "Webhook events and payloads", `push`; GitLab's "Webhook events", push events.
    """

    ref: Name
    after: _Hash
    commits: Annotated[tuple[PushedCommit, ...], msgspec.Meta(max_length=MOST_COMMITS)] = ()


def routes() -> list[Any]:
    return [call, report_push, calls]


@post("/api/v1/loops/{name:str}/trigger", sync_to_thread=True, opt=_WRITES)
def call(request: ApiRequest, data: JsonBody[LoopCall]) -> TriggerCall:
    """Ask for another run of a loop: {reason, idempotency?}."""
    from everloop.loop import call_loop

    return call_loop(store_of(request), request.path_params["name"], data.reason, idempotency=data.idempotency)


@post("/api/v1/loops/{name:str}/commits", sync_to_thread=True, opt=_WRITES)
def report_push(request: ApiRequest, data: JsonBody[Push]) -> TriggerCall:
    """Report a push to a branch, as GitHub, GitLab and Gitea send it. The same commit twice is one call."""
    from everloop.loop import call_loop
    from everloop.loop.triggers.trigger_calls import ReportedCommit

    if not data.ref.startswith(_BRANCH):
        raise UsageError(f"'ref' is '{data.ref[:100]}', which is not a branch.", help="Send pushes to branches only.")
    if not data.after.strip("0"):
        raise UsageError("'after' is all zeros: the branch was deleted.", help="There is nothing to train on.")
    branch = data.ref.removeprefix(_BRANCH)
    files = dict.fromkeys(file for one in data.commits for file in (*one.added, *one.modified, *one.removed))
    message = data.commits[-1].message.partition("\n")[0][:200] if data.commits else ""
    return call_loop(
        store_of(request),
        request.path_params["name"],
        f"push of {data.after[:10]} to {branch}" + (f": {message}" if message else ""),
        idempotency=f"push {data.after}",
        commit=ReportedCommit(data.after, branch, tuple(files) if len(files) <= MOST_FILES else ()),
    )


@get("/api/v1/loops/{name:str}/calls", sync_to_thread=True, opt=_READS)
def calls(request: ApiRequest) -> list[TriggerCall]:
    """List the newest calls of a loop, newest first."""
    found = ("loop", "=", request.path_params["name"])
    return store_of(request).records.find(TriggerCall, found, order="-id", limit=MOST_CALLS)  # type: ignore[arg-type]
