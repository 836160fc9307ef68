"""Spans as OpenTelemetry's exporters send them: `POST /v1/traces`, protobuf or JSON, gzip or plain.

Source: OTLP/HTTP 1.x. As MLflow asks, the header `x-mlflow-experiment-id` says where the traces belong, and
`x-mlflow-run-id` to which run. Spans are on disk before the answer leaves.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import MissingExtraError
from everloop.server.mlflow.experiments import active_experiment
from everloop.server.mlflow.reply import record_id
from everloop.server.mlflow.traces import LONGEST_PREVIEW, NAME, SPANS_AT, change, checked_id, link_traces
from everloop.server.mlflow.wire import MlflowError, missing
from everloop.stores.clock import EPOCH

if TYPE_CHECKING:
    from everloop.records import Trace
    from everloop.stores import Store

PATH = "/v1/traces"
MOST_BYTES = 32 << 20
PROTOBUF, JSON = "application/x-protobuf", "application/json"
_WHOLE = frozenset({"start_time_unix_nano", "end_time_unix_nano", "time_unix_nano", "int_value"})
_SCHEMA = {"mlflow.trace_schema.version": "3"}


def take_spans(store: Store, headers: Mapping[str, str], body: bytes) -> None:
    """Keep the spans of one export.

    Raises:
        MlflowError: it is none, or names no experiment that there is.
    """
    number = headers.get("x-mlflow-experiment-id", "")
    if not number:
        raise missing("x-mlflow-experiment-id")
    active_experiment(store, number)
    spans = _read(headers.get("content-type", ""), _unpacked(headers.get("content-encoding", ""), body))
    by_trace: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        by_trace.setdefault(_trace_id(span), []).append(span)
    for name, group in by_trace.items():
        digest = store.objects.add(msgspec.json.encode(group))
        change(store, name, number, lambda trace, d=digest, g=group: _with_spans(trace, d, g))
    run = headers.get("x-mlflow-run-id", "")
    if run:
        link_traces(store, list(by_trace), record_id(run))


def _with_spans(trace: Trace, digest: str, spans: list[dict[str, Any]]) -> Trace:
    if digest in trace.spans:
        return trace  # sent again
    trace = replace(trace, spans=(*trace.spans, digest), tags={**trace.tags, SPANS_AT: "TRACKING_STORE"})
    if trace.told:
        return trace
    first = min(int(span.get("start_time_unix_nano", 0)) for span in spans)
    begun = EPOCH + timedelta(microseconds=first // 1000)
    begun = begun if len(trace.spans) == 1 else min(begun, trace.requested_at)
    root = next((span for span in spans if not span.get("parent_span_id")), None)
    if root is None:
        return replace(
            trace,
            requested_at=begun,
            state="in_progress" if trace.state == "unspecified" else trace.state,
            metadata={**_SCHEMA, **trace.metadata},
        )
    said = {one.get("key"): one.get("value", {}).get("string_value") for one in root.get("attributes", ())}
    ended = int(root.get("end_time_unix_nano", 0))
    failed = root.get("status", {}).get("code") == "STATUS_CODE_ERROR"
    return replace(
        trace,
        requested_at=begun,
        seconds=max(ended - int(root.get("start_time_unix_nano", 0)), 0) / 1e9 if ended else None,
        state=("error" if failed else "ok") if ended else "in_progress",
        request_preview=_preview(said.get("mlflow.spanInputs")) or trace.request_preview,
        response_preview=_preview(said.get("mlflow.spanOutputs")) or trace.response_preview,
        tags={NAME: str(root.get("name", "")), **trace.tags},
        metadata={**_SCHEMA, **trace.metadata},
    )


def _preview(text: str | None) -> str | None:
    return text[:LONGEST_PREVIEW] if text else None


def _trace_id(span: Mapping[str, Any]) -> str:
    """What MLflow calls the trace: as the span itself says, else by OpenTelemetry's number."""
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
        raise MlflowError(f"The body is cut off, or has more than {MOST_BYTES} bytes.", "BAD_REQUEST")
    return data


def _read(kind: str, body: bytes) -> list[dict[str, Any]]:
    """The spans of an export, each as protobuf's JSON spells it, with whole numbers as numbers."""
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
        _plain(MessageToDict(span, preserving_proto_field_name=True))
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    if not found:
        raise MlflowError("Invalid OpenTelemetry format - no spans found", "BAD_REQUEST")
    for span in found:
        _check(span)
    return found


def _check(span: Mapping[str, Any]) -> None:
    # 22 and 12 characters of Base64 and their padding are the 16 and 8 bytes of an id.
    if len(span.get("trace_id", "")) != 24 or len(span.get("span_id", "")) != 12:
        raise MlflowError("Invalid OpenTelemetry format - a span needs ids of 16 and 8 bytes", "BAD_REQUEST")


def _plain(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _plain(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, name) for item in value]
    return int(value) if name in _WHOLE else value


def _with_base64_ids(export: Any) -> Any:
    """OTLP's JSON spells ids in hexadecimal digits, where protobuf's has Base64."""
    for span in _spans_of(export):
        for name in ("traceId", "spanId", "parentSpanId"):
            if span.get(name):
                span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return export


def _spans_of(export: Any) -> Iterable[Any]:
    for resource in export.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())
