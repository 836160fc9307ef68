"""Routes for traces: create, get, delete, tag, and link to runs and prompts.

Source: MLflow 3's trace API (`/api/3.0/mlflow/traces…`). Clients send a trace twice: its spans, over OpenTelemetry's
protocol, while it runs, and a summary of the whole trace when it has ended. Either may arrive first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import AlreadyExistsError
from everloop.integrations.mlflow.tracking_api.codec import (
    Fields,
    MlflowError,
    check_length,
    invalid,
    missing,
    ms_of,
    not_found,
)
from everloop.integrations.mlflow.tracking_api.experiment_routes import active_experiment
from everloop.integrations.mlflow.tracking_api.field_limits import LONGEST_TEXT, MOST_ELEMENTS
from everloop.integrations.mlflow.tracking_api.genai.spans import spans_of
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_tag
from everloop.integrations.mlflow.tracking_api.serializers import DEFAULT, record_id, wire_id
from everloop.records import Run, Trace, TraceState
from everloop.stores.clock import new_id

if TYPE_CHECKING:
    from everloop.records import Experiment, Json
    from everloop.stores import Store

NAME, SPANS_AT, ARTIFACTS_AT = "mlflow.traceName", "mlflow.trace.spansLocation", "mlflow.artifactLocation"
PROMPTS, SOURCE_RUN = "mlflow.linkedPrompts", "mlflow.sourceRun"
SESSION, TOKENS = "mlflow.trace.session", "mlflow.trace.tokenUsage"
LONGEST_ID = 50
LONGEST_PREVIEW = 10_000
LONGEST_VALUE = 100_000
"""Characters of one value of a trace's tags and metadata."""
LARGEST_ASSESSMENT = 1_000_000
"""Bytes of one assessment, as JSON."""
MOST_LINKED = 100
AT_ONCE = 1000
"""Names in one query to the store."""
STATES: dict[str, TraceState] = {
    "STATE_UNSPECIFIED": "unspecified",
    "IN_PROGRESS": "in_progress",
    "OK": "ok",
    "ERROR": "error",
}
STATE_NAMES = {state: name for name, state in STATES.items()}
_OURS = frozenset({SPANS_AT, ARTIFACTS_AT, "mlflow.trace.archiveLocation", "mlflow.trace.archivalFailure"})
"""Tags that only the server writes."""
_ID = re.compile(r"[A-Za-z0-9_:.\-]+")


def start_trace(context: HandlerContext) -> Mapping[str, Any]:
    """Store a client's summary of a trace. A later summary replaces an earlier one."""
    info = _object(_object(context.fields, "trace"), "trace_info")
    name = checked_id(info.text("trace_id"))
    number = experiment_in(_object(info, "trace_location"))
    took = info.text("execution_duration", required=False)
    state_name = info.text("state", required=False) or "STATE_UNSPECIFIED"
    if state_name not in STATES:
        raise invalid("state", state_name)
    changes = {
        "requested_at": _moment(info.text("request_time")),
        "seconds": _seconds(took) if took else None,
        "state": STATES[state_name],
        "told": True,
        "client_request": info.text("client_request_id", required=False) or None,
        "request_preview": _preview(info, "request_preview"),
        "response_preview": _preview(info, "response_preview"),
    }
    tags = {key: check_tag(key, value) for key, value in _texts(info, "tags").items() if key != ARTIFACTS_AT}
    metadata = _texts(info, "trace_metadata")
    assessments = tuple(new_assessment(context.store, name, one) for one in info.rows("assessments"))
    trace = change(
        context.store,
        name,
        number,
        lambda known: replace(
            known,
            **changes,
            tags={**known.tags, **tags},
            metadata={**known.metadata, **metadata},
            assessments=(*known.assessments, *assessments),
        ),
    )
    return {"trace": {"trace_info": trace_out(trace)}}


def change(store: Store, name: str, experiment: str, update: Any) -> Trace:
    """Create a trace, or change the existing one, in one write.

    Raises:
        MlflowError: there is no such experiment, or it is deleted.
    """
    with store.records.transaction():
        found = store.records.find(Trace, ("key", "=", name), limit=1)
        if found and is_there(found[0]):
            changed: Trace = update(found[0])
            return changed if changed == found[0] else store.records.update(changed)[0]
        active = active_experiment(store, experiment)
        tags = {ARTIFACTS_AT: artifacts_uri_of(active, name)}
        if found:
            arrived: Trace = update(replace(found[0], experiment=str(active.number), tags=tags))
            return store.records.update(arrived, verb="traced")[0]
        made: Trace = update(
            store.new(Trace, trace_id=name, requested_at=store.now(), experiment=str(active.number), tags=tags)
        )
        _put(store, made)
        return made


