"""The clock of everloop, and ids that sort by time.

All code gets the time from its store, and only this module reads the operating system's clock. So a replay can move
through history: it passes a clock that it sets itself. Times are timezone-aware UTC with microseconds.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from everloop.errors import ConflictError, CorruptionError, NotFoundError, StoreVersionError, UsageError
from everloop.stores.full_disk import writing
from everloop.stores.permissions import make_folder, private_opener

if TYPE_CHECKING:
    from collections.abc import Iterator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Microseconds since 1970, exact.

    Raises:
        UsageError: `moment` has no timezone.
    """
    if moment.tzinfo is None:
        raise UsageError(f"The time {moment.isoformat()} has no timezone.", help="Use times in UTC: tzinfo=UTC.")
    return (moment - EPOCH) // _MICROSECOND


def moment_of(microseconds: int) -> datetime:
    """The inverse of `micros`."""
    return EPOCH + timedelta(microseconds=microseconds)


class Clock(Protocol):
    """Tells the time, which is real or simulated.

    `now` can be called from any thread and process and returns timezone-aware UTC.
    """

    @property
    def simulated(self) -> bool: ...

    def now(self) -> datetime: ...


class SystemClock:
    """The operating system's clock."""

    simulated = False

    def now(self) -> datetime:
        return datetime.now(UTC)

    def __repr__(self) -> str:
        return "SystemClock()"


class FixedClock:
    """A clock that always shows the same moment, for views of the past and for tests."""

    simulated = True

    def __init__(self, moment: datetime) -> None:
        micros(moment)
        self.moment = moment.astimezone(UTC)

    def now(self) -> datetime:
        return self.moment

    def __repr__(self) -> str:
        return f"FixedClock({self.moment.isoformat()})"


class SimulatedClock:
    """A simulated clock of one process, which stands still until it is set. Safe to use from any thread."""

    simulated = True

    def __init__(self, moment: datetime) -> None:
        micros(moment)
        self._moment = moment.astimezone(UTC)
        self._guard = threading.Lock()

    def now(self) -> datetime:
        return self._moment

    def set(self, moment: datetime) -> None:
        """Move the clock to a moment.

        Raises:
            ConflictError: the moment is before the clock's present time. The clock never goes backwards.
        """
        micros(moment)
        with self._guard:
            if moment < self._moment:
                raise backwards(self._moment, moment)
            self._moment = moment.astimezone(UTC)

    def __repr__(self) -> str:
        return f"SimulatedClock({self._moment.isoformat()})"


