"""Measure tracking: everloop beside MLflow, Weights & Biases (offline) and Trackio.

    python benchmarks/tracking.py [--tools everloop mlflow …] [--runs 1000] [--points 1000000] [--soak-s 60]

The work:

- log one metric inside a run (median of many batches of calls)
- a run with ten parameters and ten metrics (median)
- bring logged points into the store
- search among many runs of 50 metrics and 20 parameters, filtered by one metric and ordered by another: the first page,
  and a page far behind it
- read 2,000 points of a metric that has many
- memory that the client adds to a process
- 64 processes that log at once: the time per call, and whether anything is lost

Every tool writes to this machine only. Each peer runs its newest release in its own virtual environment under
`.bench/<tool>`, which this script creates. Work that a tool can do only with its vendor's server, or only by reading
everything, is left out and marked in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
WORK = {
    "log": "Log one metric",
    "run": "A run with 10 parameters and 10 metrics",
    "fold": "Bring 1,000,000 logged points into the store",
    "search": "First 50 of {runs:,} runs, filtered, ordered by a metric",
    "deep": "A page of 50, behind the first fifth of all runs",
    "history": "2,000 of {points:,} points, read again",
    "history_first": "2,000 of {points:,} points, read for the first time",
    "memory": "Memory that the client adds to a process (MB)",
    "soak": "A call while 64 processes log for {soak} s",
    "lost": "Points of these processes that were lost, plus errors",
}
COUNTED = {"memory": "MB", "lost": ""}
"""Measurements that are not times, with their units."""

MEMORY = """
    def resident():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    before = resident()
"""

SOAK = """
    import os, threading
    def soak(processes, seconds, begin):
        # `begin` returns the function that logs a step. Each process reports its number of calls, and their time.
        reads = []
        for number in range(processes):
            read, write = os.pipe()
            if os.fork() == 0:
                errors, count, began = 0, 0, time.perf_counter()
                try:
                    with begin(number) as (log, _):
                        began = time.perf_counter()
                        while time.perf_counter() - began < seconds:
                            for _ in range(50):
                                try:
                                    log(count)
                                    count += 1
                                except Exception:
                                    errors += 1
                            if count % 5000 == 0:
                                time.sleep(0.01)
                        took = time.perf_counter() - began
                except Exception:
                    errors, took = errors + 1, time.perf_counter() - began
                os.write(write, json.dumps([count, took, errors]).encode())
                os._exit(0)
            os.close(write)
            reads.append(read)
        reports = [json.loads(os.read(read, 1000)) for read in reads]
        for _ in range(processes):
            os.wait()
        return reports
