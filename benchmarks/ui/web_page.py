"""The web page's speed in Chromium: first load, 100,000 runs, scrolling, and a large comparison.

    python benchmarks/ui/web_page.py [--runs 100000] [--store FOLDER]

It needs Chromium, Playwright and the built page (`make page`). The store is temporary unless `--store` names a folder:
then it is filled once and measured again later. Its runs are written straight as records, in batches. Each figure is
printed beside its aim.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from everloop.records import Run
from everloop.server.web_page import read_page
from everloop.stores import Store, open_store
from everloop.tracking import start_run

BATCH = 1000
UPDATES = 600
FRAMES = """async () => {
  const box = document.querySelector('.viewport');
  const gaps = [];
  let before = performance.now();
  const end = before + 3000;
  while (performance.now() < end) {
    box.scrollTop += 240;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    gaps.push(now - before);
    before = now;
  }
  gaps.sort((a, b) => a - b);
  return {frames: gaps.length / 3, slowest: gaps[Math.floor(gaps.length * 0.99)]};
}"""


def fill(store: Store, runs: int) -> None:
    now = store.now()
    for start in range(0, runs, BATCH):
        batch = [
            store.new(
                Run,
                name=f"train {number}",
                state="finished",
                started_at=now - timedelta(seconds=runs - number),
                ended_at=now,
                params={"lr": 1 / (number % 97 + 1), "depth": number % 9},
                metrics={"auc": (number % 1000) / 1000, "loss": 1.0},
            )
            for number in range(start, min(runs, start + BATCH))
        ]
        store.records.put(*batch)


def fill_compared(store: Store, runs: int, metrics: int, points: int) -> list[str]:
    found = []
    for number in range(runs):
        with start_run("compared", store=store, params={"lr": number}) as run:
            for step in range(points):
                run.log({f"m{metric}": float(step % 97 + metric) for metric in range(metrics)}, step=step)
        found.append(run.id)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--compared", type=int, default=200, help="runs that are compared")
    parser.add_argument("--points", type=int, default=10_000, help="points of each of 10 metrics")
    parser.add_argument("--store", type=Path, help="folder that keeps the store, so that it is filled only once")
    parser.add_argument("--fill-only", action="store_true", help="fill the store and measure nothing")
    options = parser.parse_args()
    size = sum(len(one.gzipped or gzip.compress(one.body)) for one in read_page().values())
    print(f"first load               {size / 1024:7.0f} KB gzip     (aim 350)")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.store or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        names = folder / "compared.txt"
        if not names.is_file():
            with open_store(folder / "home", project="p") as store:
                began = time.perf_counter()
                fill(store, options.runs)
                names.write_text("\n".join(fill_compared(store, options.compared, 10, options.points)))
                print(f"(store written in {time.perf_counter() - began:.0f} s)")
        if options.fill_only:
            return
        compared = names.read_text().split()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-c", "from everloop.cli import main; main()", "server", "--no-auth"]
        command += ["--home", str(folder / "home"), "--project", "p", "--port", str(port)]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            measure(f"http://127.0.0.1:{port}", folder / "home", compared, server.pid)
        finally:
            server.terminate()
            server.wait(30)


def measure(url: str, home: Path, compared: list[str], server: int) -> None:
    with sync_playwright() as running:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.set_default_timeout(120_000)
        print(f"interactive, loop        {timed(page, f'{url}/#/loop', 'h1'):7.0f} ms           (aim 1000)")
        page.goto("about:blank")
        print(f"first rows, cold         {timed(page, f'{url}/#/runs', '.tr:not(.th) a'):7.0f} ms")
        page.goto(f"{url}/#/loop")
        page.wait_for_selector("h1")
        print(f"first rows, page open    {timed(page, f'{url}/#/runs', '.tr:not(.th) a'):7.0f} ms           (aim 200)")
        scrolled = page.evaluate(FRAMES)
        print(f"scrolling                {scrolled['frames']:7.0f} frames/s     (aim 50), slowest of 100: "
              f"{scrolled['slowest']:.0f} ms")  # fmt: skip
        if compared:
            keys = ",".join(f"m{number}" for number in range(10))
            address = f"{url}/#/compare?runs={','.join(compared)}&keys={keys}"
            ready = "() => document.querySelectorAll('canvas').length >= 10"
            began = time.perf_counter()
            page.goto(address)
            page.wait_for_function(ready)
            print(f"comparison               {1000 * (time.perf_counter() - began):7.0f} ms           (aim 1500)")
        page.goto(f"{url}/#/runs")
        page.wait_for_selector(".tr:not(.th) a")
        print(f"memory over {UPDATES} updates  {grown(page, home):7.1f} MB           (aim: steady)")
        page.goto(f"{url}/#/loop")
        page.wait_for_timeout(5_000)
        before, began = cpu_seconds(server), time.perf_counter()
        page.wait_for_timeout(30_000)
        share = (cpu_seconds(server) - before) / (time.perf_counter() - began)
        print(f"an idle page costs       {100 * share:7.1f} % of a core  (aim 1)")
        browser.close()


def grown(page: Any, home: Path) -> float:
    """Return by how many megabytes the page's memory has grown over live updates, after a first half to settle."""
    session = page.context.new_cdp_session(page)

    def used() -> float:
        session.send("HeapProfiler.collectGarbage")
        return float(session.send("Runtime.getHeapUsage")["usedSize"]) / 1e6

    sizes = []
    with open_store(home, project="p") as store:
        for _ in range(2):
            for _ in range(UPDATES // 2):
                store.records.put(store.new(Run, name="live", state="finished", started_at=store.now()))
                page.wait_for_timeout(40)
            page.wait_for_timeout(2_000)
            sizes.append(used())
    return sizes[1] - sizes[0]


def timed(page: Any, address: str, selector: str) -> float:
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(selector)
    return 1000 * (time.perf_counter() - began)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
