"""Adds a working example to the response of a refused request, in the form of the route that it was sent to.

Each protocol's error keeps its own form. everloop's own error gets `example` and `curl` beside `message` and `help`.
Errors of other servers have a single text, so the working command is appended to it.
"""

from __future__ import annotations

import shlex
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.serving.protocols.protocol import JSON, Request, Response
from everloop.serving.protocols.tensors import DATATYPES

if TYPE_CHECKING:
    from everloop.packages.signature import Input
    from everloop.serving.loaded_endpoint import LoadedEndpoint

SHOWN = (400, 405, 415, 422)
"""The statuses of requests that a client can correct."""
ADDRESS = b"x-everloop-address"
"""Header in which a proxy (the control plane) sends the client's address for these routes: `host/prefix`."""
_encode = msgspec.json.Encoder(enc_hook=str).encode
_VALUES: dict[str, Any] = {
    "float": 1.5,
    "int": 1,
    "bool": True,
    "string": "text",
    "date": date(2030, 1, 31),
    "datetime": datetime(2030, 1, 31, 12, tzinfo=UTC),
    "time": time(12),
    "duration": timedelta(hours=1),
}


def show_example(response: Response, request: Request, loaded: LoadedEndpoint) -> Response:
    """Add a body that this model accepts; no change if the route takes no body."""
    body = valid_body(request.path, loaded)
    if response.content_type != JSON or body is None:
        return response
    try:
        payload: Any = msgspec.json.decode(response.body)
    except msgspec.DecodeError:
        return response
    curl = _curl(request, loaded, body)
    error = payload.get("error") if isinstance(payload, dict) else None
    if isinstance(error, dict):
        hint = _hint(request)
        error |= {"example": body, "curl": curl} | (
            {"help": f"{error.get('help') or ''} {hint}".strip()} if hint else {}
        )
    elif isinstance(error, str):
        payload["error"] = " ".join(filter(None, (error, _hint(request), f"This works: {curl}")))
    elif isinstance(payload, dict) and isinstance(payload.get("message"), str):
        payload["message"] = " ".join(filter(None, (payload["message"], _hint(request), f"This works: {curl}")))
    else:
        return response
    response.body = _encode(payload)
    return response


def valid_body(path: str, loaded: LoadedEndpoint) -> dict[str, Any] | None:
    """A JSON body that the route accepts; None if it takes none."""
    row = example_row(loaded)
    if path == "/predict":
        return {"rows": [row]}
    if path == "/labels":
        classes = loaded.signature.classes
        return {"labels": [{"key": "customer-7", "value": classes[0] if classes else 1.5}]}
    if path.endswith("/invocations"):
        return {"dataframe_records": [row]}
    if path.endswith((":predict", ":explain")) or path == "/score":
        return {"instances": [row]}
    if path.startswith("/v2/models/") and path.endswith("/infer"):
        kinds = {item.name: DATATYPES.get(item.type, "BYTES") for item in loaded.signature.inputs}
        return {
            "inputs": [
                {"name": name, "shape": [1], "datatype": kinds[name], "data": [value]} for name, value in row.items()
            ]
        }
    return None


def example_row(loaded: LoadedEndpoint) -> dict[str, Any]:
    """A row that the champion accepts: its package's example, or a made-up one if the log hides inputs."""
    example = loaded.champion.predictor.example
    settings = loaded.settings
    if example is None or settings.log_drop or settings.log_hash:
        example = {item.name: _value(item) for item in loaded.signature.inputs}
    row: dict[str, Any] = msgspec.json.decode(_encode(example))
    return row


def _value(item: Input) -> Any:
    if item.categories:
        return item.categories[0]
    if item.low is not None and item.high is not None:
        middle = (item.low + item.high) / 2
        return round(middle) if item.type == "int" else round(middle, 3)
    return _VALUES[item.type]


def _hint(request: Request) -> str | None:
    """Explain common mistakes that the decoder's message does not explain."""
    if request.method not in ("POST", "PUT"):
        return None
    if not request.body.strip():
        return "The body is empty."
    if any(word in request.body for word in (b"NaN", b"Infinity")):
        return "JSON has no NaN and no infinity: send null for a missing value."
    if request.path == "/predict" and request.body.lstrip()[:1] == b"[":
        return "Put the list of rows into an object, under 'rows'."
    if request.path == "/predict" and any(word in request.body[:40] for word in (b'"instances"', b'"dataframe_')):
        return (
            f"This is a body for {'/v1/models/NAME:predict' if b'instances' in request.body[:40] else '/invocations'}."
        )
    return None


def _curl(request: Request, loaded: LoadedEndpoint, body: dict[str, Any]) -> str:
    host = (request.header(ADDRESS) or request.header(b"host") or b"127.0.0.1:8080").decode("latin-1")
    path = request.path.replace("{model}", loaded.name).replace("{version}", str(loaded.champion.number))
    data = shlex.quote(_encode(body).decode())
    return f"curl -X POST {shlex.quote(f'http://{host}{path}')} -H 'Content-Type: application/json' -d {data}"


__all__ = ["ADDRESS", "SHOWN", "example_row", "show_example", "valid_body"]
