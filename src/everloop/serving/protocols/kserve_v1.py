"""The V1 protocol of KServe, and the protocols of Vertex AI and Azure, which use the same body.

    GET  /v1/models                    → {"models": [name]}
    GET  /v1/models/{model}            → {"name", "ready"}
    POST /v1/models/{model}:predict    {"instances": [{…} or […], …]} → {"predictions": […], "probabilities"?: […]}
    POST /v1/models/{model}:explain    the same → also {"explanations": [{"bias", "contributions": {input: …}}, …]}
    POST /score                        the same: Azure's scoring route; `GET /` is its health check
    $AIP_PREDICT_ROUTE, $AIP_HEALTH_ROUTE   the same, at the paths in Vertex AI's environment variables

Source: KServe's V1 protocol; Vertex AI, custom container requirements for prediction.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import EverloopError, RequestError
from everloop.serving.protocols import protocol_common
from everloop.serving.protocols.protocol import Handle, Request, Response, Service
from everloop.serving.protocols.unpacked_limits import check_json

if TYPE_CHECKING:
    from collections.abc import Mapping


def _problem(status: int, error: EverloopError) -> bytes:
    return protocol_common.encode({"error": str(error)})


_with_errors = protocol_common.with_errors(_problem)


@_with_errors
def models(service: Service, request: Request) -> Response:
    return Response(body=protocol_common.encode({"models": [service.loaded_endpoint().name]}))


@_with_errors
def model(service: Service, request: Request) -> Response:
    loaded = protocol_common.named(service, request)
    return Response(
        status=200 if service.ready else 503, body=protocol_common.encode({"name": loaded.name, "ready": True})
    )


@_with_errors
def predict(service: Service, request: Request) -> Response:
    loaded = protocol_common.named(service, request)
    check_json(request.body, loaded.settings)
    body: Any = msgspec.json.decode(request.body)
    if not isinstance(body, dict) or "instances" not in body:
        raise RequestError('Send {"instances": [{…}, …]}, one object per row.')
    rows = protocol_common.instances(body["instances"], loaded)
    columns = protocol_common.score(service, loaded, rows, request, explain=request.path.endswith(":explain"))
    return protocol_common.respond(columns, columns.body())


def healthy(service: Service, request: Request) -> Response:
    return Response(status=200 if service.ready else 503, body=protocol_common.encode({"ready": service.ready}))


def routes(environment: Mapping[str, str]) -> dict[tuple[str, str], Handle]:
    """The routes, including those that Vertex AI sets in the environment."""
    found: dict[tuple[str, str], Handle] = {
        ("GET", "/v1/models"): models,
        ("GET", "/v1/models/{model}"): model,
        ("POST", "/v1/models/{model}:predict"): predict,
        ("POST", "/v1/models/{model}:explain"): predict,
        ("POST", "/score"): predict,
    }
    for name, method, handle in (("AIP_PREDICT_ROUTE", "POST", predict), ("AIP_HEALTH_ROUTE", "GET", healthy)):
        path = environment.get(name, "")
        # Everloop's own routes, such as /health, are not replaced. Braces would be taken for parameters.
        if path.startswith("/") and "{" not in path and path not in ("/health", "/ready", "/metrics", "/predict"):
            found[method, path] = handle
    return found


ROUTES = routes(os.environ)
