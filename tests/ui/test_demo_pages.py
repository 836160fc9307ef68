"""The web page over the demo's real store: every page, the ways between them, and every action."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.fixtures.finished_demo import KEYS, copy_demo
from tests.ui.conftest import Served, Watched, free_port, watch
from tests.ui.visits import complaints_of_axe, complaints_of_shape, confirm, settled_width, visit

from everloop.records import (
    Alias,
    AliasRequest,
    Artifact,
    Contract,
    Event,
    Incident,
    ModelVersion,
    Release,
    Run,
    Snapshot,
    TriggerCall,
)
from everloop.registry import request_alias, set_policy
from everloop.server.access import UserStore
from everloop.server.server_options import ServerOptions
from everloop.server.webhooks.webhook_delivery import Webhooks
from everloop.stores import open_store

PROJECT = "flight-delays"


@pytest.fixture(scope="module")
def demo(finished_demo, tmp_path_factory):
    """A copy of the finished demo, which the tests of this module change."""
    return copy_demo(finished_demo, tmp_path_factory.mktemp("demo") / "flights")


@pytest.fixture
def store(demo, monkeypatch):
    monkeypatch.setenv("EVERLOOP_KEYS", str(demo / KEYS))
    with open_store(demo / ".everloop", project=PROJECT, actor="user:operator") as opened:
        yield opened


@pytest.fixture(scope="module")
def served(demo, built_page):
    server = Served(demo / ".everloop", free_port(), name=PROJECT)
    server.start()
    yield server
    server.stop()


def addresses(store: Any) -> list[str]:
    """Return the address of every kind of page that the demo's store fills."""
    run = store.records.find(Run, ("loop", "=", PROJECT), order="-id", limit=3)
    artifacts = {one.type: one.id for one in store.records.find(Artifact, ("run", "=", run[0].id))}
    incidents = {one.kind: one.id for one in store.records.find(Incident)}
    newest = store.records.find(Snapshot, order="-id", limit=1)[0]
    return [
        "loop", "runs", "runs?group=trigger", f"runs/{run[0].id}", f"compare?runs={','.join(one.id for one in run)}",
        "data", f"data/{newest.key.replace('@', '%40')}", "models", "models/delays", "models/delays/1",
        f"models/delays/{len(store.records.find(ModelVersion))}?before=delays%401", "endpoints", "endpoints/delays",
        "monitor", *(f"monitor/{one}" for one in incidents.values()), "replay", "traces", "settings",
        *(f"artifacts/{one}" for one in artifacts.values()),
    ]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_passes_axe_fits_a_phone_and_complains_about_nothing(served, watched, store, theme):
    page = watched.page
    page.emulate_media(color_scheme=theme)
    found: list[str] = []
    for path in addresses(store):
        page.set_viewport_size({"width": 1440, "height": 900})
        visit(page, served, path)
        if page.get_by_role("alert").count():
            found.append(f"{path}: {page.get_by_role('alert').first.inner_text()}")
        found += [f"{path}: {one}" for one in complaints_of_axe(page) + complaints_of_shape(page)]
        page.set_viewport_size({"width": 400, "height": 800})
        if (width := settled_width(page)) > 400:
            found.append(f"{path}: {width} pixels wide on a phone")
    assert not found, "\n".join(found)
    assert watched.unexpected() == []


def test_from_the_loop_to_an_incident_its_rows_an_answer_and_where_that_came_from(served, watched):
    page = watched.page
    visit(page, served, "loop")
    page.locator(".attention a").first.click()
    page.wait_for_function("() => location.hash.startsWith('#/monitor/')")
    page.get_by_role("heading", name="Distributions").wait_for()
    page.locator("h3 a").first.click()
    page.wait_for_function("() => location.hash.includes('subject=')")
    page.get_by_label("Order").select_option("largest")
    rows = page.get_by_role("region", name=re.compile("^Predictions with "))
    rows.get_by_role("link").first.click()
    page.wait_for_function("() => location.hash.startsWith('#/predictions/')")
    page.get_by_role("group", name="Lineage of the prediction").wait_for()
    page.locator("svg a[href^='#/models/']").first.click()
    page.wait_for_function("() => location.hash.startsWith('#/models/')")
    page.get_by_role("group", name=re.compile("^Lineage of delays@")).wait_for()
    page.locator("svg a[href^='#/runs/']").first.click()
    page.get_by_role("heading", name="Steps").wait_for()
    page.get_by_role("region", name="Artifacts").get_by_role("link").first.click()
    page.get_by_role("region", name="The first rows").wait_for()
    assert watched.unexpected() == []


