"""Going on with a run that had ended, or whose process had died."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError
from everloop.records import Run
from everloop.tracking.journal.run_folding import fold_run

if TYPE_CHECKING:
    from everloop.stores import Store

_ATTEMPTS = 20


def reopen(store: Store, run: str) -> Run:
    """Say that the run goes on, and here.

    Its lock has to be held by then if it is free: a running run without one looks lost.

    Raises:
        NotFoundError: there is no such run.
    """
    known = store.records.get(Run, run)
    # What journals still hold may be the end of the former process.
    fold_run(store, known.id)
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
    return known
