"""What the web page shows: one request for each page, of a store with and without content."""

from __future__ import annotations

import pytest

from everloop.errors import NotFoundError, UsageError
from everloop.records import AliasRequest, EndpointRecord, Incident, ModelVersion, Release, Route, Run
from everloop.registry import set_alias
from everloop.server.views.artifact_views import read_artifact, read_content
from everloop.server.views.data_views import read_diff
from everloop.server.views.distribution_views import read_distributions
from everloop.server.views.endpoint_views import read_endpoint, read_heat_map
from everloop.server.views.incident_views import read_incident
from everloop.server.views.loop_view import STAGES, read_overview
from everloop.server.views.registry_views import list_models, read_model, read_version
from everloop.server.views.replay_views import list_replays, read_replay
from everloop.server.views.run_groups import group_runs
from everloop.server.views.run_views import compare, read_curves, read_run, read_run_table
from everloop.tracking import start_run


@pytest.fixture
def filled(store):
    """A loop with two runs, a champion and a candidate that has half of the traffic."""
    with start_run("delays", store=store, loop="delays", trigger="first: the loop has not run yet") as run:
        for step in range(50):
            run.log({"loss": 1.0 / (step + 1), "flat": float("nan") if step == 3 else 2.0}, step=step)
    now = store.now()
    version = store.new(
        ModelVersion,
        model="delays",
        version=1,
        package="",
        run=run.id,
        metrics={"auc": 0.7},
        evaluation={"metric": "auc"},
    )
    later = store.new(ModelVersion, model="delays", version=2, package="", run=run.id, metrics={"auc": 0.8})
    store.records.put(version, later)
    set_alias(store, "delays", "champion", "delays@1", reason="first")
    routes = (Route(version="delays@1", percent=50.0), Route(version="delays@2", percent=50.0, role="canary"))
    store.records.put(store.new(EndpointRecord, name="delays", model="delays", routes=routes, state="ready"))
    store.records.put(
        store.new(
            Release, endpoint="delays", candidate="delays@2", previous="delays@1", percent=50.0, steps=(50.0, 100.0)
        )
    )
    store.records.put(
        store.new(
            Incident,
            endpoint="delays",
            kind="drift",
            severity="alarm",
            title="<b>'temp'</b> has risen",
            began_at=now,
            seen_at=now,
        ),
        verb="opened",
    )
    return run.id


def test_an_empty_store_has_no_loops_and_nothing_waits(store):
    overview = read_overview(store)
    assert (overview.loops, overview.attention, overview.runs) == ([], [], 0)
    assert list_models(store) == []


def test_the_home_page_shows_every_stage_of_a_loop(store, filled):
    overview = read_overview(store)
    (loop,) = overview.loops
    stages = {stage.name: stage for stage in loop.stages}
    assert tuple(stages) == STAGES
    assert (loop.model, loop.endpoint, loop.champion) == ("delays", "delays", "delays@1")
    assert (stages["release"].state, stages["release"].headline) == ("busy", "delays@2 has 50 %")
    assert (stages["watch"].state, stages["watch"].detail) == ("attention", "<b>'temp'</b> has risen")
    assert stages["retrain"].headline == "Last run: first"
    assert [one.kind for one in overview.attention] == ["incident"]
    opened = next(one for one in overview.happenings if one.kind == "incident")
    assert opened.subject == "<b>'temp'</b> has risen"
    assert opened.link.startswith("monitor/")


def test_a_failed_last_run_needs_a_person_until_a_later_run_succeeds(store, filled):
    with pytest.raises(ZeroDivisionError), start_run("delays", store=store, loop="delays"):
        raise ZeroDivisionError
    assert [one.kind for one in read_overview(store).attention] == ["run", "incident"]
    with start_run("delays", store=store, loop="delays"):
        pass
    assert [one.kind for one in read_overview(store).attention] == ["incident"]


