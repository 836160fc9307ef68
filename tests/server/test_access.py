"""Logins and roles, over real HTTP, on every route."""

from __future__ import annotations

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from everloop.errors import ConflictError, UsageError
from everloop.records import ModelVersion
from everloop.registry import find_alias
from everloop.server.access import Principal, UserStore
from everloop.server.access.passwords import hash_password, verify_password
from everloop.server.access.rate_limits import FailureLimit
from everloop.server.access.roles import ROLES, is_enough
from everloop.server.control_app import make_app
from everloop.server.control_plane import ControlPlane
from everloop.server.request_context import NEEDS
from everloop.server.server_options import ServerOptions

ROOTS = ("api", "ajax-api")
PASSWORD = "correct horse battery"


def basic(name, password=PASSWORD):
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    # The same function with less work: a quarter of a second for each user adds up.
    monkeypatch.setattr("everloop.server.access.passwords._N", 16)


@pytest.fixture
def user_store(store):
    return UserStore(store)


@pytest.fixture
def guarded(store, user_store, serve):
    """A server that needs a login, and a token for each role."""
    tokens = {}
    for role in ROLES:
        user_store.add_user(role, {"*": role}, PASSWORD)
        tokens[role] = "Bearer " + user_store.create_token(f"of-{role}", role)[1]
    user_store.add_user("elsewhere", {"other": "admin"}, PASSWORD)
    tokens["elsewhere"] = "Bearer " + user_store.create_token("of-elsewhere", "elsewhere")[1]
    with serve(store) as control:
        yield control, tokens


def routes_of(store):
    """All methods and paths of the app, with the role that each needs."""
    for route in make_app(store, ServerOptions(auth=True)).app.routes:
        for handler in getattr(route, "route_handlers", None) or [route.route_handler]:
            path = re.sub(r"\{number:int\}", "1", route.path)
            path = re.sub(r"\{[^}]*\}", "x", path)
            for method in getattr(handler, "http_methods", {"GET", "POST"}):
                yield method, path, handler.opt.get(NEEDS, "viewer")


@pytest.mark.slow
def test_every_route_needs_a_login_and_its_role(store, guarded):
    control, tokens = guarded
    seen = set()
    for method, path, needed in routes_of(store):
        if needed == "anyone":
            # There the address itself is the right, see the tests of transfers.
            assert control.request(method, path).status == (403 if path == "/signed-artifacts" else 200)
            continue
        assert control.request(method, path, {}).status == 401, (method, path)
        assert control.request(method, path, {}, authorization=tokens["elsewhere"]).status == 403, (method, path)
        for role in ROLES:
            answer = control.request(method, path, {}, authorization=tokens[role])
            if not is_enough(role, needed):
                assert answer.status == 403, (method, path, role)
            else:
                assert answer.status not in (401, 403, 421, 429), (method, path, role, answer.body)
                assert answer.status < 500, (method, path, answer.body)
                break
        seen.add(needed)
    assert seen == set(ROLES)


def test_unknown_paths_and_path_variants_need_a_login_too(guarded):
    control, tokens = guarded
    for path in (
        "/nothing", "/health/", "//health", "/health/../api/v1/runs", "/health%2f..%2fapi/v1/runs", "/HEALTH",
        "/api/v1/../../health", "/health;x", "/health%00", "/./health", "/static/../health", "/version/x",
    ):  # fmt: skip
        assert control.request("GET", path).status == 401, path
        assert control.request("GET", path, authorization=tokens["admin"]).status < 500, path


def test_events_name_who_did_it(guarded):
    control, tokens = guarded
    made = control.request(
        "POST", "/api/v1/access/users", {"name": "ada", "roles": {"*": "editor"}}, authorization=tokens["admin"]
    )
    assert made.status == 201
    password = made.json["password"]
    me = control.request("GET", "/api/v1/access/me", authorization=basic("ada", password)).json
    assert (me["actor"], me["role"], me["login"]) == ("user:ada", "editor", True)
    last = UserStore(control.store).records.events_since(0)
    assert [event.actor for event in last if event.key == "ada"] == ["user:admin/of-admin"]
    shown = control.request("GET", "/api/v1/access/users", authorization=tokens["admin"])
    assert b"scrypt" not in shown.body
    assert password.encode() not in shown.body


def test_nobody_agrees_with_himself_by_a_token(store, guarded):
    control, tokens = guarded
    for number in (1, 2):
        store.records.put(store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}"))
    alias, approver = "/api/v1/models/m/aliases/champion", basic("approver")
    assert control.request("PUT", alias, {"version": "m@1"}, authorization=approver).status == 200
    assert control.request("PUT", f"{alias}/policy", {"approvals": 1}, authorization=tokens["admin"]).status == 200
    asked = control.request("POST", f"{alias}/requests", {"version": "m@2"}, authorization=approver).json
    made = control.request("POST", "/api/v1/access/tokens", {"name": "second-hand"}, authorization=approver).json
    agree = f"/api/v1/alias-requests/{asked['id']}/approve"
    for own in (approver, tokens["approver"], f"Bearer {made['secret']}", basic("approver", made["secret"])):
        assert control.request("POST", agree, {}, authorization=own).status == 403
        assert control.request("PUT", alias, {"version": "m@2"}, authorization=own).status == 409
    assert control.request("POST", agree, {}, authorization=tokens["admin"]).json["state"] == "approved"
    assert control.request("PUT", alias, {"version": "m@2"}, authorization=approver).status == 200


