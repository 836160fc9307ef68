"""Secrets of webhooks: encrypted (sealed) in the store, and decrypted (opened) when a message is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from everloop.errors import UnavailableError
from everloop.records import Webhook
from everloop.stores.records.scrubbing import forget_history
from everloop.stores.sealing import SecretKeys, is_sealed
from everloop.stores.store_urls import mask_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.stores import Store
    from everloop.stores.records.record_store import RecordStore

_HIDDEN = "…"


class WebhookSecrets:
    """Seals and opens the secrets and URLs of a home's webhooks."""

    def __init__(self, store: Store, records: RecordStore) -> None:
        self.keys = SecretKeys(store.home)
        self.records = records

    def sealed(self, hook: Webhook) -> Webhook:
        """Return the webhook as it is stored: secret and URL sealed, and the part of the URL that may be shown."""
        return replace(
            hook,
            secret=self.keys.seal(hook.secret, f"webhook:{hook.id}:secret") if hook.secret else "",
            url=shown_url(hook.url),
            sealed_url=self.keys.seal(hook.url, f"webhook:{hook.id}:url"),
        )

    def opened(self, hook: Webhook) -> Webhook:
        """Return the webhook with secret and full URL in clear text, for sending. It must never be stored.

        Raises:
            UnavailableError: the key is missing.
        """
        try:
            return replace(
                hook,
                secret=self._text(hook.secret, f"webhook:{hook.id}:secret"),
                url=self._text(hook.sealed_url, f"webhook:{hook.id}:url") if hook.sealed_url else hook.url,
                sealed_url="",
            )
        except UnavailableError as error:
            raise UnavailableError(
                f"The secret of the webhook '{hook.name}' cannot be used: {error.message}",
                help=f"{error.help} Or set a new one: everloop webhooks renew {hook.key} --url URL",
            ) from error

    def shown(self, hook: Webhook) -> Webhook:
        """Return the webhook without its secret, and with its full URL if that can be opened."""
        try:
            url = self.opened(hook).url
        except UnavailableError:
            url = hook.url
        return replace(hook, url=url, secret="", sealed_url="")

    def seal_all(self) -> int:
        """Seal webhooks that an earlier version stored in clear text, and remove their history. Returns how many."""
        clear = [hook for hook in self._all() if _is_clear(hook)]
        if clear:
            with self.records.transaction():
                self.records.update(*(self.sealed(hook) for hook in clear), verb="sealed")
            forget_history(self.records, Webhook)
        return len(clear)

    def renew_key(self) -> int:
        """Seal all webhooks with a new key, or with the first key in the environment. Returns how many.

        Raises:
            UnavailableError: a webhook cannot be opened, or the store cannot be written; the old key stays valid.
        """
        self.seal_all()
        hooks = self._all()
        opened = [self.opened(hook) for hook in hooks]
        if not self.keys.from_environment:
            self.keys.add_key()
        if opened:
            with self.records.transaction():
                self.records.update(*(self.sealed(hook) for hook in opened), verb="sealed")
            # Otherwise the old key could still open earlier revisions.
            forget_history(self.records, Webhook)
        if not self.keys.from_environment:
            self.keys.drop_old_keys()
        return len(opened)

    def without_key(self) -> list[Webhook]:
        """Return the webhooks whose secrets cannot be opened here."""
        found = []
        for hook in self._all():
            try:
                self.opened(hook)
            except UnavailableError:
                found.append(hook)
        return found

    def _text(self, stored: str, purpose: str) -> str:
        # An earlier version stored clear text, and an empty secret is not sealed.
        return self.keys.open(stored, purpose) if is_sealed(stored) else stored

    def _all(self) -> Sequence[Webhook]:
        return self.records.find(Webhook, order="name")


def shown_url(url: str) -> str:
    """Return the part of a webhook's URL that has no token in it: scheme and host, without path and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return mask_url(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}/{_HIDDEN if parts.path.strip('/') or parts.query else ''}"


def _is_clear(hook: Webhook) -> bool:
    return not hook.sealed_url or bool(hook.secret and not is_sealed(hook.secret))


__all__ = ["WebhookSecrets", "shown_url"]
