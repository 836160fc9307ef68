"""Reads and changes an endpoint's record: its name, lock, state, options and routes."""

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
            f"'{name}' is not a valid name for an endpoint.",
            help="Use up to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )


def lock_name(store: Store, name: str) -> str:
    """The name of the lock that is held by the process that serves an endpoint."""
    return f"endpoint@{store.project}@{name}"


def is_served(store: Store, name: str) -> bool:
    """Whether a running process on this machine serves the endpoint, regardless of its record."""
    return store.locked(lock_name(store, name))


def set_state(store: Store, name: str, state: EndpointState, url: str | None) -> None:
    """Write an endpoint's state and URL, also if its record changes meanwhile. Does nothing if it is gone.

    Raises:
        LeaseLostError: `store` is fenced by a lease that another process has taken over.
    """
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
    """Change an endpoint's options, given as text; None removes one. Returns all that are set; see `EndpointSettings`.

    Raises:
        NotFoundError: the endpoint does not exist.
        UsageError: the option does not exist, or the value is not possible.
    """
    values: dict[str, Json] = {}
    for option, text in changes.items():
        # Checked first, so removing a misspelled option does not seem to work.
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
    """Set an endpoint's traffic split at once, also during a release.

    Raises:
        NotFoundError: the endpoint or a version does not exist.
        UsageError: the routes are invalid, or lead to a version of another model.
        ConflictError: a route leads to an archived version. Or a policy guards the champion, and a version answers that
            is neither the champion nor, up to its share, the version that is being released.
    """
    from everloop.registry.approvals import check_usable
    from everloop.registry.model_versions import get_version

    with store.records.transaction():
        versions = [check_usable(get_version(store, route.version)) for route in routes]
        routes = tuple(replace(route, version=version.key) for route, version in zip(routes, versions, strict=True))
        RoutingTable(name, routes)
        endpoint = store.records.get(EndpointRecord, name)
        wrong = [version.key for version in versions if version.model != endpoint.model]
        if wrong:
            raise UsageError(f"The endpoint '{name}' answers with versions of '{endpoint.model}', not {wrong[0]}.")
        _check_agreed(store, endpoint, routes)
        evidence = {"routes": {f"{route.role} {route.version}": route.percent for route in routes}}
        return store.records.update(replace(endpoint, routes=routes), verb="routed", data=evidence)[0]


def _check_agreed(store: Store, endpoint: EndpointRecord, routes: Sequence[Route]) -> None:
    """Apply the policy on the champion to routes set by hand, since traffic is what its approvers approve."""
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
                f"'{endpoint.model}@{CHAMPION}' needs approval, so '{route.version}' cannot get {route.percent:g}%"
                " of the traffic by hand.",
                help=f"Ask for approval: everloop models promote {route.version}. A shadow needs none.",
            )


def read_route(text: str) -> Route:
    """A route as people write it: `delays@3=90`, `delays@4=10`, `delays@5=shadow`, `delays@5=shadow:20`.

    A percentage makes a champion here; `routes_of` makes all but the first canaries.

    Raises:
        UsageError: the text is not a route.
    """
    version, _, share = text.partition("=")
    word, _, part = share.partition(":")
    shadow = word == "shadow"
    try:
        percent = float(part or 0) if shadow else float(share)
    except ValueError:
        percent = -1.0
    if not version or not 0 <= percent <= 100:
        raise UsageError(f"'{text}' is not a route.", help="Write delays@3=90, delays@4=shadow or delays@4=shadow:20.")
    return Route(version=version, percent=percent, role="shadow" if shadow else "champion")


def routes_of(texts: Sequence[str]) -> list[Route]:
    """Routes as people write them. The first that answers is the champion, the others are canaries."""
    routes = [read_route(text) for text in texts]
    answering = [position for position, route in enumerate(routes) if route.role != "shadow"]
    return [
        replace(route, role="canary") if position in answering[1:] else route for position, route in enumerate(routes)
    ]
