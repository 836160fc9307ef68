"""Moves journals into tables exactly once, even if processes die meanwhile.

`segment_folding` moves the segments that instances elsewhere have shipped, in the same calls. The table's commit
records how far each journal has been read (`batch=(journal, offset)`), so rows and progress cannot diverge. A lock
keeps two folds from reading the same part. A journal is removed only when its writer is dead and every complete frame
of it is in the table.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError
from everloop.prediction_log.fold_target import Entry, FoldTarget
from everloop.prediction_log.segment_folding import fold_segments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.stores import Store

CHUNK_BYTES = 16 << 20
"""Journal bytes per commit, which bounds the memory that folding needs."""


class StreamFold(FoldTarget[Entry]):
    """Moves the journals and segments of one stream into its table."""

    def run(self, store: Store) -> int:
        """Fold everything that has been appended and return the number of rows that moved.

        Safe beside running writers and other folds.

        Raises:
            CorruptionError: a journal or a segment is damaged. Everything before the damage has been folded, and so
                have the other journals and the segments of other instances.
        """
        damage: CorruptionError | None = None
        rows = 0
        for move in (self._run_journals, partial(fold_segments, fold=self)):
            try:
                rows += move(store)
            except CorruptionError as error:
                damage = error
        if damage is not None:
            raise damage
        return rows

    def _run_journals(self, store: Store) -> int:
        from everloop.stores.journals import list_journals

        if not list_journals(store.journals, self.stream):
            return 0
        rows = 0
        damage: CorruptionError | None = None
        with store.lock(f"fold-{self.stream}"):
            for path in list_journals(store.journals, self.stream):
                try:
                    rows += self._fold_one(store, path)
                except CorruptionError as error:
                    damage = error
        if damage is not None:
            raise damage
        return rows

    def waiting(self, store: Store) -> Iterator[Entry]:
        """The entries that no fold has moved yet, read from the journals. They may be moved meanwhile.

        Raises:
            CorruptionError: a journal is damaged in its middle.
        """
        from everloop.errors import NotFoundError
        from everloop.stores import read_journal
        from everloop.stores.journals import list_journals

        for path in list_journals(store.journals, self.stream):
            done = max(0, store.tables.last_batch(self.table, path.name))
            try:
                for payload, _ in read_journal(path, done):
                    yield self.decode(payload)
            except NotFoundError:
                # Folded and removed since it was listed.
                continue

    def waiting_bytes(self, store: Store) -> int:
        """The number of appended bytes that no fold has moved yet."""
        from everloop.stores.journals import list_journals

        total = 0
        for path in list_journals(store.journals, self.stream):
            try:
                total += max(0, path.stat().st_size - max(0, store.tables.last_batch(self.table, path.name)))
            except FileNotFoundError:
                continue
        return total

    def _fold_one(self, store: Store, path: Path) -> int:
        from everloop.stores import read_journal, writer_alive
        from everloop.stores.journals import check_tail

        # Checked before reading: a writer that dies later may have appended after what is read here.
        finished = not writer_alive(path)
        writer = path.name
        done = max(0, store.tables.last_batch(self.table, writer))
        rows, size, end = 0, 0, done
        entries: list[Entry] = []
        try:
            for payload, offset in read_journal(path, done):
                entries.append(self.decode(payload))
                size += len(payload)
                end = offset
                if size >= CHUNK_BYTES:
                    rows += self._commit(store, writer, end, entries)
                    entries, size = [], 0
        finally:
            rows += self._commit(store, writer, end, entries)
        if finished and path.exists():
            # A killed writer does not leave a damaged last frame. Removing the journal would hide the loss.
            check_tail(path)
            path.unlink(missing_ok=True)
        return rows

    def _commit(self, store: Store, writer: str, end: int, entries: list[Entry]) -> int:
        if not entries:
            return 0
        frame = self.frame_of(store, self.table, entries)
        return frame.height if store.tables.append(self.table, frame, batch=(writer, end)) else 0
