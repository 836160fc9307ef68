"""What MLflow's page asks of a gateway to language models: there is none, so it has no endpoints.

Without an answer the page shows an error beside every table of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everloop.server.mlflow.asking import Ask, Route


def list_endpoints(ask: Ask) -> Mapping[str, Any]:
    return {"endpoints": []}


ROUTES = (Route("GET", "2.0/mlflow/gateway-proxy", list_endpoints, "read"),)
