"""Metrics of the machine during a run: a thread measures every few seconds and logs them.

    system/cpu_percent            of all cores together, 0 to 100
    system/process_cpu_percent    of this process and its children; 100 is one core
    system/memory_percent         of the machine's memory
    system/process_memory_mb      resident, of this process and its children
    system/disk_percent           of the file system that holds the store
    system/disk_read_mb, …_write_mb, network_in_mb, …_out_mb      since the watch started, of the whole machine
    system/gpu_<n>/percent, memory_percent, power_w, temperature_c      if pynvml finds GPUs

Megabytes are millions of bytes. Steps count the measurements, from 0.
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
    """The parts of a run that the watch uses."""

    @property
    def store(self) -> Store: ...

    def log(self, metrics: Mapping[str, Any], /, *, step: int) -> None: ...


class SystemWatch:
    """Measures until `stop`, or until the run ends. The thread is a daemon: it never keeps a process alive.

    Raises:
        MissingExtraError: psutil is not installed.
        UsageError: the interval is not a positive number.
    """

    def __init__(self, run: MeasuredRun, every_s: float = 10.0) -> None:
        if not every_s > 0:
            raise UsageError(
                f"every_s={every_s} is not a positive number of seconds.", help="Pass seconds, such as every_s=10."
            )
        if find_spec("psutil") is None:
            raise MissingExtraError.of("Watching the system", "psutil", "system")
        self.every_s = every_s
        self._run = run
        self._psutil: Any = import_module("psutil")
        self._process = self._psutil.Process()
        self._children: dict[int, Any] = {}
        self._gpus = _gpus()
        self._counters_at_start = self._counters()
        # psutil reports the CPU use since the last call, so the first value is meaningless.
        self._psutil.cpu_percent(None)
        self._process_cpu()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._log_until_stopped, name="everloop-system", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Measure once more, then end. Stopping again changes nothing."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join(timeout=5)

    def measure(self) -> dict[str, float]:
        """The present metrics, without their prefix."""
        memory = self._psutil.virtual_memory()
        processes = [self._process, *self._children.values()]
        metrics = {
            "cpu_percent": float(self._psutil.cpu_percent(None)),
            "process_cpu_percent": self._process_cpu(),
            "memory_percent": float(memory.percent),
            "process_memory_mb": sum(self._resident(process) for process in processes) / _MB,
        }
        with suppress(OSError):
            metrics["disk_percent"] = float(self._psutil.disk_usage(str(self._run.store.home)).percent)
        for name, value in self._counters().items():
            metrics[name] = max(0.0, value - self._counters_at_start.get(name, 0.0)) / _MB
        for number, gpu in enumerate(self._gpus):
            metrics.update({f"gpu_{number}/{name}": value for name, value in _gpu_state(gpu).items()})
        return metrics

    def _log_until_stopped(self) -> None:
        step = 0
        while True:
            stopped = self._done.wait(self.every_s)
            try:
                self._run.log({f"system/{name}": value for name, value in self.measure().items()}, step=step)
            except EverloopError:
                return  # the run has ended
            except Exception as error:
                # psutil and drivers raise various errors (in a container without /proc/net, for example), which must
                # not stop the run.
                _log.warning("System metrics cannot be measured any more: %s", error)
                return
            step += 1
            if stopped:
                return

    def _process_cpu(self) -> float:
        """CPU use in percent of this process and its children, each since its last measurement."""
        process_ended = self._psutil.Error
        total = float(self._process.cpu_percent(None))
        children: dict[int, Any] = {}
        with suppress(process_ended):
            for child in self._process.children(recursive=True):
                with suppress(process_ended):
                    # The same object has to be used again: it holds the values of the last measurement.
                    earlier = self._children.get(child.pid)
                    child = earlier if earlier is not None and earlier == child else child
                    total += float(child.cpu_percent(None))
                    children[child.pid] = child
        self._children = children
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
    """GPU handles of pynvml; empty if pynvml, a driver or a GPU is missing."""
    if find_spec("pynvml") is None:
        return []
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except Exception:
        # pynvml creates its error classes at run time. The usual error is a missing driver.
        return []


def _gpu_state(handle: Any) -> dict[str, float]:
    nvml = import_module("pynvml")
    metrics: dict[str, float] = {}
    with suppress(nvml.NVMLError):
        metrics["percent"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        metrics["memory_percent"] = 100.0 * memory.used / memory.total
    with suppress(nvml.NVMLError):
        metrics["power_w"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0
    with suppress(nvml.NVMLError):
        metrics["temperature_c"] = float(nvml.nvmlDeviceGetTemperature(handle, 0))
    return metrics
