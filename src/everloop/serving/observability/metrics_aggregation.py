"""The counts of processes that share a port: each leaves its own in a file, and whoever is asked reads them all.

The files lie in a folder of one start of the endpoint, `<process id>.json`. A process that is gone keeps its file, so
that no counter falls; only what it had on its way is forgotten.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.serving.observability.endpoint_metrics import Metrics


class MetricsAggregation:
    """One process's part in it. `leave` is called about once a second, by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / f"{os.getpid()}.json"
        folder.mkdir(parents=True, exist_ok=True)

    def leave(self, metrics: Metrics) -> None:
        """Write this process's counts down, whole; a full disk only makes them old."""
        draft = self._own.with_suffix(".draft")
        try:
            draft.write_bytes(msgspec.json.encode(metrics.totals()))
            draft.replace(self._own)
        except OSError:
            return

    def text(self, metrics: Metrics) -> bytes:
        """The sum, as Prometheus reads it; the other processes' counts may be a second old."""
        others: list[dict[str, Any]] = []
        alive = 1
        for path in sorted(self._folder.glob("*.json")):
            if path == self._own or not path.stem.isdigit():
                continue
            try:
                found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
            except (OSError, msgspec.DecodeError):
                continue
            if _lives(int(path.stem)):
                alive += 1
            else:
                found["gauges"] = None
            others.append(found)
        return metrics.sum_with(others).text(alive)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


__all__ = ["MetricsAggregation"]
