"""Sums the counters of all processes that share a port. Each keeps its own in a file; any of them can read them all.

The files lie in a folder that belongs to one start of the endpoint. The file of an ended process stays there, however
the process ended, so no counter ever falls; only its gauges (such as requests in flight) no longer count.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.serving.observability.counter_cells import CounterCells, read_counters

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.serving.observability.endpoint_metrics import Metrics


class MetricsAggregation:
    """One process's part in the sum.

    Attributes:
        cells: the counters of this process.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        # A process id alone may come twice.
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.counters"
        self._draft = self._path.with_suffix(".draft")
        self.cells = CounterCells(self._draft)

    def publish(self) -> None:
        """Let the other processes count this one from now on: it answers requests."""
        # Without space on the disk there was no file.
        with suppress(FileNotFoundError):
            self._draft.replace(self._path)

    def close(self) -> None:
        """Let the other processes take this one for ended. What it counted stays counted."""
        self.cells.close()

    def text(self, metrics: Metrics) -> bytes:
        """The sum over all processes, in the Prometheus text format."""
        others = []
        for path in sorted(self._folder.glob("*.counters")):
            if path != self._path:
                try:
                    others.append(read_counters(path))
                except (OSError, ValueError):
                    continue
        return metrics.text(others)


__all__ = ["MetricsAggregation"]
