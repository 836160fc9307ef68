"""A store that begins empty, in a temporary folder and in memory of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.stores.forks.fork import open_fork
from everloop.stores.home import Store, checked_project, default_actor

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores.clock import Clock


def scratch_store(
    project: str,
    clock: Clock,
    *,
    actor: str | None = None,
    share: Store | None = None,
    folder: Path | None = None,
    objects: Path | None = None,
) -> Store:
    """Open an empty store that is removed when it is closed, such as for a replay without a project.

    Args:
        actor: the name that events are written under; default: this user on this machine.
        share: another such store, to see each other's step results and objects. See `Store.fork`.
        folder: where its files are, in a folder of their own. Default: where temporary files are, or with those of
            `share`.
        objects: a folder for its objects that other stores use as well, perhaps of other processes. It is not removed.
            Default: a folder of its own.
    """
    fork = open_fork(
        None,
        None,
        None,
        moment=clock.now(),
        project=checked_project(project),
        actor=actor or default_actor(),
        clock=clock,
        share=None if share is None else share.fork_parts,
        folder=folder,
        objects_in=objects,
    )
    return Store.of_fork(fork, clock)
