"""`everloop webhooks`: outside addresses that a server tells of what happens to models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, Home, emit, messages, opened, say, table

if TYPE_CHECKING:
    from everloop.server.webhooks.webhook_delivery import Webhooks
    from everloop.stores import Store

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Addresses that the server tells of what happens to models."
)

Networks = Annotated[
    list[str] | None,
    typer.Option("--allow-webhook-network", help="A private network that may be reached, such as 10.1.0.0/16."),
]
SHOWN = ("id", "name", "url", "verbs", "form", "active", "failures")


@app.command()
def add(
    name: str,
    url: str,
    on: Annotated[
        list[str] | None,
        typer.Option(help="Only this kind of event, as alias.alias_set; repeatable. Default: all about models."),
    ] = None,
    allow_webhook_network: Networks = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Add a webhook. Its secret is printed once; by it the receiver checks the signature of what comes."""
    with opened(home) as store:
        hook = _hooks(store, allow_webhook_network).add(name, url, on or ())
    told = {field: getattr(hook, field) for field in SHOWN}

    def draw() -> None:
        say(hook.secret)
        messages().print("Keep it: it is shown this once. Events are sent while everloop server or everloop up runs.")

    emit({**told, "secret": hook.secret}, json, draw)


@app.command()
def ls(home: Home = None, json: AsJson = False) -> None:
    """List webhooks. Those of MLflow's clients, too."""
    with opened(home) as store:
        found = _hooks(store).list()
    rows = [
        (h.name, h.url, ", ".join(h.verbs) or "all about models", h.form, "on" if h.active else "off", h.failures)
        for h in found
    ]
    columns = ("name", "address", "told of", "words", "state", "given up")
    shown = [{field: getattr(hook, field) for field in SHOWN} for hook in found]
    empty = "No webhooks. Add one: everloop webhooks add NAME URL --on alias.alias_set"
    emit(shown, json, lambda: table("Webhooks", columns, rows, empty=empty, wrap=("address", "told of")))


@app.command("test")
def try_(name: str, allow_webhook_network: Networks = None, home: Home = None, json: AsJson = False) -> None:
    """Send a message that says nothing. Tells the status that came back."""
    with opened(home) as store:
        status = _hooks(store, allow_webhook_network).test(name)
    emit({"name": name, "status": status}, json, lambda: say(f"'{name}' answered {status}."))


@app.command()
def renew(
    name: str,
    url: Annotated[
        str | None, typer.Option(help="Another URL. Needed where the key that sealed the old one is lost.")
    ] = None,
    allow_webhook_network: Networks = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Give a webhook a new secret, which is printed once."""
    with opened(home) as store:
        hook = _hooks(store, allow_webhook_network).renew(name, url)

    def draw() -> None:
        say(hook.secret)
        messages().print("Keep it: it is shown this once. The old secret signs nothing any more.")

    emit({**{field: getattr(hook, field) for field in SHOWN}, "secret": hook.secret}, json, draw)


@app.command()
def rekey(home: Home = None, json: AsJson = False) -> None:
    """Encrypt the secrets of all webhooks, of every project, with a new key. The secrets themselves stay.

    The new key goes into the home's file secret.key. Where EVERLOOP_SECRET_KEY or EVERLOOP_SECRET_KEY_FILE name
    keys, their first is used: put the new one before the old, run this, then remove the old one.
    """
    with opened(home) as store:
        count = _hooks(store).secrets.renew_key()
    emit(
        {"webhooks": count},
        json,
        lambda: say(f"{count} webhook{'s' if count != 1 else ''} sealed with the new key."),
    )


@app.command()
def rm(name: str, home: Home = None, json: AsJson = False) -> None:
    """Remove a webhook, by its name or, of MLflow's, its id."""
    with opened(home) as store:
        _hooks(store).remove(name)
    emit({"removed": name}, json, lambda: say(f"'{name}' is told nothing any more."))


def _hooks(store: Store, networks: list[str] | None = None) -> Webhooks:
    from everloop.server.server_options import ServerOptions
    from everloop.server.webhooks.webhook_delivery import Webhooks

    return Webhooks(store, ServerOptions(webhook_networks=tuple(networks or ())))
