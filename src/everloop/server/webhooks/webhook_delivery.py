"""Telling outside addresses of events: webhooks.

What is sent stands in `messages.py`. Whatever answers 2xx has got it. Otherwise it is sent again after 1, 5, 30 and
120 seconds, then given up. Each address is told in the order of the events, and none waits for another. How far it
was told is kept, so after a restart only what nobody took is sent again; a process that is killed between an answer and
the note of it sends that one message twice, with the same number of delivery.
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
from everloop.server.webhooks.safe_http import TOTAL_S, post, resolve
from everloop.server.webhooks.webhook_payloads import EXAMPLES, MLFLOW_KINDS, WebhookMessage, messages_of, test_message
from everloop.server.webhooks.webhook_secrets import WebhookSecrets
from everloop.stores.clock import new_id

if TYPE_CHECKING:
    from everloop.server.server_options import ServerOptions
    from everloop.stores import Store

_log = logging.getLogger("everloop.server")

LOOK_EVERY_S = 0.5
RETRY_AFTER_S = (1.0, 5.0, 30.0, 120.0)
KINDS = ("alias", "alias_request", "model_version", "release")
"""The kinds that a webhook without verbs is told of."""
NO_KEY_S = 60.0
"""How long a webhook rests whose secret cannot be opened, before the key is looked for again."""
AT_ONCE = 8
"""So many addresses are told at the same time."""
MOST = 50
MOST_VERBS = 100

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
        self.secrets = WebhookSecrets(store, self.records)
        self._warned = False

    def list(self) -> Sequence[Webhook]:
        """Every webhook, as an admin may see it: without its secret."""
        return [self.secrets.shown(hook) for hook in self.stored()]

    def get(self, name: str) -> Webhook:
        """The webhook of this name, without its secret.

        Raises:
            NotFoundError: there is none.
        """
        return self.secrets.shown(self.find_stored(name))

    def stored(self) -> Sequence[Webhook]:
        """Every webhook as the store keeps it, with its secret and URL sealed."""
        found = self.records.find(Webhook, ("for_project", "=", self.store.project), order="name")
        if all(hook.sealed_url for hook in found):
            return found
        try:
            self.secrets.seal_all()
        except (StoreError, UnavailableError, ConflictError) as error:
            # As in a home that is read-only: they are sealed by the next process that can write.
            if not self._warned:
                self._warned = True
                _log.warning("Secrets of webhooks are stored in clear and cannot be sealed now: %s", error)
            return found
        return self.records.find(Webhook, ("for_project", "=", self.store.project), order="name")

    def find_stored(self, name: str) -> Webhook:
        """One of `stored`, by its name or id.

        Raises:
            NotFoundError: there is none.
        """
        for hook in self.stored():
            if name in (hook.key, hook.id):
                return hook
        raise NotFoundError(f"There is no webhook '{name}'.")

    def add(self, name: str, url: str, verbs: Sequence[str] = (), secret: str | None = None) -> Webhook:
        """Add one; it is told of what happens from now on. Only what is returned holds the secret in clear.

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
        if len(self.stored()) >= MOST:
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
        if len(self.stored()) >= MOST:
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
            hook = self.find_stored(ref)
            if changes.get("active") and not hook.active:
                changes |= {"seq": self.store.records.last_event(), "part": 0}
            if {"url", "secret"} & changes.keys():
                hook = self.secrets.sealed(replace(self._opened_with(hook, changes), **changes))
            else:
                hook = replace(hook, **changes)
            return self.secrets.shown(self.records.update(replace(hook, updated_at=self.store.now()))[0])

    def renew(self, ref: str, url: str | None = None) -> Webhook:
        """Give a webhook a new secret, also where the key of the old one is lost, and return it in clear.

        Args:
            url: another address; needed where the key is lost, as the address was sealed with it.

        Raises:
            NotFoundError, UsageError, UnavailableError: as for `change`.
        """
        changes: dict[str, Any] = {"secret": secrets.token_urlsafe(32), **({} if url is None else {"url": url})}
        return replace(self.change(ref, **changes), secret=changes["secret"])

    def remove(self, name: str) -> None:
        self.records.delete(Webhook, self.find_stored(name).id)

    def _opened_with(self, hook: Webhook, changes: Mapping[str, Any]) -> Webhook:
        """The webhook in clear. What is changed anyway need not be opened."""
        try:
            return self.secrets.opened(hook)
        except UnavailableError:
            if not {"url", "secret"} <= changes.keys():
                raise
            return replace(hook, sealed_url="")

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
        sealed = self.secrets.sealed(hook)
        self.records.put(sealed, data={"url": sealed.url})
        return hook

    def test(self, name: str, verb: str | None = None) -> int:
        """Send a message now and return the status that came back.

        Args:
            verb: which of MLflow's events the message is to be like.

        Raises:
            UnavailableError: nobody answered.
        """
        hook = self.find_stored(name)
        event = Event(
            seq=0, at=self.store.now(), actor=self.store.actor, verb="test", kind="webhook", subject=hook.id, key=name
        )
        return self.send(hook, test_message(hook, event, verb or (hook.verbs or tuple(EXAMPLES))[0]))

    def send(self, hook: Webhook, message: WebhookMessage) -> int:
        """Send one message once and return the status.

        Raises:
            UnavailableError: nobody answered, or the key of the webhook's secret is not here.
        """
        hook = self.secrets.opened(hook)
        headers = message.headers(hook, self.store.now())
        return post(hook.url, message.body, headers, self.options.webhook_networks)


