"""HTTP routes of what the web page shows. Each answers one page with one request.

GET /api/v1/views/loops                         the home page
GET /api/v1/views/runs                          ?filter=&order=-started_at&columns=metrics.auc,params.lr&limit=&after=
GET /api/v1/views/run-columns                   names of params, metrics and tags
GET /api/v1/views/runs/ID                       a run with steps and artifacts
GET /api/v1/views/curves                        ?runs=ID,ID&keys=loss,auc&points=500
GET /api/v1/views/compare                       ?runs=ID,ID
GET /api/v1/views/models, …/models/MODEL, …/versions/REF
GET /api/v1/views/endpoints/NAME, …/endpoints/NAME/heat-map
GET /api/v1/views/incidents, …/incidents/ID     ?endpoint=
POST /api/v1/incidents/ID/acknowledge | mute | unmute | accept | resolve      {reason?, until?}
POST /api/v1/endpoints/NAME/rollback            {reason}
GET /api/v1/views/incidents/ID/distributions    the features behind an incident: reference and window
GET /api/v1/views/run-groups                    ?by=params.lr&metric=metrics.auc&filter=
GET /api/v1/views/data, …/snapshots/REF
GET /api/v1/views/snapshot-diff                 ?before=REF&after=REF; what `everloop data diff` prints
GET /api/v1/views/replays, …/replays/ID
GET /api/v1/views/artifacts/ID                  a preview by type
GET /api/v1/artifacts/ID/content                the bytes, in a sandbox: see `views/artifact_views.py`
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, cast

import msgspec
from litestar import Response, get, post

from everloop.errors import UsageError
from everloop.records import Incident, Release
from everloop.server.api.registry_routes import Why
from everloop.server.error_responses import json_response
from everloop.server.request_context import NEEDS, ApiRequest, JsonBody, store_of
from everloop.server.views import (
    artifact_views,
    data_views,
    distribution_views,
    endpoint_views,
    incident_views,
    registry_views,
    replay_views,
    run_groups,
    run_views,
)
from everloop.server.views.loop_view import Overview, read_overview

_READS = {NEEDS: "viewer"}
_WRITES = {NEEDS: "editor"}
_DECIDES = {NEEDS: "approver"}


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentAction:
    """`until`: for `mute`, when the incident is shown again."""

    reason: Why = ""
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReason:
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]


def routes() -> list[Any]:
    return [
        loops,
        run_table,
        run_columns,
        run,
        curves,
        compared_runs,
        models,
        model,
        version,
        endpoint,
        heat_map,
        incidents,
        incident,
        change_incident,
        roll_back_endpoint,
        distributions,
        grouped_runs,
        data,
        snapshot,
        snapshot_diff,
        replays,
        replay,
        artifact,
        artifact_content,
    ]


@get("/api/v1/views/loops", sync_to_thread=True, opt=_READS)
def loops(request: ApiRequest) -> Overview:
    """Return the state of all loops, what needs a person, and the newest events."""
    return cast("Overview", json_response(read_overview(store_of(request))))


@get("/api/v1/views/runs", sync_to_thread=True, opt=_READS)
def run_table(request: ApiRequest) -> run_views.RunTable:
    """Return one page of the table of runs."""
    limit = _number(request, "limit", 100, run_views.MOST_ROWS)
    found = run_views.read_run_table(
        store_of(request),
        request.query_params.get("filter", ""),
        _list(request, "order") or ["-started_at"],
        _list(request, "columns"),
        limit,
        request.query_params.get("after") or None,
    )
    return cast("run_views.RunTable", json_response(found))


@get("/api/v1/views/run-columns", sync_to_thread=True, opt=_READS)
def run_columns(request: ApiRequest) -> run_views.RunColumns:
    """Return the names of columns that the table of runs can show."""
    return cast("run_views.RunColumns", json_response(run_views.read_run_columns(store_of(request))))


@get("/api/v1/views/runs/{id:str}", sync_to_thread=True, opt=_READS)
def run(request: ApiRequest) -> run_views.RunDetail:
    """Return a run with its steps, artifacts and versions."""
    found = run_views.read_run(store_of(request), request.path_params["id"])
    return cast("run_views.RunDetail", json_response(found))


@get("/api/v1/views/curves", sync_to_thread=True, opt=_READS)
def curves(request: ApiRequest) -> list[run_views.Curve]:
    """Return the curves of metrics of runs."""
    points = _number(request, "points", 500, run_views.MOST_POINTS)
    found = run_views.read_curves(store_of(request), _list(request, "runs"), _list(request, "keys"), points)
    return cast("list[run_views.Curve]", json_response(found))


@get("/api/v1/views/compare", sync_to_thread=True, opt=_READS)
def compared_runs(request: ApiRequest) -> run_views.ComparedRuns:
    """Return what differs between runs."""
    found = run_views.compare(store_of(request), _list(request, "runs"))
    return cast("run_views.ComparedRuns", json_response(found))


@get("/api/v1/views/models", sync_to_thread=True, opt=_READS)
def models(request: ApiRequest) -> list[registry_views.ModelSummary]:
    """List models."""
    return cast("list[registry_views.ModelSummary]", json_response(registry_views.list_models(store_of(request))))


@get("/api/v1/views/models/{model:str}", sync_to_thread=True, opt=_READS)
def model(request: ApiRequest) -> registry_views.ModelDetail:
    """Return a model with its versions and aliases."""
    found = registry_views.read_model(store_of(request), request.path_params["model"])
    return cast("registry_views.ModelDetail", json_response(found))


@get("/api/v1/views/versions/{ref:str}", sync_to_thread=True, opt=_READS)
def version(request: ApiRequest) -> registry_views.VersionDetail:
    """Return a version, such as `delays@3`, with its gates, releases and lineage."""
    found = registry_views.read_version(store_of(request), request.path_params["ref"])
    return cast("registry_views.VersionDetail", json_response(found))


@get("/api/v1/views/endpoints/{name:str}", sync_to_thread=True, opt=_READS)
def endpoint(request: ApiRequest) -> endpoint_views.EndpointDetail:
    """Return an endpoint with its traffic, releases, incidents and live metric."""
    found = endpoint_views.read_endpoint(store_of(request), request.path_params["name"])
    return cast("endpoint_views.EndpointDetail", json_response(found))


@get("/api/v1/views/endpoints/{name:str}/heat-map", sync_to_thread=True, opt=_READS)
def heat_map(request: ApiRequest) -> endpoint_views.HeatMap:
    """Return how far each feature was from its reference, by window."""
    found = endpoint_views.read_heat_map(store_of(request), request.path_params["name"])
    return cast("endpoint_views.HeatMap", json_response(found))


@get("/api/v1/views/incidents", sync_to_thread=True, opt=_READS)
def incidents(request: ApiRequest) -> list[Incident]:
    """List incidents, ongoing ones first."""
    found = incident_views.read_incidents(store_of(request), request.query_params.get("endpoint") or None)
    return cast("list[Incident]", json_response(found))


@get("/api/v1/views/incidents/{id:str}", sync_to_thread=True, opt=_READS)
def incident(request: ApiRequest) -> incident_views.IncidentDetail:
    """Return an incident with its findings."""
    found = incident_views.read_incident(store_of(request), request.path_params["id"])
    return cast("incident_views.IncidentDetail", json_response(found))


@post("/api/v1/incidents/{id:str}/{action:str}", sync_to_thread=True, opt=_WRITES)
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
        raise UsageError(
            f"There is no action '{action[:30]}' for an incident.", help=f"Use {', '.join(actions)} or mute."
        )
    return actions[action](store, ref, data.reason)


@post("/api/v1/endpoints/{name:str}/rollback", sync_to_thread=True, opt=_DECIDES)
def roll_back_endpoint(request: ApiRequest, data: JsonBody[RollbackReason]) -> Release:
    """End the rollout of an endpoint, or give all traffic back to the previous champion."""
    from everloop.loop import roll_back

    return roll_back(store_of(request), request.path_params["name"], data.reason)


@get("/api/v1/views/data", sync_to_thread=True, opt=_READS)
def data(request: ApiRequest) -> data_views.DataPage:
    """List datasets and feature views."""
    return cast("data_views.DataPage", json_response(data_views.read_data(store_of(request))))


@get("/api/v1/views/snapshots/{ref:str}", sync_to_thread=True, opt=_READS)
def snapshot(request: ApiRequest) -> data_views.SnapshotDetail:
    """Return a snapshot, such as `flights@3`, with its contract and the versions trained on it."""
    found = data_views.read_snapshot(store_of(request), request.path_params["ref"])
    return cast("data_views.SnapshotDetail", json_response(found))


@get("/api/v1/views/incidents/{id:str}/distributions", sync_to_thread=True, opt=_READS)
def distributions(request: ApiRequest) -> list[distribution_views.Distribution]:
    """Return the distributions of an incident's features, in the reference and in their last window."""
    found = distribution_views.read_distributions(store_of(request), request.path_params["id"])
    return cast("list[distribution_views.Distribution]", json_response(found))


