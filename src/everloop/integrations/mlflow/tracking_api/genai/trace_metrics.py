"""Route for metrics of traces, their spans and their assessments, in groups, for the charts of MLflow's web page.

Source: MLflow 3's `traces/metrics`. Percentiles interpolate between the two nearest values (method 7 of Hyndman and
Fan, the usual one of NumPy).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, invalid, missing, ms_of
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_limit
from everloop.integrations.mlflow.tracking_api.genai.spans import (
    COST,
    COST_KINDS,
    TOKEN_KINDS,
    TYPE,
    attributes_of,
    ended,
    parsed,
    spans_of,
    started,
    status_of,
    text_of,
)
from everloop.integrations.mlflow.tracking_api.genai.trace_search import assessed_value, kind_of, traces_in
from everloop.integrations.mlflow.tracking_api.genai.traces import NAME, SESSION, SOURCE_RUN, STATE_NAMES, TOKENS
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.serializers import wire_id
from everloop.records import Trace

if TYPE_CHECKING:
    from everloop.records import Json
    from everloop.stores import Store

USUAL, MOST = 1000, 50_000
LONGEST_INTERVAL_S = 100 * 366 * 86_400
MODEL, PROVIDER = "mlflow.llm.model", "mlflow.llm.provider"
_BUCKET = "time_bucket"
_COUNT = frozenset({"COUNT"})
_FIGURES = frozenset({"AVG", "MIN", "MAX", "PERCENTILE"})
_SUMS = _FIGURES | {"SUM"}
_AGGREGATIONS = _SUMS | _COUNT
_MODELS = frozenset({"span_model_name", "span_model_provider"})
_LONGEST_MODEL = 500

MetricOptions = tuple[frozenset[str], frozenset[str]]
"""The aggregations and the dimensions of a metric."""
METRICS: dict[str, dict[str, MetricOptions]] = {
    "TRACES": {
        "trace_count": (_COUNT, frozenset({"trace_name", "trace_status"})),
        "session_count": (_COUNT, frozenset()),
        "latency": (_FIGURES, frozenset({"trace_name"})),
        **dict.fromkeys(TOKEN_KINDS, (_SUMS, frozenset({"trace_name"}))),
    },
    "SPANS": {
        "span_count": (_COUNT, _MODELS | {"span_name", "span_type", "span_status"}),
        "latency": (_FIGURES, frozenset({"span_name", "span_status"})),
        **dict.fromkeys(COST_KINDS, (_SUMS, _MODELS)),
    },
    "ASSESSMENTS": {
        "assessment_count": (_COUNT, frozenset({"assessment_name", "assessment_value"})),
        "assessment_value": (_FIGURES, frozenset({"assessment_name"})),
    },
}
_ENTITIES = {
    "trace": {"status": False, "tag": True, "metadata": True},
    "span": {"name": False, "status": False, "type": False},
    "assessment": {"name": False, "type": False},
}
"""What filters may compare of each, and whether a key follows."""
_FILTER = re.compile(
    r"""\s*(?P<view>\w++)\.(?P<entity>\w++)(?:\.(?P<key>`[^`]*`|"[^"]*"|[^\s=<>!]++))?"""
    r"""\s*(?P<op><=|>=|!=|=|<|>|[A-Za-z]+)\s*(?P<value>'(?:[^']|'')*'|"[^"]*")\s*"""
)


@dataclass(frozen=True, slots=True)
class Item:
    """One trace, span or assessment, with its value for the requested metric."""

    trace: Trace
    at_ms: int
    value: Json
    dimensions: Mapping[str, str | None]
    facts: Mapping[str, str | None]
    """What filters may compare besides fields of the trace: `span.name`."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    kind: str
    percentile: float = 0.0

    @property
    def label(self) -> str:
        return f"P{self.percentile}" if self.kind == "PERCENTILE" else self.kind

    def of(self, values: Sequence[Any]) -> float:
        """Aggregate values. There must be at least one, except for COUNT."""
        match self.kind:
            case "COUNT":
                return float(len(values))
            case "SUM":
                return float(sum(values))
            case "AVG":
                return float(sum(values)) / len(values)
            case "MIN":
                return float(min(values))
            case "MAX":
                return float(max(values))
        ordered = sorted(values)
        position = self.percentile / 100 * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return float(ordered[below] + (ordered[above] - ordered[below]) * (position - below))


def query_metrics(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    numbers = fields.texts("experiment_ids", required=True)
    view, metric = fields.text("view_type"), fields.text("metric_name")
    aggregations = [_aggregation(one) for one in fields.objects("aggregations", required=True)]
    dimensions = fields.texts("dimensions")
    _check(view, metric, aggregations, dimensions)
    filters = [_filter(text, view) for text in fields.texts("filters")]
    interval_s = fields.integer("time_interval_seconds")
    if not 0 <= interval_s <= LONGEST_INTERVAL_S:
        raise invalid("time_interval_seconds", interval_s)
    begin = fields.integer("start_time_ms") if fields.has("start_time_ms") else None
    end = fields.integer("end_time_ms") if fields.has("end_time_ms") else None
    if interval_s and (begin is None or end is None):
        raise MlflowError("start_time_ms and end_time_ms are required if time_interval_seconds is set")
    most = checked_limit(fields, USUAL, MOST, lowest=1)
    by_span_time = view == "SPANS" and metric in COST_KINDS
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for item in _items(store, traces_in(store, numbers), view, metric):
        at = item.at_ms if by_span_time else ms_of(item.trace.requested_at)
        if (begin is not None and at < begin) or (end is not None and at > end) or item.value is None:
            continue
        named = tuple(item.dimensions.get(name) for name in dimensions)
        if None in named or not all(meets(item) for meets in filters):
            continue
        bucket = (item.at_ms // (interval_s * 1000) * interval_s * 1000,) if interval_s else ()
        groups.setdefault((*bucket, *named), []).append(item.value)
    if not groups and not dimensions and not interval_s:
        groups[()] = []
    names = [_BUCKET, *dimensions] if interval_s else dimensions
    points = []
    for group in sorted(groups):
        values = set(groups[group]) if metric == "session_count" else groups[group]
        figures = {one.label: one.of(list(values)) for one in aggregations if values or one.kind == "COUNT"}
        if figures:
            shown = dict(zip(names, group, strict=True))
            if interval_s:
                shown[_BUCKET] = datetime.fromtimestamp(group[0] / 1000, UTC).isoformat()
            points.append({"metric_name": metric, "dimensions": shown, "values": figures})
    return {"data_points": points[:most]} if points else {}


def _items(store: Store, traces: Iterable[Trace], view: str, metric: str) -> Iterator[Item]:
    for trace in traces:
        if view == "TRACES":
            named = {"trace_name": trace.tags.get(NAME), "trace_status": STATE_NAMES[trace.state]}
            yield Item(trace, ms_of(trace.requested_at), _of_trace(trace, metric), named, {})
        elif view == "SPANS":
            for span in spans_of(store, trace):
                yield _span_item(trace, span, metric)
        else:
            for assessment in trace.assessments:
                if assessment.get("valid", True):
                    yield _assessment_item(trace, assessment, metric)


def _of_trace(trace: Trace, metric: str) -> Json:
    match metric:
        case "trace_count":
            return trace.trace_id
        case "session_count":
            return trace.metadata.get(SESSION)
        case "latency":
            return None if trace.seconds is None else round(trace.seconds * 1000)
    return _figure(parsed(trace.metadata.get(TOKENS)), metric)


def _span_item(trace: Trace, span: Mapping[str, Any], metric: str) -> Item:
    attributes = attributes_of(span)
    kind = text_of(attributes[TYPE]) if TYPE in attributes else None
    facts = {"span.name": str(span.get("name", "")), "span.status": status_of(span), "span.type": kind}
    named = {
        "span_name": facts["span.name"],
        "span_type": kind,
        "span_status": facts["span.status"],
        "span_model_name": _model(attributes.get(MODEL)),
        "span_model_provider": _model(attributes.get(PROVIDER)),
    }
    value: Json
    match metric:
        case "span_count":
            value = span.get("span_id", "")
        case "latency":
            until = ended(span)
            value = None if until is None else (until - started(span)) // 1_000_000
        case _:
            value = _figure(parsed(attributes.get(COST)), metric)
    return Item(trace, started(span) // 1_000_000, value, named, facts)


def _assessment_item(trace: Trace, assessment: Mapping[str, Any], metric: str) -> Item:
    raw, name = assessed_value(assessment), str(assessment.get("assessment_name", ""))
    facts = {"assessment.name": name, "assessment.type": kind_of(assessment)}
    # A string is shown as JSON, as MLflow stores it.
    named = {"assessment_name": name, "assessment_value": text_of(raw) if not isinstance(raw, str) else f'"{raw}"'}
    value = assessment.get("assessment_id") if metric == "assessment_count" else _rated(raw)
    return Item(trace, ms_of(trace.requested_at), value, named, facts)


def _rated(raw: Json) -> float | None:
    """Return an assessment as a number: yes and true are 1, no and false are 0."""
    if isinstance(raw, str):
        return {"yes": 1.0, "no": 0.0}.get(raw.strip().lower())
    if isinstance(raw, int | float):
        try:
            value = float(raw)
        except OverflowError:
            return None
        return value if math.isfinite(value) else None
    return None


def _figure(raw: Json, name: str) -> float | None:
    value = raw.get(name) if isinstance(raw, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _rated(value)


def _model(raw: Json) -> str | None:
    raw = parsed(raw) if isinstance(raw, str) and raw[:1] == '"' else raw
    return raw[:_LONGEST_MODEL] if isinstance(raw, str) else None


def _aggregation(raw: Fields) -> Aggregation:
    kind = raw.text("aggregation_type")
    if kind not in _AGGREGATIONS:
        raise invalid("aggregation_type", kind)
    if kind != "PERCENTILE":
        if raw.has("percentile_value"):
            raise MlflowError(f"Percentile value is only allowed for PERCENTILE aggregation type, got {kind}")
        return Aggregation(kind)
    if not raw.has("percentile_value"):
        raise missing("percentile_value")
    percentile = raw.number("percentile_value")
    if not 0 <= percentile <= 100:
        raise MlflowError(f"Percentile value must be between 0 and 100, got {percentile}")
    return Aggregation(kind, percentile)


def _check(view: str, metric: str, aggregations: Iterable[Aggregation], dimensions: Iterable[str]) -> None:
    if view not in METRICS:
        raise MlflowError(f"view_type must be one of {list(METRICS)}, got '{view[:200]}'")
    if metric not in METRICS[view]:
        raise MlflowError(f"metric_name must be one of {list(METRICS[view])}, got '{metric[:200]}'")
    kinds, names = METRICS[view][metric]
    if wrong := {one.kind for one in aggregations} - kinds:
        raise MlflowError(
            f"Found invalid aggregation_type(s): {sorted(wrong)}. Supported aggregation types: {sorted(kinds)}"
        )
    if unknown := set(dimensions) - names:
        raise MlflowError(f"Found invalid dimension(s): {sorted(unknown)}. Supported dimensions: {sorted(names)}")


def _filter(text: str, view: str) -> Callable[[Item], bool]:
    """Parse one filter: `trace.tag.team = 'a'`.

    Raises:
        MlflowError: it is malformed, or compares something that this view does not have.
    """
    found = _FILTER.fullmatch(text) if len(text) <= USUAL * 10 else None
    if found is None:
        raise MlflowError(f"Invalid filter: '{text[:200]}'. Expected one filter clause.")
    of, entity, key = found["view"], found["entity"], (found["key"] or "").strip('`"')
    if of not in _ENTITIES:
        raise MlflowError(f"Invalid view type '{of[:200]}'. Valid values are {list(_ENTITIES)}")
    if entity not in _ENTITIES[of]:
        raise MlflowError(
            f"Invalid entity '{entity[:200]}' specified for view type '{of}'. Valid entities are {list(_ENTITIES[of])}"
        )
    if _ENTITIES[of][entity] and not key:
        raise MlflowError(f"Filtering by {entity} requires a key, e.g. '{of}.{entity}.<key> = <value>'")
    if key and not _ENTITIES[of][entity]:
        raise MlflowError(f"Filtering by {entity} does not require a key, use '{of}.{entity}' instead")
    if found["op"] != "=":
        raise MlflowError(f"Invalid comparator: '{found['op'][:50]}', only '=' operator is supported")
    if of != "trace" and f"{of.upper()}S" != view:
        raise MlflowError(f"Filtering by {of} is only supported for {of.upper()}S view type, got {view}")
    value = found["value"][1:-1].replace("''", "'")
    if of != "trace":
        return lambda item: item.facts[f"{of}.{entity}"] == value
    if entity == "status":
        return lambda item: STATE_NAMES[item.trace.state] == value
    if entity == "tag":
        return lambda item: item.trace.tags.get(key) == value
    if key == SOURCE_RUN:
        return lambda item: value in (item.trace.metadata.get(key), *map(wire_id, item.trace.runs))
    return lambda item: item.trace.metadata.get(key) == value


ROUTES = (HandlerRoute("POST", "3.0/mlflow/traces/metrics", query_metrics, "read", slow=True),)
