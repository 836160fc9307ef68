"""Looks up registered models, their versions and aliases.

Versions that MLflow's clients register are ordinary versions, and versions that everloop registered are visible here,
even if their model has no `RegisteredModel` record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, not_found
from everloop.integrations.mlflow.tracking_api.name_rules import check_model, version_number
from everloop.integrations.mlflow.tracking_api.serializers import model_out, version_out
from everloop.records import Alias, ModelVersion, RegisteredModel
from everloop.registry.model_versions import list_versions

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.stores import Store

STAGES = ("None", "Staging", "Production", "Archived")
ACTIVE_STAGES = ("Staging", "Production")


def find_model(store: Store, name: str) -> RegisteredModel | None:
    """Return the model's record. If only versions of it exist, return an unstored record derived from them."""
    found = store.records.find(RegisteredModel, ("key", "=", name), limit=1)
    if found:
        return found[0]
    versions = list_versions(store, name)
    return _implied(store, versions) if versions else None


def get_model(store: Store, name: str) -> RegisteredModel:
    check_model(name)
    model = find_model(store, name)
    if model is None:
        raise not_found(f"Registered Model with name={name} not found")
    return model


def get_model_version(store: Store, name: str, version: str) -> ModelVersion:
    check_model(name)
    number = version_number(version)
    found = store.records.find(ModelVersion, ("key", "=", f"{name}@{number}"), limit=1)
    if not found:
        raise not_found(f"Model Version (name={name}, version={number}) not found")
    return found[0]


def all_models(store: Store) -> list[RegisteredModel]:
    models = {model.name: model for model in store.records.find(RegisteredModel)}
    implied: dict[str, list[ModelVersion]] = defaultdict(list)
    for version in store.records.find(ModelVersion, order="-version"):
        if version.model not in models:
            implied[version.model].append(version)
    return [*models.values(), *(_implied(store, versions) for versions in implied.values())]


def touch_model(
    store: Store, name: str, moment: datetime, *, tagged: dict[str, str | None] | None = None, **changes: Any
) -> RegisteredModel:
    """Update the model's record, creating it if needed.

    Args:
        tagged: the changed tags, for the event; None for a deleted one.
    """
    model = get_model(store, name)
    changed = replace(model, updated_at=moment, **changes)
    if store.records.find(RegisteredModel, ("key", "=", name), limit=1):
        if tagged is not None:
            return store.records.update(changed, verb="tagged", data={"tags": tagged})[0]
        return store.records.update(changed)[0]
    store.records.put(changed)
    return changed


def aliases_of(store: Store, name: str) -> list[Alias]:
    return sorted(store.records.find(Alias, ("model", "=", name)), key=lambda alias: alias.name)


def held_by(aliases: Iterable[Alias]) -> dict[str, list[str]]:
    """Return version key to the names of its aliases."""
    held: dict[str, list[str]] = defaultdict(list)
    for alias in aliases:
        held[alias.version].append(alias.name)
    return held


def latest_versions(versions: Sequence[ModelVersion], stages: Iterable[str] = ()) -> list[ModelVersion]:
    """Return the newest version of each stage."""
    newest: dict[str, ModelVersion] = {}
    for version in versions:
        known = newest.get(version.stage)
        if known is None or version.version > known.version:
            newest[version.stage] = version
    wanted = set(stages)
    return [newest[stage] for stage in STAGES if stage in newest and (not wanted or stage in wanted)]


def canonical_stage(stage: str) -> str:
    found = {name.lower(): name for name in STAGES}.get(stage.lower())
    if found is None:
        raise MlflowError(f"Invalid Model Version stage: {stage}. Value must be one of {', '.join(STAGES)}.")
    return found


def show_model(store: Store, model: RegisteredModel) -> dict[str, Any]:
    aliases = aliases_of(store, model.name)
    return model_out(model, latest_versions(list_versions(store, model.name)), aliases, held_by(aliases))


def show_version(store: Store, version: ModelVersion) -> dict[str, Any]:
    return version_out(version, held_by(aliases_of(store, version.model)).get(version.key, ()))


def _implied(store: Store, versions: Sequence[ModelVersion]) -> RegisteredModel:
    """Return a record derived from the versions of a model, newest first."""
    first, last = versions[-1], versions[0]
    return store.new(
        RegisteredModel,
        name=first.model,
        created_at=first.created_at,
        updated_at=last.updated_at or last.created_at,
    )
