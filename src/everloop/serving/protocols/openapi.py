"""GET /openapi.json: the OpenAPI document of this endpoint, with the inputs of the model that it serves now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.serving.protocols.protocol import Request, Response, Service
from everloop.serving.protocols.protocol_common import encode
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.packages.signature import Input
    from everloop.serving.loaded_endpoint import LoadedEndpoint

_TYPES: dict[str, dict[str, str]] = {
    "float": {"type": "number"},
    "int": {"type": "integer"},
    "bool": {"type": "boolean"},
    "string": {"type": "string"},
    "date": {"type": "string", "format": "date"},
    "datetime": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "duration": {"type": "string", "format": "duration"},
}

_ARROW = "application/vnd.apache.arrow.stream"
_PARQUET = "application/vnd.apache.parquet"
_FLAGS = {"type": "array", "items": {"type": "object"}}
_EXPLANATIONS = {"type": "array", "items": {"type": "object"}}
_TENSOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "data": {"type": "array"},
    },
    "required": ["name", "shape", "datatype"],
}


def openapi(service: Service, request: Request) -> Response:
    loaded = service.loaded_endpoint()
    return Response(body=loaded.cached("openapi", lambda full: encode(document(full))))


ROUTES = {("GET", "/openapi.json"): openapi}


def document(loaded: LoadedEndpoint) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an endpoint."""
    rows = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Row"}}
    keys = {"type": "array", "items": {"type": ["string", "number", "null"]}}
    number: dict[str, Any] = {"type": "number"}
    task = loaded.champion.task
    answer_schema: dict[str, Any] = {
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "ids": {"type": "array", "items": {"type": "string"}},
        "predictions": {
            "type": "array",
            "items": number if task == "regression" else {"enum": list(loaded.signature.classes)},
        },
    }
    probability = {"type": "array", "items": number} if task == "multiclass" else number
    if task != "regression":
        answer_schema["probabilities"] = {"type": "array", "items": probability}
    optional = {"flags": _FLAGS, "explanations": _EXPLANATIONS, "versions": {"type": "array"}}
    times = {"type": "array", "items": {"type": ["string", "null"], "format": "date-time"}}
    native = _object({"rows": rows, "keys": keys, "event_at": times, "explain": {"type": "boolean"}}, ["rows"])
    native_answer = _object({**answer_schema, **optional}, list(answer_schema))
    values = {"type": "array", "items": {}}
    columns = _object({"predictions": values, "probabilities": values, **optional}, ["predictions"])
    instances = _object({"instances": rows}, ["instances"])
    explained = _object({**columns["properties"]}, ["predictions", "explanations"])
    split = _object(
        {"columns": {"const": list(loaded.signature.names)}, "data": {"type": "array", "items": _row_list(loaded)}},
        ["columns", "data"],
    )
    forms = {
        "oneOf": [
            _object({"dataframe_records": rows}, ["dataframe_records"]),
            _object({"dataframe_split": split}, ["dataframe_split"]),
            instances,
            _object({"inputs": rows}, ["inputs"]),
        ]
    }
    tensors = _object({"id": {"type": "string"}, "inputs": {"type": "array", "items": _TENSOR}}, ["inputs"])
    outputs = _object(
        {"model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"}}
        | {"outputs": {"type": "array", "items": _TENSOR}},
        ["model_name", "outputs"],
    )
    label = _object(
        {
            "key": {"type": ["string", "integer"]},
            "value": {"type": ["boolean", "integer", "number", "string"]},
            "event_at": {"type": ["string", "null"], "format": "date-time"},
        },
        ["key", "value"],
    )
    table: dict[str, Any] = {_ARROW: {}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": loaded.name,
            "version": loaded.champion.version,
            "description": f"Served by everloop {VERSION}.",
        },
        "paths": {
            "/predict": {"post": _operation("predict", native, native_answer, more=table, more_answers=table)},
            "/labels": {
                "post": _operation(
                    "labels", _object({"labels": {"type": "array", "items": label}}, ["labels"]), {"type": "object"}
                )
            },
            "/invocations": {
                "post": _operation(
                    "invocations", forms, columns, more={"text/csv": {}, _PARQUET: {}, **table}, more_answers=table
                )
            },
            f"/v1/models/{loaded.name}:predict": {"post": _operation("kserve_v1", instances, columns)},
            f"/v1/models/{loaded.name}:explain": {"post": _operation("kserve_v1_explain", instances, explained)},
            f"/v1/models/{loaded.name}": {"get": _get("kserve_v1_model")},
            f"/v2/models/{loaded.name}/infer": {"post": _operation("inference_v2", tensors, outputs)},
            f"/v2/models/{loaded.name}": {"get": _get("inference_v2_model")},
            f"/v2/models/{loaded.name}/ready": {"get": _get("inference_v2_ready")},
            "/v2": {"get": _get("inference_v2_server")},
            "/score": {"post": _operation("score", instances, columns)},
            "/": {"get": _get("describe")},
            "/health": {"get": _get("health")},
            "/ready": {"get": _get("ready")},
            "/ping": {"get": _get("ping")},
            "/execution-parameters": {"get": _get("execution_parameters")},
            "/metrics": {"get": _get("metrics", "text/plain")},
        },
        "components": {
            "schemas": {
                "Row": {
                    **_object(
                        {item.name: _schema(item) for item in loaded.signature.inputs},
                        [item.name for item in loaded.signature.inputs],
                    ),
                    # Columns that training ignored may be sent; any other name is misspelled.
                    "additionalProperties": bool(loaded.signature.ignored),
                }
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _row_list(loaded: LoadedEndpoint) -> dict[str, Any]:
    items = [_schema(item) for item in loaded.signature.inputs]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _schema(item: Input) -> dict[str, Any]:
    schema: dict[str, Any] = dict(_TYPES[item.type])
    if item.nullable:
        schema["type"] = [schema["type"], "null"]
    if item.closed:
        schema["enum"] = [*item.categories, *([None] if item.nullable else [])]
    elif item.categories:
        schema["examples"] = list(item.categories[:12])
    return schema


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _operation(
    name: str,
    body: dict[str, Any],
    answer_schema: dict[str, Any],
    *,
    more: dict[str, Any] | None = None,
    more_answers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A route that takes and returns JSON, and `more` content types."""

    def content(schema: dict[str, Any], others: dict[str, Any] | None) -> dict[str, Any]:
        return {"application/json": {"schema": schema}, **(others or {})}

    headers = [
        {"name": "X-Request-Timeout-Ms", "in": "header", "schema": {"type": "integer", "minimum": 1}},
        {"name": "X-Everloop-Version", "in": "header", "schema": {"type": "string"}},
    ]
    return {
        "operationId": name,
        "parameters": headers,
        "requestBody": {"required": True, "content": content(body, more)},
        "responses": {
            "200": {
                "description": "One prediction per row, in order.",
                "content": content(answer_schema, more_answers),
            },
            "4XX": {"description": "The request is invalid; the message names row and input."},
            "503": {"description": "No version is in use, or too many requests are in flight."},
        },
    }


def _get(name: str, kind: str = "application/json") -> dict[str, Any]:
    """A route without a body."""
    return {
        "operationId": name,
        "responses": {
            "200": {"description": "The current state.", "content": {kind: {}}},
            "4XX": {"description": "It does not exist, or requires a token."},
            "503": {"description": "No version is in use."},
        },
    }
