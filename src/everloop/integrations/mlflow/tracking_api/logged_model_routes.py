"""Routes for logged models, which `log_model` creates before a version is registered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError
from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, invalid, mistyped, ms_of, not_found
from everloop.integrations.mlflow.tracking_api.experiment_routes import active_experiment
from everloop.integrations.mlflow.tracking_api.filter_strings import Grammar, Term, meets, parse_filter, parse_key
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_length
from everloop.integrations.mlflow.tracking_api.page_tokens import Page, paged
from everloop.integrations.mlflow.tracking_api.serializers import logged_model_out, model_id, record_id, wire_id
from everloop.records import Experiment, LoggedModel
from everloop.stores import new_id

if TYPE_CHECKING:
    from everloop.records import ModelVersion
    from everloop.stores import Store

USUAL = 100
LONGEST_TAG = 8000
VERSIONS_TAG = "mlflow.modelVersions"
_STATES = {
    "LOGGED_MODEL_PENDING": "pending",
    "LOGGED_MODEL_READY": "ready",
    "LOGGED_MODEL_UPLOAD_FAILED": "failed",
    "1": "pending",
    "2": "ready",
    "3": "failed",
}
_SHORT = {"PENDING": "pending", "READY": "ready", "FAILED": "failed"}
_GRAMMAR = Grammar(
    texts=frozenset({"name", "model_id", "model_type", "status", "source_run_id", "experiment_id", "artifact_uri"}),
    numbers=frozenset({"creation_timestamp", "last_updated_timestamp"}),
    entities=frozenset({"attribute", "metric", "param", "tag"}),
    listed=frozenset({"name", "model_id", "model_type", "status", "source_run_id"}),
    aliases=(
        ("creation_time", "creation_timestamp"),
        ("creation_timestamp_ms", "creation_timestamp"),
        ("last_updated_timestamp_ms", "last_updated_timestamp"),
        ("artifact_location", "artifact_uri"),
    ),
)


def create_logged_model(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    experiment: Experiment = active_experiment(store, fields.text("experiment_id"))
    now = store.now()
    identity = new_id(now)
    name = fields.text("name", required=False) or f"model-{identity[-6:]}"
    if any(character in name for character in "/:.%\"'") or len(name) > 500:
        raise MlflowError(
            f"Invalid model name ({name!r}) provided. Model name must be a non-empty string and cannot contain the "
            "following characters: ('/', ':', '.', '%', '\"', \"'\")"
        )
    run = fields.text("source_run_id", required=False)
    made = LoggedModel(
        id=identity,
        project=store.project,
        created_at=now,
        updated_at=now,
        name=name,
        experiment=str(experiment.number),
        artifacts_at=f"{experiment.artifacts_at.rstrip('/')}/models/m-{wire_id(identity)}/artifacts",
        type=fields.text("model_type", required=False),
        run=record_id(run) if run else None,
        params=fields.pairs("params"),
        tags=fields.pairs("tags"),
    )
    store.records.put(made)
    return {"model": logged_model_out(made)}


def get_logged_model(context: HandlerContext) -> Mapping[str, Any]:
    model = find_logged_model(context.store, context.path["model_id"], deleted=context.fields.flag("allow_deleted"))
    return {"model": logged_model_out(model)}


def finalize_logged_model(context: HandlerContext) -> Mapping[str, Any]:
    value = context.fields.raw("status")
    state = _STATES.get(str(value))
    if state is None:
        raise mistyped("status", value)
    changed = _change(context, lambda model: replace(model, state=state))  # type: ignore[arg-type]
    return {"model": logged_model_out(changed)}


def delete_logged_model(context: HandlerContext) -> Mapping[str, Any]:
    _change(context, lambda model: replace(model, archived_at=context.store.now()), verb="archived")
    return {}


def set_logged_model_tags(context: HandlerContext) -> Mapping[str, Any]:
    tags = context.fields.pairs("tags")
    for key, value in tags.items():
        check_length("key", 250, key)
        check_length("value", LONGEST_TAG, value)
    _change(context, lambda model: replace(model, tags={**model.tags, **tags}), verb="tagged")
    return {}


def delete_logged_model_tag(context: HandlerContext) -> Mapping[str, Any]:
    key = context.path["key"]

    def without(model: LoggedModel) -> LoggedModel:
        if key not in model.tags:
            raise not_found(f"No tag with key {key!r} found for model with ID {context.path['model_id']!r}.")
        return replace(model, tags={tag: value for tag, value in model.tags.items() if tag != key})

    _change(context, without, verb="tagged")
    return {}


def log_logged_model_params(context: HandlerContext) -> Mapping[str, Any]:
    params = context.fields.pairs("params")
    for key, value in params.items():
        check_length("key", 250, key)
        check_length("value", 6000, value)
    _change(context, lambda model: replace(model, params={**params, **model.params}), verb="logged")
    return {}


def search_logged_models(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    experiments = fields.texts("experiment_ids", required=True)
    terms = parse_filter(fields.text("filter", required=False), _GRAMMAR)
    datasets = [
        (d.text("dataset_name", required=False), d.text("dataset_digest", required=False))
        for d in fields.objects("datasets")
    ]
    if not all(name for name, _ in datasets):
        raise MlflowError("`dataset_name` in the `datasets` clause must be specified.")
    orders = [_order(order) for order in fields.objects("order_by")]
    most = fields.integer("max_results", USUAL) or USUAL
    if not 1 <= most <= 50_000:
        raise invalid("max_results", most, "It must be between 1 and 50000.")
    page = Page.of(fields.text("page_token", required=False))
    rows = (
        context.store.records.find(
            LoggedModel,
            ("experiment", "in", [str(int(e)) if e.isdecimal() else e for e in experiments]),
            ("archived_at", "is", None),
            order="-created_at",
        )
        if experiments
        else []
    )
    measured = [t for t in terms if t.entity == "metric"]
    others = [t for t in terms if t.entity != "metric"]
    rows = [
        model
        for model in rows
        if meets(others, lambda term, m=model: _value(m, term))  # type: ignore[misc]
        and all(any(term.holds(metric["value"]) for metric in _metrics(model, term.key, datasets)) for term in measured)
        and (not datasets or measured or any(_metrics(model, None, datasets)))
    ]
    for key_of, ascending in reversed(orders):
        found = [(key_of(model), model) for model in rows]
        with_value = [pair for pair in found if pair[0] is not None]
        with_value.sort(key=lambda pair: pair[0], reverse=not ascending)
        rows = [model for _, model in with_value] + [model for value, model in found if value is None]
    return paged(rows, page, most, logged_model_out, "models")


def find_logged_model(store: Store, name: str, *, deleted: bool = False) -> LoggedModel:
    """Return the logged model with the id `m-…`.

    Raises:
        MlflowError: there is no such model, or it was deleted.
    """
    try:
        model = store.records.get(LoggedModel, record_id(name.removeprefix("m-")))
    except NotFoundError:
        model = None
    if model is None or model_id(model) != name or (model.archived_at is not None and not deleted):
        raise not_found(f"Logged model with ID '{name}' not found.")
    return model


def tag_with_version(store: Store, name: str, version: ModelVersion) -> None:
    """Add a registered version to the tag of a logged model in which MLflow's web page looks for it."""
    model = find_logged_model(store, name)
    try:
        known = json.loads(model.tags.get(VERSIONS_TAG, "[]"))
    except (ValueError, RecursionError):
        known = []
    value = {"name": version.model, "version": version.version}
    if not isinstance(known, list) or value in known:
        return
    text = json.dumps([*known, value])
    if len(text) <= LONGEST_TAG:
        tagged = replace(model, tags={**model.tags, VERSIONS_TAG: text}, updated_at=store.now())
        store.records.update(tagged, verb="tagged")