@get("/api/v1/views/run-groups", sync_to_thread=True, opt=_READS)
def grouped_runs(request: ApiRequest) -> run_groups.RunGroups:
    """Group runs by a column."""
    query = request.query_params
    found = run_groups.group_runs(
        store_of(request), query.get("by", ""), query.get("metric") or None, query.get("filter", "")
    )
    return cast("run_groups.RunGroups", json_response(found))


@get("/api/v1/views/snapshot-diff", sync_to_thread=True, opt=_READS)
def snapshot_diff(request: ApiRequest) -> dict[str, Any]:
    """Return what has changed between two snapshots of a dataset."""
    query = request.query_params
    found = data_views.read_diff(store_of(request), query.get("before", ""), query.get("after", ""))
    return cast("dict[str, Any]", json_response(found))


@get("/api/v1/views/replays", sync_to_thread=True, opt=_READS)
def replays(request: ApiRequest) -> list[replay_views.ReplaySummary]:
    """List the replays that were kept, newest first."""
    return cast("list[replay_views.ReplaySummary]", json_response(replay_views.list_replays(store_of(request))))


@get("/api/v1/views/replays/{id:str}", sync_to_thread=True, opt=_READS)
def replay(request: ApiRequest) -> replay_views.ReplayDetail:
    """Return one replay."""
    found = replay_views.read_replay(store_of(request), request.path_params["id"])
    return cast("replay_views.ReplayDetail", json_response(found))


