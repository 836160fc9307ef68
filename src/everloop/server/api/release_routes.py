"""HTTP routes by which people decide about releases. They need the role `approver`.

POST /api/v1/endpoints/NAME/rollback                                                       {reason}
POST /api/v1/releases/ID/advance | pause | resume | approve | reject | abort               {reason}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import post

from everloop.errors import UsageError
from everloop.records import Release
from everloop.server.api.registry_routes import MOST_REASON
from everloop.server.request_context import NEEDS, ApiRequest, JsonBody, store_of

_DECIDES = {NEEDS: "approver"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseReason:
    """Every decision about a release is recorded with its reason, so it cannot be empty."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_REASON)]


def routes() -> list[Any]:
    return [roll_back_endpoint, decide_release]


@post("/api/v1/endpoints/{name:str}/rollback", sync_to_thread=True, opt=_DECIDES)
def roll_back_endpoint(request: ApiRequest, data: JsonBody[ReleaseReason]) -> Release:
    """End the rollout of an endpoint, or give all traffic back to the previous champion."""
    from everloop.loop import roll_back

    return roll_back(store_of(request), request.path_params["name"], data.reason)


@post("/api/v1/releases/{id:str}/{verb:str}", sync_to_thread=True, opt=_DECIDES)
def decide_release(request: ApiRequest, data: JsonBody[ReleaseReason]) -> Release:
    """Decide about a rollout: `advance`, `pause`, `resume`, `approve`, `reject` or `abort`."""
    from everloop import loop

    verbs = {
        "advance": loop.advance_release,
        "pause": loop.pause_release,
        "resume": loop.resume_release,
        "approve": loop.approve_release,
        "reject": loop.reject_release,
        "abort": loop.abort_release,
    }
    verb = request.path_params["verb"]
    if verb not in verbs:
        raise UsageError(f"Unknown action '{verb[:30]}' for a release.", help=f"Use {', '.join(verbs)}.")
    store = store_of(request)
    return verbs[verb](store, store.records.get(Release, request.path_params["id"]), data.reason)
