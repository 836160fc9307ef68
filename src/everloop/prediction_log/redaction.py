"""Removes inputs from the prediction log, or replaces them with a keyed digest.

The digest is HMAC-SHA-256 with a key of this machine, which is stored with its other keys and not in the store. So
readers of the log can count and join the values, but cannot guess them by trying.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.stores.trust import keys_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from everloop.packages.signature import Signature
    from everloop.prediction_log.log_settings import HiddenInputs

KEY_FILE = "log-hash.key"


class Redaction:
    """Turns scored rows into the rows that the log keeps, for one signature. Immutable.

    Attributes:
        inputs: the types of the logged inputs, by name.
    """

    def __init__(self, signature: Signature, settings: HiddenInputs) -> None:
        hashed = frozenset(settings.log_hash)
        self.inputs: dict[str, str] = {}
        self._plan: list[tuple[int, bool]] = []
        for index, item in enumerate(signature.inputs):
            if item.name in settings.log_drop:
                continue
            self.inputs[item.name] = "string" if item.name in hashed else item.type
            self._plan.append((index, item.name in hashed))
        self._key = _hash_key() if any(hidden for _, hidden in self._plan) else b""

    def rows(self, values: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        plan, digest = self._plan, self.digest
        return [tuple(digest(row[index]) if hidden else row[index] for index, hidden in plan) for row in values]

    def digest(self, value: Any) -> str | None:
        """The digest of a value; the same for the same value on one machine."""
        if value is None:
            return None
        return hmac.new(self._key, repr(value).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]


def redaction_for(signature: Signature, settings: HiddenInputs) -> Redaction | None:
    """The redaction for a signature; None if everything is logged."""
    hidden = {*settings.log_drop, *settings.log_hash}
    return Redaction(signature, settings) if hidden & set(signature.names) else None


def check_hidden(settings: HiddenInputs, known: Collection[str]) -> None:
    """Raise UsageError if a setting names an unknown input, because a misspelled name would hide nothing."""
    for name in (*settings.log_drop, *settings.log_hash):
        if name not in known:
            raise UsageError(
                f"Cannot hide '{name}' in the log: no version in use has such an input.",
                help=f"Inputs: {', '.join(sorted(known)[:20])}",
            )


def _hash_key() -> bytes:
    """The machine's key for digests, created on first use. Safe if several processes create it at once."""
    path = keys_folder() / KEY_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_bytes()


__all__ = ["Redaction", "check_hidden", "redaction_for"]