def test_revoked_expired_and_removed_open_nothing(guarded, monkeypatch):
    monkeypatch.setattr("everloop.server.access.authentication.REFRESH_EVERY_S", 0.0)
    control, tokens = guarded
    user_store = UserStore(control.store)
    assert control.request("GET", "/api/v1/runs", authorization=tokens["viewer"]).status == 200
    user_store.revoke_token("of-viewer")
    assert control.request("GET", "/api/v1/runs", authorization=tokens["viewer"]).status == 401
    _, short = user_store.create_token("short", "viewer", lifetime=timedelta(microseconds=1))
    assert control.request("GET", "/api/v1/runs", authorization=f"Bearer {short}").status == 401
    _, secret = user_store.create_token("of-editor-2", "editor")
    assert control.request("GET", "/api/v1/runs", authorization=f"Bearer {secret}").status == 200
    user_store.remove_user("editor")
    assert control.request("GET", "/api/v1/runs", authorization=f"Bearer {secret}").status == 401
    # Whoever gets the name later does not get the token.
    user_store.add_user("editor", {"*": "admin"}, PASSWORD)
    assert control.request("GET", "/api/v1/runs", authorization=f"Bearer {secret}").status == 401


def test_tokens_are_capped_and_their_owners(guarded):
    control, tokens = guarded
    made = control.request(
        "POST", "/api/v1/access/tokens", {"name": "small", "roles": {"p": "viewer"}}, authorization=tokens["admin"]
    )
    small = f"Bearer {made.json['secret']}"
    assert control.request("GET", "/api/v1/access/me", authorization=small).json["role"] == "viewer"
    assert control.request("GET", "/api/v1/access/users", authorization=small).status == 403
    grown = control.request("POST", "/api/v1/access/tokens", {"name": "grown"}, authorization=small)
    assert grown.status == 400, grown.body
    seen = control.request("GET", "/api/v1/access/tokens", authorization=tokens["viewer"]).json
    assert [token["name"] for token in seen] == ["of-viewer"]
    assert control.request("DELETE", "/api/v1/access/tokens/of-admin", authorization=tokens["viewer"]).status == 404
    # A token works as the password of its owner, and of nobody else.
    secret = tokens["viewer"].partition(" ")[2]
    assert control.request("GET", "/api/v1/runs", authorization=basic("viewer", secret)).status == 200
    assert control.request("GET", "/api/v1/runs", authorization=basic("admin", secret)).status == 401


def test_an_admin_of_one_project_is_not_one_of_all(store, user_store, serve):
    user_store.add_user("root", {"*": "admin"}, PASSWORD)
    user_store.add_user("local", {"p": "admin"}, PASSWORD)
    secret = "Bearer " + user_store.create_token("t", "local")[1]
    with serve(store) as control:
        assert control.request("GET", "/api/v1/webhooks", authorization=secret).status == 200
        assert control.request("GET", "/api/v1/access/users", authorization=secret).status == 403
        body = {"roles": {"*": "admin"}}
        assert control.request("PUT", "/api/v1/access/users/local/roles", body, authorization=secret).status == 403


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic %%%",
        "Basic Zm9v",
        "Bearer",
        "Bearer evl_",
        "Digest x",
        "\xff",
        "Basic /////w==",
        "Bearer " + "evl_" * 500,
    ],
)
def test_broken_credentials_are_401(guarded, header):
    control, _ = guarded
    answer = control.request("GET", "/api/v1/runs", authorization=header)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic")


def test_too_many_failures_are_429_and_those_inside_stay(guarded):
    control, tokens = guarded
    assert control.request("GET", "/api/v1/runs", authorization=tokens["viewer"]).status == 200
    codes = [control.request("GET", "/api/v1/runs", authorization=f"Bearer evl_{n}").status for n in range(12)]
    assert codes == [401] * 10 + [429] * 2
    refused = control.request("GET", "/api/v1/runs", authorization="Bearer evl_13")
    assert (refused.status, int(refused.headers["retry-after"]) > 0) == (429, True)
    assert control.request("GET", "/api/v1/runs", authorization=tokens["admin"]).status == 200
    assert control.request("GET", "/api/v1/runs", authorization=tokens["viewer"]).status == 200


