"""The identity of a process, in a form that other processes can check: `host/scope/pid/start`.

A process id alone is not enough, because the system reuses ids and because two containers on one machine have separate
ids. So the identity also has the start time of the process, and a scope: the boot of the machine and the namespace of
process ids. Two processes with the same host and scope can look each other up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

_PROC = Path("/proc")
_ENDED = ("Z", "X")
"""States of a process that has ended but whose parent has not noticed yet."""


def process_identity(pid: int | None = None) -> str:
    """The identity of a process of this machine; default: this process."""
    number = os.getpid() if pid is None else pid
    return f"{quote(os.uname().nodename, safe='')}/{_scope()}/{number}/{_start_of(number) or 'unknown'}"


def host_of(identity: str) -> str:
    """The name of the machine of a process."""
    return unquote(identity.partition("/")[0])


def pid_of(identity: str) -> int:
    """The process id, or 0 if the identity is not of the form that `process_identity` returns."""
    parts = identity.split("/")
    return int(parts[2]) if len(parts) == 4 and parts[2].isdigit() else 0


def process_is_gone(identity: str) -> bool:
    """Whether the process has certainly ended. False for processes of other machines, which cannot be looked up."""
    here, there = process_identity().split("/"), identity.split("/")
    if len(there) != 4 or not there[2].isdigit() or there[:2] != here[:2]:
        return False
    if there[3] == "unknown":
        return not _exists(int(there[2]))
    return _start_of(int(there[2])) != there[3]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _start_of(pid: int) -> str | None:
    """The start time of a living process in a form without slashes; None if there is no such process."""
    if sys.platform != "linux":
        done = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state, _, started = done.stdout.strip().partition(" ")
        return None if not started or state[0] in _ENDED else quote(started.strip(), safe="")
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:
        return "unknown"
    # The name of the program, in parentheses, may contain anything. The state is the first field after it, and the
    # start time in clock ticks since the boot is the twentieth (proc(5), fields 3 and 22).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in _ENDED else fields[19]


@cache
def _scope() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str((_PROC / "self/ns/pid").readlink()).removeprefix("pid:").strip("[]")
    except OSError:
        # Without /proc, as on macOS, process ids are not divided into namespaces.
        return "host"
    return f"{boot}.{namespace}"
