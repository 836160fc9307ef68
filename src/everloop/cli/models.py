"""`everloop models`: the registry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, emit, facts, main_metrics, opened, table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Registered model versions and their aliases.")

Reason = Annotated[str, typer.Option(help="Why; kept with the event.")]


@app.command()
def ls(
    model: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List versions, newest first."""
    from everloop.records import Alias, ModelVersion

    with opened(home) as store:
        asked = [("model", "=", model)] if model else []
        versions = store.records.find(ModelVersion, *asked, order="-created_at")  # type: ignore[arg-type]
        holders: dict[str, list[str]] = {}
        for alias in store.records.find(Alias):
            holders.setdefault(alias.version, []).append(alias.name)
    rows = [
        (v.key, v.state, ", ".join(holders.get(v.key, [])), v.created_at, v.snapshot, main_metrics(v.metrics))
        for v in versions
    ]
    columns = ("version", "state", "aliases", "registered", "snapshot", "metrics")
    emit(
        versions, json, lambda: table("Versions", columns, rows, empty="No versions yet. Train one with: everloop run")
    )


@app.command()
def show(version: str, home: Home = None, json: AsJson = False) -> None:
    """Show one version: MODEL@VERSION, MODEL@ALIAS, or MODEL for its champion."""
    from everloop.models import get_package, get_version
    from everloop.records import GateResult

    with opened(home) as store:
        record = get_version(store, version)
        package = get_package(store, record.package)
        gates = store.records.find(GateResult, ("candidate", "=", record.key), order="id")

    def draw() -> None:
        facts(
            record.key,
            [
                ("state", record.state),
                ("package", record.package),
                ("format", package.format),
                ("size", f"{package.size_bytes:,} bytes"),
                ("parity", package.parity),
                ("run", record.run),
                ("snapshot", record.snapshot),
                ("code", record.code),
                ("metrics", record.metrics),
                ("description", record.description),
            ],
        )
        table("Gates", ("gate", "outcome", "evidence"), [(g.gate, g.outcome, g.message) for g in gates], empty="")

    emit({"version": record, "package": package, "gates": gates}, json, draw)


@app.command()
def card(version: str, home: Home = None, json: AsJson = False) -> None:
    """Print a version's card as markdown: lineage, metrics, gates, signature, aliases held."""
    from everloop.models import get_version, version_card

    with opened(home) as store:
        key, text = get_version(store, version).key, version_card(store, version)
    emit({"version": key, "card": text}, json, lambda: typer.echo(text, nl=False))


@app.command()
def diff(a: str, b: str, home: Home = None, json: AsJson = False) -> None:
    """Compare two versions: metrics with their difference, params, signature, packages, data and code."""
    from everloop.models import diff_versions

    with opened(home) as store:
        found = diff_versions(store, a, b)

    def draw() -> None:
        metrics = [(name, one.a, one.b, one.change) for name, one in found.metrics.items()]
        table("Metrics", ("metric", found.a, found.b, "change"), metrics, empty="Neither has metrics.")
        parts = (
            ("param", found.params), ("signature", found.signature), ("package", found.packages),
            ("code", found.code), ("tag", found.tags), ("", found.facts),
        )  # fmt: skip
        rows = [(part, name, one.a, one.b) for part, changes in parts for name, one in changes.items()]
        table("What differs", ("", "what", found.a, found.b), rows, empty="Nothing else differs.")

    emit(found, json, draw)


