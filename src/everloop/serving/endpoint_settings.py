"""What can be set about an endpoint: its limits, who may choose a version, and what the prediction log keeps.

Settings are the endpoint's options, so a change of them is a revision of its record, and a running endpoint takes it
over within a fraction of a second, without a restart.
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
    """The options of an endpoint, each with what holds where it is not set.

    workers: processes that answer, whatever the endpoint was started with, if it was started with several or this was
        set by then. 0: as it was started.
    max_body_bytes: a larger body gets 413, as it comes and once its `Content-Encoding` is undone.
    max_rows: rows, or labels, of one request; more belong into batch scoring (`everloop predict`).
    max_cells: values of one request, whatever its form.
    max_unpacked_bytes: what a table (Arrow, Parquet) may become when it is unpacked; more gets 413.
    max_row_bytes: the texts of one row and its key; a longer row gets 413 and is not logged.
    max_in_flight: requests on their way at once, in each worker; one more gets 503 and `Retry-After`.
    max_queued: large requests that wait for a scoring thread, in each worker; likewise.
    access_stale_s: how long the endpoint's tokens hold on while the store cannot be read; then requests that need one
        get 503.
    request_timeout_s: how long a body may take to come, and a request to be answered from then on; a client's own
        deadline (`X-Request-Timeout-Ms`, or that of gRPC) counts where it is shorter.
    rate_limit: requests a second of one token, or of all who ask without; more get 429. 0: no limit.
    unseen: `refuse` or `flag` values that training has not seen; see `checks`.
    unfit: `refuse` rows that break the signature, or `flag` what can be mended; see `mending`.
    override: who may choose a version by `X-Everloop-Version`: `testers` (tokens made for it), or `anyone`.
    log_sample: the share of requests that is logged, 0 to 1. All answers have ids; those of the rest lead nowhere.
    log_drop: inputs that are never written down.
    log_hash: inputs of which a keyed digest is written down, so that they can be counted and joined, not read.
    log_retention_days: how long the table keeps a prediction. 0: for ever.
    label_horizon_days: how long after a prediction a label may still be about it; see `label_matching`. 0: no limit.
    log_full: what becomes of answers that cannot be logged, because the disk is full: `refuse` them, or `answer`
        all the same and count them in `/metrics`.
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
    """The settings that an endpoint's options make; what else they hold is not looked at.

    Raises:
        UsageError: an option has a value that it cannot have.
    """
    return EndpointSettings(**{name: _checked(name, options[name]) for name in NAMES if options.get(name) is not None})


def read_setting(name: str, text: str) -> Json:
    """A setting given as text, as it is kept.

    Raises:
        UsageError: no such setting, or not a value of its.
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
        good = value in WORDS[name]
    elif name in ("log_drop", "log_hash"):
        good = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        value = tuple(value) if good else value
    elif isinstance(value, bool) or not isinstance(value, int | float):
        good = False
    elif name == "log_sample":
        good = 0 <= value <= 1
    elif name == "workers":
        good = 1 <= value <= MOST_WORKERS
    elif name in _DAYS:
        good = 0 <= value <= MOST_DAYS
    elif name == "rate_limit":
        good = 0 <= value < 2**31
    else:
        good = 0 < value < 2**40
    if not good:
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
