"""Child processes of the supervisor: started when they are missing, again after they died, and stopped in the end."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RESTART_AFTER_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Delay before a child that died is started again. It grows with each death, and resets once the child has run for a
minute."""
STOP_S = 30.0


@dataclass
class Restarts:
    """Decides when a child may be started, by the monotonic clock."""

    started_at: float | None = None
    deaths: int = 0
    not_before: float = 0.0

    def may_start(self, now: float) -> bool:
        """Whether the child may be started now. Called only while it is not alive."""
        if self.started_at is not None:
            if now - self.started_at > RESTART_AFTER_S[-1]:
                self.deaths = 0
            self.not_before = now + RESTART_AFTER_S[min(self.deaths, len(RESTART_AFTER_S) - 1)]
            self.deaths += 1
            self.started_at = None
        if now < self.not_before:
            return False
        self.started_at = now
        return True


class ChildProcess:
    """One child with a log file, which is kept running."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = Restarts()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def keep_running(self, now: float) -> None:
        """Start the child if it is not alive and its delay has passed."""
        if self.alive or not self._restarts.may_start(now):
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self._process is not None and self.alive:
            self._process.terminate()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Send SIGTERM and wait. A child that does not end in time is killed."""
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
