"""Find possible leakage: columns and rows that tell a model more than it will know at prediction time.

A suspect is a reason to look, not a verdict. A column that predicts the target too well may be a very good feature, or
it may be filled in after the fact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import polars as pl

from everloop.data.splits import has_classes, split
from everloop.data.table_inputs import as_utc, is_moment
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from everloop.records import Snapshot

TOO_GOOD = 0.9
"""A column that alone predicts the target this well (0 to 1) is suspect."""
_PREDICTIVE_NULLS = 0.5
_DISTINCT_SHARE = 0.95
_LATER_SHARE = 0.5
_MIN_ROWS = 100

Kind = Literal["knows the target", "nulls know the target", "id", "later", "future", "duplicates", "across splits",
               "constant", "same"]  # fmt: skip


@dataclass(frozen=True)
class LeakageSuspect:
    """One reason to look."""

    kind: Kind
    column: str | None
    message: str
    share: float
    """The strength, 0 to 1: a share of the rows, or a score as in `single_scores`."""


def single_scores(rows: pl.DataFrame, snapshot: Snapshot) -> dict[str, float]:
    """How well each column alone predicts the target: 0 not at all, 1 perfectly.

    For two classes the score is |2 AUC - 1|, with AUC the area under the ROC curve. For amounts it is the absolute rank
    correlation. For more classes it is the share by which the column reduces the error of always guessing the most
    common class. The score of text columns is learned on every second row and measured on the others; otherwise a text
    that never repeats would predict everything. Where it predicts more, the score is that of `null_scores`.
    """
    target = snapshot.target
    if target is None or target not in rows.columns:
        return {}
    return column_scores(rows.drop([snapshot.entity] if snapshot.entity in rows.columns else []), target)


def column_scores(rows: pl.DataFrame, target: str) -> dict[str, float]:
    """Like `single_scores`, for every column except the target. Empty if fewer than a hundred rows have a target."""
    known, labels = _labelled(rows, target)
    if labels is None:
        return {}
    found = null_scores(rows, target)
    for name in known.columns:
        if name == target:
            continue
        score = _score(known[name], labels)
        if score is not None:
            found[name] = max(round(score, 4), found.get(name, 0.0))
    return found


def null_scores(rows: pl.DataFrame, target: str) -> dict[str, float]:
    """How well it predicts the target, 0 to 1, whether a column is null; for columns with some nulls and some values.

    A date of cancellation that only customers who cancel have says who will cancel.
    """
    known, labels = _labelled(rows, target)
    if labels is None:
        return {}
    few = _MIN_ROWS // 10
    found: dict[str, float] = {}
    for name, dtype in known.schema.items():
        missing = known[name].is_null()
        if dtype.is_float():
            missing |= known[name].is_nan().fill_null(value=False)
        if name == target or not few <= int(missing.sum()) <= known.height - few:
            continue
        found[name] = round(_score(missing, labels) or 0.0, 4)
    return found


def _labelled(rows: pl.DataFrame, target: str) -> tuple[pl.DataFrame, pl.Series | None]:
    """The rows with a target, and their labels; None if they are too few or cannot be scored."""
    known = rows.filter(pl.col(target).is_not_null())
    return known, _labels(known[target]) if known.height >= _MIN_ROWS else None


def find_suspects(rows: pl.DataFrame, snapshot: Snapshot, scores: Mapping[str, float]) -> Iterator[LeakageSuspect]:
    """Every suspect in the rows of a snapshot, the most serious kinds first."""
    yield from _predictive(rows, snapshot, scores)
    yield from _later(rows, snapshot)
    yield from _identifiers(rows, snapshot)
    yield from _duplicates(rows, snapshot)
    yield from _redundant(rows, snapshot)


def _predictive(rows: pl.DataFrame, snapshot: Snapshot, scores: Mapping[str, float]) -> Iterator[LeakageSuspect]:
    target = snapshot.target
    if target is None or target not in rows.columns:
        return
    nulls = null_scores(rows, target)
    by_nulls = {
        name: score for name, score in nulls.items()
        if score >= _PREDICTIVE_NULLS and (scores.get(name, 0.0) < TOO_GOOD or score >= scores[name])
    }  # fmt: skip
    for name, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        if score >= TOO_GOOD and name not in by_nulls:
            message = f"'{name}' alone predicts {score:.0%} of '{target}': is it known at prediction time?"
            yield LeakageSuspect("knows the target", name, message, score)
    for name, score in by_nulls.items():
        message = f"Whether '{name}' is null predicts {score:.0%} of '{target}': is it filled in after the fact?"
        yield LeakageSuspect("nulls know the target", name, message, score)


def _later(rows: pl.DataFrame, snapshot: Snapshot) -> Iterator[LeakageSuspect]:
    for name, dtype in rows.schema.items():
        if not is_moment(dtype):
            continue
        moments = rows.select(as_utc(name, dtype)).to_series()
        later = (moments > snapshot.created_at).sum()
        if later:
            newest = pl.Series([moments.max()]).cast(pl.String)[0]
            subject = "1 value" if later == 1 else f"{later:,} values"
            verb = "is" if later == 1 else "are"
            message = f"{subject} of '{name}' {verb} later than the snapshot itself, up to {newest}."
            yield LeakageSuspect("future", name, message, float(later) / rows.height)
        if snapshot.time is not None and name != snapshot.time:
            times = rows.select(as_utc(snapshot.time, rows.schema[snapshot.time])).to_series()
            share = (moments > times).mean()
            if isinstance(share, float) and share > _LATER_SHARE:
                message = f"'{name}' is later than '{snapshot.time}' in {share:.0%} of the rows: is it known in time?"
                yield LeakageSuspect("later", name, message, share)


def _identifiers(rows: pl.DataFrame, snapshot: Snapshot) -> Iterator[LeakageSuspect]:
    for name, dtype in rows.schema.items():
        if name in (snapshot.entity, snapshot.target, snapshot.time) or rows.height < _MIN_ROWS:
            continue
        if isinstance(dtype, pl.String) or dtype.is_integer():
            share = rows[name].n_unique() / rows.height
            if share >= _DISTINCT_SHARE:
                message = (
                    f"'{name}' hardly ever repeats ({share:.0%} distinct): it identifies rows, and does not help to "
                    f"predict new ones."
                )
                yield LeakageSuspect("id", name, message, share)


def _duplicates(rows: pl.DataFrame, snapshot: Snapshot) -> Iterator[LeakageSuspect]:
    features = [
        name
        for name, dtype in rows.schema.items()
        if name not in (snapshot.entity, snapshot.time, snapshot.target) and not isinstance(dtype, pl.Object)
    ]
    if not features:
        return
    hashes = pl.struct(*features).hash()
    duplicates = int(rows.select(hashes.is_duplicated().sum()).item())
    if duplicates:
        message = f"{duplicates:,} rows have the same features as another row."
        yield LeakageSuspect("duplicates", None, message, duplicates / rows.height)
    try:
        parts = split(rows, time=snapshot.time, key=snapshot.entity, target=snapshot.target)
    except EverloopError:
        return  # too few rows to split
    seen = parts.train.select(hashes.alias("hash")).unique().to_series()
    repeated = int(parts.test.select(hashes.is_in(seen.implode()).sum()).item())
    if repeated:
        share = repeated / parts.test.height
        subject = "1 row of the test part" if repeated == 1 else f"{repeated:,} rows of the test part"
        verb = "has" if repeated == 1 else "have"
        message = f"{subject} ({share:.0%}) {verb} the same features as a training row."
        yield LeakageSuspect("across splits", None, message, share)


def _redundant(rows: pl.DataFrame, snapshot: Snapshot) -> Iterator[LeakageSuspect]:
    for name in rows.columns:
        if rows.height > 1 and rows[name].drop_nulls().n_unique() <= 1 and _countable(rows.schema[name]):
            yield LeakageSuspect("constant", name, f"'{name}' has at most one value.", 1.0)
    plain = [name for name in rows.columns if _countable(rows.schema[name])]
    texts = rows.select(_text(name, rows.schema[name]) for name in plain)
    digests = texts.select(pl.all().hash().sum())
    seen: dict[object, str] = {}
    for name in plain:
        first = seen.setdefault(digests[name][0], name)
        if first != name and texts[name].equals(texts[first], null_equal=True):
            yield LeakageSuspect("same", name, f"'{name}' and '{first}' are equal in every row.", 1.0)


def _text(name: str, dtype: pl.DataType) -> pl.Expr:
    return (pl.col(name).to_physical() if dtype.is_temporal() else pl.col(name)).cast(pl.String)


def _countable(dtype: pl.DataType) -> bool:
    simple = dtype.is_numeric() or dtype.is_temporal()
    return simple or isinstance(dtype, pl.Boolean | pl.String | pl.Categorical | pl.Enum)


def _labels(target: pl.Series) -> pl.Series | None:
    """The target as booleans, amounts or class names; None if it has one class or another type."""
    if isinstance(target.dtype, pl.Boolean):
        return target
    if has_classes(target):
        texts = target.cast(pl.String)
        classes = texts.drop_nulls().unique().sort()
        return texts == classes[1] if len(classes) == 2 else (texts if len(classes) > 2 else None)
    return target.cast(pl.Float64) if target.dtype.is_numeric() else None


def _score(values: pl.Series, labels: pl.Series) -> float | None:
    dtype = values.dtype
    if isinstance(dtype, pl.Boolean):
        values = values.cast(pl.Int8)
    if values.dtype.is_numeric() or dtype.is_temporal():
        numbers = (values.to_physical() if dtype.is_temporal() else values).cast(pl.Float64).fill_nan(None)
        both = pl.DataFrame({"x": numbers, "y": labels}).filter(pl.col("x").is_not_null(), pl.col("y").is_not_null())
    elif isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return _class_score(values.cast(pl.String), labels)
    else:
        return None
    if both.height < _MIN_ROWS or both["x"].n_unique() < 2:
        return None
    if isinstance(labels.dtype, pl.String):
        edges = both["x"].rank("ordinal") * 20 // (both.height + 1)
        return _class_score(edges.cast(pl.String), both["y"])
    return _rank_score(both)


def _rank_score(both: pl.DataFrame) -> float | None:
    if isinstance(both.schema["y"], pl.Boolean):
        positives = int(both["y"].sum())
        negatives = both.height - positives
        if not positives or not negatives:
            return None
        # The Mann-Whitney U statistic; U / (positives * negatives) is the area under the ROC curve.
        u = both.select(pl.col("x").rank().filter(pl.col("y")).sum()).item() - positives * (positives + 1) / 2
        return abs(float(2 * u / (positives * negatives) - 1))
    found = both.select(pl.corr(pl.col("x").rank(), pl.col("y").rank())).item()
    return None if found is None or found != found else abs(float(found))


def _class_score(values: pl.Series, labels: pl.Series) -> float | None:
    both = pl.DataFrame({"x": values, "y": labels}).filter(pl.col("y").is_not_null())
    if both.height < _MIN_ROWS:
        return None
    learned, measured = both.gather_every(2), both.gather_every(2, offset=1)
    if isinstance(labels.dtype, pl.String):
        counts = learned.group_by("x", "y").len().sort("len", "y", descending=[True, False])
        best = counts.unique("x", keep="first", maintain_order=True).select("x", pl.col("y").alias("guess"))
        common = learned["y"].mode().sort()[0]
        guessed = measured.join(best, on="x", how="left", nulls_equal=True)
        guessed = guessed.with_columns(pl.col("guess").fill_null(common))
        error = (guessed["y"] != guessed["guess"]).mean()
        baseline_error = (measured["y"] != common).mean()
        if not isinstance(error, float) or not isinstance(baseline_error, float) or not baseline_error:
            return None
        return max(0.0, 1 - error / baseline_error)
    means = learned.group_by("x").agg(pl.col("y").cast(pl.Float64).mean().alias("mean"))
    overall = learned["y"].cast(pl.Float64).mean()
    predicted = measured.join(means, on="x", how="left", nulls_equal=True)
    predicted = predicted.select(pl.col("mean").fill_null(overall).alias("x"), "y")
    return _rank_score(predicted) if predicted["x"].n_unique() > 1 else 0.0
