"""Tracks what a running step reads from outside without `el.read`: files, folders, environment variables.

Python calls an audit hook for every file that it opens; the readers of Polars, pandas and Arrow that open files in
native code are wrapped. What the step's own code reads is recorded as `el.read` records its files, so an earlier result
is used only while all of it is unchanged. Python's sources, installed packages, the store and files that the step has
written itself do not count. Reads that cannot be tracked (child processes, the network) are recorded by name, to be
shown to the user.

Cost: while no step runs, the hook returns immediately. During a step, an opened file costs a walk up the stack and one
`stat`.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.code_origin import origin_of
from everloop.pipeline.code.object_inspection import label_of
from everloop.pipeline.outside.outside_state import digest_variable, names_of, observe_files, observe_folder
from everloop.stores.clock import system_micros

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import FrameType

    from everloop.records import Json
    from everloop.stores import Store

Stamp = tuple[int, int, int] | None

_EVERLOOP = str(Path(__file__).parents[2]) + os.sep
_SOURCES = (".py", ".pyc", ".pyi", ".pyd", ".so", ".dylib", ".pth", ".ipynb")
_SKIPPED_PARTS = frozenset({".git", ".hg", "__pycache__", "node_modules", "site-packages", "dist-packages", ".venv"})
_SYSTEM = tuple(
    {
        prefix.rstrip(os.sep) + os.sep
        for prefix in (
            sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/run", "/var/lib",
            "/System", "/Library",
        )
    }
)  # fmt: skip
# Variables that differ between terminals. A step that copies the environment reads all of them.
_SKIPPED_VARIABLES = frozenset(
    {"PWD", "OLDPWD", "SHLVL", "COLUMNS", "LINES", "WINDOWID", "TERM_SESSION_ID", "SSH_TTY", "SSH_CLIENT"}
    | {"SSH_CONNECTION", "SSH_AUTH_SOCK", "XDG_SESSION_ID", "DBUS_SESSION_BUS_ADDRESS", "PYTEST_CURRENT_TEST"}
)
worker_variables: set[str] = set()
"""Environment variables that exist in this worker process only."""
# Packages that open files in native code, which cannot be tracked.
_NATIVE_PACKAGES = frozenset(
    {"duckdb", "h5py", "netcdf4", "opencv_python", "opencv_python_headless", "rasterio", "fiona", "tables", "pyogrio"}
)

_trackers: list[ReadTracker] = []
_reads_by_function: dict[str, tuple[dict[str, Any], dict[tuple[str, str], Any]]] = {}
"""Function of the project to its module's namespace and all that it has read in this process. A helper that caches its
file opens it only once, but each step that calls it depends on that file. A module that is imported again starts with
an empty cache, and has another namespace."""
_install_lock = threading.Lock()


@dataclass
class ReadTracker:
    """All that one step reads from outside while it runs."""

    ignored: tuple[str, ...]
    thread: int = field(default_factory=threading.get_ident)
    began_us: int = field(default_factory=system_micros)
    files: dict[str, Stamp] = field(default_factory=dict)
    """Path to the file's stamp when it was first read; None if there was no file."""
    patterns: dict[str, None] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    """Databases: the step may write to them through the same connection that reads them."""
    unseen: dict[str, None] = field(default_factory=dict)

    def note(self, kind: str, name: str, state: Any) -> None:
        """Record something that was read. Only its first state counts."""
        if kind == "file":
            if name not in self.files and not self._is_own(name):
                self.files[name] = state
        elif kind == "pattern":
            self.patterns[name] = None
        elif kind == "folder":
            if not self._is_own(name):
                self.folders.setdefault(name, state)
        elif kind == "variable":
            self.variables.setdefault(name, state)
        elif kind == "shared":
            self.shared.add(name)
        else:
            self.unseen[name] = None

    def _is_own(self, path: str) -> bool:
        """Whether the step has written the file, or created a folder that contains it."""
        return path in self.written or any(str(parent) in self.written for parent in Path(path).parents)

    def observations(self, reached: Collection[str]) -> list[dict[str, Json]]:
        """All that the step has read, as observations for its record.

        Args:
            reached: the functions that the step depends on. A file that one of them read for an earlier step in this
                process, and may have cached, counts as read by this step too.
        """
        for label in _reads_by_function.keys() & set(reached):
            namespace, read = _reads_by_function[label]
            if getattr(sys.modules.get(namespace["__name__"]), "__dict__", None) is namespace:
                for (kind, name), state in read.items():
                    self.note(kind, name, state)
        unchanged: list[str] = []
        torn: list[str] = []
        for path, before in self.files.items():
            now = stat_of(path)
            if now is None and before is not None and before[0] // 1000 >= self.began_us:
                continue  # a temporary file that the step has made
            changed = now != before and path not in self.written and path not in self.shared
            (torn if changed else unchanged).append(path)
        found = observe_files(unchanged, list(self.patterns), torn)
        for folder, names in self.folders.items():
            added = [Path(path).name for path in self.written if str(Path(path).parent) == folder]
            found.append(observe_folder(folder, names, added))
        found += [
            {"kind": "environment", "spec": {"name": name}, "state": state} for name, state in self.variables.items()
        ]
        found += [{"kind": "unseen", "spec": {"what": what}, "state": ""} for what in self.unseen]
        return found


