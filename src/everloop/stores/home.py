"""One home of everything kept: where it is, and its parts bound to one project, one actor and one clock."""

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
from everloop.stores.clock import Clock, FixedClock, SharedClock, SystemClock, new_id
from everloop.stores.full_disk import writing
from everloop.stores.locks import file_lock, is_locked
from everloop.stores.permissions import close_to_others, make_folder, make_private, settle
from everloop.stores.store_urls import BUCKETS, check_path, check_url, has_scheme, mask_url

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import datetime

    from everloop.stores.objects.content_addressing import ContentStore
    from everloop.stores.records.record_store import RecordStore
    from everloop.stores.tables.delta_tables import Tables

FOLDER = ".everloop"
CONFIG = "everloop.toml"
SHARED_VARIABLE = "EVERLOOP_STORE_SHARED"
"""Set to 1, the home's group may use it, as with `shared = true` in everloop.toml."""
SCHEMES = ("postgresql", "postgres", "sqlite")
"""Of records. Others are plugins, which check their URLs themselves."""
_SETTINGS = ("home", "records", "objects", "tables", "log")
_LOCK = re.compile(r"[A-Za-z0-9_@=+-][A-Za-z0-9_.@=+-]{0,199}")

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrls:
    """Where the parts of a store are. Records, objects and tables are a URL each, or a path below the home. `log`:
    where instances elsewhere ship their prediction logs to, if that is neither the home nor the records' database."""

    home: Path
    records: str
    objects: str
    tables: str
    shared: bool = False
    """Whether the home's group may read and write what is in it."""
    log: str | None = None

    def __repr__(self) -> str:
        urls = {"records": self.records, "objects": self.objects, "tables": self.tables, "log": self.log}
        parts = (f"{part}={(mask_url(url) if url else url)!r}" for part, url in urls.items())
        return f"Places(home={str(self.home)!r}, {', '.join(parts)}, shared={self.shared})"


class Store:
    """One home, seen from one project. Opened by `open_store`; safe from any thread, and after a fork."""

    def __init__(
        self,
        places: StoreUrls,
        *,
        project: str,
        actor: str,
        clock: Clock,
        records: RecordStore,
        moment: datetime | None = None,
        origin: Store | None = None,
    ) -> None:
        self.places = places
        self.home = places.home
        self.project = project
        self.actor = actor
        self.clock = clock
        self.records = records
        self._moment = moment
        self._origin = origin

    @cached_property
    def objects(self) -> ContentStore:
        if self._origin is not None:
            # One for all views: it remembers what it has proved, and a bucket's client is dear to make.
            return self._origin.objects if self._moment is None else self._origin.objects.read_only()
        from everloop.stores.objects.content_addressing import ContentStore

        return ContentStore(self.places.objects, cache=self.home / "cache")

    @cached_property
    def tables(self) -> Tables:
        from everloop.stores.tables.delta_tables import Tables

        return Tables(self.places.tables, self.clock, as_of=self._moment)

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
        """A record of this project that is not yet put, with a new id and the clock's time."""
        now = self.clock.now()
        return kind(**{"id": new_id(now), "project": self.project, "created_at": now, **fields})

    def lock(self, name: str, *, block: bool = True) -> AbstractContextManager[bool]:
        """A lock among all processes of this home on this machine; yields whether it is held.

        Not re-entrant. The operating system gives it back when its holder dies.
        """
        return file_lock(self._lock_path(name), block=block)

    def locked(self, name: str) -> bool:
        """Whether somebody alive holds the lock."""
        return is_locked(self._lock_path(name))

    def was_locked(self, name: str) -> bool:
        """Whether the lock has ever been held in this home, by the living or the dead."""
        return self._lock_path(name).exists()

    def for_project(self, project: str) -> Store:
        """The same home, seen from another project."""
        return self._with(project=_checked_project(project), records=self.records.for_project(project))

    def as_actor(self, actor: str) -> Store:
        """The same home, written to in another name."""
        return self._with(actor=actor, records=self.records.as_actor(actor))

    def as_of(self, moment: datetime) -> Store:
        """A read-only view of what had been written, and had arrived, by a moment; its clock stands there."""
        if self._moment is not None:
            moment = min(moment, self._moment)
        return self._with(clock=FixedClock(moment), records=self.records.as_of(moment), moment=moment)

    def simulate(self, moment: datetime) -> SharedClock:
        """Give the home a simulated clock, for this store and all that are opened from now on, and set it.

        Raises:
            ConflictError: the home's clock is simulated already and shows a later time.
        """
        if self._moment is not None:
            raise ReadOnlyError("A view of the past keeps its time.")
        clock = SharedClock.create(self.home / "clock", moment)
        self.clock = clock
        self.records = self.records.with_clock(clock)
        self.__dict__.pop("tables", None)
        return clock

    def close(self) -> None:
        """Close the store and all views of it."""
        self.records.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.home)!r}, project={self.project!r})"

    def _lock_path(self, name: str) -> Path:
        if not _LOCK.fullmatch(name):
            raise UsageError(f"'{name}' is no name for a lock.", help="Use letters, digits and -_.@=+ only.")
        return self.home / "locks" / f"{name}.lock"

    def _with(self, **changes: Any) -> Store:
        parts = {
            "project": self.project,
            "actor": self.actor,
            "clock": self.clock,
            "records": self.records,
            "moment": self._moment,
            "origin": self._origin or self,
        }
        return type(self)(self.places, **{**parts, **changes})


