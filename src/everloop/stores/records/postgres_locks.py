"""Advisory locks of transactions in PostgreSQL.

A lock is named by what it protects: the schema, a project, or a part of a project. Its key has the number of the schema
and 32 bits of a digest of the name. If two names have the same digest, their writers wait for each other needlessly.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = "schema"


def project_lock(project: str) -> str:
    return f"project\0{project}"


def events_lock(project: str) -> str:
    """Held from the moment at which events of a project get their numbers until they are visible."""
    return f"events\0{project}"


def listeners_lock(project: str) -> str:
    """Shared by all clients that wait for events of a project."""
    return f"listeners\0{project}"


def wanted_locks(project: str | None, parts: Sequence[str]) -> dict[str, bool]:
    """The locks of a transaction in the order in which they are taken, each with True if it is exclusive.

    Args:
        project: None for the whole schema.
        parts: empty for the whole project.
    """
    if project is None:
        return {SCHEMA: True}
    locks = {SCHEMA: False, project_lock(project): not parts}
    return locks | {f"part\0{project}\0{part}": True for part in sorted(set(parts))}


def missing_locks(held: Mapping[str, bool], project: str | None, parts: Sequence[str]) -> dict[str, bool]:
    """The locks that a transaction inside of another one has to take, besides those that are held."""
    if held.get(SCHEMA) or (project is not None and held.get(project_lock(project))):
        return {}
    wanted = wanted_locks(project, parts)
    return {name: alone for name, alone in wanted.items() if name not in held or (alone and not held[name])}


def lock_statements(locks: Mapping[str, bool]) -> bytes:
    """Statements that wait for locks, which are held until the end of the transaction."""
    return "; ".join(
        f"SELECT pg_advisory_xact_lock{'' if alone else '_shared'}({key_of(name)})" for name, alone in locks.items()
    ).encode()


@lru_cache(maxsize=4096)
def key_of(name: str) -> str:
    """The key of a lock, as an expression."""
    digest = int.from_bytes(sha256(name.encode("utf-8", "surrogatepass")).digest()[:4], "big", signed=True)
    return f"('{digest}'::bigint << 32) | current_schema()::regnamespace::oid::bigint"
