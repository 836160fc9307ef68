"""One trace: the tree of its spans, in the order in which they began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.records import Json, Trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.stores import Store

MOST_SPANS = 2000
_LONGEST = 20_000
"""Characters of one attribute that are sent."""
_SCALARS = ("string_value", "int_value", "double_value", "bool_value", "bytes_value")


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """One span. `starts` is counted from the beginning of the trace; `depth` is 0 for a root."""

    id: str
    name: str
    depth: int
    starts: float
    """Seconds."""
    seconds: float | None
    """None if the span has not ended."""
    status: str
    """`ok`, `error` or `unset`."""
    message: str
    attributes: dict[str, str]
    events: list[str]


@dataclass(frozen=True, slots=True)
class TraceDetail:
    """A trace and its spans, each after the span that it belongs to. `left_out`: spans beyond those sent."""

    trace: Trace
    spans: list[TraceSpan]
    left_out: int


def read_trace(store: Store, ref: str) -> TraceDetail:
    """Return a trace by its id.

    Raises:
        NotFoundError: the trace does not exist.
    """
    import msgspec

    trace = store.records.get(Trace, ref)
    spans: dict[str, Any] = {}
    for digest in trace.spans:
        for span in msgspec.json.decode(store.objects.read(digest)):
            # A span that is sent again replaces the earlier one.
            spans[str(span.get("span_id", ""))] = span
    first = min((_nanoseconds(span, "start") for span in spans.values()), default=0)
    ordered = _in_tree_order(spans)
    shown = [_shown(span, depth, first) for span, depth in ordered[:MOST_SPANS]]
    return TraceDetail(trace, shown, len(ordered) - len(shown))


def _in_tree_order(spans: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """Return spans with their depth, parents first. A span whose parent is missing, or is below it, is a root."""
    below: dict[str, list[str]] = {}
    for key, span in spans.items():
        parent = str(span.get("parent_span_id") or "")
        below.setdefault(parent if parent in spans and parent != key else "", []).append(key)

    def start(key: str) -> tuple[int, str]:
        return _nanoseconds(spans[key], "start"), key

    found: list[tuple[Any, int]] = []
    seen: set[str] = set()
    # Spans that are each other's parents are reached from no root, so each span gets its chance to begin.
    for root in [*sorted(below.get("", ()), key=start), *sorted(spans, key=start)]:
        stack = [(root, 0)]
        while stack:
            key, depth = stack.pop()
            if key in seen:
                continue
            seen.add(key)
            found.append((spans[key], depth))
            stack += [(child, depth + 1) for child in sorted(below.get(key, ()), key=start, reverse=True)]
    return found


def _shown(span: Mapping[str, Any], depth: int, first: int) -> TraceSpan:
    starts, ends = _nanoseconds(span, "start"), _nanoseconds(span, "end")
    status = span.get("status") or {}
    return TraceSpan(
        id=str(span.get("span_id", "")),
        name=str(span.get("name", "")),
        depth=depth,
        starts=(starts - first) / 1e9,
        seconds=(ends - starts) / 1e9 if ends else None,
        status=str(status.get("code", "")).removeprefix("STATUS_CODE_").lower() or "unset",
        message=str(status.get("message", "")),
        attributes={str(one.get("key", "")): _text(_value(one.get("value"))) for one in span.get("attributes", ())},
        events=[str(event.get("name", "")) for event in span.get("events", ())],
    )


def _nanoseconds(span: Mapping[str, Any], end: str) -> int:
    return int(span.get(f"{end}_time_unix_nano") or 0)


def _value(value: Any) -> Json:
    """Return the value of an attribute, which names its type in the JSON form of protobuf."""
    if not isinstance(value, dict):
        return None
    for kind in _SCALARS:
        if kind in value:
            found: Json = value[kind]
            return found
    if "array_value" in value:
        return [_value(item) for item in value["array_value"].get("values", ())]
    if "kvlist_value" in value:
        return {str(one.get("key", "")): _value(one.get("value")) for one in value["kvlist_value"].get("values", ())}
    return None


def _text(value: Json) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
