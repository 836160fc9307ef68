"""What MLflow's page asks of a gateway to language models: there is none, so it has no endpoints.

Without an answer the page shows an error beside every table of runs. Nothing is passed on to anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, not_found
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute

_LISTING = "api/2.0/endpoints"
_INVOCATION = re.compile(r"gateway/([^/]+)/invocations")


def list_endpoints(ask: HandlerContext) -> Mapping[str, Any]:
    if _path(ask) != _LISTING:
        raise _invalid(ask, "GET")
    return {"endpoints": []}


def query_endpoint(ask: HandlerContext) -> Mapping[str, Any]:
    named = _INVOCATION.fullmatch(_path(ask))
    if named is None:
        raise _invalid(ask, "POST")
    raise not_found(f"This server has no gateway, and no endpoint '{named[1][:200]}'.")


def _path(ask: HandlerContext) -> str:
    path = ask.fields.text("gateway_path", required=False)
    if not path:
        raise MlflowError("Deployments proxy request must specify a gateway_path.")
    return path.strip("/")


def _invalid(ask: HandlerContext, method: str) -> MlflowError:
    path = ask.fields.text("gateway_path")
    return MlflowError(f"Invalid gateway_path: {path[:200]} for method: {method}")


ROUTES = (
    HandlerRoute("GET", "2.0/mlflow/gateway-proxy", list_endpoints, "read"),
    HandlerRoute("POST", "2.0/mlflow/gateway-proxy", query_endpoint, "read"),
)
