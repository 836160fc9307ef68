"""Baseline: what a model version's inputs, scores and quality looked like before it met the world.

Built once from the training snapshot and from held-out rows that the model has scored; kept as JSON by digest, with
an `Artifact` record that says to which version it belongs. Beside the sketches of the whole it holds those of
consecutive stretches of time (blocks), because how much the reference differs from itself is part of the noise.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, EmptySampleError, NotFoundError, StoreVersionError, UsageError
from everloop.monitoring.bins import BINS, CATEGORIES, Bins, choose_bins
from everloop.monitoring.sketches import Sketch, add_all, sketch_frame
from everloop.records import Artifact, Json, ModelVersion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.stores import Store

FORMAT = 1
BLOCKS = 64
PREDICTION = "prediction"
"""The subject under which the score is watched."""

_ARTIFACT = "baseline"
_METRIC_BLOCKS = 12
_LEAST_BLOCKS = 6
_LEAST_BLOCK_ROWS = 30


@dataclass(frozen=True, slots=True)
class Blocks:
    """Counts by cell in consecutive stretches of the reference, all equally long in time.

    Attributes:
        span: how long one stretch is.
        counts: by subject, one tuple of counts a stretch, oldest first; stretches without rows are all zero.
    """

    span: timedelta
    counts: dict[str, tuple[tuple[int, ...], ...]]

    def counts_over(self, subject: str, window: timedelta) -> npt.NDArray[np.float64]:
        """Counts of stretches about as long as `window`, shape (stretches, cells), by adding neighbours.

        A window longer than a sixth of the reference gets stretches of a sixth, which differ more than longer ones
        would: rather too much noise than too little.
        """
        import numpy as np

        counts = np.asarray(self.counts[subject], dtype=np.float64)
        merged = max(1, min(round(window / self.span), len(counts) // _LEAST_BLOCKS))
        whole = len(counts) // merged * merged
        return np.asarray(counts[:whole].reshape(-1, merged, counts.shape[1]).sum(axis=1))


@dataclass(frozen=True, slots=True)
class Reference:
    """Sketches by subject, and the blocks where the reference has a time."""

    sketches: dict[str, Sketch]
    blocks: Blocks | None = None


@dataclass(frozen=True, slots=True)
class ReferenceMetric:
    """A metric on held-out rows.

    `restlessness`: by how much it differs between stretches of time beyond chance, as a standard deviation.
    """

    name: str
    value: float
    low: float
    high: float
    standard_error: float
    rows: int
    restlessness: float = 0.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a window is compared with. `skipped`: features that are not watched, with the reason."""

    rows: int
    features: Reference
    score: Reference | None = None
    metric: ReferenceMetric | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def bins(self) -> dict[str, Bins]:
        return {name: sketch.bins for name, sketch in self.features.sketches.items()}

    def to_json(self) -> bytes:
        """Deterministic UTF-8 JSON; `from_json` gives an equal baseline back."""
        data: dict[str, Json] = {
            "format": FORMAT,
            "rows": self.rows,
            "features": _reference_to_json(self.features),
            "score": _reference_to_json(self.score) if self.score else None,
            "metric": {name: getattr(self.metric, name) for name in ReferenceMetric.__slots__} if self.metric else None,
            "skipped": self.skipped,
        }
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Baseline:
        """Read what `to_json` wrote.

        Raises:
            StoreVersionError: a newer everloop wrote it.
            CorruptionError: it is no baseline.
        """
        try:
            data = json.loads(content)
            if data["format"] > FORMAT:
                raise StoreVersionError(
                    f"This baseline has format {data['format']}; this everloop reads up to {FORMAT}.",
                    help="Upgrade with: pip install --upgrade everloop",
                )
            return cls(
                rows=data["rows"],
                features=_reference_from_json(data["features"]),
                score=_reference_from_json(data["score"]) if data["score"] else None,
                metric=ReferenceMetric(**data["metric"]) if data["metric"] else None,
                skipped=data["skipped"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"This is no baseline: {error!r}.") from error


def build_baseline(
    frame: pl.DataFrame | pl.LazyFrame,
    features: Sequence[str] | None = None,
    *,
    time: str | None = None,
    scored: pl.DataFrame | None = None,
    metric: str | None = None,
    bins: int = BINS,
    categories: int = CATEGORIES,
    blocks: int = BLOCKS,
) -> Baseline:
    """Sketch a reference.

    Args:
        frame: the rows that the model was trained on, or better all that it was trained and validated on.
        features: which columns to watch; default: all but `time`.
        time: the column by which the reference is cut into blocks. Without it only chance counts as noise, and in a
            large window every real but harmless season will stand out.
        scored: rows that the model has not been fitted on, with its `score` (number or class) and, for `metric`,
            the truth as `actual` (0/1, class index or number). Multiclass metrics take the class probabilities from
            a list column `scores`. With a column called like `time` it is cut into blocks as well.
        metric: a name of `everloop.training.METRICS` to measure on `scored`.
        bins: quantile bins of a numeric feature.
        categories: categories that are counted one by one.
        blocks: how many stretches of time.

    Raises:
        EmptySampleError: the reference has no rows.
        UsageError: a feature or the time is no column, or the time is of no temporal type.
    """
    import polars as pl

    reference = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    names = [name for name in (features if features is not None else reference.columns) if name != time]
    cells, skipped = choose_bins(reference, names, bins=bins, categories=categories)
    score: Reference | None = None
    measured: ReferenceMetric | None = None
    if scored is not None:
        if "score" not in scored.columns:
            raise UsageError("Scored rows need a column 'score'.", help=f"Columns: {', '.join(scored.columns)}")
        when = time if time in scored.columns else None
        of_score, reason = choose_bins(scored, ["score"], bins=bins, categories=categories)
        if "score" in of_score:
            score = _sketch_reference(scored, {PREDICTION: of_score["score"]}, when, blocks, {PREDICTION: "score"})
        else:
            skipped[PREDICTION] = reason["score"]
        if metric is not None:
            measured = _measure(scored, metric, when)
    elif metric is not None:
        raise UsageError(f"The reference value of '{metric}' needs scored rows.", help="Give them as `scored`.")
    return Baseline(
        rows=reference.height,
        features=_sketch_reference(reference, cells, time, blocks),
        score=score,
        metric=measured,
        skipped=skipped,
    )


def keep_baseline(store: Store, version: str, baseline: Baseline) -> Artifact:
    """Keep the baseline of a model version; the same one again is the same record.

    Args:
        version: key of the model version, such as `delays@3`.
    """
    digest = store.objects.add(baseline.to_json())
    kept = _find_artifact(store, version)
    if kept is not None and kept.digest == digest:
        return kept
    versions = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    artifact = store.new(
        Artifact,
        run=(versions[0].run if versions else None) or "",
        name=_ARTIFACT,
        type="json",
        digest=digest,
        size_bytes=store.objects.size(digest),
        meta={"version": version, "rows": baseline.rows, "features": len(baseline.features.sketches)},
    )
    store.records.put(artifact)
    return artifact


def find_baseline(store: Store, version: str) -> Baseline | None:
    """The newest baseline of a model version, or None."""
    artifact = _find_artifact(store, version)
    return Baseline.from_json(store.objects.read(artifact.digest)) if artifact is not None else None


def load_baseline(store: Store, version: str) -> Baseline:
    """The newest baseline of a model version.

    Raises:
        NotFoundError: none was kept.
    """
    found = find_baseline(store, version)
    if found is None:
        kept = sorted({str(item.meta.get("version")) for item in _artifacts(store)})
        raise NotFoundError(
            f"'{version}' has no baseline.", help=f"Versions with one: {', '.join(kept[-8:]) or 'none'}"
        )
    return found


def _artifacts(store: Store) -> list[Artifact]:
    return store.records.find(Artifact, ("name", "=", _ARTIFACT), order="-id", limit=100)


def _find_artifact(store: Store, version: str) -> Artifact | None:
    found = store.records.find(Artifact, ("name", "=", _ARTIFACT), ("meta.version", "=", version), order="-id", limit=1)
    return found[0] if found else None


def _sketch_reference(
    frame: pl.DataFrame,
    bins: Mapping[str, Bins],
    time: str | None,
    blocks: int,
    columns: Mapping[str, str] | None = None,
) -> Reference:
    stretches = cut_by_time(frame, time, blocks) if time is not None else None
    if stretches is None:
        return Reference(sketch_frame(frame, bins, columns=columns))
    span, parts, undated = stretches
    sketched = [sketch_frame(part, bins, columns=columns) if part.height else None for part in parts]
    rest = [sketch_frame(undated, bins, columns=columns)] if undated.height else []
    whole = add_all([*(part for part in sketched if part is not None), *rest])
    counts = {
        name: tuple(part[name].counts if part else (0,) * cells.cells for part in sketched)
        for name, cells in bins.items()
    }
    return Reference(whole, Blocks(span, counts))


def cut_by_time(
    frame: pl.DataFrame, time: str, blocks: int
) -> tuple[timedelta, list[pl.DataFrame], pl.DataFrame] | None:
    """Cut a frame into `blocks` stretches of equal duration.

    Returns:
        Their duration, the stretches oldest first (some may be empty), and the rows without a time. None if all
        rows have one and the same time or none.

    Raises:
        UsageError: the frame has no such column or it is no time.
    """
    import polars as pl

    if time not in frame.columns:
        raise UsageError(f"The reference has no column '{time}'.", help=f"Columns: {', '.join(frame.columns)}")
    dtype = frame.schema[time]
    if dtype not in (pl.Datetime, pl.Date):
        raise UsageError(f"'{time}' is {dtype}, not a date or a time.", help="Give a column of type Date or Datetime.")
    moments = frame[time].cast(pl.Datetime("us")).cast(pl.Int64)
    low, high = moments.min(), moments.max()
    if not isinstance(low, int) or not isinstance(high, int) or low == high:
        return None
    # Half-open stretches; one microsecond more, so that the last row lies inside the last of them.
    width = (high + 1 - low) / blocks
    number = ((moments - low) / width).floor().cast(pl.Int64).clip(0, blocks - 1).alias("")
    order = number.arg_sort(nulls_last=True)
    ordered = frame[order]
    ranked = number.gather(order).drop_nulls()
    starts = [int(place) for place in ranked.search_sorted(pl.Series(range(blocks + 1)), side="left")]
    parts = [ordered.slice(start, end - start) for start, end in itertools.pairwise(starts)]
    return timedelta(microseconds=width), parts, ordered.slice(len(ranked))


def answered(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with a score and a truth that are numbers."""
    import polars as pl

    both = [pl.col(name).cast(pl.Float64).is_finite() for name in ("score", "actual")]
    return frame.filter(*both)


def score_array(frame: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Scores as metrics take them: shape (n, k) from a list column `scores`, else (n,) from `score`."""
    import numpy as np

    if "scores" in frame.columns and frame["scores"].null_count() == 0:
        return np.asarray(frame["scores"].to_list(), dtype=np.float64)
    return frame["score"].to_numpy().astype(np.float64)


def judged_array(frame: pl.DataFrame, metric: str) -> npt.NDArray[np.float64]:
    """What a metric is given: scores, or for a metric of labels the predicted classes, where `predicted` has them."""
    from everloop.training.metrics import scores_for

    known = "predicted" in frame.columns and frame["predicted"].null_count() == 0
    return scores_for(metric, score_array(frame), frame["predicted"].to_numpy() if known else None)


def _measure(scored: pl.DataFrame, metric: str, time: str | None) -> ReferenceMetric:
    from everloop.training.intervals import interval

    if "actual" not in scored.columns:
        raise UsageError(f"'{metric}' needs the truth beside the scores.", help="Add it as a column 'actual'.")
    known = answered(scored)
    if known.height == 0:
        raise EmptySampleError(f"'{metric}' was asked of scored rows without any truth.")
    whole = interval(known["actual"].cast(float).to_numpy(), judged_array(known, metric), metric)
    if math.isnan(whole.standard_error):
        raise UsageError(
            f"'{metric}' cannot be measured on these {known.height} rows.", help="Is there one class only?"
        )
    pieces: list[tuple[float, float]] = []
    stretches = cut_by_time(known, time, _METRIC_BLOCKS) if time is not None else None
    for part in stretches[1] if stretches is not None else []:
        if part.height >= _LEAST_BLOCK_ROWS:
            piece = interval(part["actual"].cast(float).to_numpy(), judged_array(part, metric), metric, n=100)
            if piece.standard_error > 0:
                pieces.append((piece.value, piece.standard_error))
    return ReferenceMetric(
        name=metric,
        value=whole.value,
        low=whole.low,
        high=whole.high,
        standard_error=whole.standard_error,
        rows=known.height,
        restlessness=spread_beyond_chance(pieces),
    )


def spread_beyond_chance(pieces: Sequence[tuple[float, float]]) -> float:
    """The standard deviation of the true values behind (estimate, standard error) pairs; 0 for fewer than six.

    Source: R. DerSimonian, N. Laird, Meta-analysis in clinical trials (1986): moments of Cochran's Q.
    """
    if len(pieces) < _LEAST_BLOCKS:
        return 0.0
    weights = [1 / (error * error) for _, error in pieces]
    total = sum(weights)
    centre = sum(weight * value for weight, (value, _) in zip(weights, pieces, strict=True)) / total
    q = sum(weight * (value - centre) ** 2 for weight, (value, _) in zip(weights, pieces, strict=True))
    excess = q - (len(pieces) - 1)
    return math.sqrt(max(0.0, excess / (total - sum(weight * weight for weight in weights) / total)))


def _reference_to_json(reference: Reference) -> dict[str, Json]:
    blocks = reference.blocks
    return {
        "sketches": {name: sketch.to_json() for name, sketch in reference.sketches.items()},
        "blocks": {"span_s": blocks.span.total_seconds(), "counts": blocks.counts} if blocks else None,
    }


def _reference_from_json(data: dict[str, Any]) -> Reference:
    blocks = data["blocks"]
    return Reference(
        {name: Sketch.from_json(sketch) for name, sketch in data["sketches"].items()},
        Blocks(
            timedelta(seconds=blocks["span_s"]),
            {name: tuple(tuple(counts) for counts in parts) for name, parts in blocks["counts"].items()},
        )
        if blocks
        else None,
    )
