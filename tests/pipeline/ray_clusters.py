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
    node_cpus: tuple[int, ...] = (1,)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="elr-")))
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    client_port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def has_head(self) -> bool:
        return bool(self.nodes) and self.nodes[0].poll() is None

    @property
    def is_whole(self) -> bool:
        """Whether no node has been killed."""
        return len(self.nodes) == 1 + len(self.node_cpus) and all(node.poll() is None for node in self.nodes)

    def __enter__(self) -> RayCluster:
        try:
            self._start(
                self.head_cpus,
                "--head",
                f"--port={self.port}",
                f"--ray-client-server-port={self.client_port}",
                f"--temp-dir={self.folder}",
                "--include-dashboard=false",
                "--no-monitor",
                "--disable-usage-stats",
                # A step that asks for it runs on this node.
                '--resources={"head": 1}',
            )
            for cpus in self.node_cpus:
                self.add_node(cpus)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add_node(self, cpus: int) -> None:
        self._start(cpus, f"--address={self.address}")

    def kill_node(self, index: int) -> None:
        """Kill a node in all of its processes at once, as if its power failed. 0 is the head."""
        node = self.nodes[index]
        # Once it has ended, its id may be that of another process.
        if node.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        for pid in self.processes(index):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()

    def repair(self) -> None:
        """Start each node again that has been killed. The head must be running."""
        for index, cpus in enumerate(self.node_cpus, start=1):
            if self.nodes[index].poll() is not None:
                self._start(cpus, f"--address={self.address}", index=index)

    def stop(self) -> None:
        for index in reversed(range(len(self.nodes))):
            self.kill_node(index)
        self.nodes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self, index: int, *marks: str) -> list[int]:
        """The processes of a node whose command line or environment contains every mark. 0 is the head."""
        return _processes(f"everloop-node-{self.port}-{index}", *marks)

    def _start(self, cpus: int, *options: str, index: int | None = None) -> None:
        command = [str(RAY), "start", "--block", f"--num-cpus={cpus}", f"--object-store-memory={_OBJECTS}", *options]
        index = len(self.nodes) if index is None else index
        environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            # What a node does besides running steps slows its start down, and a slow worker would be given up.
            "RAY_enable_metrics_collection": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_worker_register_timeout_seconds": "300",
            # A node that is killed refuses connections. It is lost after five attempts, which are 3 s apart by default.
            "RAY_health_check_period_ms": "500",
            # Children inherit it, so all processes of a node can be found, also those that left its group.
            "EVERLOOP_TEST_NODE": f"everloop-node-{self.port}-{index}",
        }
        path = self.folder / f"node-{index}.log"
        # Ray gives up after 30 s, which a machine that is busy with other tests may need.
        for _ in range(4):
            with path.open("wb") as log:
                node = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            self.nodes[index : index + 1] = [node]
            while node.poll() is None:
                if b"Ray runtime started" in path.read_bytes():
                    return
                time.sleep(0.2)
            self.kill_node(index)
        raise RuntimeError(f"the Ray node did not start:\n{path.read_text(errors='replace')[-2000:]}")


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
