"""`everloop models`: the registry."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, Home, cell, emit, facts, main_metrics, opened, short, table

if TYPE_CHECKING:
    from everloop.records import Event, Json, ModelVersion

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Registered model versions and their aliases.")

Reason = Annotated[str, typer.Option(help="Why; kept with the event.")]
Version = Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS, or MODEL for its champion.")]
AliasName = Annotated[str, typer.Argument(help="MODEL@ALIAS; MODEL alone means its champion.")]

FIRST_COLUMNS = 12

_DIGEST = re.compile(r"(\w+:)?[0-9a-f]{32,64}")


@app.command()
def ls(
    model: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also archived ones.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List versions, newest first."""
    from everloop.records import Alias, ModelVersion

    with opened(home) as store:
        asked = [("model", "=", model)] if model else []
        kept = [] if all_ else [("state", "!=", "archived")]
        versions = store.records.find(ModelVersion, *asked, *kept, order="-created_at", limit=limit)  # type: ignore[arg-type]
        holders: dict[str, list[str]] = {}
        for alias in store.records.find(Alias, *asked, order="name"):  # type: ignore[arg-type]
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
    empty = "No versions yet. Train one with: everloop run"
    emit(versions, json, lambda: table("Versions", columns, rows, empty=empty, spare=("snapshot",)))


@app.command()
def show(version: Version, home: Home = None, json: AsJson = False) -> None:
    """Show one version: where it comes from, how good it is, what its gates said, what answers and what it needs."""
    from everloop.models import get_package, get_version, version_history
    from everloop.models.card import answering
    from everloop.records import Alias, GateResult

    with opened(home) as store:
        record = get_version(store, version)
        package = get_package(store, record.package) if record.package else None
        gates = store.records.find(GateResult, ("candidate", "=", record.key), order="id")
        aliases = store.records.find(Alias, ("version", "=", record.key), order="name")
        past = version_history(store, record.key)

    def draw() -> None:
        by = f" by {past[0].actor}" if past else ""
        size = f", {package.size_bytes:,} bytes" if package else ""
        none_yet = f"none yet; make one: everloop models adopt {quote(record.key)}"
        facts(
            record.key,
            [
                ("description", record.description),
                ("state", record.state),
                ("aliases", ", ".join(alias.name for alias in aliases)),
                ("tags", "  ".join(f"{name}={value}" for name, value in sorted(record.tags.items()))),
                ("registered", f"{record.created_at:%Y-%m-%d %H:%M} UTC{by}"),
                ("package", record.package or none_yet),
                ("format", package and f"{package.format}{', compiled' if package.compiled else ''}{size}"),
                ("run", record.run),
                ("snapshot", record.snapshot),
                ("code", record.code),
                ("logged model", record.logged_model),
                ("files", record.source),
                ("metrics", _metrics(record)),
                ("task", record.signature.get("task")),
                ("inputs", _columns(record.signature.get("inputs"))),
                ("outputs", _columns(record.signature.get("outputs"))),
                *((name.lower(), told) for name, told in (answering(package) if package else ())),
            ],
        )
        if gates:
            rows = [(g.gate, g.outcome, g.champion, g.message) for g in gates]
            columns = ("gate", "outcome", "against", "evidence")
            table("Gates", columns, rows, empty="", spare=("against",))

    emit({"version": record, "aliases": aliases, "package": package, "gates": gates}, json, draw)


@app.command()
def card(version: Version, home: Home = None, json: AsJson = False) -> None:
    """Print a version's card as markdown: lineage, metrics, gates, signature, aliases held."""
    from everloop.models import get_version, version_card

    with opened(home) as store:
        key, text = get_version(store, version).key, version_card(store, version)
    emit({"version": key, "card": text}, json, lambda: typer.echo(text, nl=False))


@app.command()
def diff(a: Version, b: Version, home: Home = None, json: AsJson = False) -> None:
    """Compare two versions: metrics with their difference, params, signature, packages, data and code."""
    from everloop.models import diff_versions

    with opened(home) as store:
        found = diff_versions(store, a, b)

    def draw() -> None:
        metrics = [(name, one.a, one.b, one.change) for name, one in found.metrics.items()]
        table("Metrics", ("metric", found.a, found.b, "change"), metrics, empty="Neither has metrics.")
        parts = (
            ("param ", found.params), ("", found.signature), ("package ", found.packages),
            ("code ", found.code), ("tag ", found.tags), ("", found.facts),
        )  # fmt: skip
        rows = [(part + name, _brief(one.a), _brief(one.b)) for part, changes in parts for name, one in changes.items()]
        columns = ("what", found.a, found.b)
        table("What differs", columns, rows, empty="Nothing else differs.", wrap=(found.a, found.b))

    emit(found, json, draw)


