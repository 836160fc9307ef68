"""`everloop models`: the model registry."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli import formatting
from everloop.cli.output import AsJson, Home, count, emit, facts, main_metrics, opened, say, table

if TYPE_CHECKING:
    from everloop.registry import AliasTenure
    from everloop.stores import Store

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Manage model versions, their aliases and packages."
)

Reason = Annotated[str, typer.Option(help="Reason, recorded with the event.")]
Version = Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS, or MODEL for its champion.")]


@app.command()
def ls(
    model: Annotated[str | None, typer.Argument(help="Show only this model. Default: all.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Show archived versions, too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of versions to show.")] = 100,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List model versions, newest first."""
    from everloop.errors import NotFoundError
    from everloop.records import Alias, ModelVersion
    from everloop.registry.model_versions import what_exists

    with opened(home) as store:
        of_model = [("model", "=", model)] if model else []
        not_archived = [] if all_ else [("state", "!=", "archived")]
        versions = store.records.find(ModelVersion, *of_model, *not_archived, order="-created_at", limit=limit)  # type: ignore[arg-type]
        archived = not versions and bool(model and store.records.find(ModelVersion, *of_model, limit=1))  # type: ignore[arg-type]
        if model and not versions and not archived:
            raise NotFoundError(what_exists(store, model), help="See: everloop models ls")
        holders: dict[str, list[str]] = {}
        for alias in store.records.find(Alias, *of_model, order="name"):  # type: ignore[arg-type]
            holders.setdefault(alias.version, []).append(alias.name)
    rows = [
        (
            v.key,
            v.state,
            ", ".join(holders.get(v.key, [])),
            f"{v.created_at:%Y-%m-%d}",
            v.snapshot,
            main_metrics(v.metrics),
        )
        for v in versions
    ]
    columns = ("version", "state", "aliases", "registered", "snapshot", "metrics")
    empty = "No model versions yet. Train one with: everloop run"
    if archived:
        empty = f"Every version of '{model}' is archived. See: everloop models ls {model} --all"
    emit(versions, json, lambda: table("Versions, days in UTC", columns, rows, empty=empty, spare=("snapshot",)))


@app.command()
def show(version: Version, home: Home = None, json: AsJson = False) -> None:
    """Show a model version. Lists lineage, metrics, gates, aliases, requests, signature and package."""
    from everloop.packages import get_package
    from everloop.records import Alias, GateResult
    from everloop.registry import alias_history, get_version, list_requests, version_history
    from everloop.registry.model_card import lineage, prediction_facts

    with opened(home) as store:
        record = get_version(store, version)
        package = get_package(store, record.package) if record.package else None
        gates = store.records.find(GateResult, ("candidate", "=", record.key), order="id")
        aliases = store.records.find(Alias, ("version", "=", record.key), order="name")
        since = {alias.name: alias_history(store, record.model, alias.name)[-1] for alias in aliases}
        requests = [one for one in list_requests(store, record.model) if one.version == record.key]
        origin = lineage(store, record)
        past = version_history(store, record.key)

    def draw() -> None:
        by = f" by {past[0].actor}" if past else ""
        size = f", {count(package.size_bytes, 'byte')}" if package else ""
        none_yet = f"none yet; make one with: everloop models adopt {quote(record.key)}"
        facts(
            record.key,
            [
                ("description", record.description),
                ("state", record.state),
                *((f"{name}", f"since {formatting.since(tenure)}") for name, tenure in since.items()),
                ("tags", "  ".join(f"{name}={value}" for name, value in sorted(record.tags.items()))),
                ("registered", f"{record.created_at:%Y-%m-%d %H:%M} UTC{by}"),
                ("package", record.package or none_yet),
                ("format", package and f"{package.format}{', compiled' if package.compiled else ''}{size}"),
                *((name.lower(), text) for name, text in origin),
                ("logged model", record.logged_model),
                ("files", record.source),
                ("metrics", formatting.metrics(record)),
                ("task", record.signature.get("task")),
                ("inputs", formatting.columns(record.signature.get("inputs"), record.key)),
                ("outputs", formatting.columns(record.signature.get("outputs"), record.key)),
                *((name.lower(), text) for name, text in (prediction_facts(package) if package else ())),
                ("environment", package and f"everloop models sbom {quote(record.key)}"),
                ("card", f"everloop models card {quote(record.key)}"),
            ],
        )
        if gates:
            results = [(g.gate, g.outcome, g.champion, g.message) for g in gates]
            columns = ("gate", "outcome", "against", "evidence")
            table("Gates", columns, results, empty="", spare=("against",))
        if requests:
            rows = [
                (
                    one.alias,
                    one.state,
                    formatting.second(one.created_at),
                    one.asked_by,
                    formatting.votes(one),
                    one.reason,
                )
                for one in requests
            ]
            table("Requests, times in UTC", ("alias", "state", "at", "by", "votes", "why"), rows, empty="")

    result = {"version": record, "aliases": aliases, "held": since, "lineage": dict(origin), "package": package}
    emit({**result, "gates": gates, "requests": requests}, json, draw)


