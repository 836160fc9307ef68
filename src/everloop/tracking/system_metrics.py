"""What the machine does while a run goes on: a thread that looks every few seconds and logs metrics.

    system/cpu_percent            of all cores together, 0 to 100
    system/process_cpu_percent    of this process and its children; 100 is one core
    system/memory_percent         of the machine's memory
    system/process_memory_mb      resident, of this process and its children
    system/disk_percent           of the file system that holds the store
    system/disk_read_mb, …_write_mb, network_in_mb, …_out_mb      since the watch began, of the whole machine
    system/gpu_<n>/percent, memory_percent, power_w, temperature_c      where pynvml finds GPUs

Megabytes are millions of bytes. Steps count the looks, from 0.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from everloop.errors import EverloopError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.stores import Store

_log = logging.getLogger("everloop.tracking")
_MB = 1e6


class MeasuredRun(Protocol):
    """What the watch needs of a run."""

    @property
    def store(self) -> Store: ...

    def log(self, metrics: Mapping[str, Any], /, *, step: int) -> None: ...


class SystemWatch:
    """Watches until `stop`, or until the run ends. The thread is a daemon: it never keeps a process alive.

    Raises:
        MissingExtraError: psutil is not installed.
        UsageError: the interval is no positive number.
    """

    def __init__(self, run: MeasuredRun, every_s: float = 10.0) -> None:
        if not every_s > 0:
            raise UsageError(f"every_s={every_s} is no interval.", help="Give seconds, such as 10.")
        if find_spec("psutil") is None:
            raise MissingExtraError.of("Watching the system", "psutil", "system")
        self.every_s = every_s
        self._run = run
        self._psutil: Any = import_module("psutil")
        self._process = self._psutil.Process()
        self._known: dict[int, Any] = {}
        self._gpus = _gpus()
        self._before = self._counters()
        self._psutil.cpu_percent(None)  # the first answer has nothing to compare with
        self._own_cpu()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._go, name="everloop-system", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look once more, and end. Stopping twice changes nothing."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join(timeout=5)

    def look(self) -> dict[str, float]:
        """The metrics as they are now, without their prefix."""
        memory = self._psutil.virtual_memory()
        own = [self._process, *self._known.values()]
        seen = {
            "cpu_percent": float(self._psutil.cpu_percent(None)),
            "process_cpu_percent": self._own_cpu(),
            "memory_percent": float(memory.percent),
            "process_memory_mb": sum(self._resident(process) for process in own) / _MB,
        }
        with suppress(OSError):
            seen["disk_percent"] = float(self._psutil.disk_usage(str(self._run.store.home)).percent)
        for name, value in self._counters().items():
            seen[name] = max(0.0, value - self._before.get(name, 0.0)) / _MB
        for number, gpu in enumerate(self._gpus):
            seen.update({f"gpu_{number}/{name}": value for name, value in _gpu_state(gpu).items()})
        return seen

    def _go(self) -> None:
        step = 0
        while True:
            stopped = self._done.wait(self.every_s)
            try:
                self._run.log({f"system/{name}": value for name, value in self.look().items()}, step=step)
            except EverloopError:
                return  # the run has ended
            except Exception as error:
                # psutil and drivers fail in their own ways (a container without /proc/net); the run goes on.
                _log.warning("The system cannot be watched any more: %s", error)
                return
            step += 1
            if stopped:
                return

    def _own_cpu(self) -> float:
        """Of this process and its children, each compared with the last look at it."""
        gone = self._psutil.Error
        total = float(self._process.cpu_percent(None))
        children: dict[int, Any] = {}
        with suppress(gone):
            for child in self._process.children(recursive=True):
                with suppress(gone):
                    same = self._known.get(child.pid)
                    child = same if same is not None and same == child else child
                    total += float(child.cpu_percent(None))
                    children[child.pid] = child
        self._known = children
        return total

    def _resident(self, process: Any) -> float:
        try:
            return float(process.memory_info().rss)
        except self._psutil.Error:
            return 0.0

    def _counters(self) -> dict[str, float]:
        found: dict[str, float] = {}
        disk = self._psutil.disk_io_counters()
        if disk is not None:
            found |= {"disk_read_mb": disk.read_bytes, "disk_write_mb": disk.write_bytes}
        network = self._psutil.net_io_counters()
        if network is not None:
            found |= {"network_in_mb": network.bytes_recv, "network_out_mb": network.bytes_sent}
        return found


def _gpus() -> list[Any]:
    """Handles of pynvml; none where it, a driver or a GPU is missing."""
    if find_spec("pynvml") is None:
        return []
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except Exception:
        # Its errors are classes of its own, made at run time: no driver is the usual one.
        return []


def _gpu_state(handle: Any) -> dict[str, float]:
    nvml = import_module("pynvml")
    seen: dict[str, float] = {}
    with suppress(nvml.NVMLError):
        seen["percent"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        seen["memory_percent"] = 100.0 * memory.used / memory.total
    with suppress(nvml.NVMLError):
        seen["power_w"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
    with suppress(nvml.NVMLError):
        seen["temperature_c"] = float(nvml.nvmlDeviceGetTemperature(handle, 0))
    return seen
