"""The store of a home folder: finding its parts and opening it for one project, one actor and one clock."""

from __future__ import annotations

import os
import re
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from everloop import plugins
from everloop.errors import NotFoundError, ProjectError, ReadOnlyError, UsageError
from everloop.records import Record
from everloop.stores.clock import Clock, FixedClock, SharedClock, SimulatedClock, SystemClock, new_id
from everloop.stores.full_disk import writing
from everloop.stores.locks import file_lock, is_locked
from everloop.stores.permissions import close_to_others, make_folder, private_opener, settle
from everloop.stores.store_urls import BUCKETS, check_path, check_url, has_scheme, mask_url

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime

    from everloop.stores.forks.fork import Fork
    from everloop.stores.objects.content_addressing import ContentStore
    from everloop.stores.records.record_store import RecordStore
    from everloop.stores.tables.delta_tables import Tables
    from everloop.stores.tables.table_store import TableStore

FOLDER = ".everloop"
CONFIG = "everloop.toml"
SHARED_VARIABLE = "EVERLOOP_STORE_SHARED"
"""If this is 1, the home's group may use the home, as with `shared = true` in everloop.toml."""
SCHEMES = ("postgresql", "postgres", "sqlite")
"""Schemes for records. Other schemes are plugins, which check their URLs themselves."""
_SETTINGS = ("home", "records", "objects", "tables", "log")
_LOCK = re.compile(r"[A-Za-z0-9_@=+-][A-Za-z0-9_.@=+-]{0,199}")

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrls:
    """Where the parts of a store are. Records, objects and tables each have a URL or a path in the home."""

    home: Path
    records: str
    objects: str
    tables: str
    shared: bool = False
    """Whether the home's group may read and write the home."""
    log: str | None = None
    """Where instances on other machines ship their prediction logs, if not to the home or the database of records."""

    def __repr__(self) -> str:
        urls = {"records": self.records, "objects": self.objects, "tables": self.tables, "log": self.log}
        parts = (f"{part}={(mask_url(url) if url else url)!r}" for part, url in urls.items())
        return f"StoreUrls(home={str(self.home)!r}, {', '.join(parts)}, shared={self.shared})"


