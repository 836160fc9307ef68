"""Check the closed windows of an endpoint with all watches of a loop. See `window_checks` for how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.loop.window_checks import check_windows

if TYPE_CHECKING:
    from everloop.loop.loop_definition import Loop
    from everloop.records import Finding
    from everloop.stores import Store


def watch(loop: Loop, store: Store) -> tuple[list[Finding], list[EverloopError]]:
    """Check every closed window that has not been checked yet.

    Returns:
        The new findings, oldest window of each watch first, and the errors of the watches that failed. A watch that
        fails does not stop the others; it tries again next time.
    """
    found: list[Finding] = []
    errors: list[EverloopError] = []
    if loop.serve is not None:
        for part in loop.watch:
            try:
                findings, failed = check_windows(part, loop.model, loop.serve.name, store)
            except EverloopError as error:
                errors.append(error)
                continue
            found += findings
            errors += failed
    return found, errors
