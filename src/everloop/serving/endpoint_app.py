"""The ASGI application of one endpoint: reads bodies, finds the protocol's function, sends what it returns.

What takes an instant is answered in the event loop's own thread, because handing it to another costs more than scoring
it. Large bodies, and everything that takes longer than a few milliseconds as far as is known (see `pace`), go to a few
worker threads, so that a health check never waits for a prediction; so do shadows, so that no answer waits for them.

A request that goes to a thread is answered or given up at its deadline, never both: the thread claims it before it
logs, and what the deadline claimed first is not logged.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from everloop import plugins
from everloop.errors import (
    DeadlineError,
    EverloopError,
    NotFoundError,
    RequestError,
    TrustError,
    UnavailableError,
)
from everloop.http.body_limits import BodyError, unpacked
from everloop.http.connection import WHOLE
from everloop.http.error_bodies import error_content
from everloop.http.host_names import HostRule
from everloop.http.request_guard import RequestGuard
from everloop.prediction_log.labels import GivenLabel, LabelLog, unmatched_of
from everloop.prediction_log.log_sinks import grace_s
from everloop.prediction_log.prediction_log import PredictionLog
from everloop.serving import scoring
from everloop.serving.access.authorization import Authorization
from everloop.serving.access.endpoint_tokens import OPEN_PATHS
from everloop.serving.endpoint_settings import EndpointSettings
from everloop.serving.loaded_endpoint import pinned
from everloop.serving.observability.endpoint_metrics import CONTENT_TYPE, Metrics
from everloop.serving.protocols.example_requests import SHOWN, show_example
from everloop.serving.protocols.protocol import JSON, TABLE_MARKS, Handle, Request, Response, late
from everloop.serving.throughput import TakesLong
from everloop.serving.timeouts import limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.serving.loaded_endpoint import LoadedEndpoint
    from everloop.serving.observability.metrics_aggregation import MetricsAggregation
    from everloop.serving.score_request import ScoreRequest, ScoreResult, ShadowOutcome
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

LARGE_BODY_BYTES = 64 << 10
"""Bodies above this are decoded and scored in a worker thread."""
WORKERS = 4
WAITING_WORKERS = 64
"""Threads where each answer waits until the log's store has it."""
LOG_NONE = ((b"x-everloop-log", b"none"),)
"""The header of an endpoint that writes nothing down."""
MOST_WAITING_SHADOWS = 1_000
"""Requests that wait for their shadows; of more the shadows see nothing, and `/metrics` says so."""
MOST_WAIT_MS = 24 * 3600 * 1000
BESIDE = "everloop.request"
"""The key of a scope that holds a request which the short way could not answer at once."""