@app.command()
def history(
    of: Annotated[
        str,
        typer.Argument(metavar="MODEL@ALIAS|MODEL@N", help="An alias, or a version. MODEL alone means its champion."),
    ],
    at: Annotated[
        str | None, typer.Option(help="Only how it was then: 2026-05-03T12:00Z; without a zone, UTC.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Who held an alias, from when to when, who made it so, and why; or all that was done about a version."""
    from everloop.models import alias_at, alias_history, version_history

    model, name = named_alias(of)
    moment = None if at is None else _moment(at)
    if name.isdecimal():
        with opened(home) as store:
            events = version_history(store, of)
        events = [event for event in events if moment is None or event.at <= moment]
        done = [(e.at, _done(e, of), e.actor, e.data.get("reason")) for e in events if e.verb != "applied"]
        empty = f"Nothing was done about {of}. See: everloop models ls {model}"
        emit(events, json, lambda: table(f"{of}, times in UTC", ("at", "what", "by", "why"), done, empty=empty))
        return
    with opened(home) as store:
        if moment is None:
            tenures = alias_history(store, model, name)
        else:
            held = alias_at(store, model, name, moment)
            tenures = [] if held is None else [held]
    rows = [(t.version, t.since, t.until, " + ".join((t.actor, *t.approved_by)), t.reason) for t in tenures]
    columns = ("version", "since", "until", "by", "why")
    title = f"{model}@{name}, times in UTC"
    emit(tenures, json, lambda: table(title, columns, rows, empty=f"Nobody held {model}@{name}.", spare=("until",)))


@app.command()
def tag(
    version: Version,
    tags: Annotated[list[str], typer.Argument(help="NAME=VALUE sets, NAME= removes.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Set or remove tags of a version."""
    from everloop.errors import UsageError
    from everloop.models import tag as set_tags

    wanted: dict[str, str | None] = {}
    for text in tags:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"'{text}' is no tag.", help="Write NAME=VALUE, or NAME= to remove one.")
        wanted[name] = value or None
    with opened(home) as store:
        record = set_tags(store, version, wanted)
    emit(record, json, lambda: facts(record.key, sorted(record.tags.items())))


@app.command()
def describe(version: Version, text: str, home: Home = None, json: AsJson = False) -> None:
    """Replace a version's description, in markdown."""
    from everloop.models import describe as set_description

    with opened(home) as store:
        record = set_description(store, version, text)
    emit(record, json, lambda: typer.echo(f"{record.key} is described."))


@app.command()
def archive(version: Version, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Take a version out of use: it stays readable and can be taken back."""
    from everloop.models import archive as put_away

    with opened(home) as store:
        record = put_away(store, version, reason)
    emit(record, json, lambda: typer.echo(f"{record.key} is {record.state}."))


@app.command()
def unarchive(version: Version, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Take an archived version back into use."""
    from everloop.models import unarchive as take_back

    with opened(home) as store:
        record = take_back(store, version, reason)
    emit(record, json, lambda: typer.echo(f"{record.key} is {record.state}."))


def named_alias(text: str) -> tuple[str, str]:
    """Model and alias of `delays@staging`, or of `delays`, which means its champion."""
    model, _, name = text.partition("@")
    return model, name or "champion"


def _done(event: Event, key: str) -> str:
    """What an event did to the version with this key, in words."""
    alias = event.key if event.kind == "alias" else str(event.data.get("alias", ""))
    if event.kind == "alias_request":
        return {
            "requested": f"asked for {alias}",
            "agreed": f"agreed to {alias}, others must, too",
            "approved": f"agreed to {alias}, enough have",
            "rejected": f"refused {alias}",
            "withdrawn": f"took back the wish for {alias}",
        }.get(event.verb, f"{event.verb} {alias}")
    if event.kind == "alias":
        if event.verb != "alias_set":
            return f"{alias} was removed"
        if event.data.get("version") == key:
            before = event.data.get("previous")
            return f"became {alias}" + (f" after {before}" if before else "")
        return f"gave {alias} to {event.data.get('version')}"
    tags = event.data.get("tags")
    named = (f"{name}={value or ''}" for name, value in tags.items()) if isinstance(tags, dict) else ()
    return " ".join((event.verb.replace("_", " "), *named))


def _metrics(version: ModelVersion) -> list[str]:
    """Each metric with its interval, where one is known."""
    known = version.evaluation.get("metrics")
    told = []
    for name, value in version.metrics.items():
        one = known.get(name) if isinstance(known, dict) else None
        low, high = (one.get("low"), one.get("high")) if isinstance(one, dict) else (None, None)
        between = f" [{cell(low)} to {cell(high)}]" if isinstance(low, float) and isinstance(high, float) else ""
        told.append(f"{name} {cell(value)}{between}")
    return told


def _columns(side: Json) -> str:
    """The inputs or outputs of a signature, the first of them by name."""
    ones = [one for one in side if isinstance(one, dict)] if isinstance(side, list) else []
    told = []
    for one in ones[:FIRST_COLUMNS]:
        nullable = ", may be null" if one.get("nullable") else ""
        told.append(f"{one.get('name')} ({one.get('type')}{nullable})")
    more = len(ones) - len(told)
    return ", ".join(told) + (f" and {more:,} more, see: everloop models card" if more > 0 else "")


def _brief(value: Json) -> Json:
    """A value as short as two still can be told apart: digests and commits by their beginning."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        kind, colon, digest = value.rpartition(":")
        return f"{kind}{colon}{digest[:12]}"
    return short(value) if isinstance(value, str) else value


def _moment(text: str) -> datetime:
    from everloop.errors import UsageError

    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is no time.", help="Write it as 2026-05-03T12:00Z.") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
