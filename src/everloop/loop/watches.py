"""Check the closed windows of an endpoint with all watches of a loop, and turn what they find into incidents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.loop.window_checks import check_windows

if TYPE_CHECKING:
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
    from everloop.monitoring.incidents.incident_engine import close_replaced, update_incidents
    from everloop.records import EndpointRecord

    found: list[Finding] = []
    incidents: dict[str, Incident] = {}
    errors: list[EverloopError] = []
    if loop.serve is None or not loop.watch:
        return found, [], errors
    for part in loop.watch:
        try:
            findings, failed = check_windows(part, loop.model, loop.serve.name, store)
        except EverloopError as error:
            errors.append(error)
            continue
        changed = update_incidents(store, loop.serve.name, findings)
        incidents |= {incident.id: incident for incident in changed}
        found += findings
        errors += failed
    endpoints = store.records.find(EndpointRecord, ("key", "=", loop.serve.name), limit=1)
    if endpoints:
        routes = [route.version for route in endpoints[0].routes]
        incidents |= {incident.id: incident for incident in close_replaced(store, loop.serve.name, routes)}
    return found, list(incidents.values()), errors