def is_there(trace: Trace) -> bool:
    """Whether a trace has arrived. Otherwise it is only known because it was linked to a run."""
    return trace.told or bool(trace.spans)


def _put(store: Store, trace: Trace) -> None:
    try:
        store.records.put(trace, verb="traced")
    except AlreadyExistsError:
        raise MlflowError(
            f"Another request is writing the trace '{trace.trace_id}'. Try again.", "RESOURCE_CONFLICT"
        ) from None


def artifacts_uri_of(experiment: Experiment, name: str) -> str:
    """Return the URI of a trace's files."""
    return f"{experiment.artifacts_at}/traces/{name}/artifacts"


def get_trace_info(context: HandlerContext) -> Mapping[str, Any]:
    return {"trace": {"trace_info": trace_out(trace_of(context.store, context.path["trace_id"]))}}


def get_trace(context: HandlerContext) -> Mapping[str, Any]:
    name = context.fields.text("trace_id")
    found = find_trace(context.store, name)
    if found is None:
        raise not_found(f"Trace with ID {name[:200]} is not found.")
    return {"trace": _trace_with_spans(context, found)}


def batch_get_traces(context: HandlerContext) -> Mapping[str, Any]:
    found = _requested_traces(context)
    return {"traces": [_trace_with_spans(context, trace) for trace in found]} if found else {}


def batch_get_trace_infos(context: HandlerContext) -> Mapping[str, Any]:
    found = _requested_traces(context)
    return {"trace_infos": [trace_out(trace) for trace in found]} if found else {}


