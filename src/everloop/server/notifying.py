"""Telling outside addresses of events: webhooks.

What is sent stands in `messages.py`. Whatever answers 2xx has got it. Otherwise it is sent again after 1, 5, 30 and
120 seconds, then given up.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

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
from everloop.server.messages import EXAMPLES, MLFLOW_KINDS, Message, messages_of, test_message
from everloop.server.outbound import post, resolve
from everloop.stores.clock import new_id

if TYPE_CHECKING:
    from everloop.server.options import ServerOptions
    from everloop.stores import Store

_log = logging.getLogger("everloop.server")

LOOK_EVERY_S = 0.5
RETRY_AFTER_S = (1.0, 5.0, 30.0, 120.0)
KINDS = ("alias", "alias_request", "model_version", "release")
"""The kinds that a webhook without verbs is told of."""
MOST = 50
MOST_VERBS = 100

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERB = re.compile(r"[a-z_]{1,40}\.[a-z_]{1,40}")


@dataclass
class _Try:
    """How often one webhook's next message was sent in vain, and when it may be sent again."""

    seq: int
    part: int = 0
    """How many of the event's messages are out."""
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
            if name in (hook.key, hook.id):
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
        if len(verbs) > MOST_VERBS:
            raise UsageError(f"{len(verbs)} events are too many.", help=f"Name {MOST_VERBS} at most, or none for all.")
        for verb in verbs:
            if not _VERB.fullmatch(verb):
                raise UsageError(f"'{verb}' is no event.", help="Events are kind.verb, such as alias.alias_set.")
        if secret is not None and not 16 <= len(secret) <= 200:
            raise UsageError("The secret is too short or too long.", help="Use 16 to 200 characters, or leave it out.")
        if len(self.list()) >= MOST:
            raise UsageError(f"There are {MOST} webhooks already.", help="Remove one first.")
        resolve(url, self.options.webhook_networks)
        try:
            return self._keep(name=name, url=url, verbs=tuple(verbs), secret=secret or secrets.token_urlsafe(32))
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"There is a webhook '{name}' already.") from error

    def add_for_mlflow(
        self, name: str, url: str, verbs: Sequence[str], *, description: str, secret: str, active: bool
    ) -> Webhook:
        """Add one whose messages are MLflow's; several may have one name. Without a secret they are not signed.

        Raises:
            UsageError: an event that is none, a URL that cannot be used, or an address that may not be reached.
            UnavailableError: the URL's name does not resolve.
        """
        if len(self.list()) >= MOST:
            raise UsageError(f"There are {MOST} webhooks already.", help="Remove one first.")
        resolve(url, self.options.webhook_networks)
        return self._keep(
            name=name,
            url=url,
            verbs=tuple(verbs),
            secret=secret,
            form="mlflow",
            description=description,
            active=active,
        )

    def change(self, ref: str, /, **changes: Any) -> Webhook:
        """Change what a webhook is told and where. What happened while it was off is not sent later.

        Raises:
            NotFoundError: there is none.
            UsageError, UnavailableError: as for `add`.
        """
        if "url" in changes:
            resolve(changes["url"], self.options.webhook_networks)
        with self.records.transaction():
            hook = self.get(ref)
            if changes.get("active") and not hook.active:
                changes["seq"] = self.store.records.last_event()
            return self.records.update(replace(hook, updated_at=self.store.now(), **changes))[0]

    def remove(self, name: str) -> None:
        self.records.delete(Webhook, self.get(name).id)

    def _keep(self, **fields: Any) -> Webhook:
        now = self.store.now()
        hook = Webhook(
            id=new_id(now),
            project=PROJECT,
            created_at=now,
            for_project=self.store.project,
            seq=self.store.records.last_event(),
            **fields,
        )
        self.records.put(hook, data={"url": hook.url})
        return hook

    def test(self, name: str, verb: str | None = None) -> int:
        """Send a message now and return the status that came back.

        Args:
            verb: which of MLflow's events the message is to be like.

        Raises:
            UnavailableError: nobody answered.
        """
        hook = self.get(name)
        event = Event(
            seq=0, at=self.store.now(), actor=self.store.actor, verb="test", kind="webhook", subject=hook.id, key=name
        )
        return self.send(hook, test_message(hook, event, verb or (hook.verbs or tuple(EXAMPLES))[0]))

    def send(self, hook: Webhook, message: Message) -> int:
        """Send one message once and return the status."""
        headers = message.headers(hook, self.store.now())
        return post(hook.url, message.body, headers, self.options.webhook_networks)


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

    def look(self) -> bool:
        """Send what is due, at most one message for each webhook; whether there was any."""
        sent = False
        for hook in self.hooks.list():
            if self._stopping.is_set():
                return False
            if hook.active:
                sent = self._serve(hook) or sent
        return sent

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                with self._store.lock("webhooks", block=False) as held:
                    while held and not self._stopping.is_set():
                        if not self.look():
                            self._stopping.wait(LOOK_EVERY_S)
            except EverloopError as error:
                _log.warning("webhooks: %s", error)

    def _serve(self, hook: Webhook) -> bool:
        found = self._next(hook)
        if found is None:
            return False
        event, messages = found
        trying = self._tries[hook.id]
        if monotonic() < trying.not_before:
            return False
        try:
            status = self.hooks.send(hook, messages[trying.part])
            problem = "" if 200 <= status < 300 else f"it answered {status}"
        except (UnavailableError, UsageError) as error:
            problem = str(error)
        given_up = bool(problem) and trying.failed >= len(self.retry_after_s)
        if problem and not given_up:
            trying.not_before = monotonic() + self.retry_after_s[trying.failed]
            trying.failed += 1
            return False
        if given_up:
            _log.warning("webhook '%s': event %d is given up: %s", hook.name, event.seq, problem)
        elif trying.part + 1 < len(messages):
            self._tries[hook.id] = _Try(trying.seq, trying.part + 1)
            return True
        self._done(hook, event, "given_up" if given_up else "delivered", hook.failures + 1 if given_up else 0)
        return True

    def _next(self, hook: Webhook) -> tuple[Event, list[Message]] | None:
        """The next event that the webhook is to be told of, and the messages that say it."""
        trying = self._tries.get(hook.id)
        if trying is None or trying.seq < hook.seq:
            trying = self._tries[hook.id] = _Try(hook.seq)
        if hook.form == "mlflow":
            kinds: Sequence[str] = MLFLOW_KINDS
        else:
            kinds = sorted({verb.partition(".")[0] for verb in hook.verbs}) or KINDS
        while events := self._store.records.events_since(trying.seq, kinds=kinds, limit=200):
            for event in events:
                if messages := messages_of(self._store, hook, event):
                    return event, messages
                trying.seq, trying.part = event.seq, 0
        return None

    def _done(self, hook: Webhook, event: Event, verb: str, failures: int) -> None:
        self._tries[hook.id] = _Try(event.seq)
        try:
            self.hooks.records.update(replace(hook, seq=event.seq, failures=failures), verb=verb)
        except (ConflictError, NotFoundError):
            # It was changed or removed meanwhile; the next look sees that.
            return
