"""Access logs and traces: a log record and a span for each request. Both are off by default.

Requests are logged by the logger `everloop.requests` at level INFO, with all fields as attributes of the record. Only
`write_requests`, which the command line calls, configures that logger. Spans are exported with OpenTelemetry if its own
environment variables name a target: `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`. A client's
`traceparent` is continued.
"""

from __future__ import annotations

import logging
import os
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from everloop.errors import MissingExtraError
from everloop.stores.clock import system_micros
from everloop.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.serving.protocols.protocol import Request, Response

    Observe = Callable[[Request, Response], None]

requests = logging.getLogger("everloop.requests")

FORM_VARIABLE = "EVERLOOP_LOG_REQUESTS"
_EXPORTER_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def observers(endpoint: str) -> list[Observe]:
    """The functions to call for every request of an endpoint: the access log, tracing, or none.

    Raises:
        MissingExtraError: tracing is configured and OpenTelemetry is not installed.
    """
    found: list[Observe] = []
    form = os.environ.get(FORM_VARIABLE)
    if form in ("json", "text") and not requests.handlers:
        write_requests(form)  # type: ignore[arg-type]
    if requests.isEnabledFor(logging.INFO) and requests.hasHandlers():
        found.append(_log_request(endpoint))
    if any(os.environ.get(name) for name in _EXPORTER_VARIABLES):
        found.append(_trace_request(endpoint, _tracer(endpoint)))
    return found


def write_requests(form: Literal["json", "text"]) -> None:
    """Write a line for each request to standard error, in this process and in those that it starts."""
    os.environ[FORM_VARIABLE] = form
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(message)s"))
    requests.handlers[:] = [handler]
    requests.setLevel(logging.INFO)
    requests.propagate = False


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        return msgspec.json.encode({"at": record.created, "logger": record.name, **fields}).decode()


def _log_request(endpoint: str) -> Observe:
    def observe(request: Request, response: Response) -> None:
        fields = _fields_of(endpoint, request, response)
        requests.info(
            "%s %s %s %.6f %s",
            fields["method"],
            fields["path"],
            fields["status"],
            fields["seconds"],
            fields["request"] or "-",
            extra={"fields": fields},
        )

    return observe


def _trace_request(endpoint: str, tracer: Any) -> Observe:
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    def observe(request: Request, response: Response) -> None:
        fields = _fields_of(endpoint, request, response)
        now = system_micros() * 1000
        carrier = {
            key.decode("latin-1"): value.decode("latin-1")
            for key, value in request.headers
            if key in (b"traceparent", b"tracestate")
        }
        span = tracer.start_span(
            f"{fields['method']} {fields['path']}",
            context=propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=now - int(fields["seconds"] * 1e9),
            attributes={
                "http.request.method": fields["method"],
                "http.route": fields["path"],
                "http.response.status_code": fields["status"],
                "everloop.endpoint": endpoint,
                **{
                    f"everloop.{name}": fields[name]
                    for name in ("version", "request", "rows")
                    if fields[name] is not None
                },
            },
        )
        if response.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(end_time=now)

    return observe


def _fields_of(endpoint: str, request: Request, response: Response) -> dict[str, Any]:
    result = response.result
    return {
        "endpoint": endpoint,
        "method": request.method,
        "path": request.path[:200],
        "status": response.status,
        "seconds": perf_counter() - request.began,
        "client": request.client,
        "request": None if result is None else result.request_id,
        "version": response.version,
        "rows": None if result is None else result.rows,
    }


def _tracer(endpoint: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingExtraError.of("Tracing an endpoint", "opentelemetry-sdk and its OTLP exporter", "otel") from None
    named = os.environ.get("OTEL_SERVICE_NAME", f"everloop-{endpoint}")
    provider = TracerProvider(resource=Resource.create({"service.name": named, "service.version": VERSION}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("everloop.serving", VERSION)


__all__ = ["observers", "write_requests"]