@get("/api/v1/views/artifacts/{id:str}", sync_to_thread=True, opt=_READS)
def artifact(request: ApiRequest) -> artifact_views.ArtifactPreview:
    """Return a preview of an artifact."""
    found = artifact_views.read_artifact(store_of(request), request.path_params["id"])
    return cast("artifact_views.ArtifactPreview", json_response(found))


@get("/api/v1/artifacts/{id:str}/content", sync_to_thread=True, opt=_READS, media_type="application/octet-stream")
def artifact_content(request: ApiRequest) -> Response[bytes]:
    """Return the bytes of an artifact. A browser gives them an origin of their own, without scripts."""
    data, media, name = artifact_views.read_content(store_of(request), request.path_params["id"])
    shown = "inline" if media.startswith(("image/", "text/", "application/json")) else "attachment"
    headers = {**artifact_views.HEADERS, "content-disposition": f'{shown}; filename="{name}"'}
    return Response(data, media_type=media, headers=headers)


def _list(request: ApiRequest, name: str) -> list[str]:
    """Return a comma-separated parameter as a list, without empty items."""
    return [one for one in request.query_params.get(name, "").split(",") if one]


def _number(request: ApiRequest, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:18]) <= most:
        raise UsageError(f"{name}={text[:50]} is not a number from 1 to {most}.", help="Give a whole number.")
    return int(text)
