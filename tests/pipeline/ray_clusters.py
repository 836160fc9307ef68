"""Real Ray clusters for tests: a head and further nodes, each a process group of its own that a test can kill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
_OBJECTS = "80000000"


def free_port() -> int:
    """A free port outside of 10002 to 19999, where Ray puts its workers."""
    for _ in range(200):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not 10000 <= port <= 19999:
            return port
    raise RuntimeError("there is no free port")


@dataclass
class RayCluster:
    """Use it in a `with` block, which kills every process of the cluster at its end."""

    head_cpus: int = 1
    node_cpus: tuple[int, ...] = (2,)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="elr-")))
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    client_port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> RayCluster:
        try:
            self._start(
                self.head_cpus,
                "--head",
                f"--port={self.port}",
                f"--ray-client-server-port={self.client_port}",
                f"--temp-dir={self.folder}",
                "--include-dashboard=false",
                "--disable-usage-stats",
            )
            self._wait(lambda: _answers(self.port))
            for cpus in self.node_cpus:
                self.add_node(cpus)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add_node(self, cpus: int) -> None:
        count = len(self.raylets())
        self._start(cpus, f"--address={self.address}")
        self._wait(lambda: len(self.raylets()) > count)
        time.sleep(2)  # until it has registered

    def kill_node(self, index: int) -> None:
        """Kill a node in all of its processes at once, as if its power failed. 0 is the head."""
        group = self.nodes[index].pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        for pid in _processes(f"everloop-node-{self.port}-{index}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes[index].wait()

    def stop(self) -> None:
        for index in reversed(range(len(self.nodes))):
            self.kill_node(index)
        shutil.rmtree(self.folder, ignore_errors=True)

    def raylets(self) -> list[int]:
        return _processes("raylet/raylet", str(self.folder))

    def workers(self) -> list[int]:
        """Processes of the cluster that run, or could run, a step."""
        mark = f"everloop-node-{self.port}-"
        return [pid for pid in _processes(mark) if b"ray::" in _command(pid)]

    def _start(self, cpus: int, *options: str) -> None:
        command = [str(RAY), "start", "--block", f"--num-cpus={cpus}", f"--object-store-memory={_OBJECTS}", *options]
        index = len(self.nodes)
        environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Children inherit it, so all processes of a node can be found, also those that left its group.
            "EVERLOOP_TEST_NODE": f"everloop-node-{self.port}-{index}",
        }
        log = (self.folder / f"node-{index}.log").open("wb")
        with log:
            self.nodes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _wait(self, ready: object, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            if time.monotonic() > end or self.nodes[-1].poll() is not None:
                logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("node-*.log"))
                raise RuntimeError(f"the Ray node did not start:\n{logs}")
            time.sleep(0.2)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _processes(*marks: str) -> list[int]:
    """Processes whose command line or environment contains every mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                text = _command(int(entry.name)) + (entry / "environ").read_bytes()
                if all(mark.encode() in text for mark in marks):
                    found.append(int(entry.name))
    return found


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
