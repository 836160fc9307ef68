"""The endpoint's options that concern its prediction log, read without its other settings."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Protocol

from everloop.errors import UsageError
from everloop.records import EndpointRecord

if TYPE_CHECKING:
    from everloop.stores import Store

MOST_DAYS = 36_500
"""The longest time limit, a hundred years. A moment that long ago can still be represented."""


class HiddenInputs(Protocol):
    """The settings that say which inputs the log does not keep as they are."""

    @property
    def log_drop(self) -> tuple[str, ...]: ...

    @property
    def log_hash(self) -> tuple[str, ...]: ...


def read_days(
    store: Store, endpoint: str, option: Literal["label_horizon_days", "log_retention_days"]
) -> timedelta | None:
    """A time limit from an endpoint's options; None if it is 0, not set, or the endpoint does not exist.

    Raises:
        UsageError: the option is not a number of days from 0 to `MOST_DAYS`.
    """
    found = store.records.find(EndpointRecord, ("name", "=", endpoint), limit=1)
    days = found[0].options.get(option) if found else None
    if days is None:
        return None
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 <= days <= MOST_DAYS:
        raise UsageError(
            f"{option}: {days!r} is not a number of days from 0 to {MOST_DAYS}.",
            help=f"Set it again: everloop endpoints set {endpoint} {option}=30",
        )
    return timedelta(days=days) if days else None
