"""Keeps an endpoint's tokens and settings up to date, in a thread that does nothing else.

Tokens are read separately from routes and models. So a revoked token stops working a moment later, even while new
versions are being loaded or fail to load. With invalid options no token is valid, and if the record cannot be read for
`access_stale_s`, requests that need a token get 503: a request is refused unless it is known to be allowed.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, NotFoundError, UnavailableError, UsageError
from everloop.records import EndpointRecord
from everloop.serving.access.endpoint_tokens import access_of
from everloop.serving.endpoint_settings import settings_of

if TYPE_CHECKING:
    from everloop.serving.endpoint_service import EndpointService
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")


class AccessReloader:
    """Keeps one service's tokens, testers and settings equal to its endpoint's record. Thread-safe."""

    def __init__(self, store: Store, service: EndpointService, *, poll_s: float) -> None:
        self._store = store
        self._service = service
        self._poll_s = poll_s
        self._seen = -1
        self._file = store_file(store)
        self._reloading = threading.Lock()
        self._failed = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="everloop-access", daemon=True)

    def start(self) -> None:
        """Start the thread. From now on tokens grow stale unless they are confirmed."""
        self.begin()
        self._thread.start()

    def begin(self) -> None:
        """Let tokens grow stale from now on. The caller calls `reload` regularly."""
        self._service.authorization.confirm()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def reload(self) -> None:
        """Apply the record's tokens and settings if the store has changed.

        Raises:
            EverloopError: the store cannot be read.
        """
        with self._reloading:
            check_same_file(self._store, self._file)
            last = self._store.records.last_event()
            if last != self._seen:
                self._apply()
                self._seen = last
            if self._service.authorization.grows_stale:
                self._service.authorization.confirm()

    def _apply(self) -> None:
        service = self._service
        try:
            options = self._store.records.get(EndpointRecord, service.endpoint).options
        except NotFoundError:
            # Its tokens went with it. An endpoint without tokens answers until its process is stopped.
            if service.authorization.asks_token:
                service.configure(service.settings, {})
            return
        digests, testers = access_of(options)
        try:
            settings = settings_of(options)
        except UsageError:
            # The other settings stay, but a change of who may choose a version still applies.
            anyone = options.get("override") == "anyone"
            settings = replace(service.settings, override="anyone" if anyone else "testers")
        service.configure(settings, digests, testers)

    def _run(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self.reload()
            except EverloopError as error:
                self._note(str(error))
            except Exception as error:
                self._note(repr(error))
            else:
                self._failed = False

    def _note(self, why: str) -> None:
        if not self._failed:
            logger.error("Cannot read the tokens of the endpoint '%s': %s", self._service.endpoint, why)
        self._failed = True


def store_file(store: Store) -> tuple[int, int] | None:
    """The identity (device, inode) of the file with a store's records; None if they are not in a file.

    An opened file stays readable after it is deleted, with its last content for ever.
    """
    path = Path(store.urls.records)
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_same_file(store: Store, opened: tuple[int, int] | None) -> None:
    """Check that a store's file is still the one that was opened.

    Raises:
        UnavailableError: the file is gone, or has been replaced.
    """
    if store_file(store) != opened:
        raise UnavailableError("The store's file is gone or has been replaced.", help="Restart this process.")


__all__ = ["AccessReloader", "check_same_file", "store_file"]
