"""A browser, a server in a process of its own, and a small furnished store for the tests of the web page."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import need

import everloop as el
from everloop.pipeline import Graph, run_graph
from everloop.records import (
    Artifact,
    Decision,
    EndpointRecord,
    FeatureViewRecord,
    Finding,
    Incident,
    ModelVersion,
    Release,
    Route,
    Trace,
)
from everloop.registry import set_alias
from everloop.server.web_page import FOLDER
from everloop.stores import open_store
from everloop.tracking import start_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store

ROOT = Path(__file__).parents[2]
UI = ROOT / "ui"
BUILT = ROOT / "src" / "everloop" / "server" / FOLDER / "index.html"
HOSTILE = "<img src=x onerror=alert(1)>"
RIGHT_TO_LEFT = "שלום \u202eevil"
START_S = 60


@dataclass
class Watched:
    """A page of the browser, and everything that it complained about."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def unexpected(self) -> list[str]:
        return [one for one in self.complaints if "ERR_CONNECTION" not in one and "Failed to load resource" not in one]


@dataclass
class Served:
    """A server of a store; `stop` and `start` keep its port.

    With `project`, it is `everloop up` of that folder, with its endpoints and without runners.
    """

    home: Path
    port: int
    auth: bool = False
    name: str = "p"
    """The project in the store."""
    project: Path | None = None
    options: tuple[str, ...] = ()
    """More options of `everloop server`."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-c", "from everloop.cli import main; main()"]
        if self.project is not None:
            command += ["up", "--dir", str(self.project), "--port", str(self.port), "--runners", "0"]
        else:
            login = "--auth" if self.auth else "--no-auth"
            command += ["server", "--home", str(self.home), "--project", self.name, "--port", str(self.port), login]
            command += self.options
        environment = {**os.environ, "EVERLOOP_KEYS": str(self.home.parent / "keys"), "NO_COLOR": "1"}
        log = (self.home.parent / f"server-{self.port}.log").open("ab")
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.home.parent)
        log.close()
        end = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    text = (self.home.parent / f"server-{self.port}.log").read_text()
                    raise RuntimeError(f"the server did not start: {text[-2000:]}") from None
                time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def built_page() -> Path:
    """The built page; it is built once if npm is there."""
    if not BUILT.is_file():
        if shutil.which("npm") is None:
            need("chromium", "the built web page", "build it with: make page")
        subprocess.run(["npm", "ci", "--silent"], cwd=UI, check=True)
        subprocess.run(["npm", "run", "build", "--silent"], cwd=UI, check=True)
    return BUILT


@pytest.fixture(scope="module")
def browser(built_page: Path) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        need("chromium", "Chromium", "install it with: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="install it with: pip install playwright")
    with playwright.sync_playwright() as running:
        # Chromium's own sandbox needs rights that containers lack.
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with something on every page."""
    folder = tmp_path_factory.mktemp("page")
    before = os.environ.get("EVERLOOP_KEYS")
    os.environ["EVERLOOP_KEYS"] = str(folder / "keys")
    try:
        with open_store(folder / "home", project="p", actor="user:operator") as store:
            furnish(store)
    finally:
        if before is None:
            del os.environ["EVERLOOP_KEYS"]
        else:
            os.environ["EVERLOOP_KEYS"] = before
    return folder / "home"


