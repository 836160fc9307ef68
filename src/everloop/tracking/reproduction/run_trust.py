"""Whether a run was started on this machine, and by which key it is signed if it was not.

A run's record is data: a server receives it, an import brings it, another host writes it into a shared store. What it
says of its command must not run only because it stands there. So whoever starts a run here seals what it consists of
(id, loop, command, folder, commit, changes, code, Python, packages) with an HMAC by this machine's own key, which never
leaves the folder of keys. An export carries a signature instead, which those can check who trust this machine's key.
Everything else is foreign, whatever its fields say.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import msgspec

from everloop.errors import StoreError, TrustError
from everloop.stores.trust import Keyring

if TYPE_CHECKING:
    from everloop.records import Run

_log = logging.getLogger("everloop.tracking")
_encoder = msgspec.json.Encoder(order="sorted")
_CONTEXT = b"everloop:run:1:"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProvenance:
    """Where a run comes from, as far as that can be proved."""

    kind: Literal["here", "signed", "foreign"]
    digest: str
    """Of everything that doing the run again depends on. `everloop trust add DIGEST` trusts exactly this."""
    key: str | None = None
    """Name of the trusted key that signed it; `digest` where the digest itself is trusted."""
    why: str = ""
    """Why it is foreign."""


def message_of(run: Run) -> bytes:
    """What is sealed: everything in a run's record that decides what doing it again executes."""
    source = run.source
    said = {
        "id": run.id,
        "loop": run.loop,
        "params": run.params if run.loop is not None else None,
        "launch": source.launch,
        "folder": source.folder,
        "code": source.code,
        "git_commit": source.git_commit,
        "git_dirty": source.git_dirty,
        "git_root": source.git_root,
        "changes": source.changes,
        "python": source.python,
        "packages": source.packages,
    }
    return _CONTEXT + _encoder.encode(said)


def digest_of(run: Run) -> str:
    return f"sha256:{hashlib.sha256(message_of(run)).hexdigest()}"


def sealed(run: Run) -> Run:
    """The run with this machine's seal; as it is, if the machine can keep no key."""
    try:
        return replace(run, source=replace(run.source, seal=Keyring().seal(message_of(run)), signature=None))
    except (OSError, RuntimeError, StoreError) as trouble:
        _log.debug("The run '%s' is not sealed: %s", run.name, trouble)
        return run


def is_from_here(run: Run) -> bool:
    """Whether this machine sealed this very run."""
    try:
        return bool(run.source.seal) and Keyring().is_sealed(message_of(run), run.source.seal or "")
    except (OSError, RuntimeError, StoreError):
        return False


def signed(run: Run) -> Run:
    """The run as it is exported: with a signature if it was started here, and never with a seal."""
    source = replace(run.source, seal=None)
    if is_from_here(run):
        source = replace(source, signature=Keyring().sign(digest_of(run)))
    return replace(run, source=source)


def provenance_of(run: Run) -> RunProvenance:
    """Where a run comes from. Nothing in its record counts but a seal or a signature."""
    digest = digest_of(run)
    if is_from_here(run):
        return RunProvenance(kind="here", digest=digest)
    keyring = Keyring()
    signature = run.source.signature
    try:
        keyring.check(digest, signature)
    except TrustError:
        return RunProvenance(kind="foreign", digest=digest, why=_why(run, keyring))
    names = {entry.id: entry.name for entry in keyring.listing()}
    return RunProvenance(kind="signed", digest=digest, key=names.get((signature or {}).get("key", ""), "digest"))


def _why(run: Run, keyring: Keyring) -> str:
    if run.source.signature:
        key = str(run.source.signature.get("key", ""))
        return f"the key '{key}' that signed it is not trusted here, or its record was changed since"
    if run.source.seal:
        return "another machine started it, or its record was changed since"
    return "nothing proves that it was started on this machine"
