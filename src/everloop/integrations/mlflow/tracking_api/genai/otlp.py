"""Receives spans from OpenTelemetry exporters: `POST /v1/traces`, in protobuf or JSON, gzip or plain.

Source: OTLP/HTTP 1.x. As in MLflow, the header `x-mlflow-experiment-id` names the experiment of the traces, and
`x-mlflow-run-id` the run. Spans are on disk before the response is sent.
"""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import MissingExtraError
from everloop.integrations.mlflow.tracking_api.codec import MlflowError, missing
from everloop.integrations.mlflow.tracking_api.experiment_routes import active_experiment
from everloop.integrations.mlflow.tracking_api.genai.spans import (
    COST,
    COST_KINDS,
    TOKEN_KINDS,
    attributes_of,
    ended,
    parsed,
    rolled_up,
    spans_of,
    started,
    status_of,
    text_of,
)
from everloop.integrations.mlflow.tracking_api.genai.traces import (
    LONGEST_PREVIEW,
    NAME,
    SESSION,
    SPANS_AT,
    TOKENS,
    change,
    checked_id,
    link_traces,
)
from everloop.integrations.mlflow.tracking_api.name_rules import check_tag
from everloop.integrations.mlflow.tracking_api.serializers import record_id
from everloop.stores.clock import EPOCH

if TYPE_CHECKING:
    from everloop.records import Json, Trace, TraceState
    from everloop.stores import Store

PATH = "/v1/traces"
MOST_BYTES = 32 << 20
PROTOBUF, JSON = "application/x-protobuf", "application/json"
_WHOLE = frozenset({"start_time_unix_nano", "end_time_unix_nano", "time_unix_nano", "int_value"})
_SCHEMA = {"mlflow.trace_schema.version": "3"}
_TAG = "mlflow.traceTag."
_NO_TAGS = ("telemetry.sdk.", "mlflow.")
USER = "mlflow.trace.user"
LONGEST_METADATA = 250


def store_spans(store: Store, headers: Mapping[str, str], body: bytes) -> None:
    """Store the spans of one export.

    Raises:
        MlflowError: the export is malformed, or its experiment does not exist.
    """
    number = headers.get("x-mlflow-experiment-id", "")
    if not number:
        raise missing("x-mlflow-experiment-id")
    active_experiment(store, number)
    spans = _read(headers.get("content-type", ""), _unpacked(headers.get("content-encoding", ""), body))
    by_trace: dict[str, list[dict[str, Any]]] = {}
    resources: dict[str, dict[str, Json]] = {}
    for resource, span in spans:
        name = _trace_id(span)
        by_trace.setdefault(name, []).append(span)
        resources[name] = resources.get(name) or resource
    for name, group in by_trace.items():
        digest = store.objects.add(msgspec.json.encode(group))
        tags = _tags("", resources[name], _NO_TAGS)
        change(store, name, number, lambda trace, d=digest, g=group, t=tags: _with_spans(store, trace, d, g, t))
    run = headers.get("x-mlflow-run-id", "")
    if run:
        link_traces(store, list(by_trace), record_id(run))


