"""The spans of a trace: stored in OpenTelemetry's form, and converted for MLflow's clients and filters."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from everloop.records import Json, Trace
    from everloop.stores import Store

TYPE, COST = "mlflow.spanType", "mlflow.llm.cost"
TOKEN_KINDS = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)
COST_KINDS = ("input_cost", "output_cost", "total_cost")
_SCALARS = ("string_value", "int_value", "double_value", "bool_value", "bytes_value")
_STATUS = {"STATUS_CODE_OK": "OK", "STATUS_CODE_ERROR": "ERROR"}
_ODD = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def spans_of(store: Store, trace: Trace) -> list[dict[str, Any]]:
    """Return the spans of a trace in OpenTelemetry's form: the root first, then sorted by start time."""
    spans: dict[str, Any] = {}
    for digest in trace.spans:
        for span in msgspec.json.decode(store.objects.read(digest)):
            # A span that is sent again replaces the earlier one.
            spans[span.get("span_id", "")] = span
    return sorted(spans.values(), key=lambda span: (bool(span.get("parent_span_id")), started(span)))


def started(span: Mapping[str, Any]) -> int:
    """Return the start in nanoseconds since 1970."""
    return int(span.get("start_time_unix_nano", 0))


def ended(span: Mapping[str, Any]) -> int | None:
    return int(span.get("end_time_unix_nano", 0)) or None


def status_of(span: Mapping[str, Any]) -> str:
    return _STATUS.get(span.get("status", {}).get("code", ""), "UNSET")


def attributes_of(span: Mapping[str, Any]) -> dict[str, Json]:
    return {one.get("key", ""): value_of(one.get("value")) for one in span.get("attributes", ())}


def value_of(value: Any) -> Json:
    """Return the value of an attribute, which names its type in the JSON form of protobuf."""
    if not isinstance(value, dict):
        return None
    for kind in _SCALARS:
        if kind in value:
            return _ODD.get(value[kind], value[kind]) if kind == "double_value" else value[kind]
    if "array_value" in value:
        return [value_of(item) for item in value["array_value"].get("values", ())]
    if "kvlist_value" in value:
        return {one.get("key", ""): value_of(one.get("value")) for one in value["kvlist_value"].get("values", ())}
    return None


def text_of(value: Json) -> str:
    """Return an attribute's value as filters compare it: a string as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parsed(value: Json) -> Json:
    """Parse a value that may be JSON in a string; otherwise return it unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def rolled_up(spans: Sequence[Mapping[str, Any]], attribute: str, names: Sequence[str]) -> dict[str, Any]:
    """Sum the figures that spans have in an attribute; empty if no span has it.

    A span's figures include those of its descendants, which are therefore not counted again.
    """
    known = {span.get("span_id", ""): span for span in spans}
    below: dict[str, list[Mapping[str, Any]]] = {}
    for span in spans:
        parent = span.get("parent_span_id") or ""
        below.setdefault(parent if parent in known else "", []).append(span)
    sums: dict[str, Any] = {}
    left = list(below.get("", ()))
    while left:
        span = left.pop()
        figures = parsed(attributes_of(span).get(attribute))
        if isinstance(figures, dict):
            found = {name: figures[name] for name in figures if name in names and is_figure(figures[name])}
            sums = {name: sums.get(name, 0) + found.get(name, 0) for name in names if name in sums or name in found}
        else:
            left.extend(below.pop(span.get("span_id", ""), ()))
    return sums


def is_figure(value: Json) -> bool:
    """Whether a value is a number that can be summed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def span_out(span: Mapping[str, Any]) -> dict[str, Any]:
    """Return a span as MLflow writes it to a trace's file: each attribute as JSON in a string."""
    return {
        "trace_id": span.get("trace_id", ""),
        "span_id": span.get("span_id", ""),
        "parent_span_id": span.get("parent_span_id") or None,
        "name": span.get("name", ""),
        "start_time_unix_nano": started(span),
        "end_time_unix_nano": ended(span),
        "events": [
            {
                "name": event.get("name", ""),
                "time_unix_nano": int(event.get("time_unix_nano", 0)),
                "attributes": attributes_of(event),
            }
            for event in span.get("events", ())
        ],
        "status": {
            "code": span.get("status", {}).get("code", "STATUS_CODE_UNSET"),
            "message": span.get("status", {}).get("message", ""),
        },
        "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in attributes_of(span).items()},
        "links": [
            {
                "trace_id": f"tr-{_hex(link.get('trace_id', ''))}",
                "span_id": _hex(link.get("span_id", "")),
                "attributes": attributes_of(link),
            }
            for link in span.get("links", ())
        ],
    }


def content_of(span: Mapping[str, Any]) -> str:
    """Return all content of a span as one string."""
    return json.dumps(span_out(span), ensure_ascii=False)


def _hex(text: str) -> str:
    return base64.b64decode(text).hex()
