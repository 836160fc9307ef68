"""Stores that stay open for as long as their process lives.

Opening a store takes a millisecond, and closing SQLite's last connection several, because that writes its log back.
Whoever needs a store for one small piece of work, such as a run, takes the one that is kept: one for each home and
process, shared by all threads. A forked child goes on with connections of its own.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.stores.home import Store, default_actor, find_store_urls, open_urls

if TYPE_CHECKING:
    from everloop.stores.home import StoreUrls

_MOST = 4
"""Homes that are kept open at once; the one that was not used for longest makes room."""


class OpenStore(Store):
    """A store that others use as well: closing it does nothing."""

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Kept:
    store: OpenStore
    seen: tuple[object, ...]
    """What the home looked like when the store was opened."""


_kept: OrderedDict[StoreUrls, _Kept] = OrderedDict()
_guard = threading.RLock()


def shared_store(places: StoreUrls | None = None, *, project: str | None = None, actor: str | None = None) -> Store:
    """The store that `open_store` would open, or that of these places, which stays open until the process ends.

    A home that was removed, replaced or given a clock meanwhile is opened again.

    Raises:
        ProjectError: `everloop.toml` cannot be read.
        StoreVersionError: a newer everloop wrote the store.
    """
    if places is None:
        places, configured = find_store_urls()
        project = project or configured
    project, actor = project or "default", actor or default_actor()
    with _guard:
        kept = _kept.get(places)
        if kept is None or kept.store.closed or kept.seen != _look(places):
            # A run may still use the one that it replaces, which is closed when nothing does.
            opened = open_urls(places, project=project, actor=actor)
            store = OpenStore(places, project=project, actor=opened.actor, clock=opened.clock, records=opened.records)
            kept = _kept[places] = _Kept(store, _look(places))
        _kept.move_to_end(places)
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
    found: Store = kept.store
    if found.project != project:
        found = found.for_project(project)
    return found if found.actor == actor else found.as_actor(actor)


def close_shared() -> None:
    """Close every kept store. Runs when the process ends; one that is needed later is opened again."""
    with _guard:
        for kept in _kept.values():
            kept.store.records.close()
        _kept.clear()


def _look(places: StoreUrls) -> tuple[object, ...]:
    return (
        _identity(str(places.home / "locks")),
        None if "://" in places.records else _identity(places.records),
        (places.home / "clock").exists(),
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - asked at the start of every run
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _free_guard() -> None:
    # Another thread of the parent may have held it at the fork.
    global _guard
    _guard = threading.RLock()


os.register_at_fork(after_in_child=_free_guard)
atexit.register(close_shared)
