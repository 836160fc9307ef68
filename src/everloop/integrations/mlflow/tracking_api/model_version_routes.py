"""Routes for model versions: create from a source, get, search, describe, tag, move between stages, delete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, ms_of, not_found
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_limit
from everloop.integrations.mlflow.tracking_api.filter_strings import Grammar, Term, meets, parse_filter, parse_order
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.logged_model_routes import find_logged_model, tag_with_version
from everloop.integrations.mlflow.tracking_api.name_rules import check_key, check_model_tag
from everloop.integrations.mlflow.tracking_api.page_tokens import Page, paged
from everloop.integrations.mlflow.tracking_api.registered_model_routes import checked_description, selects_prompts
from everloop.integrations.mlflow.tracking_api.registry_lookup import (
    ACTIVE_STAGES,
    aliases_of,
    canonical_stage,
    get_model,
    get_model_version,
    held_by,
    show_version,
    touch_model,
)
from everloop.integrations.mlflow.tracking_api.run_routes import find_run
from everloop.integrations.mlflow.tracking_api.serializers import (
    artifact_uri,
    record_id,
    source_of,
    version_out,
    wire_id,
)
from everloop.integrations.mlflow.tracking_api.version_sources import SourceOrigin, check_source
from everloop.records import Alias, ModelVersion, Run
from everloop.registry.aliases import remove_alias
from everloop.registry.annotations import check_unused
from everloop.registry.approvals import find_policy, void_requests
from everloop.registry.model_versions import list_versions, next_number
from everloop.server.webhooks.webhook_payloads import PROMPT_TAG, is_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.integrations.mlflow.tracking_api.files.allowed_locations import ArtifactLocations
    from everloop.stores import Store

USUAL, MOST = 10_000, 200_000
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_GRAMMAR = Grammar(
    texts=frozenset({"name", "run_id", "source_path", "current_stage", "status", "user_id"}),
    numbers=frozenset({"version_number", "creation_timestamp", "last_updated_timestamp"}),
    listed=frozenset({"name", "run_id"}),
    aliases=(("version", "version_number"), ("source", "source_path")),
)


def create_model_version(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    name, source = fields.text("name"), fields.text("source")
    tags = fields.pairs("tags")
    for key, value in tags.items():
        check_model_tag(key, value)
    requested = SourceOrigin(source, fields.text("run_id", required=False), fields.text("model_id", required=False))
    # A prompt has no files; its source is a single word that is not a URI. No other source is allowed without a check,
    # as the prompt's tag can be removed later.
    without_files = is_prompt(tags) and _WORD.fullmatch(source)
    origin = requested if without_files else check_source(store, requested)
    with store.records.transaction():
        get_model(store, name)
        now = store.now()
        run = record_id(origin.run_id) if origin.run_id else None
        version = store.new(
            ModelVersion,
            model=name,
            version=next_number(store, name),
            package="",
            run=run,
            metrics=_metrics_of(context, run),
            description=checked_description(fields.text("description", required=False)),
            tags=tags,
            source=origin.source,
            logged_model=origin.model_id or None,
            run_link=fields.text("run_link", required=False),
            updated_at=now,
        )
        store.records.put(version, verb="registered", data={"source": origin.source, "run": run})
        touch_model(store, name, now)
        if origin.model_id:
            tag_with_version(store, origin.model_id, version)
    return {"model_version": show_version(store, version)}


def get_version(context: HandlerContext) -> Mapping[str, Any]:
    return {"model_version": show_version(context.store, _requested_version(context))}


def get_download_uri(context: HandlerContext) -> Mapping[str, Any]:
    version = _requested_version(context)
    return {"artifact_uri": storage_of(context.store, version)}


def update_model_version(context: HandlerContext) -> Mapping[str, Any]:
    description = checked_description(context.fields.optional_text("description") or "")
    return {"model_version": _change(context, description=description, updated_at=context.store.now())}


def delete_model_version(context: HandlerContext) -> Mapping[str, Any]:
    store = context.store
    with store.records.transaction():
        version = _requested_version(context)
        check_unused(store, version, aliases=False)
        for alias in aliases_of(store, version.model):
            if alias.version == version.key:
                remove_alias(store, version.model, alias.name, reason="the version was deleted")
        void_requests(store, version.model, version=version.key, reason="the version was deleted")
        touch_model(store, version.model, store.now())
        store.records.delete(ModelVersion, version.id)
    return {}


def set_model_version_tag(context: HandlerContext) -> Mapping[str, Any]:
    key, value = context.fields.text("key"), context.fields.text("value", required=False)
    check_model_tag(key, value)
    with context.store.records.transaction():
        version = _requested_version(context)
        if version.tags.get(key) != value:
            tagged = replace(version, tags={**version.tags, key: value})
            context.store.records.update(tagged, verb="tagged", data={"tags": {key: value}})
    return {}


def delete_model_version_tag(context: HandlerContext) -> Mapping[str, Any]:
    key = context.fields.text("key")
    check_key(key)
    with context.store.records.transaction():
        version = _requested_version(context)
        if key in version.tags:
            left = {tag: value for tag, value in version.tags.items() if tag != key}
            context.store.records.update(replace(version, tags=left), verb="tagged", data={"tags": {key: None}})
    return {}


def transition_stage(context: HandlerContext) -> Mapping[str, Any]:
    store, stage_text = context.store, context.fields.text("stage")
    stage, archive_others = canonical_stage(stage_text), context.fields.flag("archive_existing_versions")
    if archive_others and stage not in ACTIVE_STAGES:
        raise MlflowError(
            f"Model version transition cannot archive existing model versions because '{stage_text}' is not an"
            f" Active stage. Valid stages are {list(ACTIVE_STAGES)}",
            "INTERNAL_ERROR",
        )
    with store.records.transaction():
        version, now = _requested_version(context), store.now()
        _check_no_policy(store, version.model, stage, version.stage)
        if archive_others:
            others = [v for v in list_versions(store, version.model) if v.stage == stage and v.id != version.id]
            store.records.update(*(replace(v, stage="Archived", updated_at=now) for v in others), verb="stage_set")
        version = store.records.update(replace(version, stage=stage, updated_at=now), verb="stage_set")[0]
        touch_model(store, version.model, now)
    return {"model_version": show_version(store, version)}


def _check_no_policy(store: Store, model: str, *stages: str) -> None:
    """Check that no policy applies to the stages.

    Clients load `models:/name/Production` just like an alias, and stages have no approvals. So a policy of the alias
    `production` or `staging` also forbids moving versions into or out of that stage.
    """
    for stage in stages:
        if find_policy(store, model, stage.lower()) is not None:
            raise MlflowError(
                f"The alias '{model}@{stage.lower()}' has an approval policy, so its stage cannot be"
                " used. Move the alias instead.",
                "PERMISSION_DENIED",
            )


def search_model_versions(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    most = checked_limit(fields, USUAL, MOST, lowest=1)
    terms = parse_filter(fields.text("filter", required=False), _GRAMMAR)
    orders = [parse_order(text, _GRAMMAR) for text in fields.texts("order_by")]
    page = Page.of(fields.text("page_token", required=False))
    prompts = selects_prompts(terms)
    terms = [term for term in terms if prompts or term.key != PROMPT_TAG]
    rows = [
        version
        for version in store.records.find(ModelVersion)
        if (prompts or not is_prompt(version.tags)) and meets(terms, lambda term, v=version: _value(v, term))  # type: ignore[misc]
    ]
    rows.sort(key=lambda v: -v.version)
    rows.sort(key=lambda v: v.model)
    for _, key, ascending in reversed(orders or [("attribute", "last_updated_timestamp", False)]):
        rows.sort(key=lambda v, k=key: _attribute(v, k) or "", reverse=not ascending)  # type: ignore[misc]
    aliases = held_by(store.records.find(Alias))
    return paged(rows, page, most, lambda v: version_out(v, aliases.get(v.key, ())), "model_versions")


def storage_of(store: Store, version: ModelVersion) -> str:
    """Return the URI of a version's files, after following `models:/` sources."""
    source = source_of(version)
    for _ in range(100):
        if not source.startswith("models:/"):
            return source
        target = source.removeprefix("models:/")
        if target.startswith("m-") and "/" not in target:
            return find_logged_model(store, target, deleted=True).artifacts_at
        name, _, number = target.rpartition("/")
        source = source_of(get_model_version(store, name, number))
    raise MlflowError(f"The source of '{version.key}' refers back to itself.")


