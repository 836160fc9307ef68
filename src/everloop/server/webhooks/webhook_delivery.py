"""Webhooks: storing them, and delivering events to them.

`webhook_payloads.py` builds the messages. A message is delivered if the response is 2xx. Otherwise it is sent again
after 1, 5, 30 and 120 seconds, then given up. Each webhook gets its events in order, and no webhook waits for another.
The position of each webhook is stored, so after a restart only undelivered messages are sent. If the process is killed
between a response and storing the position, that one message is sent twice, with the same delivery id.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from everloop.errors import (
    AlreadyExistsError,
    ConflictError,
    EverloopError,
    NotFoundError,
    StoreError,
    UnavailableError,
    UsageError,
)
from everloop.records import Event, Webhook
from everloop.server.access.users import PROJECT
from everloop.server.webhooks.ssrf_guard import TOTAL_S, post, resolve
from everloop.server.webhooks.webhook_payloads import EXAMPLES, MLFLOW_KINDS, WebhookMessage, messages_of, test_message
from everloop.server.webhooks.webhook_secrets import WebhookSecrets
from everloop.stores.clock import new_id

if TYPE_CHECKING:
    from everloop.server.server_options import ServerOptions
    from everloop.stores import Store

_log = logging.getLogger("everloop.server")

POLL_EVERY_S = 0.5
RETRY_AFTER_S = (1.0, 5.0, 30.0, 120.0)
KINDS = ("alias", "alias_request", "incident", "model_version", "release")
"""The kinds of events that a webhook without verbs receives, except those in `webhook_payloads.ONLY_ON_REQUEST`."""
NO_KEY_S = 60.0
"""How long to wait for the key of a webhook's secret before trying again."""
AT_ONCE = 8
"""Most webhooks that are sent to at the same time."""
MOST = 50
MOST_VERBS = 100

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERB = re.compile(r"[a-z_]{1,40}\.[a-z_]{1,40}")


@dataclass
class _Attempts:
    """How often sending a webhook's next message has failed, and when it may be sent again."""

    seq: int
    failed: int = 0
    not_before: float = 0.0


