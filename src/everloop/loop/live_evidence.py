"""What live traffic says about a rollout: candidate against champion on answers whose labels have come.

Both versions score every logged row that has the inputs of both, whichever of them answered it: the pairs make a
verdict possible with a tenth of the rows that two separate samples would need. Metrics of labels compare the predicted
labels; of a row that a version answered, the label that it served. Where the two read different columns,
too few rows may have both; then each is measured on the rows that it answered itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.loop.champions import classes_of_both, same_classes, spread
from everloop.loop.gates import GateOutcome, compare, judge_apart
from everloop.loop.schema_compatibility import does_not_understand

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from everloop.loop.declarations import Canary
    from everloop.packages import Predictor
    from everloop.records import Release
    from everloop.stores import Store
    from everloop.training.class_decisions import ClassScores

    Array = np.ndarray[Any, Any]

_SERVED_APART = 1e-9
"""A served answer that lies further from its package's own is not rounding: it comes from another model."""


def live_evidence(store: Store, release: Release, previous: str, canary: Canary, metric: str) -> GateOutcome | None:
    """The verdict on the labelled rows since the rollout began; None where there are too few of them.

    What the canary really answered must be what its package answers; anything else fails it.
    """
    import numpy as np
    import polars as pl

    from everloop.prediction_log import read_inputs, read_labelled
    from everloop.registry import load_model
    from everloop.training.metrics import scores_for

    step_began = next(
        decision.at for decision in reversed(release.decisions) if decision.action in ("start", "advance")
    )
    labelled = read_labelled(store, release.endpoint, since=release.created_at).collect()
    candidate, champion = (load_model(store, key) for key in (release.candidate, previous))
    rows = _with_truth(labelled, candidate, champion)
    if rows.filter(pl.col("event_at") >= step_began).height < canary.least_labels:
        return None
    by_candidate = rows.filter(pl.col("version") == release.candidate)
    if by_candidate.height and candidate.task != "multiclass":
        own = candidate.predict(read_inputs(by_candidate, candidate.signature))
        apart = float(np.abs(own - by_candidate["score"].to_numpy()).max())
        if apart > _SERVED_APART:
            evidence = {"largest_difference": apart, "rows": by_candidate.height}
            return GateOutcome("fail", f"the canary answers {apart:.2g} apart from its own package", evidence)
    shared = rows.filter(_askable(rows, {release.candidate: candidate, previous: champion}))
    fresh = shared.filter(pl.col("event_at") >= step_began).height
    if fresh >= canary.least_labels:
        if not _judgeable(shared, candidate):
            return None
        every = classes_of_both(candidate, champion)
        own, other = (
            scores_for(metric, *spread(_answers(shared, model, version), model.classes, every))
            for model, version in ((candidate, release.candidate), (champion, previous))
        )
        answer = compare(shared["truth"].to_numpy(), own, other, metric, canary.margin, previous)
        answer.evidence["answered_by_canary"] = int((shared["version"] == release.candidate).sum())
        answer.evidence["since_step"] = fresh
        return answer
    return _each_on_its_own(rows, candidate, champion, metric, canary.margin, (release.candidate, previous))


def _answers(rows: pl.DataFrame, model: Predictor, version: str) -> ClassScores:
    """What a version says of logged rows; of those that it answered itself, with the labels that it served."""
    import numpy as np
    import polars as pl

    from everloop.prediction_log import read_inputs
    from everloop.training.class_decisions import ClassScores

    scores, places = model.answer_frame(read_inputs(rows, model.signature))
    if places is None or "predicted" not in rows.columns:
        return ClassScores(scores, places)
    served = rows.select(pl.when(pl.col("version") == version).then("predicted")).to_series()
    by_itself = served.is_not_null().to_numpy()
    return ClassScores(scores, np.where(by_itself, served.fill_null(0).to_numpy(), places).astype(np.intp))


def _with_truth(labelled: pl.DataFrame, candidate: Predictor, champion: Predictor) -> pl.DataFrame:
    """The rows whose label is known, with `truth`: in the classes of both models where these differ."""
    import polars as pl

    from everloop.training.targets import class_place

    if candidate.task == "regression" or same_classes(candidate.classes, champion.classes):
        return labelled.filter(pl.col("actual").is_not_null()).with_columns(truth=pl.col("actual").cast(pl.Float64))
    every = classes_of_both(candidate, champion)
    texts = labelled["actual_text"]
    places = {text: class_place(text, every) for text in texts.unique().to_list() if text is not None}
    known = {text: float(place) for text, place in places.items() if place is not None}
    truth = texts.replace_strict(known, default=None, return_dtype=pl.Float64).alias("truth")
    return labelled.with_columns(truth).filter(pl.col("truth").is_not_null())


def _askable(rows: pl.DataFrame, models: dict[str, Predictor]) -> pl.Expr:
    """Whether a row has the inputs of every model: those of the version that answered it, and what else was logged."""
    import polars as pl

    from everloop.prediction_log.prediction_log import input_column

    if "unasked" in rows.columns:
        # The endpoint has held the row against every version, and kept the inputs of all that understood it.
        noted = pl.col("unasked").is_not_null()
        understood = ~pl.any_horizontal([does_not_understand(version) for version in models])
        return pl.when(noted).then(understood).otherwise(_askable(rows.drop("unasked"), models))
    asked = pl.lit(value=True)
    for answering in rows["version"].unique().to_list():
        given = set(models[answering].signature.names) if answering in models else set()
        others = {name for model in models.values() for name in model.signature.names if name not in given}
        columns = [input_column(name) for name in sorted(others)]
        there = [pl.col(name).is_not_null() if name in rows.columns else pl.lit(value=False) for name in columns]
        asked &= (pl.col("version") != answering) | pl.all_horizontal(pl.lit(value=True), *there)
    return asked


def _judgeable(rows: pl.DataFrame, model: Predictor) -> bool:
    """Whether a metric says anything about these rows: of one class only, it does not."""
    return rows.height > 1 and (model.task == "regression" or rows["truth"].n_unique() > 1)


def _each_on_its_own(
    rows: pl.DataFrame,
    candidate: Predictor,
    champion: Predictor,
    metric: str,
    margin: float,
    versions: tuple[str, str],
) -> GateOutcome | None:
    import polars as pl

    from everloop.training.intervals import interval
    from everloop.training.metrics import scores_for

    every = classes_of_both(candidate, champion)
    found = []
    for model, version in zip((candidate, champion), versions, strict=True):
        answered = rows.filter(pl.col("version") == version)
        if not _judgeable(answered, model):
            return None
        answers = spread(_answers(answered, model, version), model.classes, every)
        found.append(interval(answered["truth"].to_numpy(), scores_for(metric, *answers), metric))
    own, other = found
    why = "the two read different columns, and requests had those of one only"
    answered_by = {version: int((rows["version"] == version).sum()) for version in versions}
    answer = judge_apart(own, other, metric, margin, versions[1], why)
    answer.evidence["answered_by"] = dict(answered_by)
    return answer
