"""Internal column names of feature views, kept apart from the user's.

Timelines and tables have internal columns: `event_at`, `arrived_at`, `known_at`. A user's column with such a name is
stored with a prefix, and has its original name again in every result. A view whose column names begin with the prefix
is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.stores.tables.delta_tables import ARRIVED_AT, EVENT_AT

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "__everloop_"
KNOWN_AT = "known_at"
_INTERNAL = (EVENT_AT, ARRIVED_AT, KNOWN_AT)


def stored_name(name: str) -> str:
    """The name under which a user's column is stored."""
    # Delta tables do not distinguish upper and lower case.
    return PREFIX + name if name.lower() in _INTERNAL else name


def user_name(name: str) -> str:
    """The user's name of a stored column."""
    return name.removeprefix(PREFIX)


def stored_names(names: Iterable[str]) -> list[str]:
    return [stored_name(name) for name in names]


def refuse_reserved(view: str, names: Iterable[str]) -> None:
    """Raise UsageError for names that begin with the prefix."""
    for name in names:
        if name.startswith(PREFIX):
            raise UsageError(
                f"The feature view '{view}' has a column '{name}', but names that begin with '{PREFIX}' are reserved.",
                help="Rename the column.",
            )


def refuse_alike(view: str, names: Iterable[str]) -> None:
    """Raise UsageError for names that differ only by case, because a Delta table cannot have both."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise UsageError(
                f"The columns '{other}' and '{name}' of the feature view '{view}' differ only by case, so its table "
                "cannot distinguish them.",
                help="Rename one of them.",
            )
