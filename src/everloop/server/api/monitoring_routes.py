"""HTTP route for Prometheus.

GET /metrics   ongoing incidents, and the newest drift and performance of each endpoint, as Prometheus text
"""

from __future__ import annotations

from typing import Any

from litestar import Response, get

from everloop.monitoring.reports.monitoring_metrics import CONTENT_TYPE, monitoring_metrics
from everloop.server.request_context import NEEDS, ApiRequest, store_of


def routes() -> list[Any]:
    return [metrics]


@get("/metrics", sync_to_thread=True, opt={NEEDS: "viewer"})
def metrics(request: ApiRequest) -> Response[str]:
    """Return the project's incidents and newest measurements as Prometheus text."""
    return Response(monitoring_metrics(store_of(request)), media_type=CONTENT_TYPE)