def delete_traces(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    number, names = fields.text("experiment_id"), fields.texts("request_ids")
    before, most = fields.integer("max_timestamp_millis"), fields.integer("max_traces")
    if not names and not fields.has("max_timestamp_millis"):
        raise MlflowError("Either `max_timestamp_millis` or `trace_ids` must be specified.")
    if names and fields.has("max_timestamp_millis"):
        raise MlflowError("Only one of `max_timestamp_millis` and `trace_ids` can be specified.")
    if names and fields.has("max_traces"):
        raise MlflowError("`max_traces` can't be specified if `trace_ids` is specified.")
    if fields.has("max_traces") and most <= 0:
        raise MlflowError(f"`max_traces` must be a positive integer, received {most}.")
    found = store.records.find(Trace, ("experiment", "=", number))
    wanted = set(names)
    chosen = [t for t in found if t.trace_id in wanted or (not names and ms_of(t.requested_at) <= before)]
    chosen = [trace for trace in chosen if is_there(trace)]
    chosen.sort(key=lambda trace: trace.requested_at)
    chosen = chosen[:most] if most else chosen
    with store.records.transaction():
        for trace in chosen:
            store.records.delete(Trace, trace.id)
    return {"traces_deleted": len(chosen)}


def set_trace_tag(context: HandlerContext) -> Mapping[str, Any]:
    key, value = context.fields.text("key"), context.fields.text("value", required=False)
    _check_changeable(key, "set")
    value = check_tag(key, value)
    return _changed(context, lambda trace: replace(trace, tags={**trace.tags, key: value}))


def delete_trace_tag(context: HandlerContext) -> Mapping[str, Any]:
    name, key = context.path["trace_id"], context.fields.text("key")
    _check_changeable(key, "deleted")

    def without(trace: Trace) -> Trace:
        if key not in trace.tags:
            raise not_found(f"No trace tag with key '{key}' for trace with ID '{name}'")
        return replace(trace, tags={tag: value for tag, value in trace.tags.items() if tag != key})

    return _changed(context, without)


def link_to_run(context: HandlerContext) -> Mapping[str, Any]:
    names, run = context.fields.texts("trace_ids", required=True), record_id(context.fields.text("run_id"))
    if len(names) > MOST_LINKED:
        raise MlflowError(
            f"Cannot link more than {MOST_LINKED} traces to a run in a single request. Provided {len(names)} traces."
        )
    link_traces(context.store, names, run)
    return {}


def link_traces(store: Store, names: Sequence[str], run: str) -> None:
    """Link traces to a run. Clients may send the link before the trace, which is then linked when it arrives.

    Raises:
        NotFoundError: there is no such run.
    """
    number = store.records.get(Run, run).experiment or DEFAULT
    with store.records.transaction():
        for name in dict.fromkeys(map(checked_id, names)):
            found = store.records.find(Trace, ("key", "=", name), limit=1)
            if not found:
                _put(
                    store,
                    store.new(Trace, trace_id=name, experiment=number, requested_at=store.now(), runs=(run,)),
                )
            elif run not in found[0].runs:
                store.records.update(replace(found[0], runs=(*found[0].runs, run)))


def link_prompts(context: HandlerContext) -> Mapping[str, Any]:
    prompts = [
        {"name": one.text("name"), "version": one.text("version")}
        for one in context.fields.objects("prompt_versions", required=True)
    ]
    name = context.fields.text("trace_id")

    def linked(trace: Trace) -> Trace:
        known = msgspec.json.decode(trace.tags.get(PROMPTS, "[]"))
        both = [*known, *(one for one in prompts if one not in known)]
        return replace(trace, tags={**trace.tags, PROMPTS: msgspec.json.encode(both).decode()})

    with context.store.records.transaction():
        context.store.records.update(linked(trace_of(context.store, name)))
    return {}


def trace_of(store: Store, name: str) -> Trace:
    """Return the trace with this id.

    Raises:
        MlflowError: there is no such trace.
    """
    found = find_trace(store, name)
    if found is None:
        raise not_found(f"Trace with ID '{name[:200]}' not found.")
    return found


def find_trace(store: Store, name: str) -> Trace | None:
    found = store.records.find(Trace, ("key", "=", name), limit=1) if _ID.fullmatch(name) else []
    return found[0] if found and is_there(found[0]) else None


def checked_id(name: str) -> str:
    if len(name) > LONGEST_ID or not _ID.fullmatch(name) or not name.strip("."):
        raise invalid("trace_id", name[:200], f"It may have at most {LONGEST_ID} letters, digits and `_:.-`.")
    return name


def trace_out(trace: Trace) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "trace_id": trace.trace_id,
        "trace_location": {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": trace.experiment},
        },
        "request_time": time_text(trace.requested_at),
        "state": STATE_NAMES[trace.state],
    }
    for name, value in (
        ("client_request_id", trace.client_request),
        ("request_preview", trace.request_preview),
        ("response_preview", trace.response_preview),
    ):
        if value is not None:
            payload[name] = value
    if trace.seconds is not None:
        payload["execution_duration"] = f"{_in_threes(f'{trace.seconds:.9f}')}s"
    if trace.metadata:
        payload["trace_metadata"] = trace.metadata
    if trace.assessments:
        payload["assessments"] = list(trace.assessments)
    payload["tags"] = trace.tags
    return payload


def time_text(moment: datetime) -> str:
    """Return a time in the JSON form of protobuf."""
    return f"{_in_threes(moment.strftime('%Y-%m-%dT%H:%M:%S.%f'))}Z"


def _in_threes(text: str) -> str:
    """Remove trailing zeros in groups of three, as protobuf writes decimals: with zero, three, six or nine digits."""
    for _ in range(3):
        text = text.removesuffix(".000").removesuffix("000") if "." in text else text
    return text


def new_assessment(store: Store, trace: str, payload: Any) -> dict[str, Json]:
    """Return an assessment with its missing id and times filled in.

    Raises:
        MlflowError: it has no name or no value.
    """
    if not isinstance(payload, dict):
        raise invalid("assessment", payload)
    fields = Fields(payload)
    check_assessment_size(payload)
    fields.text("assessment_name")
    if not any(fields.has(kind) for kind in ("feedback", "expectation", "issue")):
        raise missing("feedback")
    now = time_text(store.now())
    made = {"create_time": now, "last_update_time": now, "valid": True, **stored_assessment(payload), "trace_id": trace}
    made["assessment_id"] = fields.text("assessment_id", required=False) or f"a-{wire_id(new_id(store.now()))}"
    return made


def check_assessment_size(payload: Mapping[str, Any]) -> None:
    size = len(msgspec.json.encode(payload))
    if size > LARGEST_ASSESSMENT:
        raise MlflowError(f"'assessment' has {size:,} bytes, at most {LARGEST_ASSESSMENT:,} are allowed.")


