"""Reading records, events and the status.

GET /api/v1/status            one project at a glance
GET /api/v1/KIND              the records of a kind, newest first: ?limit=&after=ID&FIELD=VALUE
GET /api/v1/KIND/REF          one record, by key or id
GET /api/v1/events            the event list: ?since=SEQ&limit=
"""

from __future__ import annotations

from typing import Any, cast

from litestar import Request, get

from everloop.errors import UsageError
from everloop.records import KINDS, Event, Record, Run
from everloop.server.error_responses import encoded
from everloop.server.request_context import NEEDS, store_of
from everloop.server.status_page import Status, read_status
from everloop.tracking import recover_journals
from everloop.tracking.search.run_filters import Compare, check_state

Asked = Request[Any, Any, Any]

MOST_ROWS = 1000
PRIVATE = frozenset({"user", "token", "webhook"})
"""Kinds with routes of their own, which leave the secrets out."""

_READS = {NEEDS: "viewer"}


def routes() -> list[Any]:
    return [status, events, records, record]


@get("/api/v1/status", sync_to_thread=True, opt=_READS)
def status(request: Asked) -> Status:
    """One project at a glance."""
    return cast("Status", encoded(read_status(store_of(request))))


@get("/api/v1/events", sync_to_thread=True, opt=_READS)
def events(request: Asked) -> list[Event]:
    """Who did what, oldest first: `since` a sequence number, at most `limit`."""
    found = store_of(request).records.events_since(_number(request, "since", 0), limit=_rows(request))
    return cast("list[Event]", encoded(found))


@get("/api/v1/{kind:str}", sync_to_thread=True, opt=_READS)
def records(request: Asked) -> list[Any]:
    """Records of a kind, newest first; other parameters than `limit` and `after` are fields that must be equal."""
    cls = _kind(request.path_params["kind"])
    asked = [(name, "=", value) for name, value in request.query_params.items() if name not in ("limit", "after")]
    for name, _, _ in asked:
        if name not in cls.__dataclass_fields__:
            fields = ", ".join(cls.__dataclass_fields__)
            raise UsageError(f"{request.path_params['kind']} has no field '{name}'.", help=f"It has: {fields}")
    after = request.query_params.get("after")
    if cls is Run:
        for name, _, value in asked:
            check_state(Compare((name,), "=", value))
        recover_journals(store_of(request))
    found = store_of(request).records.find(cls, *asked, order="-id", limit=_rows(request), after=after)  # type: ignore[arg-type]
    return cast("list[Any]", encoded(found))


@get("/api/v1/{kind:str}/{ref:str}", sync_to_thread=True, opt=_READS)
def record(request: Asked) -> Any:
    """One record, by key or id."""
    cls = _kind(request.path_params["kind"])
    if cls is Run:
        recover_journals(store_of(request))
    return store_of(request).records.get(cls, request.path_params["ref"])


def _kind(name: str) -> type[Record]:
    # `/api/v1/model-versions` reads better than `/api/v1/model_version`; both lead there.
    plain = name.replace("-", "_")
    for known in (plain, plain.removesuffix("s"), f"{plain.removesuffix('s')}s", f"{plain.removesuffix('ies')}y"):
        if known in KINDS and known not in PRIVATE:
            return KINDS[known]
    kinds = ", ".join(sorted(set(KINDS) - PRIVATE))
    raise UsageError(f"There is no kind '{name}'.", help=f"Kinds: {kinds}, events")


def _rows(request: Asked) -> int:
    limit = _number(request, "limit", 100)
    if not 1 <= limit <= MOST_ROWS:
        raise UsageError(
            f"limit={limit} is out of range.", help=f"Ask for 1 to {MOST_ROWS} rows, then go on with after=."
        )
    return limit


def _number(request: Asked, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise UsageError(f"{name}={text} is no number.", help="Give a whole number, 0 or more.")
    return int(text)