def open_store(
    home: Path | str | None = None,
    *,
    project: str | None = None,
    actor: str | None = None,
    clock: Clock | None = None,
    create: bool = True,
) -> Store:
    """Open the store of `home`, or of `EVERLOOP_STORE`, or of the nearest `everloop.toml` upwards, or `./.everloop`.

    A home that another process is just making is waited for.

    Args:
        project: default: what `everloop.toml` says, else `default`.
        actor: in whose name events are written; default: the user at this machine.
        clock: default: the home's simulated clock where it has one, else the system's.
        create: make a home that is not there yet.

    Raises:
        NotFoundError: there is no home, and `create` is off.
        ProjectError: `everloop.toml` cannot be read.
        StoreVersionError: a newer everloop wrote it.
    """
    places, configured = find_store_urls(home)
    return open_urls(places, project=project or configured, actor=actor, clock=clock, create=create)


def open_urls(
    places: StoreUrls,
    *,
    project: str | None = None,
    actor: str | None = None,
    clock: Clock | None = None,
    create: bool = True,
) -> Store:
    """As `open_store`, of a store whose parts are known."""
    if not (places.home / "locks").is_dir():
        if not create:
            raise NotFoundError(
                f"There is no everloop store at '{places.home}'.", help="Make one: everloop init, or everloop demo"
            )
        prepare_home(places.home, shared=places.shared)
    settle(places.home, shared=places.shared)
    if "://" not in places.records and Path(places.records).parent != places.home:
        close_to_others(Path(f"{places.records}{end}") for end in ("", "-wal", "-shm"))
    if clock is None:
        clock = SharedClock(places.home / "clock") if (places.home / "clock").exists() else SystemClock()
    chosen = _checked_project(project or "default")
    who = actor or default_actor()
    records = _open_records(places, chosen, who, clock)
    return Store(places, project=chosen, actor=who, clock=clock, records=records)


def find_store_urls(home: Path | str | None = None) -> tuple[StoreUrls, str | None]:
    """Where the parts of a store are, without opening it, and the project that `everloop.toml` names."""
    named = home if home is not None else os.environ.get("EVERLOOP_STORE")
    config = nearest_config(Path.cwd())
    settings, project = _settings(config) if config is not None else ({}, None)
    if named is not None:
        check_path(str(named), "The home")
    base = Path.cwd() if config is None else config.parent
    check_path(str(settings.get("home", FOLDER)), "The home")
    configured = (base / Path(str(settings.get("home", FOLDER))).expanduser()).absolute()
    chosen = configured if named is None else Path(named).expanduser().absolute()
    # Another home than the configured one has its parts in itself.
    return _places(chosen, settings if chosen == configured else {}), project


