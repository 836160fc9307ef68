"""`everloop endpoints`: where models answer."""

from __future__ import annotations

from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, emit, facts, opened, say, table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Where models answer, and who shares the traffic.")


@app.command()
def ls(home: Home = None, json: AsJson = False) -> None:
    """List endpoints with their routes."""
    from everloop.records import EndpointRecord

    with opened(home) as store:
        endpoints = store.records.find(EndpointRecord, order="name")
    rows = [(e.name, e.model, e.state, e.url, _routes(e.routes)) for e in endpoints]
    columns = ("endpoint", "model", "state", "address", "routes")
    emit(endpoints, json, lambda: table("Endpoints", columns, rows, empty="No endpoints yet. Try: everloop run"))


@app.command()
def show(endpoint: str, home: Home = None, json: AsJson = False) -> None:
    """Show one endpoint, its traffic and its newest releases."""
    from everloop.records import EndpointRecord, Release

    with opened(home) as store:
        record = store.records.get(EndpointRecord, endpoint)
        releases = store.records.find(Release, ("endpoint", "=", record.name), order="-created_at", limit=10)

    def draw() -> None:
        pairs = [
            ("model", record.model),
            ("state", record.state),
            ("address", record.url),
            ("routes", _routes(record.routes)),
        ]
        facts(record.name, pairs)
        rows = [(r.candidate, r.previous, r.state, r.percent, r.created_at) for r in releases]
        table("Releases", ("candidate", "before", "state", "percent", "began"), rows, empty="  no releases")

    emit({"endpoint": record, "releases": releases}, json, draw)


@app.command("set")
def set_(
    endpoint: str,
    options: Annotated[
        list[str],
        typer.Argument(help="NAME=VALUE; NAME= removes. See docs/serving.md for all."),
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Change an endpoint's settings: limits, rates, what is done about strange rows, what the log keeps."""
    from everloop.serving.endpoint_state import set_options

    changes = {name: value or None for name, _, value in (option.partition("=") for option in options)}
    with opened(home) as store:
        found = set_options(store, endpoint, changes)
    emit(found, json, lambda: facts(endpoint, list(found.items())))


@app.command()
def route(
    endpoint: str,
    routes: Annotated[
        list[str],
        typer.Argument(help="MODEL@VERSION=PERCENT, the champion first; MODEL@VERSION=shadow or shadow:PERCENT."),
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Share an endpoint's traffic anew: weights, canaries, shadows. A running endpoint follows at once."""
    from everloop.serving.endpoint_state import routes_of, set_routes

    with opened(home) as store:
        record = set_routes(store, endpoint, routes_of(routes))
    emit(record, json, lambda: say(f"{record.name}: {_routes(record.routes)}"))


@app.command()
def token(
    endpoint: str,
    name: Annotated[str, typer.Option(help="What to call it, to take it back later.")] = "default",
    remove: Annotated[bool, typer.Option(help="Take the token of this name back.")] = False,
    tester: Annotated[
        bool, typer.Option(help="Its holder may choose the version, by the header X-Everloop-Version.")
    ] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Make a token that clients must send as `Authorization: Bearer …`; it is shown once."""
    from everloop.serving.access.endpoint_tokens import add_token, remove_token

    with opened(home) as store:
        if remove:
            remove_token(store, endpoint, name)
            made = None
        else:
            made = add_token(store, endpoint, name, tester=tester)
    told = {"endpoint": endpoint, "name": name, "token": made}
    emit(told, json, lambda: say(made or f"The token '{name}' of '{endpoint}' is not taken any more."))


def _routes(routes: tuple[object, ...]) -> str:
    from everloop.records import Route

    return ", ".join(f"{r.version} {r.percent:g}% {r.role}" for r in routes if isinstance(r, Route))