def _with_spans(store: Store, trace: Trace, digest: str, spans: list[dict[str, Any]], tags: dict[str, str]) -> Trace:
    if digest in trace.spans:
        return trace  # the export was repeated
    first = not trace.spans
    trace = replace(trace, spans=(*trace.spans, digest), tags={**tags, **trace.tags, SPANS_AT: "TRACKING_STORE"})
    root = next((span for span in spans if not span.get("parent_span_id")), None)
    trace = _with_metadata(store, trace, spans)
    if root is not None:
        trace = replace(trace, tags={**_tags(_TAG, attributes_of(root)), **trace.tags})
    if trace.told:
        # The client's own summary of the trace counts, unless it was sent before the trace ended.
        if root is not None and ended(root) and trace.state in ("unspecified", "in_progress"):
            return replace(trace, state=_state(root))
        return trace
    started_at = EPOCH + timedelta(microseconds=min(map(started, spans)) // 1000)
    trace = replace(
        trace,
        requested_at=started_at if first else min(started_at, trace.requested_at),
        metadata={**_SCHEMA, **trace.metadata},
    )
    if root is None:
        return replace(trace, state="in_progress" if trace.state == "unspecified" else trace.state)
    span_attributes, until = attributes_of(root), ended(root)
    return replace(
        trace,
        seconds=max(until - started(root), 0) / 1e9 if until else None,
        state=_state(root) if until else "in_progress",
        request_preview=_preview(span_attributes.get("mlflow.spanInputs")) or trace.request_preview,
        response_preview=_preview(span_attributes.get("mlflow.spanOutputs")) or trace.response_preview,
        tags={NAME: str(root.get("name", "")), **trace.tags},
    )


def _with_metadata(store: Store, trace: Trace, spans: Sequence[Mapping[str, Any]]) -> Trace:
    """Add token counts, costs, session and user from the spans to the trace's metadata."""
    span_attributes = [attributes_of(span) for span in spans]
    metadata = dict(trace.metadata)
    for name, attribute, kinds in (
        (TOKENS, "mlflow.chat.tokenUsage", TOKEN_KINDS),
        ("mlflow.trace.cost", COST, COST_KINDS),
    ):
        if any(attribute in one for one in span_attributes) and not (trace.told and name in metadata):
            sums = rolled_up(spans_of(store, trace), attribute, kinds)
            nothing = dict.fromkeys(kinds[:3], 0.0 if name != TOKENS else 0)
            if sums:
                metadata[name] = json.dumps({**nothing, **sums})
    for name, attributes in ((SESSION, ("session.id", "gen_ai.conversation.id")), (USER, ("user.id",))):
        found = next((one[key] for one in span_attributes for key in attributes if one.get(key)), None)
        if found is not None and name not in metadata:
            metadata[name] = text_of(parsed(found))[:LONGEST_METADATA]
    return replace(trace, metadata=metadata)


def _tags(prefix: str, span_attributes: Mapping[str, Json], left_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the attributes with this prefix as tags; those that are not valid tags are skipped."""
    tags: dict[str, str] = {}
    for key, value in span_attributes.items():
        if key.startswith(prefix) and not (left_out and key.startswith(left_out)):
            with contextlib.suppress(MlflowError):
                name = key.removeprefix(prefix)
                tags[name] = check_tag(name, text_of(value))
    return tags


def _state(root: Mapping[str, Any]) -> TraceState:
    return "error" if status_of(root) == "ERROR" else "ok"


def _preview(value: Json) -> str | None:
    return text_of(value)[:LONGEST_PREVIEW] if value else None


def _trace_id(span: Mapping[str, Any]) -> str:
    """Return MLflow's id of the trace: from the span's attribute, else from OpenTelemetry's trace id."""
    for attribute in span.get("attributes", ()):
        if attribute.get("key") == "mlflow.traceRequestId":
            text = attribute.get("value", {}).get("string_value", "")
            return checked_id(text.strip('"'))
    return checked_id(f"tr-{base64.b64decode(span.get('trace_id', '')).hex()}")


def _unpacked(encoding: str, body: bytes) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise MlflowError(f"Unsupported Content-Encoding: {encoding[:50]}", "BAD_REQUEST")
    try:
        unpacking = zlib.decompressobj(wbits=47 if encoding == "gzip" else 15)
        data = unpacking.decompress(body, MOST_BYTES)
    except zlib.error:
        raise MlflowError(f"Failed to decompress {encoding} payload", "BAD_REQUEST") from None
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise MlflowError(f"The compressed body is incomplete, or has more than {MOST_BYTES} bytes.", "BAD_REQUEST")
    return data


def _read(kind: str, body: bytes) -> list[tuple[dict[str, Json], dict[str, Any]]]:
    """Parse the spans of an export: for each, its resource's attributes, and the span in the JSON form of protobuf, but
    with integers as numbers."""
    try:
        from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError as error:
        raise MlflowError(
            str(MissingExtraError.of("Taking in traces", "opentelemetry-proto", "traces")), "NOT_IMPLEMENTED"
        ) from error
    media = kind.partition(";")[0].strip().lower()
    if media not in (PROTOBUF, JSON):
        raise MlflowError(f"Invalid Content-Type: {kind[:100]}. Expected: {PROTOBUF} or {JSON}", "BAD_REQUEST")
    export = ExportTraceServiceRequest()
    try:
        if media == JSON:
            ParseDict(_with_base64_ids(msgspec.json.decode(body)), export, ignore_unknown_fields=True)
        else:
            export.ParseFromString(body)
    except (DecodeError, ParseError, msgspec.DecodeError, ValueError, TypeError, AttributeError, RecursionError):
        raise MlflowError("Invalid OpenTelemetry format", "BAD_REQUEST") from None
    found = [
        (
            attributes_of(_plain(MessageToDict(resource.resource, preserving_proto_field_name=True))),
            _plain(MessageToDict(span, preserving_proto_field_name=True)),
        )
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    if not found:
        raise MlflowError("Invalid OpenTelemetry format - no spans found", "BAD_REQUEST")
    for _, span in found:
        _check(span)
    return found


def _check(span: Mapping[str, Any]) -> None:
    # In Base64 with padding, ids of 16 and 8 bytes have 24 and 12 characters.
    if len(span.get("trace_id", "")) != 24 or len(span.get("span_id", "")) != 12:
        raise MlflowError("Invalid OpenTelemetry format - a span needs ids of 16 and 8 bytes", "BAD_REQUEST")


def _plain(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _plain(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, name) for item in value]
    return int(value) if name in _WHOLE else value


def _with_base64_ids(export: Any) -> Any:
    """Convert ids from hexadecimal, as OTLP's JSON has them, to Base64, as protobuf's JSON expects."""
    for span in _spans_of(export):
        for name in ("traceId", "spanId", "parentSpanId"):
            if span.get(name):
                span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return export


def _spans_of(export: Any) -> Iterable[Any]:
    for resource in export.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())
