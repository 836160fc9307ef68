"""Signatures: signing digests with Ed25519, and the keys and packages that this machine trusts.

The keys are stored outside of any home, in the folder `$EVERLOOP_KEYS` or `~/.config/everloop/keys`. It contains:

- `machine.key`: the machine's private key, created at the first use. It never leaves the machine.
- `trusted/*.pub`: public keys of other machines.
- `digests/`: one file for each package that is trusted by its digest, even if it is not signed.

A machine trusts everything that it has signed itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from everloop.errors import AlreadyExistsError, NotFoundError, StoreError, TrustError, UsageError
from everloop.stores.full_disk import writing
from everloop.stores.objects.manifests import DIGEST
from everloop.stores.permissions import close_to_others

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_CONTEXT = b"everloop:trust:1:"
_SEALS = b"everloop:seals:1"
_KEY_BYTES = 32
MACHINE = "machine"
"""Name of this machine's own key."""


def keys_folder() -> Path:
    folder = os.environ.get("EVERLOOP_KEYS")
    return Path(folder) if folder else Path.home() / ".config" / "everloop" / "keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """A key that this machine trusts, or a package that it trusts by its digest."""

    kind: Literal["key", "digest"]
    name: str
    """The name of a key, with `machine` for the machine's own key. For a digest, the reason why it is trusted."""
    id: str
    """The key's id, or the digest."""
    public: str | None = None
    """The public key as one line of base64, for use on other machines."""


def sign(digest: str) -> dict[str, str]:
    """Sign a digest with the machine's key. Returns `{"key": key id, "signature": base64}`."""
    return Keyring().sign(digest)


def check(digest: str, signature: dict[str, str] | None) -> None:
    """Check that a digest is signed by a trusted key, or is trusted itself.

    Raises:
        TrustError: there is no signature, its key is not trusted, or it is not a signature of this digest.
    """
    Keyring().check(digest, signature)


