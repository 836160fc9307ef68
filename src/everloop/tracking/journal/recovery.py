"""What dead processes left behind, brought into the store before anyone looks at runs.

A process that is killed leaves its journal and a run that is said to be running. Every search, list and look at a run
first folds the journals whose writers have died, and marks runs `lost` whose process is gone without having ended
them. Runs that live are left alone, and so are those of other machines.
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
"""How long a look waits for what was left behind; the rest comes in at the next look."""


def recover_journals(store: Store, projects: Iterable[str] | None = None, *, within_s: float = PATIENCE_S) -> None:
    """Fold the journals of dead processes, then mark their runs as lost. Does nothing on a view of the past.

    Trouble is named in the log and not raised: the look goes on with what the store has.

    Args:
        projects: whose runs may be marked; without it the store's own.
        within_s: journals that are not in the store by then are left for the next look.
    """
    if store.read_only:
        return
    try:
        if _fold_orphans(store, time.monotonic() + within_s):
            for project in [store.project] if projects is None else projects:
                mark_lost(store.for_project(project), started_here=True)
    except (EverloopError, OSError) as trouble:
        _log.warning("What earlier processes left in journals stays there for now: %s", trouble)


def _fold_orphans(store: Store, deadline: float) -> bool:
    """Whether all that could be folded is: what a journal still holds may say how its run ended."""
    for path in list_journals(store.journals):
        if not stream_of(path).startswith(STREAM_PREFIX) or writer_alive(path):
            continue
        if time.monotonic() > deadline:
            return False
        try:
            fold_journal(store, path, deadline=deadline)
        except (CorruptionError, StoreVersionError, UsageError) as error:
            _log.error("The journal %s cannot be folded to its end: %s", path, error)
    return time.monotonic() <= deadline