def stored_assessment(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return an assessment in MLflow's stored form: an expected list or object becomes JSON in a string."""
    expected = payload.get("expectation")
    value = expected.get("value") if isinstance(expected, dict) else None
    if not isinstance(value, dict | list):
        return dict(payload)
    text = {"serialization_format": "JSON_FORMAT", "value": json.dumps(value)}
    return {**payload, "expectation": {"serialized_value": text}}


def _trace_with_spans(context: HandlerContext, trace: Trace) -> dict[str, Any]:
    payload: dict[str, Any] = {"trace_info": trace_out(trace)}
    if spans := spans_of(context.store, trace):
        payload["spans"] = spans
    return payload


def _requested_traces(context: HandlerContext) -> list[Trace]:
    names = list(dict.fromkeys(context.fields.texts("trace_ids", required=True)))
    known = {
        trace.trace_id: trace
        for begin in range(0, len(names), AT_ONCE)
        for trace in context.store.records.find(Trace, ("key", "in", names[begin : begin + AT_ONCE]))
    }
    return [known[name] for name in names if name in known and is_there(known[name])]


def _check_changeable(key: str, operation: str) -> None:
    if key in _OURS:
        raise MlflowError(f"Tag '{key}' is immutable and cannot be {operation} on a trace.")


def _changed(context: HandlerContext, update: Any) -> Mapping[str, Any]:
    with context.store.records.transaction():
        context.store.records.update(update(trace_of(context.store, context.path["trace_id"])))
    return {}


def experiment_in(location: Fields) -> str:
    """Return the number of the experiment that a location names."""
    return _object(location, "mlflow_experiment").text("experiment_id")


def _object(fields: Fields, name: str) -> Fields:
    value = fields.raw(name)
    if value is None:
        raise missing(name)
    if not isinstance(value, dict):
        raise invalid(name, value)
    return Fields(value)


def _texts(fields: Fields, name: str) -> dict[str, str]:
    value = fields.raw(name) or {}
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise invalid(name, value)
    if len(value) > MOST_ELEMENTS:
        raise MlflowError(f"'{name}' has {len(value):,} entries, at most {MOST_ELEMENTS:,} are allowed.")
    for key, text in value.items():
        check_length(f"a name in {name}", key, LONGEST_TEXT)
        check_length(f"{name}.{key[:100]}", text, LONGEST_VALUE)
    return dict(value)


def _preview(fields: Fields, name: str) -> str | None:
    return fields.text(name, required=False)[:LONGEST_PREVIEW] or None


def _moment(text: str) -> datetime:
    try:
        # Protobuf writes up to nine decimals of a second; six are stored.
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).replace("Z", "+00:00"))
    except ValueError:
        raise invalid("request_time", text) from None
    if moment.tzinfo is None or not 1970 <= moment.year < 9999:
        raise invalid("request_time", text)
    return moment


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)s", text)
    if found is None:
        raise invalid("execution_duration", text)
    return float(found[1])


ROUTES = (
    HandlerRoute("POST", "3.0/mlflow/traces", start_trace, "write"),
    HandlerRoute("GET", "3.0/mlflow/traces/get", get_trace, "read", slow=True),
    HandlerRoute("GET", "3.0/mlflow/traces/batchGet", batch_get_traces, "read", slow=True),
    HandlerRoute("POST", "3.0/mlflow/traces/batchGetInfos", batch_get_trace_infos, "read", slow=True),
    HandlerRoute("POST", "3.0/mlflow/traces/delete-traces", delete_traces, "delete", slow=True),
    HandlerRoute("POST", "2.0/mlflow/traces/delete-traces", delete_traces, "delete", slow=True),
    HandlerRoute("POST", "2.0/mlflow/traces/link-to-run", link_to_run, "write"),
    HandlerRoute("POST", "2.0/mlflow/traces/link-prompts", link_prompts, "write"),
    HandlerRoute("GET", "3.0/mlflow/traces/{trace_id}", get_trace_info, "read"),
    HandlerRoute("PATCH", "3.0/mlflow/traces/{trace_id}/tags", set_trace_tag, "write"),
    HandlerRoute("DELETE", "3.0/mlflow/traces/{trace_id}/tags", delete_trace_tag, "write"),
    HandlerRoute("PATCH", "2.0/mlflow/traces/{trace_id}/tags", set_trace_tag, "write"),
    HandlerRoute("DELETE", "2.0/mlflow/traces/{trace_id}/tags", delete_trace_tag, "write"),
)
