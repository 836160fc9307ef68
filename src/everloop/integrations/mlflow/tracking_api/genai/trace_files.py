"""Route for files of a trace: its spans as one file for MLflow's web page, and its attachments."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import UUID

from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.experiment_routes import experiment_of
from everloop.integrations.mlflow.tracking_api.genai.spans import span_out, spans_of
from everloop.integrations.mlflow.tracking_api.genai.traces import artifacts_uri_of, trace_of
from everloop.integrations.mlflow.tracking_api.handler_context import Attachment, HandlerContext, HandlerRoute

if TYPE_CHECKING:
    from everloop.integrations.mlflow.tracking_api.files.artifact_location import ArtifactLocation

NAME = "traces.json"
"""The file in which older clients store the spans; also the name of the generated file."""


def get_trace_artifact(context: HandlerContext) -> tuple[ArtifactLocation, str] | Attachment:
    name, path = context.fields.text("request_id", required=False), context.fields.text("path", required=False)
    if not name:
        raise MlflowError('Request must include the "request_id" query parameter.', "BAD_REQUEST")
    if path and not _is_uuid(path):
        raise MlflowError(f"Invalid attachment path: '{path[:200]}'. Attachment path must be a valid UUID.")
    trace = trace_of(context.store, name)
    if trace.spans and not path:
        spans = [span_out(span) for span in spans_of(context.store, trace)]
        return Attachment(NAME, json.dumps({"spans": spans}).encode())
    # The URI is computed here, as clients could have changed the tag that contains it.
    uri = artifacts_uri_of(experiment_of(context.store, trace.experiment), trace.trace_id)
    return context.artifacts.find(uri, f"attachments/{path}" if path else NAME)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


ROUTES = (
    HandlerRoute("GET", "2.0/mlflow/get-trace-artifact", get_trace_artifact, "read", slow=True, streams=True),
    HandlerRoute("GET", "3.0/mlflow/get-trace-artifact", get_trace_artifact, "read", slow=True, streams=True),
)
