"""Predictions that are too old to be kept: removed from the table, as the endpoint's setting `log_retention_days` says.

Looked at where the log is folded, at most once an hour in a process. Files that hold removed rows stay for a day, for
whoever is reading them, and then go as well.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from everloop.errors import StoreError
from everloop.prediction_log.log_settings import read_days

if TYPE_CHECKING:
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

EVERY_S = 3600.0
KEEP_FILES_HOURS = 24

_looked: dict[tuple[str, str], float] = {}


def forget_old(store: Store, endpoint: str, table: str) -> int:
    """Remove what is too old from an endpoint's table, and return how many rows went."""
    retention = read_days(store, endpoint, "log_retention_days")
    key = (store.tables.root, table)
    if retention is None or monotonic() < _looked.get(key, 0.0) or not store.tables.exists(table):
        return 0
    _looked[key] = monotonic() + EVERY_S
    try:
        gone = store.tables.forget(table, store.now() - retention)
        if gone:
            store.tables.vacuum(table, keep_hours=KEEP_FILES_HOURS)
    except StoreError as error:
        # Mostly somebody wrote to the same files meanwhile; they are looked at again before long.
        logger.warning("What is too old stays in '%s' for now: %s", table, error)
        _looked[key] = monotonic() + EVERY_S / 60
        return 0
    return gone


__all__ = ["forget_old"]
