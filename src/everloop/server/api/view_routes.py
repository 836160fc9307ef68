"""HTTP routes of what the web page shows. Each answers one page with one request, and changes nothing.

Below /api/v1/views:

loops                           the home page
runs                            ?filter=&order=-started_at&columns=metrics.auc,params.lr&limit=&after=
run-columns                     names of params, metrics and tags
run-groups                      ?by=params.lr&metric=metrics.auc&filter=
runs/ID                         a run with steps, their logs and artifacts
curves                          ?runs=ID,ID&keys=loss,auc&points=500
compare                         ?runs=ID,ID
models, models/MODEL, versions/REF
endpoints/NAME, endpoints/NAME/heat-map
endpoints/NAME/labels           ?estimate=true: the metric by period, and how late labels arrive
predictions/ID                  one answer: its inputs, output and label, and what it came from
incidents, incidents/ID         ?endpoint=
incidents/ID/distributions      the features behind an incident: reference and window
incidents/ID/rows               ?subject=&order=; the predictions of the window in which a feature was found unusual
data, snapshots/REF, features/REF
snapshot-diff                   ?before=REF&after=REF; what `everloop data diff` prints
replays, replays/ID
traces/ID                       a trace with its tree of spans
storage                         where the project's data is, and which keys this machine trusts; needs the role `admin`
artifacts/ID                    a preview by type

And /api/v1/artifacts/ID/content: the bytes, in a sandbox; see `views/artifact_views.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from litestar import Response, get

from everloop.errors import UsageError
from everloop.records import Incident
from everloop.server.error_responses import json_response
from everloop.server.request_context import NEEDS, ApiRequest, store_of
from everloop.server.views import (
    artifact_views,
    data_views,
    distribution_views,
    endpoint_views,
    incident_views,
    label_views,
    prediction_views,
    registry_views,
    replay_views,
    run_groups,
    run_views,
    storage_views,
    trace_views,
)
from everloop.server.views.loop_view import Overview, read_overview

T = TypeVar("T")

_VIEWS: list[Any] = []


def routes() -> list[Any]:
    return [*_VIEWS, artifact_content]


def _view(path: str, role: str = "viewer") -> Callable[[Callable[[ApiRequest], T]], Callable[[ApiRequest], T]]:
    """Make a route of a function that reads a page. Its annotation describes the answer, which is encoded here."""

    def register(read: Callable[[ApiRequest], T]) -> Callable[[ApiRequest], T]:
        @wraps(read)
        def route(request: ApiRequest) -> T:
            return cast("T", json_response(read(request)))

        _VIEWS.append(get(f"/api/v1/views/{path}", sync_to_thread=True, opt={NEEDS: role})(route))
        return read

    return register


@_view("loops")
def loops(request: ApiRequest) -> Overview:
    """Return the state of all loops, what needs a person, and the newest events."""
    return read_overview(store_of(request))


@_view("runs")
def run_table(request: ApiRequest) -> run_views.RunTable:
    """Return one page of the table of runs."""
    return run_views.read_run_table(
        store_of(request),
        request.query_params.get("filter", ""),
        _list(request, "order") or ["-started_at"],
        _list(request, "columns") if "columns" in request.query_params else None,
        _number(request, "limit", 100, run_views.MOST_ROWS),
        request.query_params.get("after") or None,
    )


@_view("run-columns")
def run_columns(request: ApiRequest) -> run_views.RunColumns:
    """Return the names of columns that the table of runs can show."""
    return run_views.read_run_columns(store_of(request))


@_view("run-groups")
def grouped_runs(request: ApiRequest) -> run_groups.RunGroups:
    """Group runs by a column."""
    query = request.query_params
    return run_groups.group_runs(
        store_of(request), query.get("by", ""), query.get("metric") or None, query.get("filter", "")
    )


@_view("runs/{id:str}")
def run(request: ApiRequest) -> run_views.RunDetail:
    """Return a run with its steps, artifacts and versions."""
    return run_views.read_run(store_of(request), request.path_params["id"])


@_view("curves")
def curves(request: ApiRequest) -> list[run_views.Curve]:
    """Return the curves of metrics of runs."""
    points = _number(request, "points", 500, run_views.MOST_POINTS)
    return run_views.read_curves(store_of(request), _list(request, "runs"), _list(request, "keys"), points)


@_view("compare")
def compared_runs(request: ApiRequest) -> run_views.ComparedRuns:
    """Return what differs between runs."""
    return run_views.compare(store_of(request), _list(request, "runs"))


@_view("models")
def models(request: ApiRequest) -> list[registry_views.ModelSummary]:
    """List models."""
    return registry_views.list_models(store_of(request))


@_view("models/{model:str}")
def model(request: ApiRequest) -> registry_views.ModelDetail:
    """Return a model with its versions and aliases."""
    return registry_views.read_model(store_of(request), request.path_params["model"])


@_view("versions/{ref:str}")
def version(request: ApiRequest) -> registry_views.VersionDetail:
    """Return a version, such as `delays@3`, with its gates, releases and lineage."""
    return registry_views.read_version(store_of(request), request.path_params["ref"])


@_view("endpoints/{name:str}")
def endpoint(request: ApiRequest) -> endpoint_views.EndpointDetail:
    """Return an endpoint with its traffic, releases, incidents and live metric."""
    return endpoint_views.read_endpoint(store_of(request), request.path_params["name"])


@_view("endpoints/{name:str}/heat-map")
def heat_map(request: ApiRequest) -> endpoint_views.HeatMap:
    """Return how far each feature was from its reference, by window."""
    return endpoint_views.read_heat_map(store_of(request), request.path_params["name"])


@_view("endpoints/{name:str}/labels")
def labels(request: ApiRequest) -> label_views.LabelDetail:
    """Return the metric by period, realised and estimated, and how many labels arrive how late."""
    estimate = request.query_params.get("estimate") == "true"
    return label_views.read_labels_of(store_of(request), request.path_params["name"], estimate=estimate)


@_view("predictions/{id:str}")
def prediction(request: ApiRequest) -> prediction_views.PredictionDetail:
    """Return one answer with its label and its lineage."""
    return prediction_views.read_prediction(store_of(request), request.path_params["id"])


@_view("incidents")
def incidents(request: ApiRequest) -> list[Incident]:
    """List incidents, ongoing ones first."""
    return incident_views.read_incidents(store_of(request), request.query_params.get("endpoint") or None)


@_view("incidents/{id:str}")
def incident(request: ApiRequest) -> incident_views.IncidentDetail:
    """Return an incident with its findings."""
    return incident_views.read_incident(store_of(request), request.path_params["id"])


@_view("incidents/{id:str}/distributions")
def distributions(request: ApiRequest) -> list[distribution_views.Distribution]:
    """Return the distributions of an incident's features, in the reference and in their last window."""
    return distribution_views.read_distributions(store_of(request), request.path_params["id"])


