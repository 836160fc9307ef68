"""Routes for MLflow's webhooks: URLs that receive MLflow's events about models, versions, tags and aliases.

They are delivered and protected like everloop's own webhooks; see `server/webhooks/webhook_delivery.py`. Only admins
may change them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from everloop.errors import NotFoundError, UnavailableError, UsageError
from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, missing, ms_of, not_found
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.page_tokens import Page, paged
from everloop.records import Webhook
from everloop.server.webhooks.ssrf_guard import check_url
from everloop.server.webhooks.webhook_delivery import Webhooks
from everloop.server.webhooks.webhook_payloads import EXAMPLES

USUAL, MOST = 100, 1000
_NAME = re.compile(r"(?=.{1,63}$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_STATUS = {"ACTIVE": True, "DISABLED": False}
UNSHOWN = "The body of the response is not shown, as the URL may belong to a third party."


def create_webhook(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    name, url = _name(fields.text("name")), _url(fields.text("url"))
    verbs = _verbs(fields)
    if not verbs:
        raise missing("events")
    hook = _without_retry(
        lambda: _hooks(context).add_for_mlflow(
            name,
            url,
            verbs,
            description=fields.text("description", required=False),
            secret=fields.text("secret", required=False),
            active=_active(fields, usual=True),
        )
    )
    return {"webhook": _shown(hook)}


def list_webhooks(context: HandlerContext) -> Mapping[str, Any]:
    most = context.fields.integer("max_results", USUAL) or USUAL
    if not 1 <= most <= MOST:
        raise MlflowError("max_results must be between 1 and 1000.")
    page = Page.of(context.fields.text("page_token", required=False))
    found = [hook for hook in _hooks(context).list() if hook.form == "mlflow"]
    found.sort(key=lambda hook: hook.id, reverse=True)
    return paged(found, page, most, _shown, "webhooks")


def get_webhook(context: HandlerContext) -> Mapping[str, Any]:
    return {"webhook": _shown(_requested_webhook(context))}


def update_webhook(context: HandlerContext) -> Mapping[str, Any]:
    fields, changes = context.fields, dict[str, Any]()
    hook = _requested_webhook(context)
    if name := fields.text("name", required=False):
        changes["name"] = _name(name)
    if url := fields.text("url", required=False):
        changes["url"] = _url(url)
    if verbs := _verbs(fields):
        changes["verbs"] = verbs
    for field in ("description", "secret"):
        if (text := fields.optional_text(field)) is not None:
            changes[field] = text
    if fields.has("status"):
        changes["active"] = _active(fields, usual=hook.active)
    return {"webhook": _shown(_without_retry(lambda: _hooks(context).change(hook.id, **changes)))}


def delete_webhook(context: HandlerContext) -> Mapping[str, Any]:
    _hooks(context).remove(_requested_webhook(context).id)
    return {}


def try_webhook(context: HandlerContext) -> Mapping[str, Any]:
    """Send a test message. Only the status of the response is returned, as the URL may belong to a third party."""
    hook = _requested_webhook(context)
    event = context.fields.raw("event")
    if event is not None and not isinstance(event, dict):
        raise MlflowError("The event of a webhook must be an object with an entity and an action.")
    verb = _verb(Fields(event)) if event else hook.verbs[0]
    try:
        status = _hooks(context).test(hook.id, verb)
    except (UnavailableError, UsageError) as error:
        return {"result": {"success": False, "error_message": f"Failed to test webhook: {error}"}}
    return {"result": {"success": status < 400, "response_status": status, "response_body": UNSHOWN}}


def _hooks(context: HandlerContext) -> Webhooks:
    return Webhooks(context.store, context.options)


def _requested_webhook(context: HandlerContext) -> Webhook:
    name = context.path["webhook_id"]
    try:
        hook = _hooks(context).get(name)
    except NotFoundError:
        hook = None
    if hook is None or hook.form != "mlflow":
        raise not_found(f"Webhook with ID {name} not found.")
    return hook


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise MlflowError(
            f"Webhook name {name!r} is invalid. It must start and end with a letter or digit, be less than 63"
            " characters long, and contain only letters, digits, dots (.), underscores (_), and hyphens (-)."
        )
    return name


def _url(url: str) -> str:
    if not url.strip():
        raise MlflowError(f"Webhook URL cannot be empty or just whitespace: {url!r}")
    scheme, separator, _ = url.partition(":")
    if separator and scheme.lower() not in ("http", "https"):
        raise MlflowError(f"Invalid webhook URL scheme: {scheme[:40]!r}. Allowed schemes are: https, http.")
    check_url(url)
    return url


def _verbs(fields: Fields) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_verb(event) for event in fields.objects("events")))


def _verb(event: Fields) -> str:
    entity, action = event.text("entity").lower(), event.text("action").lower()
    verb = f"{entity}.{action}"
    if verb not in EXAMPLES:
        actions = sorted(known.partition(".")[2] for known in EXAMPLES if known.startswith(f"{entity}."))
        raise MlflowError(f"Invalid action '{action}' for entity '{entity}'. Valid actions are: {actions}")
    return verb


def _active(fields: Fields, *, usual: bool) -> bool:
    status = fields.text("status", required=False)
    if not status:
        return usual
    if status not in _STATUS:
        raise MlflowError(f"Invalid webhook status: {status[:40]!r}. It must be ACTIVE or DISABLED.")
    return _STATUS[status]


def _without_retry(save: Callable[[], Webhook]) -> Webhook:
    try:
        return save()
    except UnavailableError as error:
        # Not MLflow's code for "unavailable", after which clients retry: the host name will not resolve a second later.
        raise MlflowError(str(error)) from error


def _shown(hook: Webhook) -> dict[str, Any]:
    shown: dict[str, Any] = {"webhook_id": hook.id, "name": hook.name}
    if hook.description:
        shown["description"] = hook.description
    events = [verb.upper().partition(".") for verb in hook.verbs]
    return {
        **shown,
        "url": hook.url,
        "events": [{"entity": entity, "action": action} for entity, _, action in events],
        "status": "ACTIVE" if hook.active else "DISABLED",
        "creation_timestamp": ms_of(hook.created_at),
        "last_updated_timestamp": ms_of(hook.updated_at or hook.created_at),
    }


_ONE = "2.0/mlflow/webhooks/{webhook_id}"
ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/webhooks", create_webhook, "admin", slow=True),
    HandlerRoute("GET", "2.0/mlflow/webhooks", list_webhooks, "admin"),
    HandlerRoute("GET", _ONE, get_webhook, "admin"),
    HandlerRoute("PATCH", _ONE, update_webhook, "admin", slow=True),
    HandlerRoute("DELETE", _ONE, delete_webhook, "admin"),
    HandlerRoute("POST", f"{_ONE}/test", try_webhook, "admin", slow=True),
)
