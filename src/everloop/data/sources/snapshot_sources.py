"""Dataset versions as sources: `everloop:flights@3`, `everloop:flights`, `everloop:flights@2026-03-01`."""

from __future__ import annotations

import re
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from everloop.data.snapshots.snapshots import get_snapshot, load_snapshot
from everloop.errors import NotFoundError, SourceError
from everloop.records import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.records import Json
    from everloop.stores import Store

SCHEME = "everloop:"
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}.*")


def is_version(source: str) -> bool:
    return source.startswith(SCHEME)


def scan_version(source: str, columns: Sequence[str] | None = None) -> tuple[pl.LazyFrame, str]:
    """The rows of a version, and its digest.

    The version is looked up in the store of the current run, or else in the store of this folder.

    Args:
        source: `everloop:` followed by a version such as `flights@3`, by a dataset for its newest version, or by a
            dataset and a time in ISO 8601 for its newest version at that time.

    Raises:
        SourceError: the version does not exist.
    """
    with ExitStack() as stack:
        store = _store(stack)
        try:
            found = find_version(source.removeprefix(SCHEME), store)
        except NotFoundError as error:
            raise SourceError(error.message, help=error.help) from error
        return load_snapshot(found, store, columns=columns), found.digest


def version_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The digest of the version that `spec["ref"]` currently refers to."""
    with ExitStack() as stack:
        return find_version(spec["ref"], _store(stack)).digest


def version_change(before: str, after: str) -> str:
    return "" if before == after else "another version"


def find_version(ref: str, store: Store) -> Snapshot:
    """The snapshot for `flights@3`, `flights` or `flights@2026-03-01`.

    Raises:
        NotFoundError: it does not exist.
        SourceError: the text after the @ looks like a time but is not valid.
    """
    dataset, _, version = ref.partition("@")
    if not _MOMENT.fullmatch(version):
        return get_snapshot(ref, store)
    try:
        moment = datetime.fromisoformat(version)
    except ValueError as error:
        raise SourceError(
            f"'{version}' in '{ref}' is not a time in ISO 8601.", help="Write for example 2026-03-01T12:00:00."
        ) from error
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    found = store.records.find(
        Snapshot, ("dataset", "=", dataset), ("created_at", "<=", moment), order="-version", limit=1
    )
    if not found:
        first = store.records.find(Snapshot, ("dataset", "=", dataset), order="version", limit=1)
        known = (
            f"Its first version was created at {first[0].created_at.isoformat()}." if first else "See: everloop data ls"
        )
        raise NotFoundError(f"'{dataset}' had no version at {moment.isoformat()}.", help=known)
    return found[0]


def _store(stack: ExitStack) -> Store:
    from everloop.stores import checked_store, open_store
    from everloop.tracking import current_run

    run, checked = current_run(), checked_store()
    if checked is not None:
        return checked
    return run.store if run is not None else stack.enter_context(open_store(create=False))
