"""Measure how steps scale out: overhead per step of each executor, and mapped tasks on two Ray nodes beside Ray alone.

    python benchmarks/scale.py [--address HOST:PORT] [--tasks 1000] [--work-ms 50] [--repeat 3]

Without --address, two nodes with two CPUs each are started on this machine and stopped at the end. Runs with everloop
and with Ray alone alternate, so that other load on the machine slows both down. Needs: pip install 'everloop[ray]'
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = """
import time
from everloop.pipeline import step

@step
def work(number: int, work_s: float = 0.0):
    if work_s:
        time.sleep(work_s)
    return {"number": number * number}

@step
def follow(before: dict):
    return {"number": before["number"] + 1}
"""

RAY_ALONE = """
import sys, time
import ray

ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)

@ray.remote(max_retries=0)
def work(number, work_s):
    if work_s:
        time.sleep(work_s)
    return {"number": number * number}

def mapped(tasks, work_s):
    ray.get([work.remote(number, work_s) for number in range(tasks)])

def chain(steps, work_s):
    for number in range(steps):
        ray.get(work.remote(number, work_s))

for line in sys.stdin:
    kind, count, work_s = line.split()
    mapped(40, 0.0)
    began = time.perf_counter()
    (mapped if kind == "mapped" else chain)(int(count), float(work_s))
    print(time.perf_counter() - began, flush=True)
"""
CHAIN = 20
WARM_UP = 40


class RayAlone:
    """A process that uses Ray without everloop. `measure` returns the seconds of one repetition."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RAY_ALONE, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self, kind: str, count: int, work_s: float) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{kind} {count} {work_s}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


@contextlib.contextmanager
def two_nodes() -> Iterator[str]:
    """Start a Ray cluster of two nodes; yields its address."""
    folder = tempfile.mkdtemp(prefix="elr-")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if 10000 <= port <= 19999:
        port = 6390
    program = str(Path(sys.executable).with_name("ray"))
    common = [program, "start", "--block", "--num-cpus=2", "--object-store-memory=80000000"]
    head = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false", "--disable-usage-stats"]
    nodes = []
    try:
        for options in (head, [f"--address=127.0.0.1:{port}"]):
            path = Path(folder, f"node-{len(nodes)}.log")
            with path.open("wb") as log:
                nodes.append(
                    subprocess.Popen(
                        [*common, *options],
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
                    )
                )
            while b"Ray runtime started" not in path.read_bytes():
                if nodes[-1].poll() is not None:
                    raise SystemExit(f"The Ray node did not start:\n{path.read_text()[-2000:]}")
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        for node in reversed(nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


class Everloop:
    """Runs graphs with one executor. `measure` returns the seconds of one repetition."""

    def __init__(self, executor: Any, home: Path) -> None:
        from everloop.stores import open_store

        self.executor = executor
        self.store = open_store(home)
        self.offset = 0

    def measure(self, kind: str, count: int, work_s: float) -> float:
        self.run(self.mapped(WARM_UP, 0.0))
        graph = self.mapped(count, work_s) if kind == "mapped" else self.chain(count)
        return self.run(graph)

    def run(self, graph: Any) -> float:
        from everloop.pipeline import run_graph

        began = time.perf_counter()
        result = run_graph(graph, self.store, executor=self.executor)
        seconds = time.perf_counter() - began
        assert all(step.status == "ran" for step in result.steps)
        return seconds

    def mapped(self, tasks: int, work_s: float) -> Any:
        """A graph of tasks that have never run before."""
        import steps_of_scale

        from everloop.pipeline import trace

        self.offset += 10**6
        with trace() as graph:
            steps_of_scale.work.map([self.offset + number for number in range(tasks)], work_s=work_s)
        return graph

    def chain(self, steps: int) -> Any:
        import steps_of_scale

        from everloop.pipeline import trace

        self.offset += 10**6
        with trace() as graph:
            value = steps_of_scale.work(self.offset)
            for _ in range(steps - 1):
                value = steps_of_scale.follow(value)
        return graph

    def close(self) -> None:
        self.executor.close()
        self.store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--work-ms", type=float, default=50.0)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    from everloop.pipeline.executors.inline import InlineExecutor
    from everloop.pipeline.executors.pool import PoolExecutor
    from everloop.pipeline.executors.ray import RayExecutor

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        Path(folder, "steps_of_scale.py").write_text(STEPS, encoding="utf-8")
        sys.path.insert(0, folder)
        for name, executor, limit in (("inline", InlineExecutor(), 3), ("pool", PoolExecutor(), 30)):
            local = Everloop(executor, Path(folder, name))
            step = min(local.measure("chain", CHAIN, 0.0) for _ in range(options.repeat)) / CHAIN
            print(f"one step    {name:<7} {1000 * step:7.1f} ms   (at most {limit})", flush=True)
            local.close()
        address = options.address or stack.enter_context(two_nodes())
        ours, alone = Everloop(RayExecutor(address), Path(folder, "ray")), RayAlone(address)
        stack.callback(alone.close)
        stack.callback(ours.close)
        pairs: dict[str, list[tuple[float, float]]] = {"chain": [], "mapped": []}
        for _ in range(options.repeat):
            for kind, count, work_s in (("chain", CHAIN, 0.0), ("mapped", options.tasks, options.work_ms / 1000)):
                pairs[kind].append((ours.measure(kind, count, work_s), alone.measure(kind, count, work_s)))
                print(f"            {kind}: everloop {pairs[kind][-1][0]:.2f} s, Ray alone {pairs[kind][-1][1]:.2f} s")
    step, own = (1000 * min(seconds) / CHAIN for seconds in zip(*pairs["chain"], strict=True))
    print(f"one step    ray     {step - own:7.1f} ms over the {own:.1f} ms of Ray alone   (at most 50)")
    ratios = sorted(mine / theirs for mine, theirs in pairs["mapped"])
    print(
        f"{options.tasks} tasks of {options.work_ms:g} ms on two nodes: {ratios[len(ratios) // 2]:.2f} times Ray alone "
        f"(median; {ratios[0]:.2f} to {ratios[-1]:.2f}; at most 1.3)"
    )


if __name__ == "__main__":
    main()
