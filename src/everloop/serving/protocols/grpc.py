"""The Open Inference Protocol, version 2, over gRPC: the six calls of `GRPCInferenceService` on a separate port.

Versions, checks, settings and the prediction log are the same as over REST: a call becomes the tensors that the REST
protocol reads, and the reply has the outputs that REST writes. Contents are typed or raw, and the reply uses the form
of the request. A token is sent as the metadata `authorization: Bearer …`. The client's deadline is respected. The
version that answered is in the initial metadata `x-everloop-version`.

Host names are not checked as they are over HTTP/1.1. A browser does not speak HTTP/2 without TLS, so a web page cannot
reach this port under any name.
Source: kserve/open-inference-protocol, open_inference_grpc.proto."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

from everloop.errors import (
    ConflictError,
    DeadlineError,
    EverloopError,
    InsufficientStorageError,
    MissingExtraError,
    NotFoundError,
    RequestError,
    TooLargeError,
    TrustError,
    UnavailableError,
    UsageError,
)
from everloop.http.connection import HEADERS_BYTES
from everloop.serving.protocols import inference_v2, protocol_common
from everloop.serving.protocols.grpc_limits import check_infer_request, plain_message
from everloop.serving.protocols.grpc_messages import SERVICE, messages
from everloop.serving.protocols.protocol import Request, Response, Service, late
from everloop.serving.protocols.tensors import FORMATS, Tensor, flat, pack, rows_of, take_binary
from everloop.serving.request_executor import LARGE_BODY_BYTES
from everloop.serving.throughput import TakesLong
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.serving.endpoint_app import EndpointApp
    from everloop.serving.endpoint_settings import EndpointSettings

logger = logging.getLogger("everloop.serving")

GRACE_S = 9
MOST_STREAMS = 1_000
"""Calls in flight on one connection."""
IDLE_MS = 600_000
"""How long a connection without calls stays open."""
_SMALL_BYTES = 64 << 10
OPEN_CALLS = ("ServerLive", "ServerReady")
"""Health checks, which need no token."""
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


class InferencePort:
    """A gRPC server in front of an endpoint's app, in the app's event loop. `start` and `stop` once each."""

    def __init__(self, app: EndpointApp, host: str, port: int) -> None:
        """Bind the port; 0 picks a free one, see `port`.

        Raises:
            MissingExtraError: grpcio is not installed.
            ConflictError: the port cannot be used.
        """
        try:
            import grpc
        except ImportError:
            raise MissingExtraError.of("The Open Inference Protocol over gRPC", "grpcio", "grpc") from None
        self._app = app
        self._grpc = grpc
        limit = app.service.settings.max_body_bytes
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            # Messages arrive as they were sent, and are decompressed within the limits; see `grpc_limits`.
            ("grpc.per_message_decompression", 0),
            ("grpc.max_metadata_size", HEADERS_BYTES),
            ("grpc.max_concurrent_streams", MOST_STREAMS),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.max_connection_idle_ms", IDLE_MS),
        ]
        self._server = grpc.aio.server(options=[*options, ("grpc.so_reuseport", int(app.service.processes > 1))])
        message_types = messages()
        calls = {
            name: grpc.unary_unary_rpc_method_handler(
                self._call_function(name, call, message_types[f"{name}Request"]),
                response_serializer=message_types[f"{name}Response"].SerializeToString,
            )
            for name, call in _CALLS.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, calls),))
        app.routes.paths |= {f"/{SERVICE}/{name}" for name in _CALLS}
        try:
            self.port: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise ConflictError(f"Cannot listen for gRPC on {host}:{port}.", help="Use another port.") from error

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        """Accept no new calls, and let those in flight finish."""
        await self._server.stop(GRACE_S)

    def _call_function(self, name: str, call: Any, kind: Any) -> Any:
        app, codes = self._app, self._grpc.StatusCode

        async def respond(data: bytes, context: Any) -> Any:
            if app.metrics.in_flight.value >= app.most and name not in OPEN_CALLS:
                app.busy()
                context.set_trailing_metadata((("retry-after", "1"),))
                await context.abort(codes.UNAVAILABLE, "The endpoint is busy. Try again in a second.")
            began = perf_counter()
            headers = [(key.encode(), _bytes(value)) for key, value in context.invocation_metadata() or ()]
            request = Request("POST", f"/{SERVICE}/{name}", b"", began, headers)
            remaining = context.time_remaining()
            if remaining is not None:
                request.deadline = began + remaining
            app.metrics.in_flight.add()
            try:
                code, reply, response = await self._answered(name, call, kind, data, request)
            finally:
                app.metrics.in_flight.add(-1)
            app.sent(request, response)
            if code is not None:
                await context.abort(code, reply)
            if response.version is not None and response.result is not None:
                versions = response.version.encode("ascii", "replace").decode()
                await context.send_initial_metadata(
                    (
                        ("x-everloop-version", versions),
                        ("x-everloop-request", response.result.request_id),
                        *((name.decode(), value.decode()) for name, value in app.extra_headers),
                    )
                )
            return reply

        return respond

    async def _answered(
        self, name: str, call: Any, kind: Any, data: bytes, request: Request
    ) -> tuple[Any, Any, Response]:
        """A status and a text, or None and the message to send; and the response to count."""
        app, codes = self._app, self._grpc.StatusCode
        if name not in OPEN_CALLS:
            status, request.client = app.service.authorization.check(request.path, request.header(b"authorization"))
            if status == 401:
                return codes.UNAUTHENTICATED, "This endpoint requires a token.", Response(status=401)
            if status == 503:
                return codes.UNAVAILABLE, "Cannot check the token: the store cannot be read.", Response(status=503)
            if status == 429:
                return codes.RESOURCE_EXHAUSTED, "This client exceeds its rate limit.", Response(status=429)
        try:
            reply, response = await self._called(name, call, kind, data, request)
        except EverloopError as error:
            code = next((code for kind, code in _codes(codes) if isinstance(error, kind)), codes.INTERNAL)
            return code, str(error), Response(status=error.http_status)
        except Exception:
            logger.exception("%s failed", request.path)
            return codes.INTERNAL, "The endpoint failed; its log says why.", Response(status=500)
        if response.result is not None:
            response.version = response.result.version()
        return None, reply, response

    async def _called(self, name: str, call: Any, kind: Any, data: bytes, request: Request) -> tuple[Any, Response]:
        """Run a call: in the event loop's thread if it takes an instant, else in a worker thread."""
        app, service = self._app, self._app.service

        def work() -> tuple[Any, Response]:
            reply: tuple[Any, Response] = call(service, read_message(name, kind, data, service.settings), request)
            return reply

        large = len(data) > LARGE_BODY_BYTES or data[:2] == b"\x1f\x8b"
        if not large:
            try:
                return app.executor.run_inline(request, work)
            except TakesLong:
                pass
        return await app.executor.run_in_thread(request, work, service.settings, large=large)


