"""Telling outside addresses of events: webhooks.

A message is one event as JSON, with these headers, of which the signature proves the rest:

    X-Everloop-Event      kind.verb, such as alias.alias_set
    X-Everloop-Delivery   project and number of the event; a message that comes twice has the same
    X-Everloop-Timestamp  seconds since 1970 of the sending
    X-Everloop-Signature  sha256= and the HMAC-SHA256, keyed with the webhook's secret, over timestamp, a dot, and body

Whatever answers 2xx has got it. Otherwise it is sent again after 1, 5, 30 and 120 seconds, then given up.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from everloop.errors import (
    AlreadyExistsError,
    ConflictError,
    EverloopError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from everloop.records import Event, Webhook
from everloop.server.access.book import PROJECT
from everloop.server.outbound import post, resolve
from everloop.stores.clock import new_id
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.server.options import ServerOptions
    from everloop.stores import Store

_log = logging.getLogger("everloop.server")

LOOK_EVERY_S = 1.0
RETRY_AFTER_S = (1.0, 5.0, 30.0, 120.0)
KINDS = ("alias", "alias_request", "model_version", "release")
"""The kinds that a webhook without verbs is told of."""
MOST = 50

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERB = re.compile(r"[a-z_]{1,40}\.[a-z_]{1,40}")


@dataclass
class _Try:
    """How often one webhook's next message was sent in vain, and when it may be sent again."""

    seq: int
    failed: int = 0
    not_before: float = 0.0


class Webhooks:
    """The webhooks of one project. Kept, with their secrets, where no route over a project's records reaches."""

    def __init__(self, store: Store, options: ServerOptions) -> None:
        self.store = store
        self.options = options
        self.records = store.records.for_project(PROJECT)

    def list(self) -> Sequence[Webhook]:
        return self.records.find(Webhook, ("for_project", "=", self.store.project), order="name")

    def get(self, name: str) -> Webhook:
        """The webhook of this name.

        Raises:
            NotFoundError: there is none.
        """
        for hook in self.list():
            if hook.name == name:
                return hook
        raise NotFoundError(f"There is no webhook '{name}'.")

    def add(self, name: str, url: str, verbs: Sequence[str] = (), secret: str | None = None) -> Webhook:
        """Add one; it is told of what happens from now on.

        Raises:
            UsageError: a name, verb, secret or URL that cannot be used, or an address that may not be reached.
            UnavailableError: the URL's name does not resolve.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{name}' is no name for a webhook.", help="Use letters, digits and . _ -; at most 64.")
        for verb in verbs:
            if not _VERB.fullmatch(verb):
                raise UsageError(f"'{verb}' is no event.", help="Events are kind.verb, such as alias.alias_set.")
        if secret is not None and not 16 <= len(secret) <= 200:
            raise UsageError("The secret is too short or too long.", help="Use 16 to 200 characters, or leave it out.")
        if len(self.list()) >= MOST:
            raise UsageError(f"There are {MOST} webhooks already.", help="Remove one first.")
        resolve(url, self.options.webhook_networks)
        now = self.store.now()
        hook = Webhook(
            id=new_id(now),
            project=PROJECT,
            created_at=now,
            name=name,
            url=url,
            verbs=tuple(verbs),
            for_project=self.store.project,
            secret=secret or secrets.token_urlsafe(32),
            seq=self.store.records.last_event(),
        )
        try:
            self.records.put(hook, data={"url": url})
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"There is a webhook '{name}' already.") from error
        return hook

    def remove(self, name: str) -> None:
        self.records.delete(Webhook, self.get(name).id)

    def test(self, name: str) -> int:
        """Send a message now and return the status that came back.

        Raises:
            UnavailableError: nobody answered.
        """
        hook = self.get(name)
        event = Event(
            seq=0, at=self.store.now(), actor=self.store.actor, verb="test", kind="webhook", subject=hook.id, key=name
        )
        return self.send(hook, event)

    def send(self, hook: Webhook, event: Event) -> int:
        """Send one event once and return the status."""
        body = msgspec.json.encode({"project": hook.for_project, "event": event})
        timestamp = str(int(self.store.now().timestamp()))
        return post(
            hook.url,
            body,
            {
                "Content-Type": "application/json",
                "User-Agent": f"everloop/{VERSION}",
                "X-Everloop-Event": f"{event.kind}.{event.verb}",
                "X-Everloop-Delivery": f"{hook.for_project}-{event.seq}",
                "X-Everloop-Timestamp": timestamp,
                "X-Everloop-Signature": sign(hook.secret, timestamp, body),
            },
            self.options.webhook_networks,
        )


class Notifier:
    """A thread that follows the events and sends them. Of the servers of one home, one at a time does."""

    def __init__(self, store: Store, options: ServerOptions, *, retry_after_s: Sequence[float] = RETRY_AFTER_S) -> None:
        self.hooks = Webhooks(store.as_actor("server:webhooks"), options)
        self.retry_after_s = retry_after_s
        self._store = store
        self._tries: dict[str, _Try] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="everloop-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when the message that is just being sent is out, after ten seconds at most."""
        self._stopping.set()
        self._thread.join(timeout=3)

    def look(self) -> None:
        """Send what is due, at most one message for each webhook."""
        for hook in self.hooks.list():
            if self._stopping.is_set():
                return
            self._serve(hook)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                with self._store.lock("webhooks", block=False) as held:
                    while held and not self._stopping.wait(LOOK_EVERY_S):
                        self.look()
            except EverloopError as error:
                _log.warning("webhooks: %s", error)

    def _serve(self, hook: Webhook) -> None:
        event = self._next(hook)
        if event is None:
            return
        trying = self._tries[hook.id]
        if monotonic() < trying.not_before:
            return
        try:
            status = self.hooks.send(hook, event)
            problem = "" if 200 <= status < 300 else f"it answered {status}"
        except (UnavailableError, UsageError) as error:
            problem = str(error)
        if not problem:
            self._done(hook, event, "delivered", 0)
        elif trying.failed < len(self.retry_after_s):
            trying.not_before = monotonic() + self.retry_after_s[trying.failed]
            trying.failed += 1
        else:
            _log.warning("webhook '%s': event %d is given up: %s", hook.name, event.seq, problem)
            self._done(hook, event, "given_up", hook.failures + 1)

    def _next(self, hook: Webhook) -> Event | None:
        """The next event that the webhook is to be told of."""
        trying = self._tries.setdefault(hook.id, _Try(hook.seq))
        kinds = sorted({verb.partition(".")[0] for verb in hook.verbs}) or KINDS
        while events := self._store.records.events_since(trying.seq, kinds=kinds, limit=200):
            for event in events:
                if not hook.verbs or f"{event.kind}.{event.verb}" in hook.verbs:
                    return event
                trying.seq = event.seq
        return None

    def _done(self, hook: Webhook, event: Event, verb: str, failures: int) -> None:
        self._tries[hook.id] = _Try(event.seq)
        try:
            self.hooks.records.update(replace(hook, seq=event.seq, failures=failures), verb=verb)
        except (ConflictError, NotFoundError):
            # It was changed or removed meanwhile; the next look sees that.
            return


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The value of X-Everloop-Signature."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"sha256={digest}"
