"""HTTP routes by which people handle incidents. They need the role `editor`.

POST /api/v1/incidents/ID/acknowledge | mute | unmute | accept | resolve      {reason?, until?}
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from litestar import post

from everloop.errors import UsageError
from everloop.records import Incident
from everloop.server.api.registry_routes import Why
from everloop.server.request_context import NEEDS, ApiRequest, JsonBody, store_of


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentAction:
    """`until`: for `mute`, when the incident is shown again."""

    reason: Why = ""
    until: datetime | None = None


def routes() -> list[Any]:
    return [change_incident]


@post("/api/v1/incidents/{id:str}/{action:str}", sync_to_thread=True, opt={NEEDS: "editor"})
def change_incident(request: ApiRequest, data: JsonBody[IncidentAction]) -> Incident:
    """Change an incident: `acknowledge`, `mute`, `unmute`, `accept` or `resolve`."""
    from everloop.monitoring.incidents import incident_actions

    store, ref, action = store_of(request), request.path_params["id"], request.path_params["action"]
    if action == "mute":
        return incident_actions.mute(store, ref, data.until, data.reason)
    actions = {
        "acknowledge": incident_actions.acknowledge,
        "unmute": incident_actions.unmute,
        "accept": incident_actions.accept,
        "resolve": incident_actions.resolve,
    }
    if action not in actions:
        raise UsageError(f"Unknown action '{action[:30]}' for an incident.", help=f"Use {', '.join(actions)} or mute.")
    return actions[action](store, ref, data.reason)
