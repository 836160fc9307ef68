"""What is known of an endpoint beside its traffic: its name, its lock, its state."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import EndpointRecord, EndpointState, Release, Route
from everloop.serving.endpoint_settings import NAMES, read_setting
from everloop.serving.routing import RoutingTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.records import Json
    from everloop.stores import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_endpoint_name(name: str) -> None:
    """Raise UsageError unless the name can be part of file, table and lock names."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for an endpoint.", help="Use letters, digits, '.', '_' and '-', at most 64."
        )


def lock_name(store: Store, name: str) -> str:
    """The lock that the process which serves an endpoint holds."""
    return f"endpoint@{store.project}@{name}"


def is_served(store: Store, name: str) -> bool:
    """Whether a living process of this machine serves the endpoint, whatever its record says."""
    return store.locked(lock_name(store, name))


def set_state(store: Store, name: str, state: EndpointState, url: str | None) -> None:
    """Write an endpoint's state and URL, whoever else changes its record meanwhile; nothing if it is gone."""
    while True:
        try:
            endpoint = store.records.get(EndpointRecord, name)
        except NotFoundError:
            return
        if (endpoint.state, endpoint.url) == (state, url):
            return
        try:
            store.records.update(replace(endpoint, state=state, url=url), verb=state)
        except ConflictError:
            continue
        return


def set_options(store: Store, name: str, changes: Mapping[str, str | None]) -> dict[str, Json]:
    """Change an endpoint's options, given as text; None removes one. Returns what can be set and is; see `Settings`.

    Raises:
        NotFoundError: there is no such endpoint.
        UsageError: no such option, or not a value of its.
    """
    values: dict[str, Json] = {}
    for option, text in changes.items():
        # Looked at first, so that removing a misspelled option does not seem to have worked.
        if option not in NAMES:
            raise UsageError(f"An endpoint has no option '{option}'.", help=f"Options: {', '.join(NAMES)}")
        values[option] = None if text is None else read_setting(option, text)
    while True:
        endpoint = store.records.get(EndpointRecord, name)
        options = {key: value for key, value in {**endpoint.options, **values}.items() if value is not None}
        try:
            if options != endpoint.options:
                store.records.update(replace(endpoint, options=options), verb="options")
        except ConflictError:
            continue
        return {option: options[option] for option in NAMES if option in options}


def set_routes(store: Store, name: str, routes: Sequence[Route]) -> EndpointRecord:
    """Share an endpoint's traffic anew, at once and whatever a release under way wants.

    Raises:
        NotFoundError: there is no such endpoint or version.
        UsageError: the routes make no table, or lead to versions of different models.
        ConflictError: one leads to an archived version or, where a policy guards the champion, answers by another
            version than the champion and, up to its share, the one that is being released.
    """
    from everloop.registry.approvals import check_usable
    from everloop.registry.model_versions import get_version

    with store.records.transaction():
        versions = [check_usable(get_version(store, route.version)) for route in routes]
        routes = tuple(replace(route, version=version.key) for route, version in zip(routes, versions, strict=True))
        RoutingTable(name, routes)
        endpoint = store.records.get(EndpointRecord, name)
        strange = [version.key for version in versions if version.model != endpoint.model]
        if strange:
            raise UsageError(f"The endpoint '{name}' answers with versions of '{endpoint.model}', not {strange[0]}.")
        _check_agreed(store, endpoint, routes)
        told = {"routes": {f"{route.role} {route.version}": route.percent for route in routes}}
        return store.records.update(replace(endpoint, routes=routes), verb="routed", data=told)[0]


def _check_agreed(store: Store, endpoint: EndpointRecord, routes: Sequence[Route]) -> None:
    """Hold routes by hand to the policy on the champion: traffic is what the others are asked to agree to."""
    from everloop.registry.approvals import ApprovalError, find_policy
    from everloop.registry.model_versions import CHAMPION, find_alias

    if find_policy(store, endpoint.model, CHAMPION) is None:
        return
    champion = find_alias(store, endpoint.model, CHAMPION)
    rolling = store.records.find(Release, ("endpoint", "=", endpoint.name), ("state", "=", "rolling_out"))
    most = {release.candidate: release.percent for release in rolling}
    if champion is not None:
        most[champion.version] = 100.0
    for route in routes:
        if route.role != "shadow" and route.percent > most.get(route.version, 0.0):
            raise ApprovalError(
                f"'{endpoint.model}@{CHAMPION}' is guarded: '{route.version}' cannot have {route.percent:g}% by hand.",
                help=f"Ask for it: everloop models promote {route.version}; a shadow needs no agreement.",
            )


def read_route(text: str) -> Route:
    """A route as people write it: `delays@3=90`, `delays@4=10`, `delays@5=shadow`, `delays@5=shadow:20`.

    Canaries are those with a percentage that are not the first; see `routes_of`.

    Raises:
        UsageError: it is none.
    """
    version, _, share = text.partition("=")
    word, _, part = share.partition(":")
    shadow = word == "shadow"
    try:
        percent = float(part or 0) if shadow else float(share)
    except ValueError:
        percent = -1.0
    if not version or not 0 <= percent <= 100:
        raise UsageError(f"'{text}' is no route.", help="Write delays@3=90, or delays@4=shadow, or delays@4=shadow:20.")
    return Route(version=version, percent=percent, role="shadow" if shadow else "champion")


def routes_of(texts: Sequence[str]) -> list[Route]:
    """Routes as people write them; the first that answers is the champion, the others canaries."""
    routes = [read_route(text) for text in texts]
    answering = [place for place, route in enumerate(routes) if route.role != "shadow"]
    return [replace(route, role="canary") if place in answering[1:] else route for place, route in enumerate(routes)]
