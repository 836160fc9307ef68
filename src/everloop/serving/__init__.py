"""Serves model versions behind endpoints. Every answer is on disk before it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.serving.endpoint_app import EndpointApp as EndpointApp
    from everloop.serving.endpoint_process import EndpointProcess as EndpointProcess, serving_url as serving_url
    from everloop.serving.endpoint_server import serve_endpoint as serve_endpoint, serve_endpoints as serve_endpoints
    from everloop.serving.endpoint_state import (
        check_endpoint_name as check_endpoint_name,
        is_served as is_served,
        set_state as set_state,
    )
    from everloop.serving.protocols.protocol import Request as Request, Response as Response, Service as Service
    from everloop.serving.routing import RoutingTable as RoutingTable

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "endpoint_app": ["EndpointApp"],
        "endpoint_process": ["EndpointProcess", "serving_url"],
        "endpoint_server": ["serve_endpoint", "serve_endpoints"],
        "endpoint_state": ["check_endpoint_name", "is_served", "set_state"],
        "protocols.protocol": ["Request", "Response", "Service"],
        "routing": ["RoutingTable"],
    },
)