class SharedClock:
    """A simulated clock that every process of one home reads from a small file.

    The file holds 24 bytes, little-endian: `EVCK`, format version (u16), checksum (u16), base (i64, µs since 1970)
    and anchor (i64, µs). If the anchor is 0, the clock stands still at its base and moves only by `set`. Otherwise
    it runs in real time: it shows the base plus the time that has passed on the system's clock since the anchor.

    The file is mapped into memory, so that reading it costs no system call. It is written in place, never replaced.
    """

    simulated = True

    _MAGIC = b"EVCK"
    _VERSION = 1
    _LAYOUT = struct.Struct("<4sHHqq")

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), self._LAYOUT.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise NotFoundError(f"There is no clock file '{self.path}'.") from None
        except ValueError:
            raise self._damaged() from None
        self._seen = b""
        self._shown = EPOCH
        self._read()

    @classmethod
    def create(cls, path: Path | str, moment: datetime) -> SharedClock:
        """Open the clock at `path` and set it to `moment`. The file is created if it is missing."""
        target = Path(path)
        if not target.exists():
            make_folder(target.parent)
            draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
            try:
                with writing(target):
                    with open(draft, "wb", opener=private_opener) as file:
                        file.write(cls._pack(micros(moment), 0))
                    # A link fails if the file exists, where a rename would replace it: the first creator wins.
                    with suppress(FileExistsError):
                        target.hardlink_to(draft)
            finally:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
        clock = cls(target)
        clock.set(moment)
        return clock

    def now(self) -> datetime:
        if self._map[:] == self._seen:
            return self._shown
        base, anchor = self._read()
        return moment_of(base if anchor == 0 else base + system_micros() - anchor)

    @property
    def ticking(self) -> bool:
        return self._read()[1] != 0

    def set(self, moment: datetime) -> None:
        """Move the clock to `moment`, for every process.

        Raises:
            ConflictError: `moment` is before the clock's present time. The clock never goes backwards.
        """
        target = micros(moment)
        with self._exclusive() as (now, anchor):
            if target < now:
                raise backwards(moment_of(now), moment)
            self._write(target, 0 if anchor == 0 else system_micros())

    def tick(self) -> None:
        """Let the clock run in real time from its present time on."""
        with self._exclusive() as (now, anchor):
            if anchor == 0:
                self._write(now, system_micros())

    def stop(self) -> None:
        """Stop the clock at its present time."""
        with self._exclusive() as (now, anchor):
            if anchor != 0:
                self._write(now, 0)

    def __repr__(self) -> str:
        return f"SharedClock({str(self.path)!r})"

    def _read(self) -> tuple[int, int]:
        for _ in range(1000):
            packed = self._map[:]
            magic, version, check, base, anchor = self._LAYOUT.unpack(packed)
            if magic == self._MAGIC and version > self._VERSION:
                raise StoreVersionError(
                    f"The clock file '{self.path}' has format {version}, but this everloop reads formats up to"
                    f" {self._VERSION}.",
                    help="Upgrade everloop.",
                )
            if magic == self._MAGIC and check == _check(packed[8:]):
                if anchor == 0:
                    # In this order, because another thread that sees the new bytes must also see their moment.
                    self._seen, self._shown = b"", moment_of(base)
                    self._seen = packed
                return base, anchor
            # A writer may be in the middle of its write: the checksum shows that, and the next read succeeds.
            time.sleep(0.0001)
        raise self._damaged()

    @contextmanager
    def _exclusive(self) -> Iterator[tuple[int, int]]:
        """Lock out other writers and yield the clock's present time (µs) and its anchor."""
        # The lock belongs to the descriptor. A new one each time excludes other threads of this process as well.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            base, anchor = self._read()
            yield (base if anchor == 0 else base + system_micros() - anchor), anchor
        finally:
            os.close(descriptor)

    def _write(self, base: int, anchor: int) -> None:
        with self.path.open("rb+", buffering=0) as file:
            file.write(self._pack(base, anchor))

    def _damaged(self) -> CorruptionError:
        return CorruptionError(
            f"The clock file '{self.path}' is damaged.", help="Remove it to return to the system's time."
        )

    @classmethod
    def _pack(cls, base: int, anchor: int) -> bytes:
        body = struct.pack("<qq", base, anchor)
        return struct.pack("<4sHH", cls._MAGIC, cls._VERSION, _check(body)) + body


def backwards(now: datetime, moment: datetime) -> ConflictError:
    return ConflictError(
        f"The simulated clock shows {now.isoformat()} and cannot go back to {moment.isoformat()}.",
        help="Use a later time, or start again with a new store.",
    )


def system_micros() -> int:
    """The operating system's time in µs since 1970, to compare with times from there, such as those of files."""
    return time.time_ns() // 1000


def elapsed_seconds() -> float:
    """Seconds since an arbitrary moment, for durations of real processes such as the expiry of leases.

    A simulated clock does not change it, and neither does anyone who sets the system's clock. On Linux it also counts
    while the machine sleeps, so that a laptop that wakes up knows that its leases have expired.
    """
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def _check(body: bytes) -> int:
    return zlib.crc32(body) & 0xFFFF


class _Ids:
    """The state of `new_id`: the last timestamp, and the last number that was used with it."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.stamp = -1
        self.tail = 0
        self._pool = b""
        self._used = 0

    def random(self, count: int) -> int:
        """A random number of `count` bytes. Bytes are read in bulk: 4096 from the system cost as much as 4."""
        if self._used + count > len(self._pool):
            self._pool, self._used = os.urandom(4096), 0
        found = self._pool[self._used : self._used + count]
        self._used += count
        return int.from_bytes(found, "big")


_ids = _Ids()


def _forget_ids() -> None:
    # Without this, a forked child would produce the same ids as its parent.
    global _ids
    _ids = _Ids()


os.register_at_fork(after_in_child=_forget_ids)


def new_id(moment: datetime) -> str:
    """A UUIDv7 for `moment`, in the usual 36 characters (RFC 9562, section 5.7; method 3 for its 12 bits).

    Within one process, ids strictly increase as long as moments do not go back, even if the clock stands still.
    """
    since = micros(moment)
    milliseconds, rest = divmod(since, 1000)
    stamp = (milliseconds << 12) | (rest * 4096 // 1000)
    ids = _ids
    with ids.guard:
        if stamp == ids.stamp:
            ids.tail += 1 + ids.random(4)
        else:
            # The top bits stay free, which leaves room for at least 2**29 more ids of the same timestamp.
            ids.stamp, ids.tail = stamp, ids.random(8) >> 3
        tail = ids.tail
    number = ((stamp >> 12) << 80) | (0x7 << 76) | ((stamp & 0xFFF) << 64) | (0b10 << 62) | tail
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
