"""Measure ten small pipeline steps: everloop beside Dagster, ZenML and Metaflow.

    python benchmarks/pipeline.py [--tools everloop dagster …] [--repeat 7]

Every tool runs the same chain of ten steps. Each step takes the dict of the step before and returns a small one, which
is persisted and recorded in the tool's own history. Each peer runs its newest release in its own virtual environment
under `.bench/<tool>`, which this script creates. Times are warm: the median of the runs without the first. If a tool
can only be run as a command, the time is that of the command.

The second table is a graph of 100 steps in which nothing has changed. Tools without such a feature are marked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"

EVERLOOP = """
    import json, sys, time
    from everloop.pipeline import Graph, Step, run_graph
    from everloop.stores import open_store

    def chain(size):
        space = {"__name__": "chain"}
        text = "def s0(seed=0): return {'n': seed}\\n"
        for i in range(1, size):
            text += f"def s{i}(s{i-1}, k={i}): return {{'n': s{i-1}['n'] + k, 'name': 'step {i}'}}\\n"
        open("chain.py", "w").write(text)
        sys.path.insert(0, ".")
        import chain
        return Graph.wire([Step(getattr(chain, f"s{i}")) for i in range(size)])

    repeat, size, noop = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "noop"
    store = open_store("home")
    graph = chain(size)
    seconds = []
    for number in range(repeat + 1):
        began = time.perf_counter()
        result = run_graph(graph, store, params={"seed": 0 if noop else number})
        seconds.append(time.perf_counter() - began)
        expected = "cached" if noop and number else "ran"
        assert {record.status for record in result.steps} == {expected}
    print(json.dumps(seconds[1:]))
"""

DAGSTER = """
    import json, os, sys, time
    from dagster import DagsterInstance, graph, op, fs_io_manager

    repeat, size = int(sys.argv[1]), int(sys.argv[2])

    def make(number):
        if number == 0:
            @op(name="s0")
            def first():
                return {"n": 0}
            return first

        @op(name=f"s{number}")
        def following(before):
            return {"n": before["n"] + number, "name": f"step {number}"}
        return following

    ops = [make(number) for number in range(size)]

    @graph
    def chain():
        value = ops[0]()
        for one in ops[1:]:
            value = one(value)

    os.makedirs(os.environ["DAGSTER_HOME"], exist_ok=True)
    job = chain.to_job(resource_defs={"io_manager": fs_io_manager})
    seconds = []
    with DagsterInstance.get() as instance:
        for _ in range(repeat + 1):
            began = time.perf_counter()
            assert job.execute_in_process(instance=instance).success
            seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds[1:]))
