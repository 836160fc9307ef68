"""Recovery of runs whose processes have died, before runs are read.

A process that is killed leaves a journal, and a run whose state is still `running`. So every search and list, and
showing a run, first folds the journals of dead writers, and marks their unfinished runs as `lost`. Runs of living
processes and of other machines are not touched.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError, EverloopError, StoreVersionError, UsageError
from everloop.stores.journals import list_journals, stream_of, writer_alive
from everloop.stores.verify import mark_lost
from everloop.tracking.journal.run_folding import STREAM_PREFIX, fold_journal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from everloop.stores import Store

_log = logging.getLogger("everloop.tracking")

PATIENCE_S = 2.0
"""How long a reader waits for recovery; the rest is recovered at the next read."""


def recover_journals(store: Store, projects: Iterable[str] | None = None, *, within_s: float = PATIENCE_S) -> None:
    """Fold the journals of dead processes, then mark their runs as lost. Does nothing if the store is read-only.

    Errors are logged and not raised: the reader continues with what the store has.

    Args:
        projects: projects whose runs may be marked. Default: the store's project.
        within_s: journals that are not folded within this time are left for the next call.
    """
    if store.read_only:
        return
    try:
        if _fold_orphans(store, time.monotonic() + within_s):
            for project in [store.project] if projects is None else projects:
                mark_lost(store.for_project(project), started_here=True)
    except (EverloopError, OSError) as error:
        _log.warning("Journals of earlier processes cannot be folded now: %s", error)


def _fold_orphans(store: Store, deadline: float) -> bool:
    """Fold journals of dead writers. Returns False if time ran out: a journal may still contain the end of its run."""
    for path in list_journals(store.journals):
        if not stream_of(path).startswith(STREAM_PREFIX) or writer_alive(path):
            continue
        if time.monotonic() > deadline:
            return False
        try:
            fold_journal(store, path, deadline=deadline)
        except (CorruptionError, StoreVersionError, UsageError) as error:
            _log.error("The journal %s cannot be folded completely: %s", path, error)
    return time.monotonic() <= deadline
