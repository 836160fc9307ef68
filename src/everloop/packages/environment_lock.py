"""The environment lock of a package: every distribution that prediction needs, with exact version and content digest.

A format names a few distributions; the lock adds everything that they require and that is installed here. `content` is
a digest of the list of installed files (the `RECORD`, without what an installer adds), so it is the same for the same
wheel on every machine, and an environment can be compared with it.
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
    """One distribution in a lock."""

    version: str
    requires: tuple[str, ...] = ()
    """The distributions in the lock that it requires."""
    content: str | None = None
    """`sha256:…` of its installed files; None if the installer wrote no list of them."""
    archive: str | None = None
    """`sha256:…` of the file that it was installed from; None if the installer did not record it."""


def lock(names: Iterable[str]) -> dict[str, Locked]:
    """Return the installed distributions with these names and everything that they require, by name.

    A requirement that is not installed (because it is optional or for another system) is left out.
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
    """Return how this environment differs from a lock, one line for each distribution."""
    lines = []
    for name, wanted in sorted(locked.items()):
        here = _locked(name)
        if here is None:
            lines.append(f"{name} {wanted.version} is not installed")
        elif here.version != wanted.version:
            lines.append(f"{name} is {here.version}, not {wanted.version}")
        elif None not in (here.content, wanted.content) and here.content != wanted.content:
            lines.append(f"{name} {wanted.version} is another build")
    return lines


def requirements(locked: Mapping[str, Locked]) -> bytes:
    """Return a `requirements.txt`: every distribution pinned, with hashes if all of them are known.

    pip accepts hashes only for all distributions or for none.

    Raises:
        DataError: a name or version is malformed, so pip would read something else from the line.
    """
    for name, one in locked.items():
        if not (_PLAIN.fullmatch(name) and _VERSION.fullmatch(one.version) and _HASH.fullmatch(one.archive or "")):
            raise DataError(f"'{name[:100]}' in version '{one.version[:100]}' is not a valid distribution.")
    hashed = all(one.archive for one in locked.values())
    lines = [
        f"{name}=={one.version}" + (f" --hash={one.archive}" if hashed else "") for name, one in sorted(locked.items())
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def normal(name: str) -> str:
    """Return a distribution's name in normalized form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@lru_cache(maxsize=1024)
def _locked(name: str) -> Locked | None:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    required = set()
    for line in found.requires or ():
        requirement, _, marker = line.partition(";")
        match = _NAME.match(requirement)
        if match and "extra ==" not in marker.replace("'", '"').replace('extra=="', 'extra == "'):
            required.add(normal(match[1]))
    return Locked(
        version=found.version, requires=tuple(sorted(required)), content=_content(found), archive=_archive(found)
    )


def _content(found: Distribution) -> str | None:
    text = found.read_text("RECORD")
    if text is None or '"editable": true' in (found.read_text("direct_url.json") or ""):
        return None
    # Scripts are outside of the folder and contain the path of their interpreter; bytecode has no digest.
    listed = sorted(
        line
        for line in text.splitlines()
        if "sha256=" in line and not line.startswith(("..", '"..')) and not line.partition(",")[0].endswith(_INSTALLERS)
    )
    joined = "\n".join(listed)
    return f"sha256:{hashlib.sha256(joined.encode()).hexdigest()}" if listed else None


def _archive(found: Distribution) -> str | None:
    try:
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        digest = origin.get("archive_info", {}).get("hashes", {}).get("sha256")
    except (ValueError, AttributeError):
        return None
    return f"sha256:{digest}" if isinstance(digest, str) else None
