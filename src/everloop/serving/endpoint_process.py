"""Starts, watches and stops the process of an endpoint from another process."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from everloop import errors
from everloop.errors import EverloopError, UnavailableError
from everloop.records import EndpointRecord
from everloop.serving.endpoint_state import check_endpoint_name, is_served, set_state
from everloop.stores.leases import fenced_store

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.records import Lease
    from everloop.stores import Store

START_S = 30.0
STOP_S = 30.0
_ERROR_LINE = re.compile(r"^(\w+Error): (.*)$", re.MULTILINE)


class EndpointProcess:
    """Starts and stops the process that serves one endpoint.

    Use it as a context manager: the process starts on entry and stops on exit. It also stops when this process ends.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        grpc_port: int | None = None,
        lease: Lease | None = None,
    ) -> None:
        """Describe the process.

        Args:
            lease: the caller's lease of this endpoint. After another process has taken it over, neither the caller nor
                the endpoint's process can write the endpoint's state. Default: none.
        """
        check_endpoint_name(name)
        self._lease = lease
        if lease is not None:
            store = fenced_store(store, lease)
        self._store = store
        self.name = name
        self.host = host
        self.port = port
        self.grpc_port = grpc_port
        self.url: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """The file with the process's standard output and error."""
        return self._store.home / "logs" / f"endpoint-{self._store.project}-{self.name}.log"

    def start(self, timeout_s: float = START_S) -> str:
        """Start the process, wait until it answers, and return its URL.

        Raises:
            EverloopError: of the class with which the process ended: the port is in use, a version is missing, …
            UnavailableError: the process did not answer in time, or ended without an error message.
        """
        if self.alive and self.url is not None:
            return self.url
        port_file = self._store.home / "run" / f"{self.name}-{secrets.token_hex(8)}.json"
        port_file.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            began = log.tell()
            self._process = subprocess.Popen(
                self._command(port_file), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = monotonic() + timeout_s
        while not port_file.exists():
            if self._process.poll() is not None:
                raise self._ended(began)
            if monotonic() > deadline:
                self.kill()
                raise UnavailableError(
                    f"The endpoint '{self.name}' did not answer within {timeout_s:g} s.", help=f"See: {self.log}"
                )
            sleep(0.01)
        announced = json.loads(port_file.read_text(encoding="utf-8"))
        self.url = str(announced["url"])
        self.grpc_port = announced["grpc_port"]
        return self.url

    def wait_for(self, revision: int, timeout_s: float = START_S) -> None:
        """Return once the process serves this revision of the endpoint's record, or a later one.

        Raises:
            EverloopError: the revision cannot be served; of the class that the process met.
            UnavailableError: the process has ended, or did not get there in time.
        """
        deadline = monotonic() + timeout_s
        while True:
            state = self._ready()
            if state is not None and state["revision"] >= revision:
                return
            refused = None if state is None else state["refused"]
            if refused is not None and refused["revision"] >= revision:
                raise _error(refused["type"], refused["message"])
            if not self.alive:
                raise UnavailableError(f"The process of the endpoint '{self.name}' has ended.", help=f"See: {self.log}")
            if monotonic() > deadline:
                raise UnavailableError(
                    f"The endpoint '{self.name}' did not reach revision {revision} within {timeout_s:g} s.",
                    help=f"See: {self.log}",
                )
            sleep(0.02)

    def stop(self, timeout_s: float = STOP_S) -> int | None:
        """Let the process finish the requests in flight, and return its exit status."""
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._correct_record()
        return process.returncode

    def kill(self) -> None:
        """Kill the process. Its answers are in its journal."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._correct_record()

    def __enter__(self) -> EndpointProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self, port_file: Path) -> list[str]:
        command = [sys.executable, "-m", "everloop.serving", self.name, "--project", self._store.project]
        places = self._store.urls
        if (places.records, places.objects, places.tables) == tuple(
            str(places.home / part) for part in ("everloop.db", "objects", "tables")
        ):
            command += ["--home", str(places.home)]
        # Otherwise an everloop.toml says where the parts of the store are, and the process finds it as this one did.
        command += ["--host", self.host, "--port", str(self.port), "--port-file", str(port_file)]
        command += ["--parent", str(os.getpid())]
        if self.grpc_port is not None:
            command += ["--grpc-port", str(self.grpc_port)]
        if self._lease is not None:
            command += ["--lease", self._lease.name, "--fence", str(self._lease.fence)]
        return command

    def _ready(self) -> dict[str, Any] | None:
        import http.client

        if self.url is None:
            return None
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=5)
        try:
            connection.request("GET", "/ready")
            state: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return state

    def _ended(self, began: int) -> EverloopError:
        status = self._process.returncode if self._process is not None else None
        self._correct_record()
        with self.log.open("rb") as log:
            log.seek(began)
            text = log.read()[-20_000:].decode("utf-8", "replace")
        errors_found = _ERROR_LINE.findall(text)
        if errors_found:
            return _error(*errors_found[-1])
        last = text.strip().splitlines()[-1:] or ["it printed nothing"]
        return UnavailableError(
            f"The process of the endpoint '{self.name}' ended with status {status}: {last[0]}", help=f"See: {self.log}"
        )

    def _correct_record(self) -> None:
        """Correct the record if the process could not because it was killed."""
        self.url = None
        if not is_served(self._store, self.name):
            set_state(self._store, self.name, "stopped", None)


def _error(kind: str, message: str) -> EverloopError:
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, EverloopError):
        return found(message)
    return UnavailableError(message)


def serving_url(store: Store, name: str) -> str:
    """The URL at which an endpoint answers now.

    Raises:
        NotFoundError: the endpoint does not exist.
        UnavailableError: no process serves it.
    """
    url = store.records.get(EndpointRecord, name).url
    if url is None or not is_served(store, name):
        raise UnavailableError(f"The endpoint '{name}' is not running.", help=f"Start it: everloop serve {name}")
    return url


__all__ = ["EndpointProcess", "serving_url"]
