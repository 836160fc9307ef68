"""Who vouches for bytes: Ed25519 signatures over digests, and the keys that this machine trusts.

Trust lives outside of what is trusted: in a folder of keys, `$EVERLOOP_KEYS` or `~/.config/everloop/keys`, with
`machine.key`, made on first use and known to nobody else; `trusted/*.pub`, the public keys of others; and `digests/`,
one file for each package that is trusted by its bytes alone, whoever signed it. What a machine signs it trusts itself.
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
"""The name of the machine's own key."""


def keys_folder() -> Path:
    named = os.environ.get("EVERLOOP_KEYS")
    return Path(named) if named else Path.home() / ".config" / "everloop" / "keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """One entry of what this machine trusts: a key, or a package by its digest."""

    kind: Literal["key", "digest"]
    name: str
    """A key's name, `machine` for the machine's own; of a digest, why it is trusted."""
    id: str
    """The key's id, or the digest."""
    public: str | None = None
    """The public key as one line, for others to trust."""


def sign(digest: str) -> dict[str, str]:
    """Vouch for a digest with the machine's key; returns `{"key": key id, "signature": base64}`."""
    return Keyring().sign(digest)


def check(digest: str, signature: dict[str, str] | None) -> None:
    """Return if a trusted key vouches for the digest, or the digest itself is on the list of what is trusted.

    Raises:
        TrustError: there is no signature, its key is not trusted, or it is for other bytes.
    """
    Keyring().check(digest, signature)


