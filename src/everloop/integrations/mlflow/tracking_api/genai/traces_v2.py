"""The older form of the trace API, which clients before MLflow 3 speak: begun, ended and shown as flat information.

It is mapped onto the same record; a trace's spans such clients keep as a file beside the experiment's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from everloop.integrations.mlflow.tracking_api.codec import Fields, invalid, moment_at, ms_of, pairs_out
from everloop.integrations.mlflow.tracking_api.genai.trace_search import found_traces
from everloop.integrations.mlflow.tracking_api.genai.traces import SAID, STATES, change, trace_of
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_tag
from everloop.integrations.mlflow.tracking_api.page_tokens import paged

if TYPE_CHECKING:
    from everloop.records import Trace

LONGEST = 250
"""Characters of a key or value of the metadata that are shown."""


def start_trace(ask: HandlerContext) -> Mapping[str, Any]:
    fields = ask.fields
    number, begun = fields.text("experiment_id"), moment_at("timestamp_ms", fields.integer("timestamp_ms"))
    metadata, tags = _said(fields)

    def begin(known: Trace) -> Trace:
        return replace(
            known, requested_at=begun, state="in_progress", told=True, metadata=metadata, tags={**tags, **known.tags}
        )

    return {"trace_info": info_out(change(ask.store, uuid4().hex, number, begin))}


def end_trace(ask: HandlerContext) -> Mapping[str, Any]:
    fields = ask.fields
    ended = moment_at("timestamp_ms", fields.integer("timestamp_ms"))
    said = fields.text("status", required=False) or "STATE_UNSPECIFIED"
    status = "STATE_UNSPECIFIED" if said == "TRACE_STATUS_UNSPECIFIED" else said
    if status not in STATES:
        raise invalid("status", said)
    metadata, tags = _said(fields)
    with ask.store.records.transaction():
        known = trace_of(ask.store, ask.path["trace_id"])
        trace = ask.store.records.update(
            replace(
                known,
                seconds=(ms_of(ended) - ms_of(known.requested_at)) / 1000,
                state=STATES[status],
                metadata={**known.metadata, **metadata},
                tags={**known.tags, **tags},
            )
        )[0]
    return {"trace_info": info_out(trace)}


def get_trace_info(ask: HandlerContext) -> Mapping[str, Any]:
    return {"trace_info": info_out(trace_of(ask.store, ask.path["trace_id"]))}


def search_traces(ask: HandlerContext) -> Mapping[str, Any]:
    rows, page, most = found_traces(ask, ask.fields.texts("experiment_ids", required=True))
    return paged(rows, page, most, info_out, "traces")


def info_out(trace: Trace) -> dict[str, Any]:
    said = SAID[trace.state]
    shown = {key[:LONGEST]: value[:LONGEST] for key, value in trace.metadata.items()}
    return {
        "request_id": trace.trace_id,
        "experiment_id": trace.experiment,
        "timestamp_ms": ms_of(trace.requested_at),
        "execution_time_ms": round((trace.seconds or 0) * 1000),
        "status": "TRACE_STATUS_UNSPECIFIED" if said == "STATE_UNSPECIFIED" else said,
        "request_metadata": pairs_out(shown),
        "tags": pairs_out(trace.tags),
    }


def _said(fields: Fields) -> tuple[dict[str, str], dict[str, str]]:
    tags = {key: check_tag(key, value) for key, value in fields.pairs("tags").items()}
    return fields.pairs("request_metadata"), tags


_ONE = "2.0/mlflow/traces/{trace_id}"
ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/traces", start_trace, "write"),
    HandlerRoute("GET", "2.0/mlflow/traces", search_traces, "read", slow=True),
    HandlerRoute("PATCH", _ONE, end_trace, "write"),
    HandlerRoute("GET", f"{_ONE}/info", get_trace_info, "read"),
)
