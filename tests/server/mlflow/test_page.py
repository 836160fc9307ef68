"""MLflow's own web page over our server, in a real browser: a person sees the right values, and nothing fails.

The page is the one in MLflow's wheel; its client has logged what is shown. `EVERLOOP_SCREENSHOTS` names a folder for
pictures of every page.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from everloop.stores import open_store

HERE = Path(__file__).parent
WAIT_MS = 20_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync"]

EXPLAINED = {
    # What the page tells its makers, and its helper that writes code: neither is there.
    "GET /ajax-api/3.0/mlflow/ui-telemetry",
    "GET /ajax-api/3.0/mlflow/assistant/config",
    "GET /ajax-api/3.0/mlflow/assistant/providers",
    # Whether the name of a new experiment is free: it is.
    "GET /ajax-api/2.0/mlflow/experiments/get-by-name",
    # Login of MLflow's own kind; the page goes on without, as it does with MLflow's server.
    "GET /ajax-api/2.0/mlflow/users/current",
}


def _page_server():
    spec = importlib.util.spec_from_file_location("mlflow_page_server", HERE / "page_server.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(mlflow_python, serve, tmp_path_factory):
    """The page over a server that MLflow's client has filled, and what the client says it made."""
    (build, *_) = [*Path(mlflow_python).parents[1].glob("lib/python*/site-packages/mlflow/server/js/build"), None]
    if build is None or not (build / "index.html").is_file():
        pytest.skip("this MLflow is one without its page")
    home = tmp_path_factory.mktemp("page")
    with open_store(home / "home", project="p") as store, serve(store) as place:
        done = subprocess.run(
            [mlflow_python, str(HERE / "client_page_script.py"), place.url],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=home,
            env={**os.environ, "MLFLOW_ENABLE_ASYNC_LOGGING": "false"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        with _page_server().serving_page(build, place.address) as server:
            yield server, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        reason = "needs Debian's chromium, and playwright to drive it"
        if "chromium" in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        # One for all tests, so that the page's own files are fetched once.
        yield opened.new_context(viewport={"width": 1700, "height": 1000}, locale="en-US", timezone_id="UTC")
        opened.close()


class Visitor:
    """Somebody who opens pages, reads them, and notes what went wrong."""

    def __init__(self, context, server) -> None:
        self.page, self.server = context.new_page(), server
        self.page.set_default_timeout(WAIT_MS)
        self.broken: list[str] = []
        self.page.on("pageerror", lambda error: self.broken.append(str(error)))

    def open(self, path: str, *texts: str, name: str) -> str:
        """Open a page and wait until it shows all the texts; the whole of what it shows."""
        self.page.goto(f"{self.server.url}#{path}")
        return self.reads(*texts, name=name)

    def reads(self, *texts: str, name: str) -> str:
        for text in texts:
            self.page.get_by_text(text).first.wait_for()
        if folder := os.environ.get("EVERLOOP_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")
        shown = self.page.inner_text("body")
        assert "ENDPOINT_NOT_FOUND" not in shown, shown
        return shown


@pytest.fixture
def visitor(browser, site):
    server, _ = site
    server.exchanges.clear()
    visiting = Visitor(browser, server)
    yield visiting
    visiting.page.close()
    failed = {(one.address, one.status, one.said) for one in server.exchanges if one.status >= 400}
    assert {one for one in failed if one[0] not in EXPLAINED} == set()
    assert {one for one in failed if one[1] >= 500} == set()
    wrong = [one for one in server.exchanges if one.path == "/graphql" and '"errors":null' not in one.said]
    assert [one for one in wrong if '"errors"' in one.said] == []
    assert visiting.broken == []


def test_experiments_and_their_runs(visitor, site):
    _, said = site
    visitor.open("/experiments", "flight delays", "What makes flights late", "Default", name="experiments")
    runs = f"/experiments/{said['experiment']}/runs"
    shown = visitor.open(runs, "attempt-0", "attempt-1", "2 matching runs", name="runs")
    assert "flights-0" in shown
    assert "flights-1" in shown
    visitor.open(f"{runs}?compareRunsMode=CHART", "loss", "auc", name="runs-charts")
    # Two curves of twenty points each, and the values on the bars.
    visitor.page.wait_for_function("document.querySelectorAll('.scatterlayer .point').length === 40", timeout=WAIT_MS)
    shown = visitor.reads("0.88", "0.81", name="runs-charts")
    # The page keeps a filter for the experiment, so this comes last.
    visitor.open(f"{runs}?searchFilter=params.depth%20%3D%20%224%22", "1 matching run", "attempt-1", name="filtered")
    sent = {one.address for one in visitor.server.exchanges}
    assert "POST /ajax-api/2.0/mlflow/experiments/search-datasets" in sent
    assert "POST /graphql" in sent


def test_a_run(visitor, site):
    _, said = site
    first = said["runs"][0]
    run = f"/experiments/{said['experiment']}/runs/{first}"
    shown = visitor.open(run, "About this run", "learning_rate", "0.8125", "delays", name="run")
    for text in ("attempt-0", "Finished", first, "flights-0", "team", "red", "v1", "0.25", "doubler", "flight delays"):
        assert text in shown, text
    visitor.open(f"{run}/model-metrics", "loss", name="run-charts")
    visitor.page.wait_for_function("document.querySelectorAll('.scatterlayer .point').length === 20", timeout=WAIT_MS)
    shown = visitor.open(f"{run}/artifacts/notes/findings.txt", "late by forty minutes", name="run-artifacts")
    assert "summary.json" in shown
    sent = {one.address for one in visitor.server.exchanges}
    assert {
        "POST /graphql",
        "GET /get-artifact",
        "GET /ajax-api/2.0/mlflow/metrics/get-history-bulk-interval",
        "GET /ajax-api/2.0/mlflow/artifacts/list",
    } <= sent


def test_two_runs_side_by_side(visitor, site):
    _, said = site
    asked = f"?runs={json.dumps(said['runs'])}&experiments={json.dumps([said['experiment']])}"
    shown = visitor.open(f"/compare-runs{asked}", "Comparing 2 Runs", "learning_rate", "Run details", name="compare")
    rows = re.sub(r"\s+", " ", shown)
    for row in (
        "depth 3 4",
        "learning_rate 0.25 0.5",
        "auc loss nothing 0.813 0.875 0.05 0.1 NaN NaN",
        "team red blue",
    ):
        assert row in rows, rows[rows.index("Run details") :]


def test_models(visitor, site):
    _, said = site
    shown = visitor.open("/models", "delays", "champion", name="models")
    assert "Version 1" in shown
    visitor.open("/models/delays", "Version 1", "champion", "by-hand", name="model")
    visitor.open(
        "/models/delays/versions/1",
        "The first that was good enough",
        "champion",
        "by-hand",
        "attempt-0",
        name="version",
    )
    visitor.open(f"/experiments/{said['experiment']}/models", "doubler", "Ready", name="logged-models")
    logged = f"/experiments/{said['experiment']}/models/{said['model']}"
    visitor.open(logged, "About this logged model", "delays", "attempt-0", "0.8125", name="logged-model")
    visitor.open(f"{logged}/artifacts", "python_model.pkl", "requirements.txt", name="logged-model-files")
    visitor.page.get_by_text("MLmodel", exact=True).click()
    visitor.reads("loader_module: mlflow.pyfunc.model", name="logged-model-file")
    assert f"GET /ajax-api/2.0/mlflow/logged-models/{said['model']}/artifacts/files" in {
        one.address for one in visitor.server.exchanges
    }


def test_traces(visitor, site):
    _, said = site
    visitor.open(f"/experiments/{said['experiment']}/traces", "flight 17 is late", "1 of 1", name="traces")


def test_what_a_person_changes(visitor, site):
    _, said = site
    visitor.open("/experiments", "flight delays", name="before")
    visitor.page.get_by_role("button", name="Create", exact=True).click()
    visitor.page.get_by_placeholder("Input an experiment name").fill("made by hand")
    visitor.page.get_by_role("dialog").get_by_role("button", name="Create").click()
    visitor.reads("made by hand", name="created")
    visitor.page.wait_for_url(re.compile(r"#/experiments/\d+"))
    assert visitor.page.url.split("/experiments/")[1][:1] != said["experiment"]
    visitor.open("/experiments", "made by hand", "flight delays", name="after")
