"""What a candidate can be compared with: the holder of an alias, even where its columns or classes are others.

Between two versions columns come and go, change their names or types, and a target gains a class. Two models are
compared on the same rows where that can be done:

* the test rows have every column that the holder needs, those that the candidate does not see included;
* or its own held-out rows have the missing ones, for the same keys: neither model has trained on those rows;
* classes that one of the two does not know get the probability 0 from it.

Else each is measured on its own held-out rows, which says less, so the interval is wider.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, NotFoundError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl

    from everloop.packages import Predictor
    from everloop.packages.signature import Signature
    from everloop.records import Json, ModelVersion
    from everloop.stores import Store
    from everloop.training.class_decisions import ClassScores

    Array = np.ndarray[Any, Any]

LEAST_SHARED = 0.5
"""Rows that are completed from the holder's own held-out rows must be this share of the test rows."""


@dataclass(frozen=True)
class Pairs:
    """Both models' answers to the same rows: scores and predicted labels, in the same classes."""

    truth: Array
    candidate: ClassScores
    holder: ClassScores
    remark: str = ""
    """Which rows these are, where they are not all of the test rows as they stand."""

    def judged(self, metric: str) -> tuple[Array, Array]:
        """What a metric compares: the scores of candidate and holder, or for a metric of labels their predictions."""
        from everloop.training.metrics import scores_for

        return scores_for(metric, *self.candidate), scores_for(metric, *self.holder)


@dataclass(frozen=True)
class ComparedVersion:
    """The holder of an alias. `pairs` is None where it cannot be asked about the candidate's rows: `why` says so."""

    version: str
    pairs: Pairs | None = None
    why: str = ""
    same_classes: bool = True
    metrics: dict[str, dict[str, Json]] = field(default_factory=dict)
    """Its metrics on its own held-out rows, each with `value`, `low` and `high`."""


def deciding_metric(version: ModelVersion) -> str:
    """The metric that a version was judged by, where the loop names none; else the usual one of its task."""
    from everloop.training.metric_tasks import metrics_of

    named = version.evaluation.get("metric")
    return named if isinstance(named, str) else metrics_of(version.signature.get("task", "binary"))[0]


def find_rival(
    store: Store,
    holder: ModelVersion,
    candidate: Predictor,
    test: pl.DataFrame,
    truth: Array,
    answers: ClassScores,
    *,
    target: str,
    key: str | None,
) -> ComparedVersion:
    """What the holder of an alias can say about the candidate's test rows.

    Args:
        truth: of the test rows, in the candidate's classes; `answers` are the candidate's.
        key: the column that names a row, if there is one.

    Raises:
        ConflictError: the holder answers another question.
    """
    from everloop.packages.signature import Signature
    from everloop.registry import load_model

    measured = holder.evaluation.get("metrics")
    metrics = dict(measured) if isinstance(measured, dict) else {}
    signature = Signature.from_json(holder.signature) if holder.signature.get("inputs") else None
    if signature is not None:
        refuse_other_question(holder.key, signature, candidate.task, candidate.classes, target)
    same = signature is None or same_classes(signature.classes, candidate.classes)
    try:
        model = load_model(store, holder.key)
    except NotFoundError as error:
        return ComparedVersion(holder.key, why=error.message.rstrip("."), same_classes=same, metrics=metrics)
    rows, kept, remark = _completed(store, holder, model.signature, test, target=target, key=key)
    if rows is None:
        return ComparedVersion(holder.key, why=remark, same_classes=same, metrics=metrics)
    try:
        answered = model.answer_frame(rows)
    except RequestError as error:
        # A column of the same name has another type by now.
        return ComparedVersion(holder.key, why=error.message.rstrip("."), same_classes=same, metrics=metrics)
    own = answers if kept is None else answers.take(kept)
    labels = truth if kept is None else truth[kept]
    if not same:
        every = classes_of_both(candidate, model)
        own, answered = spread(own, candidate.classes, every), spread(answered, model.classes, every)
        news = [repr(one) for one in every if _place(one, model.classes) is None]
        gone = [repr(one) for one in every if _place(one, candidate.classes) is None]
        told = [f"{holder.key} does not know {', '.join(news)}"] if news else []
        told += [f"the candidate does not know {', '.join(gone)}"] if gone else []
        remark = "; ".join([*([remark] if remark else []), *told])
    return ComparedVersion(holder.key, Pairs(labels, own, answered, remark), same_classes=same, metrics=metrics)


