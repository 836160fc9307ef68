"""Searching runs: a filter, an order and pages, over one project or several.

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
"""Parents whose children are looked for by one search."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of what was found."""

    rows: list[Run] | list[dict[str, Any]]
    """Whole runs, or where columns were named, their values by the columns' names, and `id`."""
    next: str | None
    """What to give as `after` for the next page; None at the end."""
    columns: tuple[str, ...] | None = None

    def frame(self) -> pl.DataFrame:
        """The rows as a Polars frame: of whole runs the fields, with `params.x`, `tags.x` and `metrics.x` apart.

        A column whose values are of several types holds texts.
        """
        import polars as pl

        rows = [row if isinstance(row, dict) else _spread(row) for row in self.rows]
        names = list(self.columns or dict.fromkeys(name for row in rows for name in row))
        if self.columns is not None and "id" not in names:
            names.insert(0, "id")
        return pl.DataFrame([_column(name, [row.get(name) for row in rows]) for name in names])


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What the child runs of one parent have in a metric. NaN counts for nothing."""

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
    """The runs that meet a filter, a page at a time.

    Pages that follow one another neither skip nor repeat a run that does not change meanwhile. What dead processes
    left in journals is brought in first, see `recovery`.

    Args:
        where: see `tracking.filters` for the language; or an expression.
        order_by: fields, such as `-metrics.auc`; `-` in front for the greatest first. Runs without a value come last
            in either direction.
        after: `next` of the page before, of the same order and projects.
        columns: read these fields only; otherwise each row is a whole `Run`.
        projects: default: the store's own.
        include_archived: show the runs that were put away, too.

    Raises:
        UsageError: the filter, the order, a column or the token cannot be read; the filter names a state that does
            not exist; or a name is not that of any run, but nearly, such as `metrics.val.auc` for `metrics."val/auc"`.
    """
    if not 0 < limit <= _LIMIT:
        raise UsageError(f"limit={limit} is no size for a page.", help=f"Ask for 1 to {_LIMIT:,} runs.")
    wanted = None if columns is None else [(name, field_path(name)) for name in columns]
    order = [(field_path(name.removeprefix("-")), name.startswith("-")) for name in order_by]
    expression = _expression(store, where, include_archived)
    chosen = _projects(store, projects)
    scope = _scope(order, chosen)
    start = None if after is None else _read_token(after, scope, len(order))
    recover_journals(store, chosen)
    asked = [path for path, _ in order] + [path for _, path in wanted or ()]
    check_names(store, chosen, [*(leaf.path for leaf in leaves(expression)), *asked])
    page = [
        (name, hit) for name in chosen for hit in _hits(store.for_project(name), expression, order, limit + 1, start)
    ]
    if len(chosen) > 1:
        ways = [way for _, way in order]
        page = heapq.nsmallest(limit + 1, page, key=lambda item: (sort_value(item[1], ways), item[0]))
    shown = page[:limit]
    token = _token(shown[-1][1], scope) if len(page) > limit else None
    rows: list[Any] = _whole(store, shown) if wanted is None else _narrow(store, shown, wanted)
    return RunPage(rows, token, None if columns is None else tuple(columns))


def count_runs(
    store: Store,
    where: str | Expression | None = None,
    *,
    projects: Sequence[str] | None = None,
    include_archived: bool = False,
) -> int:
    """How many runs meet a filter."""
    expression = _expression(store, where, include_archived)
    chosen = _projects(store, projects)
    recover_journals(store, chosen)
    check_names(store, chosen, [leaf.path for leaf in leaves(expression)])
    total = 0
    for name in chosen:
        own = _within(expression, name)
        total += store.for_project(name).records.count(Run, own)
    return total


def aggregate_children(store: Store, parents: Iterable[str], metrics: Sequence[str]) -> list[Aggregate]:
    """Least, greatest and mean of metrics over the child runs of each parent; one entry where any child has one.

    Args:
        parents: ids of runs of the store's project.
        metrics: names of metrics, without `metrics.` in front.
    """
    paths = [("metrics", name) for name in metrics]
    values: dict[tuple[str, str], list[float]] = {}
    asked = list(dict.fromkeys(parents))
    recover_journals(store)
    for start in range(0, len(asked), _CHILDREN):
        part = tuple(asked[start : start + _CHILDREN])
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
        for (parent, metric), found in sorted(values.items(), key=lambda item: asked.index(item[0][0]))
    ]


def _finite(values: list[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _expression(store: Store, where: str | Expression | None, include_archived: bool) -> Expression:
    asked = parse_filter(where, now=store.now()) if isinstance(where, str) else where
    shown: Expression = And(()) if asked is None else asked
    for leaf in leaves(shown):
        check_state(leaf)
    if include_archived or _speaks_of(shown, NOT_ARCHIVED.path):
        return shown
    return And((shown, NOT_ARCHIVED))


def _speaks_of(expression: Expression, path: tuple[str, ...]) -> bool:
    match expression:
        case And(parts) | Or(parts):
            return any(_speaks_of(part, path) for part in parts)
        case Not(part):
            return _speaks_of(part, path)
        case Compare():
            return expression.path == path


def _within(expression: Expression, project: str) -> Expression:
    """The expression within one project: comparisons of the project are true or false from the start."""
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
        raise UsageError("No project is named.", help="Leave `projects` out for the store's own.")
    return sorted(set(projects))


def _hits(
    store: Store, expression: Expression, order: list[tuple[tuple[str, ...], bool]], limit: int, start: SearchHit | None
) -> list[SearchHit]:
    """The next hits of one project. The project as a key has one value here, which the store need not know."""
    at = [number for number, (path, _) in enumerate(order) if path == _PROJECT]
    own = [key for number, key in enumerate(order) if number not in at]
    project = (1, store.project)
    if start is not None and at:
        return _hits_across(store, expression, order, own, limit, start)
    hits = store.records.search(Run, _within(expression, store.project), order=own, limit=limit, after=start)
    if not at:
        return hits
    return [SearchHit(hit.id, hit.number, _with(hit.position, at, project)) for hit in hits]


def _hits_across(
    store: Store,
    expression: Expression,
    order: list[tuple[tuple[str, ...], bool]],
    own: list[tuple[tuple[str, ...], bool]],
    limit: int,
    start: SearchHit,
) -> list[SearchHit]:
    """Behind a hit of perhaps another project, in an order of which the project is a key."""
    at = [number for number, (path, _) in enumerate(order) if path == _PROJECT]
    ways = [way for _, way in order]
    hits = store.records.search(Run, _within(expression, store.project), order=own)
    whole = (SearchHit(hit.id, hit.number, _with(hit.position, at, (1, store.project))) for hit in hits)
    return [hit for hit in whole if sort_value(hit, ways) > sort_value(start, ways)][:limit]


def _with(position: tuple[Any, ...], at: list[int], place: tuple[int, Any]) -> tuple[Any, ...]:
    found = list(position)
    for number in at:
        found.insert(number, place)
    return tuple(found)


def _whole(store: Store, shown: list[tuple[str, SearchHit]]) -> list[Run]:
    runs: dict[str, Run] = {}
    for name in {name for name, _ in shown}:
        ids = [hit.id for project, hit in shown if project == name]
        runs.update((run.id, run) for run in store.for_project(name).records.get_many(Run, ids))
    return [runs[hit.id] for _, hit in shown if hit.id in runs]


def _narrow(
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


def _token(hit: SearchHit, scope: str) -> str:
    # Numbers in the form that keeps every bit and the infinities.
    places = [[rank, value.hex() if isinstance(value, float) else value] for rank, value in hit.position]
    return base64.urlsafe_b64encode(msgspec.json.encode([scope, hit.id, hit.number, places])).decode()


def _read_token(token: str, scope: str, keys: int) -> SearchHit:
    try:
        said, identity, number, places = msgspec.json.decode(base64.b64decode(token, altchars=b"-_", validate=True))
        position = tuple(
            (rank, float.fromhex(value) if rank == 0 else value if rank == 1 else None) for rank, value in places
        )
        known = (
            len(position) == keys
            and all(rank in (0, 1, 2) and (rank != 1 or isinstance(value, str)) for rank, value in position)
            and isinstance(identity, str)
            and isinstance(number, int | str)
        )
    except (ValueError, TypeError, OverflowError, binascii.Error, msgspec.DecodeError) as error:
        raise _no_token(token) from error
    if not known:
        raise _no_token(token)
    if said != scope:
        raise UsageError(
            "That page token belongs to a search with another order or other projects.",
            help="Begin with the first page.",
        )
    return SearchHit(identity, number, position)


def _no_token(token: str) -> UsageError:
    return UsageError(f"'{token[:40]}' is no token of a page.", help="Give the `next` of the page before.")


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
