"""The control plane: what is taken back opens nothing, and what cannot be read opens nothing for long."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

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


def test_roles_tokens_and_users_that_are_taken_back(store: Store, serve: Any) -> None:
    book = UserStore(store)
    book.add_user("admin", {"*": "admin"}, PASSWORD)
    book.add_user("ada", {"*": "admin"}, PASSWORD)
    with serve(store) as place:
        _, token = book.create_token("ci", "ada", {"*": "admin"})
        path = "/api/v1/access/users"
        assert place.ask("GET", path, **bearer(token)).status == 200
        book.set_roles("ada", {"*": "viewer"})
        until(lambda: place.ask("GET", path, **bearer(token)).status == 403)
        assert place.ask("GET", "/api/v1/runs", **bearer(token)).status == 200
        book.revoke_token("ci")
        until(lambda: place.ask("GET", "/api/v1/runs", **bearer(token)).status == 401)
        _, short = book.create_token("short", "ada", {"*": "viewer"}, lifetime=timedelta(seconds=2))
        assert place.ask("GET", "/api/v1/runs", **bearer(short)).status == 200
        until(lambda: place.ask("GET", "/api/v1/runs", **bearer(short)).status == 401)


def test_a_book_that_cannot_be_read_closes_after_a_while(store: Store, serve: Any) -> None:
    book = UserStore(store)
    book.add_user("admin", {"*": "admin"}, PASSWORD)
    _, token = book.create_token("ci", "admin", {"*": "admin"})
    with serve(store, ServerOptions(access_stale_s=1.0)) as place:
        assert place.ask("GET", "/status", **bearer(token)).status == 200

        database = store.home / "everloop.db"
        aside = database.with_suffix(".aside")
        database.rename(aside)
        until(lambda: place.ask("GET", "/status", **bearer(token)).status == 503)
        # From then on for each request, not only for the one that looks.
        assert {place.ask("GET", "/status", **bearer(token)).status for _ in range(20)} == {503}
        assert place.ask("GET", "/health").status == 200
        aside.rename(database)
        until(lambda: place.ask("GET", "/status", **bearer(token)).status == 200)


def test_an_endpoints_own_token_at_the_gateway(store: Store, serve: Any) -> None:
    UserStore(store).add_user("admin", {"*": "admin"}, PASSWORD)
    store.records.put(store.new(EndpointRecord, name="delays", model="delays", routes=()))
    with serve(store, ServerOptions(access_stale_s=1.0)) as place:
        token = add_token(store, "delays", "team")
        path = "/endpoints/delays/health"
        # It has no version, which only those are told who may ask it.
        until(lambda: place.ask("GET", path, **bearer(token)).status == 503)
        assert place.ask("GET", path, **bearer(token)).json["error"]["type"] == "UnavailableError"
        remove_token(store, "delays", "team")
        until(lambda: place.ask("GET", path, **bearer(token)).status == 401)
        token = add_token(store, "delays", "team")
        until(lambda: place.ask("GET", path, **bearer(token)).status == 503)

        (store.home / "everloop.db").rename(store.home / "aside.db")
        until(lambda: "token" in place.ask("GET", path, **bearer(token)).json["error"]["message"])
        assert place.ask("GET", path, **bearer(token)).status == 503
        (store.home / "aside.db").rename(store.home / "everloop.db")
