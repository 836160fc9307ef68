"""How columns are called inside this room, so that ours are never a user's.

Timelines and tables have columns of their own: `event_at`, `arrived_at`, `known_at`. A user's column of such a name is
held there with a prefix, and has its own name again in every answer. Names that begin with the prefix are refused when
a view is declared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.stores.tables.delta_tables import ARRIVED_AT, EVENT_AT

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "__everloop_"
KNOWN_AT = "known_at"
_OURS = (EVENT_AT, ARRIVED_AT, KNOWN_AT)


def held(name: str) -> str:
    """The name under which a user's column is held."""
    # Delta tables do not tell upper case from lower case.
    return PREFIX + name if name.lower() in _OURS else name


def said(name: str) -> str:
    """The user's name of a column that is held."""
    return name.removeprefix(PREFIX)


def held_names(names: Iterable[str]) -> list[str]:
    return [held(name) for name in names]


def refuse_reserved(view: str, names: Iterable[str]) -> None:
    """Raise UsageError for names that begin with the prefix."""
    for name in names:
        if name.startswith(PREFIX):
            raise UsageError(
                f"The feature view '{view}' has a column '{name}'; names that begin with '{PREFIX}' are reserved.",
                help="Rename the column.",
            )


def refuse_alike(view: str, names: Iterable[str]) -> None:
    """Raise UsageError for names that differ only by case: a Delta table cannot hold both."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise UsageError(
                f"The columns '{other}' and '{name}' of the feature view '{view}' differ only by case, and its table "
                "cannot tell them apart.",
                help="Rename one of them.",
            )
