"""Encrypting secrets that the store must return later, such as the keys of webhooks.

AES-256-GCM with a random nonce (NIST SP 800-38D). An encrypted text reads `sealed:1:<key id>:<base64>`. It is bound
to its record and field, so that it cannot be moved to another record. Keys are read, in this order, from

- `EVERLOOP_SECRET_KEY`: one or more keys of 32 bytes in base64, separated by commas or spaces;
- the file named by `EVERLOOP_SECRET_KEY_FILE`: one key per line;
- `secret.key` in the home: created at the first encryption if neither of the two is set.

The first key encrypts; all keys decrypt. If servers on several machines share a database, use one of the variables.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.errors import UnavailableError, UsageError
from everloop.stores.full_disk import writing
from everloop.stores.permissions import file_mode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VARIABLE = "EVERLOOP_SECRET_KEY"
FILE_VARIABLE = "EVERLOOP_SECRET_KEY_FILE"
FILE = "secret.key"
MARK = "sealed:1:"

_KEY_BYTES = 32
_NONCE_BYTES = 12
_COMMENT = "# Decrypts the secrets that everloop stores in this home. Keep this file secret, and apart from backups."
_HELP = f"A key is 32 random bytes in base64: python -c 'import secrets; print(secrets.token_urlsafe({_KEY_BYTES}))'"


def is_sealed(text: str) -> bool:
    return text.startswith(MARK)


class SecretKeys:
    """The keys of one home. They are read at every use, so a new key takes effect immediately."""

    def __init__(self, home: Path) -> None:
        self.path = home / FILE

    def seal(self, text: str, about: str) -> str:
        """Encrypt a text for the record and field that `about` names.

        Raises:
            UsageError: a key in the environment or the file is malformed.
            ReadOnlyError, InsufficientStorageError: the home has no key yet and a new one cannot be written.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key = self._first()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        payload = nonce + AESGCM(key).encrypt(nonce, text.encode("utf-8", "surrogatepass"), about.encode())
        return f"{MARK}{_id(key)}:{base64.urlsafe_b64encode(payload).decode()}"

    def open(self, sealed: str, about: str) -> str:
        """Decrypt the text that was encrypted for `about`.

        Raises:
            UnavailableError: its key is missing here, or it was changed or encrypted for another record.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        identity, _, rest = sealed.removeprefix(MARK).partition(":")
        key = next((key for key in self._all() if _id(key) == identity), None)
        if key is None:
            raise UnavailableError(
                f"A secret is encrypted with the key '{identity[:16]}', which is missing here.",
                help=f"Set {VARIABLE}, or copy '{FILE}' from the home where it was encrypted to '{self.path}'.",
            )
        try:
            payload = base64.urlsafe_b64decode(rest)
            return (
                AESGCM(key)
                .decrypt(payload[:_NONCE_BYTES], payload[_NONCE_BYTES:], about.encode())
                .decode("utf-8", "surrogatepass")
            )
        except (InvalidTag, ValueError):
            raise UnavailableError(
                "An encrypted secret was changed, or belongs to another record.", help="Set the secret again."
            ) from None

    def is_current(self, sealed: str) -> bool:
        """Whether a text is encrypted with the first key."""
        keys = self._all()
        return bool(keys) and sealed.startswith(f"{MARK}{_id(keys[0])}:")

    @property
    def from_environment(self) -> bool:
        return bool(os.environ.get(VARIABLE) or os.environ.get(FILE_VARIABLE))

    def add_key(self) -> None:
        """Put a new key first in the home's file. New secrets are encrypted with it from now on."""
        self._write([_new_key(), *self._of_home()], replace=True)

    def drop_old_keys(self) -> None:
        """Remove all keys but the first from the home's file."""
        self._write(self._of_home()[:1], replace=True)

    def _first(self) -> bytes:
        keys = self._all()
        if keys:
            return keys[0]
        # If several processes get here at once, the first one creates the key and the others read it.
        self._write([_new_key()], replace=False)
        return self._of_home()[0]

    def _all(self) -> Sequence[bytes]:
        key_file = os.environ.get(FILE_VARIABLE)
        return [
            *_parsed(os.environ.get(VARIABLE, ""), VARIABLE),
            *(_of_file(key_file) if key_file else ()),
            *self._of_home(),
        ]

    def _of_home(self) -> list[bytes]:
        return _of_file(self.path) if self.path.exists() else []

    def _write(self, keys: Sequence[bytes], *, replace: bool) -> None:
        lines = [_COMMENT, *(base64.urlsafe_b64encode(key).decode() for key in keys)]
        draft = self.path.with_name(f".{FILE}.{secrets.token_hex(8)}")
        try:
            with writing(self.path):
                mode = file_mode(self.path.parent)
                descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write("\n".join(lines) + "\n")
                    file.flush()
                    os.fchmod(file.fileno(), mode)
                    os.fsync(file.fileno())
                if replace:
                    draft.replace(self.path)
                else:
                    with suppress(FileExistsError):
                        self.path.hardlink_to(draft)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _new_key() -> bytes:
    return secrets.token_bytes(_KEY_BYTES)


def _id(key: bytes) -> str:
    """A short id of a key that does not reveal the key."""
    return hashlib.sha256(b"everloop:sealing:1:" + key).hexdigest()[:16]


def _of_file(path: Path | str) -> list[bytes]:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - of a text or a path
            lines = [line for line in file if not line.lstrip().startswith("#")]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"Cannot read the file of secret keys '{path}': {reason}.", help=_HELP) from None
    return _parsed(" ".join(lines), f"The file '{path}'")


def _parsed(text: str, where: str) -> list[bytes]:
    keys = []
    for word in text.replace(",", " ").split():
        try:
            key = base64.b64decode(word.replace("-", "+").replace("_", "/") + "=" * (-len(word) % 4), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != _KEY_BYTES:
            # The word itself is not shown: it may be a key with one missing character.
            raise UsageError(f"{where} has a key that is not {_KEY_BYTES} bytes in base64.", help=_HELP)
        keys.append(key)
    return keys
