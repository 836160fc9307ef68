"""Going on with a run that had ended, or whose process had died."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError
from everloop.records import Run
from everloop.tracking.folding import read_metrics

if TYPE_CHECKING:
    from everloop.stores import Store

_ATTEMPTS = 20


def reopen(store: Store, run: str) -> tuple[Run, dict[str, int]]:
    """Say that the run goes on, and here; returns it, and each metric's next step.

    Its lock has to be held by then if it is free: a running run without one looks lost.

    Raises:
        NotFoundError: there is no such run.
    """
    known = store.records.get(Run, run)
    steps: dict[str, int] = {}
    # Also brings in what journals still hold, the end of the former process among it.
    for point in read_metrics(store, known.id):
        steps[point.key] = max(steps.get(point.key, 0), point.step + 1)
    here = os.uname().nodename
    for attempt in range(1, _ATTEMPTS + 1):
        known = store.records.get(Run, known.id)
        if known.state == "running" and known.source.host == here:
            break
        source = replace(known.source, host=here)
        changed = replace(known, state="running", ended_at=None, error=None, source=source)
        try:
            (known,) = store.records.update(changed, verb="resumed")
            break
        except ConflictError:
            if attempt == _ATTEMPTS:
                raise
    return known, steps
