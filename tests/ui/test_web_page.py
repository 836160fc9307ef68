"""The web page in a browser: pages, actions, hostile content, themes, a phone, and a server that goes away."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.ui.conftest import HOSTILE, RIGHT_TO_LEFT, Served, Watched, free_port, watch
from tests.ui.visits import complaints_of_axe, complaints_of_shape, settled_width, visit

from everloop.records import Artifact, Incident, Release, Run
from everloop.server.access import UserStore
from everloop.stores import open_store


@pytest.fixture
def store(home):
    with open_store(home, project="p", actor="user:operator") as opened:
        yield opened


def addresses(store: Any) -> list[str]:
    """Return an address of every kind of page."""
    hostile = next(run for run in store.records.find(Run, limit=100) if run.name == HOSTILE)
    trained = [run.id for run in store.records.find(Run, ("name", "=", "train"), limit=100)]
    artifacts = store.records.find(Artifact, ("run", "=", hostile.id))
    replay = store.records.find(Artifact, ("name", "=", "replay"))[0]
    return [
        "loop", "runs", "runs?group=params.depth", f"runs/{hostile.id}", f"runs/{trained[0]}",
        f"compare?runs={','.join(trained)}", "data", "data/flights%402", "models", "models/delays", "models/delays/2",
        "endpoints", "endpoints/delays", "monitor", f"monitor/{store.records.find(Incident)[0].id}",
        "replay", f"replay/{replay.id}", "traces", "traces/tr-1", "features/weather", "predictions/unknown", "settings",
        "nowhere", "compare", *(f"artifacts/{one.id}" for one in artifacts),
    ]  # fmt: skip


def test_every_page_is_drawn_without_a_complaint_and_passes_axe(served, watched, store):
    found: list[str] = []
    for theme in ("light", "dark"):
        watched.page.emulate_media(color_scheme=theme)
        for path in addresses(store):
            visit(watched.page, served, path)
            complaints = complaints_of_axe(watched.page) + complaints_of_shape(watched.page)
            found += [f"{theme} {path}: {one}" for one in complaints]
    assert not found, "\n".join(found)
    assert watched.unexpected() == []


def test_what_does_not_exist_is_explained_under_a_heading_of_its_own_page(served, watched):
    page = watched.page
    unknown = [
        "runs/none", "data/none%401", "features/none", "models/none", "models/none/1", "endpoints/none", "monitor/none",
        "replay/none", "traces/none", "artifacts/none", "predictions/none",
    ]  # fmt: skip
    found: list[str] = []
    for path in unknown:
        visit(page, served, "runs")
        visit(page, served, path)
        page.get_by_role("alert").wait_for()
        assert "none" in page.get_by_role("alert").inner_text(), path
        assert not page.title().startswith("Runs"), path
        assert page.locator(".crumbs a").count() >= 1, path
        found += [f"{path}: {one}" for one in complaints_of_shape(page) + complaints_of_axe(page)]
    visit(page, served, "nowhere")
    assert page.title() == "Page not found · everloop"
    assert not found, "\n".join(found)
    assert watched.unexpected() == []


def test_an_address_reproduces_a_filtered_and_sorted_table(served, watched):
    page = watched.page
    visit(page, served, "runs")
    page.keyboard.press("/")
    page.keyboard.type("metrics.auc > 0.55")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=4 runs match")
    page.get_by_title("Sort by metrics.auc").click()
    page.wait_for_function("() => location.hash.includes('order=-metrics.auc')")
    address = page.url
    fresh = page.context.new_page()
    fresh.goto(address)
    fresh.wait_for_selector("text=4 runs match")
    assert fresh.get_by_role("combobox", name="Filter runs").input_value() == "metrics.auc > 0.55"
    assert fresh.locator("[aria-sort=descending]").inner_text().startswith("auc")
    assert watched.unexpected() == []


def test_a_wrong_filter_says_why(served, watched):
    visit(watched.page, served, "runs?filter=metrics.auc+%3E+%3E")
    assert "In the filter at character" in watched.page.get_by_role("alert").inner_text()


def test_columns_are_chosen_among_ten_thousand(served, watched):
    page = watched.page
    visit(page, served, "runs")
    page.get_by_role("button", name="Columns").click()
    page.get_by_label("Search columns").fill("param_09999")
    page.get_by_label("params.param_09999").check()
    page.wait_for_selector("[role=columnheader] >> text=param_09999")
    assert "9999" in page.locator(".tr", has_text="wide").inner_text()


def test_runs_are_compared_with_curves_and_correlations(served, watched):
    page = watched.page
    visit(page, served, "runs?filter=name+%3D+'train'")
    boxes = page.get_by_label("Choose train for comparison")
    for number in range(5):
        boxes.nth(number).check()
    page.get_by_role("link", name="Compare 5 runs").click()
    page.wait_for_selector("text=Which parameters go with a metric")
    page.wait_for_function("() => document.querySelectorAll('canvas').length >= 2")
    page.get_by_label("Metric").last.select_option("auc")
    assert "+1.00" in page.locator(".importance").inner_text()


def test_a_group_becomes_a_filter(served, watched):
    page = watched.page
    visit(page, served, "runs")
    page.get_by_label("Group by").select_option("params.depth")
    groups = page.get_by_role("region", name="Groups")
    groups.get_by_role("button", name="3", exact=True).click()
    page.wait_for_selector("text=1 run matches")
    assert page.get_by_role("combobox", name="Filter runs").input_value() == "params.depth = 3"


def test_hostile_names_and_numbers_stay_text(served, watched, store):
    page = watched.page
    hostile = next(run for run in store.records.find(Run, limit=100) if run.name == HOSTILE)
    visit(page, served, f"runs/{hostile.id}")
    assert page.locator("h1").inner_text() == HOSTILE
    assert RIGHT_TO_LEFT in page.locator("main").inner_text()
    assert "not finite" in page.locator("main").inner_text()
    assert page.locator("main img").count() == 0
    assert page.get_by_text("No finite value to draw").count() == 1
    # An override of the direction of text in one name leaves what stands behind it as it is.
    other = store.records.find(Run, ("name", "=", RIGHT_TO_LEFT))[0]
    visit(page, served, f"compare?runs={other.id},{hostile.id}")
    page.locator("thead .mono").first.wait_for()
    first, last = page.evaluate(CHARACTERS)
    assert first < last
    assert watched.unexpected() == []


CHARACTERS = """() => {
    const text = document.querySelector('thead .mono').firstChild;
    return [0, text.length - 1].map((at) => {
        const range = document.createRange();
        range.setStart(text, at);
        range.setEnd(text, at + 1);
        return range.getBoundingClientRect().left;
    });
}"""


def test_what_is_empty_or_too_large_says_so(served, watched, store):
    page = watched.page
    visit(page, served, f"runs/{store.records.find(Run, ('name', '=', 'nothing logged'))[0].id}")
    text = page.locator("main").inner_text()
    for nothing in ("has logged no metric", "has no parameters", "has stored no artifacts"):
        assert nothing in text
    visit(page, served, f"runs/{store.records.find(Run, ('name', '=', 'wide'))[0].id}")
    assert "8,000 more are not shown." in page.get_by_role("region", name="Parameters").inner_text()
    (large,) = store.records.find(Artifact, ("name", "=", "weights"))
    visit(page, served, f"artifacts/{large.id}")
    text = page.locator("main").inner_text()
    assert "1.00 GB" in text
    assert "It has more than 32 MB" in text
    assert page.get_by_role("link", name="Open the file").count() == 0
    assert page.request.get(f"{served.url}/api/v1/artifacts/{large.id}/content").status == 422
    assert watched.unexpected() == []


def test_artifacts_are_shown_and_nothing_in_them_runs(served, watched, store):
    page = watched.page
    found = {one.name: one.id for one in store.records.find(Artifact, limit=100)}
    visit(page, served, f"artifacts/{found['report.html']}")
    assert "alert(1)" in page.locator("pre").inner_text()
    response = page.request.get(f"{served.url}/api/v1/artifacts/{found['report.html']}/content")
    assert response.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert response.headers["x-content-type-options"] == "nosniff"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{served.url}/api/v1/artifacts/{found['report.html']}/content")
    assert page.locator("h1").inner_text() == "report"
    assert not [one for one in asked if one.endswith("/api/v1/runs")]
    visit(page, served, f"artifacts/{found['plot.svg']}")
    page.wait_for_function("() => document.querySelector('img.picture')?.naturalWidth === 40")
    visit(page, served, f"artifacts/{found['table']}")
    assert "2 of 2 rows" in page.locator("main").inner_text()
    assert HOSTILE in page.locator("thead").inner_text()
    visit(page, served, f"artifacts/{found['settings']}")
    assert '"b": null' in page.locator("pre").inner_text()
    visit(page, served, f"artifacts/{found['pickled']}")
    assert "never loaded" in page.locator("main").inner_text()
    assert [one for one in watched.complaints if "dialog" in one] == []


def test_snapshots_are_compared_on_demand(served, watched):
    page = watched.page
    visit(page, served, "data/flights%402")
    page.get_by_label("Snapshot", exact=True).select_option("flights@1")
    page.wait_for_selector("text=1 row added")
    assert "1 row added, 0 removed" in page.locator("main").inner_text()
    assert "everloop data diff flights@1 flights@2" in page.locator("main").inner_text()


def test_an_incident_is_acknowledged_with_a_reason_and_another_tab_follows(served, watched, store):
    page = watched.page
    (incident,) = store.records.find(Incident)
    other = watch(page.context.new_page())
    visit(other.page, served, f"monitor/{incident.id}")
    visit(page, served, f"monitor/{incident.id}")
    page.get_by_role("button", name="Acknowledge").click()
    dialog = page.get_by_role("dialog", name="Acknowledge?")
    dialog.get_by_label("Reason").fill("a new supplier")
    assert f"everloop monitor ack {incident.id} --reason 'a new supplier'" in dialog.inner_text()
    dialog.get_by_role("button", name="Acknowledge", exact=True).click()
    dialog.wait_for(state="hidden")
    after = store.records.get(Incident, incident.id)
    assert (after.state, after.history[-1].text) == ("acknowledged", "a new supplier")
    # The other tab heard of it, and offers it no more.
    other.page.wait_for_selector("text=acknowledged, alarm")
    assert other.page.get_by_role("button", name="Acknowledge").count() == 0
    assert watched.unexpected() + other.unexpected() == []


def test_an_action_that_another_tab_has_made_impossible_says_so(served, watched, store):
    from everloop.monitoring.incidents.incident_actions import resolve

    page = watched.page
    now = store.now()
    fresh = store.new(
        Incident, endpoint="delays", kind="quality", severity="notice", title="late", began_at=now, seen_at=now
    )
    store.records.put(fresh, verb="opened")
    visit(page, served, f"monitor/{fresh.id}")
    page.get_by_role("button", name="Mute").click()
    dialog = page.get_by_role("dialog", name="Mute?")
    # The stream would close the dialog with its page, so the other tab is faster than the news of it.
    page.route("**/api/v1/stream", lambda route: route.abort())
    page.route("**/views/incidents/**", lambda route: route.abort())
    resolve(store, fresh.id, "by another tab")
    dialog.get_by_role("button", name="Mute", exact=True).click()
    dialog.get_by_role("alert").wait_for()
    assert "resolved" in dialog.get_by_role("alert").inner_text()
    assert store.records.get(Incident, fresh.id).state == "resolved"


def test_a_request_is_tried_and_its_failure_explained(served, watched):
    page = watched.page
    visit(page, served, "endpoints/delays")
    page.get_by_label("x float").fill("3")
    page.get_by_role("button", name="Predict", exact=True).click()
    alert = page.locator("form").get_by_role("alert")
    alert.wait_for()
    assert "delays" in alert.inner_text()


def test_an_endpoint_is_rolled_back(served, watched, store):
    page = watched.page
    visit(page, served, "endpoints/delays")
    page.get_by_role("button", name="Roll back").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox", name="Reason").fill("worse for one carrier")
    dialog.get_by_role("button", name="Roll back", exact=True).click()
    dialog.wait_for(state="hidden")
    (release,) = store.records.find(Release)
    assert (release.state, release.decisions[-1].reason) == ("rolled_back", "worse for one carrier")


def test_a_replay_shows_policies_side_by_side(served, watched):
    page = watched.page
    visit(page, served, "replay")
    page.get_by_role("link", name="delays", exact=True).click()
    page.wait_for_selector("text=Recommended: weekly")
    table = page.get_by_role("region", name="Policies").inner_text()
    assert "0.2000 [0.1000, 0.3000]" in table
    assert page.locator("canvas").count() == 1


def test_what_a_step_has_printed_is_read_when_its_log_is_opened(served, watched, store):
    page = watched.page
    run = store.records.find(Run, ("name", "=", "with steps"))[0]
    visit(page, served, f"runs/{run.id}")
    assert "7 rows are read" not in page.locator("main").inner_text()
    page.get_by_text("Log", exact=True).click()
    page.get_by_label("Log of speaks").wait_for()
    assert page.get_by_label("Log of speaks").inner_text() == f"7 rows are read {HOSTILE}\n"
    assert watched.unexpected() == []


def test_a_trace_is_a_tree_of_spans(served, watched):
    page = watched.page
    visit(page, served, "traces")
    page.get_by_role("link", name="tr-1").click()
    page.get_by_text("no such tool").wait_for()
    page.get_by_text("1 attribute").click()
    assert page.locator("main").inner_text().count(HOSTILE) == 3
    assert page.locator("main img").count() == 0
    assert watched.unexpected() == []


def test_keys_and_theme(served, watched):
    page = watched.page
    visit(page, served, "loop")
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("m")
    page.wait_for_function("() => location.hash === '#/models'")
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    page.wait_for_selector("h1")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_phone_needs_no_scrolling_to_the_side(served, watched, store):
    page = watched.page
    page.set_viewport_size({"width": 400, "height": 800})
    wide = []
    for path in addresses(store):
        visit(page, served, path)
        if settled_width(page) > 400:
            wide.append(path)
    assert wide == []
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Settings").click()
    page.wait_for_function("() => location.hash === '#/settings'")


def test_a_server_that_stops_and_returns_is_noticed(home, browser, store):
    server = Served(home, free_port())
    server.start()
    context = browser.new_context()
    try:
        page = context.new_page()
        visit(page, server, "runs")
        server.stop()
        page.wait_for_selector("text=The server does not answer", timeout=20_000)
        assert page.locator(".tr", has_text="nothing logged").count() == 1
        server.start()
        page.wait_for_selector(".banner", state="detached", timeout=40_000)
    finally:
        context.close()
        server.stop()


def test_a_viewer_sees_no_action_and_an_expired_login_is_explained(home, browser, store):
    users = UserStore(store)
    if not users.has_users():
        users.add_user("root", {"*": "admin"}, "a long password of root")
        users.add_user("vera", {"p": "viewer"}, "a long password of vera")
    server = Served(home, free_port(), auth=True)
    server.start()
    incident = next(one for one in store.records.find(Incident) if one.kind == "drift")
    credentials = {"root": "a long password of root", "vera": "a long password of vera"}
    refusal = json.dumps({"error": {"message": "This needs a login."}})
    shown = {}
    try:
        for name, password in credentials.items():
            context = browser.new_context(http_credentials={"username": name, "password": password})
            page = context.new_page()
            visit(page, server, f"monitor/{incident.id}")
            page.wait_for_load_state("load")
            page.wait_for_timeout(500)
            shown[name] = page.get_by_role("button", name="Resolve").count()
            if name == "vera":
                visit(page, server, "settings")
                assert page.get_by_role("heading", name="Users").count() == 0
                status = page.evaluate(
                    "async (id) => (await fetch(`api/v1/incidents/${id}/resolve`, {method: 'POST', body: '{}',"
                    " headers: {'content-type': 'application/json'}})).status",
                    incident.id,
                )
                assert status == 403
                page.route("**/views/models", lambda route: route.fulfill(status=401, body=refusal))
                visit(page, server, "models")
                assert "Your login has expired" in page.get_by_role("alert").inner_text()
            context.close()
    finally:
        server.stop()
    assert shown == {"root": 1, "vera": 0}


def test_an_empty_store_says_how_to_begin(tmp_path, browser, built_page):
    with open_store(tmp_path / "home", project="p"):
        pass
    server = Served(tmp_path / "home", free_port())
    server.start()
    context = browser.new_context()
    try:
        found: Watched = watch(context.new_page())
        for path in ("loop", "runs", "data", "models", "endpoints", "monitor", "replay", "traces"):
            visit(found.page, server, path)
            assert found.page.locator(".empty").count() >= 1, path
        assert found.unexpected() == []
    finally:
        context.close()
        server.stop()