class WebhookDelivery:
    """A thread that follows the events and sends them. Of the servers of one home, one at a time does."""

    def __init__(self, store: Store, options: ServerOptions, *, retry_after_s: Sequence[float] = RETRY_AFTER_S) -> None:
        self.hooks = Webhooks(store.as_actor("server:webhooks"), options)
        self.retry_after_s = retry_after_s
        self._store = store
        self._tries: dict[str, _Try] = {}
        self._quiet: dict[str, tuple[int, int]] = {}
        """Up to which event, and in which revision, a webhook was found to have nothing to be told."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="everloop-webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when the messages that are just being sent are out, after ten seconds at most: what is cut off would
        be sent again by the next process."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=TOTAL_S + 1)

    def look(self) -> bool:
        """Send what is due, at most one message for each webhook; whether there was any."""
        sent = False
        for hook in self.hooks.stored():
            if self._stopping.is_set():
                return False
            if hook.active:
                sent = self._serve(hook) or sent
        return sent

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                with self._store.lock("webhooks", block=False) as held:
                    if held:
                        self._tell_all()
            except EverloopError as error:
                _log.warning("webhooks: %s", error)

    def _tell_all(self) -> None:
        """Until the server stops, keep one worker at each webhook that is on."""
        busy: dict[str, Future[None]] = {}
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="everloop-webhook") as pool:
            while True:
                last = self._store.records.last_event()
                for hook in self.hooks.stored():
                    idle = hook.id not in busy or busy[hook.id].done()
                    if hook.active and idle and self._quiet.get(hook.id) != (last, hook.revision):
                        busy[hook.id] = pool.submit(self._drain, hook.id)
                if self._stopping.wait(LOOK_EVERY_S):
                    return

    def _drain(self, id: str) -> None:
        """Send to one webhook what is due, message after message."""
        try:
            while not self._stopping.is_set():
                hook = self.hooks.find_stored(id)
                if not hook.active or not self._serve(hook):
                    return
        except NotFoundError:
            self._tries.pop(id, None)
        except EverloopError as error:
            _log.warning("webhooks: %s", error)

    def _serve(self, hook: Webhook) -> bool:
        last = self._store.records.last_event()
        found = self._next(hook)
        if found is None:
            self._quiet[hook.id] = (last, hook.revision)
            return False
        event, messages = found
        trying = self._tries[hook.id]
        part = min(hook.part, len(messages) - 1)
        if monotonic() < trying.not_before:
            return False
        try:
            self.hooks.secrets.opened(hook)
        except UnavailableError as error:
            # Nothing is given up for this: the messages wait for the key.
            trying.not_before = monotonic() + NO_KEY_S
            _log.warning("webhooks: %s", error)
            return False
        try:
            status = self.hooks.send(hook, messages[part])
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
        verb = "given_up" if given_up else "delivered"
        more = part + 1 < len(messages) and not given_up
        far = replace(hook, part=part + 1) if more else replace(hook, seq=event.seq, part=0)
        self._note(replace(far, failures=hook.failures + 1 if given_up else 0), verb)
        return True

    def _next(self, hook: Webhook) -> tuple[Event, list[WebhookMessage]] | None:
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
                trying.seq = event.seq
        return None

    def _note(self, far: Webhook, verb: str) -> None:
        """Keep how far a webhook has been told, also where somebody has changed it meanwhile."""
        self._tries[far.id] = _Try(far.seq)
        try:
            with self.hooks.records.transaction():
                now = self.hooks.find_stored(far.id)
                if now.seq <= far.seq:
                    told = replace(now, seq=far.seq, part=far.part, failures=far.failures)
                    self.hooks.records.update(told, verb=verb)
        except NotFoundError:
            # It was removed meanwhile; the next look sees that.
            return