class Store:
    """A store, opened for one project. Use `open_store` to open one. Safe to use from any thread and after a fork."""

    def __init__(
        self,
        urls: StoreUrls,
        *,
        project: str,
        actor: str,
        clock: Clock,
        records: RecordStore,
        moment: datetime | None = None,
        origin: Store | None = None,
        fork: Fork | None = None,
    ) -> None:
        self.urls = urls
        self.home = urls.home
        self.project = project
        self.actor = actor
        self.clock = clock
        self.records = records
        self._moment = moment
        self._origin = origin
        self.fork_parts = fork
        """The parts of a fork, which no other process can open. None if this store is not a fork."""

    @cached_property
    def objects(self) -> ContentStore:
        if self._origin is not None:
            # All views share one: it remembers which objects it has verified, and a bucket's client is slow to create.
            return self._origin.objects if self._moment is None else self._origin.objects.read_only()
        if self.fork_parts is not None:
            return self.fork_parts.objects
        from everloop.stores.objects.content_addressing import ContentStore

        return ContentStore(self.urls.objects, cache=self.home / "cache")

    @cached_property
    def tables(self) -> TableStore:
        if self.fork_parts is not None:
            return self.fork_parts.tables(self.clock, self._moment)
        return self.delta_tables

    @cached_property
    def delta_tables(self) -> Tables:
        """The tables with their files, for checks and repairs.

        Raises:
            UsageError: this store is a fork, whose tables are in memory.
        """
        if self.fork_parts is not None:
            raise UsageError("The tables of a fork have no files.", help="Use the store that was forked.")
        from everloop.stores.tables.delta_tables import Tables

        return Tables(self.urls.tables, self.clock, as_of=self._moment)

    @property
    def read_only(self) -> bool:
        """Whether this is a view of the past."""
        return self._moment is not None

    @property
    def closed(self) -> bool:
        return self.records.closed

    @property
    def journals(self) -> Path:
        return self.home / "journals"

    def now(self) -> datetime:
        return self.clock.now()

    def new(self, kind: type[R], /, **fields: Any) -> R:
        """Create a record of this project with a new id and the clock's time. It is not stored yet."""
        now = self.clock.now()
        return kind(**{"id": new_id(now), "project": self.project, "created_at": now, **fields})

    def lock(self, name: str, *, block: bool = True) -> AbstractContextManager[bool]:
        """Hold a lock among all processes on this machine that use this home. Yields whether it was acquired.

        Not re-entrant. The operating system releases it when its holder dies.
        """
        return file_lock(self._lock_path(name), block=block)

    def locked(self, name: str) -> bool:
        """Whether a running process holds the lock."""
        return is_locked(self._lock_path(name))

    def was_locked(self, name: str) -> bool:
        """Whether the lock has ever been held in this home."""
        return self._lock_path(name).exists()

    def for_project(self, project: str) -> Store:
        """The same store for another project."""
        return self._with(project=checked_project(project), records=self.records.for_project(project))

    def as_actor(self, actor: str) -> Store:
        """The same store, with another actor in the events of its writes."""
        return self._with(actor=actor, records=self.records.as_actor(actor))

    def as_of(self, moment: datetime) -> Store:
        """A read-only view of everything that had been written and had arrived by a moment. Its clock stands still."""
        if self._moment is not None:
            moment = min(moment, self._moment)
        return self._with(clock=FixedClock(moment), records=self.records.as_of(moment), moment=moment)

    def fork(
        self,
        as_of: datetime,
        *,
        clock: Clock | None = None,
        share: Store | None = None,
        hide: Collection[str] = (),
    ) -> Store:
        """Fork this store: a copy-on-write store that begins with what had been written and had arrived by a moment.

        It can be written to, and nothing of that reaches this store. Its own parts are in a temporary folder and in
        memory of this process, and are gone when it is closed. This store must stay open meanwhile.

        Args:
            clock: default: a `SimulatedClock`, which stands at the moment and is moved by `fork.clock.set`.
            share: another fork. Both see each other's objects and step results (records of steps and artifacts), each
                by its own clock, and nothing else. Keep both open.
            hide: kinds of records of this store that are not visible in the fork.

        Raises:
            UsageError: `share` is not a fork, or is closed; a kind is unknown.
        """
        from everloop.stores.forks.fork import open_fork

        if share is not None and share.fork_parts is None:
            raise UsageError(f"{share!r} is not a fork.", help="Share with a store that store.fork() has returned.")
        past = self.as_of(as_of)
        moment = past.clock.now()
        chosen = clock or SimulatedClock(moment)
        fork = open_fork(
            past.records,
            self.objects,
            self.tables.as_of(moment),
            moment=moment,
            project=self.project,
            actor=self.actor,
            clock=chosen,
            share=None if share is None else share.fork_parts,
            hide=hide,
        )
        return Store.of_fork(fork, chosen)

    @classmethod
    def of_fork(cls, fork: Fork, clock: Clock) -> Store:
        home, records = fork.home, fork.records
        records_url, objects_url, tables_url = (str(home / part) for part in ("records", "objects", "tables"))
        urls = StoreUrls(home=home, records=records_url, objects=objects_url, tables=tables_url)
        return cls(urls, project=records.project, actor=records.actor, clock=clock, records=records, fork=fork)

    def simulate(self, moment: datetime) -> SharedClock:
        """Give the home a simulated clock and set it. It applies to this store and all that are opened from now on.

        Raises:
            ConflictError: the home already has a simulated clock, which shows a later time.
        """
        if self._moment is not None:
            raise ReadOnlyError("The clock of a view of the past cannot be set.", help="Open the store without as_of.")
        clock = SharedClock.create(self.home / "clock", moment)
        self.clock = clock
        self.records = self.records.with_clock(clock)
        for part in ("tables", "delta_tables"):
            self.__dict__.pop(part, None)
        return clock

    def close(self) -> None:
        """Close the store and all views of it. A fork is removed."""
        self.records.close()
        if self.fork_parts is not None:
            self.fork_parts.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.home)!r}, project={self.project!r})"

    def _lock_path(self, name: str) -> Path:
        if not _LOCK.fullmatch(name):
            raise UsageError(f"'{name}' is not a valid name for a lock.", help="Use only letters, digits and -_.@=+")
        return self.home / "locks" / f"{name}.lock"

    def _with(self, **changes: Any) -> Store:
        parts = {
            "project": self.project,
            "actor": self.actor,
            "clock": self.clock,
            "records": self.records,
            "moment": self._moment,
            "origin": self._origin or self,
            "fork": self.fork_parts,
        }
        return type(self)(self.urls, **{**parts, **changes})


