"""Keeps a running endpoint equal to its record, in a thread that polls for changes.

It reads the store's last event number every tenth of a second, which is cheap, and reads the record only if there was
an event. New versions are loaded and warmed in this thread before any request uses them. A revision that cannot be
loaded (a damaged package, a missing version) changes only `/ready`, and is retried at growing intervals in case the
missing part arrives. Tokens do not wait for any of this; see `access_reloader`.
"""

from __future__ import annotations

import logging
import os
import threading
from time import monotonic
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, NotFoundError
from everloop.records import EndpointRecord
from everloop.serving.access.access_reloader import AccessReloader
from everloop.serving.endpoint_settings import settings_of
from everloop.serving.loaded_endpoint import LoadedEndpoint, load_versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.packages.predictor import Predictor
    from everloop.serving.endpoint_app import EndpointApp
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

POLL_S = 0.1
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 30.0
LOG_STATE_S = 0.5
"""How often a process that shares its port updates the log's counters for the other processes."""
KEPT_VERSIONS = 2
"""Versions that stay loaded after they left the routes, so going back to one takes no time."""


class EndpointReloader:
    """Follows one endpoint's record for one app. Call `start` before serving and `stop` after."""

    def __init__(
        self,
        store: Store,
        app: EndpointApp,
        *,
        parent: int | None = None,
        orphaned: Callable[[], None] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        """Prepare.

        Args:
            parent: id of the parent process, if this one ends with it.
            orphaned: called once when the parent process has ended.
        """
        self._store = store
        self._service = app.service
        self._orphaned = orphaned
        self._poll_s = poll_s
        self._parent = parent
        self.access = AccessReloader(store, app.service, poll_s=poll_s)
        self._loaded: LoadedEndpoint | None = None
        self._predictors: dict[str, Predictor] = {}
        self._seen = -1
        self._retry_at: float | None = None
        self._retry_s = FIRST_RETRY_S
        self._refused = -1
        self._log_state_at = 0.0
        self._failed = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="everloop-reloader", daemon=True)

    def load(self) -> None:
        """Load the record for the first time.

        Raises:
            EverloopError: it cannot be served. An endpoint without routes can be: it waits for its first version.
        """
        self.access.reload()
        self._seen = self._store.records.last_event()
        endpoint = self._store.records.get(EndpointRecord, self._service.endpoint)
        self._apply(endpoint)

    def start(self) -> None:
        self.access.start()
        self._thread.start()

    def stop(self) -> None:
        self.access.stop()
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._poll_s):
            if self._parent is not None and os.getppid() != self._parent and self._orphaned is not None:
                self._orphaned()
                self._orphaned = None
            if self._service.aggregation is not None and monotonic() >= self._log_state_at:
                self._service.metrics.read_log_state()
                self._log_state_at = monotonic() + LOG_STATE_S
            try:
                self.reload()
                self._service.log_failures()
            except EverloopError as error:
                # The endpoint keeps serving while the store does not answer. The next poll tries again.
                if not self._failed:
                    logger.warning("The endpoint '%s' cannot read its record: %s", self._service.endpoint, error)
                self._failed = True
            except Exception:
                if not self._failed:
                    logger.exception("Reloading the endpoint '%s' failed", self._service.endpoint)
                self._failed = True
            else:
                self._failed = False

    def reload(self) -> None:
        """Apply the record if it has changed. A revision that cannot be served is refused, not raised."""
        self.access.reload()
        last = self._store.records.last_event()
        due = self._retry_at is not None and monotonic() >= self._retry_at
        if last == self._seen and not due:
            return
        try:
            endpoint = self._store.records.get(EndpointRecord, self._service.endpoint)
        except NotFoundError:
            # Removing the record of a running endpoint also stops its process. Until then it answers.
            self._seen = last
            return
        if endpoint.revision != self._service.revision or self._refused == endpoint.revision:
            if self._refused != endpoint.revision or due:
                self._try(endpoint)
        else:
            # The refused revision was undone, so there is nothing to retry.
            self._retry_at = None
        self._seen = last

    def _try(self, endpoint: EndpointRecord) -> None:
        try:
            self._apply(endpoint)
        except EverloopError as error:
            if self._refused != endpoint.revision:
                self._retry_s = FIRST_RETRY_S
                logger.error(
                    "The endpoint '%s' stays with revision %s, because revision %s cannot be served: %s",
                    endpoint.name,
                    self._service.revision,
                    endpoint.revision,
                    error,
                )
            self._service.refuse(endpoint.revision, error)
            self._refused = endpoint.revision
            self._retry_at = monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _apply(self, endpoint: EndpointRecord) -> None:
        settings_of(endpoint.options)
        loaded = load_versions(self._store, endpoint, self._loaded, self._predictors) if endpoint.routes else None
        self._keep(loaded)
        self._loaded = loaded
        # Tokens were applied before, so a revision that requires a token never answers without one.
        self._service.switch(loaded, endpoint.revision)
        self._retry_at = None
        self._refused = -1

    def _keep(self, loaded: LoadedEndpoint | None) -> None:
        """Keep the versions that leave the routes with this change loaded, and drop those that left long ago."""
        if self._loaded is None:
            return
        used = set() if loaded is None else {scorer.version for scorer in (*loaded.scorers, *loaded.shadows)}
        for scorer in (*self._loaded.scorers, *self._loaded.shadows):
            self._predictors.pop(scorer.version, None)
            self._predictors[scorer.version] = scorer.predictor
        left = [version for version in self._predictors if version not in used]
        for version in left[:-KEPT_VERSIONS]:
            del self._predictors[version]
