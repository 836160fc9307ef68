"""Route that searches traces by MLflow's filters: by fields of a trace, content of its spans, and assessments.

All comparisons of spans must hold for the same span. An assessment of a whole session, according to its metadata,
counts for each trace of the session.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, ms_of
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_limit
from everloop.integrations.mlflow.tracking_api.filter_strings import Grammar, Term, meets, parse_filter, parse_order
from everloop.integrations.mlflow.tracking_api.genai.spans import (
    TYPE,
    attributes_of,
    content_of,
    parsed,
    spans_of,
    status_of,
    text_of,
)
from everloop.integrations.mlflow.tracking_api.genai.traces import (
    AT_ONCE,
    NAME,
    PROMPTS,
    SESSION,
    SOURCE_RUN,
    STATE_NAMES,
    experiment_in,
    is_there,
    trace_out,
)
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.page_tokens import Page, paged
from everloop.integrations.mlflow.tracking_api.serializers import wire_id
from everloop.records import Trace

if TYPE_CHECKING:
    from everloop.records import Json
    from everloop.stores import Store

USUAL, MOST = 100, 500
LONGEST_S = 20.0
"""A search that takes longer is stopped."""
_GRAMMAR = Grammar(
    texts=frozenset({"name", "status", "request_id", "run_id", "client_request_id", "prompt", "text"}),
    numbers=frozenset({"timestamp_ms", "execution_time_ms", "end_time_ms"}),
    entities=frozenset({"attribute", "tag", "metadata", "span", "feedback", "expectation", "issue"}),
    listed=frozenset({"name", "status", "request_id", "run_id", "client_request_id"}),
    aliases=(
        ("timestamp", "timestamp_ms"),
        ("execution_time", "execution_time_ms"),
        ("end_time", "end_time_ms"),
        ("trace_id", "request_id"),
        ("state", "status"),
    ),
    heads=(
        ("trace", "attribute"),
        ("metadata", "metadata"),
        ("request_metadata", "metadata"),
        ("span", "span"),
        ("feedback", "feedback"),
        ("expectation", "expectation"),
        ("issue", "issue"),
    ),
    patterns=True,
)
_ORDERS = replace(
    _GRAMMAR,
    texts=frozenset({"name", "status", "request_id", "run_id", "experiment_id"}),
    entities=frozenset({"attribute", "tag", "metadata"}),
)
_SPAN_OPS = frozenset({"=", "!=", "IN", "NOT IN", "LIKE", "ILIKE", "RLIKE"})
_CONTENT_OPS = frozenset({"LIKE", "ILIKE"})
_OF_SPANS = ("name", "status", "type")
_ATTRIBUTES = "attributes."


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """A filter; its comparisons are grouped by what they compare."""

    plain: tuple[Term, ...]
    spans: tuple[Term, ...]
    assessments: tuple[Term, ...]

    @classmethod
    def of(cls, text: str) -> TraceQuery:
        """Parse a filter.

        Raises:
            MlflowError: it is malformed, or compares something that traces do not have.
        """
        plain, spans, assessments = [], [], []
        for term in parse_filter(text, _GRAMMAR):
            if term.entity == "span" or (term.entity, term.key) == ("attribute", "text"):
                spans.append(_checked_span(term))
            elif term.entity in ("feedback", "expectation", "issue"):
                assessments.append(_checked_assessment(term))
            else:
                plain.append(_checked_prompt(term))
        return cls(tuple(plain), tuple(spans), tuple(assessments))


def search_traces(context: HandlerContext) -> Mapping[str, Any]:
    numbers = [
        experiment_in(location)
        for location in context.fields.objects("locations", required=True)
        if location.has("mlflow_experiment")
    ]
    if not numbers:
        raise MlflowError("At least one location must be specified.")
    rows, page, most = found_traces(context, numbers)
    return paged(rows, page, most, trace_out, "traces")


def found_traces(context: HandlerContext, numbers: Sequence[str]) -> tuple[list[Trace], Page, int]:
    """Return the traces of these experiments that match a request's filter, sorted; and its page and limit."""
    fields = context.fields
    most = checked_limit(fields, USUAL, MOST, lowest=1)
    query = TraceQuery.of(fields.text("filter", required=False))
    orders = [parse_order(text, _ORDERS) for text in fields.texts("order_by")]
    if len({order[:2] for order in orders}) != len(orders):
        raise MlflowError(f"`order_by` contains duplicate fields: {fields.texts('order_by')}")
    page = Page.of(fields.text("page_token", required=False))
    rows = matching(context.store, traces_in(context.store, numbers), query)
    rows.sort(key=lambda trace: trace.trace_id)
    rows.sort(key=lambda trace: trace.requested_at, reverse=True)
    for entity, key, ascending in reversed(orders):
        there = [(value, trace) for trace in rows if (value := _found(trace, entity, key)) is not None]
        without = [trace for trace in rows if _found(trace, entity, key) is None]
        there.sort(key=lambda pair: pair[0], reverse=not ascending)
        rows = [*(trace for _, trace in there), *without]
    return rows, page, most


