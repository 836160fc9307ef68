"""`everloop webhooks`: URLs that receive events about models from the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, Home, count, emit, messages, opened, say, table

if TYPE_CHECKING:
    from everloop.server.webhooks.webhook_delivery import Webhooks
    from everloop.stores import Store

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Manage webhooks: URLs that receive events about models."
)

Name = Annotated[str, typer.Argument(help="Name of the webhook.")]
Networks = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-webhook-network", help="Private network that the URL may be in, such as 10.1.0.0/16; repeatable."
    ),
]
SHOWN = ("id", "name", "url", "verbs", "form", "active", "failures")


@app.command()
def add(
    name: Name,
    url: Annotated[str, typer.Argument(help="URL that receives the events.")],
    on: Annotated[
        list[str] | None,
        typer.Option(help="Kind of event to send, such as alias.alias_set; repeatable. Default: all about models."),
    ] = None,
    allow_webhook_network: Networks = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Add a webhook.

    Its secret is printed once; the receiver uses it to verify the signature of each event.
    """
    with opened(home) as store:
        hook = _hooks(store, allow_webhook_network).add(name, url, on or ())
    result = {field: getattr(hook, field) for field in SHOWN}

    def draw() -> None:
        say(hook.secret)
        messages().print(
            "Save the secret: it is not shown again. Events are sent while `everloop server` or `everloop up` runs."
        )

    emit({**result, "secret": hook.secret}, json, draw)


@app.command()
def ls(home: Home = None, json: AsJson = False) -> None:
    """List webhooks, including those that MLflow's clients created."""
    with opened(home) as store:
        found = _hooks(store).list()
    rows = [
        (h.name, h.url, ", ".join(h.verbs) or "all about models", h.form, "on" if h.active else "off", h.failures)
        for h in found
    ]
    columns = ("name", "url", "events", "format", "state", "failures")
    result = [{field: getattr(hook, field) for field in SHOWN} for hook in found]
    empty = "No webhooks yet. Add one with: everloop webhooks add NAME URL --on alias.alias_set"
    emit(result, json, lambda: table("Webhooks", columns, rows, empty=empty, wrap=("url", "events")))


@app.command("test")
def try_(name: Name, allow_webhook_network: Networks = None, home: Home = None, json: AsJson = False) -> None:
    """Send a test event to a webhook. Prints the HTTP status of the response."""
    with opened(home) as store:
        status = _hooks(store, allow_webhook_network).test(name)
    emit({"name": name, "status": status}, json, lambda: say(f"'{name}' responded with status {status}."))


@app.command()
def renew(
    name: Name,
    url: Annotated[
        str | None,
        typer.Option(help="New URL. Required if the key that encrypted the old one is lost. Default: unchanged."),
    ] = None,
    allow_webhook_network: Networks = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Renew the secret of a webhook. The new secret is printed once."""
    with opened(home) as store:
        hook = _hooks(store, allow_webhook_network).renew(name, url)

    def draw() -> None:
        say(hook.secret)
        messages().print("Save the secret: it is not shown again. The old secret is no longer used.")

    emit({**{field: getattr(hook, field) for field in SHOWN}, "secret": hook.secret}, json, draw)


@app.command()
def rekey(home: Home = None, json: AsJson = False) -> None:
    """Re-encrypt the secrets of all webhooks with a new key. The secrets themselves do not change.

    The new key is written to secret.key in the store folder. If EVERLOOP_SECRET_KEY or EVERLOOP_SECRET_KEY_FILE lists
    keys, the first of them is used: put the new key before the old one, run this command, then remove the old one.
    """
    with opened(home) as store:
        number = _hooks(store).secrets.renew_key()
    message = f"Re-encrypted the secrets of {count(number, 'webhook')} with the new key."
    emit({"webhooks": number}, json, lambda: say(message))


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="Name of the webhook, or the id of one that an MLflow client created.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Remove a webhook."""
    with opened(home) as store:
        _hooks(store).remove(name)
    emit({"removed": name}, json, lambda: say(f"Removed the webhook '{name}'."))


def _hooks(store: Store, networks: list[str] | None = None) -> Webhooks:
    from everloop.server.server_options import ServerOptions
    from everloop.server.webhooks.webhook_delivery import Webhooks

    return Webhooks(store, ServerOptions(webhook_networks=tuple(networks or ())))
