"""Build and store the baseline of a model version: distributions of its inputs and scores, and its metric.

A baseline is built once, from the training snapshot and from held-out rows that the model has scored. It is stored as
JSON under its digest, with an `Artifact` record that names its version. Besides the sketches of all rows it holds the
counts of consecutive blocks of time, because the variation within the reference is part of the noise.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from everloop.data.sketches.bins import BINS, CATEGORIES, Bins, choose_bins
from everloop.data.sketches.block_counts import count_blocks
from everloop.data.sketches.column_sketches import Sketch, sketch_frame
from everloop.data.sketches.derived_columns import (
    DerivedSpec,
    choose_columns,
    derive,
    spec_from_json,
    spec_to_json,
)
from everloop.data.sketches.pair_correlations import PairMoments, choose_paired, correlate_blocks, fisher_transformed
from everloop.data.sketches.time_blocks import TimeGrid, choose_grid, moments_of
from everloop.errors import CorruptionError, EmptySampleError, NotFoundError, StoreVersionError, UsageError
from everloop.monitoring.accepted_subjects import AcceptedPair, AcceptedSubject
from everloop.monitoring.measures.block_spread import spread_beyond_chance
from everloop.monitoring.score_effects import ScoreEffects, fit_score_effects
from everloop.records import Artifact, Json, ModelVersion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.monitoring.performance.label_expectations import LabelExpectations
    from everloop.stores import Store

FORMAT = 2
PREDICTION = "prediction"
"""Name of the score among the monitored subjects."""

_ARTIFACT = "baseline"
_STEPS = 8000
_LARGEST_STEP = 2**15 - 1
_METRIC_BLOCKS = 12
_LEAST_BLOCK_ROWS = 30


@dataclass(frozen=True, slots=True)
class Blocks:
    """Counts by cell in consecutive blocks of the reference, all of the same length in time.

    Attributes:
        start: start of the first block.
        span: length of a block: an hour or a day, or a part of the reference if it is short.
        number: how many blocks there are; some may have no rows.
        counts: by subject, counts of shape (number, cells) as little-endian 32-bit integers.
    """

    start: datetime
    span: timedelta
    number: int
    counts: dict[str, bytes]

    def counts_of(self, subject: str) -> npt.NDArray[np.float64]:
        """Return the counts of a subject, shape (blocks, cells)."""
        import numpy as np

        return np.frombuffer(self.counts[subject], dtype="<i4").reshape(self.number, -1).astype(np.float64)


@dataclass(frozen=True, slots=True)
class PairReference:
    """Fisher-transformed correlations of pairs of features.

    Attributes:
        names: the features; the pairs are all combinations of two, in their order.
        values: of the whole reference, one for each pair.
        rows: number of rows.
        blocks: of each block, the means and the standard deviations of the features' scores and the correlations, as
            little-endian 16-bit integers in steps of 1/8000, shape (number, 2·features + pairs); None without blocks.
            Correlations are Fisher-transformed.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    rows: int
    blocks: bytes | None = None

    def block_moments(self, rows: npt.NDArray[np.float64]) -> PairMoments | None:
        """Return what `blocks` holds, to merge blocks.

        Args:
            rows: number of rows of each block, shape (number,).
        """
        import numpy as np

        if self.blocks is None:
            return None
        width = len(self.names)
        steps = np.frombuffer(self.blocks, dtype="<i2").reshape(-1, 2 * width + len(self.values)) / _STEPS
        return PairMoments(rows, steps[:, :width], steps[:, width : 2 * width], np.tanh(steps[:, 2 * width :]))


@dataclass(frozen=True, slots=True)
class Reference:
    """Sketches by subject; blocks if the reference has a time column."""

    sketches: dict[str, Sketch]
    blocks: Blocks | None = None