def files_uri(store: Store, version: ModelVersion) -> str:
    """Return the URI of a version's files, also if its source is a `runs:/` URI."""
    source = storage_of(store, version)
    if not source.startswith("runs:/"):
        return source
    run, _, path = source.removeprefix("runs:/").partition("/")
    return f"{artifact_uri(find_run(store, run)).rstrip('/')}/{path}"


def files_of(store: Store, version: ModelVersion, artifacts: ArtifactLocations) -> Path:
    """Return the local folder of a version's files, which may be downloaded for it.

    Raises:
        MlflowError: this server does not store the files, or they do not exist.
    """
    source = files_uri(store, version)
    folder, within = artifacts.find(source)
    path = folder.on_disk(within)
    if not path.is_dir():
        raise not_found(f"The files of '{version.key}' do not exist at {source}.")
    return path


def _requested_version(context: HandlerContext) -> ModelVersion:
    return get_model_version(context.store, context.fields.text("name"), context.fields.text("version"))


def _change(context: HandlerContext, **changes: Any) -> dict[str, Any]:
    with context.store.records.transaction():
        version = context.store.records.update(replace(_requested_version(context), **changes))[0]
    return show_version(context.store, version)


def _metrics_of(context: HandlerContext, run: str | None) -> dict[str, float]:
    found = context.store.records.find(Run, ("id", "=", run), limit=1) if run else []
    return dict(found[0].metrics) if found else {}


def _value(version: ModelVersion, term: Term) -> Any:
    return version.tags.get(term.key) if term.entity == "tag" else _attribute(version, term.key)


def _attribute(version: ModelVersion, key: str) -> Any:
    match key:
        case "name":
            return version.model
        case "version_number":
            return version.version
        case "run_id":
            return wire_id(version.run) if version.run else None
        case "source_path":
            return source_of(version)
        case "current_stage":
            return version.stage
        case "status":
            return "READY"
        case "user_id":
            return version.user
        case "creation_timestamp":
            return ms_of(version.created_at)
    return ms_of(version.updated_at or version.created_at)


ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/model-versions/create", create_model_version, "write"),
    HandlerRoute("GET", "2.0/mlflow/model-versions/get", get_version, "read"),
    HandlerRoute("GET", "2.0/mlflow/model-versions/get-download-uri", get_download_uri, "read"),
    HandlerRoute("GET", "2.0/mlflow/model-versions/search", search_model_versions, "read", slow=True),
    HandlerRoute("PATCH", "2.0/mlflow/model-versions/update", update_model_version, "write"),
    HandlerRoute("DELETE", "2.0/mlflow/model-versions/delete", delete_model_version, "delete"),
    HandlerRoute("POST", "2.0/mlflow/model-versions/set-tag", set_model_version_tag, "write"),
    HandlerRoute("DELETE", "2.0/mlflow/model-versions/delete-tag", delete_model_version_tag, "write"),
    HandlerRoute("POST", "2.0/mlflow/model-versions/transition-stage", transition_stage, "write"),
)
