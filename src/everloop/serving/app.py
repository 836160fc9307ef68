"""The ASGI application of one endpoint: reads bodies, finds the protocol's function, sends what it returns.

Small requests are answered in the event loop's own thread, because handing them to another costs more than scoring
them; large bodies go to a few worker threads, so that a health check never waits for a big batch.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from everloop import plugins
from everloop.errors import EverloopError, UnavailableError
from everloop.serving import answering
from everloop.serving.exchange import JSON, Handle, Request, Response
from everloop.serving.label_log import GivenLabel, LabelLog
from everloop.serving.metrics import CONTENT_TYPE, Metrics
from everloop.serving.patience import limit
from everloop.serving.prediction_log import PredictionLog
from everloop.serving.tokens import OPEN_PATHS, admits

if TYPE_CHECKING:
    from everloop.serving.answering import Answer, Ask
    from everloop.serving.live import Live
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

MAX_BODY_BYTES = 8 << 20
LARGE_BODY_BYTES = 64 << 10
"""Bodies above this are decoded and scored in a worker thread."""
WORKERS = 2
MAX_IN_FLIGHT = 256
REQUEST_TIMEOUT_S = 60.0
"""Requests whose bodies are coming in or that wait for a worker; more are told to come back."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class EndpointApp:
    """Serves one endpoint over ASGI, and is the `Service` behind its protocols."""

    def __init__(
        self,
        store: Store,
        endpoint: str,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_in_flight: int = MAX_IN_FLIGHT,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self.endpoint = endpoint
        self.max_in_flight = max_in_flight
        self.request_timeout_s = request_timeout_s
        self._tokens: tuple[str, ...] | None = None
        self.metrics = Metrics(endpoint)
        self.max_body_bytes = max_body_bytes
        self.draining = False
        self.refused: dict[str, Any] | None = None
        """The newest revision that could not be taken over, and why."""
        self._clock = store.clock
        self._live: Live | None = None
        self._revision = 0
        self._log = PredictionLog(store, endpoint)
        self._labels = LabelLog(store, endpoint)
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="everloop-scoring")
        self._exact: dict[tuple[str, str], Handle] = {
            ("GET", "/health"): _health,
            ("GET", "/ready"): _ready,
            ("GET", "/metrics"): _metrics,
        }
        self._patterns: list[tuple[str, re.Pattern[str], str, Handle]] = []
        for name in plugins.names("protocol"):
            for (method, path), handle in plugins.load("protocol", name).items():
                self._add(method, path, handle)
        self._paths = {path for _, path in self._exact} | {path for _, _, path, _ in self._patterns}

    # -- what the endpoint has in use; called by the thread that follows its record

    def switch(self, live: Live | None, revision: int) -> None:
        """Answer new requests with `live` from now on; requests on their way keep what they began with."""
        self._live = live
        self._revision = revision
        self.refused = None
        self.metrics.revision = revision
        self.metrics.ready = live is not None
        self.metrics.reloads["done"] += 1

    def protect(self, digests: tuple[str, ...] | None) -> None:
        """Ask for one of these tokens from now on; None: for none."""
        self._tokens = digests

    def refuse(self, revision: int, error: EverloopError) -> None:
        """Stay with what is in use: `revision` cannot be taken over."""
        self.refused = {"revision": revision, "type": type(error).__name__, "message": str(error)}
        self.metrics.reloads["failed"] += 1

    def close(self) -> None:
        self._workers.shutdown(wait=True)
        self._log.close()
        self._labels.close()

    # -- Service

    @property
    def ready(self) -> bool:
        return self._live is not None and not self.draining

    @property
    def revision(self) -> int:
        return self._revision

    def live(self) -> Live:
        live = self._live
        if live is None:
            raise UnavailableError(
                f"The endpoint '{self.endpoint}' has no version to answer with.", help="Release one: everloop release"
            )
        return live

    def answer(self, live: Live, ask: Ask) -> Answer:
        return answering.answer(live, ask, self._log, self._clock)

    def label(self, labels: Sequence[GivenLabel]) -> None:
        self._labels.append(labels)

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"An endpoint speaks HTTP only, not {scope['type']}.")
        metrics = self.metrics
        if metrics.in_flight >= self.max_in_flight:
            metrics.refused += 1
            metrics.count_response("other", 503)
            await _send(send, _problem(503, "UnavailableError", "The endpoint is busy.", "Ask again in a second."))
            return
        metrics.in_flight += 1
        try:
            # Only the body may be late: what was scored is logged, so its answer is always sent.
            body = await limit(self._body(receive), self.request_timeout_s)
            if body is not None:
                await self._serve(scope, body, send)
        except TimeoutError:
            metrics.count_response("other", 408)
            message = f"The body did not come within {self.request_timeout_s:g} s."
            await _send(send, _problem(408, "RequestError", message))
        finally:
            metrics.in_flight -= 1

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
            if not message.get("more_body", False) or size > self.max_body_bytes:
                return chunk if len(chunks) == 1 else b"".join(chunks)

    async def _serve(self, scope: Scope, body: bytes, send: Send) -> None:
        request = Request(
            method=scope["method"],
            path=scope["path"],
            body=body,
            began=perf_counter(),
            headers=scope["headers"],
            query=scope["query_string"],
        )
        large = len(body) > LARGE_BODY_BYTES
        if large:
            loop = asyncio.get_running_loop()
            response = await loop.run_in_executor(self._workers, self.respond, request)
        else:
            response = self.respond(request)
        await _send(send, response)
        path = request.path if request.path in self._paths else "other"
        self.metrics.count_response(path, response.status)
        answer = response.answer
        if answer is None:
            return
        answering.count(self.metrics, answer)
        if answer.shadow is not None:
            # The answer is on its way; what the shadows cost is not the client's.
            if large:
                outcome = await asyncio.get_running_loop().run_in_executor(self._workers, answer.shadow)
            else:
                outcome = answer.shadow()
            answering.count_shadows(self.metrics, outcome)

    def respond(self, request: Request) -> Response:
        """The response to a request; never raises."""
        try:
            if len(request.body) > self.max_body_bytes:
                return _problem(413, "RequestError", f"The body is larger than {self.max_body_bytes} bytes.")
            tokens = self._tokens
            if (
                tokens is not None
                and request.path not in OPEN_PATHS
                and not admits(tokens, request.header(b"authorization"))
            ):
                denied = _problem(401, "TrustError", "This endpoint asks for a token.", "Authorization: Bearer …")
                denied.headers = [(b"www-authenticate", b"Bearer")]
                return denied
            handle = self._exact.get((request.method, request.path))
            if handle is None:
                handle = self._find(request)
                if handle is None:
                    return self._unknown(request)
            return handle(self, request)
        except EverloopError as error:
            if error.http_status >= 500:
                logger.warning("%s %s: %s", request.method, request.path, error)
            return _problem(error.http_status, type(error).__name__, error.message, error.help)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _problem(400, "RequestError", f"The body is no JSON that can be read: {error}")
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.path)
            return _problem(500, type(error).__name__, "The endpoint failed; its log says why.")

    def _add(self, method: str, path: str, handle: Handle) -> None:
        if "{" not in path:
            self._exact[method, path] = handle
            return
        pattern = "".join(
            f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else re.escape(part)
            for part in re.split(r"(\{\w+\})", path)
        )
        self._patterns.append((method, re.compile(pattern), path, handle))

    def _find(self, request: Request) -> Handle | None:
        method = "GET" if request.method == "HEAD" else request.method
        handle = self._exact.get((method, request.path))
        if handle is not None:
            return handle
        for wanted, pattern, path, candidate in self._patterns:
            if wanted == method and (found := pattern.fullmatch(request.path)):
                request.params = found.groupdict()
                request.path = path
                return candidate
        return None

    def _unknown(self, request: Request) -> Response:
        methods = {method for method, path in self._exact if path == request.path}
        methods |= {method for method, pattern, _, _ in self._patterns if pattern.fullmatch(request.path)}
        if methods:
            allowed = ", ".join(sorted(methods))
            response = _problem(405, "UsageError", f"{request.path} takes {allowed}, not {request.method}.")
            response.headers = [(b"allow", allowed.encode())]
            return response
        known = ", ".join(sorted({path for _, path in self._exact}))
        return _problem(404, "NotFoundError", f"There is no {request.path[:200]} here.", f"There are: {known}")


def _health(service: Any, request: Request) -> Response:
    return Response(body=b'{"status":"alive"}')


def _ready(service: Any, request: Request) -> Response:
    app: EndpointApp = service
    state = {
        "ready": app.ready,
        "endpoint": app.endpoint,
        "revision": app.revision,
        "draining": app.draining,
        "refused": app.refused,
    }
    return Response(status=200 if app.ready else 503, body=msgspec.json.encode(state))


def _metrics(service: Any, request: Request) -> Response:
    return Response(body=service.metrics.text(), content_type=CONTENT_TYPE)


def _problem(status: int, kind: str, message: str, help: str | None = None) -> Response:
    error = {"type": kind, "message": message, "help": help}
    return Response(status=status, body=msgspec.json.encode({"error": error}))


async def _send(send: Send, response: Response) -> None:
    if response.status == 503:
        response.headers = [*response.headers, (b"retry-after", b"1")]
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", b"%d" % len(response.body)),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


__all__ = ["JSON", "LARGE_BODY_BYTES", "MAX_BODY_BYTES", "EndpointApp"]
