"""Route server-info, which describes the server to MLflow's clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute

PROTOCOL = "3.17.2"
"""The supported version of MLflow; clients compare it with their own."""


def get_server_info(context: HandlerContext) -> Mapping[str, Any]:
    return {
        "store_type": "SqlStore",
        "workspaces_enabled": False,
        "trace_archival_enabled": False,
        "multipart_uploads_enabled": False,
        "multipart_downloads_enabled": False,
        "presigned_upload_run_id_supported": True,
        "presigned_upload_model_id_supported": True,
        "features_enabled": {"gateway": False},
    }


ROUTES = (HandlerRoute("GET", "3.0/mlflow/server-info", get_server_info, "read"),)
