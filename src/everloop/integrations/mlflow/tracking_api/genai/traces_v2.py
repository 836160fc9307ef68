"""Routes of the older trace API, for clients before MLflow 3: start, end, get and search.

It uses the same records. Such clients store a trace's spans in a file among the experiment's artifacts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from everloop.integrations.mlflow.tracking_api.codec import Fields, invalid, moment_at, ms_of, pairs_out
from everloop.integrations.mlflow.tracking_api.genai.trace_search import found_traces
from everloop.integrations.mlflow.tracking_api.genai.traces import STATE_NAMES, STATES, change, trace_of
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_tag
from everloop.integrations.mlflow.tracking_api.page_tokens import paged

if TYPE_CHECKING:
    from everloop.records import Trace

LONGEST = 250
"""Most characters of a key or value of the metadata in a response."""


def start_trace(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    number, started = fields.text("experiment_id"), moment_at("timestamp_ms", fields.integer("timestamp_ms"))
    metadata, tags = _metadata_and_tags(fields)

    def start(known: Trace) -> Trace:
        return replace(
            known, requested_at=started, state="in_progress", told=True, metadata=metadata, tags={**tags, **known.tags}
        )

    return {"trace_info": info_out(change(context.store, uuid4().hex, number, start))}


def end_trace(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    ended = moment_at("timestamp_ms", fields.integer("timestamp_ms"))
    state_name = fields.text("status", required=False) or "STATE_UNSPECIFIED"
    status = "STATE_UNSPECIFIED" if state_name == "TRACE_STATUS_UNSPECIFIED" else state_name
    if status not in STATES:
        raise invalid("status", state_name)
    metadata, tags = _metadata_and_tags(fields)
    with context.store.records.transaction():
        known = trace_of(context.store, context.path["trace_id"])
        trace = context.store.records.update(
            replace(
                known,
                seconds=(ms_of(ended) - ms_of(known.requested_at)) / 1000,
                state=STATES[status],
                metadata={**known.metadata, **metadata},
                tags={**known.tags, **tags},
            )
        )[0]
    return {"trace_info": info_out(trace)}


def get_trace_info(context: HandlerContext) -> Mapping[str, Any]:
    return {"trace_info": info_out(trace_of(context.store, context.path["trace_id"]))}


def search_traces(context: HandlerContext) -> Mapping[str, Any]:
    rows, page, most = found_traces(context, context.fields.texts("experiment_ids", required=True))
    return paged(rows, page, most, info_out, "traces")


def info_out(trace: Trace) -> dict[str, Any]:
    state_name = STATE_NAMES[trace.state]
    shown = {key[:LONGEST]: value[:LONGEST] for key, value in trace.metadata.items()}
    return {
        "request_id": trace.trace_id,
        "experiment_id": trace.experiment,
        "timestamp_ms": ms_of(trace.requested_at),
        "execution_time_ms": round((trace.seconds or 0) * 1000),
        "status": "TRACE_STATUS_UNSPECIFIED" if state_name == "STATE_UNSPECIFIED" else state_name,
        "request_metadata": pairs_out(shown),
        "tags": pairs_out(trace.tags),
    }


def _metadata_and_tags(fields: Fields) -> tuple[dict[str, str], dict[str, str]]:
    tags = {key: check_tag(key, value) for key, value in fields.pairs("tags").items()}
    return fields.pairs("request_metadata"), tags


_ONE = "2.0/mlflow/traces/{trace_id}"
ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/traces", start_trace, "write"),
    HandlerRoute("GET", "2.0/mlflow/traces", search_traces, "read", slow=True),
    HandlerRoute("PATCH", _ONE, end_trace, "write"),
    HandlerRoute("GET", f"{_ONE}/info", get_trace_info, "read"),
)
