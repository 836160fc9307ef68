"""Routes for registered models and their aliases: create, get, search, describe, rename, tag, delete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, invalid, ms_of
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_limit
from everloop.integrations.mlflow.tracking_api.filter_strings import Grammar, Term, meets, parse_filter, parse_order
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import (
    check_alias,
    check_alias_free,
    check_key,
    check_length,
    check_model,
    check_model_tag,
)
from everloop.integrations.mlflow.tracking_api.page_tokens import Page, paged
from everloop.integrations.mlflow.tracking_api.registry_lookup import (
    aliases_of,
    all_models,
    canonical_stage,
    find_model,
    get_model,
    get_model_version,
    held_by,
    latest_versions,
    show_model,
    show_version,
    touch_model,
)
from everloop.integrations.mlflow.tracking_api.serializers import version_out
from everloop.loop.releases.promotion import move_alias
from everloop.records import AliasPolicy, RegisteredModel
from everloop.registry.aliases import remove_alias, set_alias
from everloop.registry.annotations import MOST_TEXT, check_unused
from everloop.registry.approvals import void_requests
from everloop.registry.model_versions import list_versions
from everloop.server.webhooks.webhook_payloads import PROMPT_TAG, is_prompt

USUAL, MOST = 100, 1000
_GRAMMAR = Grammar(texts=frozenset({"name"}), listed=frozenset({"name"}))
_ORDERS = Grammar(
    texts=frozenset({"name"}),
    numbers=frozenset({"timestamp"}),
    entities=frozenset({"attribute"}),
    aliases=(("last_updated_timestamp", "timestamp"),),
)


def create_registered_model(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    name, tags = fields.text("name"), fields.pairs("tags")
    check_model(name)
    _check_readable("name", name)
    for key, value in tags.items():
        check_model_tag(key, value)
    with store.records.transaction():
        if find_model(store, name) is not None:
            raise MlflowError(f"Registered Model (name={name}) already exists.", "RESOURCE_ALREADY_EXISTS")
        made = store.new(
            RegisteredModel,
            name=name,
            description=checked_description(fields.text("description", required=False)),
            tags=tags,
            updated_at=store.now(),
        )
        store.records.put(made)
    return {"registered_model": show_model(store, made)}


def get_registered_model(context: HandlerContext) -> Mapping[str, Any]:
    return {"registered_model": show_model(context.store, get_model(context.store, context.fields.text("name")))}


def update_registered_model(context: HandlerContext) -> Mapping[str, Any]:
    name, description = (
        context.fields.text("name"),
        checked_description(context.fields.text("description", required=False)),
    )
    with context.store.records.transaction():
        model = touch_model(context.store, name, context.store.now(), description=description)
    return {"registered_model": show_model(context.store, model)}


def rename_registered_model(context: HandlerContext) -> Mapping[str, Any]:
    name, new = context.fields.text("name"), context.fields.text("new_name")
    check_model(new, "new_name")
    _check_readable("new_name", new)
    store = context.store
    with store.records.transaction():
        model = get_model(store, name)
        if new != name:
            if find_model(store, new) is not None:
                raise MlflowError(f"Registered Model (name={new}) already exists.", "RESOURCE_ALREADY_EXISTS")
            now = store.now()
            versions, aliases = list_versions(store, name), aliases_of(store, name)
            for version in versions:
                check_unused(store, version, aliases=False)
            for policy in store.records.find(AliasPolicy, ("model", "=", name), limit=1):
                # Under a new name the alias would have no policy.
                raise MlflowError(
                    f"The alias '{policy.key}' has an approval policy, so the model cannot be renamed.",
                    "PERMISSION_DENIED",
                )
            for alias in aliases:
                remove_alias(store, name, alias.name, reason=f"the model is now called '{new}'")
            void_requests(store, name, reason=f"the model is now called '{new}'")
            touch_model(store, name, now)
            model = store.records.get(RegisteredModel, name)
            model = store.records.update(replace(model, name=new, updated_at=now), verb="renamed")[0]
            store.records.update(*(replace(v, model=new, updated_at=now) for v in versions), verb="renamed")
            for alias in aliases:
                number = alias.version.rpartition("@")[2]
                set_alias(store, new, alias.name, f"{new}@{number}", reason=f"the model was called '{name}'")
    return {"registered_model": show_model(store, model)}


def delete_registered_model(context: HandlerContext) -> Mapping[str, Any]:
    name, store = context.fields.text("name"), context.store
    with store.records.transaction():
        get_model(store, name)
        for alias in aliases_of(store, name):
            remove_alias(store, name, alias.name, reason="the model was deleted")
        void_requests(store, name, reason="the model was deleted")
        for version in list_versions(store, name):
            check_unused(store, version, aliases=False)
            store.records.delete(type(version), version.id)
        for model in store.records.find(RegisteredModel, ("key", "=", name)):
            store.records.delete(RegisteredModel, model.id)
    return {}


def search_registered_models(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    most = checked_limit(fields, USUAL, MOST, lowest=1)
    terms = parse_filter(fields.text("filter", required=False), _GRAMMAR)
    orders = [parse_order(text, _ORDERS) for text in fields.texts("order_by")]
    page = Page.of(fields.text("page_token", required=False))
    prompts = selects_prompts(terms)
    terms = [term for term in terms if prompts or term.key != PROMPT_TAG]
    rows = [
        model
        for model in all_models(store)
        if (prompts or not is_prompt(model.tags)) and meets(terms, lambda term, m=model: _value(m, term))  # type: ignore[misc]
    ]
    rows.sort(key=lambda model: model.name)
    for _, key, ascending in reversed(orders):
        rows.sort(key=lambda m, k=key: m.name if k == "name" else ms_of(m.updated_at), reverse=not ascending)  # type: ignore[misc]
    return paged(rows, page, most, lambda model: show_model(store, model), "registered_models")


def set_registered_model_tag(context: HandlerContext) -> Mapping[str, Any]:
    name, key = context.fields.text("name"), context.fields.text("key")
    value = context.fields.text("value", required=False)
    check_model_tag(key, value)
    with context.store.records.transaction():
        model = get_model(context.store, name)
        if model.tags.get(key) != value:
            touch_model(context.store, name, model.updated_at, tagged={key: value}, tags={**model.tags, key: value})
    return {}


def delete_registered_model_tag(context: HandlerContext) -> Mapping[str, Any]:
    name, key = context.fields.text("name"), context.fields.text("key")
    check_key(key)
    with context.store.records.transaction():
        model = get_model(context.store, name)
        if key in model.tags:
            left = {tag: value for tag, value in model.tags.items() if tag != key}
            touch_model(context.store, name, model.updated_at, tagged={key: None}, tags=left)
    return {}


def get_latest_versions(context: HandlerContext) -> Mapping[str, Any]:
    name, store = context.fields.text("name"), context.store
    stages = [canonical_stage(stage) for stage in context.fields.texts("stages")]
    get_model(store, name)
    held = held_by(aliases_of(store, name))
    found = latest_versions(list_versions(store, name), stages)
    return {"model_versions": [version_out(version, held.get(version.key, ())) for version in found]} if found else {}


def set_model_alias(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    name, alias, number = fields.text("name"), fields.text("alias"), fields.text("version")
    check_alias(alias)
    check_alias_free(alias)
    version = get_model_version(store, name, number)
    move_alias(store, name, alias, version.key, "set by MLflow's client")
    return {}


def delete_model_alias(context: HandlerContext) -> Mapping[str, Any]:
    name, alias, store = context.fields.text("name"), context.fields.text("alias"), context.store
    check_alias(alias)
    get_model(store, name)
    with store.records.transaction():
        if any(held.name == alias for held in aliases_of(store, name)):
            remove_alias(store, name, alias, reason="removed by MLflow's client")
    return {}


def get_version_by_alias(context: HandlerContext) -> Mapping[str, Any]:
    name, alias, store = context.fields.text("name"), context.fields.text("alias"), context.store
    check_alias(alias)
    model = get_model(store, name)
    if alias.lower() == "latest":
        versions = list_versions(store, name)
        if versions:
            return {"model_version": show_version(store, versions[0])}
    for held in aliases_of(store, model.name):
        if held.name == alias:
            number = held.version.rpartition("@")[2]
            return {"model_version": show_version(store, get_model_version(store, name, number))}
    raise MlflowError(f"Registered model alias {alias} not found.")


def checked_description(text: str) -> str:
    check_length("description", MOST_TEXT, text)
    return text


def _check_readable(field: str, name: str) -> None:
    """Check that a model's name has only printable characters, as it appears in files, logs and commands."""
    if not name.isprintable():
        raise invalid(field, name, "Names may only have printable characters.")


