"""Where records, points and events are kept: the protocol, and what a condition looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from everloop.records import Event, Json, Point, Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from everloop.stores.clock import Clock
    from everloop.stores.records.expressions import Expression
    from everloop.stores.records.search_results import SearchHit

Op = Literal["=", "!=", "<", "<=", ">", ">=", "in", "prefix", "is"]
FieldPath = str | tuple[str, ...]
Condition = tuple[FieldPath, Op, object]
"""`(field, op, value)`: the field `"state"`, or a path into a dict field, `"params.lr"`, as a tuple where a name
has dots of its own, `("metrics", "val/auc.1")`. See `RecordStore.find` for what each `op` means."""

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """A record as the store keeps it."""

    project: str
    kind: str
    id: str
    body: str
    """JSON."""
    current: bool
    """Whether it is the record's last revision, or one that an update has replaced."""
    deleted_at: datetime | None
    """When the record was deleted; None while it lives."""


class RecordStore(Protocol):
    """About ten verbs over every kind of record, with points and events beside them.

    A store object is bound to one project, whose records alone it sees, and to one actor, whose name its events
    carry. It may be used from any thread, and after a fork in the child; each thread has its own connection.

    - A write is all or nothing, alone or inside `transaction`, and is there for every other process on return.
    - Writers take turns and wait for theirs; no reader waits for a writer, and no caller ever learns that the
      store was busy, unless it waited for minutes in vain: `UnavailableError`.
    - Each put, update, delete and restore appends one event per record, in the same transaction.
    - Nothing is overwritten: what `update` replaces stays as history until `purge`.
    - A store `as_of` a moment shows what had been written by then, and `ReadOnlyError` meets each write.
    """

    @property
    def project(self) -> str: ...

    @property
    def actor(self) -> str: ...

    @property
    def closed(self) -> bool: ...

    def put(self, *records: Record, verb: str = "created", data: Mapping[str, Json] | None = None) -> None:
        """Add new records.

        Args:
            data: what the events say beside the record's kind, id and key.

        Raises:
            AlreadyExistsError: an id is taken, or a key by a live record of the same kind and project.
            UsageError: a record of another project, of no known kind, or with a value that JSON cannot hold.
        """

    def get(self, kind: type[R], ref: str) -> R:
        """The live record with this id or, failing that, this key.

        Raises:
            NotFoundError: there is none; the message names those with the nearest keys.
        """

    def find(
        self, kind: type[R], *where: Condition, order: str = "id", limit: int | None = None, after: str | None = None
    ) -> list[R]:
        """The live records that meet every condition.

        A number compares with numbers only (true and false are none), a text with texts by code point, a time
        (of a field that the record declares as such) with times. `=` and `in` hold for an equal value; `!=` for
        all others, also where the value is absent; `prefix` for texts that begin so; `is` takes None and holds
        where the value is absent or null; `<` and its kin hold only where there is a value of the same type.

        Args:
            order: a field or path, `-` in front for the greatest first; equal ones by id, in the same direction.
                Numbers come before texts, and records without a number, text or time there come last.
            limit: at most so many.
            after: id of a record, wherever it stands now; only those behind it in this order. Pages that follow
                one another so neither skip nor repeat a record that does not change meanwhile.

        Raises:
            UsageError: no such field, or a value that the operation cannot compare.
            NotFoundError: no record has the id `after`.
        """

    def search(
        self,
        kind: type[Record],
        where: Expression,
        *,
        order: Sequence[tuple[tuple[str, ...], bool]] = (),
        limit: int | None = None,
        after: SearchHit | None = None,
    ) -> list[SearchHit]:
        """Which live records of a searchable kind meet the expression, by an index where `find` reads every record.

        Args:
            order: paths, each with whether the greatest comes first. Numbers come before texts, of which the first
                200 characters count, and records without a value come last in both directions; equal ones are in
                the order in which they came, or against it if the first key is descending.
            limit: at most so many.
            after: only those behind this one in the same order.

        Raises:
            UsageError: records of this kind cannot be searched by a path.
        """

    def count(self, kind: type[Record], where: Expression) -> int:
        """How many records `search` would find."""

    def get_many(self, kind: type[R], ids: Sequence[str]) -> list[R]:
        """The live records with these ids, in that order; those that are gone are left out."""

    def values_at(
        self, kind: type[Record], ids: Sequence[str], paths: Sequence[tuple[str, ...]]
    ) -> list[dict[tuple[str, ...], Any]]:
        """What records hold at these paths, where they hold anything, without reading the whole of them."""

    def search_names(self, kind: type[Record], field: str) -> list[str]:
        """The names that records have ever had in a dict field, such as every metric's."""

    def update(self, *records: R, verb: str = "updated", data: Mapping[str, Json] | None = None) -> tuple[R, ...]:
        """Replace records, each only if nobody else has since it was read.

        Returns:
            The records as they now stand, with a revision one higher.

        Raises:
            ConflictError: the stored revision is not the record's.
            NotFoundError: no live record has the id.
            AlreadyExistsError: the record's new key is another's.
        """

    def delete(
        self, kind: type[Record], ref: str, verb: str = "deleted", data: Mapping[str, Json] | None = None
    ) -> None:
        """Hide a record from `get` and `find` and free its key. `restore` undoes it until `purge`."""

    def restore(
        self, kind: type[Record], ref: str, verb: str = "restored", data: Mapping[str, Json] | None = None
    ) -> None:
        """Show a deleted record again; by key, the one that was deleted last.

        Raises:
            NotFoundError: no deleted record has this id or key.
            AlreadyExistsError: another has taken its key.
        """

    def move(self, kind: type[Record], ref: str, project: str, data: Mapping[str, Json] | None = None) -> None:
        """Give a live record, its history and its points (the series `<id>` and `<kind>:<id>`) to another project,
        of which it then has always been a part.

        Raises:
            AlreadyExistsError: its key is taken there.
        """

    def history(self, kind: type[R], ref: str) -> list[tuple[datetime, R]]:
        """Every revision with the time at which it was written, oldest first; also of a deleted record, by id."""

    def append_points(self, series: str, points: Sequence[Point]) -> None:
        """Add points to a series, usually a run's id. Points are never replaced: equal steps stand side by side."""

    def append_rows(self, series: str, rows: Sequence[tuple[str, int, int, float]]) -> None:
        """As `append_points`, each point as key, step, µs since 1970 and value: for those who bring many."""

    def read_points(
        self, series: str, key: str | None = None, *, since_step: int | None = None, limit: int | None = None
    ) -> list[Point]:
        """The points of one metric or of all, by key, then step, then arrival; `since_step` is included."""

    def read_columns(self, series: str, key: str, *, after: int = 0) -> list[tuple[int, int, int, float]]:
        """The points of one metric in the order of arrival, each as number, step, µs since 1970 and value. The
        numbers grow, and `after` one come only those that arrived later: for those who keep what they have read."""

    def greatest_steps(self, series: str) -> dict[str, int]:
        """The greatest step of each metric that has points."""

    def append_event(
        self, verb: str, kind: str, subject: str, key: str = "", data: Mapping[str, Json] | None = None
    ) -> Event:
        """Say that something happened which no write of a record says."""

    def events_since(
        self, seq: int, *, kinds: Sequence[str] = (), subject: str | None = None, limit: int = 1000
    ) -> list[Event]:
        """Events after `seq`, in order. Once an event is seen, none with a smaller `seq` appears any more."""

    def last_event(self) -> int:
        """The `seq` of the project's last event, 0 before the first. Cheap enough to poll (tens of µs)."""

    def transaction(self) -> AbstractContextManager[None]:
        """Make everything that this thread writes inside the block one write, and let it read its own writes.

        Blocks nest; an inner one that fails is undone by itself. Other writers wait meanwhile, so keep it short,
        and await nothing inside: the transaction belongs to the thread, not to a task.
        """

    def purge(self, before: datetime) -> int:
        """Remove what was deleted no later than `before`, with its history and points, and return how many records."""

    def stored(self) -> Iterator[StoredRecord]:
        """Every record of every project as it is kept, and all that updates have replaced. For those who check and
        sweep: it reads in portions, so what is written meanwhile may be seen or not."""

    def problems(self) -> list[str]:
        """What the database's own check finds wrong with its files, if it has one; empty when it is sound."""

    def for_project(self, project: str) -> RecordStore:
        """The same store, seen from another project."""

    def as_actor(self, actor: str) -> RecordStore:
        """The same store, written to in another name."""

    def with_clock(self, clock: Clock) -> RecordStore:
        """The same store, its writes dated by another clock."""

    def as_of(self, moment: datetime) -> RecordStore:
        """A read-only view: every record in its last revision written at or before `moment`, events and points
        likewise. What has been purged since is gone from the past as well."""

    def close(self) -> None:
        """Give up the connections of every thread of this process; the store cannot be used afterwards."""
