"""Measure how steps scale out: overhead per step of each executor, and mapped tasks on two Ray nodes beside Ray alone.

    python benchmarks/scale.py [--address HOST:PORT] [--tasks 1000] [--work-ms 50] [--repeat 3]

Without --address, two nodes with two CPUs each are started on this machine and stopped at the end. Each figure is the
fastest of the repetitions, since other load can only slow them down. Needs: pip install 'everloop[ray]'
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
    from collections.abc import Callable, Iterator

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
import json, sys, time
import ray

address, tasks, work_s, repeat = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
ray.init(address=address, logging_level="error", log_to_driver=False)

@ray.remote(max_retries=0)
def work(number):
    if work_s:
        time.sleep(work_s)
    return {"number": number * number}

def fastest(measure):
    best = None
    for _ in range(repeat):
        began = time.perf_counter()
        measure()
        seconds = time.perf_counter() - began
        best = seconds if best is None else min(best, seconds)
    return best

def chain():
    for number in range(20):
        ray.get(work.remote(number))

ray.get([work.remote(number) for number in range(200)])
print(json.dumps({"mapped": fastest(lambda: ray.get([work.remote(n) for n in range(tasks)])),
                  "step": 0.0 if work_s else fastest(chain) / 20}))
"""


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
            nodes.append(
                subprocess.Popen(
                    [*common, *options],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
                )
            )
            time.sleep(12)
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


def fastest(measure: Callable[[int], float], repeat: int) -> float:
    return min(measure(number) for number in range(repeat))


def measure_executor(executor: Any, home: Path, tasks: int, work_s: float, repeat: int) -> dict[str, float]:
    """Seconds of `tasks` mapped steps, and of one step in a chain of them without work."""
    import steps_of_scale

    from everloop.pipeline import run_graph, trace
    from everloop.stores import open_store

    with open_store(home) as store:

        def mapped(offset: int) -> float:
            with trace() as graph:
                steps_of_scale.work.map([offset * 10**6 + number for number in range(tasks)], work_s=work_s)
            began = time.perf_counter()
            result = run_graph(graph, store, executor=executor)
            seconds = time.perf_counter() - began
            assert sum(step.status == "ran" for step in result.steps) == tasks + 1
            return seconds

        def chain(offset: int) -> float:
            with trace() as graph:
                value = steps_of_scale.work(offset)
                for _ in range(19):
                    value = steps_of_scale.follow(value)
            began = time.perf_counter()
            run_graph(graph, store, executor=executor, force=True)
            return (time.perf_counter() - began) / 20

        mapped(-1)
        return {"mapped": fastest(mapped, repeat), "step": fastest(chain, repeat)}


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

    work_s = options.work_ms / 1000
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        Path(folder, "steps_of_scale.py").write_text(STEPS, encoding="utf-8")
        sys.path.insert(0, folder)
        address = options.address or stack.enter_context(two_nodes())
        found: dict[str, Any] = {}
        for name, executor in (("inline", InlineExecutor()), ("pool", PoolExecutor())):
            found[name] = measure_executor(executor, Path(folder, name), 20, 0.0, options.repeat)
        ray = RayExecutor(address)
        stack.callback(ray.close)
        found["ray"] = measure_executor(ray, Path(folder, "ray"), options.tasks, work_s, options.repeat)
        alone = []
        for seconds in (work_s, 0.0):
            command = [sys.executable, "-c", RAY_ALONE, address, str(options.tasks), str(seconds), str(options.repeat)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            alone.append(json.loads(done.stdout.splitlines()[-1]))
    mapped, limit = found["ray"]["mapped"], alone[0]["mapped"]
    print(f"one step     inline {1000 * found['inline']['step']:6.1f} ms   (at most 3)")
    print(f"             pool   {1000 * found['pool']['step']:6.1f} ms   (at most 30)")
    print(
        f"             ray    {1000 * found['ray']['step']:6.1f} ms   (at most 50 over Ray's own "
        f"{1000 * alone[1]['step']:.1f} ms for a task)"
    )
    print(
        f"{options.tasks} tasks of {options.work_ms:g} ms on two nodes: everloop {mapped:.1f} s, "
        f"Ray alone {limit:.1f} s, {mapped / limit:.2f} times (at most 1.3)"
    )


if __name__ == "__main__":
    main()