def test_labels_say_how_good_the_answers_were_and_how_late_that_is_known(served, watched):
    page = watched.page
    visit(page, served, "monitor")
    page.get_by_role("img", name=re.compile("realised and estimated")).wait_for()
    page.wait_for_selector("text=estimated without labels", timeout=90_000)
    assert re.search(r"[\d,]+ of [\d,]+ predictions have a label", page.locator("main").inner_text())


def test_two_versions_are_compared_and_the_card_is_shown(served, watched):
    page = watched.page
    visit(page, served, "models/delays/2?before=delays%401")
    differences = page.get_by_role("region", name="Differences").inner_text()
    assert "metrics" in differences
    card = page.get_by_role("region", name="Model card")
    card.get_by_role("heading", name="Metrics").wait_for()
    assert "\\[" not in card.inner_text()


def test_a_release_is_paused_resumed_advanced_approved_and_rejected(served, watched, store):
    page = watched.page
    release = store.records.find(Release, ("state", "=", "rolling_out"))[0]
    visit(page, served, "endpoints/delays")
    for verb, check in (
        ("Pause", lambda one: one.paused),
        ("Resume", lambda one: not one.paused),
        ("Approve", lambda one: one.approved_by is not None),
        ("Reject", lambda one: one.state == "rolled_back"),
    ):
        page.get_by_role("button", name=verb, exact=True).first.wait_for()
        command = confirm(page, verb, f"{verb} the release of {release.candidate}?", reason=f"because of {verb}")
        assert command == f"everloop release {verb.lower()} delays --reason 'because of {verb}'"
        after = store.records.get(Release, release.id)
        assert check(after), verb
        assert f"because of {verb}" in after.decisions[-1].reason
    page.get_by_text("rolled back").first.wait_for()
    assert watched.unexpected() == []


def test_a_release_is_advanced_step_by_step_until_its_candidate_is_champion(
    finished_demo, tmp_path, browser, built_page, monkeypatch
):
    folder = copy_demo(finished_demo, tmp_path / "flights")
    monkeypatch.setenv("EVERLOOP_KEYS", str(folder / KEYS))
    server = Served(folder / ".everloop", free_port(), name=PROJECT)
    server.start()
    context = browser.new_context()
    try:
        found: Watched = watch(context.new_page())
        visit(found.page, server, "endpoints/delays")
        with open_store(folder / ".everloop", project=PROJECT) as store:
            (release,) = store.records.find(Release, ("state", "=", "rolling_out"))
            remaining = [step for step in release.steps if step > release.percent]
            assert remaining
            for step in remaining:
                found.page.locator("li:not(.reached)", has_text=f"{step:g} %").wait_for()
                command = confirm(found.page, "Advance", f"Advance the release of {release.candidate}?", reason="sure")
                assert command == "everloop release advance delays --reason sure"
                assert store.records.get(Release, release.id).percent == step
            assert store.records.get(Release, release.id).state == "completed"
            assert store.records.get(Alias, "delays@champion").version == release.candidate
        found.page.get_by_text("completed").first.wait_for()
        assert found.page.get_by_role("button", name="Advance", exact=True).count() == 0
        assert found.unexpected() == []
    finally:
        context.close()
        server.stop()


def test_an_incident_is_muted_unmuted_accepted_and_another_resolved(served, watched, store):
    page = watched.page
    ongoing = [one for one in store.records.find(Incident) if one.state == "open"]
    first = ongoing[0]
    visit(page, served, f"monitor/{first.id}")
    for verb, label, state in (
        ("mute", "Mute", "muted"),
        ("unmute", "Unmute", "open"),
        ("ack", "Acknowledge", "acknowledged"),
        ("accept", "Accept as normal", "accepted"),
    ):
        page.get_by_role("button", name=label, exact=True).first.wait_for()
        command = confirm(page, label, f"{label}?", reason="seen")
        assert command == f"everloop monitor {verb} {first.id} --reason seen"
        assert store.records.get(Incident, first.id).state == state
    other = ongoing[1] if len(ongoing) > 1 else None
    if other is not None:
        visit(page, served, f"monitor/{other.id}")
        confirm(page, "Resolve", "Resolve?")
        assert store.records.get(Incident, other.id).state == "resolved"
    assert watched.unexpected() == []


