"""Messages of webhooks, in everloop's format or in that of MLflow's webhooks.

everloop's format has one message for each event, with these headers:

    X-Everloop-Event      kind.verb, such as alias.alias_set
    X-Everloop-Delivery   project and number of the event; the same if a message is sent twice
    X-Everloop-Timestamp  time of sending, in seconds since 1970
    X-Everloop-Signature  sha256= and the HMAC-SHA256, keyed with the webhook's secret, over timestamp, a dot, and body

MLflow's messages have `entity`, `action`, `timestamp` and `data`. An event may become none, one or several of them:

    X-MLflow-Delivery-Id  the same if a message is sent twice
    X-MLflow-Timestamp    time of sending, in seconds since 1970
    X-MLflow-Signature    v1, and the HMAC-SHA256 in base64 over delivery id, timestamp and body, joined by dots

Source: mlflow/webhooks/delivery.py and types.py of MLflow 3.17.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.records import ModelVersion, RegisteredModel
from everloop.version import VERSION

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.records import Event, Webhook
    from everloop.stores import Store

ONLY_ON_REQUEST = ("incident.joined",)
"""Events that only webhooks that name them receive: an incident may be joined by new findings in every window."""
PROMPT_TAG = "mlflow.prompt.is_prompt"
PROMPT_TEXT = "mlflow.prompt.text"
_PROMPT_TYPE = "_mlflow_prompt_type"
MLFLOW_KINDS = ("registered_model", "model_version", "alias")
"""The kinds of events that may become MLflow's messages."""
_TAGS = {"example_key": "example_value"}
_TAG = {"key": "example_key", "value": "example_value"}
_MODEL, _PROMPT = {"name": "example_model"}, {"name": "example_prompt"}
_VERSION, _PROMPT_VERSION = {**_MODEL, "version": "1"}, {**_PROMPT, "version": "1"}
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "registered_model.created": {**_MODEL, "tags": _TAGS, "description": "An example registered model"},
    "model_version.created": {
        **_VERSION,
        "source": "models:/123",
        "run_id": "abcd1234abcd5678",
        "tags": _TAGS,
        "description": "An example model version",
    },
    "model_version_tag.set": {**_VERSION, **_TAG},
    "model_version_tag.deleted": {**_VERSION, "key": "example_key"},
    "model_version_alias.created": {**_VERSION, "alias": "example_alias"},
    "model_version_alias.deleted": {**_MODEL, "alias": "example_alias"},
    "prompt.created": {**_PROMPT, "tags": _TAGS, "description": "An example prompt"},
    "prompt_version.created": {
        **_PROMPT_VERSION,
        "template": "Hello {{name}}!",
        "tags": _TAGS,
        "description": "An example prompt version",
    },
    "prompt_tag.set": {**_PROMPT, **_TAG},
    "prompt_tag.deleted": {**_PROMPT, "key": "example_key"},
    "prompt_version_tag.set": {**_PROMPT_VERSION, **_TAG},
    "prompt_version_tag.deleted": {**_PROMPT_VERSION, "key": "example_key"},
    "prompt_alias.created": {**_PROMPT_VERSION, "alias": "example_alias"},
    "prompt_alias.deleted": {**_PROMPT, "alias": "example_alias"},
}
"""MLflow's events, each with the data of the test message that MLflow's own server sends."""

_Payload = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class WebhookMessage:
    """One body to send; its headers depend on when it is sent."""

    name: str
    body: bytes
    delivery: str

    def headers(self, hook: Webhook, now: datetime) -> dict[str, str]:
        timestamp = str(int(now.timestamp()))
        common = {"Content-Type": "application/json", "User-Agent": f"everloop/{VERSION}"}
        if hook.form == "everloop":
            return {
                **common,
                "X-Everloop-Event": self.name,
                "X-Everloop-Delivery": self.delivery,
                "X-Everloop-Timestamp": timestamp,
                "X-Everloop-Signature": sign(hook.secret, timestamp, self.body),
            }
        headers = {**common, "X-MLflow-Delivery-Id": self.delivery, "X-MLflow-Timestamp": timestamp}
        if hook.secret:
            headers["X-MLflow-Signature"] = sign_as_mlflow(hook.secret, self.delivery, timestamp, self.body)
        return headers