@contextmanager
def track_reads(store: Store, packages: Collection[str] = ()) -> Iterator[ReadTracker]:
    """Track what is read inside the block.

    Args:
        store: the run's store, whose files do not count.
        packages: the distributions that the step uses.
    """
    from everloop.pipeline.outside.reader_wrappers import Recorder, wrap_readers

    with _install_lock:
        _install()
    wrap_readers(packages, Recorder(is_tracking, note_read, note_unseen, note_written))
    tracker = ReadTracker(_folders_of(store))
    for package in sorted(_NATIVE_PACKAGES.intersection(name.lower().replace("-", "_") for name in packages)):
        tracker.note("unseen", f"files that {package} opens", None)
    _trackers.append(tracker)
    try:
        yield tracker
    finally:
        _trackers.remove(tracker)


def is_tracking() -> bool:
    """Whether a step is running in this process."""
    return bool(_trackers)


def stat_of(path: str) -> Stamp:
    """A stamp that differs once the file has been written to; None if there is no file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - called for every file that is opened
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def note_read(path: object, *, kind: str = "file") -> None:
    """Record that a path, or the paths that match a pattern, are about to be read. The stack shows which code reads."""
    callers = _callers()
    absolute = _absolute(path)
    if callers is None or absolute is None or absolute.endswith(_SOURCES):
        return
    for tracker in _active_trackers():
        if not _counts(absolute, tracker, by_project=bool(callers)):
            continue
        state = names_of(absolute) if kind == "folder" else stat_of(absolute) if kind == "file" else None
        _note(tracker, callers, kind, absolute, state)


def note_written(path: object) -> None:
    """Record that a path is about to be written."""
    absolute = _absolute(path)
    if absolute is not None:
        for tracker in _active_trackers():
            tracker.written.add(absolute)


def note_unseen(what: str) -> None:
    """Record that the step's own code reads something that cannot be tracked."""
    callers = _callers()
    if callers:
        for tracker in _active_trackers():
            _note(tracker, callers, "unseen", what, None)


def _note(tracker: ReadTracker, callers: list[FrameType], kind: str, name: str, state: Any) -> None:
    tracker.note(kind, name, state)
    for frame in callers[:-1]:  # the last is the step's own function
        namespace = frame.f_globals
        label = f"{label_of(namespace.get('__name__', ''))}.{frame.f_code.co_qualname}"
        reads = _reads_by_function.get(label)
        if reads is None or reads[0] is not namespace:
            reads = _reads_by_function[label] = (namespace, {})
        reads[1][kind, name] = state


def _active_trackers() -> list[ReadTracker]:
    """The trackers of the steps in this thread. In a thread that no step was started in, all trackers."""
    in_thread = [tracker for tracker in _trackers if tracker.thread == threading.get_ident()]
    return in_thread or list(_trackers)


def _callers() -> list[FrameType] | None:
    """The project's functions on the stack, innermost first. None if the read is by everloop itself or by an import."""
    found: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        kind = _kind(filename)
        if kind == "import" and not found:
            return None
        if kind == "everloop":
            return found or None
        if kind == "project":
            found.append(frame)
        frame = frame.f_back
    return found


@lru_cache(maxsize=4096)
def _kind(filename: str) -> str:
    if filename.startswith("<frozen importlib") or f"{os.sep}importlib{os.sep}" in filename:
        return "import"
    if filename.startswith(_EVERLOOP):
        # Frames of this module and of the wrapped readers lie between the step and what it calls.
        return "tracking" if Path(filename).name in ("read_tracking.py", "reader_wrappers.py") else "everloop"
    if filename.startswith("<"):
        # A cell of a notebook, or a function that was sent to this process by value.
        return "other" if filename.startswith(("<frozen", "<__array_function__")) else "project"
    return origin_of("", filename)


def _absolute(path: object) -> str | None:
    if isinstance(path, int) or path is None:
        return None
    try:
        return os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # noqa: PTH100 - must not touch the disk
    except (TypeError, ValueError, OSError):
        return None  # not a path: opening it will fail


