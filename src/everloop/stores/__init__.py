"""Where things are kept: records, objects, tables and journals, under one home and one clock.

Importing this package loads only the standard library; each name brings its own module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.stores.clock import Clock, FixedClock, SharedClock, SystemClock, new_id
    from everloop.stores.content import ContentStore
    from everloop.stores.home import Store, open_store
    from everloop.stores.journals import Journal, read_journal, writer_alive
    from everloop.stores.objects import ByteStore, LocalBytes, ObstoreBytes, open_bytes
    from everloop.stores.observing import collect_observations, observe
    from everloop.stores.record_store import Condition, Op, RecordStore
    from everloop.stores.tables import Tables
    from everloop.stores.trees import TreeEntry

_MODULES = {
    "clock": ("Clock", "FixedClock", "SharedClock", "SystemClock", "new_id"),
    "content": ("ContentStore",),
    "home": ("Store", "open_store"),
    "journals": ("Journal", "read_journal", "writer_alive"),
    "objects": ("ByteStore", "LocalBytes", "ObstoreBytes", "open_bytes"),
    "observing": ("collect_observations", "observe"),
    "record_store": ("Condition", "Op", "RecordStore"),
    "tables": ("Tables",),
    "trees": ("TreeEntry",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ByteStore",
    "Clock",
    "Condition",
    "ContentStore",
    "FixedClock",
    "Journal",
    "LocalBytes",
    "ObstoreBytes",
    "Op",
    "RecordStore",
    "SharedClock",
    "Store",
    "SystemClock",
    "Tables",
    "TreeEntry",
    "collect_observations",
    "new_id",
    "observe",
    "open_bytes",
    "open_store",
    "read_journal",
    "writer_alive",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
