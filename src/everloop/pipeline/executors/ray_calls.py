"""Calls that a step on a Ray node sends to the nodes of its cluster, as tasks of Ray.

The step waits for them in `ray.wait`, and Ray gives its CPUs to other tasks meanwhile. If the step's process ends in
any way, Ray stops the tasks that it has started.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from everloop.pipeline.cluster_calls import CallLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

MOST_REPEATS = 5
"""How often Ray repeats a call because its node or its worker was lost."""


class RayCalls:
    """Implements `ClusterCalls`. Only a worker of Ray can use it."""

    def __init__(self) -> None:
        self._running: dict[Any, Hashable] = {}
        """Reference to the result of each call, to the key of the call."""
        self._functions: dict[Callable[..., Any], Any] = {}

    def slots(self, cpus: int) -> int:
        import ray

        return sum(int(node["Resources"].get("CPU", 0.0) // cpus) for node in ray.nodes() if node["Alive"])

    def share(self, value: Any) -> Any:
        import ray

        return ray.put(value)

    def submit(self, key: Hashable, function: Callable[..., Any], *arguments: Any, cpus: int) -> None:
        import ray

        if function not in self._functions:
            self._functions[function] = ray.remote(max_retries=MOST_REPEATS)(function)
        name = f"everloop:{function.__name__}"
        self._running[self._functions[function].options(num_cpus=cpus, name=name).remote(*arguments)] = key

    def wait(self, timeout_s: float) -> list[tuple[Any, Any]]:
        import ray

        if not self._running:
            return []
        ended, _ = ray.wait(list(self._running), num_returns=1, timeout=max(0.0, timeout_s))
        return [(self._running.pop(one), _result(one)) for one in ended]

    def cancel(self) -> None:
        import ray

        running, self._running = list(self._running), {}
        for one in running:
            # Without force: a worker that is interrupted stays warm for the next call.
            with suppress(ray.exceptions.RayError):
                ray.cancel(one)


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause: BaseException = error.cause if isinstance(error.cause, Exception) else error
        # A node without this package, or with another version of it, cannot even load the function.
        return CallLostError(f"{type(cause).__name__}: {cause}") if isinstance(cause, ImportError) else cause
    except ray.exceptions.RayError as error:
        return CallLostError(f"{type(error).__name__}: {error}")


__all__ = ["MOST_REPEATS", "RayCalls"]