class Webhooks:
    """The webhooks of one project. They are stored where routes that read records cannot reach them."""

    def __init__(self, store: Store, options: ServerOptions) -> None:
        self.store = store
        self.options = options
        self.records = store.records.for_project(PROJECT)
        self.secrets = WebhookSecrets(store, self.records)
        self._warned = False

    def list(self) -> Sequence[Webhook]:
        """List all webhooks, without their secrets."""
        return [self.secrets.shown(hook) for hook in self.stored()]

    def get(self, name: str) -> Webhook:
        """Return the webhook with this name or id, without its secret.

        Raises:
            NotFoundError: there is no such webhook.
        """
        return self.secrets.shown(self.find_stored(name))

    def stored(self) -> Sequence[Webhook]:
        """Return all webhooks as they are stored, with secret and URL sealed."""
        found = self.records.find(Webhook, ("for_project", "=", self.store.project), order="name")
        if all(hook.sealed_url for hook in found):
            return found
        try:
            self.secrets.seal_all()
        except (StoreError, UnavailableError, ConflictError) as error:
            # For example in a read-only home. The next process that can write will seal them.
            if not self._warned:
                self._warned = True
                _log.warning("Secrets of webhooks are stored in clear text and cannot be sealed now: %s", error)
            return found
        return self.records.find(Webhook, ("for_project", "=", self.store.project), order="name")

    def find_stored(self, name: str) -> Webhook:
        """Return one of `stored`, by its name or id.

        Raises:
            NotFoundError: there is no such webhook.
        """
        for hook in self.stored():
            if name in (hook.key, hook.id):
                return hook
        raise NotFoundError(f"There is no webhook '{name}'.", help="List the webhooks: everloop webhooks ls")

    def add(self, name: str, url: str, verbs: Sequence[str] = (), secret: str | None = None) -> Webhook:
        """Add a webhook, which receives events from now on. Only the returned record has the secret in clear text.

        Raises:
            AlreadyExistsError: the name is taken.
            UsageError: the name, a verb, the secret or the URL is not valid, or the URL leads to an internal address.
            UnavailableError: the URL's host name does not resolve.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' is not a valid name for a webhook.", help="Use at most 64 letters, digits and . _ -."
            )
        if len(verbs) > MOST_VERBS:
            raise UsageError(f"{len(verbs)} events are too many.", help=f"Give at most {MOST_VERBS}, or none for all.")
        for verb in verbs:
            if not _VERB.fullmatch(verb):
                raise UsageError(
                    f"'{verb}' is not an event.", help="Write events as kind.verb, such as alias.alias_set."
                )
        if secret is not None and not 16 <= len(secret) <= 200:
            raise UsageError(
                f"The secret has {len(secret)} characters, which is too short or too long.",
                help="Use 16 to 200 characters, or leave it out to get a random one.",
            )
        if len(self.stored()) >= MOST:
            raise UsageError(f"There are already {MOST} webhooks, which is the limit.", help="Remove one first.")
        resolve(url, self.options.webhook_networks)
        try:
            return self._put(name=name, url=url, verbs=tuple(verbs), secret=secret or secrets.token_urlsafe(32))
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"The webhook '{name}' already exists.", help="Choose another name.") from error

    def add_for_mlflow(
        self, name: str, url: str, verbs: Sequence[str], *, description: str, secret: str, active: bool
    ) -> Webhook:
        """Add a webhook that receives MLflow's messages. Its name need not be unique; without a secret it is unsigned.

        Raises:
            UsageError: the URL is not valid, or leads to an internal address.
            UnavailableError: the URL's host name does not resolve.
        """
        if len(self.stored()) >= MOST:
            raise UsageError(f"There are already {MOST} webhooks, which is the limit.", help="Remove one first.")
        resolve(url, self.options.webhook_networks)
        return self._put(
            name=name,
            url=url,
            verbs=tuple(verbs),
            secret=secret,
            form="mlflow",
            description=description,
            active=active,
        )

    def change(self, ref: str, /, **changes: Any) -> Webhook:
        """Change fields of a webhook. Events that happened while it was off are not sent later.

        Raises:
            NotFoundError: there is no such webhook.
            UsageError, UnavailableError: as for `add`.
        """
        if "url" in changes:
            resolve(changes["url"], self.options.webhook_networks)
        with self.records.transaction():
            hook = self.find_stored(ref)
            if changes.get("active") and not hook.active:
                changes |= {"seq": self.store.records.last_event(), "part": 0}
            if {"url", "secret"} & changes.keys():
                hook = self.secrets.sealed(replace(self._opened_with(hook, changes), **changes))
            else:
                hook = replace(hook, **changes)
            return self.secrets.shown(self.records.update(replace(hook, updated_at=self.store.now()))[0])

    def renew(self, ref: str, url: str | None = None) -> Webhook:
        """Give a webhook a new secret and return it in clear text. Works even if the key of the old one is lost.

        Args:
            url: a new URL; needed if the key is lost, as the old URL was sealed with it.

        Raises:
            NotFoundError, UsageError, UnavailableError: as for `change`.
        """
        changes: dict[str, Any] = {"secret": secrets.token_urlsafe(32), **({} if url is None else {"url": url})}
        return replace(self.change(ref, **changes), secret=changes["secret"])

    def remove(self, name: str) -> None:
        self.records.delete(Webhook, self.find_stored(name).id)

    def _opened_with(self, hook: Webhook, changes: Mapping[str, Any]) -> Webhook:
        """Return the webhook in clear text. If both fields are replaced, it need not be opened."""
        try:
            return self.secrets.opened(hook)
        except UnavailableError:
            if not {"url", "secret"} <= changes.keys():
                raise
            return replace(hook, sealed_url="")

    def _put(self, **fields: Any) -> Webhook:
        now = self.store.now()
        hook = Webhook(
            id=new_id(now),
            project=PROJECT,
            created_at=now,
            for_project=self.store.project,
            seq=self.store.records.last_event(),
            **fields,
        )
        sealed = self.secrets.sealed(hook)
        self.records.put(sealed, data={"url": sealed.url})
        return hook

    def test(self, name: str, verb: str | None = None) -> int:
        """Send a test message now and return the status of the response.

        Args:
            verb: the event of MLflow that the message is an example of.

        Raises:
            UnavailableError: there was no response.
        """
        hook = self.find_stored(name)
        event = Event(
            seq=0, at=self.store.now(), actor=self.store.actor, verb="test", kind="webhook", subject=hook.id, key=name
        )
        return self.send(hook, test_message(hook, event, verb or (hook.verbs or tuple(EXAMPLES))[0]))

    def send(self, hook: Webhook, message: WebhookMessage) -> int:
        """Send one message once and return the status.

        Raises:
            UnavailableError: there was no response, or the key of the webhook's secret is missing.
        """
        hook = self.secrets.opened(hook)
        headers = message.headers(hook, self.store.now())
        return post(hook.url, message.body, headers, self.options.webhook_networks)


class WebhookDelivery:
    """A thread that reads new events and sends them. Only one server of a home does so at a time."""

    def __init__(self, store: Store, options: ServerOptions, *, retry_after_s: Sequence[float] = RETRY_AFTER_S) -> None:
        self.hooks = Webhooks(store.as_actor("server:webhooks"), options)
        self.retry_after_s = retry_after_s
        self._store = store
        self._tries: dict[str, _Attempts] = {}
        self._quiet: dict[str, tuple[int, int]] = {}
        """Webhook id to (last event, revision) for which the webhook had nothing to send."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="everloop-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop. Waits for messages in transit, for ten seconds at most, as the next process would repeat an interrupted
        one."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=TOTAL_S + 1)

    def send_due(self) -> bool:
        """Send what is due, at most one message for each webhook. Returns whether any was sent or given up."""
        sent = False
        for hook in self.hooks.stored():
            if self._stopping.is_set():
                return False
            if hook.active:
                sent = self._send_next(hook) or sent
        return sent

    def _run(self) -> None:
        while not self._stopping.wait(POLL_EVERY_S):
            try:
                with self._store.lock("webhooks", block=False) as held:
                    if held:
                        self._deliver()
            except EverloopError as error:
                _log.warning("Webhooks: %s", error)

    def _deliver(self) -> None:
        """Until the server stops, run one worker for each active webhook with something to send."""
        busy: dict[str, Future[None]] = {}
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="everloop-webhook") as pool:
            while True:
                last = self._store.records.last_event()
                for hook in self.hooks.stored():
                    idle = hook.id not in busy or busy[hook.id].done()
                    if hook.active and idle and self._quiet.get(hook.id) != (last, hook.revision):
                        busy[hook.id] = pool.submit(self._drain, hook.id)
                if self._stopping.wait(POLL_EVERY_S):
                    return

    def _drain(self, id: str) -> None:
        """Send one webhook's due messages, one after the other."""
        try:
            while not self._stopping.is_set():
                hook = self.hooks.find_stored(id)
                if not hook.active or not self._send_next(hook):
                    return
        except NotFoundError:
            self._tries.pop(id, None)
        except EverloopError as error:
            _log.warning("Webhooks: %s", error)

    def _send_next(self, hook: Webhook) -> bool:
        last = self._store.records.last_event()
        found = self._next(hook)
        if found is None:
            self._quiet[hook.id] = (last, hook.revision)
            return False
        event, messages = found
        attempt = self._tries[hook.id]
        part = min(hook.part, len(messages) - 1)
        if monotonic() < attempt.not_before:
            return False
        try:
            self.hooks.secrets.opened(hook)
        except UnavailableError as error:
            # The messages are not given up, but wait for the key.
            attempt.not_before = monotonic() + NO_KEY_S
            _log.warning("Webhooks: %s", error)
            return False
        try:
            status = self.hooks.send(hook, messages[part])
            problem = "" if 200 <= status < 300 else f"the response was {status}"
        except (UnavailableError, UsageError) as error:
            problem = str(error)
        given_up = bool(problem) and attempt.failed >= len(self.retry_after_s)
        if problem and not given_up:
            attempt.not_before = monotonic() + self.retry_after_s[attempt.failed]
            attempt.failed += 1
            return False
        if given_up:
            _log.warning("Webhook '%s': gave up on event %d: %s", hook.name, event.seq, problem)
        verb = "given_up" if given_up else "delivered"
        more = part + 1 < len(messages) and not given_up
        position = replace(hook, part=part + 1) if more else replace(hook, seq=event.seq, part=0)
        self._store_position(replace(position, failures=hook.failures + 1 if given_up else 0), verb)
        return True

    def _next(self, hook: Webhook) -> tuple[Event, list[WebhookMessage]] | None:
        """Return the next event for the webhook, and its messages."""
        attempt = self._tries.get(hook.id)
        if attempt is None or attempt.seq < hook.seq:
            attempt = self._tries[hook.id] = _Attempts(hook.seq)
        if hook.form == "mlflow":
            kinds: Sequence[str] = MLFLOW_KINDS
        else:
            kinds = sorted({verb.partition(".")[0] for verb in hook.verbs}) or KINDS
        while events := self._store.records.events_since(attempt.seq, kinds=kinds, limit=200):
            for event in events:
                if messages := messages_of(self._store, hook, event):
                    return event, messages
                attempt.seq = event.seq
        return None

    def _store_position(self, position: Webhook, verb: str) -> None:
        """Store up to which event a webhook has received messages, even if it was changed meanwhile."""
        self._tries[position.id] = _Attempts(position.seq)
        try:
            with self.hooks.records.transaction():
                current = self.hooks.find_stored(position.id)
                if current.seq <= position.seq:
                    moved = replace(current, seq=position.seq, part=position.part, failures=position.failures)
                    self.hooks.records.update(moved, verb=verb)
        except NotFoundError:
            # The webhook was removed meanwhile.
            return