@pytest.fixture(scope="module")
def served(home: Path, built_page: Path) -> Iterator[Served]:
    server = Served(home, free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    """A fresh window of 1440 pixels that notes errors on the console, in scripts, and violations of the policy."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    yield watch(context.new_page())
    context.close()


def watch(page: Any) -> Watched:
    found = Watched(page)
    page.on("console", lambda message: found.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (found.complaints.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    page.set_default_timeout(120_000)
    return found


def furnish(store: Store) -> None:
    """Write runs, a model, an endpoint, an incident, snapshots, artifacts and a replay."""
    import polars as pl

    from everloop.data.snapshots.snapshots import take_snapshot

    for number in range(6):
        params = {"lr": 10.0**-number, "depth": number}
        with start_run("train", store=store, loop="delays", params=params, trigger="first") as run:
            run.log_params({"lr": 10.0**-number})
            for step in range(40):
                run.log({"loss": (number + 1) / (step + 1), "auc": 0.5 + 0.01 * number + 0.001 * step}, step=step)
    champion_run = run.id
    with start_run(HOSTILE, store=store, tags={"team": RIGHT_TO_LEFT}, params={HOSTILE: HOSTILE}) as run:
        for step in range(5):
            run.log({"loss": float("nan") if step == 2 else 1.0, "huge": float("inf")}, step=step)
        run.log_text("notes", "plain <b>text</b>")
        run.log_json("settings", {"a": [1, 2, {"b": None}]})
        page = "<html><script>fetch('/api/v1/runs');alert(1)</script><h1>report</h1></html>"
        run.log_artifact("report.html", page.encode(), meta={"file": "report.html", "media": "text/html"})
        drawing = "<svg xmlns='http://www.w3.org/2000/svg' width='40' height='40' onload='alert(1)'>"
        drawing += "<script>alert(2)</script><circle cx='20' cy='20' r='15'/></svg>"
        run.log_artifact("plot.svg", drawing.encode(), meta={"file": "plot.svg"})
        run.log_table("table", pl.DataFrame({"a": [1, None], HOSTILE: ["x", RIGHT_TO_LEFT]}))
        run.log_model({"weights": [1, 2]}, "pickled")
    with start_run("nothing logged", store=store):
        pass
    with start_run(RIGHT_TO_LEFT, store=store) as run:
        # As large as a whole model of language; what it holds is not read, so it need not be there.
        large = store.new(
            Artifact, run=run.id, name="weights", digest=f"sha256:{1:064x}", size_bytes=1_000_000_000, type="bytes"
        )
        store.records.put(large)
    with start_run("wide", store=store) as run:
        run.log_params({f"param_{number:05}": number for number in range(10_000)})
    rows = [{"x": float(number % 7), "late": number % 3 == 0} for number in range(200)]
    take_snapshot(pl.DataFrame(rows), "flights", store, target="late")
    take_snapshot(pl.DataFrame([*rows, {"x": 99.0, "late": True}]), "flights", store, target="late")
    signature = {"inputs": [{"name": "x", "type": "float"}, {"name": "carrier", "type": "str", "categories": ["AA"]}]}
    for number in (1, 2):
        version = store.new(
            ModelVersion, model="delays", version=number, package="", run=champion_run, snapshot=f"flights@{number}",
            metrics={"auc": 0.6 + 0.05 * number}, signature=signature,
            evaluation={"metric": "auc", "rows": 50, "metrics": {"auc": {"value": 0.65, "low": 0.6, "high": 0.7}}},
        )  # fmt: skip
        store.records.put(version)
    set_alias(store, "delays", "champion", "delays@1", reason="first")
    routes = (Route(version="delays@1", percent=50.0), Route(version="delays@2", percent=50.0, role="canary"))
    store.records.put(store.new(EndpointRecord, name="delays", model="delays", routes=routes, state="ready"))
    now = store.now()
    decision = Decision(at=now, action="start", percent=50.0, reason="the first step")
    release = store.new(
        Release, endpoint="delays", candidate="delays@2", previous="delays@1", percent=50.0, steps=(50.0, 100.0),
        decisions=(decision,),
    )  # fmt: skip
    store.records.put(release)
    findings = [
        store.new(
            Finding, endpoint="delays", version="delays@1", kind="drift", severity="alarm", subject="x", value=0.3,
            window_from=now, window_to=now, message=f"'x' {HOSTILE} has risen",
        )
        for _ in range(3)
    ]  # fmt: skip
    store.records.put(*findings)
    incident = store.new(
        Incident, endpoint="delays", kind="drift", severity="alarm", title=f"{HOSTILE} has risen", began_at=now,
        seen_at=now, findings=tuple(one.id for one in findings), versions=("delays@1",),
    )  # fmt: skip
    store.records.put(incident, verb="opened")
    keep_small_replay(store)
    keep_trace(store)
    store.records.put(
        store.new(
            FeatureViewRecord, name="weather", version=1, entity=("origin",), time="observed_at", ttl="6h",
            features=("temp",), columns={"origin": "string", "temp": "float64"},
        )
    )  # fmt: skip
    with start_run("with steps", store=store) as run:
        run_graph(Graph.wire([speaks]), store, run=run)


@el.step(cache=False)
def speaks() -> int:
    print("7 rows are read", HOSTILE)  # noqa: T201
    return 7


def keep_trace(store: Store) -> None:
    value = {"string_value": HOSTILE}
    spans = [
        {"span_id": "1", "name": "answer", "start_time_unix_nano": "1000000000", "end_time_unix_nano": "3000000000"},
        {
            "span_id": "2", "parent_span_id": "1", "name": HOSTILE, "start_time_unix_nano": "2000000000",
            "end_time_unix_nano": "2500000000", "status": {"code": "STATUS_CODE_ERROR", "message": "no such tool"},
            "attributes": [{"key": "question", "value": value}],
        },
    ]  # fmt: skip
    digest = store.objects.add(json.dumps(spans).encode())
    trace = store.new(
        Trace, trace_id="tr-1", experiment="0", requested_at=store.now(), seconds=2.0, state="error", spans=(digest,),
        request_preview=HOSTILE,
    )  # fmt: skip
    store.records.put(trace)


def keep_small_replay(store: Store) -> None:
    period = {"from": "2024-01-01T00:00:00+00:00", "rows": 10, "labelled": 10, "low": 0.5, "high": 0.9}
    policies = {
        name: {
            "retrain": [], "window": None, "half_life": None, "trains_on": "everything", "metric": level,
            "periods": [{**period, "until": f"2024-01-{day:02}T00:00:00+00:00", "value": level} for day in (2, 9, 16)],
            "incidents": [], "watched": False, "retrainings": 2, "failed_trainings": 0, "promotions": 1,
            "rollbacks": 0, "rejections": 1, "trainings": [], "seconds": 1.0, "training_seconds": 0.5,
            "answered": 30, "notes": [], "error": None,
        }
        for name, level in (("never", 0.6), ("weekly", 0.8))
    }  # fmt: skip
    result = {
        "title": "delays", "metric": "roc_auc", "greater_is_better": True, "from": "2024-01-01T00:00:00+00:00",
        "to": "2024-01-16T00:00:00+00:00", "every": "1w", "labels_after": "1d", "rows": 30, "policies": policies,
        "regret": {"never": {"value": 0.2, "low": 0.1, "high": 0.3}, "weekly": None}, "recommended": "weekly",
        "why": "It was better by 0.2.", "check": None, "suggestion": ["retrain=[el.Every('1w')],"], "seconds": 2.0,
        "interrupted": False, "remarks": [],
    }  # fmt: skip
    meta = {"shows": "json", "title": "delays", "metric": "roc_auc", "policies": 2, "recommended": "weekly"}
    with start_run("replay", store=store, tags={"kind": "replay"}) as run:
        run.log_artifact("replay", result, meta=meta)
