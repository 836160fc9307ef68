"""The scoring protocol of MLflow and SageMaker.

    POST /invocations   application/json: exactly one of `dataframe_split`, `dataframe_records`, `instances`, `inputs`
                        text/csv: with a header of input names, or without one in the order of the signature
                        application/vnd.apache.parquet, application/vnd.apache.arrow.stream
                        → {"predictions": […], "probabilities"?: […]}
                        with `Accept: application/vnd.apache.arrow.stream` as an Arrow table
    POST /endpoints/{endpoint}/invocations   the same, for SageMaker's runtime client
    GET  /execution-parameters               limits for a SageMaker batch transform
    GET  /ping          200 while the endpoint answers
    GET  /version       everloop's version

Errors are {"error_code", "message"}; an unknown content type gets 415. Sources: MLflow's scoring server;
SageMaker, "Use your own inference code with hosting services".
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import EverloopError, RequestError
from everloop.http.error_bodies import clipped
from everloop.serving.protocols import arrow_bodies, protocol_common
from everloop.serving.protocols.protocol import Request, Response, Service
from everloop.serving.protocols.unpacked_limits import check_cells, check_csv, check_json, check_rows, checked_lines
from everloop.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from everloop.serving.loaded_endpoint import LoadedEndpoint

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_CODES = {
    400: "BAD_REQUEST",
    413: "INVALID_PARAMETER_VALUE",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    503: "TEMPORARILY_UNAVAILABLE",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_LINES = re.compile(rb"[^\r\n]+(?:\r\n|\r|\n)?|\r\n|\r|\n")


def _problem(status: int, error: EverloopError) -> bytes:
    return protocol_common.encode({"error_code": _CODES.get(status, "INTERNAL_ERROR"), "message": str(error)})


@protocol_common.with_errors(_problem)
def invoke(service: Service, request: Request) -> Response:
    loaded = service.loaded_endpoint(request)
    if "model" in request.params:
        loaded = protocol_common.named(service, request)
    kind = (request.header(b"content-type") or b"application/json").partition(b";")[0].strip().lower()
    if kind == b"application/json":
        check_json(request.body, loaded.settings)
        rows = _json_rows(msgspec.json.decode(request.body), loaded)
    elif kind == b"text/csv":
        check_csv(request.body, loaded.settings)
        rows = _csv_rows(request.body, loaded)
    elif kind in (arrow_bodies.STREAM, arrow_bodies.FILE, *arrow_bodies.PARQUET):
        rows = arrow_bodies.rows_of_frame(arrow_bodies.read_frame(request.body, loaded.settings, kind))
    else:
        error = RequestError(
            f"The content type '{kind[:100].decode('latin-1')}' is not supported.",
            help="Send application/json, text/csv, application/vnd.apache.parquet or …arrow.stream.",
        )
        return Response(status=415, body=_problem(400, error))
    columns = protocol_common.score(service, loaded, rows, request)
    if (request.header(b"accept") or b"").partition(b";")[0].strip().lower() == arrow_bodies.STREAM:
        return Response(
            body=arrow_bodies.result_table(columns.result, columns.ids),
            content_type=arrow_bodies.STREAM,
            result=columns.result,
        )
    return protocol_common.respond(columns, columns.body())


def ping(service: Service, request: Request) -> Response:
    return Response(status=200 if service.ready else 503, body=b"\n")


def execution_parameters(service: Service, request: Request) -> Response:
    """Limits for a batch transform, which SageMaker reads from the container."""
    settings = service.settings
    body = {
        "MaxConcurrentTransforms": min(8, settings.max_in_flight),
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": max(1, settings.max_body_bytes >> 20),
    }
    return Response(body=protocol_common.encode(body))


def version(service: Service, request: Request) -> Response:
    return Response(body=VERSION.encode(), content_type=b"text/plain; charset=utf-8")


ROUTES = {
    ("POST", "/invocations"): invoke,
    ("POST", "/endpoints/{model}/invocations"): invoke,
    ("GET", "/execution-parameters"): execution_parameters,
    ("GET", "/ping"): ping,
    ("GET", "/version"): version,
}


def _json_rows(body: Any, loaded: LoadedEndpoint) -> list[dict[str, Any]]:
    forms = [form for form in _FORMS if isinstance(body, dict) and form in body]
    if len(forms) != 1:
        raise RequestError(f"Send exactly one of {', '.join(_FORMS)}; got {', '.join(forms) or 'none'}.")
    form, value = forms[0], body[forms[0]]
    if form == "dataframe_split":
        return _split_rows(value)
    if form == "dataframe_records" or form == "instances" or isinstance(value, list):
        return protocol_common.instances(value, loaded)
    if not isinstance(value, dict):
        raise RequestError("inputs: expected an object with one list for each input, or a list of rows.")
    columns = {name: cells if isinstance(cells, list) else [cells] for name, cells in value.items()}
    sizes = {len(cells) for cells in columns.values()}
    if len(sizes) != 1:
        raise RequestError("inputs: the lists of the inputs differ in length.")
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


def _csv_rows(body: bytes, loaded: LoadedEndpoint) -> list[dict[str, Any]]:
    text = _text_lines(body)
    fields = loaded.fields
    names = list(loaded.signature.names)
    kinds: list[str] = []
    rows: list[dict[str, Any]] = []
    cells_seen = blank = 0
    try:
        for line in csv.reader(checked_lines(text, loaded.settings), strict=True):
            if not line:
                blank += 1
                check_rows(blank, loaded.settings)
                continue
            cells_seen += len(line)
            check_cells(cells_seen, loaded.settings)
            if not kinds:
                named = bool(set(line) & set(fields))
                names = line if named else names
                kinds = [fields[name].type if name in fields else "string" for name in names]
                if named:
                    continue
            number = len(rows)
            check_rows(number + 1, loaded.settings)
            if len(line) != len(names):
                columns = ", ".join(names[:20])
                raise RequestError(f"rows[{number}]: {len(line)} values for the columns {clipped(columns, 500)}.")
            cells = (
                _cell(cell, kind, f"rows[{number}].{name}") for name, kind, cell in zip(names, kinds, line, strict=True)
            )
            rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise RequestError(f"Cannot read the body as CSV: {error}.") from None
    return rows


def _text_lines(body: bytes) -> Iterable[str]:
    """The lines of a body with their ends, decoded one at a time.

    A single four-byte character makes Python store its text with four bytes for each character. A reader of text files
    is faster, but it would also hold several copies of a long line.
    """
    if body.isascii():
        return io.TextIOWrapper(io.BytesIO(body), encoding="ascii", newline="")
    return (line.group().decode() for line in _LINES.finditer(body))


def _cell(text: str, kind: str, where: str) -> Any:
    if not text:
        return None
    if kind in ("float", "int"):
        try:
            return protocol_common.plain(int(text) if kind == "int" and "." not in text else float(text), kind, where)
        except ValueError:
            raise RequestError(f"{where}: {text[:100]!r} is not a number.") from None
    if kind == "bool":
        try:
            return _BOOLEANS[text.lower()]
        except KeyError:
            raise RequestError(f"{where}: {text[:100]!r} is neither true nor false.") from None
    return text
