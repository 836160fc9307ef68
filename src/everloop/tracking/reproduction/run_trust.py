"""Trust in runs: whether a run was started on this machine, and if not, which key has signed it.

A run's record may come from anywhere: from a client of a server, an import, or another host that shares the store. Its
command must not be executed only because the record contains it. So when a run is started here, everything that it
executes (id, loop, command, folder, commit, changes, code, Python, packages) is sealed: with an HMAC by this machine's
own key, which never leaves the folder of keys. An export has a signature instead, which can be checked by anyone who
trusts this machine's key. All other runs are foreign, regardless of what their fields contain.
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
    """Where a run comes from, as far as it can be proved."""

    kind: Literal["here", "signed", "foreign"]
    digest: str
    """Digest of everything that the run executes. `everloop trust add DIGEST` trusts exactly this."""
    key: str | None = None
    """Name of the trusted key that signed it; `digest` if the digest itself is trusted."""
    why: str = ""
    """The reason why it is foreign."""


def message_of(run: Run) -> bytes:
    """The sealed message: everything in a run's record that decides what its reproduction executes."""
    source = run.source
    content = {
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
    return _CONTEXT + _encoder.encode(content)


def digest_of(run: Run) -> str:
    return f"sha256:{hashlib.sha256(message_of(run)).hexdigest()}"


def sealed(run: Run) -> Run:
    """The run with this machine's seal; unchanged if this machine cannot store a key."""
    try:
        return replace(run, source=replace(run.source, seal=Keyring().seal(message_of(run)), signature=None))
    except (OSError, RuntimeError, StoreError) as error:
        _log.debug("The run '%s' is not sealed: %s", run.name, error)
        return run


def is_from_here(run: Run) -> bool:
    """Whether this machine has sealed the run, and it has not been changed since."""
    try:
        return bool(run.source.seal) and Keyring().is_sealed(message_of(run), run.source.seal or "")
    except (OSError, RuntimeError, StoreError):
        return False


def signed(run: Run) -> Run:
    """The run for an export: with a signature if it was started here, and always without a seal."""
    source = replace(run.source, seal=None)
    if is_from_here(run):
        source = replace(source, signature=Keyring().sign(digest_of(run)))
    return replace(run, source=source)


def provenance_of(run: Run) -> RunProvenance:
    """Determine where a run comes from. Only a seal or a signature counts, and no other field of its record."""
    digest = digest_of(run)
    if is_from_here(run):
        return RunProvenance(kind="here", digest=digest)
    keyring = Keyring()
    signature = run.source.signature
    try:
        keyring.check(digest, signature)
    except TrustError:
        return RunProvenance(kind="foreign", digest=digest, why=_why_foreign(run))
    names = {entry.id: entry.name for entry in keyring.listing()}
    return RunProvenance(kind="signed", digest=digest, key=names.get((signature or {}).get("key", ""), "digest"))


def _why_foreign(run: Run) -> str:
    if run.source.signature:
        key = str(run.source.signature.get("key", ""))
        return f"it is signed by the key '{key}', which is not trusted here, or it was changed after it was signed"
    if run.source.seal:
        return "another machine started it, or its record was changed later"
    return "nothing proves that it was started on this machine"
