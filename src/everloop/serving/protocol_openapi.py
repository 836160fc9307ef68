"""GET /openapi.json: how to ask this endpoint, with the inputs of the model that it serves now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.serving.exchange import Request, Response, Service
from everloop.serving.foreign import encode
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.models.signature import Input
    from everloop.serving.live import Live

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


def openapi(service: Service, request: Request) -> Response:
    live = service.live()
    return Response(body=live.made("openapi", lambda whole: encode(document(whole))))


ROUTES = {("GET", "/openapi.json"): openapi}


def document(live: Live) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an endpoint."""
    rows = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Row"}}
    keys = {"type": "array", "items": {"type": ["string", "integer", "null"]}}
    number: dict[str, Any] = {"type": "number"}
    task = live.champion.task
    answer: dict[str, Any] = {
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "ids": {"type": "array", "items": {"type": "string"}},
        "predictions": {
            "type": "array",
            "items": number if task == "regression" else {"enum": list(live.signature.classes)},
        },
    }
    if task != "regression":
        probability = {"type": "array", "items": number} if task == "multiclass" else number
        answer["probabilities"] = {"type": "array", "items": probability}
    values = {"type": "array", "items": {}}
    native = _object({"rows": rows, "keys": keys}, ["rows"])
    native_answer = _object(answer, list(answer))
    columns = _object({"predictions": values, "probabilities": values}, ["predictions"])
    instances = _object({"instances": rows}, ["instances"])
    return {
        "openapi": "3.1.0",
        "info": {"title": live.name, "version": live.champion.version, "description": f"Served by everloop {VERSION}."},
        "paths": {
            "/predict": {"post": _operation("predict", native, native_answer)},
            "/invocations": {
                "post": _operation("invocations", _object({"dataframe_records": rows}, ["dataframe_records"]), columns)
            },
            f"/v1/models/{live.name}:predict": {"post": _operation("kserve_v1", instances, columns)},
            "/score": {"post": _operation("score", instances, columns)},
        },
        "components": {
            "schemas": {
                "Row": {
                    **_object(
                        {item.name: _schema(item) for item in live.signature.inputs},
                        [item.name for item in live.signature.inputs],
                    ),
                    # What training was offered and left out may be sent; anything else is a misspelled name.
                    "additionalProperties": bool(live.signature.ignored),
                }
            }
        },
    }


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


def _operation(name: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"application/json": {"schema": schema}}

    return {
        "operationId": name,
        "requestBody": {"required": True, "content": content(body)},
        "responses": {
            "200": {"description": "One answer for each row, in order.", "content": content(answer)},
            "4XX": {"description": "The request cannot be used; the message names row and input."},
            "503": {"description": "No version is in use, or too many requests are on their way."},
        },
    }