def test_mlflow_clients_are_refused_in_their_own_words(guarded):
    control, tokens = guarded
    answer = control.request("POST", "/api/2.0/mlflow/runs/create", {})
    assert (answer.status, answer.json["error_code"]) == (401, "UNAUTHENTICATED")
    answer = control.request("POST", "/api/2.0/mlflow/runs/create", {}, authorization=tokens["viewer"])
    assert (answer.status, answer.json["error_code"]) == (403, "PERMISSION_DENIED")
    for method, path, least in (
        ("POST", "2.0/mlflow/runs/create", "editor"),
        ("POST", "2.0/mlflow/runs/search", "viewer"),
        ("PUT", "2.0/mlflow-artifacts/artifacts/0/x", "editor"),
    ):
        for root in ("api", "ajax-api"):
            for role in ROLES:
                answer = control.request(method, f"/{root}/{path}", {}, authorization=tokens[role])
                assert (answer.status == 403) is (not is_enough(role, least)), (path, role, answer.body)


@pytest.mark.slow
def test_every_route_of_mlflow_needs_a_login_and_its_role(guarded):
    from everloop.integrations.mlflow.tracking_api import ROUTES

    control, tokens = guarded
    least = {"read": "viewer", "write": "editor", "delete": "approver", "admin": "admin"}
    paths = [(route.method, f"/{root}/{route.path}", least[route.access]) for route in ROUTES for root in ROOTS]
    paths += [("GET", "/get-artifact", "viewer"), ("GET", "/model-versions/get-artifact", "viewer")]
    paths += [("POST", "/v1/traces", "editor"), ("POST", "/graphql", "viewer")]
    for method, template, needed in paths:
        path = re.sub(r"\{[^}]*\}", "x", template)
        assert control.request(method, path, {}).status == 401, (method, path)
        assert control.request(method, path, {}, authorization=tokens["elsewhere"]).status == 403, (method, path)
        for role in ROLES:
            answer = control.request(method, path, {}, authorization=tokens[role])
            assert (answer.status == 403) is (not is_enough(role, needed)), (method, path, role, answer.body)
            assert answer.status not in (401, 429), (method, path, role, answer.body)


def test_without_a_login_nothing_but_loopback(store, user_store):
    with pytest.raises(UsageError, match="no admin"):
        ControlPlane(store, host="0.0.0.0", port=0)
    with pytest.raises(UsageError, match="no admin"):
        ControlPlane(store, port=0, auth=True)
    with pytest.raises(UsageError, match="cannot run there without a login"):
        ControlPlane(store, host="0.0.0.0", port=0, auth=False)
    plain = ControlPlane(store, port=0)
    plain.close()
    assert not plain.options.auth
    user_store.add_user("root", {"*": "admin"})
    for host in ("127.0.0.1", "0.0.0.0"):
        control = ControlPlane(store, host=host, port=0)
        control.close()
        assert control.options.auth


def test_the_last_admin_stays(user_store):
    user_store.add_user("root", {"*": "admin"})
    with pytest.raises(ConflictError, match="only admin"):
        user_store.remove_user("root")
    with pytest.raises(ConflictError, match="only admin"):
        user_store.set_roles("root", {"*": "viewer"})
    user_store.add_user("second", {"*": "admin"})
    user_store.remove_user("root")


def test_passwords():
    stored = hash_password(PASSWORD)
    assert PASSWORD not in stored
    assert verify_password(PASSWORD.encode(), stored)
    assert not verify_password(b"wrong horse battery", stored)
    assert not verify_password(PASSWORD.encode(), None)
    assert hash_password(PASSWORD) != stored
    for bad in ("short", "x" * 2000):
        with pytest.raises(UsageError):
            hash_password(bad)


def test_roles():
    both = Principal("user:a", "a", {"*": "viewer", "p": "approver"}, {"*": "editor"})
    assert (both.role_in("p"), both.role_in("q")) == ("editor", "viewer")
    assert Principal("user:a", "a", {"p": "admin"}, {"q": "admin"}).role_in("p") is None
    assert not is_enough("admin", "nonsense")
    assert not is_enough(None, "viewer")


def test_one_ipv6_network_is_one_address():
    limit = FailureLimit(failures=2)
    limit.failed("2001:db8::1")
    limit.failed("2001:db8::2")
    assert limit.wait_s("2001:db8::3") > 0
    assert limit.wait_s("2001:db8:1::3") == 0


def test_of_many_who_move_an_alias_over_http_one_does(store, serve):
    versions = [f"m@{number}" for number in range(1, 9)]
    for number in range(1, 9):
        store.records.put(store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}"))
    alias = "/api/v1/models/m/aliases/live"
    with serve(store) as control, ThreadPoolExecutor(8) as pool:
        for expected in ("nobody", None, None):
            now = expected or find_alias(store, "m", "live").version
            others = [version for version in versions if version != now]
            answers = list(
                pool.map(lambda to, now=now: control.request("PUT", alias, {"version": to, "expect": now}), others)
            )
            (won,) = [answer.json["version"] for answer in answers if answer.status == 200]
            told = [answer.json for answer in answers if answer.status != 200]
            assert {answer.status for answer in answers} == {200, 409}
            assert all(f"held by {won}, not by {now}" in json.dumps(one) for one in told)
            assert find_alias(store, "m", "live").version == won
