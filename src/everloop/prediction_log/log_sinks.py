"""Log sinks: where an endpoint's process writes its answers.

EVERLOOP_LOG            unset: a journal in the store's home, from which `fold_predictions` reads
                        none: nowhere; every answer says so in the header X-Everloop-Log
                        a folder, s3://…, gs://…, az://… or postgresql://…: a local journal, whose sealed segments
                        are shipped there for another process to fold
EVERLOOP_LOG_FOLDER     folder of the local journal of a shipped log; default: in the folder that it is shipped to,
                        else `everloop-log` in the folder for temporary files
EVERLOOP_LOG_DURABLE    `local` (default): an answer waits until it is in the local journal; `store`: until its
                        segment is in the store
EVERLOOP_LOG_SEGMENT_S  maximum age of a segment before it is shipped, in seconds; default 30
EVERLOOP_LOG_BACKLOG_MB limit for what waits on the local disk; beyond it, requests get 503; default 512
EVERLOOP_LOG_GRACE_S    how long a stopping process ships what is left, in seconds; default 12
EVERLOOP_INSTANCE       the readable part of the instance's id; default: the host's name
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR
from threading import Lock
from typing import TYPE_CHECKING, Literal, Protocol

from everloop.errors import InsufficientStorageError, UsageError
from everloop.stores.journals import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping


Kind = Literal["journal", "store", "none"]

VARIABLE = "EVERLOOP_LOG"
ROTATE_BYTES = 64 << 20
"""A journal of this size is closed, so folding can remove it while the endpoint keeps running."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(slots=True)
class SinkState:
    """The progress of a sink."""

    backlog_bytes: int = 0
    """Appended bytes that are only on the local disk."""
    shipped: int = 0
    """Segments that the store has confirmed."""
    failures: int = 0
    """Failed attempts to ship."""


class LogSink(Protocol):
    """Stores the frames of one stream. Thread-safe.

    - Once `append` has returned, the frame survives the death of this process, as long as its disk or store survives.
    - Every such frame reaches the table exactly once, whichever processes die in between.
    - An `append` that raises `InsufficientStorageError` has written nothing.
    - Memory does not grow with the backlog, and the disk only up to the configured limit.

    `instance`: the writer's id in the rows of the log. `kind`: journal, store or none. `waits`: whether `append` may
    wait for a network, so it must not be called in the event loop.
    """

    kind: Kind
    waits: bool
    instance: str

    def append(self, payload: bytes, *, wait: bool = True) -> None:
        """Write one frame, and return when it is as durable as the sink promises.

        Args:
            wait: False: return once the frame is on the local disk, even if `waits`.

        Raises:
            InsufficientStorageError: no space is left on the local disk.
            UnavailableError: the backlog is full because the store does not answer; nothing was written. Or the store
                has not confirmed the segment in time: then the frame is on the local disk and will be shipped.
        """

    def state(self) -> SinkState:
        """The sink's progress."""

    def close(self, until: float | None = None) -> None:
        """Ship what is left, until this `monotonic()` time; default: the configured grace period.

        Whatever cannot be shipped stays on the local disk for the next process that uses the folder.
        """


class NoSink:
    """Discards everything."""

    kind: Kind = "none"
    waits = False

    def __init__(self) -> None:
        self.instance = instance_id()

    def append(self, payload: bytes, *, wait: bool = True) -> None:
        return

    def state(self) -> SinkState:
        return SinkState()

    def close(self, until: float | None = None) -> None:
        return


class JournalSink:
    """A journal in the home of the store whose tables the frames go to. `append` returns after the `write` call."""

    kind: Kind = "journal"
    waits = False

    def __init__(self, folder: Path, stream: str) -> None:
        self._folder = folder
        self._stream = stream
        self._guard = Lock()
        self._journal = Journal.create(folder, stream)
        self.instance = instance_id()

    def append(self, payload: bytes, *, wait: bool = True) -> None:
        # Held also while rotating, so no thread appends to a journal that another has just closed.
        with self._guard:
            if self._journal.append(payload) > ROTATE_BYTES:
                full = self._journal
                # The frame is stored already. If the disk is full by now, the next append must fail, not this one.
                with suppress(InsufficientStorageError):
                    self._journal = Journal.create(self._folder, self._stream)
                    full.close()

    def state(self) -> SinkState:
        return SinkState()

    def close(self, until: float | None = None) -> None:
        self._journal.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippingOptions:
    """How a log is shipped; see the top of this module."""

    where: str
    folder: Path
    """The spool: one folder per stream, with one folder per instance."""
    durable: Literal["local", "store"] = "local"
    segment_s: float = 30.0
    segment_bytes: int = 4 << 20
    backlog_bytes: int = 512 << 20
    grace_s: float = 12.0
    confirm_s: float = 20.0
    """How long an answer waits for its segment, with `durable="store"`."""


