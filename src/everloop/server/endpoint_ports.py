"""The ports that a project's endpoints keep from one start to the next, in `run/ports-PROJECT.json` of the home.

An endpoint that comes up for the first time gets the next free port from 8101 upwards that no other one keeps. A kept
port that somebody else has taken by now is replaced by the next free one.
"""

from __future__ import annotations

import json
import logging
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

FIRST = 8101
MOST_TRIED = 500

_log = logging.getLogger("everloop.server")


class EndpointPorts:
    """Which endpoint has which port. Of one process; several at once may choose the same port, and one then fails to
    bind it and chooses again."""

    def __init__(self, store: Store, host: str = "127.0.0.1") -> None:
        self._host = host
        self._path: Path = store.home / "run" / f"ports-{store.project}.json"

    def choose(self, name: str) -> int:
        """The port to start an endpoint at: the one that it keeps, else the next free one; 0 where none is free."""
        kept = self._read()
        own = kept.get(name)
        if own is not None and self._is_free(own):
            return own
        taken = {port for other, port in kept.items() if other != name}
        for port in range(FIRST, FIRST + MOST_TRIED):
            if port not in taken and port != own and self._is_free(port):
                return port
        return 0

    def keep(self, name: str, port: int) -> int | None:
        """Write down where an endpoint has come up, and return the port that it kept before, if it was another."""
        kept = self._read()
        before = kept.get(name)
        if before == port:
            return None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps({**kept, name: port}, indent=1), encoding="utf-8")
        draft.replace(self._path)
        return before

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            _log.warning("'%s' cannot be read, so the endpoints get new ports: %s", self._path, error)
            return {}
        good = isinstance(found, dict)
        return {str(name): port for name, port in found.items() if _is_port(port)} if good else {}

    def _is_free(self, port: int) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((self._host, port))
            except OSError:
                return False
            return True


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1024 <= value <= 65535


__all__ = ["EndpointPorts"]
