"""Routes for assessments of traces: feedback, expectations and issues."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import invalid, missing, not_found
from everloop.integrations.mlflow.tracking_api.genai.traces import (
    check_assessment_size,
    new_assessment,
    stored_assessment,
    time_text,
    trace_of,
)
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.records import Trace

if TYPE_CHECKING:
    from everloop.records import Json

_CHANGEABLE = frozenset({"assessment_name", "feedback", "expectation", "issue", "rationale", "metadata", "valid"})


def create_assessment(context: HandlerContext) -> Mapping[str, Any]:
    payload = context.fields.raw("assessment")
    if payload is None:
        raise missing("assessment")
    store, name = context.store, context.path["trace_id"]
    made = new_assessment(store, name, payload)
    with store.records.transaction():
        trace = trace_of(store, name)
        others = trace.assessments
        overridden = made.get("overrides")
        if overridden:
            _find(trace, str(overridden))
            others = tuple({**one, "valid": False} if one["assessment_id"] == overridden else one for one in others)
        if any(one["assessment_id"] == made["assessment_id"] for one in others):
            raise invalid("assessment_id", made["assessment_id"], "An assessment with this id already exists.")
        store.records.update(replace(trace, assessments=(*others, made)))
    return {"assessment": made}


def get_assessment(context: HandlerContext) -> Mapping[str, Any]:
    return {"assessment": _find(trace_of(context.store, context.path["trace_id"]), context.path["assessment_id"])}


def update_assessment(context: HandlerContext) -> Mapping[str, Any]:
    payload = context.fields.raw("assessment")
    if not isinstance(payload, dict):
        raise invalid("assessment", payload)
    check_assessment_size(payload)
    mask = context.fields.text("update_mask")
    changed = {re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", path.strip()) for path in mask.split(",")}
    if unknown := changed - _CHANGEABLE:
        raise invalid("update_mask", mask, f"'{min(unknown)}' cannot be changed.")
    store = context.store
    with store.records.transaction():
        trace = trace_of(store, context.path["trace_id"])
        known = _find(trace, context.path["assessment_id"])
        stored = stored_assessment(payload)
        new: dict[str, Json] = {**known, **{name: stored[name] for name in changed if name in stored}}
        if "metadata" in changed:
            new["metadata"] = {**(known.get("metadata") or {}), **(payload.get("metadata") or {})}
        new["last_update_time"] = time_text(store.now())
        _put(context, trace, [new if one is known else one for one in trace.assessments])
    return {"assessment": new}


def delete_assessment(context: HandlerContext) -> Mapping[str, Any]:
    with context.store.records.transaction():
        trace = trace_of(context.store, context.path["trace_id"])
        deleted = context.path["assessment_id"]
        known = [one for one in trace.assessments if one["assessment_id"] == deleted]
        overridden = known[0].get("overrides") if known else None
        left = [one for one in trace.assessments if one["assessment_id"] != deleted]
        # The assessment that it had overridden becomes valid again.
        _put(context, trace, [{**one, "valid": True} if one["assessment_id"] == overridden else one for one in left])
    return {}


def _put(context: HandlerContext, trace: Trace, assessments: list[dict[str, Any]]) -> None:
    context.store.records.update(replace(trace, assessments=tuple(assessments)))


def _find(trace: Trace, name: str) -> dict[str, Any]:
    for one in trace.assessments:
        if one["assessment_id"] == name:
            return one
    raise not_found(f"Assessment with ID '{name[:200]}' not found for trace '{trace.trace_id}'")


_ONE = "3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}"
ROUTES = (
    HandlerRoute("POST", "3.0/mlflow/traces/{trace_id}/assessments", create_assessment, "write"),
    HandlerRoute("GET", _ONE, get_assessment, "read"),
    HandlerRoute("PATCH", _ONE, update_assessment, "write"),
    HandlerRoute("DELETE", _ONE, delete_assessment, "write"),
)