def prepare_home(home: Path, *, shared: bool = False) -> None:
    """Make what every home has. Safe in parallel; what is there stays.

    Args:
        shared: for the group of the folder and not only for its owner.
    """
    with writing(home):
        # What lies around a home is not everloop's, so the umask says who may look at it.
        home.parent.mkdir(parents=True, exist_ok=True)
        make_folder(home, shared=shared)
        with suppress(FileExistsError):
            # A home lies in the user's repository, and nothing in it is source.
            os.close(_written(make_private(home / ".gitignore", os.O_WRONLY | os.O_CREAT | os.O_EXCL), b"*\n"))
    for folder in ("journals", "locks"):
        make_folder(home / folder)


def _written(descriptor: int, data: bytes) -> int:
    os.write(descriptor, data)
    return descriptor


def default_actor() -> str:
    """`user:<name>@<host>` of this process."""
    import pwd

    name = os.environ.get("LOGNAME") or os.environ.get("USER")
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = str(os.getuid())
    return f"user:{name}@{os.uname().nodename}"


def _places(home: Path, settings: dict[str, str | bool]) -> StoreUrls:
    def place(part: str, default: str) -> str:
        chosen = str(settings.get(part, default))
        _check_place(part, chosen)
        return chosen if "://" in chosen else str(home / Path(chosen).expanduser())

    return StoreUrls(
        home=home,
        records=place("records", "everloop.db"),
        objects=place("objects", "objects"),
        tables=place("tables", "tables"),
        shared=bool(settings.get("shared")) or os.environ.get(SHARED_VARIABLE, "").lower() in ("1", "true", "yes"),
        log=place("log", "") if settings.get("log") else None,
    )


def _check_place(part: str, chosen: str) -> None:
    """Raise UsageError where a part of a store is malformed, before it is opened, shown or made a folder of."""
    what = f"The place of the {part}"
    scheme, found, _ = chosen.partition("://")
    if not found or scheme == "sqlite":
        check_path(chosen.removeprefix("sqlite://"), what)
    elif part != "records":
        check_url(chosen, what, BUCKETS)
    elif scheme in SCHEMES or not has_scheme(chosen):
        check_url(chosen, what, SCHEMES)


def nearest_config(start: Path) -> Path | None:
    """The `everloop.toml` of a folder or of the nearest above it that has one."""
    for folder in (start, *start.parents):
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    return None


def _settings(config: Path) -> tuple[dict[str, str | bool], str | None]:
    try:
        content = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProjectError(f"'{config}' cannot be read: {error}.") from error
    settings, named = content.get("store", {}), content.get("project", {})
    if not isinstance(named, dict):
        raise ProjectError(f"[project] in '{config}' takes a name.")
    project = named.get("name")
    if not isinstance(settings, dict):
        raise ProjectError(f"[store] in '{config}' takes texts: {', '.join(_SETTINGS)}.")
    unknown = set(settings) - {*_SETTINGS, "shared"}
    if unknown:
        raise ProjectError(
            f"[store] in '{config}' has no '{min(unknown)}'.", help=f"It takes {', '.join(_SETTINGS)} and shared."
        )
    if not all(isinstance(settings.get(name, ""), str) for name in _SETTINGS):
        raise ProjectError(f"[store] in '{config}' takes texts: {', '.join(_SETTINGS)}.")
    if not isinstance(settings.get("shared", False), bool):
        raise ProjectError(f"'shared' in [store] of '{config}' is neither true nor false.")
    if project is not None and not isinstance(project, str):
        raise ProjectError(f"[project] name in '{config}' is no text.")
    return settings, project


def _open_records(places: StoreUrls, project: str, actor: str, clock: Clock) -> RecordStore:
    scheme, found, rest = places.records.partition("://")
    if not found:
        scheme, rest = "sqlite", places.records
    where = rest if scheme == "sqlite" else places.records
    name = "postgresql" if scheme == "postgres" else scheme
    opened = plugins.load("records", name)(where, project=project, actor=actor, clock=clock)
    return cast("RecordStore", opened)


def _checked_project(project: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", project):
        raise UsageError(
            f"'{project}' is no name for a project.", help="Use letters, digits, '-', '_' and '.'; a letter first."
        )
    return project
