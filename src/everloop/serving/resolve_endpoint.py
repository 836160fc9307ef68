"""Finding the endpoint that a name means, and making one for a version that nothing routes to yet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.records import EndpointRecord, Route

if TYPE_CHECKING:
    from everloop.stores import Store


def find_place(store: Store, name: str) -> str:
    """The endpoint called `name`; for a version or an alias, one that gives it all the traffic.

    Raises:
        NotFoundError: no endpoint, version or alias is called so.
    """
    if store.records.find(EndpointRecord, ("name", "=", name), limit=1):
        return name
    from everloop.registry import get_version

    version = get_version(store, name)
    own = name.replace("@", "-").replace(".", "-")
    routes = (Route(version=version.key, percent=100.0),)
    found = store.records.find(EndpointRecord, ("name", "=", own), limit=1)
    if not found:
        store.records.put(store.new(EndpointRecord, name=own, model=version.model, routes=routes))
    elif found[0].routes != routes:
        store.records.update(replace(found[0], routes=routes), verb="routed")
    return own
