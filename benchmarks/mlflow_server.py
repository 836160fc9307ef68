"""Measure how long MLflow's own client waits: for everloop's server, for MLflow's, and for one that does nothing.

    python benchmarks/mlflow_server.py [--servers nothing everloop mlflow] [--calls 300] [--large-mb 500] [--soak-s 60]

The newest version of MLflow's client does the same work against each server, one server after the other, all on this
machine: log one metric, log 1,000 points in one batch, log a run with ten parameters and ten metrics, search runs, and
send and fetch artifacts of 1 KB and of 500 MB. Then 32 clients, each in its own process, log metrics for a minute, with
pauses as in training. Afterwards every acknowledged point is command up.

Also measured: the time from the start on an empty folder to the first response, and the memory of all processes of a
server, idle and at the peak of the large upload. The server that does nothing reads what it receives and returns canned
bytes, so its numbers are the cost of the client alone. MLflow's server runs as `mlflow server` does, over SQLite, in
its own environment under `.bench/mlflow`, which this script creates.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
WORK = {
    "log_metric": "Log one metric",
    "log_batch": "Log 1,000 points in one batch",
    "run": "A run with 10 parameters and 10 metrics",
    "search_runs": "First 50 of {runs:,} runs, filtered, ordered by a metric",
    "up_small": "Send an artifact of 1 KB",
    "down_small": "Fetch it",
    "up_large": "Send an artifact of {large} MB",
    "down_large": "Fetch it",
    "soak_median": "A call while {clients} clients log for {soak} s, {pause} ms between two calls: median",
    "soak_p99": "The same: 99th percentile",
    "soak_calls": "Calls answered in that time",
    "soak_lost": "Acknowledged points that were lost, plus errors",
    "ready": "Start on an empty folder until the first response",
    "idle": "Memory of the idle server",
    "peak": "Memory at the peak of the large upload",
}
COUNTED = {"soak_calls": "", "soak_lost": "", "idle": "MB", "peak": "MB"}
"""Measurements that are not times, with their units."""
CLIENTS = 32

CLIENT = """
    import json, os, statistics, sys, tempfile, time
    from pathlib import Path
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_ENABLE_ASYNC_LOGGING="false")
    os.environ.update(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    url, calls, runs, large_mb, clients, soak_s, pause_ms, canned = sys.argv[1], *map(int, sys.argv[2:])
    mlflow.set_tracking_uri(url)
    client, found = MlflowClient(), {}

    def median(work, times):
        seconds = []
        for number in range(times):
            began = time.perf_counter()
            work(number)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def say(**more):
        found.update(more)
        print(json.dumps(found), flush=True)

    run = client.create_run("0").info.run_id
    client.log_metric(run, "warm", 1.0)
    say(log_metric=median(lambda n: client.log_metric(run, "m", n / 2, step=n), calls))
    def batch(number):
        points = [Metric(f"b{n % 10}", n / 2, 1000 + n, number * 1000 + n) for n in range(1000)]
        client.log_batch(run, points)
    say(log_batch=median(batch, max(5, calls // 20)))
    def whole(number):
        with mlflow.start_run():
            mlflow.log_params({f"p{n}": n for n in range(10)})
            mlflow.log_metrics({f"m{n}": n / 2 for n in range(10)})
    whole(0)
    say(run=median(whole, max(5, calls // 10)))
    for number in range(0 if canned else runs):
        name = client.create_run("0", start_time=number).info.run_id
        client.log_batch(name, [Metric("score", number / runs, 1, 0)], [Param("p", "ab"[number % 2])])
    search = lambda n: client.search_runs(
        ["0"], "metrics.score > 0.5 and params.p = 'a'", order_by=["metrics.score DESC"], max_results=50
    )
    search(0)
    say(search_runs=median(search, max(5, calls // 20)))
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small.bin"), Path(folder, "large.bin")
        small.write_bytes(os.urandom(1000))
        client.log_artifact(run, small)
        say(up_small=median(lambda n: client.log_artifact(run, small), max(5, calls // 10)))
        fetch = lambda path: client.download_artifacts(run, path, tempfile.mkdtemp(dir=folder))
        say(down_small=median(lambda n: fetch("small.bin"), max(5, calls // 10)))
        with large.open("wb") as file:
            for _ in range(large_mb):
                file.write(os.urandom(1 << 20))
        say(large="begins")
        say(up_large=median(lambda n: client.log_artifact(run, large), 3), large="ended")
        sizes = []
        def fetch_large(n):
            path = Path(fetch("large.bin"))
            sizes.append(path.stat().st_size)
            path.unlink()
        say(down_large=median(fetch_large, 3))
        assert canned or set(sizes) == {large_mb << 20}, sizes

    names = [client.create_run("0").info.run_id for _ in range(clients)]
    reads = []
    for name in names:
        read, write = os.pipe()
        if os.fork() == 0:
            mine, errors, seconds, began = MlflowClient(url), 0, [], time.perf_counter()
            step = 0
            while time.perf_counter() - began < soak_s:
                before = time.perf_counter()
                try:
                    mine.log_metric(name, "soak", step / 2, step=step)
                    step += 1
                    seconds.append(time.perf_counter() - before)
                    time.sleep(pause_ms / 1000)
                except Exception:
                    errors += 1
                    time.sleep(0.1)
            with os.fdopen(write, "w") as out:
                json.dump([step, errors, seconds], out)
            os._exit(0)
        os.close(write)
        reads.append(read)
    reports = [json.load(os.fdopen(read)) for read in reads]
    for _ in names:
        os.wait()
    lost = sum(errors for _, errors, _ in reports)
    for name, (count, _, _) in zip(names, reports):
        if not canned:
            steps = {point.step for point in client.get_metric_history(name, "soak")}
            lost += len(set(range(count)) - steps)
    seconds = sorted(one for _, _, all_of_one in reports for one in all_of_one)
    say(soak_median=seconds[len(seconds) // 2], soak_p99=seconds[len(seconds) * 99 // 100],
        soak_calls=len(seconds), soak_lost=lost)
"""

NOTHING = """
    import asyncio, json, sys
    port, size = int(sys.argv[1]), int(sys.argv[2]) << 20
    name = "0" * 32
    info = {"run_id": name, "run_uuid": name, "experiment_id": "0", "run_name": "r", "status": "RUNNING",
            "start_time": 1, "artifact_uri": f"mlflow-artifacts:/0/{name}/artifacts", "lifecycle_stage": "active"}
    run = {"run": {"info": info, "data": {}}}
    found = {"runs": [{"info": info, "data": {"metrics": [{"key": "score", "value": 1.0, "timestamp": 1, "step": 0}],
             "params": [{"key": "p", "value": "a"}]}}] * 50}
    experiment = {"experiment": {"experiment_id": "0", "name": "Default", "lifecycle_stage": "active",
                  "artifact_location": "mlflow-artifacts:/0"}}
    answers = {
        "runs/create": run, "runs/get": run, "runs/search": found, "runs/update": {"run_info": info},
        "experiments/get": experiment, "experiments/get-by-name": experiment, "logged-models/search": {"models": []},
        "mlflow-artifacts/artifacts": {"files": [{"path": "small.bin", "is_dir": False, "file_size": 1000},
                                                 {"path": "large.bin", "is_dir": False, "file_size": size}]},
    }
    ready = {path: json.dumps(answer).encode() for path, answer in answers.items()}

    class Answers(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport, self.held, self.left = transport, b"", 0

        def data_received(self, data):
            if self.left:
                taken = min(self.left, len(data))
                self.left -= taken
                data = data[taken:]
                if not self.left:
                    self.answer()
            self.held += data
            while not self.left and b"\\r\\n\\r\\n" in self.held:
                head, _, rest = self.held.partition(b"\\r\\n\\r\\n")
                lines = head.decode("latin-1").split("\\r\\n")
                self.path, _, query = lines[0].split(" ")[1].partition("?")
                if ".bin" in query:
                    self.path = "a file has nothing in it"
                headers = dict(line.lower().split(": ", 1) for line in lines[1:])
                self.left = int(headers.get("content-length", 0))
                self.get = lines[0].startswith("GET")
                taken = min(self.left, len(rest))
                self.left -= taken
                self.held = rest[taken:]
                if not self.left:
                    self.answer()

        def answer(self):
            if self.get and self.path.endswith(".bin"):
                length = size if self.path.endswith("large.bin") else 1000
                self.send(b"", length)
                self.pieces = length
                self.resume_writing()
                return
            inner = self.path.partition("2.0/")[2]
            body = ready.get(inner.removeprefix("mlflow/"), b"{}")
            self.send(body, len(body))

        paused = False
        pieces = 0

        def send(self, body, length):
            head = "HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n" % length
            self.transport.write(head.encode() + body)

        def pause_writing(self):
            self.paused = True

        def resume_writing(self):
            self.paused = False
            while self.pieces and not self.paused:
                piece = min(self.pieces, 1 << 18)
                self.pieces -= piece
                self.transport.write(bytes(piece))

    async def main():
        server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", port)
        await server.serve_forever()
    asyncio.run(main())
"""


class UnmeasuredError(Exception):
    """A server or its client could not be run; the message says why."""


@dataclass
class Memory:
    """Return the memory of a process and all of its children. Shared pages are counted once."""

    pid: int
    peak_mb: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def now_mb(self) -> float:
        return sum(_proportional_mb(pid) for pid in _family(self.pid))

    def watch(self) -> None:
        while not self.stop.wait(0.1):
            self.peak_mb = max(self.peak_mb, self.now_mb())


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        left += children.get(one, [])
    return found


def _proportional_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def mlflow_python() -> str:
    """Return the interpreter that has MLflow. Creates its environment if there is none."""
    folder = BENCH / "mlflow"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"creating {folder.relative_to(ROOT)} …", file=sys.stderr, flush=True)
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--upgrade", "mlflow>=3.5,<4", "lightgbm", "xgboost-cpu"],
        ):
            subprocess.run(command, check=True, timeout=1800)
        (folder / "ready").touch()
    return str(python)


def command_of(name: str, python: str, port: int, folder: Path, large_mb: int) -> list[str]:
    match name:
        case "nothing":
            return [sys.executable, "-c", textwrap.dedent(NOTHING), str(port), str(large_mb)]
        case "everloop":
            start = "from everloop.cli import main; main()"
            return [sys.executable, "-c", start, "server", "--port", str(port), "--home", str(folder / "home")]
    store = ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts")]
    return [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store]


@contextmanager
def started(command: list[str], port: int, folder: Path) -> Iterator[tuple[int, float]]:
    """Run a server; give its process id, and the seconds until it answered."""
    environment = {**os.environ, "EVERLOOP_KEYS": str(folder / "keys"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        began = time.perf_counter()
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    if server.poll() is not None or time.perf_counter() - began > 120:
                        raise UnmeasuredError((folder / "log").read_text()[-300:]) from None
                    time.sleep(0.01)
            yield server.pid, time.perf_counter() - began
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def measure(name: str, python: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one server. Values are in seconds, or in the unit that `COUNTED` names."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    sizes = [
        options.calls,
        options.runs,
        options.large_mb,
        CLIENTS,
        options.soak_s,
        options.pause_ms,
        int(name == "nothing"),
    ]
    with tempfile.TemporaryDirectory(prefix="everloop-bench-") as directory:
        folder = Path(directory)
        command = command_of(name, python, port, folder, options.large_mb)
        with started(command, port, folder) as (pid, ready_s):
            time.sleep(2)
            memory = Memory(pid)
            idle_mb = memory.now_mb()
            client = [
                python,
                "-W",
                "ignore",
                "-c",
                textwrap.dedent(CLIENT),
                f"http://127.0.0.1:{port}",
                *map(str, sizes),
            ]
            found = _follow(client, memory, name)
    found.pop("large", None)
    return {**found, "ready": ready_s, "idle": idle_mb, "peak": memory.peak_mb}


def _follow(command: list[str], memory: Memory, name: str) -> dict[str, float]:
    """Run the client and watch the server's memory while the large file is sent."""
    watcher = threading.Thread(target=memory.watch, daemon=True)
    reported: dict[str, float] = {}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as client,
    ):
        assert client.stdout is not None
        for line in client.stdout:
            if not line.startswith("{"):
                continue
            reported = json.loads(line)
            print(f"{name}: {list(reported)[-1]}", file=sys.stderr, flush=True)
            if reported.get("large") == "begins" and not watcher.is_alive():
                watcher.start()
            elif reported.get("large") == "ended":
                memory.stop.set()
        if client.wait():
            errors.seek(0)
            raise UnmeasuredError("\n".join(errors.read().strip().splitlines()[-3:])[-400:])
    return reported


def show(title: str, found: dict[str, dict[str, float]], name: str) -> None:
    """Print one line per server: time or count, its ratio to the client alone, and its ratio to everloop."""
    unit = COUNTED.get(name)
    floor, ours = (found.get(server, {}).get(name) for server in ("nothing", "everloop"))
    print(f"\n{title}\n")
    print(f"| {'server':10} | {'measured':>12} | {'× client alone':>14} | {'× everloop':>10} |")
    print(f"|{'-' * 12}|{'-' * 14}|{'-' * 16}|{'-' * 12}|")
    for server, values in found.items():
        value = values.get(name)
        if value is None:
            shown = "-"
        elif unit is not None:
            shown = f"{value:,.0f} {unit}".strip()
        else:
            shown = f"{value:9.2f} s" if value >= 1 else f"{value * 1e3:9.2f} ms"
        of_floor = f"{value / floor:.2f}" if value is not None and floor and unit is None else "-"
        of_ours = f"{value / ours:.2f}" if value is not None and ours else "-"
        print(f"| {server:10} | {shown:>12} | {of_floor:>14} | {of_ours:>10} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    servers = ["nothing", "everloop", "mlflow"]
    parser.add_argument("--servers", nargs="+", default=servers, choices=servers)
    parser.add_argument(
        "--calls", type=int, default=300, help="number of calls that log one metric; slower work is called less often"
    )
    parser.add_argument("--runs", type=int, default=300, help="number of runs to search")
    parser.add_argument("--large-mb", type=int, default=500, help="size of the large artifact, in megabytes")
    parser.add_argument("--soak-s", type=int, default=60, help=f"seconds for which {CLIENTS} clients log at once")
    parser.add_argument(
        "--pause-ms", type=int, default=200, help="pause of each client between two calls, in milliseconds"
    )
    options = parser.parse_args()
    began = time.perf_counter()
    python = mlflow_python()
    command = [python, "-c", "import importlib.metadata as m; print(m.version('mlflow'))"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    found: dict[str, dict[str, float]] = {}
    for name in options.servers:
        try:
            found[name] = measure(name, python, options)
        except UnmeasuredError as error:
            found[name] = {}
            print(f"{name} could not be measured: {error}", file=sys.stderr)
    for name, title in WORK.items():
        titled = title.format(
            runs=options.runs, large=options.large_mb, clients=CLIENTS, soak=options.soak_s, pause=options.pause_ms
        )
        show(titled, found, name)
    print(
        f"\nMLflow {version}, {os.cpu_count()} cores, Python {sys.version.split()[0]},"
        f" {time.perf_counter() - began:.0f} s in total"
    )


if __name__ == "__main__":
    main()
