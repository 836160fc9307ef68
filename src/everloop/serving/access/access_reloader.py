"""Who may ask an endpoint, followed by itself: a thread that does nothing else.

Tokens are read apart from routes and models. So a token that is taken back opens nothing a moment later, also while new
versions are being loaded, or cannot be. Options that cannot be understood open nothing, and where the record cannot be
read for `access_stale_s`, requests that need a token get 503: what is not known to be allowed is refused.
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
    """Keeps one app's tokens, testers and settings equal to its endpoint's record. Safe to use from several threads."""

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
        """Look again and again, and let what is known grow stale from now on."""
        self.begin()
        self._thread.start()

    def begin(self) -> None:
        """Let what is known grow stale from now on; the caller looks again and again."""
        self._service.authorization.confirm()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def reload(self) -> None:
        """Take over who may ask, if the store has changed.

        Raises:
            EverloopError: the store cannot be read.
        """
        with self._reloading:
            check_same_file(self._store, self._file)
            last = self._store.records.last_event()
            if last != self._seen:
                self._take()
                self._seen = last
            if self._service.authorization.grows_stale:
                self._service.authorization.confirm()

    def _take(self) -> None:
        service = self._service
        try:
            options = self._store.records.get(EndpointRecord, service.endpoint).options
        except NotFoundError:
            # Its tokens went with it. An endpoint that asks for none answers until its process is stopped.
            if service.authorization.asks_token:
                service.configure(service.settings, {})
            return
        digests, testers = access_of(options)
        try:
            settings = settings_of(options)
        except UsageError:
            # The others stay as they were; who may choose a version does not wait for them.
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
            logger.error("Who may ask the endpoint '%s' cannot be read: %s", self._service.endpoint, why)
        self._failed = True


def store_file(store: Store) -> tuple[int, int] | None:
    """Which file a store's records are in, where they are in a file: one that was opened stays readable when it is
    gone, and says for ever what it said."""
    path = Path(store.urls.records)
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_same_file(store: Store, opened: tuple[int, int] | None) -> None:
    """Refuse a store whose file is another than the one that was opened.

    Raises:
        UnavailableError: it is gone, or has been replaced.
    """
    if store_file(store) != opened:
        raise UnavailableError("The store's file is gone or has been replaced.", help="Start this process again.")


__all__ = ["AccessReloader", "check_same_file", "store_file"]
