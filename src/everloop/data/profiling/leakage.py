"""What in a table could tell a model more than it will know when it is asked.

A suspect is a reason to look, not a verdict: a column that knows the target too well may be a very good one, or may be
written after the fact.
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
"""A column alone that tells the target this well (of 0 to 1) is suspect."""
_NULLS_TELL = 0.5
_NAMES_ROWS = 0.95
_LATER = 0.5
_MANY = 100

Kind = Literal["knows the target", "nulls know the target", "id", "later", "future", "duplicates", "across splits",
               "constant", "same"]  # fmt: skip


@dataclass(frozen=True)
class LeakageSuspect:
    """One reason to look."""

    kind: Kind
    column: str | None
    message: str
    share: float
    """How strong, 0 to 1: of the rows, or of what there is to know."""


def single_scores(rows: pl.DataFrame, snapshot: Snapshot) -> dict[str, float]:
    """By column, how well it alone tells the target: 0 as good as nothing, 1 all of it.

    For two classes twice the area under the ROC curve minus 1, in whichever direction; for amounts the correlation of
    ranks; for more classes the share of the error of always guessing the commonest that it takes away. What texts tell
    is learned on every second row and measured on the others: else a text that never repeats would know everything.
    """
    target = snapshot.target
    if target is None or target not in rows.columns:
        return {}
    return column_scores(rows.drop([snapshot.entity] if snapshot.entity in rows.columns else []), target)


def column_scores(rows: pl.DataFrame, target: str) -> dict[str, float]:
    """As `single_scores`, of every column beside the target; none where fewer than a hundred rows have a target."""
    known = rows.filter(pl.col(target).is_not_null())
    goal = _goal(known[target])
    if goal is None or known.height < _MANY:
        return {}
    found: dict[str, float] = {}
    for name in known.columns:
        if name == target:
            continue
        score = _score(known[name], goal)
        if score is not None:
            found[name] = round(score, 4)
    return found


def find_suspects(rows: pl.DataFrame, snapshot: Snapshot, scores: Mapping[str, float]) -> Iterator[LeakageSuspect]:
    """Every reason to look at the rows of a snapshot, the gravest kinds first."""
    yield from _knowing(rows, snapshot, scores)
    yield from _later(rows, snapshot)
    yield from _names(rows, snapshot)
    yield from _doubles(rows, snapshot)
    yield from _idle(rows, snapshot)


def _knowing(rows: pl.DataFrame, snapshot: Snapshot, scores: Mapping[str, float]) -> Iterator[LeakageSuspect]:
    for name, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        if score >= TOO_GOOD:
            said = f"'{name}' alone tells {score:.0%} of '{snapshot.target}': is it known before?"
            yield LeakageSuspect("knows the target", name, said, score)
    target = snapshot.target
    if target is None or target not in rows.columns:
        return
    known = rows.filter(pl.col(target).is_not_null())
    goal = _goal(known[target])
    few = _MANY // 10
    for name in known.columns:
        missing = known[name].is_null()
        if goal is None or name == target or scores.get(name, 0.0) >= TOO_GOOD:
            continue
        if not few <= missing.sum() <= known.height - few:
            continue
        told = _score(missing, goal) or 0.0
        if told >= _NULLS_TELL:
            said = f"Whether '{name}' is null tells {told:.0%} of '{target}': is it filled in after the fact?"
            yield LeakageSuspect("nulls know the target", name, said, told)


def _later(rows: pl.DataFrame, snapshot: Snapshot) -> Iterator[LeakageSuspect]:
    for name, dtype in rows.schema.items():
        if not is_moment(dtype):
            continue
        moments = rows.select(as_utc(name, dtype)).to_series()
        ahead = (moments > snapshot.created_at).sum()
        if ahead:
            newest = pl.Series([moments.max()]).cast(pl.String)[0]
            said = f"{ahead:,} values of '{name}' lie after the snapshot was taken, up to {newest}."
            yield LeakageSuspect("future", name, said, float(ahead) / rows.height)
        if snapshot.time is not None and name != snapshot.time:
            own = rows.select(as_utc(snapshot.time, rows.schema[snapshot.time])).to_series()
            share = (moments > own).mean()
            if isinstance(share, float) and share > _LATER:
                said = f"'{name}' lies after '{snapshot.time}' in {share:.0%} of the rows: known only later?"
                yield LeakageSuspect("later", name, said, share)


def _names(rows: pl.DataFrame, snapshot: Snapshot) -> Iterator[LeakageSuspect]:
    for name, dtype in rows.schema.items():
        if name in (snapshot.entity, snapshot.target, snapshot.time) or rows.height < _MANY:
            continue
        if isinstance(dtype, pl.String) or dtype.is_integer():
            share = rows[name].n_unique() / rows.height
            if share >= _NAMES_ROWS:
                said = f"'{name}' hardly ever repeats ({share:.0%} distinct): it names rows and says nothing of others."
                yield LeakageSuspect("id", name, said, share)


def _doubles(rows: pl.DataFrame, snapshot: Snapshot) -> Iterator[LeakageSuspect]:
    features = [
        name
        for name, dtype in rows.schema.items()
        if name not in (snapshot.entity, snapshot.time, snapshot.target) and not isinstance(dtype, pl.Object)
    ]
    if not features:
        return
    facts = pl.struct(*features).hash()
    doubled = int(rows.select(facts.is_duplicated().sum()).item())
    if doubled:
        said = f"{doubled:,} rows have the same features as another row."
        yield LeakageSuspect("duplicates", None, said, doubled / rows.height)
    try:
        parts = split(rows, time=snapshot.time, key=snapshot.entity, target=snapshot.target)
    except EverloopError:
        return  # too few rows to be divided
    seen = parts.train.select(facts.alias("facts")).unique().to_series()
    again = int(parts.test.select(facts.is_in(seen.implode()).sum()).item())
    if again:
        share = again / parts.test.height
        said = f"{again:,} rows of the test part ({share:.0%}) have the features of a row to train on."
        yield LeakageSuspect("across splits", None, said, share)


def _idle(rows: pl.DataFrame, snapshot: Snapshot) -> Iterator[LeakageSuspect]:
    for name in rows.columns:
        if rows.height > 1 and rows[name].drop_nulls().n_unique() <= 1 and _countable(rows.schema[name]):
            yield LeakageSuspect("constant", name, f"'{name}' has one value only.", 1.0)
    plain = [name for name in rows.columns if _countable(rows.schema[name])]
    texts = rows.select(_text(name, rows.schema[name]) for name in plain)
    digests = texts.select(pl.all().hash().sum())
    seen: dict[object, str] = {}
    for name in plain:
        first = seen.setdefault(digests[name][0], name)
        if first != name and texts[name].equals(texts[first], null_equal=True):
            yield LeakageSuspect("same", name, f"'{name}' and '{first}' are the same in every row.", 1.0)


def _text(name: str, dtype: pl.DataType) -> pl.Expr:
    return (pl.col(name).to_physical() if dtype.is_temporal() else pl.col(name)).cast(pl.String)


def _countable(dtype: pl.DataType) -> bool:
    simple = dtype.is_numeric() or dtype.is_temporal()
    return simple or isinstance(dtype, pl.Boolean | pl.String | pl.Categorical | pl.Enum)


def _goal(target: pl.Series) -> pl.Series | None:
    """The target as booleans, amounts or class texts."""
    if isinstance(target.dtype, pl.Boolean):
        return target
    if has_classes(target):
        texts = target.cast(pl.String)
        classes = texts.drop_nulls().unique().sort()
        return texts == classes[1] if len(classes) == 2 else (texts if len(classes) > 2 else None)
    return target.cast(pl.Float64) if target.dtype.is_numeric() else None


def _score(values: pl.Series, goal: pl.Series) -> float | None:
    dtype = values.dtype
    if isinstance(dtype, pl.Boolean):
        values = values.cast(pl.Int8)
    if values.dtype.is_numeric() or dtype.is_temporal():
        told = (values.to_physical() if dtype.is_temporal() else values).cast(pl.Float64).fill_nan(None)
        both = pl.DataFrame({"x": told, "y": goal}).filter(pl.col("x").is_not_null(), pl.col("y").is_not_null())
    elif isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return _class_score(values.cast(pl.String), goal)
    else:
        return None
    if both.height < _MANY or both["x"].n_unique() < 2:
        return None
    if isinstance(goal.dtype, pl.String):
        edges = both["x"].rank("ordinal") * 20 // (both.height + 1)
        return _class_score(edges.cast(pl.String), both["y"])
    return _ranked(both)


def _ranked(both: pl.DataFrame) -> float | None:
    if isinstance(both.schema["y"], pl.Boolean):
        yes = int(both["y"].sum())
        no = both.height - yes
        if not yes or not no:
            return None
        above = both.select(pl.col("x").rank().filter(pl.col("y")).sum()).item() - yes * (yes + 1) / 2
        return abs(float(2 * above / (yes * no) - 1))
    found = both.select(pl.corr(pl.col("x").rank(), pl.col("y").rank())).item()
    return None if found is None or found != found else abs(float(found))


def _class_score(values: pl.Series, goal: pl.Series) -> float | None:
    both = pl.DataFrame({"x": values, "y": goal}).filter(pl.col("y").is_not_null())
    if both.height < _MANY:
        return None
    learned, measured = both.gather_every(2), both.gather_every(2, offset=1)
    if isinstance(goal.dtype, pl.String):
        counts = learned.group_by("x", "y").len().sort("len", "y", descending=[True, False])
        best = counts.unique("x", keep="first", maintain_order=True).select("x", pl.col("y").alias("guess"))
        common = learned["y"].mode().sort()[0]
        told = measured.join(best, on="x", how="left", nulls_equal=True).with_columns(pl.col("guess").fill_null(common))
        wrong = (told["y"] != told["guess"]).mean()
        blind = (measured["y"] != common).mean()
        if not isinstance(wrong, float) or not isinstance(blind, float) or not blind:
            return None
        return max(0.0, 1 - wrong / blind)
    means = learned.group_by("x").agg(pl.col("y").cast(pl.Float64).mean().alias("told"))
    overall = learned["y"].cast(pl.Float64).mean()
    told = measured.join(means, on="x", how="left", nulls_equal=True)
    shown = told.select(pl.col("told").fill_null(overall).alias("x"), "y")
    return _ranked(shown) if shown["x"].n_unique() > 1 else 0.0
