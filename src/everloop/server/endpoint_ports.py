"""Ports of a project's endpoints, remembered between starts in `run/ports-PROJECT.json` of the home.

A new endpoint gets the next free port from 8101 upwards that is not reserved for another endpoint. If another program
has taken an endpoint's port, the endpoint gets the next free one.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.http.listening import bind

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

FIRST = 8101
MOST_TRIED = 500

_log = logging.getLogger("everloop.server")


class EndpointPorts:
    """Port of each endpoint. For one process: if two processes choose the same port, one fails to bind it and chooses
    again."""

    def __init__(self, store: Store, host: str = "127.0.0.1") -> None:
        self._host = host
        self._path: Path = store.home / "run" / f"ports-{store.project}.json"

    def choose(self, name: str) -> int:
        """Return the port to start an endpoint on: its last one, else the next free one; 0 if none is free."""
        ports = self._read()
        last_port = ports.get(name)
        if last_port is not None and self._is_free(last_port):
            return last_port
        reserved = {port for other, port in ports.items() if other != name}
        for port in range(FIRST, FIRST + MOST_TRIED):
            if port not in reserved and port != last_port and self._is_free(port):
                return port
        return 0

    def keep(self, name: str, port: int) -> int | None:
        """Remember the port on which an endpoint has started. Returns its former port if that was different."""
        ports = self._read()
        before = ports.get(name)
        if before == port:
            return None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps({**ports, name: port}, indent=1), encoding="utf-8")
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
        if not isinstance(found, dict):
            return {}
        return {str(name): port for name, port in found.items() if _is_port(port)}

    def _is_free(self, port: int) -> bool:
        try:
            bind(self._host, port).close()
        except EverloopError:
            return False
        return True


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1024 <= value <= 65535


__all__ = ["EndpointPorts"]