"""

EVERLOOP = """
    import contextlib, json, random, statistics, sys, time
    import everloop as el
    from everloop.records import Point, Run
    from everloop.stores import open_store
    from everloop.tracking import fold, read_metrics
    from everloop.tracking.metric_history import read_history
    from everloop.tracking.search.run_search import search_runs

    runs, points, calls, repeat, soak_s = map(int, sys.argv[1:])
    random.seed(0)
    found = {}
    store = open_store("home")
    with el.start_run("warm", store=store) as run:
        run.log(loss=1.0)
        found["memory"] = resident() - before
        batches = []
        for _ in range(20):
            began = time.perf_counter()
            for step in range(calls // 20):
                run.log(loss=0.5, step=step)
            batches.append((time.perf_counter() - began) / (calls // 20))
        found["log"] = statistics.median(batches)
    seconds = []
    for number in range(repeat):
        began = time.perf_counter()
        with el.start_run("r", store=store, params={f"p{k}": k for k in range(10)}) as run:
            run.log({f"m{k}": random.random() for k in range(10)})
        seconds.append(time.perf_counter() - began)
    found["run"] = statistics.median(seconds)
    with el.start_run("much", store=store) as run:
        for step in range(100_000):
            run.log({f"m{k}": step * 0.5 for k in range(10)}, step=step)
        began = time.perf_counter()
        assert fold(store) == 1_000_000
        found["fold"] = time.perf_counter() - began
    for start in range(0, runs, 1000):
        store.records.put(*(
            store.new(Run, name="r", state="finished", started_at=store.now(),
                      params={f"p{k}": random.choice("abc") for k in range(20)},
                      metrics={f"m{k}": random.random() for k in range(50)})
            for _ in range(min(1000, runs - start))
        ))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        page = search_runs(store, "metrics.m1 > 0.5 and params.p3 = 'a'", order_by=["-metrics.m0"], limit=50)
        seconds.append(time.perf_counter() - began)
    found["search"] = statistics.median(seconds)
    order, page, behind = ["-metrics.m0"], None, 0
    while behind < runs // 5:
        page = search_runs(store, order_by=order, limit=1000, columns=["id"], after=page.next if page else None)
        behind += 1000
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        search_runs(store, order_by=order, limit=50, after=page.next)
        seconds.append(time.perf_counter() - began)
    found["deep"] = statistics.median(seconds)
    run = store.new(Run, name="long", started_at=store.now())
    store.records.put(run)
    now = store.now()
    for start in range(0, points, 50_000):
        store.records.append_points(f"run:{run.id}", [
            Point(key="loss", value=random.random(), step=step, at=now)
            for step in range(start, min(start + 50_000, points))
        ])
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert len(read_history(store, run, "loss", 2000)) <= 2000
        seconds.append(time.perf_counter() - began)
    found["history_first"], found["history"] = seconds[0], statistics.median(seconds[1:])
    store.close()

    @contextlib.contextmanager
    def begin(number):
        with open_store("soak") as own, el.start_run(f"{number}", store=own) as run:
            yield lambda step: run.log(loss=0.5, step=step), None

    open_store("soak").close()
    reports = soak(64, soak_s, begin)
    with open_store("soak") as store:
        there = sum(len(read_metrics(store, run.id)) for run in store.records.find(Run))
    logged = sum(count for count, _, _ in reports)
    found["soak"] = sum(took for _, took, _ in reports) / logged
    found["lost"] = logged - there + sum(errors for _, _, errors in reports)
    print(json.dumps(found))
"""

MLFLOW = """
    import contextlib, json, logging, random, statistics, sys, time
    import mlflow
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    runs, points, calls, repeat, soak_s = map(int, sys.argv[1:])
    random.seed(0)
    found = {}
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    client = MlflowClient()
    with mlflow.start_run():
        mlflow.log_metric("loss", 1.0)
        found["memory"] = resident() - before
        few = min(calls, 100)
        began = time.perf_counter()
        for step in range(few):
            mlflow.log_metric("loss", 0.5, step=step)
        found["log"] = (time.perf_counter() - began) / few
    seconds = []
    for number in range(min(repeat, 10)):
        began = time.perf_counter()
        with mlflow.start_run():
            mlflow.log_params({f"p{k}": k for k in range(10)})
            mlflow.log_metrics({f"m{k}": random.random() for k in range(10)})
        seconds.append(time.perf_counter() - began)
    found["run"] = statistics.median(seconds)
    run = client.create_run("0")
    began = time.perf_counter()
    for start in range(0, 20_000, 1000):
        client.log_batch(run.info.run_id, metrics=[Metric("m", 0.5, 0, step) for step in range(start, start + 1000)])
    found["fold"] = (time.perf_counter() - began) * 50
    for _ in range(runs):
        run = client.create_run("0")
        client.log_batch(run.info.run_id,
                         metrics=[Metric(f"m{k}", random.random(), 0, 0) for k in range(50)],
                         params=[Param(f"p{k}", random.choice("abc")) for k in range(20)])
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        client.search_runs(["0"], "metrics.m1 > 0.5 and params.p3 = 'a'", order_by=["metrics.m0 DESC"], max_results=50)
        seconds.append(time.perf_counter() - began)
    found["search"] = statistics.median(seconds)
    page, behind = None, 0
    while behind < runs // 5:
        page = client.search_runs(["0"], "", order_by=["metrics.m0 DESC"], max_results=1000,
                                  page_token=page.token if page else None)
        behind += 1000
    if page is not None and page.token:
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            client.search_runs(["0"], "", order_by=["metrics.m0 DESC"], max_results=50, page_token=page.token)
            seconds.append(time.perf_counter() - began)
        found["deep"] = statistics.median(seconds)
    run = client.create_run("0")
    for start in range(0, points, 1000):
        client.log_batch(run.info.run_id, metrics=[
            Metric("loss", random.random(), 0, step) for step in range(start, min(start + 1000, points))
        ])
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        everything = client.get_metric_history(run.info.run_id, "loss")
        shown = everything[:: max(len(everything) // 2000, 1)]
        seconds.append(time.perf_counter() - began)
    found["history_first"], found["history"] = seconds[0], statistics.median(seconds[1:])

    @contextlib.contextmanager
    def begin(number):
        mlflow.set_tracking_uri("sqlite:///soak.db")
        with mlflow.start_run():
            yield lambda step: mlflow.log_metric("loss", 0.5, step=step), None

    # Another URI than that of the child processes, so that no connection is shared with them.
    mlflow.set_tracking_uri(f"sqlite:///{os.path.abspath('soak.db')}")
    MlflowClient().search_experiments()
    logging.disable(logging.CRITICAL)
    reports = soak(64, soak_s, begin)
    client = MlflowClient()
    there = sum(len(client.get_metric_history(run.info.run_id, "loss")) for run in client.search_runs(["0"]))
    logged = sum(count for count, _, _ in reports)
    found["soak"] = sum(took for _, took, _ in reports) / max(logged, 1)
    found["lost"] = logged - there + sum(errors for _, _, errors in reports)
    print(json.dumps(found))
"""

WANDB = """
    import json, os, random, statistics, sys, time
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=".")
    import wandb

    runs, points, calls, repeat, soak_s = map(int, sys.argv[1:])
    found = {}
    with wandb.init(project="bench") as run:
        run.log({"loss": 1.0})
        found["memory"] = resident() - before
        began = time.perf_counter()
        for step in range(calls):
            run.log({"loss": 0.5})
        found["log"] = (time.perf_counter() - began) / calls
    seconds = []
    for number in range(min(repeat, 5)):
        began = time.perf_counter()
        with wandb.init(project="bench", config={f"p{k}": k for k in range(10)}) as run:
            run.log({f"m{k}": random.random() for k in range(10)})
        seconds.append(time.perf_counter() - began)
    found["run"] = statistics.median(seconds)
    print(json.dumps(found))
"""

TRACKIO = """
    import contextlib, io, json, os, random, statistics, sys, time
    os.environ["TRACKIO_DIR"] = os.path.abspath("trackio")
    import trackio

    runs, points, calls, repeat, soak_s = map(int, sys.argv[1:])
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        trackio.init(project="bench", embed=False)
        trackio.log({"loss": 1.0})
        found["memory"] = resident() - before
        began = time.perf_counter()
        for step in range(calls):
            trackio.log({"loss": 0.5})
        found["log"] = (time.perf_counter() - began) / calls
        trackio.finish()
        seconds = []
        for number in range(min(repeat, 5)):
            began = time.perf_counter()
            trackio.init(project="bench", name=f"r{number}", config={f"p{k}": k for k in range(10)}, embed=False)
            trackio.log({f"m{k}": random.random() for k in range(10)})
            trackio.finish()
            seconds.append(time.perf_counter() - began)
    found["run"] = statistics.median(seconds)
    print(json.dumps(found))
"""


@dataclass(frozen=True)
class Tool:
    """One tool: the program that prints its seconds per piece of work, and what it needs."""

    name: str
    program: str
    requirements: tuple[str, ...] = ()
    remarks: dict[str, str] = field(default_factory=dict)
    """Why a piece of work is left out, or how it is done."""


_NO_READING = {
    **dict.fromkeys(("search", "deep", "history", "history_first"), "only its server searches and reads"),
    "fold": "its server's work",
    **dict.fromkeys(("soak", "lost"), "not measured"),
}
TOOLS = [
    Tool("everloop", EVERLOOP),
    Tool(
        "mlflow",
        MLFLOW,
        ("mlflow",),
        {
            "history": "every n-th point of all",
            "history_first": "every n-th point of all",
            "fold": "from 20,000 in batches of 1,000",
        },
    ),
    Tool("wandb", WANDB, ("wandb",), _NO_READING),
    Tool(
        "trackio",
        TRACKIO,
        ("trackio",),
        {
            **_NO_READING,
            **dict.fromkeys(
                ("search", "deep", "history", "history_first"), "no such API; its web page reads everything"
            ),
        },
    ),
]


class UnmeasuredError(Exception):
    """A tool could not be installed or run; the message says why."""


def python_of(tool: Tool) -> str:
    """Return the interpreter that has the tool. Creates its environment if there is none."""
    if not tool.requirements:
        return sys.executable
    folder = BENCH / tool.name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"creating {folder.relative_to(ROOT)} …", file=sys.stderr, flush=True)
        run([sys.executable, "-m", "venv", "--clear", str(folder)], timeout_s=300)
        run([str(python), "-m", "pip", "install", "--quiet", "--upgrade", *tool.requirements], timeout_s=1800)
        (folder / "ready").touch()
    return str(python)


def version_of(tool: Tool, python: str) -> str:
    return run([python, "-c", f"import importlib.metadata as m; print(m.version('{tool.name}'))"], timeout_s=60).strip()


def measure(tool: Tool, python: str, sizes: list[int]) -> dict[str, float]:
    """Measure the seconds of each piece of work that the tool does."""
    with tempfile.TemporaryDirectory(prefix="everloop-bench-") as folder:
        program = Path(folder) / "program.py"
        program.write_text(
            "\n".join(
                map(
                    textwrap.dedent,
                    (
                        "import contextlib, json, logging, os, random, statistics, sys, threading, time",
                        MEMORY,
                        SOAK,
                        tool.program,
                    ),
                )
            )
        )
        out = run([python, str(program), *map(str, sizes)], timeout_s=7200, folder=folder)
    found: dict[str, float] = json.loads(out.strip().splitlines()[-1])
    return found


def run(command: list[str], *, timeout_s: float, folder: str | None = None) -> str:
    environment = {**os.environ, **({"EVERLOOP_KEYS": f"{folder}/keys", "HOME": folder} if folder else {})}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnmeasuredError(f"took longer than {timeout_s:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        raise UnmeasuredError(f"{Path(command[0]).name} ended with {done.returncode}: {lines[-1][:200]}")
    return done.stdout


def show(title: str, rows: list[tuple[str, str, float | None, str]], unit: str | None = None) -> None:
    """Print one line per tool: name, version, time (or count, in its unit), its ratio to everloop, and a remark."""
    ours = next((seconds for name, _, seconds, _ in rows if name == "everloop" and seconds), None)
    print(f"\n{title}\n")
    print(f"| {'tool':10} | {'version':10} | {'time':>12} | {'ratio':>9} | remark")
    print(f"|{'-' * 12}|{'-' * 12}|{'-' * 14}|{'-' * 11}|{'-' * 30}")
    for name, version, seconds, remark in rows:
        if seconds is None:
            shown = "-"
        elif unit is not None:
            shown = f"{seconds:,.0f} {unit}"
        else:
            shown = f"{seconds * 1e6:9.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:9.1f} ms"
        ratio = f"{seconds / ours:7.1f}×" if seconds is not None and ours else "-"
        print(f"| {name:10} | {version:10} | {shown:>12} | {ratio:>9} | {remark}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tools", nargs="+", default=[tool.name for tool in TOOLS], choices=[t.name for t in TOOLS])
    parser.add_argument("--runs", type=int, default=1000, help="number of runs to search")
    parser.add_argument("--points", type=int, default=1_000_000, help="number of points of the long metric")
    parser.add_argument("--calls", type=int, default=10_000, help="number of calls that log one metric")
    parser.add_argument("--repeat", type=int, default=30, help="number of complete runs; the median is printed")
    parser.add_argument("--soak-s", type=int, default=60, help="seconds for which 64 processes log at once")
    options = parser.parse_args()
    began = time.perf_counter()
    sizes = [options.runs, options.points, options.calls, options.repeat, options.soak_s]
    rows: dict[str, list[tuple[str, str, float | None, str]]] = {name: [] for name in WORK}
    for tool in (tool for tool in TOOLS if tool.name in options.tools):
        version, why = "?", ""
        found: dict[str, float] = {}
        try:
            python = python_of(tool)
            version = version_of(tool, python)
            found = measure(tool, python, sizes)
        except UnmeasuredError as error:
            why = f"not measured: {error}"
        for name, lines in rows.items():
            lines.append((tool.name, version, found.get(name), why or tool.remarks.get(name, "")))
    for name, title in WORK.items():
        titled = title.format(runs=options.runs, points=options.points, soak=options.soak_s)
        show(titled, rows[name], COUNTED.get(name))
    print(f"\n{os.cpu_count()} cores, Python {sys.version.split()[0]}, {time.perf_counter() - began:.0f} s in total")


if __name__ == "__main__":
    main()
