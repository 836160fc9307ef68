"""Noticing what a running step reads from outside by itself: files, folders, environment variables.

Python tells an audit hook of every file that it opens; the readers of Polars, pandas and Arrow that open files in
native code are wrapped. What the step's own code reads is observed as `el.read` observes its files, so that a former
result is used only while all of it is as it was. Python's sources, installed packages, the store and what the step has
written itself do not count. What cannot be noticed (child processes, the network) is noted, to be said.

Cost: the hook returns at once while no step runs; an opened file costs a look at the stack and one `stat`.
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

_OWN = str(Path(__file__).parents[2]) + os.sep
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
# They differ from one terminal to the next. A step that copies the whole environment looks all of them up.
_SKIPPED_VARIABLES = frozenset(
    {"PWD", "OLDPWD", "SHLVL", "COLUMNS", "LINES", "WINDOWID", "TERM_SESSION_ID", "SSH_TTY", "SSH_CLIENT"}
    | {"SSH_CONNECTION", "SSH_AUTH_SOCK", "XDG_SESSION_ID", "DBUS_SESSION_BUS_ADDRESS", "PYTEST_CURRENT_TEST"}
)
worker_variables: set[str] = set()
"""Environment variables that exist in this worker process only."""
# They open files in native code, where nothing can be noticed.
_NATIVE_PACKAGES = frozenset(
    {"duckdb", "h5py", "netcdf4", "opencv_python", "opencv_python_headless", "rasterio", "fiona", "tables", "pyogrio"}
)

_watches: list[ReadTracker] = []
_read_by: dict[str, tuple[dict[str, Any], dict[tuple[str, str], Any]]] = {}
"""Function of the project to its module's names and what it has read in this process: a helper that remembers its file
opens it only once. A module that is imported again has forgotten it."""
_installed = threading.Lock()


@dataclass
class ReadTracker:
    """What one step reads from outside while it runs."""

    ignored: tuple[str, ...]
    thread: int = field(default_factory=threading.get_ident)
    began_us: int = field(default_factory=system_micros)
    files: dict[str, Stamp] = field(default_factory=dict)
    """Path to what `stat` said when it was first read; None if there was no file."""
    patterns: dict[str, None] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    """Databases, which are written to through the same connection that reads them."""
    unseen: dict[str, None] = field(default_factory=dict)

    def note(self, kind: str, name: str, state: Any) -> None:
        """Take in something that was read, once."""
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
        """Whether the step has written it, or made the folder that it is in."""
        return path in self.written or any(str(parent) in self.written for parent in Path(path).parents)

    def observations(self, reached: Collection[str]) -> list[dict[str, Json]]:
        """What the step has read, in the form in which records keep it.

        Args:
            reached: the functions that the step reaches; what one of them read for an earlier step here and has kept
                since, this step has read as well.
        """
        for label in _read_by.keys() & set(reached):
            space, read = _read_by[label]
            if getattr(sys.modules.get(space["__name__"]), "__dict__", None) is space:
                for (kind, name), state in read.items():
                    self.note(kind, name, state)
        sound: list[str] = []
        torn: list[str] = []
        for path, before in self.files.items():
            now = stat_of(path)
            if now is None and before is not None and before[0] // 1000 >= self.began_us:
                continue  # a scratch file of the step's
            changed = now != before and path not in self.written and path not in self.shared
            (torn if changed else sound).append(path)
        found = observe_files(sound, list(self.patterns), torn)
        for folder, names in self.folders.items():
            own = [Path(path).name for path in self.written if str(Path(path).parent) == folder]
            found.append(observe_folder(folder, names, own))
        found += [
            {"kind": "environment", "spec": {"name": name}, "state": state} for name, state in self.variables.items()
        ]
        found += [{"kind": "unseen", "spec": {"what": what}, "state": ""} for what in self.unseen]
        return found


@contextmanager
def watching(store: Store, packages: Collection[str] = ()) -> Iterator[ReadTracker]:
    """Notice what is read inside the block.

    Args:
        store: its own files do not count.
        packages: the distributions that the step uses.
    """
    from everloop.pipeline.outside.reader_wrappers import Recorder, wrap_readers

    with _installed:
        _install()
    wrap_readers(packages, Recorder(is_watching, note_read, note_unseen, note_written))
    watch = ReadTracker(_folders_of(store))
    for package in sorted(_NATIVE_PACKAGES.intersection(name.lower().replace("-", "_") for name in packages)):
        watch.note("unseen", f"files that {package} opens", None)
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.remove(watch)


def is_watching() -> bool:
    """Whether a step runs."""
    return bool(_watches)


def stat_of(path: str) -> Stamp:
    """What tells that a file has been written to; None without a file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - called for every file that is opened
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def note_read(path: object, *, kind: str = "file") -> None:
    """Something is about to be read at a path, or at the paths that a pattern has: by whom says the stack."""
    caller = _caller()
    absolute = _absolute(path)
    if caller is None or absolute is None or absolute.endswith(_SOURCES):
        return
    for watch in _here():
        if not _counts(absolute, watch, by_project=bool(caller)):
            continue
        state = names_of(absolute) if kind == "folder" else stat_of(absolute) if kind == "file" else None
        _note(watch, caller, kind, absolute, state)


