"""Stores that stay open until the process ends.

Opening a store takes a millisecond. Closing SQLite's last connection takes several, because it writes the log back.
Code that needs a store for a small piece of work, such as a run, uses a shared one: one per home and process, for all
threads. A forked child opens its own connections.
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
"""Homes that stay open at once. If there are more, the least recently used one is closed."""


class OpenStore(Store):
    """A store that is shared. Closing it does nothing."""

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _SharedStore:
    store: OpenStore
    state: tuple[object, ...]
    """`_home_state` when the store was opened."""


_shared: OrderedDict[StoreUrls, _SharedStore] = OrderedDict()
_guard = threading.RLock()


def shared_store(urls: StoreUrls | None = None, *, project: str | None = None, actor: str | None = None) -> Store:
    """A store that stays open until the process ends: the one with these URLs, or the one `open_store` would open.

    A home that was removed, replaced or given a clock since then is opened again.

    Raises:
        ProjectError: `everloop.toml` cannot be read.
        StoreVersionError: a newer everloop wrote the store.
    """
    if urls is None:
        urls, configured = find_store_urls()
        project = project or configured
    project, actor = project or "default", actor or default_actor()
    with _guard:
        shared = _shared.get(urls)
        if shared is None or shared.store.closed or shared.state != _home_state(urls):
            # A run may still use the store that is replaced here. It is closed when its last user drops it.
            opened = open_urls(urls, project=project, actor=actor)
            store = OpenStore(urls, project=project, actor=opened.actor, clock=opened.clock, records=opened.records)
            shared = _shared[urls] = _SharedStore(store, _home_state(urls))
        _shared.move_to_end(urls)
        while len(_shared) > _MOST:
            _shared.popitem(last=False)
    found: Store = shared.store
    if found.project != project:
        found = found.for_project(project)
    return found if found.actor == actor else found.as_actor(actor)


def close_shared() -> None:
    """Close all shared stores. Runs when the process ends. A store that is needed later is opened again."""
    with _guard:
        for shared in _shared.values():
            shared.store.records.close()
        _shared.clear()


def _home_state(urls: StoreUrls) -> tuple[object, ...]:
    return (
        _identity(str(urls.home / "locks")),
        None if "://" in urls.records else _identity(urls.records),
        (urls.home / "clock").exists(),
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - runs at the start of every run
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _free_guard() -> None:
    # Another thread of the parent may have held the lock at the fork.
    global _guard
    _guard = threading.RLock()


os.register_at_fork(after_in_child=_free_guard)
atexit.register(close_shared)
