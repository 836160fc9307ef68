"""The environment lock of a package: every distribution that answering needs, in its exact version, and what it holds.

From the few that a format names the lock follows what each requires, as far as it is installed here. `content` is a
digest over the list of files that a distribution was installed with (its `RECORD`, less what an installer adds), so it
is the same for the same wheel on every machine, and an environment can be held against it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import TYPE_CHECKING

from everloop.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_HASH = re.compile(r"(sha256:[0-9a-f]{64})?")
_INSTALLERS = ("/INSTALLER", "/REQUESTED", "/RECORD", "/direct_url.json", "/uv_cache.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One distribution."""

    version: str
    requires: tuple[str, ...] = ()
    """The distributions of the lock that it needs."""
    content: str | None = None
    """`sha256:…` of what it was installed with; None where the installer kept no list."""
    archive: str | None = None
    """`sha256:…` of the file that it was installed from, where the installer noted that."""


def lock(names: Iterable[str]) -> dict[str, Locked]:
    """The distributions of these names and everything that they require, of what is installed here, by name.

    A requirement that is not installed (of another system, or optional) is passed over.
    """
    found: dict[str, Locked] = {}
    waiting = sorted(names)
    while waiting:
        name = normal(waiting.pop())
        known = None if name in found else _locked(name)
        if known is None:
            continue
        found[name] = known
        waiting.extend(known.requires)
    return {
        name: Locked(
            version=one.version,
            requires=tuple(other for other in one.requires if other in found),
            content=one.content,
            archive=one.archive,
        )
        for name, one in sorted(found.items())
    }


def differences(locked: Mapping[str, Locked]) -> list[str]:
    """What of a lock is not installed here as it was there, one line each; empty where all is."""
    told = []
    for name, wanted in sorted(locked.items()):
        here = _locked(name)
        if here is None:
            told.append(f"{name} {wanted.version} is not installed")
        elif here.version != wanted.version:
            told.append(f"{name} is {here.version}, not {wanted.version}")
        elif None not in (here.content, wanted.content) and here.content != wanted.content:
            told.append(f"{name} {wanted.version} was built otherwise")
    return told


def requirements(locked: Mapping[str, Locked]) -> bytes:
    """`requirements.txt`: every distribution pinned, with hashes where all of them are known.

    pip takes hashes only for all or for none.

    Raises:
        DataError: a name or version is none, so that the line would say something else to pip.
    """
    for name, one in locked.items():
        if not (_PLAIN.fullmatch(name) and _VERSION.fullmatch(one.version) and _HASH.fullmatch(one.archive or "")):
            raise DataError(f"'{name[:100]}' in version '{one.version[:100]}' is no distribution.")
    hashed = all(one.archive for one in locked.values())
    lines = [
        f"{name}=={one.version}" + (f" --hash={one.archive}" if hashed else "") for name, one in sorted(locked.items())
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def normal(name: str) -> str:
    """A distribution's name as all spell it alike."""
    return re.sub(r"[-_.]+", "-", name).lower()


@lru_cache(maxsize=1024)
def _locked(name: str) -> Locked | None:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    required = set()
    for line in found.requires or ():
        asked, _, marker = line.partition(";")
        match = _NAME.match(asked)
        if match and "extra ==" not in marker.replace("'", '"').replace('extra=="', 'extra == "'):
            required.add(normal(match[1]))
    return Locked(
        version=found.version, requires=tuple(sorted(required)), content=_content(found), archive=_archive(found)
    )


def _content(found: Distribution) -> str | None:
    text = found.read_text("RECORD")
    if text is None or '"editable": true' in (found.read_text("direct_url.json") or ""):
        return None
    # Scripts lie outside and hold the path of their interpreter; bytecode has no digest.
    kept = sorted(
        line
        for line in text.splitlines()
        if "sha256=" in line and not line.startswith(("..", '"..')) and not line.partition(",")[0].endswith(_INSTALLERS)
    )
    joined = "\n".join(kept)
    return f"sha256:{hashlib.sha256(joined.encode()).hexdigest()}" if kept else None


def _archive(found: Distribution) -> str | None:
    try:
        told = json.loads(found.read_text("direct_url.json") or "{}")
        digest = told.get("archive_info", {}).get("hashes", {}).get("sha256")
    except (ValueError, AttributeError):
        return None
    return f"sha256:{digest}" if isinstance(digest, str) else None
