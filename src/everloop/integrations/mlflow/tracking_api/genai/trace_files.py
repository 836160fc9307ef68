"""A trace's spans as one file for MLflow's own page, and what clients have attached to a trace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import UUID

from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.experiment_routes import experiment_of
from everloop.integrations.mlflow.tracking_api.genai.spans import span_out, spans_of
from everloop.integrations.mlflow.tracking_api.genai.traces import place_of, trace_of
from everloop.integrations.mlflow.tracking_api.handler_context import Attachment, HandlerContext, HandlerRoute

if TYPE_CHECKING:
    from everloop.integrations.mlflow.tracking_api.files.artifact_location import ArtifactLocation

NAME = "traces.json"
"""Where older clients keep the spans themselves, and what the answer is called."""


def get_trace_artifact(ask: HandlerContext) -> tuple[ArtifactLocation, str] | Attachment:
    name, path = ask.fields.text("request_id", required=False), ask.fields.text("path", required=False)
    if not name:
        raise MlflowError('Request must include the "request_id" query parameter.', "BAD_REQUEST")
    if path and not _is_uuid(path):
        raise MlflowError(f"Invalid attachment path: '{path[:200]}'. Attachment path must be a valid UUID.")
    trace = trace_of(ask.store, name)
    if trace.spans and not path:
        spans = [span_out(span) for span in spans_of(ask.store, trace)]
        return Attachment(NAME, json.dumps({"spans": spans}).encode())
    # The place is our own word: the tag that names it is one that clients can change.
    place = place_of(experiment_of(ask.store, trace.experiment), trace.trace_id)
    return ask.artifacts.find(place, f"attachments/{path}" if path else NAME)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


ROUTES = (
    HandlerRoute("GET", "2.0/mlflow/get-trace-artifact", get_trace_artifact, "read", slow=True, streams=True),
    HandlerRoute("GET", "3.0/mlflow/get-trace-artifact", get_trace_artifact, "read", slow=True, streams=True),
)
