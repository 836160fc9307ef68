"""Routes for scorers: named, versioned definitions of how responses are scored. Each belongs to one experiment.

A definition may contain code. It is stored as text, and never interpreted or run here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, ms_of, not_found
from everloop.integrations.mlflow.tracking_api.experiment_routes import active_experiment
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_length
from everloop.records import Experiment, ScorerRecord

if TYPE_CHECKING:
    from everloop.stores import Store

LONGEST_NAME, LONGEST_DEFINITION = 256, 1 << 20


def register_scorer(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    number, name = fields.text("experiment_id"), fields.text("name")
    definition = fields.text("serialized_scorer")
    if not name.strip():
        raise MlflowError("Scorer name cannot be empty or contain only whitespace.")
    check_length("name", LONGEST_NAME, name)
    check_length("serialized_scorer", LONGEST_DEFINITION, definition)
    try:
        json.loads(definition)
    except (ValueError, RecursionError):
        raise MlflowError("serialized_scorer must be valid JSON") from None
    with store.records.transaction():
        experiment = str(active_experiment(store, number).number)
        known = _versions(store, experiment, name)
        made = store.new(
            ScorerRecord,
            experiment=experiment,
            name=name,
            version=known[-1].version + 1 if known else 1,
            scorer=known[-1].scorer if known else str(uuid4()),
            definition=definition,
        )
        store.records.put(made)
    return {
        "version": made.version,
        "scorer_id": made.scorer,
        "experiment_id": made.experiment,
        "name": made.name,
        "serialized_scorer": made.definition,
        "creation_time": ms_of(made.created_at),
    }


def list_scorers(context: HandlerContext) -> Mapping[str, Any]:
    """List the latest version of each scorer, of one experiment, of several, or of all active ones."""
    fields, store = context.fields, context.store
    number = fields.text("experiment_id", required=False)
    if number and fields.has("experiment_ids"):
        raise MlflowError(
            "Cannot specify both 'experiment_id' and 'experiment_ids'. Use 'experiment_ids' to scope the query to"
            " multiple experiments, or 'experiment_id' to scope it to a single experiment."
        )
    if number:
        wanted = {str(active_experiment(store, number).number)}
    else:
        wanted = {str(found.number) for found in store.records.find(Experiment, ("archived_at", "is", None))}
        wanted &= set(fields.texts("experiment_ids")) if fields.has("experiment_ids") else wanted
    last: dict[tuple[int, str], ScorerRecord] = {}
    for scorer in store.records.find(ScorerRecord, order="version"):
        if scorer.experiment in wanted:
            last[int(scorer.experiment), scorer.name] = scorer
    return {"scorers": [scorer_out(last[at]) for at in sorted(last)]} if last else {}


def list_scorer_versions(context: HandlerContext) -> Mapping[str, Any]:
    return {"scorers": [scorer_out(scorer) for scorer in _requested_versions(context)]}


def get_scorer(context: HandlerContext) -> Mapping[str, Any]:
    found, version = _requested_versions(context), _version(context.fields)
    return {"scorer": scorer_out(found[-1] if version is None else _with_version(context, found, version))}


def delete_scorer(context: HandlerContext) -> Mapping[str, Any]:
    records = context.store.records
    with records.transaction():
        found, version = _requested_versions(context), _version(context.fields)
        for scorer in found if version is None else [_with_version(context, found, version)]:
            records.delete(ScorerRecord, scorer.id)
    return {}


def scorer_out(scorer: ScorerRecord) -> dict[str, Any]:
    return {
        "experiment_id": int(scorer.experiment),
        "scorer_name": scorer.name,
        "scorer_version": scorer.version,
        "serialized_scorer": scorer.definition,
        "creation_time": ms_of(scorer.created_at),
        "scorer_id": scorer.scorer,
    }


def _version(fields: Fields) -> int | None:
    return fields.integer("version") if fields.has("version") else None


def _versions(store: Store, experiment: str, name: str) -> list[ScorerRecord]:
    return store.records.find(ScorerRecord, ("experiment", "=", experiment), ("name", "=", name), order="version")


def _requested_versions(context: HandlerContext) -> list[ScorerRecord]:
    number, name = context.fields.text("experiment_id"), context.fields.text("name")
    found = _versions(context.store, str(active_experiment(context.store, number).number), name)
    if not found:
        raise not_found(f"Scorer with name '{name[:300]}' not found for experiment {number}.")
    return found


def _with_version(context: HandlerContext, found: list[ScorerRecord], version: int) -> ScorerRecord:
    for scorer in found:
        if scorer.version == version:
            return scorer
    raise not_found(
        f"Scorer with name '{found[0].name}' and version {version} not found for experiment"
        f" {context.fields.text('experiment_id')}."
    )


_S = "3.0/mlflow/scorers/"
ROUTES = (
    HandlerRoute("POST", _S + "register", register_scorer, "write"),
    HandlerRoute("GET", _S + "list", list_scorers, "read", slow=True),
    HandlerRoute("GET", _S + "versions", list_scorer_versions, "read"),
    HandlerRoute("GET", _S + "get", get_scorer, "read"),
    HandlerRoute("DELETE", _S + "delete", delete_scorer, "delete"),
)