def _counts(path: str, tracker: ReadTracker, *, by_project: bool) -> bool:
    if path.startswith(tracker.ignored):
        return False
    project = os.environ._data.get(b"EVERLOOP_PROJECT")  # type: ignore[attr-defined]
    root = os.fsdecode(project) if project else os.getcwd()  # noqa: PTH109 - called for every file that is opened
    if path == root or path.startswith(root.rstrip(os.sep) + os.sep):
        return _SKIPPED_PARTS.isdisjoint(Path(path[len(root) :]).parts)
    if not by_project or path.startswith(_SYSTEM) or not _SKIPPED_PARTS.isdisjoint(Path(path).parts):
        return False
    # Hidden folders in the home folder hold caches and settings of programs.
    return not path.startswith(str(Path.home()) + os.sep + ".")


def _folders_of(store: Store) -> tuple[str, ...]:
    homes = [str(store.home)]
    local = getattr(store.objects.bytes_store, "folder", None)
    if local is not None:
        homes += [str(local), str(Path(local).parent / "cache")]
    return tuple(os.path.abspath(home) + os.sep for home in homes)  # noqa: PTH100 - symlinks are not resolved


# --- the audit hook -----------------------------------------------------------------------------------------------


def _on_open(path: object, mode: object, flags: object) -> None:
    access = flags if isinstance(flags, int) else 0
    if access & os.O_ACCMODE != os.O_WRONLY and not access & (os.O_TRUNC | os.O_EXCL):
        note_read(path)
    if access & os.O_ACCMODE != os.O_RDONLY:
        note_written(path)


def _on_listing(path: object = ".", *_: object) -> None:
    note_read("." if path is None or path == "" else path, kind="folder")


def _on_rename(source: object, target: object, *_: object) -> None:
    note_written(target)


def _on_create(path: object, *_: object) -> None:
    note_written(path)


def _on_sqlite(database: object, *_: object) -> None:
    if isinstance(database, str | bytes | os.PathLike) and ":memory:" not in os.fsdecode(database):
        path = os.fsdecode(database).removeprefix("file:").partition("?")[0]
        if path:
            for one in (path, f"{path}-wal"):
                note_read(one)
                note_read(one, kind="shared")


def _on_program(program: object, arguments: object = None, *_: object) -> None:
    first = arguments[0] if isinstance(arguments, list | tuple) and arguments else arguments
    name = program or first
    if isinstance(name, str | bytes | os.PathLike):
        note_unseen(f"what the program '{Path(os.fsdecode(name)).name.partition(' ')[0]}' reads")


def _on_connection(_: object, address: object) -> None:
    if isinstance(address, tuple) and len(address) >= 2:
        note_unseen(f"what {address[0]}:{address[1]} answers")


_EVENTS: dict[str, Callable[..., None]] = {
    "open": _on_open,
    "os.listdir": _on_listing,
    "os.scandir": _on_listing,
    "os.rename": _on_rename,
    "os.mkdir": _on_create,
    "os.link": _on_rename,
    "os.symlink": _on_rename,
    "os.truncate": _on_create,
    "sqlite3.connect": _on_sqlite,
    "subprocess.Popen": _on_program,
    "os.system": _on_program,
    "os.posix_spawn": _on_program,
    "socket.connect": _on_connection,
}
_busy = threading.local()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _trackers:
        return
    handler = _EVENTS.get(event)
    if handler is None or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        handler(*arguments)
    except Exception as error:
        # An exception here would be raised by the step's own `open`. So the read is recorded as not tracked.
        for tracker in _active_trackers():
            tracker.note("unseen", f"a file ({type(error).__name__} while tracking it)", None)
    finally:
        _busy.now = False


def _install() -> None:
    """Install the hook once per process: Python cannot remove it again."""
    if getattr(os._Environ.__getitem__, "__everloop__", False):
        return
    sys.addaudithook(_hook)
    plain = os._Environ.__getitem__

    def look_up(self: Any, key: Any) -> Any:
        if _trackers and self is os.environ and isinstance(key, str):
            _note_variable(key)
        return plain(self, key)

    look_up.__everloop__ = True  # type: ignore[attr-defined]
    os._Environ.__getitem__ = look_up  # type: ignore[method-assign]


def _note_variable(name: str) -> None:
    """Record a look-up by the project's own code. Look-ups by packages, for their settings, do not count."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in ("os", "collections.abc", "_collections_abc"):
        frame = frame.f_back
    if frame is None or _kind(frame.f_code.co_filename) != "project":
        return
    if name in _SKIPPED_VARIABLES or name in worker_variables or name.startswith(("EVERLOOP_", "_")):
        return
    callers = _callers()
    if callers:
        state = digest_variable(name)
        for tracker in _active_trackers():
            _note(tracker, callers, "variable", name, state)


__all__ = ["ReadTracker", "is_tracking", "note_read", "note_unseen", "note_written", "stat_of", "track_reads"]
