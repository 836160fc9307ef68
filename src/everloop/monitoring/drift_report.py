"""A look at an endpoint's drift as it is now, whether or not a loop watches it. Nothing is kept.

The version's baseline is what its answers are compared with. A version that was saved without a loop has none; then its
package's own example stands in, and a notice says how little that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, EmptySampleError, NotFoundError
from everloop.monitoring.alarm_budget import budget_for
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
"""The first answers lie seconds apart; as a window they are held to the budget of a day."""
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """What a version's answers in a window look like beside its baseline."""

    endpoint: str
    version: str
    window_from: datetime
    window_to: datetime
    rows: int
    reference_rows: int
    shifts: list[SubjectShift]
    notice: str | None
    """What to know about the baseline; None: it was built when the version was trained."""


def report_drift(
    store: Store,
    endpoint: str,
    *,
    version: str | None = None,
    window: timedelta | None = None,
    alarms_per_month: float = 1.0,
) -> DriftReport:
    """Compare a version's newest answers with its baseline.

    Args:
        version: key of a model version; default: the endpoint's champion.
        window: how long before the version's last answer the window begins; default: with its first.

    Raises:
        NotFoundError: no such endpoint, or it has no version yet.
        EmptySampleError: the version has not answered yet.
    """
    record = store.records.get(EndpointRecord, endpoint)
    if version is None:
        champions = [route.version for route in record.routes if route.role == "champion"]
        if not champions:
            raise NotFoundError(
                f"The endpoint '{endpoint}' has no version to watch.", help="Release one: everloop release"
            )
        version = champions[0]
    moments = read_window(store, endpoint, None, None, version=version, columns=["event_at"])["event_at"]
    first: Any = moments.min()
    until: Any = moments.max() + _INSTANT  # type: ignore[operator]
    since: datetime = first if window is None else max(first, until - window)
    baseline, notice = baseline_of(store, version)
    rows = read_inputs_and_score(store, endpoint, version, since, until, list(baseline.bins))
    span = max(until - since, _LEAST_SPAN)
    shifts = compare_window(baseline, rows, span=span, budget=budget_for(alarms_per_month, span))
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
    """A version's baseline, or one made from its package's own example, with a notice that says so.

    Raises:
        NotFoundError: no such version, or it has neither.
    """
    kept = find_baseline(store, version)
    if kept is not None:
        return kept, None
    rows, scored = _example_of(store, version)
    baseline = build_baseline(rows, scored=scored)
    notice = (
        f"'{version}' has no baseline of its own training data: it is compared with {rows.height} "
        f"row{'s' if rows.height != 1 else ''} of the example that it was saved with, which is rough. "
        f"Give it a better one: everloop monitor baseline {version} FILE"
    )
    return baseline, notice


def frame_for(signature: Signature, rows: pl.DataFrame) -> pl.DataFrame:
    """The inputs of a table as the log keeps them, to build a baseline from; what is not there is left out."""
    import polars as pl

    from everloop.packages.signature import polars_type

    columns = [
        pl.col(item.name).cast(polars_type(item.type), strict=False)
        for item in signature.inputs
        if item.name in rows.columns
    ]
    return rows.select(columns)


def _example_of(store: Store, version: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of the table that a version was saved with, and the scores that it gave them."""
    import msgspec
    import polars as pl

    from everloop.packages.golden_rows import FILE, ROWS
    from everloop.packages.package import read_package
    from everloop.packages.signature import polars_type
    from everloop.registry.model_versions import get_version

    manifest, files = read_package(store, get_version(store, version).package)
    signature = manifest.read_signature()
    counts: Any = manifest.training.get("rows") or {}
    # Behind the example's own rows stand edge cases, which no client sends as a rule.
    own = min(ROWS, max((count for count in counts.values() if isinstance(count, int)), default=ROWS))
    try:
        kept = msgspec.json.decode(files[FILE])[:own]
        given = signature.rows_of([{name: entry["row"].get(name) for name in signature.names} for entry in kept])
        scores = [entry["scores"] for entry in kept]
    except KeyError:
        raise NotFoundError(f"'{version}' has no baseline and no example to make one from.") from None
    except (msgspec.MsgspecError, TypeError, AttributeError) as error:
        raise CorruptionError(f"The package of '{version}' has an example that cannot be read: {error}") from error
    if not given:
        raise EmptySampleError(f"'{version}' has no baseline, and its package has no example to make one from.")
    columns = {
        item.name: pl.Series(item.name, [row[place] for row in given], dtype=polars_type(item.type))
        for place, item in enumerate(signature.inputs)
    }
    best = [max(score) if isinstance(score, list) else score for score in scores]
    return pl.DataFrame(list(columns.values())), pl.DataFrame({"score": best})


__all__ = ["DriftReport", "baseline_of", "frame_for", "report_drift"]
