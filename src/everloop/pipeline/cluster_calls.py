"""Function calls that a running step sends to other nodes of its cluster.

An executor with a cluster lends it to each step (`lend_cluster`). What has independent work, such as a search for a
model, looks for it (`lent_cluster`), and does its work in the process of the step if there is none.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator


class CallLostError(Exception):
    """The cluster could not run a call. It can still be run in the process of the step."""


class ClusterCalls(Protocol):
    """Runs calls on the nodes of a cluster. All methods are called from the thread that runs the step.

    - The function of a call belongs to an installed package, which each node can import.
    - A call whose node is lost runs again on another node, so a function has no outside effects.
    - Calls end with the step at the latest.
    """

    def slots(self, cpus: int) -> int:
        """How many calls that need this many CPUs the nodes can run at the same time."""

    def share(self, value: Any) -> Any:
        """Store a value once for all calls. Pass the result as an argument; the function receives the value."""

    def submit(self, key: Hashable, function: Callable[..., Any], *arguments: Any, cpus: int) -> None:
        """Start a call. `key` identifies it in the result of `wait`."""

    def wait(self, timeout_s: float) -> list[tuple[Any, Any]]:
        """Wait until at least one call has ended, or until the time is over.

        Returns:
            The key of each call that has ended, with its result or its error, a `CallLostError` if the cluster could
            not run it.
        """

    def cancel(self) -> None:
        """Stop all calls, and forget them."""


_lent: ContextVar[ClusterCalls | None] = ContextVar("everloop_cluster", default=None)


def lent_cluster() -> ClusterCalls | None:
    """The cluster that the running step may use, or None. Threads that a step starts do not inherit it."""
    return _lent.get()


@contextmanager
def lend_cluster(calls: ClusterCalls) -> Iterator[None]:
    """Inside the block, `lent_cluster` returns these calls. They are cancelled at its end."""
    token = _lent.set(calls)
    try:
        yield
    finally:
        _lent.reset(token)
        calls.cancel()


__all__ = ["CallLostError", "ClusterCalls", "lend_cluster", "lent_cluster"]
