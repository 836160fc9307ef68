"""Report the current drift of an endpoint, whether or not a loop monitors it. Nothing is stored.

The predictions of a version are compared with its baseline. A version that was saved without a loop has no baseline.
Then the example in its package is used instead, and a notice says how small that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, EmptySampleError, NotFoundError
from everloop.monitoring.baseline import Baseline, build_baseline, find_baseline
from everloop.monitoring.drift import compare_window
from everloop.monitoring.logged_windows import read_inputs_and_score, read_window
from everloop.records import EndpointRecord

if TYPE_CHECKING:
    import polars as pl

    from everloop.monitoring.subject_shift import SubjectShift
    from everloop.packages.signature import Signature
    from everloop.stores import Store

_LEAST_SPAN = timedelta(days=1)
"""A shorter window, such as the first seconds of an endpoint, gets the alarm budget of a window of this length."""
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """The drift of a version's predictions in a window against its baseline."""

    endpoint: str
    version: str
    window_from: datetime
    window_to: datetime
    rows: int
    reference_rows: int
    shifts: list[SubjectShift]
    notice: str | None
    """A remark on a weak baseline; None if it was built when the version was trained."""


def report_drift(
    store: Store,
    endpoint: str,
    *,
    version: str | None = None,
    window: timedelta | None = None,
    alarms_per_month: float = 1.0,
) -> DriftReport:
    """Compare a version's newest predictions with its baseline.

    Args:
        version: key of a model version. Default: the endpoint's champion.
        window: length of the window, which ends with the version's last prediction. Default: all its predictions.
        alarms_per_month: how many false alarms a month are tolerated.

    Raises:
        NotFoundError: the endpoint does not exist, or it has no champion yet.
        EmptySampleError: the version has no predictions yet.
    """
    record = store.records.get(EndpointRecord, endpoint)
    if version is None:
        champions = [route.version for route in record.routes if route.role == "champion"]
        if not champions:
            raise NotFoundError(
                f"The endpoint '{endpoint}' has no champion to report on.",
                help="Release a version first. See: everloop release",
            )
        version = champions[0]
    moments = read_window(store, endpoint, None, None, version=version, columns=["event_at"])["event_at"]
    first: Any = moments.min()
    until: Any = moments.max() + _INSTANT  # type: ignore[operator]
    since: datetime = first if window is None else max(first, until - window)
    baseline, notice = baseline_of(store, version)
    rows = read_inputs_and_score(store, endpoint, version, since, until, baseline.columns)
    span = max(until - since, _LEAST_SPAN)
    shifts = compare_window(baseline, rows, span=span, since=since, alarms_per_month=alarms_per_month)
    return DriftReport(
        endpoint=endpoint,
        version=version,
        window_from=since,
        window_to=until,
        rows=rows.height,
        reference_rows=baseline.rows,
        shifts=shifts,
        notice=notice,
    )


def baseline_of(store: Store, version: str) -> tuple[Baseline, str | None]:
    """Return a version's baseline and None, or a baseline from the example in its package and a notice that says so.

    Raises:
        NotFoundError: the version does not exist, or it has neither a baseline nor an example.
    """
    stored = find_baseline(store, version)
    if stored is not None:
        return stored, None
    rows, scored = _example_of(store, version)
    baseline = build_baseline(rows, scored=scored)
    notice = (
        f"'{version}' has no baseline of its training data. It is compared with the {rows.height} "
        f"row{'s' if rows.height != 1 else ''} of the example that it was saved with, which is rough. "
        f"Add a better one: everloop monitor baseline {version} FILE"
    )
    return baseline, notice


def frame_for(signature: Signature, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the inputs in a table with the types of the prediction log, for a baseline. Missing ones are left out."""
    import polars as pl

    from everloop.packages.signature import polars_type

    columns = [
        pl.col(item.name).cast(polars_type(item.type), strict=False)
        for item in signature.inputs
        if item.name in rows.columns
    ]
    return rows.select(columns)


def _example_of(store: Store, version: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return example rows that a version was saved with, and its scores for them."""
    import msgspec
    import polars as pl

    from everloop.packages.golden_rows import FILE, ROWS
    from everloop.packages.package import read_package
    from everloop.packages.signature import polars_type
    from everloop.registry.model_versions import get_version

    manifest, files = read_package(store, get_version(store, version).package)
    signature = manifest.read_signature()
    counts: Any = manifest.training.get("rows") or {}
    # The rows of the example are followed by edge cases, which clients rarely send.
    examples = min(ROWS, max((count for count in counts.values() if isinstance(count, int)), default=ROWS))
    add_baseline = f"Add a baseline with: everloop monitor baseline {version} FILE"
    try:
        entries = msgspec.json.decode(files[FILE])[:examples]
        rows = signature.rows_of([{name: entry["row"].get(name) for name in signature.names} for entry in entries])
        scores = [entry["scores"] for entry in entries]
    except KeyError:
        raise NotFoundError(f"'{version}' has neither a baseline nor an example.", help=add_baseline) from None
    except (msgspec.MsgspecError, TypeError, AttributeError) as error:
        raise CorruptionError(f"The package of '{version}' has an example that cannot be read: {error}") from error
    if not rows:
        raise EmptySampleError(f"'{version}' has no baseline, and its example has no rows.", help=add_baseline)
    columns = {
        item.name: pl.Series(item.name, [row[index] for row in rows], dtype=polars_type(item.type))
        for index, item in enumerate(signature.inputs)
    }
    best = [max(score) if isinstance(score, list) else score for score in scores]
    return pl.DataFrame(list(columns.values())), pl.DataFrame({"score": best})