@app.command()
def card(version: Version, home: Home = None, json: AsJson = False) -> None:
    """Print a version's model card, as Markdown. It covers lineage, metrics, gates, signature and aliases."""
    from everloop.registry import get_version, version_card

    with opened(home) as store:
        key, text = get_version(store, version).key, version_card(store, version)
    emit({"version": key, "card": text}, json, lambda: say(text, nl=False))


@app.command()
def diff(a: Version, b: Version, home: Home = None, json: AsJson = False) -> None:
    """Compare two model versions.

    Shows all metrics, and what differs in data, parameters, signature, code, environment and tags.
    """
    from everloop.registry import diff_versions

    with opened(home) as store:
        found = diff_versions(store, a, b)

    def draw() -> None:
        metrics = [(name, one.a, one.b, formatting.change(one.change)) for name, one in found.metrics.items()]
        table("Metrics", ("metric", found.a, found.b, "change"), metrics, empty="Neither has metrics.")
        parts = (
            ("data: ", found.data), ("param: ", found.params), ("", found.signature), ("code: ", found.code),
            ("environment: ", found.packages), ("tag: ", found.tags), ("", found.facts),
        )  # fmt: skip
        rows = [
            (part + name, *formatting.apart(one.a, one.b)) for part, changes in parts for name, one in changes.items()
        ]
        columns = ("what", found.a, found.b)
        table("Differences", columns, rows, empty="Nothing else differs.", wrap=(found.a, found.b))

    emit(found, json, draw)


