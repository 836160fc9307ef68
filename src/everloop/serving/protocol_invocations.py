"""The scoring protocol of MLflow and SageMaker.

    POST /invocations   application/json: exactly one of `dataframe_split`, `dataframe_records`, `instances`, `inputs`
                        text/csv: with a header of input names, or without one in the order of the signature
                        application/vnd.apache.parquet, application/vnd.apache.arrow.stream
                        → {"predictions": […], "probabilities"?: […]}
                        with `Accept: application/vnd.apache.arrow.stream` as an Arrow table
    POST /endpoints/{endpoint}/invocations   the same, where SageMaker's runtime client asks
    GET  /execution-parameters               what a batch transform may ask for at once
    GET  /ping          200 while the endpoint answers
    GET  /version       everloop's version

Errors are {"error_code", "message"}; a content type that is not known gets 415. Sources: MLflow's scoring server;
SageMaker, "Use your own inference code with hosting services".
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import EverloopError, RequestError
from everloop.serving import arrow, foreign
from everloop.serving.exchange import Request, Response, Service
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.serving.live import Live

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_CODES = {400: "BAD_REQUEST", 403: "PERMISSION_DENIED", 404: "RESOURCE_DOES_NOT_EXIST", 503: "TEMPORARILY_UNAVAILABLE"}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _problem(status: int, error: EverloopError) -> bytes:
    return foreign.encode({"error_code": _CODES.get(status, "INTERNAL_ERROR"), "message": str(error)})


@foreign.speaking(_problem)
def invoke(service: Service, request: Request) -> Response:
    live = service.live(request)
    if "model" in request.params:
        live = foreign.named(service, request)
    kind = (request.header(b"content-type") or b"application/json").partition(b";")[0].strip().lower()
    if kind == b"application/json":
        rows = _json_rows(msgspec.json.decode(request.body), live)
    elif kind == b"text/csv":
        rows = _csv_rows(request.body.decode(), live)
    elif kind in (arrow.STREAM, arrow.FILE, *arrow.PARQUET):
        rows = arrow.read_frame(request.body, kind).to_dicts()
    else:
        told = RequestError(
            f"The content type '{kind[:100].decode('latin-1')}' is not taken.",
            help="Send application/json, text/csv, application/vnd.apache.parquet or …arrow.stream.",
        )
        return Response(status=415, body=_problem(400, told))
    columns = foreign.score(service, live, rows, request)
    if (request.header(b"accept") or b"").partition(b";")[0].strip().lower() == arrow.STREAM:
        return Response(
            body=arrow.answer_table(columns.answer, columns.ids), content_type=arrow.STREAM, answer=columns.answer
        )
    return foreign.respond(columns, columns.body())


def ping(service: Service, request: Request) -> Response:
    return Response(status=200 if service.ready else 503, body=b"\n")


def execution_parameters(service: Service, request: Request) -> Response:
    """How a batch transform may ask: SageMaker reads it where a container has it."""
    settings = service.settings
    body = {
        "MaxConcurrentTransforms": min(8, settings.max_in_flight),
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": max(1, settings.max_body_bytes >> 20),
    }
    return Response(body=foreign.encode(body))


def version(service: Service, request: Request) -> Response:
    return Response(body=VERSION.encode(), content_type=b"text/plain; charset=utf-8")


ROUTES = {
    ("POST", "/invocations"): invoke,
    ("POST", "/endpoints/{model}/invocations"): invoke,
    ("GET", "/execution-parameters"): execution_parameters,
    ("GET", "/ping"): ping,
    ("GET", "/version"): version,
}


def _json_rows(body: Any, live: Live) -> list[dict[str, Any]]:
    given = [form for form in _FORMS if isinstance(body, dict) and form in body]
    if len(given) != 1:
        raise RequestError(f"Send exactly one of {', '.join(_FORMS)}; got {', '.join(given) or 'none'}.")
    form, value = given[0], body[given[0]]
    if form == "dataframe_split":
        return _split_rows(value)
    if form == "dataframe_records" or form == "instances" or isinstance(value, list):
        return foreign.instances(value, live)
    if not isinstance(value, dict):
        raise RequestError("inputs: expected an object with one list for each input, or a list of rows.")
    columns = {name: cells if isinstance(cells, list) else [cells] for name, cells in value.items()}
    sizes = {len(cells) for cells in columns.values()}
    if len(sizes) != 1:
        raise RequestError("inputs: the lists of the inputs are not of one length.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _split_rows(value: Any) -> list[dict[str, Any]]:
    names = value.get("columns") if isinstance(value, dict) else None
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not isinstance(data, list):
        raise RequestError('dataframe_split: expected {"columns": [names], "data": [[values], …]}.')
    if len(set(names)) != len(names):
        raise RequestError("dataframe_split: a column is named twice.")
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            raise RequestError(f"dataframe_split.data[{number}]: expected a list of {len(names)} values.")
    return [dict(zip(names, row, strict=True)) for row in data]


def _csv_rows(text: str, live: Live) -> list[dict[str, Any]]:
    try:
        lines = [line for line in csv.reader(io.StringIO(text), strict=True) if line]
    except csv.Error as error:
        raise RequestError(f"The body is no CSV that can be read: {error}.") from None
    fields = live.fields
    names = list(live.signature.names)
    if lines and set(lines[0]) & set(fields):
        names = lines.pop(0)
    rows = []
    for number, line in enumerate(lines):
        if len(line) != len(names):
            raise RequestError(f"rows[{number}]: {len(line)} values for the columns {', '.join(names[:20])}.")
        kinds = [fields[name].type if name in fields else "string" for name in names]
        cells = (
            _cell(cell, kind, f"rows[{number}].{name}") for name, kind, cell in zip(names, kinds, line, strict=True)
        )
        rows.append(dict(zip(names, cells, strict=True)))
    return rows


def _cell(text: str, kind: str, where: str) -> Any:
    if not text:
        return None
    if kind in ("float", "int"):
        try:
            return foreign.plain(int(text) if kind == "int" and "." not in text else float(text), kind, where)
        except ValueError:
            raise RequestError(f"{where}: {text[:100]!r} is no number.") from None
    if kind == "bool":
        try:
            return _BOOLEANS[text.lower()]
        except KeyError:
            raise RequestError(f"{where}: {text[:100]!r} is neither true nor false.") from None
    return text
