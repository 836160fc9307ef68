"""Search for runs: a filter, an order and pages, over one project or several.

page = search_runs(store, 'metrics.auc > 0.9 and not tags.team = "b"', order_by=["-metrics.auc"], limit=50)
page.rows, page.next
search_runs(store, …, after=page.next)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import UsageError
from everloop.records import Json, Run
from everloop.stores.records.search_results import SearchHit, sort_value
from everloop.tracking.journal.recovery import recover_journals
from everloop.tracking.search.name_suggestions import check_names
from everloop.tracking.search.run_filters import (
    And,
    Compare,
    Expression,
    Not,
    Or,
    check_state,
    field_path,
    leaves,
    matches,
    parse_filter,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import polars as pl

    from everloop.stores import Store

NOT_ARCHIVED = Compare(("archived_at",), "is null")
_PROJECT = ("project",)
_LIMIT = 100_000
_CHILDREN = 100
"""The number of parents whose children are found by one query."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of search results."""

    rows: list[Run] | list[dict[str, Any]]
    """Runs; if columns were requested, dicts with the values of these columns, and `id`."""
    next: str | None
    """The cursor of the next page, to pass as `after`; None on the last page."""
    columns: tuple[str, ...] | None = None

    def frame(self) -> pl.DataFrame:
        """The rows as a Polars frame. Runs become their fields, with one column for each `params.x`, `tags.x` and
        `metrics.x`.

        A column with values of several types becomes a column of strings.
        """
        import polars as pl

        rows = [row if isinstance(row, dict) else _spread(row) for row in self.rows]
        names = list(self.columns or dict.fromkeys(name for row in rows for name in row))
        if self.columns is not None and "id" not in names:
            names.insert(0, "id")
        return pl.DataFrame([_column(name, [row.get(name) for row in rows]) for name in names])


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Statistics of one metric over the child runs of one parent. NaN is ignored."""

    parent: str
    metric: str
    count: int
    min: float
    max: float
    mean: float


def search_runs(
    store: Store,
    where: str | Expression | None = None,
    *,
    order_by: Sequence[str] = ("-started_at",),
    limit: int = 100,
    after: str | None = None,
    columns: Sequence[str] | None = None,
    projects: Sequence[str] | None = None,
    include_archived: bool = False,
) -> RunPage:
    """The runs that match a filter, one page at a time.

    Consecutive pages neither skip nor repeat a run, unless it changes in between. Journals of dead processes are folded
    first; see `journal.recovery`.

    Args:
        where: a filter, in the language of `search.run_filters`, or an expression.
        order_by: fields, such as `-metrics.auc`; a leading `-` sorts in descending order. Runs without a value come
            last in both directions.
        limit: the number of runs on a page.
        after: continue after this cursor: `next` of the previous page, with the same order and projects.
        columns: read only these fields. By default, each row is a `Run`.
        projects: the projects to search. Default: the store's project.
        include_archived: also find archived runs.

    Raises:
        UsageError: the filter, the order, a column or the cursor is not valid; the filter has a state that does not
            exist; or no run has a name, but some have a similar one, such as `metrics."val/auc"` for
            `metrics.val.auc`.
    """
    if not 0 < limit <= _LIMIT:
        raise UsageError(f"limit={limit} is not a valid size of a page.", help=f"Pass a limit of 1 to {_LIMIT:,}.")
    wanted = None if columns is None else [(name, field_path(name)) for name in columns]
    order = [(field_path(name.removeprefix("-")), name.startswith("-")) for name in order_by]
    expression = _expression(store, where, include_archived)
    chosen = _projects(store, projects)
    scope = _scope(order, chosen)
    start = None if after is None else _read_cursor(after, scope, len(order))
    recover_journals(store, chosen)
    requested = [path for path, _ in order] + [path for _, path in wanted or ()]
    check_names(store, chosen, [*(leaf.path for leaf in leaves(expression)), *requested])
    page = [
        (name, hit) for name in chosen for hit in _hits(store.for_project(name), expression, order, limit + 1, start)
    ]
    if len(chosen) > 1:
        descending = [down for _, down in order]
        page = heapq.nsmallest(limit + 1, page, key=lambda item: (sort_value(item[1], descending), item[0]))
    shown = page[:limit]
    cursor = _cursor(shown[-1][1], scope) if len(page) > limit else None
    rows: list[Any] = _read_runs(store, shown) if wanted is None else _read_columns(store, shown, wanted)
    return RunPage(rows, cursor, None if columns is None else tuple(columns))


def count_runs(
    store: Store,
    where: str | Expression | None = None,
    *,
    projects: Sequence[str] | None = None,
    include_archived: bool = False,
) -> int:
    """How many runs match a filter."""
    expression = _expression(store, where, include_archived)
    chosen = _projects(store, projects)
    recover_journals(store, chosen)
    check_names(store, chosen, [leaf.path for leaf in leaves(expression)])
    total = 0
    for name in chosen:
        total += store.for_project(name).records.count(Run, _within(expression, name))
    return total


def aggregate_children(store: Store, parents: Iterable[str], metrics: Sequence[str]) -> list[Aggregate]:
    """Minimum, maximum and mean of metrics over the child runs of each parent, for each metric that any child has.

    Args:
        parents: ids of runs in the store's project.
        metrics: names of metrics, without the prefix `metrics.`.
    """
    paths = [("metrics", name) for name in metrics]
    values: dict[tuple[str, str], list[float]] = {}
    ids = list(dict.fromkeys(parents))
    recover_journals(store)
    for start in range(0, len(ids), _CHILDREN):
        part = tuple(ids[start : start + _CHILDREN])
        hits = store.records.search(Run, Compare(("parent",), "in", part))
        for row in store.records.values_at(Run, [hit.id for hit in hits], [("parent",), *paths]):
            for path in paths:
                value = row.get(path)
                if value is not None and not math.isnan(value):
                    values.setdefault((row["parent",], path[1]), []).append(value)
    return [
        Aggregate(
            parent,
            metric,
            len(found),
            min(found),
            max(found),
            math.fsum(found) / len(found) if _finite(found) else sum(found) / len(found),
        )
        for (parent, metric), found in sorted(values.items(), key=lambda item: ids.index(item[0][0]))
    ]


def _finite(values: list[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _expression(store: Store, where: str | Expression | None, include_archived: bool) -> Expression:
    parsed = parse_filter(where, now=store.now()) if isinstance(where, str) else where
    expression: Expression = And(()) if parsed is None else parsed
    compared = list(leaves(expression))
    for leaf in compared:
        check_state(leaf)
    if include_archived or any(leaf.path == NOT_ARCHIVED.path for leaf in compared):
        return expression
    return And((expression, NOT_ARCHIVED))


def _within(expression: Expression, project: str) -> Expression:
    """The expression for one project: comparisons of the field `project` are replaced by true or false."""
    match expression:
        case And(parts):
            return And(tuple(_within(part, project) for part in parts))
        case Or(parts):
            return Or(tuple(_within(part, project) for part in parts))
        case Not(part):
            return Not(_within(part, project))
        case Compare() if expression.path == _PROJECT:
            return And(()) if matches(expression, lambda _: (None, project)) else Or(())
    return expression


def _projects(store: Store, projects: Sequence[str] | None) -> list[str]:
    if projects is None:
        return [store.project]
    if not projects:
        raise UsageError("`projects` is empty.", help="Omit `projects` to search the store's own project.")
    return sorted(set(projects))


def _hits(
    store: Store, expression: Expression, order: list[tuple[tuple[str, ...], bool]], limit: int, start: SearchHit | None
) -> list[SearchHit]:
    """The next hits of one project. The sort key `project` is constant in a project, so the query leaves it out."""
    indexes = [index for index, (path, _) in enumerate(order) if path == _PROJECT]
    other_keys = [key for index, key in enumerate(order) if index not in indexes]
    project = (1, store.project)
    if start is not None and indexes:
        return _hits_after(store, expression, order, other_keys, limit, start)
    hits = store.records.search(Run, _within(expression, store.project), order=other_keys, limit=limit, after=start)
    if not indexes:
        return hits
    return [SearchHit(hit.id, hit.number, _with(hit.position, indexes, project)) for hit in hits]


def _hits_after(
    store: Store,
    expression: Expression,
    order: list[tuple[tuple[str, ...], bool]],
    other_keys: list[tuple[tuple[str, ...], bool]],
    limit: int,
    start: SearchHit,
) -> list[SearchHit]:
    """The hits of one project after `start`, which may be in another project, if `project` is a sort key."""
    indexes = [index for index, (path, _) in enumerate(order) if path == _PROJECT]
    descending = [down for _, down in order]
    hits = store.records.search(Run, _within(expression, store.project), order=other_keys)
    complete = (SearchHit(hit.id, hit.number, _with(hit.position, indexes, (1, store.project))) for hit in hits)
    return [hit for hit in complete if sort_value(hit, descending) > sort_value(start, descending)][:limit]


def _with(position: tuple[Any, ...], indexes: list[int], value: tuple[int, Any]) -> tuple[Any, ...]:
    """The sort position of a hit with a value inserted at some indexes."""
    complete = list(position)
    for index in indexes:
        complete.insert(index, value)
    return tuple(complete)


def _read_runs(store: Store, shown: list[tuple[str, SearchHit]]) -> list[Run]:
    runs: dict[str, Run] = {}
    for name in {name for name, _ in shown}:
        ids = [hit.id for project, hit in shown if project == name]
        runs.update((run.id, run) for run in store.for_project(name).records.get_many(Run, ids))
    return [runs[hit.id] for _, hit in shown if hit.id in runs]


def _read_columns(
    store: Store, shown: list[tuple[str, SearchHit]], wanted: list[tuple[str, tuple[str, ...]]]
) -> list[dict[str, Any]]:
    paths = [path for _, path in wanted if path != _PROJECT]
    values: dict[str, dict[tuple[str, ...], Any]] = {}
    for name in {name for name, _ in shown}:
        ids = [hit.id for project, hit in shown if project == name]
        found = store.for_project(name).records.values_at(Run, ids, paths)
        values.update((identity, {_PROJECT: name, **row}) for identity, row in zip(ids, found, strict=True))
    return [{"id": hit.id, **{name: values[hit.id].get(path) for name, path in wanted}} for _, hit in shown]


def _scope(order: list[tuple[tuple[str, ...], bool]], projects: list[str]) -> str:
    return hashlib.sha256(msgspec.json.encode([order, projects])).hexdigest()[:12]


def _cursor(hit: SearchHit, scope: str) -> str:
    # Floats in hexadecimal: exact, and JSON has no infinities.
    position = [[rank, value.hex() if isinstance(value, float) else value] for rank, value in hit.position]
    return base64.urlsafe_b64encode(msgspec.json.encode([scope, hit.id, hit.number, position])).decode()


def _read_cursor(cursor: str, scope: str, keys: int) -> SearchHit:
    try:
        cursor_scope, identity, number, encoded = msgspec.json.decode(
            base64.b64decode(cursor, altchars=b"-_", validate=True)
        )
        position = tuple(
            (rank, float.fromhex(value) if rank == 0 else value if rank == 1 else None) for rank, value in encoded
        )
        is_valid = (
            len(position) == keys
            and all(rank in (0, 1, 2) and (rank != 1 or isinstance(value, str)) for rank, value in position)
            and isinstance(identity, str)
            and isinstance(number, int | str)
        )
    except (ValueError, TypeError, OverflowError, binascii.Error, msgspec.DecodeError) as error:
        raise _invalid_cursor(cursor) from error
    if not is_valid:
        raise _invalid_cursor(cursor)
    if cursor_scope != scope:
        raise UsageError(
            "This cursor belongs to a search with another order or other projects.",
            help="Start again with the first page.",
        )
    return SearchHit(identity, number, position)


def _invalid_cursor(cursor: str) -> UsageError:
    return UsageError(f"'{cursor[:40]}' is not the cursor of a page.", help="Pass `next` of the previous page.")


def _spread(run: Run) -> dict[str, Json]:
    row: dict[str, Json] = {
        name: getattr(run, name)
        for name in (
            "id", "project", "name", "state", "loop", "trigger", "parent", "started_at", "ended_at", "seconds",
            "archived_at", "error",
        )
    }  # fmt: skip
    for field in ("params", "tags", "metrics"):
        row.update((f"{field}.{name}", value) for name, value in getattr(run, field).items())
    return row


def _column(name: str, values: list[Any]) -> pl.Series:
    import polars as pl

    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1 or kinds & {list, dict}:
        values = [
            value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()
            for value in values
        ]
    try:
        return pl.Series(name, values, strict=True)
    except (OverflowError, TypeError, pl.exceptions.PolarsError):
        return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)
