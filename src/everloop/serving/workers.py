"""More processes behind one port: they share the listening socket, and one that dies is started again.

The first process of an endpoint is a worker like the others, and also their parent: it holds the endpoint's lock, tells
of its state, and ends with all of them. Each writes a prediction log of its own, so none waits for another.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from pathlib import Path

_log = logging.getLogger("everloop.serving")

_LOOK_S = 0.2
# A worker that dies at once would otherwise be started as fast as the machine can.
_PAUSE_S = 1.0
_STOP_S = 15


class Workers:
    """`count` worker processes beside this one."""

    def __init__(self, count: int, name: str, home: Path, project: str, listener: socket.socket) -> None:
        self._listener = listener
        self._command = [
            *(sys.executable, "-m", "everloop.serving", name, "--home", str(home), "--project", project),
            *("--listener", str(listener.fileno())),
        ]
        self._running: list[subprocess.Popen[bytes]] = []
        self._count = count
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="everloop-workers", daemon=True)

    def start(self) -> None:
        if self._count:
            self._running = [self._spawn() for _ in range(self._count)]
            self._thread.start()

    def stop(self) -> None:
        """Ask all to finish what is on its way, and wait for them."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for worker in self._running:
            worker.terminate()
        for worker in self._running:
            try:
                worker.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, pass_fds=[self._listener.fileno()], stdin=subprocess.DEVNULL)

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            for place, worker in enumerate(self._running):
                if worker.poll() is None:
                    continue
                _log.warning(
                    "Worker %s of %s ended with %s; it is started again.", worker.pid, os.getpid(), worker.returncode
                )
                if self._stopping.wait(_PAUSE_S):
                    return
                self._running[place] = self._spawn()