def test_an_alias_moves_and_requests_are_approved_and_rejected_by_another_person(served, watched, store, demo):
    page = watched.page
    visit(page, served, "models/delays/1")
    page.get_by_role("button", name="Set alias", exact=True).click()
    dialog = page.get_by_role("dialog", name="Set an alias of delays@1?")
    dialog.get_by_label("Alias").fill("fallback")
    assert "everloop models promote delays@1 --alias fallback" in dialog.inner_text()
    dialog.get_by_role("button", name="Set alias", exact=True).click()
    dialog.wait_for(state="hidden")
    assert store.records.get(Alias, "delays@fallback").version == "delays@1"
    page.locator(".tag", has_text="fallback").first.wait_for()
    with open_store(demo / ".everloop", project=PROJECT, actor="user:vera") as other:
        set_policy(other, "delays", "fallback", 1)
        request = request_alias(other, "delays", "fallback", "delays@4", "newer")
    visit(page, served, "models/delays")
    command = confirm(page, "Approve", "Approve delays@4 as fallback?", reason="fine")
    assert command == f"everloop models approve {request.id} --reason fine"
    assert store.records.get(AliasRequest, request.id).state == "approved"
    command = confirm(page, "Move the alias", "Make delays@4 the fallback?")
    assert command == "everloop models promote delays@4 --alias fallback"
    assert store.records.get(AliasRequest, request.id).state == "applied"
    assert store.records.get(Alias, "delays@fallback").version == "delays@4"
    with open_store(demo / ".everloop", project=PROJECT, actor="user:vera") as other:
        request = request_alias(other, "delays", "fallback", "delays@3", "newest")
    visit(page, served, "models/delays")
    command = confirm(page, "Reject", "Reject delays@3 as fallback?", reason="not yet")
    assert command == f"everloop models reject {request.id} --reason 'not yet'"
    rejected = store.records.get(AliasRequest, request.id)
    assert (rejected.state, [vote.reason for vote in rejected.votes]) == ("rejected", ["not yet"])
    assert store.records.get(Alias, "delays@fallback").version == "delays@4"
    # Another request can be made from the page, and not be approved by the person who made it.
    visit(page, served, "models/delays/3")
    page.get_by_role("button", name="Request approval", exact=True).click()
    dialog = page.get_by_role("dialog", name="Request approval of delays@3?")
    dialog.get_by_label("Alias").fill("fallback")
    dialog.get_by_role("button", name="Request approval", exact=True).click()
    dialog.wait_for(state="hidden")
    page.get_by_role("button", name="Approve", exact=True).click()
    dialog = page.get_by_role("dialog", name="Approve delays@3 as fallback?")
    dialog.get_by_role("button", name="Approve", exact=True).click()
    dialog.get_by_role("alert").wait_for()
    assert [one for one in watched.unexpected() if "status of 4" not in one] == []


def test_a_version_is_described_and_archived(served, watched, store):
    page = watched.page
    visit(page, served, "models/delays/2")
    page.get_by_role("button", name="Describe", exact=True).click()
    dialog = page.get_by_role("dialog", name="Describe delays@2")
    dialog.get_by_label("Description").fill("The second one.")
    dialog.get_by_role("button", name="Describe", exact=True).click()
    dialog.wait_for(state="hidden")
    confirm(page, "Archive", "Archive delays@2?", reason="old")
    after = store.records.find(ModelVersion, ("key", "=", "delays@2"))[0]
    assert (after.description, after.state) == ("The second one.", "archived")
    confirm(page, "Unarchive", "Bring back delays@2?", reason="needed again")
    after = store.records.find(ModelVersion, ("key", "=", "delays@2"))[0]
    assert after.state != "archived"
    page.get_by_role("button", name="Archive", exact=True).wait_for()