def traces_in(store: Store, numbers: Sequence[str]) -> list[Trace]:
    known = list(dict.fromkeys(numbers))
    return [
        trace
        for begin in range(0, len(known), AT_ONCE)
        for trace in store.records.find(Trace, ("experiment", "in", known[begin : begin + AT_ONCE]))
        if is_there(trace)
    ]


def matching(store: Store, traces: Sequence[Trace], query: TraceQuery) -> list[Trace]:
    """Return the traces for which all comparisons hold.

    Raises:
        MlflowError: the search takes too long.
    """
    until = time.monotonic() + LONGEST_S
    sessions = [_sessions(traces, term) for term in query.assessments]
    chosen = []
    for trace in traces:
        if time.monotonic() > until:
            raise MlflowError(
                f"The search took longer than {LONGEST_S:.0f} s. Narrow the filter, for example by a time or a tag."
            )
        if (
            meets(query.plain, lambda term, t=trace: _value(t, term))  # type: ignore[misc]
            and all(map(lambda term, known, t=trace: _is_assessed(t, term, known), query.assessments, sessions))  # type: ignore[misc]
            and (not query.spans or _has_span(store, trace, query.spans))
        ):
            chosen.append(trace)
    return chosen


def assessed_value(assessment: Mapping[str, Any]) -> Json:
    """Return the value of an assessment; None for an issue."""
    for kind in ("feedback", "expectation"):
        content = assessment.get(kind)
        if isinstance(content, dict):
            packed = content.get("serialized_value")
            return parsed(packed.get("value")) if isinstance(packed, dict) else _with_floats(content.get("value"))
    return None


def _with_floats(value: Json) -> Json:
    """Convert all numbers in a value to floats, as in protobuf's `Value`, as they are compared in JSON form."""
    match value:
        case bool():
            return value
        case int():
            return float(value) if abs(value) < 10**300 else None
        case list():
            return [_with_floats(item) for item in value]
        case dict():
            return {key: _with_floats(item) for key, item in value.items()}
    return value


def kind_of(assessment: Mapping[str, Any]) -> str:
    return next((kind for kind in ("feedback", "expectation", "issue") if assessment.get(kind) is not None), "")


def _checked_span(term: Term) -> Term:
    key = "content" if term.entity == "attribute" else term.key
    ops = _CONTENT_OPS if key == "content" else _SPAN_OPS
    if key == _ATTRIBUTES:
        raise MlflowError("Span attribute name cannot be empty after 'attributes.'")
    if key != "content" and key not in _OF_SPANS and not key.startswith(_ATTRIBUTES):
        raise MlflowError(
            f"Invalid span attribute '{key[:200]}'. Supported attributes: {', '.join(_OF_SPANS)}, "
            "attributes.<attribute_name>."
        )
    if term.op not in ops:
        raise MlflowError(f"span.{key[:200]} comparator '{term.op}' not one of '{sorted(ops)}'")
    if key.startswith(_ATTRIBUTES):
        key = _ATTRIBUTES + key.removeprefix(_ATTRIBUTES).strip("`")
    return replace(term, entity="span", key=key)


def _checked_assessment(term: Term) -> Term:
    if not term.key:
        raise MlflowError("Assessment field name cannot be empty")
    if term.entity == "issue" and term.key != "id":
        raise MlflowError(f"Invalid issue attribute '{term.key[:200]}'. Supported attributes: id")
    if term.entity == "issue" and term.op != "=":
        raise MlflowError(f"issue.id comparator '{term.op}' not one of '['=']'")
    return term


