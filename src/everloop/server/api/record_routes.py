"""HTTP routes that read records, events and the status of a project.

GET /api/v1/status            the state of one project
GET /api/v1/KIND              the records of a kind, newest first: ?limit=&after=ID&FIELD=VALUE
GET /api/v1/KIND/REF          one record, by key or id
GET /api/v1/events            events, oldest first: ?since=SEQ&limit=
"""

from __future__ import annotations

from typing import Any, cast

from litestar import get

from everloop.errors import UsageError
from everloop.records import KINDS, Event, Record, Run
from everloop.server.error_responses import json_response
from everloop.server.request_context import NEEDS, ApiRequest, store_of
from everloop.server.status_page import Status, read_status
from everloop.tracking import recover_journals
from everloop.tracking.search.run_filters import Compare, check_state

MOST_ROWS = 1000
PRIVATE = frozenset({"user", "token", "webhook"})
"""Kinds with secrets; they have separate routes that leave the secrets out."""

_READS = {NEEDS: "viewer"}


def routes() -> list[Any]:
    return [status, events, records, record]


@get("/api/v1/status", sync_to_thread=True, opt=_READS)
def status(request: ApiRequest) -> Status:
    """Return the state of the project."""
    return cast("Status", json_response(read_status(store_of(request))))


@get("/api/v1/events", sync_to_thread=True, opt=_READS)
def events(request: ApiRequest) -> list[Event]:
    """List events, oldest first: those after the sequence number `since`, at most `limit`."""
    found = store_of(request).records.events_since(_number(request, "since", 0), limit=_rows(request))
    return cast("list[Event]", json_response(found))


@get("/api/v1/{kind:str}", sync_to_thread=True, opt=_READS)
def records(request: ApiRequest) -> list[Any]:
    """List records of a kind, newest first. Any parameter except `limit` and `after` filters by a field's value."""
    cls = _kind(request.path_params["kind"])
    filters = [(name, "=", value) for name, value in request.query_params.items() if name not in ("limit", "after")]
    for name, _, _ in filters:
        if name not in cls.__dataclass_fields__:
            fields = ", ".join(cls.__dataclass_fields__)
            raise UsageError(f"{request.path_params['kind']} has no field '{name}'.", help=f"It has: {fields}")
    after = request.query_params.get("after")
    if cls is Run:
        for name, _, value in filters:
            check_state(Compare((name,), "=", value))
        recover_journals(store_of(request))
    found = store_of(request).records.find(cls, *filters, order="-id", limit=_rows(request), after=after)  # type: ignore[arg-type]
    return cast("list[Any]", json_response(found))


@get("/api/v1/{kind:str}/{ref:str}", sync_to_thread=True, opt=_READS)
def record(request: ApiRequest) -> Any:
    """Return one record, by key or id."""
    cls = _kind(request.path_params["kind"])
    if cls is Run:
        recover_journals(store_of(request))
    return store_of(request).records.get(cls, request.path_params["ref"])


def _kind(name: str) -> type[Record]:
    # Accepts `/api/v1/model-versions` as well as `/api/v1/model_version`.
    plain = name.replace("-", "_")
    for known in (plain, plain.removesuffix("s"), f"{plain.removesuffix('s')}s", f"{plain.removesuffix('ies')}y"):
        if known in KINDS and known not in PRIVATE:
            return KINDS[known]
    kinds = ", ".join(sorted(set(KINDS) - PRIVATE))
    raise UsageError(f"There is no kind of record '{name}'.", help=f"Kinds: {kinds}, events")


def _rows(request: ApiRequest) -> int:
    limit = _number(request, "limit", 100)
    if not 1 <= limit <= MOST_ROWS:
        raise UsageError(
            f"limit={limit} is out of range.", help=f"Use 1 to {MOST_ROWS}, and after=ID for the next page."
        )
    return limit


def _number(request: ApiRequest, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise UsageError(f"{name}={text} is not a number.", help="Give a whole number, 0 or more.")
    return int(text)
