"""Descriptions and tags of a version, and archiving it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, UsageError
from everloop.records import Alias, EndpointRecord, ModelVersion
from everloop.registry.approvals import void_requests
from everloop.registry.model_versions import get_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.stores import Store

MOST_TEXT = 50_000
MOST_TAG = 8000


def describe(store: Store, ref: str, text: str) -> ModelVersion:
    """Replace a version's description: plain text of at most 50,000 characters, shown unchanged on its card."""
    if len(text) > MOST_TEXT:
        raise UsageError(
            f"A description of {len(text):,} characters is too long.", help=f"Shorten it to {MOST_TEXT:,} characters."
        )
    version = get_version(store, ref)
    if version.description == text:
        return version
    return store.records.update(replace(version, description=text), verb="described")[0]


def tag(store: Store, ref: str, tags: Mapping[str, str | None]) -> ModelVersion:
    """Set tags; the value None removes a tag.

    Raises:
        UsageError: a name is empty or longer than 250 characters, or a value is longer than 8,000.
    """
    for name, value in tags.items():
        if not name or len(name) > 250 or len(value or "") > MOST_TAG:
            raise UsageError(
                f"The tag '{name[:50]}' is empty or too long.",
                help=f"A name has 1 to 250 characters, a value at most {MOST_TAG:,}.",
            )
    version = get_version(store, ref)
    merged = {**version.tags, **{name: value for name, value in tags.items() if value is not None}}
    changed = {name: value for name, value in merged.items() if tags.get(name, value) is not None}
    if changed == version.tags:
        return version
    return store.records.update(replace(version, tags=changed), verb="tagged", data={"tags": dict(tags)})[0]


def archive(store: Store, ref: str, reason: str = "") -> ModelVersion:
    """Take a version out of use. The version and its history stay readable, and `unarchive` undoes it.

    Raises:
        ConflictError: an alias or an endpoint's route still points to it.
    """
    with store.records.transaction():
        version = get_version(store, ref)
        if version.state == "archived":
            return version
        check_unused(store, version)
        void_requests(store, version.model, version=version.key, reason="the version was archived")
        data = {"reason": reason, "state": version.state}
        return store.records.update(replace(version, state="archived"), verb="archived", data=data)[0]


def check_unused(store: Store, version: ModelVersion, *, aliases: bool = True) -> None:
    """Check that a version is not in use, before it is archived or deleted.

    Raises:
        ConflictError: an endpoint's route points to it or, with `aliases`, an alias does.
    """
    holding = store.records.find(Alias, ("version", "=", version.key)) if aliases else []
    endpoints = [
        endpoint
        for endpoint in store.records.find(EndpointRecord, ("model", "=", version.model))
        if any(route.version == version.key for route in endpoint.routes)
    ]
    if holding or endpoints:
        users = [alias.key for alias in holding] + [f"endpoint '{endpoint.name}'" for endpoint in endpoints]
        raise ConflictError(
            f"'{version.key}' is in use: {', '.join(users)}.",
            help=f"Promote another version first: everloop models promote {version.model}@N",
        )


def unarchive(store: Store, ref: str, reason: str = "") -> ModelVersion:
    """Return an archived version to the state that it had before."""
    with store.records.transaction():
        version = get_version(store, ref)
        if version.state != "archived":
            return version
        past = [old.state for _, old in store.records.history(ModelVersion, version.id) if old.state != "archived"]
        back = replace(version, state=past[-1] if past else "registered")
        return store.records.update(back, verb="unarchived", data={"reason": reason})[0]
