"""Routes for metric histories: all points of one run in pages, or of many runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError
from everloop.integrations.mlflow.tracking_api.codec import MlflowError, missing, ms_of
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.page_tokens import Page
from everloop.integrations.mlflow.tracking_api.run_routes import find_run
from everloop.integrations.mlflow.tracking_api.serializers import metric_out, wire_id
from everloop.records import Point
from everloop.tracking import read_metrics

if TYPE_CHECKING:
    from everloop.stores import Store

PER_PAGE = 25_000
MOST_RUNS = 100
MOST_SAMPLES = 2500


def get_history(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    name, key = fields.run_id(), fields.text("metric_key")
    most = fields.integer("max_results") if fields.has("max_results") else None
    if most is not None and most <= 0:
        raise MlflowError(f"Invalid value {most} for parameter 'max_results' supplied. It must be a positive integer.")
    page = Page.of(fields.text("page_token", required=False))
    points = history(context.store, find_run(context.store, name).id, key)
    shown = points[page.offset : page.offset + (PER_PAGE if most is None else min(most, PER_PAGE))]
    if most is None and not page.offset:
        shown = points
    response: dict[str, Any] = {"metrics": [_out(point) for point in shown]} if shown else {}
    if page.offset + len(shown) < len(points):
        response["next_page_token"] = Page(page.offset + len(shown)).token()
    return response


def get_history_bulk(context: HandlerContext) -> Mapping[str, Any]:
    """Return the full histories of several runs, one run after the other, each sorted by time."""
    fields = context.fields
    runs = fields.texts("run_id")
    if not runs:
        raise MlflowError("GetMetricHistoryBulk request must specify at least one run_id.")
    if len(runs) > MOST_RUNS:
        raise MlflowError(
            f"GetMetricHistoryBulk request cannot specify more than {MOST_RUNS} run_ids. Received {len(runs)} run_ids."
        )
    if not fields.has("metric_key"):
        raise MlflowError("GetMetricHistoryBulk request must specify a metric_key.")
    most = min(fields.integer("max_results", PER_PAGE), PER_PAGE)
    rows = []
    for name, points in _histories(context.store, sorted(set(runs)), fields.text("metric_key", required=False)):
        rows += [{**_out(point), "run_id": name} for point in points]
    return {"metrics": rows[:most]}


def get_history_sampled(context: HandlerContext) -> Mapping[str, Any]:
    """Return evenly spaced points of each run, always with its last one: enough to draw a line."""
    fields = context.fields
    runs = fields.texts("run_ids", required=True)
    if not runs:
        raise missing("run_ids")
    if len(runs) > MOST_RUNS:
        raise MlflowError(
            f"GetMetricHistoryBulkInterval request must specify at most {MOST_RUNS} run_ids."
            f" Received {len(runs)} run_ids."
        )
    key = fields.text("metric_key")
    most = fields.integer("max_results", MOST_SAMPLES)
    if not 1 <= most <= MOST_SAMPLES:
        raise MlflowError(f"max_results must be between 1 and {MOST_SAMPLES}.")
    start = fields.integer("start_step") if fields.has("start_step") else None
    end = fields.integer("end_step") if fields.has("end_step") else None
    if (start is None) != (end is None):
        raise MlflowError("If either start step or end step are specified, both must be specified.")
    if start is not None and end is not None and start > end:
        raise MlflowError(f"end_step must be greater than start_step. Found start_step={start} and end_step={end}.")
    rows = []
    for name, points in _histories(context.store, runs, key):
        within = [p for p in points if (start is None or p.step >= start) and (end is None or p.step <= end)]
        within.sort(key=lambda p: (p.step, ms_of(p.at)))
        rows += [{**_out(point), "run_id": name} for point in _sampled(within, most)]
    return {"metrics": rows} if rows else {}


def history(store: Store, run: str, key: str) -> list[Point]:
    """Return all distinct points of a metric, sorted by time, step and value."""
    unique = {(ms_of(p.at), p.step, repr(p.value)): p for p in read_metrics(store, run, key)}
    return sorted(unique.values(), key=lambda p: (ms_of(p.at), p.step, 0.0 if p.value != p.value else p.value))


def _histories(store: Store, runs: Sequence[str], key: str) -> list[tuple[str, list[Point]]]:
    found = []
    for name in runs:
        try:
            run = find_run(store, name)
        except (MlflowError, NotFoundError):
            continue
        found.append((wire_id(run.id), history(store, run.id, key)))
    return found


def _sampled(points: Sequence[Point], most: int) -> list[Point]:
    """Return the first point of each of `most` equal parts of the points, and the very last point at the end."""
    size, longer = divmod(len(points), most)
    if not size:
        return list(points)
    # If the points do not divide evenly, the first parts are one point longer.
    sampled = [points[index * size + min(index, longer)] for index in range(most)]
    return [*sampled[:-1], points[-1]]


def _out(point: Point) -> dict[str, Any]:
    return metric_out(point.key, point.value, point.step, ms_of(point.at))


ROUTES = (
    HandlerRoute("GET", "2.0/mlflow/metrics/get-history", get_history, "read", slow=True),
    HandlerRoute("GET", "2.0/mlflow/metrics/get-history-bulk", get_history_bulk, "read", slow=True),
    HandlerRoute("GET", "2.0/mlflow/metrics/get-history-bulk-interval", get_history_sampled, "read", slow=True),
)
