"""HTTP routes for webhooks. All of them need the role `admin`.

GET    /api/v1/webhooks            list; POST adds one {name, url, verbs?, secret?}
POST   /api/v1/webhooks/NAME/test  send a test message now
DELETE /api/v1/webhooks/NAME

Webhooks of MLflow's API are addressed by their id instead of a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import delete, get, post

from everloop.records import Webhook
from everloop.server.request_context import NEEDS, ApiRequest, JsonBody, store_of
from everloop.server.request_values import Name, Secret, Url
from everloop.server.server_options import ServerOptions
from everloop.server.webhooks.webhook_delivery import Webhooks

MOST_VERBS = 200
_ADMIN = {NEEDS: "admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownWebhook:
    id: str
    name: str
    url: str
    verbs: tuple[str, ...]
    form: str
    """The format of its messages: `everloop`, or `mlflow` if it was created over MLflow's API."""
    active: bool
    failures: int
    secret: str | None = None
    """Only in the response to the request that created the webhook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook:
    name: Name
    url: Url
    verbs: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MOST_VERBS)] = ()
    secret: Secret | None = None


def routes(options: ServerOptions) -> list[Any]:
    """Return the routes of a server with these options."""

    @get("/api/v1/webhooks", sync_to_thread=True, opt=_ADMIN)
    def webhooks(request: ApiRequest) -> list[ShownWebhook]:
        """List the project's webhooks, without their secrets."""
        return [_shown(hook) for hook in Webhooks(store_of(request), options).list()]

    @post("/api/v1/webhooks", sync_to_thread=True, opt=_ADMIN)
    def add_webhook(request: ApiRequest, data: JsonBody[NewWebhook]) -> ShownWebhook:
        """Add a webhook. Its secret is returned this once."""
        hook = Webhooks(store_of(request), options).add(data.name, data.url, data.verbs, data.secret)
        return _shown(hook, hook.secret)

    @post("/api/v1/webhooks/{name:str}/test", sync_to_thread=True, opt=_ADMIN)
    def test_webhook(request: ApiRequest) -> dict[str, int]:
        """Send a test message now and return the status of the response."""
        return {"status": Webhooks(store_of(request), options).test(request.path_params["name"])}

    @delete("/api/v1/webhooks/{name:str}", sync_to_thread=True, opt=_ADMIN)
    def remove_webhook(request: ApiRequest) -> None:
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
