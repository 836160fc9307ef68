"""Which requests a browser sends for a page of another origin, and which come from programs."""

from __future__ import annotations

from typing import Any

import pytest

from everloop.http.host_names import HostRule
from everloop.http.request_guard import MOST_HEADERS, RequestGuard

GUARD = RequestGuard(HostRule(("ml.example.com",)), ("public.example.com",))
OWN = "http://127.0.0.1:8001"


def status(method: str, *extra: tuple[str, str], host: str | None = "127.0.0.1:8001", guard: Any = GUARD) -> int | None:
    headers = [] if host is None else [(b"host", host.encode())]
    headers += [(name.encode(), value.encode()) for name, value in extra]
    refusal = guard.refusal(method, headers, "127.0.0.1")
    return None if refusal is None else refusal.status


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"])
def test_another_origin_neither_changes_nor_reads(method: str) -> None:
    for origin in (
        "http://evil.example", "null", "", "http://127.0.0.1:1", "http://127.0.0.1", f"{OWN}.evil.example",
        f"{OWN}@evil.example", "file://127.0.0.1:8001", "https://evil.example:8001", "127.0.0.1:8001",
    ):  # fmt: skip
        assert status(method, ("origin", origin)) == 403, origin
    for site in ("cross-site", "same-site", "Cross-Site", "x"):
        assert status(method, ("sec-fetch-site", site)) == 403, site
        assert status(method, ("origin", OWN), ("sec-fetch-site", site)) == 403
    assert status(method, ("origin", OWN), ("origin", "http://evil.example")) == 403
    assert status(method, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")) == 403
    for fine in ((), (("origin", OWN),), (("sec-fetch-site", "same-origin"),), (("sec-fetch-site", "none"),)):
        assert status(method, *fine) is None
    # Something in front may have changed the host.
    for origin in ("https://ml.example.com", "https://public.example.com"):
        assert status(method, ("origin", origin), ("sec-fetch-site", "same-origin")) is None


def test_a_link_may_lead_here_and_a_frame_may_not() -> None:
    def link(*more: tuple[str, str], method: str = "GET") -> int | None:
        return status(method, ("sec-fetch-site", "cross-site"), *more)

    assert link(("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")) is None
    assert link(("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"), method="POST") == 403
    for destination in ("iframe", "object", "embed", "script", "image", "empty"):
        assert link(("sec-fetch-mode", "navigate"), ("sec-fetch-dest", destination)) == 403
    assert link(("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "document")) == 403


def test_simple_media_types_are_not_posted() -> None:
    for kind in (
        "text/plain", "TEXT/PLAIN; charset=utf-8", " text/plain ;x", "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a", "text/plain, application/json", "application/json, text/plain",
    ):  # fmt: skip
        assert status("POST", ("content-type", kind)) == 415, kind
    for kind in ("application/json", "application/json; charset=utf-8", "text/csv", "application/octet-stream", ""):
        assert status("POST", ("content-type", kind)) is None, kind
    assert status("POST", ("content-type", "application/json"), ("content-type", "text/plain")) == 400
    # A page of this server may: it uploads files of any type.
    assert status("POST", ("content-type", "text/plain"), ("origin", OWN)) is None
    assert status("POST", ("content-type", "text/plain"), ("sec-fetch-site", "same-origin")) is None
    assert status("POST", ("content-type", "text/plain"), ("sec-fetch-site", "none")) == 415
    assert status("POST", ("content-type", "text/plain"), ("origin", "http://evil.example")) == 403
    # A page has to ask before it puts, and is never answered that it may.
    assert status("PUT", ("content-type", "text/plain")) is None


def test_the_host_is_named_once_and_known() -> None:
    assert status("GET", host=None) == 421
    assert status("GET", host="evil.example") == 421
    assert status("GET", ("host", "evil.example")) == 421
    # The strange name comes first: by rebinding, the origin is the page's own.
    rebound = (("origin", "http://evil.example:8001"), ("sec-fetch-site", "same-origin"))
    assert status("POST", *rebound, host="evil.example:8001") == 421


def test_headers_are_counted() -> None:
    many = [(f"x-{number}", "1") for number in range(MOST_HEADERS)]
    assert status("GET", *many[:-1]) is None
    assert status("GET", *many) == 431
