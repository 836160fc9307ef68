"""The ASGI application of one endpoint: reads bodies, calls the protocol's function and sends what it returns.

`EndpointService` holds what the protocols work with (versions, settings, logs), `ProtocolRoutes` finds the protocol's
function, `RequestExecutor` decides where it runs, and `ShadowQueue` scores with the shadows afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import DeadlineError, EverloopError, RequestError, UnavailableError
from everloop.http.body_limits import BodyError, unpacked
from everloop.http.connection import WHOLE
from everloop.http.host_names import HostRule
from everloop.http.request_guard import RequestGuard
from everloop.serving import scoring
from everloop.serving.access.endpoint_tokens import OPEN_PATHS
from everloop.serving.endpoint_service import EndpointService
from everloop.serving.observability.endpoint_metrics import CONTENT_TYPE
from everloop.serving.protocol_routes import ProtocolRoutes
from everloop.serving.protocols.example_requests import SHOWN, show_example
from everloop.serving.protocols.protocol import TABLE_MARKS, Request, Response, late
from everloop.serving.request_executor import LARGE_BODY_BYTES
from everloop.serving.responses import not_authorized, problem, refused_by, send_response, with_headers
from everloop.serving.shadow_queue import ShadowQueue
from everloop.serving.throughput import TakesLong
from everloop.serving.timeouts import limit

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from everloop.serving.endpoint_settings import EndpointSettings
    from everloop.serving.observability.metrics_aggregation import MetricsAggregation
    from everloop.serving.responses import Receive, Scope, Send
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

LOG_NONE = ((b"x-everloop-log", b"none"),)
"""The header of an endpoint that does not log its answers."""
MOST_WAIT_MS = 24 * 3600 * 1000
SLOW_REQUEST = "everloop.request"
"""The key of a scope under which the fast path leaves a request that it could not answer at once."""


class EndpointApp:
    """Serves one endpoint over ASGI.

    Attributes:
        service: what the protocols work with.
        routes: the protocols' functions by method and path.
        observers: called for every request once its answer is on its way.
        outbox: answers of this pass of the event loop; see `fast_path`.
        extra_headers: headers that every answer has.
    """

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
            workers: the processes that share the endpoint's traffic, including this one.
            guard: checks every request first. None: one that accepts only the names of this machine.
            aggregation: sums the metrics of the processes that share the port; None: there is only this one.
        """
        self.endpoint = endpoint
        self.guard = guard or RequestGuard(HostRule())
        self.service = EndpointService(store, endpoint, settings=settings, workers=workers, aggregation=aggregation)
        self.metrics = self.service.metrics
        self.executor = self.service.executor
        self.routes = ProtocolRoutes(
            {("GET", "/health"): _health, ("GET", "/ready"): _ready, ("GET", "/metrics"): _metrics}
        )
        self.observers: list[Callable[[Request, Response], None]] = []
        self.outbox: list[Any] = []
        self.extra_headers = LOG_NONE if self.service.log_kind == "none" else ()
        self._shadows = ShadowQueue(self.metrics)
        self._arriving = 0
        """Requests whose bodies are still coming."""

    def drain(self) -> None:
        """Say at `/ready` that the process is about to stop."""
        self.service.draining = True

    def close(self) -> None:
        """Finish what has begun and close the logs."""
        self.executor.close()
        self._shadows.close()
        self.service.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"An endpoint speaks only HTTP, not {scope['type']}.")
        refused = refused_by(self.guard, scope)
        if refused is not None:
            self.metrics.count_response("other", refused.status)
            refused.headers = [*refused.headers, *self.extra_headers]
            await send_response(send, refused)
            return
        await self.serve(scope, receive, send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the guard has let through."""
        metrics = self.metrics
        authorization = self.service.authorization
        if self.extra_headers:
            send = with_headers(send, self.extra_headers)
        timeout_s = self.service.settings.request_timeout_s
        # Health checks are answered also when the process is busy or held up by slow clients.
        limited = scope["path"] not in OPEN_PATHS
        # Requests whose bodies are still coming have a limit of their own, so slow clients do not block the others.
        arriving = WHOLE not in scope
        if limited and (self._arriving if arriving else metrics.in_flight.value) >= self.most:
            await send_response(send, self.busy())
            return
        metrics.in_flight.add(not arriving)
        self._arriving += arriving
        try:
            if not authorization.open and SLOW_REQUEST not in scope:
                # The body of a client that is not let in is not read.
                header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
                if not authorization.knows(scope["path"], header):
                    metrics.count_response("other", 401)
                    # The body is dropped as it comes.
                    await send_response(send, self._not_authorized(503 if authorization.stale else 401))
                    return
            # The limit is for the body only, since what was logged is always sent: afterwards, a request's time ends
            # in `RequestExecutor` or not at all.
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
            message = f"The body did not arrive within {timeout_s:g} s."
            await send_response(send, problem(408, "RequestError", message))
        finally:
            self._arriving -= arriving
            metrics.in_flight.add(-(not arriving))

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, complete or just larger than allowed; None: the client has left."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk: bytes = message.get("body", b"")
            chunks.append(chunk)
            size += len(chunk)
            if not message.get("more_body", False) or size > self.service.settings.max_body_bytes:
                return chunk if len(chunks) == 1 else b"".join(chunks)

    async def _serve(self, scope: Scope, body: bytes, send: Send) -> None:
        request = scope.get(SLOW_REQUEST)
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
            response = await self._respond_in_thread(request, large=large)
        await send_response(send, response)
        shadow = self.sent(request, response)
        if shadow is not None:
            await asyncio.wrap_future(shadow)

    @property
    def most(self) -> int:
        """How many requests may be in flight."""
        return self.service.settings.max_in_flight

    def attempt(self, request: Request) -> Response | None:
        """The response to a request that takes an instant; None: it takes longer, and nothing has been done for it."""
        try:
            return self.executor.run_inline(request, lambda: self.respond(request))
        except TakesLong:
            return None

    async def _respond_in_thread(self, request: Request, *, large: bool) -> Response:
        """The response to a request that a worker thread answers."""
        try:
            _read_deadline(request)
            return await self.executor.run_in_thread(
                request, lambda: self.respond(request), self.service.settings, large=large
            )
        except RequestError as error:
            return problem(422, "RequestError", error.message, error.help)
        except DeadlineError as error:
            return self._late(request, error)
        except UnavailableError:
            return self.busy()

    def busy(self) -> Response:
        """The response to a request that is one too many; counts it."""
        self.metrics.refused.add()
        self.metrics.count_response("other", 503)
        return problem(503, "UnavailableError", "The endpoint is busy.", "Try again in a second.")

    def sent(self, request: Request, response: Response) -> Future[None] | None:
        """Count a request whose answer is on its way, and let the shadows score it. In the event loop's thread.

        Returns:
            A future that is done when the shadows are; None: there are none, or they skip this request.
        """
        path = request.path if request.path in self.routes.paths else "other"
        self.metrics.count_response(path, response.status)
        if response.status >= 400 and request.scored_by is not None:
            self.metrics.count_failure(*request.scored_by, response.status)
        for observe in self.observers:
            observe(request, response)
        result = response.result
        if result is None:
            return None
        scoring.count(self.metrics, result)
        return None if result.shadow is None else self._shadows.submit(result.shadow)

    def respond(self, request: Request) -> Response:
        """The response to a request; if it is refused, with a body that this model takes.

        Raises:
            TakesLong: the event loop's thread is working on it, and it would take longer than an instant.
        """
        response = self._respond(request)
        loaded = self.service.in_use
        if response.status in SHOWN and loaded is not None:
            try:
                return show_example(response, request, loaded)
            except Exception:
                logger.exception("Cannot show an example for %s", request.path)
        return response

    def _respond(self, request: Request) -> Response:
        service = self.service
        try:
            if len(request.body) > service.settings.max_body_bytes:
                limit_bytes = service.settings.max_body_bytes
                return problem(413, "RequestError", f"The body is larger than {limit_bytes} bytes.")
            handle = request.handle
            if handle is None and not service.authorization.open:
                status, request.client = service.authorization.check(request.path, request.header(b"authorization"))
                if status != 200:
                    return self._not_authorized(status)
            for name, value in request.headers:
                if name == b"x-request-timeout-ms":
                    _read_deadline(request)
                elif name == b"content-encoding":
                    self._unpack(request, value)
            if request.deadline is not None and perf_counter() > request.deadline:
                raise late()
            if handle is None:
                handle = self.routes.exact.get((request.method, request.path)) or self.routes.find(request)
                if handle is None:
                    return self.routes.not_found(request)
                request.handle = handle
            response = handle(service, request)
            result = response.result
            if result is not None:
                response.version = result.version()
                if result.unasked:
                    versions = ",".join(result.unasked).encode("ascii", "replace")
                    response.headers = [*response.headers, (b"x-everloop-unasked", versions)]
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
            return problem(400, "RequestError", f"Cannot read the body as JSON: {error}")
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.path)
            return problem(500, type(error).__name__, "The endpoint failed; its log says why.")

    def _unpack(self, request: Request, encoding: bytes) -> None:
        """Undo the encoding of a body.

        Raises:
            TakesLong: a worker thread must do it.
            BodyError: the encoding is unknown or damaged, or the body becomes longer than allowed.
        """
        if self.executor.inline_request() is not None:
            raise TakesLong
        request.body = unpacked(encoding.decode("latin-1"), request.body, self.service.settings.max_body_bytes)
        # The request may come here again, and its body is plain now.
        request.headers = [pair for pair in request.headers if pair[0] != b"content-encoding"]

    def _not_authorized(self, status: int) -> Response:
        if status == 429:
            self.metrics.limited.add()
        return not_authorized(status, self.service.authorization.wait_s())

    def _late(self, request: Request, error: DeadlineError) -> Response:
        """408 if the client's own deadline ran out, 504 if the endpoint's did."""
        timeout_s = self.service.settings.request_timeout_s
        client_chose = request.deadline is not None and request.deadline < request.began + timeout_s
        return problem(408 if client_chose else 504, "DeadlineError", error.message, error.help)


def _read_deadline(request: Request) -> None:
    """Set the request's deadline from its header, unless it has one.

    Raises:
        RequestError: the header is not a number of milliseconds.
    """
    header = request.header(b"x-request-timeout-ms")
    if header is None or request.deadline is not None:
        return
    if not header.isdigit() or not 0 < int(header[:10]) <= MOST_WAIT_MS or len(header) > 10:
        raise RequestError(
            f"X-Request-Timeout-Ms: '{header[:50].decode('latin-1')}' is not a number of milliseconds.",
            help=f"Send a whole number from 1 to {MOST_WAIT_MS}.",
        )
    request.deadline = request.began + int(header) / 1000


def _health(service: Any, request: Request) -> Response:
    endpoint: EndpointService = service
    return Response(body=b'{"status":"alive","log":"none"}' if endpoint.log_kind == "none" else b'{"status":"alive"}')


def _ready(service: Any, request: Request) -> Response:
    endpoint: EndpointService = service
    state = {
        "ready": endpoint.ready,
        "endpoint": endpoint.endpoint,
        "revision": endpoint.revision,
        "draining": endpoint.draining,
        "refused": endpoint.refused,
        **({} if endpoint.log_kind == "journal" else {"log": endpoint.log_kind}),
    }
    if endpoint.authorization.stale:
        state["access"] = "Cannot check tokens: the store cannot be read."
    return Response(status=200 if endpoint.ready else 503, body=msgspec.json.encode(state))


def _metrics(service: Any, request: Request) -> Response:
    endpoint: EndpointService = service
    aggregation = endpoint.aggregation
    text = endpoint.metrics.text() if aggregation is None else aggregation.text(endpoint.metrics)
    return Response(body=text, content_type=CONTENT_TYPE)


__all__ = ["EndpointApp"]