def open_store(
    home: Path | str | None = None,
    *,
    project: str | None = None,
    actor: str | None = None,
    clock: Clock | None = None,
    create: bool = True,
) -> Store:
    """Open the store of `home`, or else of `EVERLOOP_STORE`, the nearest `everloop.toml` upwards, or `./.everloop`.

    If another process is just creating the home, this waits until it is ready.

    Args:
        project: default: the one in `everloop.toml`, else `default`.
        actor: the name that events are written under; default: this user on this machine.
        clock: default: the home's simulated clock if it has one, else the system's.
        create: create the home if it is missing.

    Raises:
        NotFoundError: the home is missing and `create` is off.
        ProjectError: `everloop.toml` cannot be read.
        StoreVersionError: a newer everloop wrote it.
    """
    urls, configured = find_store_urls(home)
    return open_urls(urls, project=project or configured, actor=actor, clock=clock, create=create)


def open_urls(
    urls: StoreUrls,
    *,
    project: str | None = None,
    actor: str | None = None,
    clock: Clock | None = None,
    create: bool = True,
) -> Store:
    """As `open_store`, for a store whose URLs are known."""
    if not (urls.home / "locks").is_dir():
        if not create:
            raise NotFoundError(
                f"There is no everloop store at '{urls.home}'.", help="Create one: everloop init, or everloop demo"
            )
        prepare_home(urls.home, shared=urls.shared)
    settle(urls.home, shared=urls.shared)
    if "://" not in urls.records and Path(urls.records).parent != urls.home:
        close_to_others(Path(f"{urls.records}{end}") for end in ("", "-wal", "-shm"))
    if clock is None:
        clock = SharedClock(urls.home / "clock") if (urls.home / "clock").exists() else SystemClock()
    chosen = checked_project(project or "default")
    who = actor or default_actor()
    records = _open_records(urls, chosen, who, clock)
    return Store(urls, project=chosen, actor=who, clock=clock, records=records)


def find_store_urls(home: Path | str | None = None) -> tuple[StoreUrls, str | None]:
    """Find the URLs of a store without opening it, and the project that is set in `everloop.toml`."""
    requested = home if home is not None else os.environ.get("EVERLOOP_STORE")
    config = nearest_config(Path.cwd())
    settings, project = _settings(config) if config is not None else ({}, None)
    if requested is not None:
        check_path(str(requested), "The home")
    base = Path.cwd() if config is None else config.parent
    configured = _home_in(base, settings)
    chosen = configured if requested is None else Path(requested).expanduser().absolute()
    # The settings apply only to the configured home. Any other home contains all of its parts.
    return store_urls(chosen, settings if chosen == configured else {}), project


def configured_home(folder: Path) -> Path:
    """The home that the nearest `everloop.toml` of a folder sets, whatever the environment says; else `.everloop`.

    Raises:
        ProjectError: `everloop.toml` cannot be read.
    """
    config = nearest_config(folder)
    return _home_in(folder, {}) if config is None else _home_in(config.parent, _settings(config)[0])


def _home_in(base: Path, settings: Mapping[str, str | bool]) -> Path:
    check_path(str(settings.get("home", FOLDER)), "The home")
    return (base / Path(str(settings.get("home", FOLDER))).expanduser()).absolute()


