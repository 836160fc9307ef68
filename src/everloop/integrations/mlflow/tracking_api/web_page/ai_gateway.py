"""Routes of MLflow's gateway to language models. There is no gateway here, so it has no endpoints.

Without these routes MLflow's web page shows an error beside every table of runs. No request is forwarded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, not_found
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute

_LISTING = "api/2.0/endpoints"
_INVOCATION = re.compile(r"gateway/([^/]+)/invocations")


def list_endpoints(context: HandlerContext) -> Mapping[str, Any]:
    if _path(context) != _LISTING:
        raise _invalid(context, "GET")
    return {"endpoints": []}


def query_endpoint(context: HandlerContext) -> Mapping[str, Any]:
    invocation = _INVOCATION.fullmatch(_path(context))
    if invocation is None:
        raise _invalid(context, "POST")
    raise not_found(f"This server has no AI gateway, so there is no endpoint '{invocation[1][:200]}'.")


def _path(context: HandlerContext) -> str:
    path = context.fields.text("gateway_path", required=False)
    if not path:
        raise MlflowError("Deployments proxy request must specify a gateway_path.")
    return path.strip("/")


def _invalid(context: HandlerContext, method: str) -> MlflowError:
    path = context.fields.text("gateway_path")
    return MlflowError(f"Invalid gateway_path: {path[:200]} for method: {method}")


ROUTES = (
    HandlerRoute("GET", "2.0/mlflow/gateway-proxy", list_endpoints, "read"),
    HandlerRoute("POST", "2.0/mlflow/gateway-proxy", query_endpoint, "read"),
)
