"""`everloop features`: feature views, materialized for training and published for serving."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, Home, ProjectFolder, emit, facts, opened, table

if TYPE_CHECKING:
    from everloop.data import FeatureView as Declared
    from everloop.data.features import Materialized
    from everloop.stores import Store

_FRESHNESS = ("rows", "event_at", "arrived_at", "age_s", "stale")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Manage feature views for training and serving.")

ViewName = Annotated[str, typer.Argument(help="Name of the view: NAME for its newest version, or NAME@VERSION.")]
Online = Annotated[
    str | None,
    typer.Option(
        help="Online store for serving: a file, postgresql://… or redis://…. Default: online.db in the store folder."
    ),
]


@app.command()
def ls(home: Home = None, json: AsJson = False) -> None:
    """List feature views, and how fresh they are."""
    from everloop.data.features import check_freshness
    from everloop.records import FeatureViewRecord

    with opened(home) as store:
        newest: dict[str, FeatureViewRecord] = {}
        for record in store.records.find(FeatureViewRecord, order="version"):
            newest[record.name] = record
        found = [(record, check_freshness(store, record.key)) for record in newest.values()]
    rows = [
        (
            record.key,
            ", ".join(record.entity),
            fresh.rows,
            fresh.event_at,
            record.ttl,
            "stale" if fresh.stale else "fresh",
        )
        for record, fresh in found
    ]
    columns = ("view", "entity", "rows", "newest event", "ttl", "state")
    empty = "No feature view is materialized yet. Start with: everloop features materialize"
    emit([fresh for _, fresh in found], json, lambda: table("Feature views", columns, rows, empty=empty))


@app.command()
def show(view: ViewName, home: Home = None, json: AsJson = False) -> None:
    """Show a feature view: its columns and freshness."""
    from everloop.data.features import check_freshness, find_version

    with opened(home) as store:
        record = find_version(store, view)
        fresh = check_freshness(store, record.key)

    def draw() -> None:
        facts(
            record.key,
            [
                ("entity", ", ".join(record.entity)),
                ("ttl", record.ttl),
                ("rows", fresh.rows),
                ("newest event", fresh.event_at),
                ("newest arrival", fresh.arrived_at),
                ("code", record.code),
            ],
        )
        table("Columns", ("column", "type"), list(record.columns.items()), empty="  no columns")

    emit({"view": record, "freshness": fresh}, json, draw)


@app.command()
def materialize(
    view: Annotated[str | None, typer.Argument(help="Only this view of the project. Default: all.")] = None,
    online: Online = None,
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Add new rows to feature views. The latest row of each entity is published for serving."""
    from everloop.data.features import open_online
    from everloop.loop import materialize as materialize_view

    views = _declared_views(view, project)
    with opened(home, create=True) as store:
        target = open_online(online or _default_online(store))
        try:
            results = [materialize_view(declared, store=store, online=target) for declared in views]
        finally:
            target.close()
    _print_materialized(results, json)


@app.command()
def backfill(
    view: Annotated[str, typer.Argument(help="Name of a view of the project.")],
    since: Annotated[
        datetime | None, typer.Option("--from", help="Earliest event time, in UTC, inclusive. Default: no limit.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", help="Latest event time, in UTC, exclusive. Default: no limit.")
    ] = None,
    online: Online = None,
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Add past rows that became known only now. Joins as of an earlier time do not see them."""
    from everloop.data.features import open_online
    from everloop.loop import backfill as backfill_view

    (declared,) = _declared_views(view, project)
    start, end = (None if moment is None else moment.replace(tzinfo=UTC) for moment in (since, until))
    with opened(home, create=True) as store:
        target = open_online(online or _default_online(store))
        try:
            results = [backfill_view(declared, start=start, end=end, store=store, online=target)]
        finally:
            target.close()
    _print_materialized(results, json)


@app.command()
def get(
    view: ViewName,
    entity: Annotated[list[str], typer.Argument(help="Entity: COLUMN=VALUE for each of its key columns.")],
    online: Online = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Get the features that serving would use for one entity now."""
    from everloop.data.features import OnlineLookup, find_version, open_online

    with opened(home) as store:
        record = find_version(store, view)
        source = open_online(online or _default_online(store))
        try:
            found = OnlineLookup(store, source, [record.key]).get(_entity(record.columns, entity))
        finally:
            source.close()
    emit(found, json, lambda: facts(record.key, found.items()))


@app.command()
def check(
    view: ViewName,
    logged: Annotated[
        Path | None,
        typer.Argument(help="Parquet, CSV or JSON file of served features: entity, time and feature columns."),
    ] = None,
    time: Annotated[str, typer.Option(help="Column with the time when the features were served.")] = "at",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Check a view's freshness, or the features that were served.

    Exit code 1 if the view is stale, or if served features differ from its table.
    """
    from everloop.data import read
    from everloop.data.features import check_freshness, check_skew

    with opened(home) as store:
        if logged is None:
            fresh = check_freshness(store, view)
            emit(fresh, json, lambda: facts(fresh.view, [(name, getattr(fresh, name)) for name in _FRESHNESS]))
            if fresh.stale:
                raise typer.Exit(1)
            return
        skew = check_skew(store, view, read(logged.absolute(), event_time=time), time=time)

    def draw() -> None:
        facts(skew.view, [("rows", skew.rows), ("same", "yes" if skew.ok else "no"), *skew.different.items()])
        names = list(skew.samples[0]) if skew.samples else []
        table("Differences", names, [list(sample.values()) for sample in skew.samples], empty="  none")

    emit(skew, json, draw)
    if not skew.ok:
        raise typer.Exit(1)


def _declared_views(view: str | None, project: Path | None) -> list[Declared]:
    from everloop.errors import NotFoundError
    from everloop.loop import load_project

    loaded = load_project(project)
    if view is not None and view not in loaded.views:
        known = ", ".join(loaded.views) or "none"
        raise NotFoundError(
            f"There is no feature view '{view}' in {loaded.folder / 'loop.py'}.", help=f"There are: {known}"
        )
    return [loaded.views[view]] if view is not None else list(loaded.views.values())


def _print_materialized(results: list[Materialized], json: bool) -> None:
    rows = [(made.view.key, made.added, made.rows, made.online) for made in results]
    empty = "The project declares no feature views. Declare one in loop.py: el.FeatureView(…)"
    columns = ("view", "new rows", "rows", "published")
    emit(results, json, lambda: table("Materialized", columns, rows, empty=empty))


def _default_online(store: Store) -> str:
    return str(store.home / "online.db")


def _entity(columns: dict[str, str], pairs: list[str]) -> dict[str, Any]:
    from everloop.data.features.entity_keys import read_entity
    from everloop.data.features.feature_types import read_type
    from everloop.data.features.internal_columns import stored_name
    from everloop.errors import UsageError

    entity: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or stored_name(name) not in columns:
            raise UsageError(
                f"'{pair}' does not name a column of the entity.", help="Write COLUMN=VALUE, such as origin=JFK."
            )
        entity[name] = read_entity(name, value, read_type(columns[stored_name(name)]))
    return entity