@dataclass(frozen=True, slots=True)
class ReferenceMetric:
    """A metric on held-out rows, with its 95 % interval.

    `between_block_std`: standard deviation of the metric between blocks of time, beyond chance.
    """

    name: str
    value: float
    low: float
    high: float
    standard_error: float
    rows: int
    between_block_std: float = 0.0

    def to_json(self) -> dict[str, Json]:
        """Return the fields as they are stored. There, `between_block_std` has the name `restlessness`."""
        data = asdict(self)
        data["restlessness"] = data.pop("between_block_std")
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ReferenceMetric:
        fields = dict(data)
        return cls(between_block_std=fields.pop("restlessness", 0.0), **fields)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The reference that a window is compared with. `skipped`: features that are not monitored, with the reason."""

    rows: int
    features: Reference
    score: Reference | None = None
    metric: ReferenceMetric | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    pairs: PairReference | None = None
    """How features move together; None if fewer than two are monitored."""
    score_effects: ScoreEffects | None = None
    """How the score depends on each feature; None if the scored rows came without their inputs."""
    packed_expectations: str | None = None
    """What labels are expected to show, packed; None if the scored rows came without labels."""
    derived: dict[str, DerivedSpec] = field(default_factory=dict)
    """By free text or vector, how the numbers are derived that are monitored instead, such as `comment.length`."""
    accepted: dict[str, AcceptedSubject] = field(default_factory=dict)
    """Subjects, as findings name them, that are compared with what has been accepted instead of the reference."""
    accepted_pairs: dict[str, AcceptedPair] = field(default_factory=dict)
    """The same for the correlations of pairs."""

    @property
    def bins(self) -> dict[str, Bins]:
        return {name: sketch.bins for name, sketch in self.features.sketches.items()}

    @property
    def columns(self) -> list[str]:
        """The columns that are read: the features, with free texts and vectors in place of what is derived of them."""
        parts = {f"{name}.{part}" for name, spec in self.derived.items() for part in spec.parts}
        return [*(name for name in self.features.sketches if name not in parts), *self.derived]

    def expectations(self) -> LabelExpectations | None:
        """Return what labels are expected to show; None if it is not known."""
        from everloop.monitoring.performance.label_expectations import unpack_expectations

        return unpack_expectations(self.packed_expectations) if self.packed_expectations is not None else None

    def to_json(self) -> bytes:
        """Return deterministic UTF-8 JSON. `from_json` restores an equal baseline."""
        data: dict[str, Json] = {
            "format": FORMAT,
            "rows": self.rows,
            "features": _reference_to_json(self.features),
            "score": _reference_to_json(self.score) if self.score else None,
            "metric": self.metric.to_json() if self.metric else None,
            "skipped": self.skipped,
            "pairs": _pairs_to_json(self.pairs) if self.pairs else None,
            "score_effects": self.score_effects.to_json() if self.score_effects else None,
            "expectations": self.packed_expectations,
            "derived": {name: spec_to_json(spec) for name, spec in self.derived.items()},
            "accepted": {subject: one.to_json() for subject, one in self.accepted.items()},
            "accepted_pairs": {subject: one.to_json() for subject, one in self.accepted_pairs.items()},
        }
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    def digest(self) -> str:
        """Return a digest of the content. It does not compress the blocks as `to_json` does, which takes long."""
        without = replace(
            self,
            features=Reference(self.features.sketches),
            score=Reference(self.score.sketches) if self.score is not None else None,
        )
        found = blake2b(without.to_json(), digest_size=16)
        for reference in (self.features, self.score):
            blocks = reference.blocks if reference is not None else None
            if blocks is not None:
                found.update(f"{blocks.start.isoformat()} {blocks.span} {blocks.number}".encode())
                for name in sorted(blocks.counts):
                    found.update(name.encode())
                    found.update(blocks.counts[name])
        return found.hexdigest()

    @classmethod
    def from_json(cls, content: bytes) -> Baseline:
        """Read a baseline that `to_json` wrote.

        Raises:
            StoreVersionError: a newer version of everloop wrote it.
            CorruptionError: the content is not a baseline.
        """
        try:
            data = json.loads(content)
            if data["format"] > FORMAT:
                raise StoreVersionError(
                    f"This baseline has format {data['format']}, but this version of everloop reads up to {FORMAT}.",
                    help="Upgrade with: pip install --upgrade everloop",
                )
            features = _reference_from_json(data["features"])
            score = _reference_from_json(data["score"]) if data["score"] else None
            return cls(
                rows=data["rows"],
                features=features,
                score=score,
                metric=ReferenceMetric.from_json(data["metric"]) if data["metric"] else None,
                skipped=data["skipped"],
                pairs=_pairs_from_json(data["pairs"]) if data.get("pairs") else None,
                score_effects=ScoreEffects.from_json(data["score_effects"]) if data.get("score_effects") else None,
                packed_expectations=data.get("expectations"),
                derived={name: spec_from_json(spec) for name, spec in data.get("derived", {}).items()},
                accepted=_accepted_from_json(data.get("accepted", {}), features, score),
                accepted_pairs={
                    pair: AcceptedPair.from_json(one) for pair, one in data.get("accepted_pairs", {}).items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            raise CorruptionError(f"The content is not a baseline: {error!r}.") from error


def build_baseline(
    frame: pl.DataFrame | pl.LazyFrame,
    features: Sequence[str] | None = None,
    *,
    time: str | None = None,
    scored: pl.DataFrame | None = None,
    scored_inputs: pl.DataFrame | None = None,
    metric: str | None = None,
    paired: Sequence[str] | None = None,
    bins: int = BINS,
    categories: int = CATEGORIES,
) -> Baseline:
    """Build a baseline from reference data.

    Args:
        frame: the rows that the model was trained on, preferably together with those that it was validated on.
        features: the columns to monitor. Default: all except `time`. Of free texts and vectors, a few numbers are
            monitored, such as their length; see `everloop.data.sketches.derived_columns`.
        time: the column by which the reference is divided into blocks. Without it, only chance counts as noise, so
            large windows will report every harmless seasonal change.
        scored: rows that the model was not fitted on, with its `score` (number or class) and, for `metric`, the label
            as `actual` (0/1, class index or number). Metrics of several classes take the class probabilities from a
            list column `scores`. If it has the column `time`, it is divided into blocks as well.
        scored_inputs: the features of the rows of `scored`, in the same order. With them, a later report can say which
            inputs moved the score, and the metric of a regression can be estimated before labels arrive.
        metric: a metric to measure on `scored`, by its name in `everloop.training.METRICS`. What is needed to estimate
            it in windows without labels is learned as well.
        paired: features whose correlations are monitored, the first 16 of them that vary. Default: all features.
        bins: how many quantile bins a numeric feature has.
        categories: how many categories get their own cell.

    Raises:
        EmptySampleError: the reference has no rows.
        UsageError: a feature or the time is not a column, or the time is not a date or time.
    """
    import polars as pl

    reference = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    names = [name for name in (features if features is not None else reference.columns) if name != time]
    chosen = choose_columns(reference, names, bins=bins, categories=categories)
    cells, skipped = chosen.bins, chosen.skipped
    reference = derive(reference, chosen.specs)
    grid = choose_grid(reference, time, len(cells)) if time is not None else None
    score: Reference | None = None
    measured: ReferenceMetric | None = None
    effects: ScoreEffects | None = None
    expected: str | None = None
    if scored is not None:
        if "score" not in scored.columns:
            raise UsageError("Scored rows need a column 'score'.", help=f"Columns: {', '.join(scored.columns)}")
        score_time = time if time in scored.columns else None
        score_bins, reason = choose_bins(scored, ["score"], bins=bins, categories=categories)
        if "score" in score_bins:
            cells_of_score = {PREDICTION: score_bins["score"]}
            score = _sketch_reference(scored, cells_of_score, score_time, grid, {PREDICTION: "score"})
            if scored_inputs is not None:
                effects = fit_score_effects(derive(scored_inputs, chosen.specs), cells, scored["score"])
        else:
            skipped[PREDICTION] = reason["score"]
        if metric is not None:
            measured = _measure(scored, metric, score_time)
            expected = _pack_expectations(scored, scored_inputs, metric, score_time)
    elif metric is not None:
        raise UsageError(f"The reference value of '{metric}' needs scored rows.", help="Pass them as `scored`.")
    features_found = _sketch_reference(reference, cells, time, grid)
    return Baseline(
        rows=reference.height,
        features=features_found,
        pairs=_correlate_reference(reference, features_found.sketches, time, grid, paired),
        score=score,
        metric=measured,
        skipped=skipped,
        score_effects=effects,
        packed_expectations=expected,
        derived=chosen.specs,
    )


def keep_baseline(
    store: Store, version: str, baseline: Baseline, *, accepted: Mapping[str, Json] | None = None
) -> Artifact:
    """Store the baseline of a model version. Storing an equal one again returns the same record.

    Args:
        version: key of the model version, such as `delays@3`.
        accepted: if a person accepted an incident: which one, and its windows. It is kept in the record.
    """
    digest = store.objects.add(baseline.to_json())
    existing = _find_artifact(store, version)
    if existing is not None and existing.digest == digest:
        return existing
    versions = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    artifact = store.new(
        Artifact,
        run=(versions[0].run if versions else None) or "",
        name=_ARTIFACT,
        type="json",
        digest=digest,
        size_bytes=store.objects.size(digest),
        meta={
            "version": version,
            "rows": baseline.rows,
            "features": len(baseline.features.sketches),
            **({"accepted": dict(accepted)} if accepted is not None else {}),
        },
    )
    store.records.put(artifact)
    return artifact


def find_baseline(store: Store, version: str) -> Baseline | None:
    """Return the newest baseline of a model version; None if it has none."""
    artifact = _find_artifact(store, version)
    return Baseline.from_json(store.objects.read(artifact.digest)) if artifact is not None else None


def load_baseline(store: Store, version: str) -> Baseline:
    """Return the newest baseline of a model version.

    Raises:
        NotFoundError: the version has no baseline.
    """
    found = find_baseline(store, version)
    if found is None:
        versions = sorted({str(item.meta.get("version")) for item in _artifacts(store)})
        raise NotFoundError(
            f"'{version}' has no baseline.", help=f"Versions with one: {', '.join(versions[-8:]) or 'none'}"
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
    grid: TimeGrid | None,
    columns: Mapping[str, str] | None = None,
) -> Reference:
    import numpy as np

    sketches = sketch_frame(frame, bins, columns=columns)
    if grid is None or time is None:
        return Reference(sketches)
    number = grid.number_of(moments_of(frame, time))
    counts = count_blocks(frame, bins, number, grid.number, columns=columns)
    packed = {name: np.ascontiguousarray(cells, dtype="<i4").tobytes() for name, cells in counts.items()}
    return Reference(sketches, Blocks(grid.start, grid.span, grid.number, packed))


def _correlate_reference(
    frame: pl.DataFrame,
    sketches: Mapping[str, Sketch],
    time: str | None,
    grid: TimeGrid | None,
    paired: Sequence[str] | None,
) -> PairReference | None:
    import numpy as np

    names = choose_paired({name: sketch for name, sketch in sketches.items() if paired is None or name in paired})
    if len(names) < 2:
        return None
    whole = correlate_blocks(frame, sketches, names, np.zeros(frame.height, dtype=np.int64), 1).correlations()[0]
    blocks = None
    if grid is not None and time is not None:
        number = grid.number_of(moments_of(frame, time))
        found = correlate_blocks(frame, sketches, names, number, grid.number)
        moments = np.concatenate([found.means, found.deviations, fisher_transformed(found.within)], axis=1)
        blocks = np.clip(np.round(moments * _STEPS), -_LARGEST_STEP, _LARGEST_STEP).astype("<i2").tobytes()
    values = tuple(float(value) for value in np.nan_to_num(whole))
    return PairReference(names, values, frame.height, blocks)


def cut_by_time(
    frame: pl.DataFrame, time: str, blocks: int
) -> tuple[timedelta, list[pl.DataFrame], pl.DataFrame] | None:
    """Cut a frame into `blocks` blocks of equal duration.

    Returns:
        The duration of a block, the blocks oldest first (some may be empty), and the rows without a time. None if no
        row has a time, or all have the same.

    Raises:
        UsageError: the frame has no such column, or it does not hold dates or times.
    """
    import polars as pl

    moments = moments_of(frame, time)
    low, high = moments.min(), moments.max()
    if not isinstance(low, int) or not isinstance(high, int) or low == high:
        return None
    # Blocks are half-open, so one more microsecond is needed for the last row to be in the last block.
    width = (high + 1 - low) / blocks
    number = ((moments - low) / width).floor().cast(pl.Int64).clip(0, blocks - 1).alias("")
    order = number.arg_sort(nulls_last=True)
    ordered = frame[order]
    ranked = number.gather(order).drop_nulls()
    starts = [int(index) for index in ranked.search_sorted(pl.Series(range(blocks + 1)), side="left")]
    parts = [ordered.slice(start, end - start) for start, end in itertools.pairwise(starts)]
    return timedelta(microseconds=width), parts, ordered.slice(len(ranked))


def answered(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows whose score and label are finite numbers."""
    import polars as pl

    both = [pl.col(name).cast(pl.Float64).is_finite() for name in ("score", "actual")]
    return frame.filter(*both)


