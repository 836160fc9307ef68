"""The pages about models: the list, one model with its versions, and one version with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError
from everloop.records import Alias, AliasRequest, Event, GateResult, ModelVersion, Package, Release
from everloop.server.views.lineage_graph import LineageNode, lineage_nodes

if TYPE_CHECKING:
    from everloop.stores import Store

MOST_VERSIONS = 1000
_MOST_MODELS = 500


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model in the list of models."""

    name: str
    versions: int
    newest: str
    newest_at: datetime
    champion: str | None
    metric: str | None
    """The metric that decided the champion's evaluation, or the newest version's if there is no champion."""
    value: float | None
    endpoint: str | None


@dataclass(frozen=True, slots=True)
class Champion:
    """The time in which one version was champion. `until` is None for the current one."""

    version: str
    since: datetime
    until: datetime | None
    reason: str
    actor: str
    approved_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelDetail:
    """A model: its versions newest first, its aliases, and who has held the champion alias."""

    name: str
    versions: list[ModelVersion]
    aliases: list[Alias]
    champions: list[Champion]
    requests: list[AliasRequest]


@dataclass(frozen=True, slots=True)
class VersionDetail:
    """A version with what is known about it. `events` are oldest first."""

    version: ModelVersion
    aliases: list[str]
    package: Package | None
    gates: list[GateResult]
    releases: list[Release]
    requests: list[AliasRequest]
    events: list[Event]
    lineage: list[LineageNode]


def list_models(store: Store) -> list[ModelSummary]:
    """Return the models, those with the newest versions first."""
    from everloop.records import EndpointRecord

    by_model: dict[str, list[ModelVersion]] = {}
    for version in store.records.find(ModelVersion, order="-id", limit=10 * MOST_VERSIONS):
        by_model.setdefault(version.model, []).append(version)
    champions = {one.model: one.version for one in store.records.find(Alias, ("name", "=", "champion"))}
    endpoints = {one.model: one.name for one in store.records.find(EndpointRecord)}
    found = []
    for model, versions in list(by_model.items())[:_MOST_MODELS]:
        champion = champions.get(model)
        shown = next((one for one in versions if one.key == champion), versions[0])
        metric = shown.evaluation.get("metric")
        name = metric if isinstance(metric, str) else None
        found.append(
            ModelSummary(
                name=model,
                versions=len(versions),
                newest=versions[0].key,
                newest_at=versions[0].created_at,
                champion=champion,
                metric=name,
                value=shown.metrics.get(name) if name else None,
                endpoint=endpoints.get(model),
            )
        )
    return found


def read_model(store: Store, name: str) -> ModelDetail:
    """Return one model.

    Raises:
        NotFoundError: the model has no versions.
    """
    from everloop.registry.history import alias_history

    versions = store.records.find(ModelVersion, ("model", "=", name), order="-id", limit=MOST_VERSIONS)
    if not versions:
        raise NotFoundError(f"There is no model '{name}'.", help="See: everloop models ls")
    aliases = store.records.find(Alias, ("model", "=", name), order="name")
    champions = [
        Champion(one.version, one.since, one.until, one.reason, one.actor, one.approved_by)
        for one in alias_history(store, name, "champion")
    ]
    requests = store.records.find(AliasRequest, ("model", "=", name), order="-id", limit=100)
    return ModelDetail(name, versions, aliases, champions, requests)


def read_version(store: Store, ref: str) -> VersionDetail:
    """Return one version, by key or alias.

    Raises:
        NotFoundError: there is no such version.
    """
    from everloop.registry import get_version
    from everloop.registry.history import version_history

    version = get_version(store, ref)
    records = store.records
    packages = records.find(Package, ("digest", "=", version.package), limit=1) if version.package else []
    releases = records.find(Release, ("candidate", "=", version.key), order="-id", limit=50)
    return VersionDetail(
        version=version,
        aliases=[one.name for one in records.find(Alias, ("model", "=", version.model)) if one.version == version.key],
        package=packages[0] if packages else None,
        gates=records.find(GateResult, ("candidate", "=", version.key), order="id", limit=200),
        releases=releases,
        requests=records.find(AliasRequest, ("version", "=", version.key), order="-id", limit=50),
        events=version_history(store, version.key)[-200:],
        lineage=lineage_nodes(store, version.key, releases),
    )
