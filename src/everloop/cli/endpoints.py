"""`everloop endpoints`: endpoints, their traffic split, settings and tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from everloop.cli.output import AsJson, EndpointName, Home, emit, facts, opened, say, table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Manage endpoints: traffic, settings and tokens.")


@app.command()
def ls(home: Home = None, json: AsJson = False) -> None:
    """List endpoints with their traffic split."""
    from everloop.records import EndpointRecord

    with opened(home) as store:
        endpoints = store.records.find(EndpointRecord, order="name")
    rows = [(e.name, e.model, e.state, e.url, _routes(e.routes)) for e in endpoints]
    columns = ("endpoint", "model", "state", "url", "routes")
    emit(endpoints, json, lambda: table("Endpoints", columns, rows, empty="No endpoints yet. Start with: everloop run"))


@app.command()
def show(endpoint: EndpointName, home: Home = None, json: AsJson = False) -> None:
    """Show an endpoint: its traffic split and its newest releases."""
    from everloop.records import EndpointRecord, Release

    with opened(home) as store:
        record = store.records.get(EndpointRecord, endpoint)
        releases = store.records.find(Release, ("endpoint", "=", record.name), order="-created_at", limit=10)

    def draw() -> None:
        pairs = [
            ("model", record.model),
            ("state", record.state),
            ("url", record.url),
            ("routes", _routes(record.routes)),
        ]
        facts(record.name, pairs)
        rows = [(r.candidate, r.previous, r.state, f"{r.percent:g}%", r.created_at) for r in releases]
        table("Releases", ("candidate", "previous", "state", "traffic", "started"), rows, empty="  no releases")

    emit({"endpoint": record, "releases": releases}, json, draw)


@app.command("set")
def set_(
    endpoint: EndpointName,
    options: Annotated[
        list[str],
        typer.Argument(help="NAME=VALUE to set, NAME= to reset. docs/serving.md lists all settings."),
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Change an endpoint's settings. They cover limits, rates, handling of unusual rows, and logging."""
    from everloop.errors import UsageError
    from everloop.serving.endpoint_state import set_options

    changes: dict[str, str | None] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise UsageError(
                f"A setting is NAME=VALUE, not '{option}'.", help="Write NAME=VALUE, or NAME= to reset a setting."
            )
        changes[name] = value or None
    with opened(home) as store:
        found = set_options(store, endpoint, changes)
    emit(found, json, lambda: facts(endpoint, list(found.items())))


@app.command()
def route(
    endpoint: EndpointName,
    routes: Annotated[
        list[str],
        typer.Argument(help="MODEL@VERSION=PERCENT, champion first; or MODEL@VERSION=shadow, =shadow:PERCENT."),
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Set an endpoint's traffic split: weights, canaries, shadows. A running endpoint follows at once."""
    from everloop.serving.endpoint_state import routes_of, set_routes

    with opened(home) as store:
        record = set_routes(store, endpoint, routes_of(routes))
    emit(record, json, lambda: say(f"{record.name}: {_routes(record.routes)}"))


@app.command()
def token(
    endpoint: EndpointName,
    name: Annotated[str, typer.Option(help="Name of the token, needed to remove it later.")] = "default",
    remove: Annotated[bool, typer.Option(help="Remove the token with this name.")] = False,
    tester: Annotated[
        bool, typer.Option(help="Allow its holder to choose the version with the header X-Everloop-Version.")
    ] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Create a token for an endpoint.

    It is printed once; clients must send it as `Authorization: Bearer …`.
    """
    from everloop.serving.access.endpoint_tokens import add_token, remove_token

    with opened(home) as store:
        if remove:
            remove_token(store, endpoint, name)
            token = None
        else:
            token = add_token(store, endpoint, name, tester=tester)
    result = {"endpoint": endpoint, "name": name, "token": token}
    emit(result, json, lambda: say(token or f"Removed the token '{name}' of '{endpoint}'."))


def _routes(routes: tuple[object, ...]) -> str:
    from everloop.records import Route

    return ", ".join(f"{r.version} {r.percent:g}% {r.role}" for r in routes if isinstance(r, Route))