def _checked_prompt(term: Term) -> Term:
    if (term.entity, term.key) != ("attribute", "prompt"):
        return term
    if term.op != "=":
        raise MlflowError(
            f"Invalid comparator '{term.op}' for prompts filter. Only '=' is supported with format: "
            'prompt = "name/version"'
        )
    if str(term.value).count("/") != 1:
        raise MlflowError(f"Invalid prompts filter value '{term.value}'. Expected format: prompt = \"name/version\"")
    return term


def _value(trace: Trace, term: Term) -> Any:
    if (term.entity, term.key) == ("attribute", "run_id"):
        runs = [run for run in (trace.metadata.get(SOURCE_RUN), *map(wire_id, trace.runs)) if run]
        wanted = term.value if isinstance(term.value, tuple) else (term.value,)
        return next((run for run in runs if run in wanted), runs[0] if runs else None)
    if (term.entity, term.key) == ("attribute", "prompt"):
        return term.value if term.value in _prompts(trace) else None
    return _found(trace, term.entity, term.key)


def _found(trace: Trace, entity: str, key: str) -> Any:
    if entity == "tag":
        return trace.tags.get(key)
    if entity == "metadata":
        return trace.metadata.get(key)
    took = None if trace.seconds is None else round(trace.seconds * 1000)
    match key:
        case "name":
            return trace.tags.get(NAME)
        case "status":
            return STATE_NAMES[trace.state]
        case "request_id":
            return trace.trace_id
        case "client_request_id":
            return trace.client_request
        case "run_id":
            return trace.metadata.get(SOURCE_RUN)
        case "experiment_id":
            return int(trace.experiment)
        case "execution_time_ms":
            return took
        case "end_time_ms":
            return ms_of(trace.requested_at) + (took or 0)
    return ms_of(trace.requested_at)


def _prompts(trace: Trace) -> list[str]:
    content = parsed(trace.tags.get(PROMPTS, "[]"))
    return [f"{one.get('name')}/{one.get('version')}" for one in content if isinstance(one, dict)] if content else []


def _has_span(store: Store, trace: Trace, terms: Sequence[Term]) -> bool:
    return any(meets(terms, lambda term, s=span: _of_span(s, term.key)) for span in spans_of(store, trace))  # type: ignore[misc]


def _of_span(span: Mapping[str, Any], key: str) -> str | None:
    match key:
        case "name":
            return str(span.get("name", ""))
        case "status":
            return status_of(span)
        case "content":
            return content_of(span)
    attributes = attributes_of(span)
    name = TYPE if key == "type" else key.removeprefix(_ATTRIBUTES)
    return text_of(attributes[name]) if name in attributes else None


def _is_assessed(trace: Trace, term: Term, sessions: frozenset[str]) -> bool:
    found = bool(_meeting(trace, term)) or trace.metadata.get(SESSION) in sessions
    return not found if term.op == "IS NULL" else found


def _meeting(trace: Trace, term: Term) -> list[Mapping[str, Any]]:
    """Return the trace's assessments for which a comparison holds. IS NULL is treated like IS NOT NULL here."""
    if term.entity == "issue":
        return [one for one in trace.assessments if one.get("issue") and one.get("assessment_name") == term.value]
    return [
        one
        for one in trace.assessments
        if one.get("valid", True)
        and kind_of(one) == term.entity
        and one.get("assessment_name") == term.key
        and _holds(term, assessed_value(one))
    ]


def _holds(term: Term, value: Json) -> bool:
    if term.op in ("IS NULL", "IS NOT NULL"):
        return True
    if term.op in ("<", "<=", ">", ">="):
        return isinstance(value, int | float) and not isinstance(value, bool) and term.holds(value)
    text = json.dumps(value)
    if term.op in ("=", "!="):
        # A string is compared as it is, any other value as JSON.
        return (term.value == text or term.value == value) is (term.op == "=")
    return term.holds(text)


def _sessions(traces: Iterable[Trace], term: Term) -> frozenset[str]:
    """Return the sessions that have a matching assessment of the whole session."""
    if term.entity == "issue":
        return frozenset()
    return frozenset(
        trace.metadata[SESSION]
        for trace in traces
        if SESSION in trace.metadata and any(SESSION in (one.get("metadata") or {}) for one in _meeting(trace, term))
    )


ROUTES = (HandlerRoute("POST", "3.0/mlflow/traces/search", search_traces, "read", slow=True),)
