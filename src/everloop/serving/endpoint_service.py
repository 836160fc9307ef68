"""The endpoint behind the protocols: its versions in use, its settings and its logs."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, NotFoundError, TrustError, UnavailableError
from everloop.prediction_log.failure_log import FailureLog
from everloop.prediction_log.labels import GivenLabel, LabelLog, unmatched_of
from everloop.prediction_log.log_sinks import grace_s
from everloop.prediction_log.prediction_log import PredictionLog
from everloop.serving import scoring
from everloop.serving.access.authorization import Authorization
from everloop.serving.endpoint_settings import EndpointSettings
from everloop.serving.loaded_endpoint import pinned
from everloop.serving.observability.endpoint_metrics import Metrics
from everloop.serving.request_executor import RequestExecutor
from everloop.serving.throughput import TakesLong

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.serving.loaded_endpoint import LoadedEndpoint
    from everloop.serving.observability.metrics_aggregation import MetricsAggregation
    from everloop.serving.protocols.protocol import Request
    from everloop.serving.score_request import ScoreRequest, ScoreResult
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

WORKERS = 4
WAITING_WORKERS = 64
"""Threads if each answer waits until the log's store has it."""


class EndpointService:
    """Implements `Service` for one endpoint.

    Attributes:
        settings: the limits for new requests.
        authorization: decides which new requests are let in.
        revision: the revision of the endpoint's record in use.
        refused: the newest revision that could not be taken over, and why.
        draining: the process is about to stop.
        executor: the threads in which requests are worked on.
    """

    def __init__(
        self,
        store: Store,
        endpoint: str,
        *,
        settings: EndpointSettings | None = None,
        workers: int = 1,
        aggregation: MetricsAggregation | None = None,
    ) -> None:
        """Open the logs.

        Args:
            workers: the processes that share the endpoint's traffic, including this one.
            aggregation: sums the metrics of the processes that share the port; None: there is only this one.
        """
        self.endpoint = endpoint
        self.settings = settings or EndpointSettings()
        self.processes = workers
        self.aggregation = aggregation
        self.authorization = Authorization(self.settings)
        self.metrics = Metrics(endpoint, None if aggregation is None else aggregation.cells)
        self.revision = 0
        self.refused: dict[str, Any] | None = None
        self.draining = False
        self._store = store
        self._clock = store.clock
        self._loaded: LoadedEndpoint | None = None
        self._log = PredictionLog(store, endpoint)
        self._labels = LabelLog(store, endpoint)
        self._failures = FailureLog(store, endpoint)
        self.metrics.log = self.log_kind
        self.metrics.sinks = (self._log.sink, self._labels.sink)
        # If an answer waits for a store, many wait at the same time, and one segment serves them all.
        self.executor = RequestExecutor(WAITING_WORKERS if self._log.sink.waits else WORKERS)

    def close(self) -> None:
        """Ship or close the logs. Both have the same time to ship what is left."""
        until = None if self._log.sink.kind != "store" else monotonic() + grace_s()
        self._log.close(until)
        self._labels.close(until)
        try:
            self.log_failures(last=True)
            self._failures.close(until)
        except (EverloopError, OSError) as error:
            logger.warning("Cannot log the last failed requests of '%s': %s", self.endpoint, error)
        self.metrics.read_log_state()
        if self.aggregation is not None:
            self.aggregation.close()

    def log_failures(self, *, last: bool = False) -> None:
        """Log the requests that have failed since the last call. Costs nothing if there are none.

        Args:
            last: the process is about to stop.
        """
        self._failures.write(self.metrics.failed_responses(), self.metrics.failed_versions(), last=last)

    # -- what the endpoint has in use; called by the thread that follows its record

    def switch(self, loaded: LoadedEndpoint | None, revision: int) -> None:
        """Answer new requests with `loaded` from now on. Requests in flight keep the versions they began with."""
        self._loaded = loaded
        self.revision = revision
        self.refused = None
        self.metrics.revision.set(revision)
        self.metrics.ready.set(loaded is not None)
        self.metrics.reloads_done.add()

    def configure(
        self,
        settings: EndpointSettings,
        digests: Mapping[str, str] | None = None,
        testers: frozenset[str] = frozenset(),
    ) -> None:
        """Apply these settings to new requests, and require one of these tokens; None: no token is needed."""
        authorization = Authorization(settings, digests, testers, settings.workers or self.processes)
        authorization.confirmed = self.authorization.confirmed
        self.settings = settings
        self.authorization = authorization

    def refuse(self, revision: int, error: EverloopError) -> None:
        """Keep what is in use, because `revision` cannot be taken over."""
        self.refused = {"revision": revision, "type": type(error).__name__, "message": str(error)}
        self.metrics.reloads_failed.add()

    @property
    def in_use(self) -> LoadedEndpoint | None:
        """The versions in use; None: there are none yet."""
        return self._loaded

    # -- Service

    @property
    def ready(self) -> bool:
        return self._loaded is not None and not self.draining and not self.authorization.stale

    @property
    def log_kind(self) -> str:
        """Where answers are logged: journal, store or none."""
        return self._log.sink.kind

    def loaded_endpoint(self, request: Request | None = None) -> LoadedEndpoint:
        loaded = self._loaded
        if loaded is None:
            raise UnavailableError(
                f"The endpoint '{self.endpoint}' has no version to answer with.", help="Release one: everloop release"
            )
        wanted = None if request is None else request.header(b"x-everloop-version")
        return loaded if wanted is None else self._chosen(loaded, wanted.decode("latin-1").strip(), request)

    def _chosen(self, loaded: LoadedEndpoint, wanted: str, request: Request | None) -> LoadedEndpoint:
        if not self.authorization.may_choose(None if request is None else request.client):
            raise TrustError(
                "This client may not choose a version.",
                help=f"Create a token that may: everloop endpoints token {self.endpoint} --tester",
            )
        found = pinned(loaded, wanted, role="tester")
        if found is None:
            in_use = ", ".join(scorer.version for scorer in (*loaded.scorers, *loaded.shadows))
            raise NotFoundError(f"The version '{wanted[:100]}' is not in use here.", help=f"In use: {in_use}")
        return found

    def score(self, loaded: LoadedEndpoint, score_request: ScoreRequest) -> ScoreResult:
        request = self.executor.inline_request()
        if request is None:
            request = self.executor.thread_request()
        elif score_request.explain or self._log.sink.waits or loaded.takes_long(scoring.row_count(score_request)):
            raise TakesLong
        return scoring.score_and_log(loaded, score_request, self._log, self._clock, request)

    def label(self, labels: Sequence[GivenLabel]) -> list[str] | None:
        if self.executor.inline_request() is not None:
            # They are looked up in a table.
            raise TakesLong
        request = self.executor.thread_request()
        if request is not None:
            request.claim()
        stored = self._labels.append(labels)
        if self.log_kind == "store":
            # The predictions are in tables elsewhere, which this process does not read.
            return None
        try:
            return unmatched_of(self._store, self.endpoint, stored)
        except (EverloopError, OSError) as error:
            # The labels are stored, which is what the client wanted.
            logger.warning("Cannot look up the predictions of the labels for '%s': %s", self.endpoint, error)
            return None


__all__ = ["EndpointService"]