def messages_of(store: Store, hook: Webhook, event: Event) -> list[WebhookMessage]:
    """Return the messages of an event for a webhook; none if the webhook does not subscribe to it."""
    if hook.form == "everloop":
        name = f"{event.kind}.{event.verb}"
        if name not in hook.verbs if hook.verbs else name in ONLY_ON_REQUEST:
            return []
        body = msgspec.json.encode({"project": hook.for_project, "event": event})
        return [WebhookMessage(name, body, f"{hook.for_project}-{event.seq}")]
    return [
        _message(name, data, event.at, f"{hook.id}-{event.seq}-{number}")
        for number, (name, data) in enumerate(_mlflow_payloads(store, event))
        if name in hook.verbs
    ]


def test_message(hook: Webhook, event: Event, name: str) -> WebhookMessage:
    """Return a test message."""
    if hook.form == "everloop":
        body = msgspec.json.encode({"project": hook.for_project, "event": event})
        return WebhookMessage(f"{event.kind}.{event.verb}", body, f"{hook.for_project}-{event.seq}")
    return _message(name, EXAMPLES[name], event.at, str(uuid.uuid4()))


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Return the value of X-Everloop-Signature."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"sha256={digest}"


def sign_as_mlflow(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """Return the value of X-MLflow-Signature."""
    signed = f"{delivery}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()


def is_prompt(tags: Mapping[str, str]) -> bool:
    """Whether a model with these tags is a prompt, which MLflow stores as a registered model."""
    return tags.get(PROMPT_TAG, "").lower() == "true"


def _message(name: str, data: Mapping[str, Any], at: datetime, delivery: str) -> WebhookMessage:
    entity, _, action = name.partition(".")
    body = msgspec.json.encode({"entity": entity, "action": action, "timestamp": at.isoformat(), "data": data})
    return WebhookMessage(name, body, str(uuid.uuid5(uuid.NAMESPACE_OID, delivery)))


def _mlflow_payloads(store: Store, event: Event) -> Iterator[_Payload]:
    """Yield name and data of each of MLflow's messages for an event."""
    match (event.kind, event.verb):
        case ("registered_model", "created"):
            yield from _model_created(store, event)
        case ("registered_model", "tagged"):
            if _is_prompt_model(store, event.key):
                yield from _tagged("prompt_tag", {"name": event.key}, event)
        case ("model_version", "registered"):
            yield from _version_created(store, event)
        case ("model_version", "tagged"):
            model, _, number = event.key.rpartition("@")
            entity = "prompt_version_tag" if _is_prompt_model(store, model) else "model_version_tag"
            yield from _tagged(entity, {"name": model, "version": number}, event)
        case ("alias", "alias_set" | "alias_removed"):
            model, _, alias = event.key.rpartition("@")
            entity = "prompt_alias" if _is_prompt_model(store, model) else "model_version_alias"
            data = {"name": model, "alias": alias}
            if event.verb == "alias_removed":
                yield f"{entity}.deleted", data
            else:
                number = str(event.data.get("version", "")).rpartition("@")[2]
                yield f"{entity}.created", {**data, "version": number}


def _model_created(store: Store, event: Event) -> Iterator[_Payload]:
    for _, model in store.records.history(RegisteredModel, event.subject)[:1]:
        hidden = {PROMPT_TAG, _PROMPT_TYPE} if is_prompt(model.tags) else set()
        tags = {key: value for key, value in model.tags.items() if key not in hidden}
        name = "prompt.created" if hidden else "registered_model.created"
        yield name, {"name": model.name, "tags": tags, "description": model.description}


def _version_created(store: Store, event: Event) -> Iterator[_Payload]:
    for _, version in store.records.history(ModelVersion, event.subject)[:1]:
        common = {"name": version.model, "version": str(version.version)}
        description = version.description or None
        if is_prompt(version.tags):
            hidden = {PROMPT_TAG, PROMPT_TEXT, _PROMPT_TYPE}
            tags = {key: value for key, value in version.tags.items() if key not in hidden}
            more = {"template": version.tags.get(PROMPT_TEXT), "tags": tags, "description": description}
            yield "prompt_version.created", {**common, **more}
        else:
            source = version.source if version.source is not None else f"everloop:/{version.package}"
            run = version.run.replace("-", "") if version.run else None
            more = {"source": source, "run_id": run, "tags": version.tags, "description": description}
            yield "model_version.created", {**common, **more}


def _tagged(entity: str, names: Mapping[str, str], event: Event) -> Iterator[_Payload]:
    tags = event.data.get("tags")
    for key, value in tags.items() if isinstance(tags, dict) else ():
        if value is None:
            yield f"{entity}.deleted", {**names, "key": key}
        else:
            yield f"{entity}.set", {**names, "key": key, "value": value}


def _is_prompt_model(store: Store, model: str) -> bool:
    return any(is_prompt(found.tags) for found in store.records.find(RegisteredModel, ("key", "=", model), limit=1))
