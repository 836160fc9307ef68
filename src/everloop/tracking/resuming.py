"""Resuming a run that has ended, or whose process has died."""

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
    """Record that the run is running again, on this host.

    The caller must hold the run's lock if it is free: a running run without its lock looks lost.

    Raises:
        NotFoundError: the run does not exist.
    """
    record = store.records.get(Run, run)
    # A journal that has not been folded may still contain the end of the earlier process.
    fold_run(store, record.id)
    host = os.uname().nodename
    for attempt in range(1, _ATTEMPTS + 1):
        record = store.records.get(Run, record.id)
        if record.state == "running" and record.source.host == host:
            break
        source = replace(record.source, host=host)
        changed = replace(record, state="running", ended_at=None, error=None, source=source)
        try:
            (record,) = store.records.update(changed, verb="resumed")
            break
        except ConflictError:
            if attempt == _ATTEMPTS:
                raise
    return record
