"""Check the closed windows of an endpoint with all watches of a loop, and turn what they find into incidents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import EverloopError, NotFoundError
from everloop.loop.watches.watch_protocol import watch_name
from everloop.loop.watches.window_checks import check_windows, failure_subject

if TYPE_CHECKING:
    from collections.abc import Iterable

    from everloop.loop.loop_definition import Loop
    from everloop.records import Finding, Incident
    from everloop.stores import Store


def watch(loop: Loop, store: Store) -> tuple[list[Finding], list[Incident], list[EverloopError]]:
    """Check every closed window that has not been checked yet.

    Returns:
        The new findings, oldest window of each watch first; the incidents that were opened, joined, escalated or
        resolved; and the errors of the watches that failed. A watch that fails does not stop the others; it tries again
        next time.
    """
    from everloop.monitoring.incidents.incident_engine import close_replaced, close_unwatched
    from everloop.records import EndpointRecord, Incident

    found: list[Finding] = []
    incidents: list[Incident] = []
    errors: list[EverloopError] = []
    if loop.serve is None:
        return found, [], errors
    for part in loop.watch:
        try:
            findings, changed, failed = check_windows(part, loop.model, loop.serve.name, store, loop.name)
        except EverloopError as error:
            errors.append(error)
            continue
        found += findings
        incidents += changed
        errors += failed
    names = [watch_name(part) for part in loop.watch]
    # A watch that fails opens incidents under a name of its own.
    incidents += close_unwatched(store, loop.serve.name, [*names, *map(failure_subject, names)], loop=loop.name)
    endpoints = store.records.find(EndpointRecord, ("key", "=", loop.serve.name), limit=1)
    if endpoints:
        routes = [route.version for route in endpoints[0].routes]
        incidents += close_replaced(store, loop.serve.name, routes)
    # Later windows may have changed an incident again.
    return found, store.records.get_many(Incident, list(dict.fromkeys(one.id for one in incidents))), errors


def close_removed(loops: Iterable[Loop], store: Store) -> list[Incident]:
    """Resolve incidents of loops that the project no longer has, or that no longer watch the endpoint.

    Args:
        loops: all loops of the project. One that is not among them is left alone while another process reconciles it.
    """
    from everloop.monitoring.incidents.incident_engine import close_of_removed_loops
    from everloop.stores.leases import Leases

    leases = Leases(store)

    def runs_elsewhere(loop: str) -> bool:
        lease = leases.find(reconcile_lease(loop))
        return lease is not None and not leases.is_expired(lease)

    endpoints = {loop.name: loop.serve.name if loop.serve is not None else None for loop in loops}
    return close_of_removed_loops(store, endpoints, runs_elsewhere)


def reconcile_lease(loop: str) -> str:
    """The name of the lease that the process holds that reconciles a loop."""
    return f"reconcile:{loop}"


def watch_views(store: Store) -> tuple[list[Finding], list[Incident]]:
    """Check how old the feature views of the project are.

    A view whose newest row is too old opens an incident, which is resolved when newer rows have arrived.

    Returns:
        The new findings, and the incidents that were opened, joined or resolved.
    """
    from everloop.data.features.lookup import VIEW_PREFIX, watch_freshness
    from everloop.monitoring.incidents.incident_engine import ongoing_incidents, resolve_incident, update_incidents

    found = watch_freshness(store, keep=False)
    changed: list[Incident] = []
    if found:
        with store.records.transaction():
            store.records.put(*found, verb="found")
            for one in found:
                since, until = one.window_from, one.window_to
                changed += update_incidents(store, one.endpoint, [one], watch="freshness", since=since, until=until)
    for incident in ongoing_incidents(store, kind="freshness"):
        if incident.endpoint.startswith(VIEW_PREFIX):
            text = _fresh_again(store, incident.endpoint.removeprefix(VIEW_PREFIX))
            if text is not None:
                changed.append(resolve_incident(store, incident, text))
    return found, changed


def _fresh_again(store: Store, view: str) -> str | None:
    """Return why an incident about the age of a view is over; None if it is not."""
    from everloop.data.features import check_freshness

    try:
        fresh = check_freshness(store, view)
    except NotFoundError:
        return f"The view '{view}' no longer exists."
    return None if fresh.stale else "Newer rows have arrived."
