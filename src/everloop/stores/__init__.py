"""The store: records, objects, tables and journals in one home folder, with one clock.

Importing this package loads only the standard library; each name imports its module on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.stores.clock import (
        Clock as Clock,
        FixedClock as FixedClock,
        SharedClock as SharedClock,
        SimulatedClock as SimulatedClock,
        SystemClock as SystemClock,
        new_id as new_id,
    )
    from everloop.stores.forks.scratch_store import scratch_store as scratch_store
    from everloop.stores.home import Store as Store, open_store as open_store
    from everloop.stores.journals import Journal as Journal, read_journal as read_journal, writer_alive as writer_alive
    from everloop.stores.objects.byte_stores import (
        ByteStore as ByteStore,
        LocalBytes as LocalBytes,
        ObstoreBytes as ObstoreBytes,
        open_bytes as open_bytes,
    )
    from everloop.stores.objects.content_addressing import ContentStore as ContentStore
    from everloop.stores.objects.manifests import TreeEntry as TreeEntry
    from everloop.stores.observations import (
        checked_in as checked_in,
        checked_store as checked_store,
        collect_observations as collect_observations,
        observe as observe,
    )
    from everloop.stores.records.record_store import Condition as Condition, Op as Op, RecordStore as RecordStore
    from everloop.stores.tables.delta_tables import Tables as Tables
    from everloop.stores.tables.memory_tables import MemoryTables as MemoryTables
    from everloop.stores.tables.table_store import TableStore as TableStore

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "clock": ["Clock", "FixedClock", "SharedClock", "SimulatedClock", "SystemClock", "new_id"],
        "forks.scratch_store": ["scratch_store"],
        "home": ["Store", "open_store"],
        "journals": ["Journal", "read_journal", "writer_alive"],
        "objects.byte_stores": ["ByteStore", "LocalBytes", "ObstoreBytes", "open_bytes"],
        "objects.content_addressing": ["ContentStore"],
        "objects.manifests": ["TreeEntry"],
        "observations": ["checked_in", "checked_store", "collect_observations", "observe"],
        "records.record_store": ["Condition", "Op", "RecordStore"],
        "tables.delta_tables": ["Tables"],
        "tables.memory_tables": ["MemoryTables"],
        "tables.table_store": ["TableStore"],
    },
)
