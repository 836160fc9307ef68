"""Finds the endpoint for a name, and creates one for a version that has none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.records import EndpointRecord, Route

if TYPE_CHECKING:
    from everloop.stores import Store


def find_endpoint(store: Store, name: str) -> str:
    """The name of the endpoint; for a version or an alias, of one that gives it all the traffic, created if missing.

    Raises:
        NotFoundError: no endpoint, version or alias has this name.
    """
    if store.records.find(EndpointRecord, ("name", "=", name), limit=1):
        return name
    from everloop.registry import get_version

    version = get_version(store, name)
    endpoint_name = name.replace("@", "-").replace(".", "-")
    routes = (Route(version=version.key, percent=100.0),)
    found = store.records.find(EndpointRecord, ("name", "=", endpoint_name), limit=1)
    if not found:
        store.records.put(store.new(EndpointRecord, name=endpoint_name, model=version.model, routes=routes))
    elif found[0].routes != routes:
        store.records.update(replace(found[0], routes=routes), verb="routed")
    return endpoint_name
