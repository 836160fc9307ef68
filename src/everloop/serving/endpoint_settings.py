"""The settings of an endpoint: its limits, who may choose a version, and what the prediction log keeps.

Settings are the endpoint's options, so changing them makes a new revision of its record. A running endpoint applies it
within a fraction of a second, without a restart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from everloop.errors import UsageError
from everloop.prediction_log.log_settings import MOST_DAYS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from everloop.records import Json

MAX_BODY_BYTES = 8 << 20
MAX_ROWS = 20_000
MAX_CELLS = 1_000_000
MAX_UNPACKED_BYTES = 16 << 20
MAX_ROW_BYTES = 1 << 20
MAX_IN_FLIGHT = 256
MOST_WORKERS = 64
MAX_QUEUED = 32
REQUEST_TIMEOUT_S = 60.0
ACCESS_STALE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """The options of an endpoint with their defaults.

    workers: number of worker processes. Replaces the number that the endpoint was started with, if it was started with
        several or this was already set. 0: as it was started.
    max_body_bytes: a larger body gets 413, both as it arrives and after its `Content-Encoding` is undone.
    max_rows: rows, or labels, of one request. For more, use batch scoring (`everloop predict`).
    max_cells: values of one request, in any format.
    max_unpacked_bytes: size of a table (Arrow, Parquet) when decompressed; a larger one gets 413.
    max_row_bytes: size of the texts of one row and its key; a longer row gets 413 and is not logged.
    max_in_flight: requests in flight in each worker; one more gets 503 and `Retry-After`.
    max_queued: large requests that wait for a scoring thread in each worker; one more gets 503 and `Retry-After`.
    access_stale_s: how long tokens stay valid while the store cannot be read; then requests that need one get 503.
    request_timeout_s: how long a body may take to arrive, and from then on how long the request may take. A client's
        own deadline (`X-Request-Timeout-Ms`, or that of gRPC) counts if it is shorter.
    rate_limit: requests per second for one token, or for all clients without one; more get 429. 0: no limit.
    unseen: `refuse` or `flag` values that training has not seen; see `unseen_values`.
    unfit: `refuse` rows that do not fit the signature, or coerce them if possible and `flag` it; see `coercion`.
    override: who may choose a version by `X-Everloop-Version`: `testers` (tokens created for that), or `anyone`.
    log_sample: the share of requests that is logged, 0 to 1. Answers that are not logged have ids, too.
    log_drop: inputs that are never logged.
    log_hash: inputs that are logged as a keyed digest, so they can be counted and joined but not read.
    log_retention_days: how long the table keeps a prediction, up to 36,500. 0: for ever.
    label_horizon_days: how long after a prediction a label can still match it, up to 36,500; see `label_matching`. 0:
        no limit.
    log_full: whether answers that cannot be logged because the disk is full are refused (`refuse`) or sent all the same
        and counted in `/metrics` (`answer`).
    """

    workers: int = 0
    max_body_bytes: int = MAX_BODY_BYTES
    max_rows: int = MAX_ROWS
    max_cells: int = MAX_CELLS
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES
    max_row_bytes: int = MAX_ROW_BYTES
    max_in_flight: int = MAX_IN_FLIGHT
    max_queued: int = MAX_QUEUED
    access_stale_s: float = ACCESS_STALE_S
    request_timeout_s: float = REQUEST_TIMEOUT_S
    rate_limit: float = 0.0
    unseen: str | None = None
    unfit: str = "refuse"
    override: str = "testers"
    log_sample: float = 1.0
    log_drop: tuple[str, ...] = ()
    log_hash: tuple[str, ...] = ()
    log_retention_days: float = 0.0
    label_horizon_days: float = 0.0
    log_full: str = "refuse"


WORDS: dict[str, tuple[str, ...]] = {
    "unseen": ("refuse", "flag"),
    "unfit": ("refuse", "flag"),
    "override": ("testers", "anyone"),
    "log_full": ("refuse", "answer"),
}
_DAYS = ("log_retention_days", "label_horizon_days")
NAMES = tuple(field.name for field in fields(EndpointSettings))


def settings_of(options: Mapping[str, Json]) -> EndpointSettings:
    """The settings in an endpoint's options. Other options are ignored.

    Raises:
        UsageError: an option has an impossible value.
    """
    return EndpointSettings(**{name: _checked(name, options[name]) for name in NAMES if options.get(name) is not None})


def read_setting(name: str, text: str) -> Json:
    """Parse a setting that was given as text.

    Raises:
        UsageError: the setting does not exist, or the value is not possible.
    """
    if name not in NAMES:
        raise UsageError(f"An endpoint has no option '{name}'.", help=f"Options: {', '.join(NAMES)}")
    if name in ("log_drop", "log_hash"):
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in WORDS:
        return cast("Json", _checked(name, text))
    kind: Callable[[str], Any] = int if name.startswith("max_") or name == "workers" else float
    try:
        value = kind(text)
    except ValueError:
        raise _refused(name, text) from None
    return cast("Json", _checked(name, value))


def _checked(name: str, value: Any) -> Any:
    if name in WORDS:
        valid = value in WORDS[name]
    elif name in ("log_drop", "log_hash"):
        valid = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        value = tuple(value) if valid else value
    elif isinstance(value, bool) or not isinstance(value, int | float):
        valid = False
    elif name == "log_sample":
        valid = 0 <= value <= 1
    elif name == "workers":
        valid = 1 <= value <= MOST_WORKERS
    elif name in _DAYS:
        valid = 0 <= value <= MOST_DAYS
    elif name == "rate_limit":
        valid = 0 <= value < 2**31
    else:
        valid = 0 < value < 2**40
    if not valid:
        raise _refused(name, value)
    return value


def _refused(name: str, value: object) -> UsageError:
    if name in WORDS:
        wanted = " or ".join(WORDS[name])
    elif name == "log_sample":
        wanted = "a share from 0 to 1"
    elif name == "workers":
        wanted = f"a number from 1 to {MOST_WORKERS}"
    elif name in ("log_drop", "log_hash"):
        wanted = "names of inputs, separated by commas"
    elif name in _DAYS:
        wanted = f"a number of days from 0 to {MOST_DAYS}"
    else:
        wanted = "a number from 0 upwards" if name == "rate_limit" else "a number above 0"
    return UsageError(f"{name}: {value!r} is not a possible value.", help=f"Use {wanted}.")


__all__ = ["NAMES", "EndpointSettings", "read_setting", "settings_of"]