def test_the_table_of_runs_has_the_requested_columns_and_continues(store, filled):
    for _ in range(4):
        with start_run("more", store=store):
            pass
    first = read_run_table(store, "", ["-started_at"], ["metrics.loss"], 3, None)
    rest = read_run_table(store, "", ["-started_at"], ["metrics.loss"], 3, first.next)
    assert (first.total, rest.total, rest.next) == (5, None, None)
    rows = [*first.rows, *rest.rows]
    assert len({row["id"] for row in rows}) == 5
    assert next(row for row in rows if row["id"] == filled)["metrics.loss"] == pytest.approx(0.02)
    with pytest.raises(UsageError, match="too many"):
        read_run_table(store, "", ["-started_at"], [f"metrics.m{n}" for n in range(100)], 3, None)


def test_a_run_has_its_steps_curves_and_command(store, filled):
    detail = read_run(store, filled)
    assert detail.metric_keys == ["flat", "loss"]
    assert detail.reproduce == f"everloop reproduce {filled}"
    flat, loss = read_curves(store, [filled], ["flat", "loss"], 500)
    assert (len(loss.values), loss.total, flat.values[3]) == (50, 50, None)
    assert loss.values[0] == 1.0
    with pytest.raises(NotFoundError):
        read_curves(store, ["gone"], ["loss"], 500)
    many = read_curves(store, [filled] * 11, ["flat", "loss"], 10)
    assert [(one.total, one.key) for one in many] == [(None, "flat"), (None, "loss")]
    overview = next(one for one in many if one.key == "loss")
    assert len(overview.steps) == 10
    assert (overview.steps[0], overview.steps[-1]) == (loss.steps[0], loss.steps[-1])
    assert set(overview.values) <= set(loss.values)
    with pytest.raises(NotFoundError):
        read_curves(store, [*[filled] * 30, "gone"], ["loss"], 500)
    with pytest.raises(UsageError, match="out of range"):
        read_curves(store, [filled], ["loss"], 3)


def test_a_comparison_lists_what_differs(store, filled):
    with start_run("other", store=store, params={"lr": 0.1}) as other:
        other.log({"loss": 9.0})
    found = compare(store, [filled, other.id, filled])
    assert [run.id for run in found.runs] == [filled, other.id]
    assert found.groups["params"] == {"lr": [None, 0.1]}
    with pytest.raises(UsageError):
        compare(store, [filled])


def test_models_and_versions_show_who_answers(store, filled):
    (model,) = list_models(store)
    assert (model.champion, model.newest, model.metric, model.value, model.endpoint) == (
        "delays@1",
        "delays@2",
        "auc",
        0.7,
        "delays",
    )
    assert [one.key for one in read_model(store, "delays").versions] == ["delays@2", "delays@1"]
    assert [one.version for one in read_model(store, "delays").champions] == ["delays@1"]
    detail = read_version(store, "delays@2")
    assert [node.kind for node in detail.lineage] == ["run", "version", "release"]
    assert detail.lineage[1].parents == ["run"]
    with pytest.raises(NotFoundError):
        read_model(store, "nothing")


def test_an_endpoint_without_predictions_has_no_traffic(store, filled):
    detail = read_endpoint(store, "delays")
    assert (detail.traffic, detail.failures, detail.performance) == ([], {}, [])
    assert [one.candidate for one in detail.releases] == ["delays@2"]
    assert read_heat_map(store, "delays").cells == []
    with pytest.raises(NotFoundError):
        read_endpoint(store, "nothing")


def test_an_incident_offers_the_commands_that_are_possible_now(store, filled):
    from everloop.monitoring.incidents.incident_actions import resolve

    (incident,) = store.records.find(Incident)
    assert set(read_incident(store, incident.id).commands) == {"ack", "mute", "accept", "resolve"}
    resolve(store, incident.id, "seen")
    assert read_incident(store, incident.id).commands == {}


def test_a_lost_run_is_shown_as_such(store, filled):
    store.records.put(store.new(Run, name="x", loop="x", started_at=store.now(), state="lost"))
    assert any(one.title == "The last run of x was lost: its process died" for one in read_overview(store).attention)


