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
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from everloop.errors import UsageError
from everloop.integrations.mlflow.tracking_api.web_page.page_files import MlflowPage
from everloop.server.server_options import ServerOptions
from everloop.stores import open_store

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def site(mlflow_python, serve, tmp_path_factory):
    """The page over a server that MLflow's client has filled, and what the client says it made."""
    (build, *_) = [*Path(mlflow_python).parents[1].glob("lib/python*/site-packages/mlflow/server/js/build"), None]
    if build is None or not (build / "index.html").is_file():
        pytest.skip("this MLflow is one without its page")
    home = tmp_path_factory.mktemp("page")
    options = ServerOptions(mlflow_page=str(build))
    with open_store(home / "home", project="p") as store, serve(store, options) as control:
        done = subprocess.run(
            [mlflow_python, str(HERE / "client_page_script.py"), control.url],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=home,
            env={**os.environ, "MLFLOW_ENABLE_ASYNC_LOGGING": "false"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield control, json.loads(done.stdout.splitlines()[-1])


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
    """Somebody who opens pages, reads them, and notes what was asked, and what went wrong."""

    def __init__(self, context, url) -> None:
        self.page, self.url = context.new_page(), url
        self.page.set_default_timeout(WAIT_MS)
        self.broken: list[str] = []
        self.answers = []
        self.page.on("pageerror", lambda error: self.broken.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("response", lambda answer: self.answers.append(answer))

    @property
    def asked(self) -> set[str]:
        return {_address(one) for one in self.answers}

    def _heard(self, message) -> None:
        # What the page may not load or ask it says here, and nowhere else.
        if message.type == "error" and "Content Security Policy" in message.text:
            self.broken.append(message.text)

    def open(self, path: str, *texts: str, name: str) -> str:
        """Open a page and wait until it shows all the texts; the whole of what it shows."""
        self.page.goto(f"{self.url}/#{path}")
        return self.reads(*texts, name=name)

    def reads(self, *texts: str, name: str) -> str:
        for text in texts:
            self.page.get_by_text(text).first.wait_for()
        if folder := os.environ.get("EVERLOOP_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")
        shown = self.page.inner_text("body")
        assert "ENDPOINT_NOT_FOUND" not in shown, shown
        return shown


def _address(answer) -> str:
    return f"{answer.request.method} {urlsplit(answer.url).path}"


@pytest.fixture
def visitor(browser, site):
    control, _ = site
    visiting = Visitor(browser, control.url)
    yield visiting
    failed = {(_address(one), one.status) for one in visiting.answers if one.status >= 400}
    bodies = [one.json() for one in visiting.answers if urlsplit(one.url).path == "/graphql"]
    visiting.page.close()
    assert {one for one in failed if one[0] not in EXPLAINED} == set()
    assert {one for one in failed if one[1] >= 500} == set()
    assert [body for body in bodies if body["errors"] is not None] == []
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
    sent = visitor.asked
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
    sent = visitor.asked
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
    assert f"GET /ajax-api/2.0/mlflow/logged-models/{said['model']}/artifacts/files" in visitor.asked


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


def test_the_page_is_only_its_own_files(site):
    control, _ = site
    front = control.request("GET", "/")
    assert b"static-files/static/js/main" in front.body
    script = re.search(rb"static-files/static/js/main[^\"]+", front.body)[0].decode()
    got = control.request("GET", f"/{script}")
    assert (got.status, got.headers["content-type"].partition(";")[0]) == (200, "text/javascript")
    assert "immutable" in got.headers["cache-control"]
    for name in (
        "../../../__init__.py",
        "..%2f..%2f..%2f__init__.py",
        "static/../../../../__init__.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "static",
        "",
        "index.html%00",
        "nothing",
    ):
        assert control.request("GET", f"/static-files/{name}").status in (400, 404), name
    assert control.request("GET", "/status").body.startswith(b"<!doctype html>")
    assert b"<title>everloop</title>" in control.request("GET", "/status").body


def test_a_folder_without_the_page_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not contain MLflow's web page"):
        MlflowPage(tmp_path)