class Keyring:
    """A folder of keys."""

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = keys_folder() if folder is None else Path(folder)

    def sign(self, digest: str) -> dict[str, str]:
        key = self._machine_key()
        signature = key.sign(_message(digest))
        return {"key": key_id(key.public_key()), "signature": base64.b64encode(signature).decode()}

    def check(self, digest: str, signature: dict[str, str] | None) -> None:
        from cryptography.exceptions import InvalidSignature

        if DIGEST.fullmatch(digest) and self._digest_file(digest).exists():
            return
        if not signature or not signature.get("key") or not signature.get("signature"):
            raise TrustError(
                f"{digest} contains code and is unsigned.",
                help=f"If you have inspected it and trust exactly these bytes, run: everloop trust add {digest}",
            )
        name = signature["key"]
        key = self.trusted().get(name)
        if key is None:
            raise TrustError(
                f"{digest} is signed with the key '{name}', which is not trusted here.",
                help="If you trust its owner, run 'everloop trust show' on that machine, and here: everloop trust add "
                "KEY --name NAME",
            )
        try:
            key.verify(base64.b64decode(signature["signature"], validate=True), _message(digest))
        except (InvalidSignature, ValueError):
            raise TrustError(
                f"The signature with the key '{name}' does not match {digest}: the bytes or the signature changed.",
                help="Get the package again from where it was built. To list what is trusted here: everloop trust ls",
            ) from None

    def trusted(self) -> dict[str, Ed25519PublicKey]:
        """All trusted public keys by id: those of other machines, and the machine's own if it exists."""
        keys = [key for _, key in self._others()]
        if (self.folder / "machine.key").exists():
            keys.insert(0, self._machine_key().public_key())
        return {key_id(key): key for key in keys}

    def seal(self, message: bytes) -> str:
        """An HMAC of the message that only this machine can create and check. Takes microseconds."""
        return hmac.digest(self._seal_key(), message, "sha256").hex()

    def is_sealed(self, message: bytes, seal: str) -> bool:
        """Whether `seal` was created on this machine for this message. False if the machine has no key yet."""
        if not (self.folder / "machine.key").exists():
            return False
        return hmac.compare_digest(self.seal(message).encode(), seal.encode("utf-8", "replace"))

    def public_key(self) -> str:
        """The machine's public key as one line of base64, for use on other machines."""
        return _line(self._machine_key().public_key())

    def trust(self, public: str, name: str) -> str:
        """Trust the public key of another machine, and return its id.

        Args:
            public: the result of `public_key` on the other machine.
            name: name for the key and its file: letters, digits, `-` and `_`.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if not name.replace("-", "").replace("_", "").isalnum() or name == MACHINE:
            raise UsageError(
                f"'{name}' is not a valid name for a key.",
                help=f"Use letters, digits, '-' and '_', and not the name '{MACHINE}'.",
            )
        try:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public.split()[0], validate=True))
        except (ValueError, IndexError) as error:
            raise UsageError(
                f"This is not a public key: {error}.",
                help="Use the line that `everloop trust show` prints on the other machine.",
            ) from error
        path = self.folder / "trusted" / f"{name}.pub"
        if path.exists() and path.read_text().split()[:1] != public.split()[:1]:
            raise AlreadyExistsError(
                f"Another key with the name '{name}' is already trusted.",
                help=f"Use another name, or remove that key first: everloop trust rm {name}",
            )
        _private_folder(self.folder)
        _private_folder(path.parent)
        _write_atomically(path, f"{public.split()[0]} {key_id(key)}\n".encode(), replace=True)
        return key_id(key)

    def trust_digest(self, digest: str, why: str = "") -> None:
        """Trust a package by its digest, whether it is signed or not.

        Args:
            why: the reason, one line for people to read.
        """
        _message(digest)
        path = self._digest_file(digest)
        _private_folder(self.folder)
        _private_folder(path.parent)
        _write_atomically(path, (" ".join(why.split()) + "\n").encode(), replace=True)

    def distrust(self, what: str) -> Trusted:
        """Stop trusting a key, given by name or id, or a digest. Returns the removed entry.

        Raises:
            NotFoundError: no trusted key or digest matches.
            UsageError: it is the machine's own key.
        """
        entries = self.listing()
        found = next((entry for entry in entries if what in (entry.id, entry.name) and entry.kind == "key"), None)
        found = found or next((entry for entry in entries if what == entry.id), None)
        if found is None:
            known = ", ".join(entry.name if entry.kind == "key" else entry.id for entry in entries)
            raise NotFoundError(
                f"'{what}' is not trusted here, so there is nothing to remove.", help=f"Trusted: {known or 'nothing'}"
            )
        if found.name == MACHINE and found.kind == "key":
            raise UsageError(
                "The machine's own key cannot be removed, because it signs the packages that are built here.",
                help=f"To replace it, delete '{self.folder / 'machine.key'}'. Packages that it has signed are then no "
                "longer trusted.",
            )
        if found.kind == "digest":
            self._digest_file(found.id).unlink(missing_ok=True)
        else:
            (self.folder / "trusted" / f"{found.name}.pub").unlink(missing_ok=True)
        return found

    def listing(self) -> list[Trusted]:
        """Everything that is trusted: the machine's own key, keys of other machines, and digests."""
        found = []
        if (self.folder / "machine.key").exists():
            machine = self._machine_key().public_key()
            found.append(Trusted(kind="key", name=MACHINE, id=key_id(machine), public=_line(machine)))
        found += [
            Trusted(kind="key", name=path.stem, id=key_id(key), public=_line(key)) for path, key in self._others()
        ]
        found += [
            Trusted(kind="digest", name=path.read_text().strip(), id=f"sha256:{path.name}")
            for path in sorted((self.folder / "digests").glob("[0-9a-f]" * 64))
        ]
        return found

    def _others(self) -> list[tuple[Path, Ed25519PublicKey]]:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        keys = []
        for path in sorted((self.folder / "trusted").glob("*.pub")):
            try:
                words = path.read_text().split()
                key = Ed25519PublicKey.from_public_bytes(base64.b64decode(words[0]))
                # Any 32 bytes are a valid key, so the id in the file is needed to notice damage.
                if len(words) > 1 and words[1] != key_id(key):
                    raise ValueError("its id in the file does not match")
            except (ValueError, IndexError) as error:
                raise TrustError(f"'{path}' is not a valid public key: {error}.", help="Remove the file.") from error
            keys.append((path, key))
        return keys

    def _digest_file(self, digest: str) -> Path:
        return self.folder / "digests" / digest.removeprefix("sha256:")

    def _machine_key(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self._machine_secret())

    def _seal_key(self) -> bytes:
        return hmac.digest(self._machine_secret(), _SEALS, "sha256")

    def _machine_secret(self) -> bytes:
        """The machine's private key, created if it is missing. An Ed25519 key is any 32 random bytes."""
        path = self.folder / "machine.key"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            _private_folder(self.folder)
            # If several processes get here at once, the first one creates the key and the others read it.
            new = secrets.token_bytes(_KEY_BYTES)
            _write_atomically(path, base64.b64encode(new) + b" " + _key_sum(new) + b"\n")
            content = path.read_bytes()
        words = content.split()
        try:
            secret = base64.b64decode(words[0], validate=True)
        except (ValueError, IndexError):
            secret = b""
        # Any 32 bytes are a valid key, so the checksum in the file is needed to notice damage. The rest must be as
        # written as well: base64 ignores some bits, and `split` does not distinguish kinds of white space.
        written = base64.b64encode(secret) + (b" " + _key_sum(secret) if len(words) > 1 else b"")
        if len(secret) != _KEY_BYTES or content not in (written, written + b"\n"):
            raise StoreError(
                f"The machine's key '{path}' is damaged.", help="Delete the file. A new key is created at the next use."
            )
        return secret


def _key_sum(secret: bytes) -> bytes:
    return hashlib.sha256(secret).hexdigest()[:16].encode()


def _line(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()


def key_id(key: Ed25519PublicKey) -> str:
    """A short id of a public key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _message(digest: str) -> bytes:
    if not DIGEST.fullmatch(digest):
        raise UsageError(f"'{digest}' is not a digest.", help="A digest has the form sha256:<64 hexadecimal digits>.")
    # The prefix makes sure that a signature cannot be used for another purpose.
    return _CONTEXT + digest.encode()


def _private_folder(folder: Path) -> None:
    """Create a folder for its owner only. A folder of another user, such as a mounted secret, stays as it is."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    close_to_others([folder, *folder.glob("*.key"), *folder.glob("trusted"), *folder.glob("digests")])


def _write_atomically(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file for its owner only, which appears when it is complete. Without `replace`, an existing one stays."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with writing(path):
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                draft.replace(path)
            else:
                with suppress(FileExistsError):
                    path.hardlink_to(draft)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