"""

ZENML = """
    import json, sys, time
    from zenml import pipeline, step

    repeat, size, noop = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "noop"

    @step
    def first(seed: int) -> dict:
        return {"n": seed}

    @step
    def following(before: dict, number: int) -> dict:
        return {"n": before["n"] + number, "name": f"step {number}"}

    @pipeline(enable_cache=noop)
    def chain():
        value = first(0)
        for number in range(1, size):
            value = following(value, number)

    seconds = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        chain()
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds[1:]))
"""

METAFLOW = """
    import json, subprocess, sys, time

    repeat, size = int(sys.argv[1]), int(sys.argv[2])
    names = ["start", *(f"s{number}" for number in range(1, size - 1)), "end"]
    text = "from metaflow import FlowSpec, step\\n\\nclass Chain(FlowSpec):\\n"
    for number, name in enumerate(names):
        text += f"    @step\\n    def {name}(self):\\n"
        text += f"        self.value = {{'n': {number}, 'name': 'step {number}'}}\\n"
        if number + 1 < size:
            text += f"        self.next(self.{names[number + 1]})\\n"
    text += "\\nif __name__ == '__main__':\\n    Chain()\\n"
    open("chain.py", "w").write(text)
    seconds = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        command = [sys.executable, "chain.py", "--quiet", "--no-pylint", "run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds[1:]))
"""


@dataclass(frozen=True)
class Tool:
    """One tool: what to install, the program that prints its times, and how it is run."""

    name: str
    program: str
    requirements: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    how: str = "one process"
    caches: bool = True
    repeat: int | None = None


TOOLS = [
    Tool("everloop", EVERLOOP),
    Tool(
        "dagster",
        DAGSTER,
        ("dagster",),
        {"DAGSTER_HOME": "{folder}/home", "DAGSTER_DISABLE_TELEMETRY": "true"},
        how="execute_in_process, file system IO manager, SQLite",
        caches=False,
    ),
    Tool(
        "zenml",
        ZENML,
        ("zenml[local]",),
        {
            "ZENML_CONFIG_PATH": "{folder}/config",
            "ZENML_LOCAL_STORES_PATH": "{folder}/stores",
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_LOGGING_VERBOSITY": "ERROR",
            "ZENML_ENABLE_RICH_TRACEBACK": "false",
            "AUTO_OPEN_DASHBOARD": "false",
        },
        how="local stack, SQLite",
    ),
    Tool(
        "metaflow",
        METAFLOW,
        ("metaflow",),
        {
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": "{folder}",
            "METAFLOW_HOME": "{folder}/config",
            "METAFLOW_USER": "bench",
            "USERNAME": "bench",
        },
        how="its command, a process per step",
        caches=False,
        repeat=3,
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


def measure(tool: Tool, python: str, size: int, repeat: int, *, noop: bool) -> list[float]:
    """Return the seconds of each run but the first."""
    with tempfile.TemporaryDirectory(prefix="everloop-bench-") as folder:
        program = Path(folder) / "program.py"
        program.write_text(textwrap.dedent(tool.program))
        environment = {name: value.format(folder=folder) for name, value in tool.environment.items()}
        environment["EVERLOOP_KEYS"] = f"{folder}/keys"
        command = [python, str(program), str(repeat), str(size), "noop" if noop else "run"]
        out = run(command, timeout_s=1200, folder=folder, environment=environment)
    seconds: list[float] = json.loads(out.strip().splitlines()[-1])
    return seconds


def run(
    command: list[str], *, timeout_s: float, folder: str | None = None, environment: dict[str, str] | None = None
) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise UnmeasuredError(f"took longer than {timeout_s:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        raise UnmeasuredError(f"{Path(command[0]).name} ended with {done.returncode}: {lines[-1][:200]}")
    return done.stdout


def show(title: str, rows: list[tuple[str, str, float | None, str]]) -> None:
    """Print one line per tool: name, version, median, its ratio to everloop, and a remark."""
    ours = next((seconds for name, _, seconds, _ in rows if name == "everloop" and seconds), None)
    print(f"\n{title}\n")
    print(f"| {'tool':10} | {'version':10} | {'median':>10} | {'ratio':>8} | remark")
    print(f"|{'-' * 12}|{'-' * 12}|{'-' * 12}|{'-' * 10}|{'-' * 30}")
    for name, version, seconds, remark in rows:
        median = f"{seconds * 1000:8.1f} ms" if seconds is not None else "-"
        ratio = f"{seconds / ours:7.1f}×" if seconds is not None and ours else "-"
        print(f"| {name:10} | {version:10} | {median:>10} | {ratio:>8} | {remark}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tools", nargs="+", default=[tool.name for tool in TOOLS], choices=[t.name for t in TOOLS])
    parser.add_argument("--repeat", type=int, default=7, help="number of warm runs of each tool; the median is printed")
    options = parser.parse_args()
    began = time.perf_counter()
    ten: list[tuple[str, str, float | None, str]] = []
    hundred: list[tuple[str, str, float | None, str]] = []
    for tool in (tool for tool in TOOLS if tool.name in options.tools):
        version = "?"
        try:
            python = python_of(tool)
            version = version_of(tool, python)
            repeat = min(options.repeat, tool.repeat or options.repeat)
            seconds = measure(tool, python, 10, repeat, noop=False)
            ten.append((tool.name, version, statistics.median(seconds), tool.how))
        except UnmeasuredError as error:
            ten.append((tool.name, version, None, f"not measured: {error}"))
            hundred.append((tool.name, version, None, "not measured"))
            continue
        if not tool.caches:
            hundred.append((tool.name, version, None, "runs every step again"))
            continue
        try:
            seconds = measure(tool, python, 100, min(options.repeat, 3), noop=True)
            hundred.append((tool.name, version, statistics.median(seconds), tool.how))
        except UnmeasuredError as error:
            hundred.append((tool.name, version, None, f"not measured: {error}"))
    show("Ten steps, each persisted and tracked, warm", ten)
    show("100 steps with nothing to do", hundred)
    print(f"\n{os.cpu_count()} cores, Python {sys.version.split()[0]}, {time.perf_counter() - began:.0f} s in total")


if __name__ == "__main__":
    main()
