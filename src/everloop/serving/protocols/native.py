"""everloop's own protocol.

    POST /predict   {"rows": [{…}, …], "keys": [...]?, "event_at": [...]?}   or   {"inputs": {…}, "key"?, "event_at"?}
                    → {"model", "version", "ids": […], "predictions": […], "probabilities"?: […], "versions"?: […]}
                    if versions have different inputs, also {"unasked": [{"version", "rows", "why"}, …]}: the
                    versions that some of the rows do not fit
                    with `"explain": true` also {"explanations": [{"bias", "contributions": {input: …}}, …]}
                    an Arrow IPC stream (application/vnd.apache.arrow.stream) gets one back; see `arrow_bodies`
    POST /labels    {"labels": [{"key", "value", "event_at"?}, …]}   → {"endpoint", "accepted", "unmatched", "notice"?}
    GET  /          the endpoint's model, routes and inputs

A prediction is the most likely class, or the value of a regression. A probability is that of the second class if
there are two, else a list with one per class; a regression has none. `version` is a number; if a canary answered some
of the rows, `versions` has one per row. `key` identifies the entity: it keeps an entity on one version and lets labels
find the prediction. `unmatched` counts the labels that match no prediction so far. Unknown fields are refused, since
they are probably misspelled.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import RequestError
from everloop.prediction_log.labels import GivenLabel, unmatched_notice
from everloop.serving.protocols.arrow_bodies import STREAM, frame_request, looks_like_arrow, read_frame, result_table
from everloop.serving.protocols.protocol import Request, Response, Service
from everloop.serving.protocols.protocol_common import score_request_of
from everloop.serving.protocols.unpacked_limits import TYPED_CONTAINERS_PER_ROW, check_json, check_row_sizes
from everloop.serving.score_request import ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from everloop.serving.loaded_endpoint import LoadedEndpoint

Key = str | int | float | None

_encode = msgspec.json.Encoder(enc_hook=str).encode


def predict(service: Service, request: Request) -> Response:
    loaded = service.loaded_endpoint(request)
    if looks_like_arrow(request.body):
        return _predict_table(service, loaded, request)
    score_request = _score_request(loaded, request)
    result = service.score(loaded, score_request)
    body = columns_of(loaded, result)
    if result.flags:
        body["flags"] = result.flags
    if result.unasked:
        body["unasked"] = [
            {"version": version, "rows": rows, "why": why} for version, (rows, why) in result.unasked.items()
        ]
    if score_request.explain:
        body["explanations"] = result.explanations()
    return Response(body=_encode(body), result=result)


def _predict_table(service: Service, loaded: LoadedEndpoint, request: Request) -> Response:
    result = service.score(loaded, frame_request(loaded, request, read_frame(request.body, loaded.settings)))
    ids = [f"{result.request_id}-{position}" for position in range(result.rows)]
    return Response(body=result_table(result, ids), content_type=STREAM, result=result)


def label(service: Service, request: Request) -> Response:
    limits = service.settings
    check_json(request.body, limits)
    try:
        sent = _LABELS.decode(request.body)
    except msgspec.ValidationError as error:
        raise RequestError(f"{error}.".replace(" - at `$", " at `").replace("`.", "`")) from None
    if len(sent.labels) > limits.max_rows:
        raise RequestError(
            f"labels: {len(sent.labels)} labels are too many for one request.",
            help=f"Send at most {limits.max_rows}, or use 'everloop labels add' for whole files.",
        )
    check_row_sizes(((one.key, one.value) for one in sent.labels), None, limits, "labels")
    unmatched = service.label(sent.labels)
    body: dict[str, Any] = {"endpoint": service.endpoint, "accepted": len(sent.labels)}
    body["unmatched"] = None if unmatched is None else len(unmatched)
    if unmatched:
        body["notice"] = unmatched_notice(unmatched)
    return Response(body=_encode(body))


def describe(service: Service, request: Request) -> Response:
    loaded = service.loaded_endpoint()
    routes = [
        {"version": scorer.version, "role": scorer.role, "percent": scorer.route.percent}
        for scorer in (*loaded.scorers, *loaded.shadows)
    ]
    body = {
        "endpoint": loaded.name,
        "model": loaded.endpoint.model,
        "revision": loaded.revision,
        "routes": routes,
        "signature": loaded.signature.to_json(),
        "log": service.log_kind,
    }
    return Response(body=_encode(body))


ROUTES = {
    ("POST", "/predict"): predict,
    ("POST", "/labels"): label,
    ("GET", "/"): describe,
}


def columns_of(loaded: LoadedEndpoint, result: ScoreResult) -> dict[str, Any]:
    """The JSON body: a result as columns, in the order of the request."""
    first = result.parts[0]
    request = result.request_id
    body: dict[str, Any] = {"model": loaded.endpoint.model, "version": first.scorer.number}
    if len(result.parts) == 1 and first.positions is None:
        body["ids"] = [f"{request}-{position}" for position in range(result.rows)]
        body["predictions"] = first.scores if first.labels is None else first.labels
        if first.labels is not None:
            body["probabilities"] = first.scores
        return body
    size = result.rows
    predictions: list[Any] = [None] * size
    probabilities: list[Any] = [None] * size
    versions = [0] * size
    for part in result.parts:
        number = part.scorer.number
        for at, position in enumerate(part.positions if part.positions is not None else range(size)):
            predictions[position] = part.scores[at] if part.labels is None else part.labels[at]
            probabilities[position] = part.scores[at]
            versions[position] = number
    body |= {
        "version": versions[0],
        "ids": [f"{request}-{position}" for position in range(size)],
        "predictions": predictions,
    }
    if first.labels is not None:
        body["probabilities"] = probabilities
    if len(set(versions)) > 1:
        body["versions"] = versions
    return body


def _score_request(loaded: LoadedEndpoint, request: Request) -> ScoreRequest:
    decoder = loaded.cached("native", _body_decoder)
    if loaded.uniform:
        check_json(request.body, loaded.settings, TYPED_CONTAINERS_PER_ROW)
    else:
        check_json(request.body, loaded.settings)
    try:
        body: Any = decoder.decode(request.body)
    except msgspec.ValidationError as error:
        if loaded.settings.unfit != "flag" or not loaded.uniform:
            raise loaded.signature.explain(error) from None
        try:
            body = loaded.cached("native plain", _plain_decoder).decode(request.body)
        except msgspec.ValidationError:
            raise loaded.signature.explain(error) from None
    explain = body.explain
    if body.inputs is not msgspec.UNSET:
        if body.rows is not msgspec.UNSET:
            raise RequestError("Send either 'rows' or 'inputs', not both.")
        rows = [body.inputs]
        one_key = body.key is not msgspec.UNSET
        keys = [body.key] if one_key else body.keys
        event_at = body.event_at if isinstance(body.event_at, list) or body.event_at is None else [body.event_at]
    elif body.rows is not msgspec.UNSET:
        if body.key is not msgspec.UNSET:
            raise RequestError("'key' belongs to 'inputs'. With 'rows', send 'keys', one per row.")
        rows, keys, event_at = body.rows, body.keys, body.event_at
        if event_at is not None and not isinstance(event_at, list):
            event_at = [event_at] * len(rows)
    else:
        raise RequestError('The input \'rows\' is missing: send {"rows": [{…}]} or {"inputs": {…}}.')
    if not loaded.uniform:
        return ScoreRequest(None, rows, keys, event_at, request.began, explain)
    if rows and type(rows[0]) is dict:
        score_request = score_request_of(loaded, rows, request, explain=explain)
        score_request.keys, score_request.event_at = keys, event_at
        return score_request
    return ScoreRequest(loaded.signature.values_of(rows), None, keys, event_at, request.began, explain)


def _plain_decoder(loaded: LoadedEndpoint) -> msgspec.json.Decoder[Any]:
    return _decoder(dict[str, Any])


def _body_decoder(loaded: LoadedEndpoint) -> msgspec.json.Decoder[Any]:
    return _decoder(loaded.signature.row_type if loaded.uniform else dict[str, Any])


def _decoder(row: Any) -> msgspec.json.Decoder[Any]:
    body = msgspec.defstruct(
        "Body",
        [
            ("rows", list[row] | msgspec.UnsetType, msgspec.UNSET),
            ("inputs", row | msgspec.UnsetType, msgspec.UNSET),
            ("keys", list[Key] | None, None),
            ("key", Key | msgspec.UnsetType, msgspec.UNSET),
            ("event_at", list[datetime | None] | datetime | None, None),
            ("explain", bool, False),
        ],
        forbid_unknown_fields=True,
        gc=False,
    )
    return msgspec.json.Decoder(body)


class _Labels(msgspec.Struct, forbid_unknown_fields=True):
    labels: list[GivenLabel]


_LABELS = msgspec.json.Decoder(_Labels)
