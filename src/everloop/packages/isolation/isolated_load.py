"""Load a foreign model in a child process first, where a crash does no harm.

Libraries that read trees and graphs trust their files. A file that was changed, by accident or on purpose, can crash
the process that reads it, block it forever, or fill its memory. So a model that is not signed by a trusted key is read
and used once in a child process with limits on time and memory, without core dumps, in an empty working directory and
with its own environment. If the child does not report success, the model is refused.

The child receives its job as a pickle that this process wrote. Its result is JSON, which is not trusted.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from everloop import errors
from everloop.errors import CorruptionError, EverloopError

if TYPE_CHECKING:
    from collections.abc import Mapping

CPU_S = 10
"""Seconds of processor time for reading and using a small model; each megabyte of it adds `CPU_S_PER_MB`."""
CPU_S_PER_MB = 1.0
WALL_FACTOR = 4
"""Allowed wall-clock time as a multiple of processor time, because other work may delay the child."""
MEMORY_BYTES = 2**30
"""Memory beyond what the loaded libraries take; each byte of the model adds `MEMORY_PER_BYTE`."""
MEMORY_PER_BYTE = 24
START_S = 60
"""Seconds for starting Python and importing the libraries."""
_MOST_RESULT = 1 << 16
_START = "import sys; sys.path[:] = {path!r}; from everloop.packages.isolation.child_process import main; main()"
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "KERAS_BACKEND", "TZ")
_ONE_THREAD = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "POLARS_MAX_THREADS"),
    *("RAYON_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)
_SIGNALS = {
    signal.SIGXCPU: "it took more than {cpu_s:.0f} seconds of processor time",
    signal.SIGKILL: "it took more than {wall_s:.0f} seconds, or all available memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """Limits of a child process. Memory is measured from the moment when the libraries are loaded."""

    cpu_s: float
    wall_s: float
    memory_bytes: int

    @classmethod
    def of(cls, size_bytes: int) -> ProcessLimits:
        """Return the limits for a model of this size."""
        cpu_s = CPU_S + CPU_S_PER_MB * size_bytes / 2**20
        return cls(
            cpu_s=cpu_s,
            wall_s=START_S + WALL_FACTOR * cpu_s,
            memory_bytes=MEMORY_BYTES + MEMORY_PER_BYTE * size_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolatedJob:
    """A job for a child process: the name of a job in `child_process`, and its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limits: ProcessLimits


def probe_package(manifest: bytes, files: Mapping[str, bytes], name: str) -> None:
    """Load a package's models in a child process and predict its golden rows.

    Args:
        manifest: the bytes of `everloop.json`.
        name: how messages call the package.

    Raises:
        TrustError: a model refers to something outside of the package.
        MissingExtraError: a library that reads it is not installed.
        CorruptionError: a model is invalid, or the child crashed or exceeded a limit.
    """
    size = sum(map(len, files.values()))
    arguments = {"manifest": manifest, "files": dict(files)}
    run(IsolatedJob(name="package", arguments=arguments, limits=ProcessLimits.of(size)), name)


def run(job: IsolatedJob, name: str) -> None:
    """Run a job in a child process.

    Args:
        name: how messages call the model.

    Raises:
        EverloopError: the child's error, or CorruptionError if the child ended without a result.
    """
    with tempfile.TemporaryDirectory(prefix="everloop-probe-", ignore_cleanup_errors=True) as folder:
        path = [str(Path(one).absolute()) for one in sys.path if one]
        child = subprocess.Popen(
            [sys.executable or "python3", "-I", "-B", "-c", _START.format(path=path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        stdin, stdout = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
        timer = threading.Timer(job.limits.wall_s, _kill, (child,))
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError), stdin:
                pickle.dump(job, stdin, protocol=5)
            with stdout:
                output = stdout.read(_MOST_RESULT)
        finally:
            # The result is complete, so the child may be killed.
            timer.cancel()
            _kill(child)
            status = child.wait()
    _check_result(output, status, job.limits, name)


def _check_result(output: bytes, status: int, limits: ProcessLimits, name: str) -> None:
    try:
        result = json.loads(output)
    except ValueError:
        result = None
    if not isinstance(result, dict):
        raise CorruptionError(
            f"{name} ended the process that loaded it on trial: {_reason(status, limits)}.",
            help="It is damaged or was changed. Copy it again from its origin, or package the model again.",
        )
    if result.get("ok") is True:
        return
    kind = getattr(errors, str(result.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, EverloopError)):
        kind = CorruptionError
    advice = result.get("help")
    raise kind(str(result.get("message")), help=None if advice is None else str(advice))


def _reason(status: int, limits: ProcessLimits) -> str:
    if status >= 0:
        return f"it exited with status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"signal {-status}"
    spelled = _SIGNALS.get(number)
    return number.name if spelled is None else spelled.format(cpu_s=limits.cpu_s, wall_s=limits.wall_s)


def _kill(child: subprocess.Popen[bytes]) -> None:
    # Kill its whole session, in case a library has started processes.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _environment(folder: str) -> dict[str, str]:
    """Return an environment that only tells the child where libraries are: no keys, tokens or home folder."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    fixed = {
        "HOME": folder,
        "TMPDIR": folder,
        "LC_ALL": "C.UTF-8",
        # Overwrite freed memory, so that its further use does not go unnoticed.
        "MALLOC_PERTURB_": "165",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return {**inherited, **fixed, **dict.fromkeys(_ONE_THREAD, "1")}