T = TypeVar("T")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class EndpointApp:
    """Serves one endpoint over ASGI, and is the `Service` behind its protocols."""

    large = LARGE_BODY_BYTES

    def __init__(
        self,
        store: Store,
        endpoint: str,
        *,
        settings: EndpointSettings | None = None,
        workers: int = 1,
        guard: RequestGuard | None = None,
        aggregation: MetricsAggregation | None = None,
    ) -> None:
        """Open the logs.

        Args:
            workers: the processes that share the endpoint's traffic, this one included.
            guard: what every request passes first. None: one that knows the names of this machine only.
            aggregation: sums the metrics of the processes that share the port; None: this is the only one.
        """
        self.endpoint = endpoint
        self.guard = guard or RequestGuard(HostRule())
        self.settings = settings or EndpointSettings()
        self.processes = workers
        self.metrics = Metrics(endpoint, None if aggregation is None else aggregation.cells)
        self.leaving: list[Any] = []
        """Answers of this turn of the event loop, see `quick`."""
        self.aggregation = aggregation
        self.observers: list[Callable[[Request, Response], None]] = []
        """What is told of every request once its answer is on its way."""
        self.draining = False
        self.refused: dict[str, Any] | None = None
        """The newest revision that could not be taken over, and why."""
        self._admission = Authorization(self.settings)
        self._store = store
        self._clock = store.clock
        self._live: LoadedEndpoint | None = None
        self._revision = 0
        self._log = PredictionLog(store, endpoint)
        self._labels = LabelLog(store, endpoint)
        self.metrics.log = self.log_kind
        self.metrics.sinks = (self._log.sink, self._labels.sink)
        self.marks = LOG_NONE if self.log_kind == "none" else ()
        """Headers that every answer has."""
        # Where an answer waits for a store, many wait at once, and one segment serves them all.
        threads = WAITING_WORKERS if self._log.sink.waits else WORKERS
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="everloop-scoring")
        self._shadows = ThreadPoolExecutor(1, thread_name_prefix="everloop-shadow")
        self._queued = 0
        self._arriving = 0
        """Requests whose bodies are still coming."""
        self._attempting: tuple[int, Request] | None = None
        """The thread that must not be held up, and the request that it tries to answer."""
        self._working = threading.local()
        self._waiting_shadows = 0
        self.exact: dict[tuple[str, str], Handle] = {
            ("GET", "/health"): _health,
            ("GET", "/ready"): _ready,
            ("GET", "/metrics"): _metrics,
        }
        self._patterns: list[tuple[str, re.Pattern[str], str, Handle]] = []
        for name in plugins.names("protocol"):
            for (method, path), handle in plugins.load("protocol", name).items():
                self._add(method, path, handle)
        self.paths = {path for _, path in self.exact} | {path for _, _, path, _ in self._patterns}

    # -- what the endpoint has in use; called by the thread that follows its record

    def switch(self, live: LoadedEndpoint | None, revision: int) -> None:
        """Answer new requests with `live` from now on; requests on their way keep what they began with."""
        self._live = live
        self._revision = revision
        self.refused = None
        self.metrics.revision.set(revision)
        self.metrics.ready.set(live is not None)
        self.metrics.reloads_done.add()

    def configure(
        self,
        settings: EndpointSettings,
        digests: Mapping[str, str] | None = None,
        testers: frozenset[str] = frozenset(),
    ) -> None:
        """Hold new requests against these settings, and ask for one of these tokens; None: for none."""
        admission = Authorization(settings, digests, testers, settings.workers or self.processes)
        admission.confirmed = self._admission.confirmed
        self.settings = settings
        self._admission = admission

    def confirm_access(self) -> None:
        """Note that tokens and testers are the store's at this moment; from now on they grow stale."""
        self._admission.confirmed = monotonic()

    @property
    def access_grows_stale(self) -> bool:
        """Whether `confirm_access` was ever called."""
        return self._admission.confirmed != math.inf

    @property
    def access_unknown(self) -> bool:
        """Whether nobody is let in, because the tokens could not be read for too long."""
        return self._admission.stale

    @property
    def asks_token(self) -> bool:
        return self._admission.asks_token

    def refuse(self, revision: int, error: EverloopError) -> None:
        """Stay with what is in use: `revision` cannot be taken over."""
        self.refused = {"revision": revision, "type": type(error).__name__, "message": str(error)}
        self.metrics.reloads_failed.add()

    def close(self) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._shadows.shutdown(wait=True)
        # Both logs have the same time to ship what is left.
        until = None if self._log.sink.kind != "store" else monotonic() + grace_s()
        self._log.close(until)
        self._labels.close(until)
        self.metrics.read_log_state()
        if self.aggregation is not None:
            self.aggregation.close()

    # -- Service

    @property
    def ready(self) -> bool:
        return self._live is not None and not self.draining and not self._admission.stale

    @property
    def log_kind(self) -> str:
        """Where answers are written down: journal, store or none."""
        return self._log.sink.kind

    @property
    def most(self) -> int:
        """How many requests may be on their way."""
        return self.settings.max_in_flight

    @property
    def scoring(self) -> ThreadPoolExecutor:
        """The threads in which requests are scored that would hold the event loop up."""
        return self._workers

    def admit(self, request: Request) -> tuple[int, str | None]:
        """200, 401 (no such token), 429 (too often) or 503 (tokens unknown), and the name of the token."""
        return self._admission.look(request.path, request.header(b"authorization"))

    @property
    def revision(self) -> int:
        return self._revision

    def live(self, request: Request | None = None) -> LoadedEndpoint:
        live = self._live
        if live is None:
            raise UnavailableError(
                f"The endpoint '{self.endpoint}' has no version to answer with.", help="Release one: everloop release"
            )
        wanted = None if request is None else request.header(b"x-everloop-version")
        return live if wanted is None else self._chosen(live, wanted.decode("latin-1").strip(), request)

    def _chosen(self, live: LoadedEndpoint, wanted: str, request: Request | None) -> LoadedEndpoint:
        if not self._admission.may_choose(None if request is None else request.client):
            raise TrustError(
                "This client may not choose a version.",
                help=f"Make a token for it: everloop endpoints token {self.endpoint} --tester",
            )
        found = pinned(live, wanted, role="tester")
        if found is None:
            in_use = ", ".join(one.version for one in (*live.scorers, *live.shadows))
            raise NotFoundError(f"No version '{wanted[:100]}' is in use here.", help=f"In use: {in_use}")
        return found

    def answer(self, live: LoadedEndpoint, ask: ScoreRequest) -> ScoreResult:
        attempting = self._attempting
        if attempting is not None and attempting[0] == threading.get_ident():
            if ask.explain or self._log.sink.waits or live.takes_long(scoring.rows_of(ask)):
                raise TakesLong
            return scoring.score_request(live, ask, self._log, self._clock, attempting[1])
        return scoring.score_request(live, ask, self._log, self._clock, getattr(self._working, "request", None))

    def label(self, labels: Sequence[GivenLabel]) -> list[str] | None:
        attempting = self._attempting
        if attempting is not None and attempting[0] == threading.get_ident():
            # They are looked up in a table.
            raise TakesLong
        request = getattr(self._working, "request", None)
        if request is not None:
            request.claim()
        kept = self._labels.append(labels)
        if self.log_kind == "store":
            # The predictions are elsewhere, in tables that this process does not read.
            return None
        try:
            return unmatched_of(self._store, self.endpoint, kept)
        except (EverloopError, OSError) as error:
            # The labels are safe, which is what was asked for.
            logger.warning("The labels of '%s' cannot be looked up among its predictions: %s", self.endpoint, error)
            return None

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"An endpoint speaks HTTP only, not {scope['type']}.")
        refused = refused_by(self.guard, scope)
        if refused is not None:
            self.metrics.count_response("other", refused.status)
            refused.headers = [*refused.headers, *self.marks]
            await send_response(send, refused)
            return
        await self.serve(scope, receive, send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the guard has let through."""
        metrics = self.metrics
        if self.marks:
            send = _marked(send, self.marks)
        timeout_s = self.settings.request_timeout_s
        # Whether the process lives is told also where it has much to do, or is held up by slow clients.
        limited = scope["path"] not in OPEN_PATHS
        # Bodies that are still coming are counted by themselves: slow clients keep nobody else from being answered.
        arriving = WHOLE not in scope
        if limited and (self._arriving if arriving else metrics.in_flight.value) >= self.most:
            await send_response(send, self.busy())
            return
        metrics.in_flight.add(not arriving)
        self._arriving += arriving
        try:
            if not self._admission.open and BESIDE not in scope:
                # Who is not let in is not read either.
                given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
                if not self._admission.knows(scope["path"], given):
                    metrics.count_response("other", 401)
                    # The body is dropped as it comes.
                    await send_response(send, self._not_let_in(503 if self._admission.stale else 401))
                    return
            # What was logged is always sent: after the body, a request's time ends in `beside` or not at all.
            body = await limit(self._body(receive), timeout_s)
            if body is None:
                return
            if arriving:
                arriving = False
                self._arriving -= 1
                metrics.in_flight.add()
                if limited and metrics.in_flight.value > self.most:
                    await send_response(send, self.busy())
                    return
            await self._serve(scope, body, send)
        except TimeoutError:
            metrics.count_response("other", 408)
            message = f"The body did not come within {timeout_s:g} s."
            await send_response(send, problem(408, "RequestError", message))
        finally:
            self._arriving -= arriving
            metrics.in_flight.add(-(not arriving))

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, whole or just larger than is allowed; None: the client has left."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk: bytes = message.get("body", b"")
            chunks.append(chunk)
            size += len(chunk)
            if not message.get("more_body", False) or size > self.settings.max_body_bytes:
                return chunk if len(chunks) == 1 else b"".join(chunks)

    async def _serve(self, scope: Scope, body: bytes, send: Send) -> None:
        request = scope.get(BESIDE)
        response = None
        large = len(body) > LARGE_BODY_BYTES
        if request is None:
            request = Request(
                method=scope["method"],
                path=scope["path"],
                body=body,
                began=perf_counter(),
                headers=scope["headers"],
                query=scope["query_string"],
            )
            response = None if large or body[:4] in TABLE_MARKS else self.attempt(request)
        if response is None:
            response = await self._beside(request, large=large)
        await send_response(send, response)
        shadow = self.sent(request, response)
        if shadow is not None:
            await asyncio.wrap_future(shadow)

    def attempt(self, request: Request) -> Response | None:
        """The response to a request that takes an instant; None: it takes longer, and nothing has been done for it."""
        try:
            return self.attempting(request, lambda: self.respond(request))
        except TakesLong:
            return None

    def attempting(self, request: Request, work: Callable[[], T]) -> T:
        """Do what is to be done for a request in the event loop's thread.

        Raises:
            TakesLong: it would hold the loop up; nothing has been done.
        """
        self._attempting = (threading.get_ident(), request)
        try:
            return work()
        finally:
            self._attempting = None

    async def _beside(self, request: Request, *, large: bool) -> Response:
        """The response to a request that a worker thread answers."""
        try:
            self._read_deadline(request)
            return await self.beside(request, lambda: self.respond(request), large=large)
        except RequestError as error:
            return problem(422, "RequestError", error.message, error.help)
        except DeadlineError as error:
            return self._late(request, error)
        except UnavailableError:
            return self.busy()

    async def beside(self, request: Request, work: Callable[[], T], *, large: bool = False) -> T:
        """Do what is to be done for a request in a worker thread, until its deadline or the endpoint's own.

        Raises:
            UnavailableError: too many large requests wait.
            DeadlineError: its time ran out first; what the thread still does for it is not logged.
        """
        if large and self._queued >= self.settings.max_queued:
            raise UnavailableError("The endpoint is busy.")
        until = request.began + self.settings.request_timeout_s
        if request.deadline is not None:
            until = min(until, request.deadline)
        decided: dict[str, str] = {}
        request.decided = decided

        def run() -> T:
            self._working.request = request
            try:
                return work()
            finally:
                self._working.request = None

        working = self._workers.submit(run)
        answered = asyncio.wrap_future(working)
        if large:
            self._queued += 1
            answered.add_done_callback(self._left_queue)
        done, _ = await asyncio.wait((answered,), timeout=max(0.0, until - perf_counter()))
        if not done and (working.cancel() or decided.setdefault("by", "deadline") == "deadline"):
            answered.add_done_callback(_unheard)
            raise late()
        return await answered

    def _late(self, request: Request, error: DeadlineError) -> Response:
        """408 where the client's own deadline ran out: it chose it. 504 where the endpoint's did."""
        own = request.deadline is not None and request.deadline < request.began + self.settings.request_timeout_s
        return problem(408 if own else 504, "DeadlineError", error.message, error.help)

    def _left_queue(self, _: object) -> None:
        self._queued -= 1

    def _read_deadline(self, request: Request) -> None:
        """Take over how long the client waits.

        Raises:
            RequestError: the client says nonsense.
        """
        given = request.header(b"x-request-timeout-ms")
        if given is None or request.deadline is not None:
            return
        if not given.isdigit() or not 0 < int(given[:10]) <= MOST_WAIT_MS or len(given) > 10:
            raise RequestError(
                f"X-Request-Timeout-Ms: '{given[:50].decode('latin-1')}' is not a time to wait.",
                help=f"Send whole milliseconds, 1 to {MOST_WAIT_MS}.",
            )
        request.deadline = request.began + int(given) / 1000

    def busy(self) -> Response:
        self.metrics.refused.add()
        self.metrics.count_response("other", 503)
        return problem(503, "UnavailableError", "The endpoint is busy.", "Ask again in a second.")

    def sent(self, request: Request, response: Response) -> Future[None] | None:
        """Count a request whose answer is on its way, and let its shadows score it. In the event loop's thread.

        Returns:
            What is done when the shadows are; None where there are none.
        """
        metrics = self.metrics
        path = request.path if request.path in self.paths else "other"
        metrics.count_response(path, response.status)
        for observe in self.observers:
            observe(request, response)
        answer = response.answer
        if answer is None:
            return None
        scoring.count(metrics, answer)
        if answer.shadow is None:
            return None
        if self._waiting_shadows >= MOST_WAITING_SHADOWS:
            metrics.shadow_skipped.add()
            return None
        self._waiting_shadows += 1
        return self._shadows.submit(self._score_shadow, answer.shadow)

    def _score_shadow(self, shadow: Callable[[], ShadowOutcome]) -> None:
        # This is the only thread that writes these counters.
        try:
            scoring.count_shadows(self.metrics, shadow())
        except Exception:
            logger.exception("The shadows of the endpoint '%s' failed", self.endpoint)
        finally:
            self._waiting_shadows -= 1

    def respond(self, request: Request) -> Response:
        """The response to a request, and where it is refused, a body that this model takes; see `_respond`."""
        response = self._respond(request)
        live = self._live
        if response.status in SHOWN and live is not None:
            try:
                return show_example(response, request, live)
            except Exception:
                logger.exception("No example can be shown for %s", request.path)
        return response

    def _respond(self, request: Request) -> Response:
        """The response to a request; raises nothing but `TakesLong`, and that only where it is attempted."""
        try:
            if len(request.body) > self.settings.max_body_bytes:
                return problem(413, "RequestError", f"The body is larger than {self.settings.max_body_bytes} bytes.")
            handle = request.handle
            if handle is None and not self._admission.open:
                status, request.client = self._admission.look(request.path, request.header(b"authorization"))
                if status != 200:
                    return self._not_let_in(status)
            for name, value in request.headers:
                if name == b"x-request-timeout-ms":
                    self._read_deadline(request)
                elif name == b"content-encoding":
                    self._unpack(request, value)
            if request.deadline is not None and perf_counter() > request.deadline:
                raise late()
            if handle is None:
                handle = self.exact.get((request.method, request.path)) or self._find(request)
                if handle is None:
                    return self._unknown(request)
                request.handle = handle
            response = handle(self, request)
            if response.answer is not None:
                response.version = response.answer.version()
                if response.answer.unasked:
                    told = ",".join(response.answer.unasked).encode("ascii", "replace")
                    response.headers = [*response.headers, (b"x-everloop-unasked", told)]
            return response
        except TakesLong:
            raise
        except DeadlineError as error:
            return self._late(request, error)
        except BodyError as error:
            return problem(error.status_code, "RequestError", error.detail)
        except EverloopError as error:
            if error.http_status >= 500:
                logger.warning("%s %s: %s", request.method, request.path, error)
            return problem(error.http_status, type(error).__name__, error.message, error.help)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return problem(400, "RequestError", f"The body is no JSON that can be read: {error}")
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.path)
            return problem(500, type(error).__name__, "The endpoint failed; its log says why.")

    def _unpack(self, request: Request, encoding: bytes) -> None:
        """Undo the encoding of a body.

        Raises:
            TakesLong: it is to be done in a worker thread.
            BodyError: it cannot be, or becomes longer than a body may be.
        """
        attempting = self._attempting
        if attempting is not None and attempting[0] == threading.get_ident():
            raise TakesLong
        request.body = unpacked(encoding.decode("latin-1"), request.body, self.settings.max_body_bytes)
        # It may be looked at again, and is plain now.
        request.headers = [pair for pair in request.headers if pair[0] != b"content-encoding"]

    def _not_let_in(self, status: int) -> Response:
        if status == 503:
            return problem(
                503, "UnavailableError", "The store cannot be read, so no token can be checked.", "Ask again later."
            )
        if status == 401:
            denied = problem(401, "TrustError", "This endpoint asks for a token.", "Authorization: Bearer …")
            denied.headers = [(b"www-authenticate", b"Bearer")]
            return denied
        self.metrics.limited.add()
        limited = problem(429, "UnavailableError", "This client asks too often.", "Ask again later.")
        limited.headers = [(b"retry-after", b"%d" % self._admission.wait_s())]
        return limited

    def _add(self, method: str, path: str, handle: Handle) -> None:
        if "{" not in path:
            self.exact[method, path] = handle
            return
        pattern = "".join(
            f"(?P<{part[1:-1]}>[^/:]+)" if part.startswith("{") else re.escape(part)
            for part in re.split(r"(\{\w+\})", path)
        )
        self._patterns.append((method, re.compile(pattern), path, handle))

    def _find(self, request: Request) -> Handle | None:
        method = "GET" if request.method == "HEAD" else request.method
        handle = self.exact.get((method, request.path))
        if handle is not None:
            return handle
        for wanted, pattern, path, candidate in self._patterns:
            if wanted == method and (found := pattern.fullmatch(request.path)):
                request.params = found.groupdict()
                request.path = path
                return candidate
        return None

    def _unknown(self, request: Request) -> Response:
        methods = {method for method, path in self.exact if path == request.path}
        methods |= {method for method, pattern, _, _ in self._patterns if pattern.fullmatch(request.path)}
        if methods:
            allowed = ", ".join(sorted(methods))
            response = problem(405, "UsageError", f"{request.path} takes {allowed}, not {request.method}.")
            response.headers = [(b"allow", allowed.encode())]
            return response
        known = ", ".join(sorted({path for _, path in self.exact}))
        return problem(404, "NotFoundError", f"There is no {request.path[:200]} here.", f"There are: {known}")


def _unheard(answered: asyncio.Future[Any]) -> None:
    """Look at what became of work that was given up, so that asyncio does not complain of it."""
    if not answered.cancelled():
        answered.exception()


def _health(service: Any, request: Request) -> Response:
    app: EndpointApp = service
    return Response(body=b'{"status":"alive","log":"none"}' if app.marks else b'{"status":"alive"}')


def _ready(service: Any, request: Request) -> Response:
    app: EndpointApp = service
    state = {
        "ready": app.ready,
        "endpoint": app.endpoint,
        "revision": app.revision,
        "draining": app.draining,
        "refused": app.refused,
        **({} if app.log_kind == "journal" else {"log": app.log_kind}),
    }
    if app.access_unknown:
        state["access"] = "The store cannot be read, so no token can be checked."
    return Response(status=200 if app.ready else 503, body=msgspec.json.encode(state))


def _metrics(service: Any, request: Request) -> Response:
    app: EndpointApp = service
    text = app.metrics.text() if app.aggregation is None else app.aggregation.text(app.metrics)
    return Response(body=text, content_type=CONTENT_TYPE)


def _marked(send: Send, marks: Sequence[tuple[bytes, bytes]]) -> Send:
    """The same, with more headers in each response."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *marks]
        await send(message)

    return send_marked


def problem(status: int, kind: str, message: str, help: str | None = None) -> Response:
    return Response(status=status, body=msgspec.json.encode(error_content(kind, message, help)))


def refused_by(guard: RequestGuard, scope: Scope) -> Response | None:
    """What a request gets that the guard refuses; its body is not read."""
    server = scope.get("server")
    refusal = guard.refusal(scope["method"], scope["headers"], server[0] if server else None)
    if refusal is None:
        return None
    response = problem(refusal.status, "Refused", refusal.message, refusal.help)
    response.headers = [(b"connection", b"close")]
    return response


def head_of(response: Response) -> list[tuple[bytes, bytes]]:
    """The headers of a response, its own and those that every response has."""
    headers = [(b"content-type", response.content_type), (b"content-length", b"%d" % len(response.body))]
    if response.version is not None and response.answer is not None:
        headers.append((b"x-everloop-version", response.version.encode("ascii", "replace")))
        headers.append((b"x-everloop-request", response.answer.request.encode()))
    if response.status == 503:
        headers.append((b"retry-after", b"1"))
    headers.extend(response.headers)
    return headers


async def send_response(send: Send, response: Response) -> None:
    await send({"type": "http.response.start", "status": response.status, "headers": head_of(response)})
    await send({"type": "http.response.body", "body": response.body})


__all__ = ["JSON", "LARGE_BODY_BYTES", "EndpointApp"]
