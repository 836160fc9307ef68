"""The numbered migrations that bring a database to the present schema: `<dialect>/<number>_<name>.sql`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import StoreVersionError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    script: str


@cache
def migrations(dialect: str) -> tuple[Migration, ...]:
    """All migrations of a dialect in order, numbered from 1 without gaps."""
    found = []
    for path in sorted((Path(__file__).parent / dialect).glob("*.sql")):
        number, _, name = path.stem.partition("_")
        found.append(Migration(int(number), name, path.read_text(encoding="utf-8")))
    return tuple(found)


def check_version(stored: int, steps: Sequence[Migration], where: str) -> int:
    """Return the version of a store.

    Raises:
        StoreVersionError: it is newer than the newest migration.
    """
    newest = steps[-1].number
    if stored > newest:
        raise StoreVersionError(
            f"The store '{where}' has version {stored}, but this everloop supports versions up to {newest}.",
            help="Upgrade everloop: pip install --upgrade everloop",
        )
    return stored
