"""Revoked credentials stop working, and cached ones expire while the user store cannot be read."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.records import EndpointRecord
from everloop.server.access import UserStore
from everloop.server.server_options import ServerOptions
from everloop.serving.access.endpoint_tokens import add_token, remove_token

if TYPE_CHECKING:
    from everloop.stores import Store

PASSWORD = "correct horse battery"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def until(wanted: Any, seconds: float = 20.0) -> None:
    end = monotonic() + seconds
    while not wanted():
        assert monotonic() < end
        sleep(0.05)


@pytest.mark.slow
def test_roles_tokens_and_users_that_are_taken_back(store: Store, serve: Any) -> None:
    user_store = UserStore(store)
    user_store.add_user("admin", {"*": "admin"}, PASSWORD)
    user_store.add_user("ada", {"*": "admin"}, PASSWORD)
    with serve(store) as control:
        _, token = user_store.create_token("ci", "ada", {"*": "admin"})
        path = "/api/v1/access/users"
        assert control.request("GET", path, **bearer(token)).status == 200
        user_store.set_roles("ada", {"*": "viewer"})
        until(lambda: control.request("GET", path, **bearer(token)).status == 403)
        assert control.request("GET", "/api/v1/runs", **bearer(token)).status == 200
        user_store.revoke_token("ci")
        until(lambda: control.request("GET", "/api/v1/runs", **bearer(token)).status == 401)
        _, short = user_store.create_token("short", "ada", {"*": "viewer"}, lifetime=timedelta(seconds=2))
        assert control.request("GET", "/api/v1/runs", **bearer(short)).status == 200
        until(lambda: control.request("GET", "/api/v1/runs", **bearer(short)).status == 401)


@pytest.mark.slow
def test_a_book_that_cannot_be_read_closes_after_a_while(store: Store, serve: Any) -> None:
    user_store = UserStore(store)
    user_store.add_user("admin", {"*": "admin"}, PASSWORD)
    _, token = user_store.create_token("ci", "admin", {"*": "admin"})
    with serve(store, ServerOptions(access_stale_s=1.0)) as control:
        assert control.request("GET", "/status", **bearer(token)).status == 200

        database = store.home / "everloop.db"
        aside = database.with_suffix(".aside")
        database.rename(aside)
        until(lambda: control.request("GET", "/status", **bearer(token)).status == 503)
        # From then on for each request, not only for the one that looks.
        assert {control.request("GET", "/status", **bearer(token)).status for _ in range(20)} == {503}
        assert control.request("GET", "/health").status == 200
        aside.rename(database)
        until(lambda: control.request("GET", "/status", **bearer(token)).status == 200)


@pytest.mark.slow
def test_an_endpoints_own_token_at_the_gateway(store: Store, serve: Any) -> None:
    UserStore(store).add_user("admin", {"*": "admin"}, PASSWORD)
    store.records.put(store.new(EndpointRecord, name="delays", model="delays", routes=()))
    with serve(store, ServerOptions(access_stale_s=1.0)) as control:
        token = add_token(store, "delays", "team")
        path = "/endpoints/delays/health"
        # It has no version, which only those are told who may ask it.
        until(lambda: control.request("GET", path, **bearer(token)).status == 503)
        assert control.request("GET", path, **bearer(token)).json["error"]["type"] == "UnavailableError"
        remove_token(store, "delays", "team")
        until(lambda: control.request("GET", path, **bearer(token)).status == 401)
        token = add_token(store, "delays", "team")
        until(lambda: control.request("GET", path, **bearer(token)).status == 503)

        (store.home / "everloop.db").rename(store.home / "aside.db")
        until(lambda: "token" in control.request("GET", path, **bearer(token)).json["error"]["message"])
        assert control.request("GET", path, **bearer(token)).status == 503
        (store.home / "aside.db").rename(store.home / "everloop.db")
