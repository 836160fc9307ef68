"""What people do from the web page over HTTP: releases, contracts and replays; and what it reads to show them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, strategies as st

from everloop.data.contracts.contract import infer_contract, save_contract
from everloop.data.contracts.contract_editing import edit_contract
from everloop.data.contracts.contract_toml import contract_to_toml
from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import Contract, Decision, EndpointRecord, ModelVersion, Release, Route, Run, StepRun, Trace
from everloop.registry import set_alias
from everloop.server.replay_process import KIND, ReplayProcess
from everloop.server.server_options import ServerOptions
from everloop.server.views.prediction_views import read_prediction
from everloop.server.views.run_views import read_run
from everloop.server.views.storage_views import read_storage
from everloop.server.views.trace_views import read_trace
from everloop.tracking import start_run


def rolling(store):
    for number in (1, 2):
        store.records.put(store.new(ModelVersion, model="m", version=number, package="", run="r"))
    set_alias(store, "m", "champion", "m@1", reason="first")
    routes = (Route(version="m@1", percent=90.0), Route(version="m@2", percent=10.0, role="canary"))
    store.records.put(store.new(EndpointRecord, name="e", model="m", routes=routes, state="ready"))
    start = Decision(at=store.now(), action="start", percent=10.0, reason="first step")
    release = store.new(
        Release, endpoint="e", candidate="m@2", previous="m@1", percent=10.0, steps=(10.0, 50.0, 100.0),
        decisions=(start,),
    )  # fmt: skip
    store.records.put(release)
    return release


def test_a_release_is_decided_over_http(store, serve):
    release = rolling(store)
    path = f"/api/v1/releases/{release.id}"
    with serve(store) as client:
        assert client.request("POST", f"{path}/pause", {"reason": "a holiday"}).json["paused"] is True
        refused = client.request("POST", f"{path}/advance", {"reason": "now"})
        assert (refused.status, "paused" in refused.json["error"]["message"]) == (409, True)
        client.request("POST", f"{path}/resume", {"reason": "back"})
        assert client.request("POST", f"{path}/advance", {"reason": "fine so far"}).json["percent"] == 50.0
        assert client.request("POST", f"{path}/reject", {"reason": "no"}).json["state"] == "rolled_back"
        assert client.request("POST", f"{path}/reject", {"reason": "no"}).status == 409
        assert client.request("POST", f"{path}/pause", {"reason": ""}).status == 400
        assert client.request("POST", f"{path}/explode", {"reason": "x"}).status == 400
        assert client.request("POST", "/api/v1/releases/none/pause", {"reason": "x"}).status == 404
    after = store.records.get(Release, release.id)
    assert [one.action for one in after.decisions][:4] == ["start", "pause", "resume", "advance"]


@pytest.fixture
def contract(store):
    frame = pl.DataFrame({"age": [1.0, 2.0], "late": [True, False]})
    return save_contract(infer_contract(frame, "flights", store, target="late"), store)


RULE = '\n[[rules]]\nrule = "rows"\nleast = 5\n'


def test_an_edited_contract_is_the_newest_one_and_changes_the_projects_file(store, serve, contract, tmp_path):
    folder = tmp_path / "project"
    (folder / "contracts").mkdir(parents=True)
    file = folder / "contracts" / "of-flights.toml"
    file.write_text(contract_to_toml(contract))
    (folder / "contracts" / "broken.toml").write_text("dataset = [")
    text = "# kept: a comment\n" + contract_to_toml(contract) + RULE
    with serve(store, ServerOptions(project_folder=folder)) as client:
        saved = client.request("PUT", "/api/v1/contracts/flights", {"text": text, "expect": "flights@1"})
        assert (saved.status, saved.json["file"], saved.json["contract"]["version"]) == (
            200,
            "contracts/of-flights.toml",
            2,
        )
        late = client.request("PUT", "/api/v1/contracts/flights", {"text": text, "expect": "flights@1"})
        assert (late.status, "in the meantime" in late.json["error"]["message"]) == (409, True)
        wrong = client.request("PUT", "/api/v1/contracts/other", {"text": text})
        assert (wrong.status, "not of 'other'" in wrong.json["error"]["message"]) == (400, True)
    assert "# kept: a comment" in file.read_text()
    assert store.records.get(Contract, "flights@2").rules == ({"rule": "rows", "least": 5},)
    (event,) = [one for one in store.records.events_since(0, kinds=["contract"]) if one.verb == "contract_edited"]
    assert (event.key, event.data["before"]) == ("flights@2", "flights@1")


@pytest.mark.parametrize("text", ["", "dataset = [", 'dataset = "flights"', "x = 1\n", '[[columns]]\nname = "a"\n'])
def test_a_text_that_is_no_contract_is_refused_and_changes_nothing(store, contract, text):
    with pytest.raises(UsageError):
        edit_contract(store, "flights", text)
    assert [one.version for one in store.records.find(Contract)] == [1]


def test_the_same_text_is_the_same_version(store, contract):
    saved, path = edit_contract(store, "flights", contract_to_toml(contract), expect=contract.key)
    assert (saved.key, path) == (contract.key, None)
    with pytest.raises(ConflictError):
        edit_contract(store, "flights", contract_to_toml(contract), expect="flights@7")


def ended(store, replays):
    end = time.monotonic() + 60
    while (attempts := replays.attempts(store))[0].state == "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    return attempts[0]


@pytest.mark.slow
def test_a_replay_that_fails_says_why_and_the_next_one_can_start(store, serve, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "loop.py").write_text("raise RuntimeError('no data today')\n")
    store.records.put(store.new(Run, name="delays", loop="delays", state="finished", started_at=store.now()))
    with serve(store, ServerOptions(project_folder=folder)) as client:
        state = client.request("GET", "/api/v1/replays").json
        assert (state["can_start"], state["loops"], state["attempts"]) == (True, ["delays"], [])
        for body in ({"loop": "other"}, {"loop": "delays", "policies": ["x"]}, {"loop": "delays", "every": "soon"},
                     {"loop": "delays", "every": "0s"}, {"loop": "--help"}):  # fmt: skip
            assert client.request("POST", "/api/v1/replays", body).status == 400, body
        assert client.request("POST", "/api/v1/replays", {"loop": "delays"}).status == 201
        assert client.request("POST", "/api/v1/replays", {"loop": "delays"}).status == 409
        attempt = ended(store, ReplayProcess(store, folder))
        assert (attempt.state, "no data today" in attempt.error) == ("failed", True)
        time.sleep(0.5)
        assert client.request("POST", "/api/v1/replays", {"loop": "delays"}).status == 201
    # The server has stopped, and the process with it, and its end was recorded before the store is closed.
    assert ReplayProcess(store, folder).attempts(store)[0].state == "failed"


def test_without_a_project_nothing_can_be_started(store, serve):
    store.records.put(store.new(Run, name="delays", loop="delays", state="finished", started_at=store.now()))
    with serve(store) as client:
        refused = client.request("POST", "/api/v1/replays", {"loop": "delays"})
        assert (refused.status, "everloop up" in refused.json["error"]["message"]) == (503, True)


def test_a_replay_of_a_server_that_died_is_lost(store):
    store.records.append_event("started", KIND, "one", "delays", {"loop": "delays"})
    (attempt,) = ReplayProcess(store, None).attempts(store)
    assert (attempt.state, attempt.loop) == ("lost", "delays")


def span(key, parent, start, end=0, **more):
    found = {"span_id": key, "parent_span_id": parent, "name": key, "start_time_unix_nano": str(start), **more}
    return found | ({"end_time_unix_nano": str(end)} if end else {})


def trace_of(store, spans):
    digest = store.objects.add(json.dumps(spans).encode())
    trace = store.new(Trace, trace_id="tr-1", experiment="0", requested_at=store.now(), spans=(digest,))
    store.records.put(trace)
    return read_trace(store, trace.trace_id)


def test_spans_are_a_tree_in_the_order_of_their_beginning(store):
    value = {"kvlist_value": {"values": [{"key": "a", "value": {"array_value": {"values": [{"int_value": "1"}]}}}]}}
    found = trace_of(store, [
        span("late", "root", 3_000_000_000, 4_000_000_000, status={"code": "STATUS_CODE_ERROR", "message": "no"}),
        span("root", "", 1_000_000_000, 5_000_000_000, attributes=[{"key": "k", "value": value}]),
        span("early", "root", 2_000_000_000),
        span("below", "late", 3_500_000_000, 3_600_000_000),
    ])  # fmt: skip
    assert [(one.id, one.depth, one.starts, one.seconds) for one in found.spans] == [
        ("root", 0, 0.0, 4.0), ("early", 1, 1.0, None), ("late", 1, 2.0, 1.0), ("below", 2, 2.5, pytest.approx(0.1)),
    ]  # fmt: skip
    assert (found.spans[2].status, found.spans[2].message) == ("error", "no")
    assert found.spans[0].attributes == {"k": '{"a": ["1"]}'}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 99)), max_size=20))
def test_every_span_is_shown_once_whatever_its_parents_say(spans):
    from everloop.server.views.trace_views import _in_tree_order

    known = {str(key): span(str(key), str(parent), start) for key, parent, start in spans}
    ordered = _in_tree_order(known)
    assert sorted(one["span_id"] for one, _ in ordered) == sorted(known)


def test_steps_of_a_run_under_a_clock_that_stood_still_follow_each_other(store):
    with start_run("x", store=store) as run:
        pass
    began = store.records.get(Run, run.id).started_at
    for name, needs, seconds in (("a", (), 2.0), ("b", ("a",), 3.0), ("c", ("a", "b"), 1.0)):
        step = store.new(
            StepRun, run=run.id, name=name, status="ran", reason="", fingerprint="", code="", depends_on=needs,
            seconds=seconds,
        )  # fmt: skip
        store.records.put(step)
    detail = read_run(store, run.id)
    assert [(one.name, one.starts) for one in detail.steps] == [("a", 0.0), ("b", 2.0), ("c", 5.0)]
    assert began is not None


def test_an_unknown_prediction_is_not_found(store):
    with pytest.raises(NotFoundError):
        read_prediction(store, "0198-nothing")


def test_storage_has_the_size_of_every_local_part(store):
    digest = store.objects.add(b"x" * 1000)
    found = {one.name: one for one in read_storage(store).parts}
    assert found["objects"].size_bytes >= 1000
    assert found["records"].size_bytes > 0
    assert all(one.complete for one in found.values())
    assert Path(read_storage(store).home) == store.home
    assert digest


def test_two_hundred_runs_are_compared_by_one_request(store, serve):
    runs = [store.new(Run, name="r", state="finished", started_at=store.now(), params={"n": n}) for n in range(200)]
    store.records.put(*runs)
    # A list is divided among parameters of one name, since each is limited in length.
    parts = [",".join(run.id for run in runs[start : start + 40]) for start in range(0, 200, 40)]
    with serve(store) as client:
        answer = client.request("GET", "/api/v1/views/compare?" + "&".join(f"runs={part}" for part in parts))
        assert (answer.status, len(answer.json["runs"])) == (200, 200)
        curves = client.request("GET", "/api/v1/views/curves?keys=a&" + "&".join(f"runs={part}" for part in parts))
        assert (curves.status, curves.json) == (200, [])


def test_the_table_of_runs_chooses_the_first_metrics_by_itself(store, serve):
    metrics = {"auc": 0.5, "val/loss": 1.0, "zeta": 2.0, "b": 3.0}
    with start_run("x", store=store) as run:
        run.log(metrics)
    with serve(store) as client:
        table = client.request("GET", "/api/v1/views/runs").json
        assert table["columns"][-3:] == ["metrics.auc", "metrics.b", 'metrics."val/loss"']
        assert [table["rows"][0][name] for name in table["columns"][-3:]] == [0.5, 3.0, 1.0]
        none = client.request("GET", "/api/v1/views/runs?columns=,").json
        assert not [name for name in none["columns"] if name.startswith("metrics.")]


def test_the_metrics_that_decide_about_models_come_first_in_the_table_of_runs(store, serve):
    with start_run("x", store=store) as run:
        run.log({"accuracy": 0.9, "alpha": 1.0, "log_loss": 0.3, "roc_auc": 0.7})
    with serve(store) as client:
        table = client.request("GET", "/api/v1/views/runs").json
    assert table["columns"][-3:] == ["metrics.roc_auc", "metrics.log_loss", "metrics.accuracy"]