def read_message(name: str, kind: Any, data: bytes, limits: EndpointSettings) -> Any:
    """Decode the message of a call, after checking its size.

    Raises:
        RequestError: it is damaged or has too many parts.
        TooLargeError: it has too many values.
    """
    from google.protobuf.message import DecodeError

    data = plain_message(data, limits)
    if name == "ModelInfer":
        check_infer_request(data, limits)
    elif len(data) > _SMALL_BYTES:
        raise TooLargeError(f"The message has {len(data)} bytes; the limit for {name} is {_SMALL_BYTES}.")
    try:
        return kind.FromString(data)
    except DecodeError:
        raise RequestError(f"The message is not a {name}Request.") from None


def _server_live(service: Service, message: Any, request: Request) -> tuple[Any, Response]:
    return messages()["ServerLiveResponse"](live=True), Response()


def _server_ready(service: Service, message: Any, request: Request) -> tuple[Any, Response]:
    return messages()["ServerReadyResponse"](ready=service.ready), Response()


def _server_metadata(service: Service, message: Any, request: Request) -> tuple[Any, Response]:
    return messages()["ServerMetadataResponse"](name="everloop", version=VERSION, extensions=[]), Response()


def _model_ready(service: Service, message: Any, request: Request) -> tuple[Any, Response]:
    _name(request, message.name, message.version)
    protocol_common.named(service, request)
    return messages()["ModelReadyResponse"](ready=service.ready), Response()


