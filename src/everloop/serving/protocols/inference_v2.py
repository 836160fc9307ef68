"""The Open Inference Protocol, version 2, over REST, with Triton's binary tensors.

    GET  /v2, /v2/health/live, /v2/health/ready, /v2/models
    GET  /v2/models/{model}[/versions/{version}][/ready]
    POST /v2/models/{model}[/versions/{version}]/infer
    POST /v2/repository/index

A body is parsed as JSON regardless of its content type. With `Inference-Header-Content-Length`, binary tensors follow
the JSON. Outputs are `predictions` and, if the model has classes, `probabilities`. Errors are {"error": text}.
Source: kserve/open-inference-protocol, open_inference_rest.yaml; Triton's extension_binary_data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import EverloopError, RequestError
from everloop.serving.protocols import protocol_common
from everloop.serving.protocols.protocol import Request, Response, Service
from everloop.serving.protocols.tensors import DATATYPES, Tensor, flat, pack, rows_of, take_binary
from everloop.serving.protocols.unpacked_limits import check_json
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.serving.loaded_endpoint import LoadedEndpoint

_BINARY = b"inference-header-content-length"


class _Wanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Body(msgspec.Struct):
    inputs: list[Tensor]
    id: str | None = None
    outputs: list[_Wanted] | None = None
    parameters: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(_Body)


def _problem(status: int, error: EverloopError) -> bytes:
    return protocol_common.encode({"error": str(error)})


_with_errors = protocol_common.with_errors(_problem)


def server(service: Service, request: Request) -> Response:
    return Response(
        body=protocol_common.encode({"name": "everloop", "version": VERSION, "extensions": ["binary_tensor_data"]})
    )


def live(service: Service, request: Request) -> Response:
    return Response(body=b'{"live":true}')


def ready(service: Service, request: Request) -> Response:
    return Response(status=200 if service.ready else 503, body=protocol_common.encode({"ready": service.ready}))


@_with_errors
def models(service: Service, request: Request) -> Response:
    return Response(body=protocol_common.encode({"models": [service.loaded_endpoint().name]}))


@_with_errors
def index(service: Service, request: Request) -> Response:
    loaded = service.loaded_endpoint()
    entries = [
        {"name": loaded.name, "version": protocol_common.short(scorer.version), "state": "READY", "reason": ""}
        for scorer in loaded.scorers
    ]
    return Response(body=protocol_common.encode(entries))


@_with_errors
def model_ready(service: Service, request: Request) -> Response:
    loaded = protocol_common.named(service, request)
    return Response(
        status=200 if service.ready else 503, body=protocol_common.encode({"name": loaded.name, "ready": service.ready})
    )


@_with_errors
def metadata(service: Service, request: Request) -> Response:
    return Response(body=protocol_common.encode(described(protocol_common.named(service, request))))


def described(loaded: LoadedEndpoint) -> dict[str, Any]:
    """A model's metadata: its versions, inputs and outputs."""
    outputs = [{"name": "predictions", "datatype": _label_type(loaded), "shape": [-1]}]
    if loaded.champion.task != "regression":
        shape = [-1] if loaded.champion.task == "binary" else [-1, len(loaded.signature.classes)]
        outputs.append({"name": "probabilities", "datatype": "FP64", "shape": shape})
    return {
        "name": loaded.name,
        "versions": [protocol_common.short(scorer.version) for scorer in loaded.scorers],
        "platform": "everloop",
        "inputs": [
            {"name": item.name, "datatype": DATATYPES.get(item.type, "BYTES"), "shape": [-1]}
            for item in loaded.signature.inputs
        ],
        "outputs": outputs,
    }