@app.command()
def history(
    of: Annotated[
        str,
        typer.Argument(metavar="MODEL@ALIAS|MODEL@N", help="Alias or version. MODEL alone means its champion."),
    ],
    at: Annotated[
        str | None,
        typer.Option(help="Show the state at this time, such as 2026-05-03T12:00Z. Without a time zone: UTC."),
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show the history of an alias or a version.

    For MODEL@ALIAS: which version held the alias from when to when, who moved it, who approved, and why. With --at, the
    version that held it at that time, and the evidence. For MODEL@N: everything that happened to the version.
    """
    from everloop.registry import alias_at, alias_history, version_history

    model, name = split_alias(of)
    moment = None if at is None else _moment(at)
    if name.isdecimal():
        with opened(home) as store:
            events = version_history(store, of)
        events = [event for event in events if moment is None or event.at <= moment]
        done = [
            (formatting.second(e.at), formatting.done(e, of), e.actor, e.data.get("reason"))
            for e in events
            if e.verb != "applied"
        ]
        empty = f"There are no events about {of}. See: everloop models ls {model}"
        emit(events, json, lambda: table(f"{of}, times in UTC", ("at", "what", "by", "why"), done, empty=empty))
        return
    with opened(home) as store:
        tenures = alias_history(store, model, name)
        empty = "" if tenures else _never_held(store, model, name)
        held = alias_at(store, model, name, moment) if moment else None
    if moment is not None:
        emit([] if held is None else [held], json, lambda: _draw_moment(f"{model}@{name}", moment, held))
        return
    rows = [
        (t.version, formatting.second(t.since), formatting.second(t.until), formatting.deciders(t), t.reason)
        for t in tenures
    ]
    columns = ("version", "since", "until", "by", "why")
    # If each version follows at once on the one before, "until" adds nothing to "since".
    gapless = all(one.until == later.since for one, later in pairwise(tenures)) and not (tenures and tenures[-1].until)
    title = f"{model}@{name}, times in UTC"
    emit(tenures, json, lambda: table(title, columns, rows, empty=empty, spare=("until",) if gapless else ()))


@app.command()
def tag(
    version: Version,
    tags: Annotated[list[str], typer.Argument(help="NAME=VALUE to set a tag, NAME= to remove it.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Set or remove tags of a model version."""
    from everloop.errors import UsageError
    from everloop.registry import tag as set_tags

    changes: dict[str, str | None] = {}
    for text in tags:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"A tag is NAME=VALUE, not '{text}'.", help="Write NAME=VALUE, or NAME= to remove a tag.")
        changes[name] = value or None
    with opened(home) as store:
        record = set_tags(store, version, changes)
    emit(record, json, lambda: facts(record.key, sorted(record.tags.items())))


@app.command()
def describe(
    version: Version,
    text: Annotated[str, typer.Argument(help="Description; the model card shows it as plain text.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Set the description of a model version."""
    from everloop.registry import describe as set_description

    with opened(home) as store:
        record = set_description(store, version, text)
    emit(record, json, lambda: say(f"Set the description of {record.key}."))


@app.command()
def archive(version: Version, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Archive a model version.

    It stays readable, its open requests become void, and `unarchive` undoes it.
    """
    from everloop.registry import archive as archive_version

    with opened(home) as store:
        record = archive_version(store, version, reason)
    emit(record, json, lambda: say(f"{record.key} is {record.state}."))


@app.command()
def unarchive(version: Version, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Unarchive a model version."""
    from everloop.registry import unarchive as unarchive_version

    with opened(home) as store:
        record = unarchive_version(store, version, reason)
    emit(record, json, lambda: say(f"{record.key} is {record.state}."))


def _never_held(store: Store, model: str, name: str) -> str:
    """Return the message for an alias that was never set.

    Raises:
        NotFoundError: there is no such model.
    """
    from everloop.errors import NotFoundError
    from everloop.registry import list_versions
    from everloop.registry.model_versions import what_exists

    if not list_versions(store, model):
        raise NotFoundError(what_exists(store, model), help="See: everloop models ls")
    return f"No version has held {model}@{name} yet. {what_exists(store, model)}"


def _draw_moment(alias: str, moment: datetime, held: AliasTenure | None) -> None:
    when = f"{formatting.second(moment.astimezone(UTC))} UTC"
    if held is None:
        say(f"No version held {alias} at {when}. See: everloop models history {quote(alias)}")
        return
    facts(
        f"{held.version} was {alias} at {when}",
        [
            ("since", f"{formatting.second(held.since)} UTC"),
            ("until", f"{formatting.second(held.until)} UTC" if held.until else "now"),
            ("moved by", held.actor),
            ("approved by", held.approved_by),
            ("why", held.reason),
            ("evidence", held.evidence),
        ],
    )


def split_alias(text: str) -> tuple[str, str]:
    """Split `delays@staging` into model and alias; `delays` means its champion."""
    model, _, name = text.partition("@")
    return model, name or "champion"


def _moment(text: str) -> datetime:
    from everloop.errors import UsageError

    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--at '{text}' is not a time.", help="For example: --at 2026-05-03T12:00Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
