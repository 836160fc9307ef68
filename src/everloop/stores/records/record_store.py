"""The protocol of record stores, which keep records, metric points and events, and the form of conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from everloop.records import Event, Json, Point, Record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from everloop.stores.clock import Clock
    from everloop.stores.records.expressions import Expression
    from everloop.stores.records.search_results import SearchHit

Op = Literal["=", "!=", "<", "<=", ">", ">=", "in", "prefix", "is"]
FieldPath = str | tuple[str, ...]
Condition = tuple[FieldPath, Op, object]
"""`(field, op, value)`. The field is a name such as `"state"`, or a path into a dict field such as `"params.lr"`. If a
name contains dots, the path must be a tuple: `("metrics", "val/auc.1")`. `RecordStore.find` describes each `op`."""

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """A revision of a record in its stored form."""

    project: str
    kind: str
    id: str
    body: str
    """The record as JSON."""
    current: bool
    """Whether this is the record's last revision. False if an update has replaced it."""
    deleted_at: datetime | None
    """When the record was deleted, or None if it is not deleted."""


@dataclass(frozen=True, slots=True)
class RecordInterval:
    """The time for which one revision of a record was the live one."""

    record: Record
    since: datetime
    """When it was written, or restored."""
    until: datetime | None
    """When it was replaced or deleted, or None if it is still live."""