def _model_metadata(service: Service, message: Any, request: Request) -> tuple[Any, Response]:
    _name(request, message.name, message.version)
    reply = inference_v2.described(protocol_common.named(service, request))
    return messages()["ModelMetadataResponse"](**reply), Response()


def infer(service: Service, message: Any, request: Request) -> tuple[Any, Response]:
    """Score a `ModelInferRequest`.

    Raises:
        DeadlineError: its client no longer waits; nothing was scored.
    """
    if request.deadline is not None and perf_counter() > request.deadline:
        raise late()
    _name(request, message.model_name, message.model_version)
    loaded = protocol_common.named(service, request)
    raw = list(message.raw_input_contents)
    tensors = _tensors(message, raw, loaded.settings)
    wanted = [one.name for one in message.outputs] or None
    inference_v2.check_wanted(loaded, wanted)
    columns = protocol_common.score(service, loaded, rows_of(tensors, loaded), request)
    reply = messages()["ModelInferResponse"](
        model_name=message.model_name,
        model_version=inference_v2.versions_of(columns),
        id=message.id or columns.result.request_id,
    )
    for name, datatype, shape, values in inference_v2.outputs_of(columns, loaded, wanted):
        output = reply.outputs.add(name=name, datatype=datatype, shape=shape)
        cells = flat(values)
        if raw:
            reply.raw_output_contents.append(pack(cells, datatype))
        elif datatype == "BYTES":
            output.contents.bytes_contents.extend(str(cell).encode() for cell in cells)
        else:
            getattr(output.contents, CONTENTS[datatype]).extend(cells)
    return reply, Response(result=columns.result)


_CALLS = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ServerMetadata": _server_metadata,
    "ModelReady": _model_ready,
    "ModelMetadata": _model_metadata,
    "ModelInfer": infer,
}


def _tensors(message: Any, raw: list[bytes], limits: EndpointSettings) -> list[Tensor]:
    tensors = [Tensor(one.name, list(one.shape), one.datatype) for one in message.inputs]
    if raw:
        if len(raw) != len(tensors):
            raise RequestError(f"There are {len(raw)} raw contents for {len(tensors)} tensors.")
        for tensor, part in zip(tensors, raw, strict=True):
            tensor.parameters["binary_data_size"] = len(part)
        take_binary(tensors, b"".join(raw), limits)
        return tensors
    for tensor, one in zip(tensors, message.inputs, strict=True):
        field = CONTENTS.get(tensor.datatype)
        if field is None:
            raise RequestError(
                f"{tensor.name}: '{tensor.datatype[:50]}' has no typed contents.", help=", ".join(("BYTES", *FORMATS))
            )
        values: list[Any] = list(getattr(one.contents, field))
        if tensor.datatype == "BYTES":
            try:
                values = [value.decode() for value in values]
            except UnicodeDecodeError:
                raise RequestError(f"{tensor.name}: an element is not UTF-8 text.") from None
        tensor.data = values
    return tensors


def _name(request: Request, name: str, version: str) -> None:
    request.params = {"model": name, "version": version} if version else {"model": name}


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("latin-1", "replace")


def _codes(codes: Any) -> tuple[tuple[type[EverloopError], Any], ...]:
    return (
        (TooLargeError, codes.RESOURCE_EXHAUSTED),
        (RequestError, codes.INVALID_ARGUMENT),
        (UsageError, codes.INVALID_ARGUMENT),
        (NotFoundError, codes.NOT_FOUND),
        (TrustError, codes.PERMISSION_DENIED),
        (DeadlineError, codes.DEADLINE_EXCEEDED),
        (UnavailableError, codes.UNAVAILABLE),
        (InsufficientStorageError, codes.RESOURCE_EXHAUSTED),
    )


__all__ = ["InferencePort"]
