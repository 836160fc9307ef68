"""Moves what the processes of this host have logged into the tables of a store that several hosts share.

Journals and spools are on the disk of the host that wrote them, so no other host can move them: neither those of a
process that died, nor those of an endpoint whose loop is reconciled elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import CorruptionError
from everloop.prediction_log.failure_log import FAILURES, fold_failures
from everloop.prediction_log.labels import fold_labels
from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, fold_predictions, stream_name, table_name
from everloop.prediction_log.segment_folding import spools
from everloop.stores.journals import list_journals, stream_of

if TYPE_CHECKING:
    from everloop.stores import Store

_FOLDS = ((PREDICTIONS, fold_predictions), (LABELS, fold_labels), (FAILURES, fold_failures))


def endpoints_logged_here(store: Store) -> list[str]:
    """The endpoints of the project that have journals on this host, sorted."""
    streams = {stream_of(path) for path in list_journals(store.journals)}
    for _, spool in spools(store):
        if spool.is_dir():
            streams.update(path.name for path in spool.iterdir())
    starts = [stream_name(store, what, "") for what, _ in _FOLDS]
    return sorted({name.removeprefix(start) for name in streams for start in starts if name.startswith(start)})


def fold_here(store: Store, endpoint: str) -> int:
    """Move the answers, labels and failures that wait on this host, exactly once, and return the number of rows.

    Safe beside a process of another host that does the same, and beside running endpoints.

    Raises:
        CorruptionError: a journal is damaged. Everything else has been moved.
    """
    rows = 0
    damage: CorruptionError | None = None
    for what, fold in _FOLDS:
        try:
            moved = fold(store, endpoint)
        except CorruptionError as error:
            damage = error
            continue
        if moved:
            store.tables.tidy(table_name(store, what, endpoint))
        rows += moved
    if damage is not None:
        raise damage
    return rows


__all__ = ["endpoints_logged_here", "fold_here"]