@app.command()
def history(
    alias: Annotated[str, typer.Argument(help="MODEL@ALIAS; MODEL alone means its champion.")],
    at: Annotated[
        str | None, typer.Option(help="Only who held it then: 2026-05-03T12:00Z; without a zone, UTC.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Who held an alias, from when to when, who made it so, and why."""
    from everloop.models import alias_at, alias_history

    model, name = _alias(alias)
    with opened(home) as store:
        if at is None:
            tenures = alias_history(store, model, name)
        else:
            held = alias_at(store, model, name, _moment(at))
            tenures = [] if held is None else [held]
    rows = [(t.version, t.since, t.until, " + ".join((t.actor, *t.approved_by)), t.reason) for t in tenures]
    columns = ("version", "since", "until", "by", "why")
    emit(tenures, json, lambda: table(f"History of {model}@{name}", columns, rows, empty="Nobody held it."))


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION.")],
    reason: Reason = "by hand",
    endpoint: Annotated[str | None, typer.Option(help="Default: the endpoint that serves the model.")] = None,
    alias: Annotated[
        str, typer.Option(help="The alias to move; only the champion's traffic moves with it.")
    ] = "champion",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Give a version all the traffic now, on your word; where a policy guards the alias, ask the others first."""
    from everloop.loop import promote as promote_version
    from everloop.models import ApprovalError, get_version, request_alias, set_alias
    from everloop.records import Alias, AliasRequest, Endpoint, Release

    with opened(home) as store:
        record = get_version(store, version)
        if endpoint is None:
            serving = store.records.find(Endpoint, ("model", "=", record.model), limit=1)
            endpoint = serving[0].name if serving else record.model
        done: Release | Alias | AliasRequest
        try:
            if alias == "champion":
                done = promote_version(store, endpoint, record, reason)
            else:
                done = set_alias(store, record.model, alias, record.key, reason=reason)
        except ApprovalError:
            done = request_alias(store, record.model, alias, record.key, reason)

    def draw() -> None:
        if isinstance(done, AliasRequest):
            typer.echo(f"{record.model}@{alias} is guarded; others must agree: everloop models approve {done.id}")
        elif isinstance(done, Alias):
            typer.echo(f"{done.key} is {record.key} now.")
        else:
            typer.echo(f"{record.key} takes all traffic of '{endpoint}'.")

    emit(done, json, draw)


@app.command()
def rollback(model: str, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Give the traffic back to the champion before."""
    from everloop.cli.release import take_back

    take_back(model, reason, home, json)


@app.command()
def requests(
    model: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List wishes to move guarded aliases."""
    from everloop.models import list_requests

    with opened(home) as store:
        found = [one for one in list_requests(store, model) if all_ or one.state in ("open", "approved")]
    rows = [
        (one.id, f"{one.model}@{one.alias}", one.holder, one.version, one.state, one.asked_by, one.reason)
        for one in found
    ]
    columns = ("id", "alias", "held by", "wanted", "state", "by", "why")
    emit(found, json, lambda: table("Requests", columns, rows, empty="Nobody asks for anything."))


@app.command()
def approve(
    request: Annotated[str, typer.Argument(help="The request's id, see: everloop models requests.")],
    reason: Reason = "",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Agree to a request. Not to your own. Once enough agree, promoting the version works."""
    from everloop.models import approve as agree

    with opened(home) as store:
        voted = agree(store, request, reason)
    next_step = (
        f"Now: everloop models promote {voted.version} --alias {voted.alias}" if voted.state == "approved" else ""
    )
    emit(
        voted, json, lambda: typer.echo(f"{voted.version} for {voted.model}@{voted.alias}: {voted.state}. {next_step}")
    )


@app.command()
def reject(request: str, reason: Reason = "", home: Home = None, json: AsJson = False) -> None:
    """Refuse a request, which ends it."""
    from everloop.models import reject as refuse

    with opened(home) as store:
        ended = refuse(store, request, reason)
    emit(ended, json, lambda: typer.echo(f"{ended.version} for {ended.model}@{ended.alias}: {ended.state}."))


@app.command()
def policy(
    alias: Annotated[str, typer.Argument(help="MODEL@ALIAS; MODEL alone means its champion.")],
    approvals: Annotated[int, typer.Option(help="How many others must agree; 0 lifts the guard.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Say how many others must agree before an alias moves."""
    from everloop.models import set_policy

    model, name = _alias(alias)
    with opened(home) as store:
        made = set_policy(store, model, name, approvals)
    shown = {"alias": f"{model}@{name}", "approvals": made.approvals if made else 0}
    emit(shown, json, lambda: typer.echo(f"{model}@{name} moves when {shown['approvals']} others agree."))


@app.command()
def tag(
    version: str,
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
def describe(version: str, text: str, home: Home = None, json: AsJson = False) -> None:
    """Replace a version's description, in markdown."""
    from everloop.models import describe as set_description

    with opened(home) as store:
        record = set_description(store, version, text)
    emit(record, json, lambda: typer.echo(f"{record.key} is described."))


@app.command()
def archive(version: str, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Take a version out of use: it stays readable and can be taken back."""
    from everloop.models import archive as put_away

    with opened(home) as store:
        record = put_away(store, version, reason)
    emit(record, json, lambda: typer.echo(f"{record.key} is {record.state}."))


@app.command()
def unarchive(version: str, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Take an archived version back into use."""
    from everloop.models import unarchive as take_back

    with opened(home) as store:
        record = take_back(store, version, reason)
    emit(record, json, lambda: typer.echo(f"{record.key} is {record.state}."))


def _alias(text: str) -> tuple[str, str]:
    model, _, name = text.partition("@")
    return model, name or "champion"


def _moment(text: str) -> datetime:
    from everloop.errors import UsageError

    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is no time.", help="Write it as 2026-05-03T12:00Z.") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