@_view("incidents/{id:str}/rows")
def rows(request: ApiRequest) -> prediction_views.PredictionRows:
    """Return predictions of the last window in which a feature of the incident was unusual."""
    query = request.query_params
    return prediction_views.read_rows(
        store_of(request), request.path_params["id"], query.get("subject", ""), query.get("order", "")
    )


@_view("data")
def data(request: ApiRequest) -> data_views.DataPage:
    """List datasets and feature views."""
    return data_views.read_data(store_of(request))


@_view("snapshots/{ref:str}")
def snapshot(request: ApiRequest) -> data_views.SnapshotDetail:
    """Return a snapshot, such as `flights@3`, with its contract and the versions trained on it."""
    return data_views.read_snapshot(store_of(request), request.path_params["ref"])


@_view("features/{ref:str}")
def feature_view(request: ApiRequest) -> data_views.FeatureViewDetail:
    """Return a feature view, such as `weather` or `weather@2`, with its newest rows."""
    return data_views.read_feature_view(store_of(request), request.path_params["ref"])


@_view("snapshot-diff")
def snapshot_diff(request: ApiRequest) -> dict[str, Any]:
    """Return what has changed between two snapshots of a dataset."""
    query = request.query_params
    found: Any = data_views.read_diff(store_of(request), query.get("before", ""), query.get("after", ""))
    return cast("dict[str, Any]", found)


@_view("replays")
def replays(request: ApiRequest) -> list[replay_views.ReplaySummary]:
    """List the replays that were kept, newest first."""
    return replay_views.list_replays(store_of(request))


@_view("replays/{id:str}")
def replay(request: ApiRequest) -> replay_views.ReplayDetail:
    """Return one replay."""
    return replay_views.read_replay(store_of(request), request.path_params["id"])


@_view("traces/{id:str}")
def trace(request: ApiRequest) -> trace_views.TraceDetail:
    """Return a trace and its spans."""
    return trace_views.read_trace(store_of(request), request.path_params["id"])


@_view("storage", role="admin")
def storage(request: ApiRequest) -> storage_views.Storage:
    """Return where the project's data is, and which keys this machine trusts."""
    return storage_views.read_storage(store_of(request))


@_view("artifacts/{id:str}")
def artifact(request: ApiRequest) -> artifact_views.ArtifactPreview:
    """Return a preview of an artifact."""
    return artifact_views.read_artifact(store_of(request), request.path_params["id"])


@get(
    "/api/v1/artifacts/{id:str}/content",
    sync_to_thread=True,
    opt={NEEDS: "viewer"},
    media_type="application/octet-stream",
)
def artifact_content(request: ApiRequest) -> Response[bytes]:
    """Return the bytes of an artifact. A browser gives them an origin of their own, without scripts."""
    data, media, name = artifact_views.read_content(store_of(request), request.path_params["id"])
    shown = "inline" if media.startswith(("image/", "text/", "application/json")) else "attachment"
    headers = {**artifact_views.HEADERS, "content-disposition": f'{shown}; filename="{name}"'}
    return Response(data, media_type=media, headers=headers)


def _list(request: ApiRequest, name: str) -> list[str]:
    """Return a comma-separated parameter as a list, without empty items. A long list may be divided among several
    parameters of this name."""
    given = request.query_params.getall(name, [])
    return [one for part in given for one in part.split(",") if one]


def _number(request: ApiRequest, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:18]) <= most:
        raise UsageError(f"{name}={text[:50]} is not a number from 1 to {most}.", help="Give a whole number.")
    return int(text)
