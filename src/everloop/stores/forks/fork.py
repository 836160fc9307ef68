"""The parts of a forked store: a folder of its own, records, objects and tables over those of its origin."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.records import KINDS
from everloop.stores.forks.fork_database import create_database
from everloop.stores.forks.overlay_records import OverlayRecords
from everloop.stores.forks.record_layers import OriginLayer
from everloop.stores.permissions import make_folder

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from everloop.stores.clock import Clock
    from everloop.stores.objects.content_addressing import ContentStore
    from everloop.stores.records.record_store import RecordStore
    from everloop.stores.records.sqlite import SqliteDatabase
    from everloop.stores.tables.memory_tables import MemoryTables
    from everloop.stores.tables.table_store import TableStore


class ForkFamily:
    """Forks that share objects and step results. The folder is removed when all of them are closed.

    Args:
        folder: where the folder is created. Default: where temporary files are.
        objects: a folder of objects that other families use as well. It is not removed. Default: one of this family.
    """

    def __init__(self, folder: Path | None = None, objects: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="everloop-fork-", dir=folder))
        self.objects = objects or self.folder / "objects"
        self.databases: list[SqliteDatabase] = []
        self._open = 0
        self._guard = threading.Lock()
        self._remove = weakref.finalize(self, _remove_folder, self.folder, os.getpid())

    def join(self) -> tuple[Path, SqliteDatabase]:
        """The home and the database of another fork."""
        with self._guard:
            if not self._remove.alive:
                raise UsageError("A store cannot be forked to share with a fork that is closed.", help="Keep it open.")
            number = len(self.databases)
            home = self.folder / f"home-{number}"
            for folder in (home, home / "journals", home / "locks"):
                make_folder(folder)
            database = create_database(self.folder / f"records-{number}.db")
            self.databases.append(database)
            self._open += 1
            return home, database

    def leave(self, home: Path) -> None:
        with self._guard:
            shutil.rmtree(home, ignore_errors=True)
            self._open -= 1
            if self._open:
                return
            for database in self.databases:
                database.close()
            self._remove()


@dataclass
class Fork:
    """A fork that is open.

    Attributes:
        origin: the records of the origin as of the moment of the fork, or None for a fork of nothing.
        tables_below: the tables of the origin as of that moment.
    """

    family: ForkFamily
    home: Path
    records: OverlayRecords
    objects_below: ContentStore | None
    tables_below: TableStore | None
    _tables: MemoryTables | None = None
    _closed: bool = False
    _objects: ContentStore | None = None
    _guard: Any = field(default_factory=threading.Lock)

    @property
    def objects(self) -> ContentStore:
        """The objects of the whole family, over those of the origin."""
        from everloop.stores.objects.content_addressing import ContentStore
        from everloop.stores.objects.overlay_objects import OverlayObjects

        if self._objects is None:
            folder = self.family.objects
            if self.objects_below is None:
                self._objects = ContentStore(folder)
            else:
                self._objects = OverlayObjects(folder, self.objects_below)
        return self._objects

    def tables(self, clock: Clock, moment: datetime | None) -> TableStore:
        """The tables, for a view with this clock and as of this moment."""
        from everloop.stores.tables.memory_tables import MemoryTables

        with self._guard:
            if self._tables is None:
                self._tables = MemoryTables(clock, below=self.tables_below)
        view = self._tables.with_clock(clock)
        return view if moment is None else view.as_of(moment)

    def close(self) -> None:
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._tables = None
        self.records.close()
        self.family.leave(self.home)


def open_fork(
    base: RecordStore | None,
    objects: ContentStore | None,
    tables: TableStore | None,
    *,
    moment: datetime,
    project: str,
    actor: str,
    clock: Clock,
    share: Fork | None = None,
    hide: Collection[str] = (),
    folder: Path | None = None,
    objects_in: Path | None = None,
) -> Fork:
    """Fork parts of a store, or begin with nothing.

    Args:
        base: records as of `moment`.
        share: another fork, to see each other's step results and objects.
        hide: kinds of records of the origin that are not visible.
        folder: where a new family keeps its files. Default: where temporary files are.
        objects_in: a folder of objects that a new family shares with others. Default: one in its own folder.

    Raises:
        UsageError: there is no such kind, or the other fork is closed.
    """
    unknown = sorted(set(hide) - set(KINDS))
    if unknown:
        raise UsageError(f"'{unknown[0]}' is not a kind of record.", help=f"Kinds: {', '.join(sorted(KINDS))}")
    family = ForkFamily(folder, objects_in) if share is None else share.family
    home, database = family.join()
    layers: list[Any] = [] if base is None else [OriginLayer(base, frozenset(hide))]
    records = OverlayRecords(
        database,
        layers,
        moment=moment,
        depth=1 + getattr(base, "depth", 0),
        project=project,
        actor=actor,
        clock=clock,
        family=family.databases,
    )
    return Fork(family, home, records, objects, tables)


def _remove_folder(folder: Path, process: int) -> None:
    # A forked child must not remove what its parent still uses.
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