def log_of(environment: Mapping[str, str]) -> ShippingOptions | Literal["none"] | None:
    """The log settings in the environment; None: there are none.

    Raises:
        UsageError: a value is invalid.
    """
    where = environment.get(VARIABLE, "").strip()
    if where.lower() == "none":
        return "none"
    if not where:
        return None
    where = _checked_location(where)
    durable = environment.get("EVERLOOP_LOG_DURABLE") or "local"
    if durable not in ("local", "store"):
        raise UsageError(
            f"EVERLOOP_LOG_DURABLE is '{durable}', which is not a known value.", help="Set it to local or store."
        )
    return ShippingOptions(
        where=where,
        folder=spool_of(where, environment),
        durable=durable,  # type: ignore[arg-type]
        segment_s=_number(environment, "EVERLOOP_LOG_SEGMENT_S", 30.0, least=0.05),
        backlog_bytes=int(_number(environment, "EVERLOOP_LOG_BACKLOG_MB", 512.0, least=1.0) * 2**20),
        grace_s=grace_s(environment),
    )


def grace_s(environment: Mapping[str, str] = os.environ) -> float:
    """How long a stopping process ships what is left."""
    return _number(environment, "EVERLOOP_LOG_GRACE_S", 12.0, least=0.0)


def spool_of(where: str, environment: Mapping[str, str]) -> Path:
    """The folder of the local journals of a log that is shipped to `where`."""
    from everloop.prediction_log.segments import SPOOL, is_folder

    folder = environment.get("EVERLOOP_LOG_FOLDER")
    if folder:
        return Path(folder)
    if is_folder(where):
        # On the same volume, so other instances can ship what this one leaves.
        return Path(where) / SPOOL
    return Path(tempfile.gettempdir()) / "everloop-log"


def choose_log_url(environment: Mapping[str, str], given: str | None = None) -> str:
    """The log location of a process without a store's home, as in a container image.

    It is `given`, else `EVERLOOP_LOG`, else `EVERLOOP_STORE`; it may be "none".

    Raises:
        UsageError: none of them is set.
    """
    for value in (given, environment.get(VARIABLE), environment.get("EVERLOOP_STORE")):
        if value and value.strip():
            return value.strip()
    raise UsageError(
        "EVERLOOP_STORE is not set, so the prediction log cannot be stored and the endpoint does not start: every "
        "answer must be logged before it is sent, and this container's own disk is deleted with it.",
        help="In the deployment, set EVERLOOP_STORE to the absolute path of a mounted volume, s3://BUCKET/PREFIX, "
        "gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or postgresql://USER@HOST/NAME. To answer without a log, set "
        "EVERLOOP_LOG=none.",
    )


def make_own_folder(folder: Path) -> None:
    """Make a folder that only the user of this process can read.

    Raises:
        UsageError: it cannot be created or written to, or another user has created it among the temporary files.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UsageError(
            f"Cannot create the folder '{folder}' for the log: {error.strerror}.",
            help="Set EVERLOOP_LOG_FOLDER to a folder that this user can write to.",
        ) from error
    # Elsewhere the owner is not checked: a mounted file system may show another owner than the user who may write.
    foreign = folder.parent == Path(tempfile.gettempdir()) and found.st_uid != os.geteuid()
    if not S_ISDIR(found.st_mode) or foreign or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"The folder '{folder}' for the log belongs to another user or is not writable.",
            help="Set EVERLOOP_LOG_FOLDER to a folder that belongs to this user.",
        )


def host_name(environment: Mapping[str, str] = os.environ) -> str:
    """The readable part of an instance's id."""
    name = environment.get("EVERLOOP_INSTANCE") or os.uname().nodename
    return _UNSAFE.sub("-", name).strip("-")[:63] or "host"


def new_instance() -> str:
    """A unique id for a process that writes logs: `<host>.<32 digits>`.

    The first eight digits are the same for all processes that run on one kernel and so see each other's locks.
    """
    return f"{host_name()}.{kernel_digits()}{uuid.uuid4().hex[:24]}"


@lru_cache(maxsize=1)
def kernel_digits() -> str:
    """Eight digits that identify the kernel that runs this process."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        kernel = f"{os.uname().nodename} {uuid.getnode()}".encode()
    return sha256(kernel).hexdigest()[:8]


def on_this_kernel(instance: str) -> bool:
    """Whether an instance runs, or ran, on this kernel, so its locks can be seen."""
    return instance.rpartition(".")[2].startswith(kernel_digits())


def instance_id() -> str:
    """The id of this process. A forked child has its own."""
    process = os.getpid()
    if _process_instance[0] != process:
        _process_instance[:] = [process, new_instance()]
    return str(_process_instance[1])


_process_instance: list[int | str] = [0, ""]


def _checked_location(where: str) -> str:
    """The location of a log; a folder as its path."""
    from urllib.parse import unquote, urlsplit

    from everloop.prediction_log.segments import PLACES_HELP, is_folder

    if where.startswith("file://"):
        where = unquote(urlsplit(where).path)
    # A word such as "off" is probably not meant as a folder.
    if is_folder(where) and not Path(where).is_absolute():
        raise UsageError(
            f"Cannot keep the log in '{where[:100]}': it is not an absolute path.", help=f"{PLACES_HELP} Or none."
        )
    return where


def _number(environment: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e9:
        raise UsageError(
            f"{name} is '{text[:50]}', which is not a valid number.", help=f"Set it to a number of at least {least:g}."
        )
    return value


__all__ = ["JournalSink", "LogSink", "NoSink", "ShippingOptions", "SinkState", "instance_id", "log_of"]