def refuse_other_question(holder: str, signature: Signature, task: str, classes: Sequence[Json], target: str) -> None:
    """Refuse to put a model beside one that answers another question.

    Raises:
        ConflictError: the tasks differ, or no class is known to both.
    """
    amounts = "regression" in (task, signature.task)
    if signature.task == task and amounts:
        return
    if not amounts and any(_place(one, signature.classes) is not None for one in classes):
        return
    known = "amounts" if signature.task == "regression" else f"one of {_listed(signature.classes)}"
    asked = "amounts" if task == "regression" else f"one of {_listed(classes)}"
    model = holder.rpartition("@")[0]
    raise ConflictError(
        f"'{target}' asks for {asked}, but {holder} answers {known}: they cannot stand for each other.",
        help=f"Begin afresh under new names: el.Loop('{model}-2', …) and serve=el.Endpoint('{model}-2', …). "
        "If the same labels are only written differently, map them to the old ones in the step.",
    )


def _listed(classes: Sequence[Json]) -> str:
    shown = ", ".join(repr(one) for one in classes[:5])
    return f"{shown}, …" if len(classes) > 5 else shown


def _place(value: Json, classes: Sequence[Json]) -> int | None:
    """Where a class stands among others, `1` for `True` and `"1"` for `1` included."""
    from everloop.training.targets import class_place

    return class_place(value, classes)


def same_classes(one: Sequence[Json], other: Sequence[Json]) -> bool:
    """Whether two models' scores mean the same classes in the same order."""
    return len(one) == len(other) and all(_place(value, other) == place for place, value in enumerate(one))


def classes_of_both(candidate: Predictor, holder: Predictor) -> list[Json]:
    """The candidate's classes in their order, then those that only the other model knows."""
    return [*candidate.classes, *(one for one in holder.classes if _place(one, candidate.classes) is None)]


def spread(answers: ClassScores, classes: Sequence[Json], every: Sequence[Json]) -> ClassScores:
    """Answers in some classes as answers in `every`, which holds them all; as they stand where these are the same."""
    import numpy as np

    from everloop.training.class_decisions import ClassScores

    if same_classes(classes, every):
        return answers

    scores, chosen = answers
    to = [at for value in classes if (at := _place(value, every)) is not None]
    wide = np.zeros((len(scores), len(every)))
    wide[:, to] = np.column_stack([1.0 - scores, scores]) if scores.ndim == 1 else scores
    moved = None if chosen is None else np.array(to, dtype=np.intp)[chosen]
    # The same two classes in the other order stay one column.
    return ClassScores(wide[:, 1].copy() if len(every) == 2 else wide, moved)


def _completed(
    store: Store, holder: ModelVersion, signature: Signature, test: pl.DataFrame, *, target: str, key: str | None
) -> tuple[pl.DataFrame | None, Array | None, str]:
    """The rows that the holder can be asked about, their numbers among the test rows (None: all), and a remark."""
    import polars as pl

    missing = [name for name in signature.names if name not in test.columns]
    if not missing:
        return _as_numbers(test, signature), None, ""
    lacks = f"the test rows lack {', '.join(map(repr, missing))}, which {holder.key} needs"
    earlier = _held_out(store, holder)
    if earlier is None or key is None or any(name not in earlier.columns for name in (key, target, *missing)):
        return None, None, lacks
    if earlier.schema[key] != test.schema[key] or earlier.schema[target] != test.schema[target]:
        return None, None, lacks
    # A row whose label has changed since is another observation.
    shared = (
        test.with_row_index("#row")
        .join(earlier.select(key, target, *missing).unique(key, keep="first"), on=[key, target], how="inner")
        .sort("#row")
    )
    if shared.height < LEAST_SHARED * test.height:
        return None, None, lacks
    rows = _as_numbers(shared.drop("#row"), signature)
    remark = f"{', '.join(map(repr, missing))} taken from the rows of the same '{key}' that {holder.key} was judged by"
    return rows, shared["#row"].cast(pl.Int64).to_numpy(), remark


def _held_out(store: Store, holder: ModelVersion) -> pl.DataFrame | None:
    """The rows that a version was judged by, if its run keeps them still."""
    import polars as pl

    from everloop.pipeline.artifacts import load_value
    from everloop.records import Artifact, StepRun

    if holder.run is None:
        return None
    steps = store.records.find(StepRun, ("run", "=", holder.run), ("name", "=", "split"), limit=1)
    kept = steps[0].outputs.get("test") if steps else None
    found = store.records.find(Artifact, ("id", "=", kept), limit=1) if kept else []
    if not found:
        return None
    try:
        rows = load_value(found[0], store.objects)
    except NotFoundError:
        return None  # swept away since
    return rows if isinstance(rows, pl.DataFrame) else None


def _as_numbers(rows: pl.DataFrame, signature: Signature) -> pl.DataFrame:
    """Texts that are numbers, every one, as numbers where the model takes numbers."""
    import polars as pl

    for item in signature.inputs:
        if item.type in ("float", "int") and isinstance(rows.schema[item.name], pl.String):
            parsed = rows[item.name].str.strip_chars().cast(pl.Float64, strict=False)
            if parsed.null_count() == rows[item.name].null_count():
                rows = rows.with_columns(parsed)
    return rows