def selects_prompts(terms: list[Term]) -> bool:
    """Whether a filter selects prompts. They are stored as models, and listed only on request."""
    return any(
        term.entity == "tag"
        and term.key == PROMPT_TAG
        and (term.op, str(term.value).lower()) in {("=", "true"), ("!=", "false")}
        for term in terms
    )


def _value(model: RegisteredModel, term: Term) -> Any:
    return model.tags.get(term.key) if term.entity == "tag" else model.name


_ALIAS = "2.0/mlflow/registered-models/alias"
_LATEST = "2.0/mlflow/registered-models/get-latest-versions"
ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/registered-models/create", create_registered_model, "write"),
    HandlerRoute("GET", "2.0/mlflow/registered-models/get", get_registered_model, "read"),
    HandlerRoute("GET", "2.0/mlflow/registered-models/search", search_registered_models, "read", slow=True),
    HandlerRoute("POST", "2.0/mlflow/registered-models/rename", rename_registered_model, "write", slow=True),
    HandlerRoute("PATCH", "2.0/mlflow/registered-models/update", update_registered_model, "write"),
    HandlerRoute("DELETE", "2.0/mlflow/registered-models/delete", delete_registered_model, "delete", slow=True),
    HandlerRoute("POST", "2.0/mlflow/registered-models/set-tag", set_registered_model_tag, "write"),
    HandlerRoute("DELETE", "2.0/mlflow/registered-models/delete-tag", delete_registered_model_tag, "write"),
    HandlerRoute("POST", _LATEST, get_latest_versions, "read"),
    HandlerRoute("GET", _LATEST, get_latest_versions, "read"),
    HandlerRoute("POST", _ALIAS, set_model_alias, "write"),
    HandlerRoute("GET", _ALIAS, get_version_by_alias, "read"),
    HandlerRoute("DELETE", _ALIAS, delete_model_alias, "delete"),
)
