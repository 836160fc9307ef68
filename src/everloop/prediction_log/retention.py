"""Removes predictions that are older than the endpoint's setting `log_retention_days` from its table.

This happens when the log is folded, at most once an hour per process. Files with removed rows stay for another day,
because readers may still use them.
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

_next_check_at: dict[tuple[str, str], float] = {}


def forget_old(store: Store, endpoint: str, table: str) -> int:
    """Remove rows that are too old from an endpoint's table, and return their number."""
    retention = read_days(store, endpoint, "log_retention_days")
    key = (store.tables.root, table)
    if retention is None or monotonic() < _next_check_at.get(key, 0.0) or not store.tables.exists(table):
        return 0
    _next_check_at[key] = monotonic() + EVERY_S
    try:
        removed = store.tables.forget(table, store.now() - retention)
        if removed:
            store.tables.vacuum(table, keep_hours=KEEP_FILES_HOURS)
    except StoreError as error:
        # Usually another process wrote to the same files meanwhile. Try again soon.
        logger.warning("Cannot remove old rows from '%s' now: %s", table, error)
        _next_check_at[key] = monotonic() + EVERY_S / 60
        return 0
    return removed


__all__ = ["forget_old"]