@_with_errors
def infer(service: Service, request: Request) -> Response:
    loaded = protocol_common.named(service, request)
    head, tail = request.body, b""
    header = request.header(_BINARY)
    if header is not None:
        if not header.isdigit() or len(header) > 12 or int(header) > len(request.body):
            raise RequestError("Inference-Header-Content-Length: expected the length of the JSON part, in bytes.")
        head, tail = request.body[: int(header)], request.body[int(header) :]
    check_json(head, loaded.settings)
    body = _decoder.decode(head)
    take_binary(body.inputs, tail, loaded.settings)
    wanted = None if body.outputs is None else [one.name for one in body.outputs]
    check_wanted(loaded, wanted)
    columns = protocol_common.score(service, loaded, rows_of(body.inputs, loaded), request)
    outputs, binary = _outputs(columns, loaded, body)
    answer = {
        "model_name": request.params["model"],
        "model_version": versions_of(columns),
        "id": body.id or columns.result.request_id,
        "outputs": outputs,
    }
    response = protocol_common.respond(columns, answer)
    if binary:
        length = len(response.body)
        response.headers = [*response.headers, (_BINARY, b"%d" % length)]
        response.content_type = b"application/octet-stream"
        response.body += b"".join(binary)
    return response


def versions_of(columns: protocol_common.Columns) -> str:
    """The numbers of the versions that answered, comma-separated."""
    return ",".join(dict.fromkeys(protocol_common.short(version) for version in columns.versions))


def check_wanted(loaded: LoadedEndpoint, wanted: list[str] | None) -> None:
    """Check the outputs that a request names, before it is scored.

    Raises:
        RequestError: an output does not exist, or is named twice.
    """
    there = ("predictions",) if loaded.champion.task == "regression" else ("predictions", "probabilities")
    for position, name in enumerate(wanted or ()):
        if name not in there:
            raise RequestError(f"There is no output '{name[:100]}'.", help=f"Outputs: {', '.join(there)}")
        if position >= len(there) or wanted is None or name in wanted[:position]:
            raise RequestError(f"The output '{name}' is named twice.")


def outputs_of(
    columns: protocol_common.Columns, loaded: LoadedEndpoint, wanted: list[str] | None
) -> list[tuple[str, str, list[int], list[Any]]]:
    """Name, datatype, shape and values of the `wanted` outputs (see `check_wanted`); None: of all."""
    ready: dict[str, tuple[str, list[Any]]] = {"predictions": (_label_type(loaded), columns.predictions)}
    if columns.probabilities is not None:
        ready["probabilities"] = ("FP64", columns.probabilities)
    outputs = []
    for name in ready if wanted is None else wanted:
        datatype, values = ready[name]
        shape = [len(values), len(values[0])] if isinstance(values[0], list) else [len(values)]
        outputs.append((name, datatype, shape, values))
    return outputs


def _outputs(
    columns: protocol_common.Columns, loaded: LoadedEndpoint, body: _Body
) -> tuple[list[dict[str, Any]], list[bytes]]:
    everything = body.parameters.get("binary_data_output") is True
    wanted = None if body.outputs is None else [one.name for one in body.outputs]
    binary_wanted = {one.name: one.parameters.get("binary_data", everything) for one in body.outputs or ()}
    outputs, binary = [], []
    for name, datatype, shape, values in outputs_of(columns, loaded, wanted):
        output: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
        if binary_wanted.get(name, everything) is True:
            binary.append(pack(flat(values), datatype))
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = [str(value) for value in values] if datatype == "BYTES" else flat(values)
        outputs.append(output)
    return outputs, binary


def _label_type(loaded: LoadedEndpoint) -> str:
    classes = loaded.signature.classes
    if loaded.champion.task == "regression":
        return "FP64"
    if all(isinstance(value, bool) for value in classes):
        return "BOOL"
    if all(isinstance(value, int) for value in classes):
        return "INT64"
    return "FP64" if all(isinstance(value, int | float) for value in classes) else "BYTES"


_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"

ROUTES = {
    ("GET", "/v2"): server,
    ("GET", "/v2/health/live"): live,
    ("GET", "/v2/health/ready"): ready,
    ("GET", "/v2/models"): models,
    ("POST", "/v2/repository/index"): index,
    ("GET", _MODEL): metadata,
    ("GET", f"{_MODEL}/ready"): model_ready,
    ("POST", f"{_MODEL}/infer"): infer,
    ("GET", _VERSION): metadata,
    ("GET", f"{_VERSION}/ready"): model_ready,
    ("POST", f"{_VERSION}/infer"): infer,
}
