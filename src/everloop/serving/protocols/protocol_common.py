"""Shared code of the protocols of other servers: plain rows in, columns of results out, errors in their own form.

A prediction is the label if the model has classes, else the value. A probability is that of the positive class if there
are two classes, else one per class in the version's order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import EverloopError, NotFoundError, RequestError, TooLargeError
from everloop.http.error_bodies import clipped
from everloop.serving.coercion import coerce_rows
from everloop.serving.loaded_endpoint import LoadedEndpoint, pinned
from everloop.serving.protocols.protocol import Handle, Request, Response, Service
from everloop.serving.score_request import ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from everloop.records import Json

encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class Columns:
    """A result as columns, in the order of the request. `probabilities` is None for regression."""

    result: ScoreResult
    ids: list[str]
    predictions: list[Json]
    probabilities: list[Any] | None
    versions: list[str]

    def body(self) -> dict[str, Any]:
        """The JSON body: `predictions`, and `probabilities`, `flags` and `explanations` if there are any."""
        body: dict[str, Any] = {"predictions": self.predictions}
        if self.probabilities is not None:
            body["probabilities"] = self.probabilities
        if self.result.flags:
            body["flags"] = self.result.flags
        explanations = self.result.explanations()
        if explanations is not None:
            body["explanations"] = explanations
        return body


def score_request_of(
    loaded: LoadedEndpoint, rows: Sequence[Mapping[str, Any]], request: Request, *, explain: bool = False
) -> ScoreRequest:
    """Check plain rows against the signature; coerce them if the endpoint's settings say so.

    Raises:
        RequestError: a row does not fit the signature; the message names row and field.
    """
    if not loaded.uniform:
        return ScoreRequest(None, rows, began=request.began, explain=explain)
    try:
        return ScoreRequest(loaded.signature.rows_of(rows), None, began=request.began, explain=explain)
    except RequestError:
        if loaded.settings.unfit != "flag":
            raise
    coerced, flags = coerce_rows(rows, loaded.signature)
    return ScoreRequest(loaded.signature.rows_of(coerced), None, began=request.began, explain=explain, flags=flags)


def score(
    service: Service,
    loaded: LoadedEndpoint,
    rows: Sequence[Mapping[str, Any]],
    request: Request,
    *,
    explain: bool = False,
) -> Columns:
    """Check, score and log plain rows.

    Raises:
        RequestError: a row does not fit the signature; the message names row and field.
    """
    result = service.score(loaded, score_request_of(loaded, rows, request, explain=explain))
    size = result.rows
    predictions: list[Any] = [None] * size
    probabilities: list[Any] = [None] * size
    versions = [""] * size
    for part in result.parts:
        for at, position in enumerate(range(size) if part.positions is None else part.positions):
            predictions[position] = part.scores[at] if part.labels is None else part.labels[at]
            probabilities[position] = part.scores[at]
            versions[position] = part.scorer.version
    ids = [f"{result.request_id}-{position}" for position in range(size)]
    return Columns(result, ids, predictions, None if loaded.champion.task == "regression" else probabilities, versions)


def respond(columns: Columns, body: Any) -> Response:
    """A JSON response. Its headers will name the version that answered and the id in the log."""
    return Response(body=encode(body), result=columns.result)


def named(service: Service, request: Request) -> LoadedEndpoint:
    """The versions in use, for a path that names this endpoint or its model, and perhaps a version.

    Raises:
        NotFoundError: the path names another model, or a version that the endpoint does not use.
    """
    loaded = service.loaded_endpoint(request)
    name = request.params.get("model", loaded.name)
    if name not in (loaded.name, loaded.endpoint.model):
        raise NotFoundError(
            f"Model with name {name[:100]} does not exist.", help=f"This endpoint serves: {loaded.name}"
        )
    wanted = request.params.get("version")
    if wanted is None:
        return loaded
    if wanted in {short(scorer.version) for scorer in loaded.scorers}:
        chosen = pinned(loaded, wanted)
        assert chosen is not None  # noqa: S101 - the version is one of them
        return chosen
    raise NotFoundError(
        f"Model {name[:100]} has no version {wanted[:50]} here.",
        help=f"In use: {', '.join(short(scorer.version) for scorer in loaded.scorers)}",
    )


def short(version: str) -> str:
    """The number in a version's key: `1` of `delays@1`."""
    return version.rpartition("@")[2]


def with_errors(problem: Callable[[int, EverloopError], bytes], *, status: int = 400) -> Callable[[Handle], Handle]:
    """A decorator that sends a function's errors in a protocol's own form. Bad requests get `status`."""

    def wrap(handle: Handle) -> Handle:
        @wraps(handle)
        def guarded(service: Service, request: Request) -> Response:
            try:
                return handle(service, request)
            except EverloopError as error:
                plain_request = isinstance(error, RequestError) and not isinstance(error, TooLargeError)
                code = status if plain_request else error.http_status
                error.message = clipped(error.message)
                return Response(status=code, body=problem(code, error))
            except msgspec.ValidationError as error:
                problem_error = RequestError(f"{clipped(str(error))}.".replace(" - at `$", " at `"))
                return Response(status=status, body=problem(status, problem_error))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                problem_error = RequestError(f"Cannot read the body as JSON: {error}")
                return Response(status=400, body=problem(400, problem_error))

        return guarded

    return wrap


def plain(value: Any, kind: str, where: str) -> Any:
    """A value of a tensor or text as in JSON: NaN becomes null, infinity is refused, 0 and 1 may become a bool."""
    if type(value) is float and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise RequestError(f"{where}: {value} is not a finite number, which models require.")
    if kind == "bool" and type(value) in (int, float) and value in (0, 1):
        return bool(value)
    return value


def by_order(row: Sequence[Any], loaded: LoadedEndpoint, number: int) -> dict[str, Any]:
    """A row without names, whose values are in the order of the signature.

    Raises:
        RequestError: its length fits no version.
    """
    every = (loaded.champion, *loaded.scorers)
    # Values without names belong to the first version with as many inputs; the champion comes first.
    inputs = next((one.signature.inputs for one in every if len(one.signature.inputs) == len(row)), None)
    if inputs is None:
        inputs = loaded.signature.inputs
        raise RequestError(
            f"rows[{number}]: {len(row)} values for {len(inputs)} inputs.",
            help=f"The inputs in order: {', '.join(loaded.signature.names[:20])}",
        )
    return {
        item.name: plain(value, item.type, f"rows[{number}].{item.name}")
        for item, value in zip(inputs, row, strict=True)
    }


def instances(values: Any, loaded: LoadedEndpoint) -> list[dict[str, Any]]:
    """Rows as a list of objects, or of lists in the order of the signature.

    Raises:
        RequestError: the value is something else.
    """
    if not isinstance(values, list):
        raise RequestError("instances: expected a list with one object or list per row.")
    rows = []
    for number, row in enumerate(values):
        if isinstance(row, dict):
            rows.append(row)
        elif isinstance(row, list):
            rows.append(by_order(row, loaded, number))
        elif len(loaded.signature.inputs) == 1:
            rows.append(by_order([row], loaded, number))
        else:
            raise RequestError(f"instances[{number}]: expected an object with the inputs by name, or a list of them.")
    return rows