class RecordStore(Protocol):
    """Stores records of all kinds, metric points and events.

    A store object belongs to one project, and sees only its records, and to one actor, who is named in its events. It
    can be used from any thread, and in a child after a fork. Each thread has its own connection.

    - Every write is atomic, alone or inside `transaction`, and visible to all other processes when it returns.
    - Writers of the same record or series wait for each other, and readers never wait for writers. Callers do not
      notice that the store is busy, except if it stays busy for minutes: `UnavailableError`.
    - Each put, update, delete and restore appends one event per record in the same transaction.
    - Nothing is overwritten: a revision that `update` replaces stays in the history until `purge`.
    - A store `as_of` a moment shows what had been written by then. Every write to it raises `ReadOnlyError`.
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
            data: data for the events, besides the record's kind, id and key.

        Raises:
            AlreadyExistsError: an id exists already, or a live record of the same kind and project has the same key.
            UsageError: a record belongs to another project, has an unknown kind, or has a value that JSON cannot
                represent.
        """

    def get(self, kind: type[R], ref: str) -> R:
        """The live record with this id, or else with this key.

        Raises:
            NotFoundError: there is none. The message lists similar keys.
        """

    def find(
        self, kind: type[R], *where: Condition, order: str = "id", limit: int | None = None, after: str | None = None
    ) -> list[R]:
        """The live records that meet all conditions.

        A number is compared only with numbers (true and false are not numbers), a text only with texts, by code point,
        and a time only with times, in fields that the record declares as times.

        - `=` and `in` are true for an equal value.
        - `!=` is true in all other cases, also if the value is absent.
        - `<`, `<=`, `>` and `>=` are true only if there is a value of the same type.
        - `prefix` is true for texts with this beginning.
        - `is` takes None and is true if the value is absent or null.

        Args:
            order: a field or path, with `-` in front for descending order. Records with equal values are ordered by
                id, in the same direction. Numbers come before texts, and records without a number, text or time last.
            limit: maximum number of records.
            after: id of a record. Only records after its present position in the order are returned. Pages that
                continue in this way neither skip nor repeat a record, unless it changes meanwhile.

        Raises:
            UsageError: the field does not exist, or the operation cannot compare the value.
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
        """Find the live records of a searchable kind that meet an expression. Uses an index, unlike `find`.

        Args:
            order: paths, each with True for descending order. Numbers come before texts, which are compared by their
                first 200 characters. Records without a value come last in both directions. Records with equal values
                are in the order in which they were added, or in reverse if the first path is descending.
            limit: maximum number of records.
            after: a result of an earlier search with the same order. Only records after it are returned.

        Raises:
            UsageError: records of this kind cannot be searched by one of the paths.
        """

    def count(self, kind: type[Record], where: Expression) -> int:
        """The number of records that `search` would find."""

    def get_many(self, kind: type[R], ids: Sequence[str]) -> list[R]:
        """The live records with these ids, in the same order. Missing ones are left out."""

    def values_at(
        self, kind: type[Record], ids: Sequence[str], paths: Sequence[tuple[str, ...]]
    ) -> list[dict[tuple[str, ...], Any]]:
        """The values of records at these paths, without reading whole records. Paths without a value are left out."""

    def search_names(self, kind: type[Record], field: str, *, without: Collection[str] = ()) -> list[str]:
        """All names that records have ever had in a dict field, such as the names of all metrics.

        Args:
            kind: the kind of records.
            field: a field that holds a dict.
            without: ids of records whose names are left out, unless others have them too. Such a search reads all
                records of the kind.
        """

    def update(self, *records: R, verb: str = "updated", data: Mapping[str, Json] | None = None) -> tuple[R, ...]:
        """Replace records, provided that none of them has changed since it was read.

        Returns:
            The records as stored, with the revision incremented.

        Raises:
            ConflictError: the stored revision differs from the record's.
            NotFoundError: no live record has the id.
            AlreadyExistsError: another record has the record's new key.
        """

    def delete(
        self, kind: type[Record], ref: str, verb: str = "deleted", data: Mapping[str, Json] | None = None
    ) -> None:
        """Hide a record from `get` and `find` and free its key. `restore` can undo this until `purge`."""

    def restore(
        self, kind: type[Record], ref: str, verb: str = "restored", data: Mapping[str, Json] | None = None
    ) -> None:
        """Restore a deleted record. If `ref` is a key, restore the record with this key that was deleted last.

        Raises:
            NotFoundError: no deleted record has this id or key.
            AlreadyExistsError: another record has the same key now.
        """

    def move(self, kind: type[Record], ref: str, project: str, data: Mapping[str, Json] | None = None) -> None:
        """Move a live record with its history and its points (the series `<id>` and `<kind>:<id>`) to another project.

        Afterwards, views of the past also show it in the new project.

        Raises:
            AlreadyExistsError: a record of that project has the same key.
        """

    def history(self, kind: type[R], ref: str) -> list[tuple[datetime, R]]:
        """All revisions with the times when they were written, oldest first. Deleted records are found by id."""

    def intervals(self, kind: type[Record], identity: str) -> list[RecordInterval]:
        """The whole life of the record with this id, oldest first. Empty if there is none.

        A deletion is a gap, or an end after the last interval. Unlike `history`, this also shows when it was restored.
        """

    def deleted_ids(self, kind: type[Record], ref: str) -> list[str]:
        """The ids of the deleted records that have this id or key."""

    def append_points(self, series: str, points: Sequence[Point]) -> None:
        """Add points to a series, usually a run's id. Points are never replaced: a step can have several points."""

    def append_rows(self, series: str, rows: Sequence[tuple[str, int, int, float]]) -> None:
        """As `append_points`, but faster: each point is a tuple of key, step, µs since 1970 and value."""

    def read_points(
        self, series: str, key: str | None = None, *, since_step: int | None = None, limit: int | None = None
    ) -> list[Point]:
        """The points of one metric or of all, by key, then step, then arrival. `since_step` is included."""

    def read_columns(self, series: str, key: str, *, after: int = 0) -> list[tuple[int, int, int, float]]:
        """The points of one metric in order of arrival, each as number, step, µs since 1970 and value.

        The numbers increase. With `after`, only points with greater numbers are returned, which arrived later. So a
        cache needs to read only new points.
        """

    def sample_points(
        self, series: Sequence[str], keys: Sequence[str], count: int
    ) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """An overview of metrics, which costs the same however many points they have.

        Args:
            series: the series, such as ids of runs.
            keys: the metrics.
            count: at most this many points of each metric, at equal distances between its first and its last step. At
                least 2.

        Returns:
            Steps and values, by series and metric, in order of the steps. What has no points is left out.
        """

    def greatest_steps(self, series: str) -> dict[str, int]:
        """The greatest step of each metric that has points."""

    def append_event(
        self, verb: str, kind: str, subject: str, key: str = "", data: Mapping[str, Json] | None = None
    ) -> Event:
        """Append an event that does not belong to the write of a record."""

    def events_since(
        self, seq: int, *, kinds: Sequence[str] = (), subject: str | None = None, limit: int = 1000
    ) -> list[Event]:
        """Events after `seq`, in order. Once an event is visible, no event with a smaller `seq` appears later."""

    def last_event(self) -> int:
        """The `seq` of the project's last event, or 0 if there is none. Cheap enough to poll (tens of µs)."""

    def wait_for_event(self, since: int, timeout_s: float) -> int:
        """Wait until the project has an event after `since`, and return `last_event`. Blocks the calling thread.

        In an event loop, call this in another thread. After the timeout, the result is at most `since`. A view of the
        past does not wait. Waiting is cheap: many threads share one connection, or poll every 50 ms (SQLite).
        """

    def transaction(self, *parts: str) -> AbstractContextManager[None]:
        """Make all writes of this thread inside the block one atomic write. The block can read its own writes.

        Blocks can be nested; if an inner one fails, only its writes are undone. Other writers of the project wait until
        the block ends, so keep it short. Do not await anything inside: the transaction belongs to the thread, not to a
        task.

        Args:
            parts: ids of records and names of series, if the block reads and writes only these. Then only writers of
                the same parts wait, on databases that can have several writers.
        """

    def purge(self, before: datetime) -> int:
        """Permanently remove the records that were deleted at or before `before`, with their history and points.

        Returns:
            The number of records.
        """

    def stored(self) -> Iterator[StoredRecord]:
        """All revisions of all records of all projects, in their stored form, for checks and garbage collection.

        They are read in portions, so concurrent writes may or may not be included.
        """

    def problems(self) -> list[str]:
        """The problems that the database's own check finds in its files. Empty if there are none or it has no check."""

    def for_project(self, project: str) -> RecordStore:
        """The same store for another project."""

    def as_actor(self, actor: str) -> RecordStore:
        """The same store, with another actor in the events of its writes."""

    def with_clock(self, clock: Clock) -> RecordStore:
        """The same store, with another clock for the times of its writes."""

    def as_of(self, moment: datetime) -> RecordStore:
        """A read-only view of the records, events and points that had been written at or before `moment`.

        Data that has been purged since then is missing from the view.
        """

    def close(self) -> None:
        """Close the connections of all threads of this process. The store cannot be used afterwards."""
