"""`everloop features`: feature views, kept for training and for serving."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, Home, emit, facts, opened, table

if TYPE_CHECKING:
    from everloop.data import FeatureView as Declared
    from everloop.data.features import Materialized
    from everloop.stores import Store

_FRESHNESS = ("rows", "event_at", "arrived_at", "age_s", "stale")

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Feature views: point in time for training, latest for serving."
)

Folder = Annotated[Path | None, typer.Option("--dir", help="The project's folder.")]
Online = Annotated[
    str | None, typer.Option(help="A file, postgresql://… or redis://…; default: online.db in the store's folder.")
]


@app.command()
def ls(home: Home = None, json: AsJson = False) -> None:
    """List the newest version of each view, and how fresh it is."""
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
    columns = ("view", "entity", "rows", "newest event", "ttl", "is")
    empty = "No view is materialized yet. Try: everloop features materialize"
    emit([fresh for _, fresh in found], json, lambda: table("Feature views", columns, rows, empty=empty))


@app.command()
def show(view: str, home: Home = None, json: AsJson = False) -> None:
    """Show one view: NAME, or NAME@VERSION."""
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
    view: Annotated[str | None, typer.Argument(help="Only this view of the project; default: all.")] = None,
    online: Online = None,
    project: Folder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Keep the rows that are new, and publish the latest of each entity for serving."""
    from everloop.data.features import open_online
    from everloop.loop import materialize as keep

    chosen = _chosen(view, project)
    done = []
    with opened(home, create=True) as store:
        kept = open_online(online or _default(store))
        try:
            done = [keep(declared, store=store, online=kept) for declared in chosen]
        finally:
            kept.close()
    _told(done, json)


@app.command()
def backfill(
    view: Annotated[str, typer.Argument(help="A view of the project.")],
    since: Annotated[datetime | None, typer.Option("--from", help="The first event's time, in UTC.")] = None,
    until: Annotated[datetime | None, typer.Option("--to", help="The first time that is left out.")] = None,
    online: Online = None,
    project: Folder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Add rows of the past that are known only now: joins at earlier moments do not see them."""
    from everloop.data.features import open_online
    from everloop.loop import backfill as fill

    (declared,) = _chosen(view, project)
    start, end = (None if moment is None else moment.replace(tzinfo=UTC) for moment in (since, until))
    with opened(home, create=True) as store:
        kept = open_online(online or _default(store))
        try:
            done = [fill(declared, start=start, end=end, store=store, online=kept)]
        finally:
            kept.close()
    _told(done, json)


@app.command()
def get(
    view: str,
    entity: Annotated[list[str], typer.Argument(help="The entity: COLUMN=VALUE for each of its columns.")],
    online: Online = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """What serving would get for one entity now."""
    from everloop.data.features import OnlineLookup, find_version, open_online

    with opened(home) as store:
        record = find_version(store, view)
        kept = open_online(online or _default(store))
        try:
            found = OnlineLookup(store, kept, [record.key]).get(_entity(record.columns, entity))
        finally:
            kept.close()
    emit(found, json, lambda: facts(record.key, found.items()))


@app.command()
def check(
    view: str,
    logged: Annotated[
        Path | None, typer.Argument(help="A parquet, csv or json file: entity, time, features as answered.")
    ] = None,
    time: Annotated[str, typer.Option(help="The column that says when it was answered.")] = "at",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Check how fresh a view is, or replay logged answers against its table; exit code 1 if stale or different."""
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


def _chosen(view: str | None, project: Path | None) -> list[Declared]:
    from everloop.errors import NotFoundError
    from everloop.loop import load_project

    loaded = load_project(project)
    if view is not None and view not in loaded.views:
        known = ", ".join(loaded.views) or "none"
        raise NotFoundError(f"No feature view '{view}' in {loaded.folder / 'loop.py'}.", help=f"There is: {known}")
    return [loaded.views[view]] if view is not None else list(loaded.views.values())


def _told(done: list[Materialized], json: bool) -> None:
    rows = [(made.view.key, made.added, made.rows, made.online) for made in done]
    empty = "The project declares no feature view. Add: el.FeatureView(…) to loop.py"
    columns = ("view", "new rows", "rows", "published")
    emit(done, json, lambda: table("Materialized", columns, rows, empty=empty))


def _default(store: Store) -> str:
    return str(store.home / "online.db")


def _entity(columns: dict[str, str], given: list[str]) -> dict[str, Any]:
    from everloop.data.features.entity_keys import read_entity
    from everloop.data.features.feature_types import read_type
    from everloop.data.features.internal_columns import stored_name
    from everloop.errors import UsageError

    made: dict[str, Any] = {}
    for pair in given:
        name, found, value = pair.partition("=")
        if not found or stored_name(name) not in columns:
            raise UsageError(f"'{pair}' names no column of the entity.", help="Write COLUMN=VALUE, such as origin=JFK.")
        made[name] = read_entity(name, value, read_type(columns[stored_name(name)]))
    return made