def test_runs_are_grouped_and_each_group_has_a_filter_that_finds_it(store):
    values = [0.1, 0.1, 'it\'s "so" \\', True, None]
    for number, value in enumerate(values):
        with start_run("run", store=store, params={} if value is None else {"p": value}) as run:
            run.log({"auc": float(number) if number != 1 else float("nan")})
    found = group_runs(store, "params.p", "metrics.auc")
    assert (found.read, found.total, found.left_out) == (5, 5, 0)
    assert (found.groups[0].value, found.groups[0].runs, found.groups[0].measured) == ("0.1", 2, 1)
    for group in found.groups:
        assert read_run_table(store, group.filter, ["-started_at"], [], 10, None).total == group.runs, group
    with pytest.raises(UsageError):
        group_runs(store, "", None)


def test_artifacts_are_previewed_by_their_bytes_and_pickles_are_not_loaded(store):
    import polars as pl

    with start_run("r", store=store) as run:
        cases = {
            run.log_artifact("a.png", b"\x89PNG\r\n\x1a\nrest").id: ("image", "image/png"),
            # Bytes decide: what is declared as a picture and is not one is not sent as one.
            run.log_artifact("b.png", b"<html><script>", meta={"media": "image/png"}).id: (
                "html",
                "text/html; charset=utf-8",
            ),
            run.log_artifact("c.svg", b"<?xml version='1.0'?><svg onload='x'/>").id: ("image", "image/svg+xml"),
            run.log_text("d", "caf\u00e9").id: ("text", "text/plain; charset=utf-8"),
            run.log_json("e", {"a": 1}).id: ("json", "application/json"),
            run.log_artifact("f", b"\0\1").id: ("none", "application/octet-stream"),
            run.log_model(object, "g").id: ("none", "application/octet-stream"),
        }
        table = run.log_table("t", pl.DataFrame({"x": [1.5, float("nan"), None]}))
        quoted = run.log_artifact('a"\r\nset-cookie: x', b"text")
    for ref, expected in cases.items():
        preview = read_artifact(store, ref)
        assert (preview.shows, preview.media) == expected
    rows = read_artifact(store, table.id).table
    assert rows is not None
    assert (rows.rows, rows.total_rows) == ([["1.5"], ["nan"], [None]], 3)
    assert read_content(store, quoted.id)[2] == "a___set-cookie__x"
    with pytest.raises(NotFoundError):
        read_artifact(store, "gone")


def test_snapshots_of_different_datasets_are_not_compared(store):
    import polars as pl

    from everloop.data.snapshots.snapshots import take_snapshot

    one = take_snapshot(pl.DataFrame({"x": [1, 2]}), "a", store)
    two = take_snapshot(pl.DataFrame({"x": [1, 2, 3]}), "a", store)
    other = take_snapshot(pl.DataFrame({"x": [1]}), "b", store)
    assert read_diff(store, one.key, two.key).rows_added == 1
    with pytest.raises(UsageError, match="different datasets"):
        read_diff(store, one.key, other.key)


def test_only_kept_replays_are_listed_and_an_incident_without_a_baseline_has_no_distributions(store, filled):
    with start_run("replay", store=store) as run:
        run.log_text("replay", "a text of that name")
        kept = run.log_artifact("replay", {"policies": {}}, meta={"shows": "json", "title": "t", "policies": 0})
        other = run.log_json("other", {})
    assert [(one.id, one.title) for one in list_replays(store)] == [(kept.id, "t")]
    assert read_replay(store, kept.id).result == {"policies": {}}
    with pytest.raises(NotFoundError, match="not a replay"):
        read_replay(store, other.id)
    (incident,) = store.records.find(Incident)
    assert read_distributions(store, incident.id) == []


def test_the_home_page_tells_who_waits_and_not_what_happens_inside(store, filled):
    release = store.records.find(Release)[0]
    store.records.append_event("guarded", "release", release.id, release.key, {"watch": 1})
    assert "guarded" not in {one.verb for one in read_overview(store).happenings}
    for version, state in (("delays@1", "approved"), ("delays@2", "open"), ("delays@2", "applied")):
        store.records.put(
            store.new(
                AliasRequest, model="delays", alias="spare", version=version, asked_by="user:ada", state=state,
            )
        )  # fmt: skip
    titles = [one.title for one in read_overview(store).attention if one.kind == "approval"]
    assert titles == ["delays@2 needs approval to become spare", "delays@1 is approved to become spare"]
