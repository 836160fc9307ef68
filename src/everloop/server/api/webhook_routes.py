"""Webhooks over HTTP, an admin's affair.

GET    /api/v1/webhooks            POST: add one {name, url, verbs?, secret?}
POST   /api/v1/webhooks/NAME/test  send a message now
DELETE /api/v1/webhooks/NAME        the id in place of the name for those of MLflow's API
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post

from everloop.records import Webhook
from everloop.server.request_context import NEEDS, Sent, store_of
from everloop.server.request_values import Name, Secret, Url
from everloop.server.server_options import ServerOptions
from everloop.server.webhooks.webhook_delivery import Webhooks

Asked = Request[Any, Any, Any]

MOST_VERBS = 200
_ADMIN = {NEEDS: "admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownWebhook:
    id: str
    name: str
    url: str
    verbs: tuple[str, ...]
    form: str
    """Whose words its messages are in: `everloop`, or `mlflow` where MLflow's API made it."""
    active: bool
    failures: int
    secret: str | None = None
    """Only in the answer to the request that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook:
    name: Name
    url: Url
    verbs: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MOST_VERBS)] = ()
    secret: Secret | None = None


def routes(options: ServerOptions) -> list[Any]:
    """The routes of a server with these options."""

    @get("/api/v1/webhooks", sync_to_thread=True, opt=_ADMIN)
    def webhooks(request: Asked) -> list[ShownWebhook]:
        """Every webhook of the project, without its secret."""
        return [_shown(hook) for hook in Webhooks(store_of(request), options).list()]

    @post("/api/v1/webhooks", sync_to_thread=True, opt=_ADMIN)
    def add_webhook(request: Asked, data: Sent[NewWebhook]) -> ShownWebhook:
        """Add a webhook; its secret is given back this once."""
        hook = Webhooks(store_of(request), options).add(data.name, data.url, data.verbs, data.secret)
        return _shown(hook, hook.secret)

    @post("/api/v1/webhooks/{name:str}/test", sync_to_thread=True, opt=_ADMIN)
    def test_webhook(request: Asked) -> dict[str, int]:
        """Send a message now and say what came back."""
        return {"status": Webhooks(store_of(request), options).test(request.path_params["name"])}

    @delete("/api/v1/webhooks/{name:str}", sync_to_thread=True, opt=_ADMIN)
    def remove_webhook(request: Asked) -> None:
        """Remove a webhook."""
        Webhooks(store_of(request), options).remove(request.path_params["name"])

    return [webhooks, add_webhook, test_webhook, remove_webhook]


def _shown(hook: Webhook, secret: str | None = None) -> ShownWebhook:
    return ShownWebhook(
        id=hook.id,
        name=hook.name,
        url=hook.url,
        verbs=hook.verbs,
        form=hook.form,
        active=hook.active,
        failures=hook.failures,
        secret=secret,
    )