def score_array(frame: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Return scores as metrics take them: shape (n, k) from a list column `scores`, otherwise (n,) from `score`."""
    import numpy as np

    if "scores" in frame.columns and frame["scores"].null_count() == 0:
        return np.asarray(frame["scores"].to_list(), dtype=np.float64)
    return frame["score"].to_numpy().astype(np.float64)


def judged_array(frame: pl.DataFrame, metric: str) -> npt.NDArray[np.float64]:
    """Return the input of a metric: scores, or for a metric of labels the predicted classes in `predicted`, if any."""
    from everloop.training.metrics import scores_for

    known = "predicted" in frame.columns and frame["predicted"].null_count() == 0
    return scores_for(metric, score_array(frame), frame["predicted"].to_numpy() if known else None)


def _pack_expectations(scored: pl.DataFrame, inputs: pl.DataFrame | None, metric: str, time: str | None) -> str | None:
    from everloop.monitoring.performance.label_expectations import learn_expectations

    place = "place of the row"
    known = answered(scored.with_row_index(place))
    features = inputs[known[place]] if inputs is not None else None
    learned = learn_expectations(known, metric, inputs=features, time=time)
    return learned.pack() if learned is not None else None


def _measure(scored: pl.DataFrame, metric: str, time: str | None) -> ReferenceMetric:
    from everloop.training.intervals import interval

    if "actual" not in scored.columns:
        raise UsageError(f"'{metric}' needs labels in addition to the scores.", help="Add them as a column 'actual'.")
    known = answered(scored)
    if known.height == 0:
        raise EmptySampleError(
            f"'{metric}' cannot be measured: none of the scored rows has a label.",
            help="Fill the column 'actual' with the labels.",
        )
    total = interval(known["actual"].cast(float).to_numpy(), judged_array(known, metric), metric)
    if math.isnan(total.standard_error):
        raise UsageError(
            f"'{metric}' cannot be measured on these {known.height} rows.",
            help="Check that they have labels of more than one class.",
        )
    pieces: list[tuple[float, float]] = []
    cut = cut_by_time(known, time, _METRIC_BLOCKS) if time is not None else None
    for part in cut[1] if cut is not None else []:
        if part.height >= _LEAST_BLOCK_ROWS:
            piece = interval(part["actual"].cast(float).to_numpy(), judged_array(part, metric), metric, n=100)
            if piece.standard_error > 0:
                pieces.append((piece.value, piece.standard_error))
    return ReferenceMetric(
        name=metric,
        value=total.value,
        low=total.low,
        high=total.high,
        standard_error=total.standard_error,
        rows=known.height,
        between_block_std=spread_beyond_chance(pieces),
    )


def _reference_to_json(reference: Reference) -> dict[str, Json]:
    blocks = reference.blocks
    return {
        "sketches": {name: sketch.to_json() for name, sketch in reference.sketches.items()},
        "blocks": {
            "start": blocks.start.isoformat(),
            "span_s": blocks.span.total_seconds(),
            "number": blocks.number,
            "counts": {name: b64encode(zlib.compress(counts)).decode() for name, counts in blocks.counts.items()},
        }
        if blocks
        else None,
    }


def _reference_from_json(data: dict[str, Any]) -> Reference:
    blocks = data["blocks"]
    return Reference(
        {name: Sketch.from_json(sketch) for name, sketch in data["sketches"].items()},
        _blocks_from_json(blocks) if blocks else None,
    )


def _accepted_from_json(
    data: Mapping[str, Any], features: Reference, score: Reference | None
) -> dict[str, AcceptedSubject]:
    bins = {name: sketch.bins for name, sketch in features.sketches.items()}
    if score is not None:
        # A feature that has the same name as the score is another subject; see `subject_of`.
        bins = {(f"input_{name}" if name == PREDICTION else name): cells for name, cells in bins.items()}
        bins[PREDICTION] = score.sketches[PREDICTION].bins
    return {subject: AcceptedSubject.from_json(one, bins[subject]) for subject, one in data.items()}


def _blocks_from_json(data: dict[str, Any]) -> Blocks | None:
    if "start" not in data:
        # Blocks of format 1 were parts of the reference without a time of day, of which no season can be learned.
        return None
    return Blocks(
        datetime.fromisoformat(data["start"]),
        timedelta(seconds=data["span_s"]),
        int(data["number"]),
        {name: zlib.decompress(b64decode(counts)) for name, counts in data["counts"].items()},
    )


def _pairs_to_json(pairs: PairReference) -> dict[str, Json]:
    moments = b64encode(zlib.compress(pairs.blocks)).decode() if pairs.blocks is not None else None
    return {"names": list(pairs.names), "values": list(pairs.values), "rows": pairs.rows, "moments": moments}


def _pairs_from_json(data: Mapping[str, Any]) -> PairReference:
    blocks = zlib.decompress(b64decode(data["moments"])) if data.get("moments") is not None else None
    return PairReference(tuple(data["names"]), tuple(map(float, data["values"])), int(data["rows"]), blocks)
