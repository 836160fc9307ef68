"""Calls of a loop over HTTP: recorded with their user, once each."""

from __future__ import annotations

import pytest
from litestar.testing import TestClient

from everloop.records import Run, TriggerCall
from everloop.server import make_app

PUSH = {
    "ref": "refs/heads/main",
    "before": "b" * 40,
    "after": "a" * 40,
    "pusher": {"name": "ada"},
    "commits": [
        {"id": "c" * 40, "message": "Tidy", "added": ["new.py"], "modified": ["loop.py"], "removed": []},
        {
            "id": "a" * 40,
            "message": "Use the weather\n\nAt last.",
            "added": [],
            "modified": ["loop.py"],
            "removed": ["x"],
        },
    ],
}


@pytest.fixture
def client(store):
    store.records.put(store.new(Run, name="sales", loop="sales", state="finished", started_at=store.now()))
    with TestClient(make_app(store), base_url="http://127.0.0.1") as opened:
        yield opened


def test_a_call_is_recorded_once(store, client):
    body = {"reason": "new prices", "idempotency": "build-7"}
    answers = [client.post("/api/v1/loops/sales/trigger", json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    [call] = store.records.find(TriggerCall)
    assert (call.reason, call.loop, call.commit) == ("new prices", "sales", None)
    assert client.get("/api/v1/loops/sales/calls").json()[0]["id"] == call.id
    other = client.post("/api/v1/loops/sales/trigger", json={**body, "reason": "another"})
    assert other.status_code == 409


def test_a_push_is_recorded_with_its_branch_and_files(store, client):
    for _ in range(2):
        assert client.post("/api/v1/loops/sales/commits", json=PUSH).status_code == 201
    [call] = store.records.find(TriggerCall)
    assert (call.commit, call.branch, call.files) == ("a" * 40, "main", ("new.py", "loop.py", "x"))
    assert call.reason == "push of aaaaaaaaaa to main: Use the weather"


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("sale/trigger", {}, 404, "no run of a loop 'sale'"),
        ("sales/trigger", {"reason": 3}, 400, "reason"),
        ("sales/trigger", {"idempotency": ""}, 400, "idempotency"),
        ("sales/trigger", {"reason": "x" * 2001}, 400, "reason"),
        ("a%2Fb/trigger", {}, 404, ""),
        ("sales/commits", {**PUSH, "ref": "refs/tags/v1"}, 400, "which is not a branch"),
        ("sales/commits", {**PUSH, "after": "0" * 40}, 400, "the branch was deleted"),
        ("sales/commits", {**PUSH, "after": "main; rm -rf /"}, 400, "after"),
        ("sales/commits", {"after": "a" * 40}, 400, "ref"),
    ],
)
def test_a_wrong_call_is_4xx_and_says_why(store, client, path, body, status, says):
    answer = client.post(f"/api/v1/loops/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.text
    assert store.records.find(TriggerCall) == []