class Keyring:
    """One folder of keys."""

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
                f"Nobody vouches for {digest}, and it holds code.",
                help=f"If you have looked at it yourself and trust these very bytes: everloop trust add {digest}",
            )
        name = signature["key"]
        key = self.trusted().get(name)
        if key is None:
            raise TrustError(
                f"The key '{name}', which vouches for {digest}, is not trusted here.",
                help="If you trust its owner: everloop trust add KEY --name WHO, with what 'trust show' prints there.",
            )
        try:
            key.verify(base64.b64decode(signature["signature"], validate=True), _message(digest))
        except (InvalidSignature, ValueError):
            raise TrustError(
                f"The signature by the key '{name}' is not one of {digest}: the bytes or the signature were changed.",
                help="Get it again from where it was made. What is trusted here: everloop trust ls",
            ) from None

    def trusted(self) -> dict[str, Ed25519PublicKey]:
        """Every trusted public key by its id: the machine's own, where it has been made, and those of others."""
        keys = [key for _, key in self._others()]
        if (self.folder / "machine.key").exists():
            keys.insert(0, self._machine_key().public_key())
        return {key_id(key): key for key in keys}

    def seal(self, message: bytes) -> str:
        """A proof that this machine can check again, and no other can make: an HMAC, in microseconds."""
        return hmac.digest(self._seal_key(), message, "sha256").hex()

    def is_sealed(self, message: bytes, seal: str) -> bool:
        """Whether `seal` was made here, of this message. Without a key of its own nothing was."""
        if not (self.folder / "machine.key").exists():
            return False
        return hmac.compare_digest(self.seal(message).encode(), seal.encode("utf-8", "replace"))

    def public_key(self) -> str:
        """The machine's public key as one line of base64, for others to trust."""
        return _line(self._machine_key().public_key())

    def trust(self, public: str, name: str) -> str:
        """Trust a key that somebody else has published, and return its id.

        Args:
            public: what `public_key` returned there.
            name: of the file that keeps it: letters, digits, `-` and `_`.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if not name.replace("-", "").replace("_", "").isalnum() or name == MACHINE:
            raise UsageError(f"'{name}' is no name for a key.", help="Use letters, digits, '-' and '_'.")
        try:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public.split()[0], validate=True))
        except (ValueError, IndexError) as error:
            raise UsageError(
                f"That is no public key: {error}.", help="Use the line that `everloop trust show` prints."
            ) from error
        held = self.folder / "trusted" / f"{name}.pub"
        if held.exists() and held.read_text().split()[:1] != public.split()[:1]:
            raise AlreadyExistsError(
                f"Another key is trusted as '{name}' already.", help=f"Take that back first: everloop trust rm {name}"
            )
        _private_folder(self.folder)
        _private_folder(held.parent)
        _write_whole(held, f"{public.split()[0]} {key_id(key)}\n".encode(), replace=True)
        return key_id(key)

    def trust_digest(self, digest: str, why: str = "") -> None:
        """Trust a package by its bytes, whoever signed it or nobody.

        Args:
            why: for people, one line.
        """
        _message(digest)
        place = self._digest_file(digest)
        _private_folder(self.folder)
        _private_folder(place.parent)
        _write_whole(place, (" ".join(why.split()) + "\n").encode(), replace=True)

    def distrust(self, what: str) -> Trusted:
        """Take trust back from a key, by name or id, or from a digest. Returns what was trusted.

        Raises:
            NotFoundError: nothing of that name is trusted.
            UsageError: it is the machine's own key.
        """
        entries = self.listing()
        found = next((entry for entry in entries if what in (entry.id, entry.name) and entry.kind == "key"), None)
        found = found or next((entry for entry in entries if what == entry.id), None)
        if found is None:
            known = ", ".join(entry.name if entry.kind == "key" else entry.id for entry in entries)
            raise NotFoundError(f"'{what}' is not trusted here.", help=f"Trusted: {known or 'nothing'}")
        if found.name == MACHINE and found.kind == "key":
            raise UsageError(
                "The machine's own key signs what is made here and stays.",
                help=f"To start anew, remove '{self.folder / 'machine.key'}'; what it signed is then trusted no more.",
            )
        if found.kind == "digest":
            self._digest_file(found.id).unlink(missing_ok=True)
        else:
            (self.folder / "trusted" / f"{found.name}.pub").unlink(missing_ok=True)
        return found

    def listing(self) -> list[Trusted]:
        """Everything that is trusted: the machine's own key, those of others, and digests."""
        found = []
        if (self.folder / "machine.key").exists():
            own = self._machine_key().public_key()
            found.append(Trusted(kind="key", name=MACHINE, id=key_id(own), public=_line(own)))
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
                # Any 32 bytes are a key; its id beside it tells which ones it had.
                if len(words) > 1 and words[1] != key_id(key):
                    raise ValueError("it is not the key whose id stands beside it")
            except (ValueError, IndexError) as error:
                raise TrustError(f"'{path}' holds no public key: {error}.", help="Remove it.") from error
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
        """The machine's private key, made where there is none: an Ed25519 key is any 32 random bytes."""
        path = self.folder / "machine.key"
        try:
            held = path.read_bytes()
        except FileNotFoundError:
            _private_folder(self.folder)
            # The first process makes the key; the others read it.
            made = secrets.token_bytes(_KEY_BYTES)
            _write_whole(path, base64.b64encode(made) + b" " + _key_sum(made) + b"\n")
            held = path.read_bytes()
        words = held.split()
        try:
            secret = base64.b64decode(words[0], validate=True)
        except (ValueError, IndexError):
            secret = b""
        # Any 32 bytes are a key; the checksum beside it shows that these are the ones that were written.
        if len(secret) != _KEY_BYTES or (len(words) > 1 and words[1] != _key_sum(secret)):
            raise StoreError(
                f"The machine's key '{path}' is damaged.",
                help="Remove it; a new one is made.",
            )
        return secret


def _key_sum(secret: bytes) -> bytes:
    return hashlib.sha256(secret).hexdigest()[:16].encode()


def _line(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()


def key_id(key: Ed25519PublicKey) -> str:
    """A short name of a public key: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _message(digest: str) -> bytes:
    if not DIGEST.fullmatch(digest):
        raise UsageError(f"'{digest}' is no digest.", help="A digest reads sha256:<64 hexadecimal digits>.")
    # The words in front keep a signature from meaning something elsewhere.
    return _CONTEXT + digest.encode()


def _private_folder(folder: Path) -> None:
    """The folder of keys, for its owner only. One that another has made, such as a mounted secret, stays as it is."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    close_to_others([folder, *folder.glob("*.key"), *folder.glob("trusted"), *folder.glob("digests")])


def _write_whole(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file for its owner only, which appears whole or not at all; one that is there stays unless replaced."""
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