def prepare_home(home: Path, *, shared: bool = False) -> None:
    """Create the folders that every home has. Existing ones stay as they are. Safe to call in parallel.

    Args:
        shared: give access to the folder's group, not only to its owner.
    """
    with writing(home):
        # The folders above a home do not belong to everloop, so their mode follows the umask.
        home.parent.mkdir(parents=True, exist_ok=True)
        make_folder(home, shared=shared)
        # A home is often inside the user's git repository, and none of its files belong there.
        with suppress(FileExistsError), open(home / ".gitignore", "xb", opener=private_opener) as file:
            file.write(b"*\n")
    for folder in ("journals", "locks"):
        make_folder(home / folder)


def default_actor() -> str:
    """The actor of this process: `user:<name>@<host>`."""
    import pwd

    name = os.environ.get("LOGNAME") or os.environ.get("USER")
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = str(os.getuid())
    return f"user:{name}@{os.uname().nodename}"


def store_urls(home: Path, settings: Mapping[str, str | bool]) -> StoreUrls:
    """The URLs of a home with the settings of `[store]`, or with others of the same names.

    Raises:
        UsageError: a path or URL is malformed.
    """
    check_path(str(home), "The home")

    def url(part: str, default: str) -> str:
        chosen = str(settings.get(part, default))
        _check_part(part, chosen)
        return chosen if "://" in chosen else str(home / Path(chosen).expanduser())

    return StoreUrls(
        home=home,
        records=url("records", "everloop.db"),
        objects=url("objects", "objects"),
        tables=url("tables", "tables"),
        shared=bool(settings.get("shared")) or os.environ.get(SHARED_VARIABLE, "").lower() in ("1", "true", "yes"),
        log=url("log", "") if settings.get("log") else None,
    )


def _check_part(part: str, chosen: str) -> None:
    """Raise UsageError if a path or URL is malformed, before it is opened, shown or created as a folder."""
    what = f"The path or URL of the {part}"
    scheme, found, _ = chosen.partition("://")
    if not found or scheme == "sqlite":
        check_path(chosen.removeprefix("sqlite://"), what)
    elif part != "records":
        check_url(chosen, what, BUCKETS)
    elif scheme in SCHEMES or not has_scheme(chosen):
        check_url(chosen, what, SCHEMES)


def nearest_config(start: Path) -> Path | None:
    """The `everloop.toml` of a folder, or of the nearest folder above it that has one."""
    for folder in (start, *start.parents):
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    return None


def _settings(config: Path) -> tuple[dict[str, str | bool], str | None]:
    try:
        content = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProjectError(f"Cannot read '{config}': {error}.") from error
    settings, table = content.get("store", {}), content.get("project", {})
    if not isinstance(table, dict):
        raise ProjectError(f"'project' in '{config}' is not a table.", help='Write [project] and below it name = "…".')
    project = table.get("name")
    if not isinstance(settings, dict):
        raise ProjectError(f"'store' in '{config}' is not a table.", help="Write [store] and the settings below it.")
    unknown = set(settings) - {*_SETTINGS, "shared"}
    if unknown:
        raise ProjectError(
            f"[store] in '{config}' has an unknown setting '{min(unknown)}'.",
            help=f"Known settings: {', '.join(_SETTINGS)}, shared",
        )
    for name in _SETTINGS:
        if not isinstance(settings.get(name, ""), str):
            raise ProjectError(
                f"'{name}' in [store] of '{config}' is not a string.", help="Put the path or URL in quotes."
            )
    if not isinstance(settings.get("shared", False), bool):
        raise ProjectError(f"'shared' in [store] of '{config}' is neither true nor false.")
    if project is not None and not isinstance(project, str):
        raise ProjectError(f"'name' in [project] of '{config}' is not a string.", help="Put the name in quotes.")
    return settings, project


def _open_records(urls: StoreUrls, project: str, actor: str, clock: Clock) -> RecordStore:
    scheme, found, rest = urls.records.partition("://")
    if not found:
        scheme, rest = "sqlite", urls.records
    where = rest if scheme == "sqlite" else urls.records
    name = "postgresql" if scheme == "postgres" else scheme
    opened = plugins.load("records", name)(where, project=project, actor=actor, clock=clock)
    return cast("RecordStore", opened)


def checked_project(project: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", project):
        raise UsageError(
            f"'{project}' is not a valid name for a project.",
            help="Use letters, digits, '-', '_' and '.'. Begin with a letter or digit.",
        )
    return project
