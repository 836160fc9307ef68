"""Foreign models are read in a process of their own first, where a crash hurts nothing.

Libraries that read trees and graphs are made for files of their own. A file that was changed, by accident or on
purpose, can end the process that reads it, hold it forever, or fill its memory. So whatever is not signed by a key that
is trusted here is read and asked once in a child process with limits: time, memory, no core dumps, an empty working
directory, an environment of its own. If the child does not come back with an answer, the model is refused.

The child is given a job by a pickle, which this process made, and answers in JSON, which may be anything.
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
"""Seconds of processor time for reading and asking a small model; each megabyte of it adds `CPU_S_PER_MB`."""
CPU_S_PER_MB = 1.0
WALL_FACTOR = 4
"""How much longer the child may take by the clock: other work may keep it from running."""
MEMORY_BYTES = 2**30
"""Beyond what the libraries take once they are loaded; each byte of the model adds `MEMORY_PER_BYTE`."""
MEMORY_PER_BYTE = 24
START_S = 60
"""Seconds for starting Python and importing the libraries."""
_MOST_ANSWER = 1 << 16
_START = "import sys; sys.path[:] = {path!r}; from everloop.packages.isolation.child_process import main; main()"
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "KERAS_BACKEND", "TZ")
_ONE_THREAD = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS", "POLARS_MAX_THREADS"),
    *("RAYON_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)
_SIGNALS = {
    signal.SIGXCPU: "it took more than {cpu_s:.0f} seconds of processor time",
    signal.SIGKILL: "it took more than {wall_s:.0f} seconds, or the memory that there is",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """What a child may take. Memory is counted from when the libraries are loaded."""

    cpu_s: float
    wall_s: float
    memory_bytes: int

    @classmethod
    def of(cls, size_bytes: int) -> ProcessLimits:
        """Limits for a model of this size."""
        cpu_s = CPU_S + CPU_S_PER_MB * size_bytes / 2**20
        return cls(
            cpu_s=cpu_s,
            wall_s=START_S + WALL_FACTOR * cpu_s,
            memory_bytes=MEMORY_BYTES + MEMORY_PER_BYTE * size_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolatedJob:
    """What a child is to do: a name of `probe_process` and what it is given."""

    name: str
    given: dict[str, Any] = field(default_factory=dict)
    limits: ProcessLimits


def probe_package(manifest: bytes, files: Mapping[str, bytes], told: str) -> None:
    """Read a package's models in a child process, and ask them the rows that came with it.

    Args:
        manifest: the bytes of `everloop.json`.
        told: what to call it in a message.

    Raises:
        TrustError: a model names something outside of the package.
        MissingExtraError: a library that reads it is not installed.
        CorruptionError: a model does not hold together, or reading or asking it ended the child.
    """
    size = sum(map(len, files.values()))
    run(
        IsolatedJob(name="package", given={"manifest": manifest, "files": dict(files)}, limits=ProcessLimits.of(size)),
        told,
    )


def run(job: IsolatedJob, told: str) -> None:
    """Do a job in a child process.

    Raises:
        EverloopError: what the child raised, or CorruptionError if it did not come back.
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
        given, said = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
        watch = threading.Timer(job.limits.wall_s, _end, (child,))
        watch.daemon = True
        watch.start()
        try:
            with suppress(BrokenPipeError), given:
                pickle.dump(job, given, protocol=5)
            with said:
                answer = said.read(_MOST_ANSWER)
        finally:
            # What it has to say has been said; what is left of it goes.
            watch.cancel()
            _end(child)
            status = child.wait()
    _settle(answer, status, job.limits, told)


def _settle(answer: bytes, status: int, limits: ProcessLimits, told: str) -> None:
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CorruptionError(
            f"{told} ended the process that read it on trial: {_reason(status, limits)}.",
            help="It is damaged or was changed. Get it again from where it was made, or package the model again.",
        )
    if found.get("ok") is True:
        return
    kind = getattr(errors, str(found.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, EverloopError)):
        kind = CorruptionError
    advice = found.get("help")
    raise kind(str(found.get("message")), help=None if advice is None else str(advice))


def _reason(status: int, limits: ProcessLimits) -> str:
    if status >= 0:
        return f"it left with status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"signal {-status}"
    spelled = _SIGNALS.get(number)
    return number.name if spelled is None else spelled.format(cpu_s=limits.cpu_s, wall_s=limits.wall_s)


def _end(child: subprocess.Popen[bytes]) -> None:
    # Its whole session, in case a library has started something.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _environment(folder: str) -> dict[str, str]:
    """Nothing of this process's own but where libraries are; no name of a key, a token or a home."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    own = {
        "HOME": folder,
        "TMPDIR": folder,
        "LC_ALL": "C.UTF-8",
        # Memory that was given back is overwritten, so that using it still does not pass unseen.
        "MALLOC_PERTURB_": "165",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return {**kept, **own, **dict.fromkeys(_ONE_THREAD, "1")}