def _change(
    context: HandlerContext, change: Callable[[LoggedModel], LoggedModel], verb: str = "updated"
) -> LoggedModel:
    with context.store.records.transaction():
        model = find_logged_model(context.store, context.path["model_id"])
        changed = change(model)
        if changed == model:
            return model
        return context.store.records.update(replace(changed, updated_at=context.store.now()), verb=verb)[0]


def _value(model: LoggedModel, term: Term) -> Any:
    if term.entity == "tag":
        return model.tags.get(term.key)
    if term.entity == "param":
        return model.params.get(term.key)
    value = _attribute(model, term.key)
    if term.key == "status":
        # Clients use both spellings: READY and LOGGED_MODEL_READY.
        wanted = term.value if isinstance(term.value, tuple) else (term.value,)
        for spelled in wanted:
            if _SHORT.get(str(spelled), _STATES.get(str(spelled))) == model.state:
                return spelled
    return value


def _attribute(model: LoggedModel, key: str) -> Any:
    match key:
        case "name":
            return model.name
        case "model_id":
            return model_id(model)
        case "model_type":
            return model.type
        case "status":
            return model.state
        case "source_run_id":
            return wire_id(model.run) if model.run else None
        case "experiment_id":
            return model.experiment
        case "artifact_uri":
            return model.artifacts_at
        case "creation_timestamp":
            return ms_of(model.created_at)
    return ms_of(model.updated_at)


def _metrics(model: LoggedModel, key: str | None, datasets: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        metric
        for metric in model.metrics
        if (key is None or metric["key"] == key)
        and (
            not datasets
            or any(
                metric["dataset_name"] == name and (not digest or metric["dataset_digest"] == digest)
                for name, digest in datasets
            )
        )
    ]


def _order(order: Fields) -> tuple[Callable[[LoggedModel], Any], bool]:
    name = order.text("field_name")
    ascending = order.flag("ascending") if order.has("ascending") else True
    entity, _, key = name.partition(".")
    if not key:
        _, key = parse_key(name, _GRAMMAR)
        return (lambda model: _attribute(model, key)), ascending
    if entity != "metrics":
        raise MlflowError(f"Invalid order by field name: {name}. Only metrics are supported.")
    wanted = order.text("dataset_name", required=False), order.text("dataset_digest", required=False)

    def latest(model: LoggedModel) -> Any:
        found = _metrics(model, key, [wanted] if wanted[0] else [])
        return max(found, key=lambda m: (m["at"], m["step"]))["value"] if found else None

    return latest, ascending


ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/logged-models", create_logged_model, "write"),
    HandlerRoute("POST", "2.0/mlflow/logged-models/search", search_logged_models, "read", slow=True),
    HandlerRoute("GET", "2.0/mlflow/logged-models/{model_id}", get_logged_model, "read"),
    HandlerRoute("PATCH", "2.0/mlflow/logged-models/{model_id}", finalize_logged_model, "write"),
    HandlerRoute("DELETE", "2.0/mlflow/logged-models/{model_id}", delete_logged_model, "delete"),
    HandlerRoute("PATCH", "2.0/mlflow/logged-models/{model_id}/tags", set_logged_model_tags, "write"),
    HandlerRoute("DELETE", "2.0/mlflow/logged-models/{model_id}/tags/{key}", delete_logged_model_tag, "write"),
    HandlerRoute("POST", "2.0/mlflow/logged-models/{model_id}/params", log_logged_model_params, "write"),
)