def note_written(path: object) -> None:
    """Something is about to be written at a path."""
    absolute = _absolute(path)
    if absolute is not None:
        for watch in _here():
            watch.written.add(absolute)


def note_unseen(what: str) -> None:
    """The step's own code reads in a way that cannot be noticed."""
    caller = _caller()
    if caller:
        for watch in _here():
            _note(watch, caller, "unseen", what, None)


def _note(watch: ReadTracker, caller: list[FrameType], kind: str, name: str, state: Any) -> None:
    watch.note(kind, name, state)
    for frame in caller[:-1]:  # the last is the step's own function
        space = frame.f_globals
        label = f"{label_of(space.get('__name__', ''))}.{frame.f_code.co_qualname}"
        known = _read_by.get(label)
        if known is None or known[0] is not space:
            known = _read_by[label] = (space, {})
        known[1][kind, name] = state


def _here() -> list[ReadTracker]:
    """The steps that run in this thread; in one that no step was started in, all of them."""
    own = [watch for watch in _watches if watch.thread == threading.get_ident()]
    return own or list(_watches)


def _caller() -> list[FrameType] | None:
    """The functions of the project that are on the stack; None if everloop or an import reads for itself."""
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
    if filename.startswith(_OWN):
        # This module and the wrapped readers stand between the step and what it calls.
        return "watching" if Path(filename).name in ("read_tracking.py", "reader_wrappers.py") else "everloop"
    if filename.startswith("<"):
        # A cell of a notebook, or a function that was sent to this process whole.
        return "other" if filename.startswith(("<frozen", "<__array_function__")) else "project"
    return origin_of("", filename)


def _absolute(path: object) -> str | None:
    if isinstance(path, int) or path is None:
        return None
    try:
        return os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # noqa: PTH100 - must not touch the disk
    except (TypeError, ValueError, OSError):
        return None  # not a path: whoever opens it says so


def _counts(path: str, watch: ReadTracker, *, by_project: bool) -> bool:
    if path.startswith(watch.ignored):
        return False
    project = os.environ._data.get(b"EVERLOOP_PROJECT")  # type: ignore[attr-defined]
    root = os.fsdecode(project) if project else os.getcwd()  # noqa: PTH109 - called for every file that is opened
    if path == root or path.startswith(root.rstrip(os.sep) + os.sep):
        return _SKIPPED_PARTS.isdisjoint(Path(path[len(root) :]).parts)
    if not by_project or path.startswith(_SYSTEM) or not _SKIPPED_PARTS.isdisjoint(Path(path).parts):
        return False
    # Caches and settings of programs.
    return not path.startswith(str(Path.home()) + os.sep + ".")


def _folders_of(store: Store) -> tuple[str, ...]:
    homes = [str(store.home)]
    near = getattr(store.objects.bytes_store, "folder", None)
    if near is not None:
        homes += [str(near), str(Path(near).parent / "cache")]
    return tuple(os.path.abspath(home) + os.sep for home in homes)  # noqa: PTH100 - as they are spelled


# --- the hook -----------------------------------------------------------------------------------------------------


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


def _on_made(path: object, *_: object) -> None:
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
    "os.mkdir": _on_made,
    "os.link": _on_rename,
    "os.symlink": _on_rename,
    "os.truncate": _on_made,
    "sqlite3.connect": _on_sqlite,
    "subprocess.Popen": _on_program,
    "os.system": _on_program,
    "os.posix_spawn": _on_program,
    "socket.connect": _on_connection,
}
_busy = threading.local()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watches:
        return
    found = _EVENTS.get(event)
    if found is None or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        found(*arguments)
    except Exception as error:
        # An exception here would reach the step's own `open`. What was missed is said instead.
        for watch in _here():
            watch.note("unseen", f"a file ({type(error).__name__} while it was noticed)", None)
    finally:
        _busy.now = False


def _install() -> None:
    """Once in a process: a hook cannot be taken out again."""
    if getattr(os._Environ.__getitem__, "__everloop__", False):
        return
    sys.addaudithook(_hook)
    plain = os._Environ.__getitem__

    def look_up(self: Any, key: Any) -> Any:
        if _watches and self is os.environ and isinstance(key, str):
            _note_variable(key)
        return plain(self, key)

    look_up.__everloop__ = True  # type: ignore[attr-defined]
    os._Environ.__getitem__ = look_up  # type: ignore[method-assign]


def _note_variable(name: str) -> None:
    """Only look-ups of the project's own code: packages look for settings of theirs all the time."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in ("os", "collections.abc", "_collections_abc"):
        frame = frame.f_back
    if frame is None or _kind(frame.f_code.co_filename) != "project":
        return
    if name in _SKIPPED_VARIABLES or name in worker_variables or name.startswith(("EVERLOOP_", "_")):
        return
    caller = _caller()
    if caller:
        state = digest_variable(name)
        for watch in _here():
            _note(watch, caller, "variable", name, state)


__all__ = ["ReadTracker", "is_watching", "note_read", "note_unseen", "note_written", "stat_of", "watching"]