def test_a_contract_is_edited_and_a_second_tab_that_has_the_old_one_is_refused(served, watched, store):
    page = watched.page
    dataset = store.records.find(Contract, order="-id", limit=1)[0].dataset
    newest = store.records.find(Snapshot, ("dataset", "=", dataset), order="-id", limit=1)[0]
    before = store.records.find(Contract, ("dataset", "=", dataset), order="-version", limit=1)[0]
    other = watch(page.context.new_page())
    # The second tab must not hear of the first one's change.
    other.page.route("**/api/v1/stream", lambda route: route.abort())
    for tab in (page, other.page):
        visit(tab, served, f"data/{dataset}%40{newest.version}")
    texts = [tab.locator("textarea.mono") for tab in (page, other.page)]
    source = texts[0].input_value()
    texts[0].fill(source.replace('type = "float"', 'type = "float"', 1) + '\n[[rules]]\nrule = "rows"\nleast = 1\n')
    texts[1].fill(source + '\n[[rules]]\nrule = "rows"\nleast = 2\n')
    confirm(page, "Save contract", f"Save the contract of {dataset}?", reason="at least one row")
    after = store.records.find(Contract, ("dataset", "=", dataset), order="-version", limit=1)[0]
    assert (after.version, after.rules[-1]["least"]) == (before.version + 1, 1)
    other.page.get_by_role("button", name="Save contract", exact=True).click()
    dialog = other.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Save contract", exact=True).click()
    assert "changed in the meantime" in dialog.get_by_role("alert").inner_text()
    # A text that is not a contract is refused with the reason.
    visit(page, served, f"data/{dataset}%40{newest.version}")
    page.locator("textarea.mono").fill("dataset = [")
    page.get_by_role("button", name="Save contract", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Save contract", exact=True).click()
    assert "not valid TOML" in dialog.get_by_role("alert").inner_text()


def test_a_loop_is_called(served, watched, store):
    visit(watched.page, served, "loop")
    command = confirm(watched.page, "Call this loop", f"Call the loop '{PROJECT}'?", reason="new rules")
    assert command == f"everloop trigger {PROJECT} --reason 'new rules'"
    (call,) = store.records.find(TriggerCall, ("loop", "=", PROJECT))
    assert call.reason == "new rules"


def test_a_rollback_ends_the_rollout_and_another_one_brings_back_the_previous_champion(served, watched, store):
    page = watched.page
    rolling = store.records.find(Release, ("state", "=", "rolling_out"))
    if rolling:
        visit(page, served, "endpoints/delays")
        confirm(page, "Roll back", "Roll back 'delays'?", reason="too risky")
        assert store.records.get(Release, rolling[0].id).state == "rolled_back"
    before = store.records.get(Alias, "delays@champion").version
    visit(page, served, "endpoints/delays")
    command = confirm(page, "Roll back", "Roll back 'delays'?", reason="worse")
    assert command == "everloop release rollback delays --reason worse"
    assert store.records.get(Alias, "delays@champion").version != before
    assert watched.unexpected() == []


def test_users_tokens_and_webhooks_are_managed_by_an_admin(
    finished_demo, tmp_path, browser, built_page, monkeypatch, listener
):
    folder = copy_demo(finished_demo, tmp_path / "flights")
    monkeypatch.setenv("EVERLOOP_KEYS", str(folder / KEYS))
    with open_store(folder / ".everloop", project=PROJECT) as store:
        users = UserStore(store)
        users.add_user("root", {"*": "admin"}, "a long password of root")
        server = Served(folder / ".everloop", free_port(), auth=True, name=PROJECT)
        server.start()
        context = browser.new_context(http_credentials={"username": "root", "password": "a long password of root"})
        try:
            found: Watched = watch(context.new_page())
            page = found.page
            visit(page, server, "settings")
            page.get_by_role("button", name="Create a token", exact=True).click()
            dialog = page.get_by_role("dialog", name="Create a token")
            dialog.get_by_role("textbox", name="Name").fill("ci")
            assert "everloop tokens create ci --user root --expires 90d" in dialog.inner_text()
            dialog.get_by_role("button", name="Create a token", exact=True).click()
            dialog.wait_for(state="hidden")
            secret = page.get_by_role("status").locator("code").inner_text()
            assert page.request.get(f"{server.url}/api/v1/access/me", headers={"authorization": f"Bearer {secret}"}).ok
            confirm(page, "Revoke", "Revoke the token 'ci'?")
            assert [one.revoked_at is not None for one in users.tokens()] == [True]
            page.get_by_role("button", name="Add a user", exact=True).click()
            dialog = page.get_by_role("dialog", name="Add a user")
            dialog.get_by_role("textbox", name="Name").fill("vera")
            dialog.get_by_role("button", name="Add a user", exact=True).click()
            dialog.wait_for(state="hidden")
            row = page.get_by_role("row", name=re.compile("^vera"))
            row.get_by_role("button", name="Change role").click()
            dialog = page.get_by_role("dialog", name="Change the role of vera?")
            dialog.get_by_label("Role", exact=True).select_option("editor")
            dialog.get_by_role("button", name="Change role", exact=True).click()
            dialog.wait_for(state="hidden")
            assert dict(next(one for one in users.users() if one.name == "vera").roles) == {"*": "editor"}
            row.get_by_role("button", name="Remove").click()
            dialog = page.get_by_role("dialog", name="Remove vera?")
            dialog.get_by_role("button", name="Remove", exact=True).click()
            dialog.wait_for(state="hidden")
            assert [one.name for one in users.users()] == ["root"]
            page.get_by_role("button", name="Add a webhook", exact=True).click()
            dialog = page.get_by_role("dialog", name="Add a webhook")
            dialog.get_by_role("textbox", name="Name").fill("chat")
            dialog.get_by_role("textbox", name="URL").fill("http://169.254.169.254/latest")
            dialog.get_by_role("button", name="Add a webhook", exact=True).click()
            dialog.get_by_role("alert").wait_for()
            dialog.get_by_role("button", name="Cancel").click()
            # Nothing on this machine may receive events, so the webhook of a private network comes from elsewhere.
            private = ServerOptions(webhook_networks=("203.0.113.0/24",))
            Webhooks(store, private).add("chat", "https://203.0.113.7/hook", ())
            page.reload()
            page.get_by_role("row", name=re.compile("^chat")).get_by_role("button", name="Remove").click()
            dialog = page.get_by_role("dialog", name="Remove the webhook chat?")
            dialog.get_by_role("button", name="Remove", exact=True).click()
            dialog.wait_for(state="hidden")
            page.get_by_text("No webhooks").wait_for()
            # A network that the operator allows receives events, and a test message with its signature.
            server.stop()
            server.options = ("--allow-webhook-network", "127.0.0.1/32")
            server.start()
            page.reload()
            page.get_by_role("button", name="Add a webhook", exact=True).click()
            dialog = page.get_by_role("dialog", name="Add a webhook")
            dialog.get_by_role("textbox", name="Name").fill("pager")
            dialog.get_by_role("textbox", name="URL").fill(f"http://127.0.0.1:{listener.server_port}/hook")
            dialog.get_by_role("button", name="Add a webhook", exact=True).click()
            dialog.wait_for(state="hidden")
            assert page.get_by_role("status").locator("code").inner_text()
            confirm(page, "Test", "Send a test message to pager?")
            page.get_by_text("pager answered 204.").wait_for()
            assert [path for path, _, _ in listener.got] == ["/hook"]
            assert listener.got[0][1]["X-Everloop-Signature"].startswith("sha256=")
            assert "everloop.db" in page.get_by_role("region", name="Storage").inner_text()
        finally:
            context.close()
            server.stop()


def test_a_request_is_tried_on_a_live_endpoint_and_a_replay_is_started(finished_demo, tmp_path, browser, built_page):
    folder = copy_demo(finished_demo, tmp_path / "flights")
    server = Served(folder / ".everloop", free_port(), project=folder)
    server.start()
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        found: Watched = watch(context.new_page())
        page = found.page
        visit(page, server, "endpoints/delays")
        page.locator(".head").get_by_text("ready", exact=True).wait_for(timeout=90_000)
        page.get_by_label(re.compile("^carrier")).select_option("AA")
        page.get_by_label(re.compile("^origin")).select_option("JFK")
        page.get_by_label(re.compile("^distance")).fill("far")
        page.get_by_role("button", name="Predict", exact=True).click()
        alert = page.locator("form").get_by_role("alert")
        alert.wait_for()
        assert "distance" in alert.inner_text()
        page.get_by_label(re.compile("^distance")).fill("2475")
        page.get_by_role("button", name="Predict", exact=True).click()
        answer = page.get_by_role("status").filter(has_text="prediction:")
        answer.wait_for()
        contributions = answer.get_by_role("region", name="Contributions")
        assert contributions.get_by_role("row").count() > 3
        answer.get_by_role("link").nth(1).click()
        page.get_by_role("group", name="Lineage of the prediction").wait_for()
        assert "2475" in page.get_by_role("region", name="Inputs").inner_text()
        visit(page, server, "replay")
        page.get_by_role("button", name="Start a replay", exact=True).click()
        dialog = page.get_by_role("dialog", name="Start a replay")
        dialog.get_by_label("never").check()
        dialog.get_by_label("Length of a period").select_option("4w")
        assert f"everloop replay {PROJECT} --every 4w --policies never" in dialog.inner_text()
        dialog.get_by_role("button", name="Start a replay", exact=True).click()
        dialog.wait_for(state="hidden")
        page.get_by_role("region", name="Replays that were started here").get_by_text("running").wait_for()
        page.get_by_role("button", name="Start a replay", exact=True).click()
        dialog.get_by_role("button", name="Start a replay", exact=True).click()
        assert "running already" in dialog.get_by_role("alert").inner_text()
        assert [one for one in found.unexpected() if "status of 4" not in one] == []
    finally:
        context.close()
        server.stop()
    with open_store(folder / ".everloop", project=PROJECT) as store:
        events: list[Event] = store.records.events_since(0, kinds=["replay"], limit=10)
        assert events[0].verb == "started"
