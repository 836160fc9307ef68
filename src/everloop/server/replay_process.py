"""A replay that a person starts over HTTP: a child process, because it imports the project's code.

One replay runs at a time for each project, since it uses all cores: its server holds the lease `replay`. Its start and
its end are events, and what it prints is in `logs/replay.log` of the store folder.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, UnavailableError
from everloop.stores.clock import new_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from everloop.records import Json
    from everloop.stores import Store
    from everloop.stores.leases import HeldLease

LEASE = "replay"
KIND = "replay"
"""Kind of the events: `started`, `finished` and `failed`."""
_MOST_EVENTS = 50
_TAIL = 2000
"""Characters of the log that are kept with a failure."""
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class ReplayAttempt:
    """A replay that was started from here. `state`: `running`, `finished`, `failed` or `lost` with its server."""

    id: str
    loop: str
    state: str
    at: datetime
    actor: str
    error: str


class ReplayProcess:
    """Starts replays of one project. Safe to use from any thread."""

    def __init__(self, store: Store, folder: Path | None) -> None:
        """Use a project.

        Args:
            folder: the project's folder; None if the server knows none, and then nothing can be started.
        """
        self._store = store
        self.folder = folder
        self._guard = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._waiting: threading.Thread | None = None

    def start(self, store: Store, loop: str, policies: Sequence[str], every: str) -> str:
        """Start a replay and return its id at once.

        Args:
            store: the store in the name of the person who starts it.
            policies: names of policies; empty: the usual ones.
            every: length of a period, such as `1w`.

        Raises:
            ConflictError: a replay is running already.
            UnavailableError: this server does not know the project's folder.
        """
        from everloop.stores.leases import Leases

        if self.folder is None:
            raise UnavailableError(
                "This server was not started by 'everloop up' in a project, so it has no loop to replay.",
                help="Run it in the project's folder: everloop replay",
            )
        held = Leases(self._store).acquire(LEASE)
        if held is None:
            raise ConflictError("A replay is running already.", help="Wait until it has ended.")
        held.start_heartbeat()
        attempt = new_id(store.now())
        given: dict[str, Json] = {"loop": loop, "policies": list(policies), "every": every}
        try:
            log = self._store.home / "logs" / "replay.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file:
                child = subprocess.Popen(
                    _command(self.folder, loop, policies, every),
                    cwd=self.folder,
                    env={**_environment(), "EVERLOOP_STORE": str(self._store.home)},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            store.records.append_event("started", KIND, attempt, loop, given)
        except BaseException:
            held.release()
            raise
        given_to_wait = (child, held, attempt, loop, log)
        waiting = threading.Thread(target=self._wait, args=given_to_wait, name="replay", daemon=True)
        with self._guard:
            self._child, self._waiting = child, waiting
        waiting.start()
        return attempt

    def attempts(self, store: Store) -> list[ReplayAttempt]:
        """Return the newest replays that were started over HTTP, newest first."""
        from everloop.stores.leases import Leases

        newest = store.records.last_event()
        events = store.records.events_since(max(0, newest - 100_000), kinds=[KIND], limit=10_000)
        leases = Leases(store)
        lease = leases.find(LEASE)
        alive = lease is not None and not leases.is_expired(lease)
        found: dict[str, ReplayAttempt] = {}
        for event in events:
            begun = found.get(event.subject)
            actor = event.actor if begun is None else begun.actor
            state = "running" if event.verb == "started" else event.verb
            error = str(event.data.get("error", ""))
            found[event.subject] = ReplayAttempt(event.subject, event.key, state, event.at, actor, error)
        attempts = list(found.values())[::-1][:_MOST_EVENTS]
        running = next((one.id for one in attempts if one.state == "running"), None) if alive else None
        return [
            one if one.state != "running" or one.id == running else _lost(one)
            for one in attempts
        ]  # fmt: skip

    async def close(self) -> None:
        """Stop a replay that is running, so that no process outlives its server."""
        with self._guard:
            child, waiting = self._child, self._waiting
        if child is None or waiting is None:
            return
        if child.poll() is None:
            child.terminate()
            await asyncio.to_thread(waiting.join, _STOP_S)
            if child.poll() is None:
                child.kill()
        # It writes the end of the replay to the store, which is closed after this.
        await asyncio.to_thread(waiting.join, _STOP_S)

    def _wait(self, child: subprocess.Popen[bytes], held: HeldLease, attempt: str, loop: str, log: Path) -> None:
        try:
            code = child.wait()
            data: dict[str, Json] = {"loop": loop}
            if code != 0:
                data["error"] = (
                    log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip() or f"exit code {code}"
                )
            self._store.records.append_event("failed" if code else "finished", KIND, attempt, loop, data)
        finally:
            held.release()


def _command(folder: Path, loop: str, policies: Sequence[str], every: str) -> list[str]:
    # Values are joined to their options, and the loop follows `--`: none of them can be taken for an option.
    start = [sys.executable, "-c", "from everloop.cli import main; main()", "replay"]
    chosen = [f"--policies={','.join(policies)}"] if policies else []
    return [*start, f"--every={every}", *chosen, f"--dir={folder}", "--", loop]


def _environment() -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1"}


def _lost(attempt: ReplayAttempt) -> ReplayAttempt:
    return replace(attempt, state="lost", error="Its server stopped before it had ended.")
