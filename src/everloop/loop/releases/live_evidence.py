"""Compare candidate and champion of a rollout on live predictions whose labels have arrived.

Both versions score every logged row that has the inputs of both, no matter which of them answered it. Such pairs need a
tenth of the rows that two separate samples would need. A sequential test judges the difference. Metrics of predicted
labels use the label that a version served for the rows that it answered. If the versions read different columns, too
few rows may have the inputs of both. Then each version is measured on the rows that it answered itself. A process
scores each row once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from everloop.loop.comparison.champions import classes_of_both, same_classes, spread
from everloop.loop.comparison.schema_compatibility import cannot_score
from everloop.loop.comparison.scored_rows import ScoredRows, scored_rows
from everloop.loop.gates.gate_checks import GateOutcome
from everloop.loop.releases.metric_influence import measure_gain, measure_separate_gain
from everloop.loop.releases.rollout import step_started_at
from everloop.loop.releases.sequential_test import look

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import polars as pl

    from everloop.loop.releases.metric_influence import MeasuredGain
    from everloop.loop.releases.release_declarations import Canary
    from everloop.packages import Predictor
    from everloop.records import Json, Outcome, Release
    from everloop.stores import Store
    from everloop.training.class_decisions import ClassScores

    Array = np.ndarray[Any, Any]

_SERVED_DIFFERENCE = 1e-9
"""A served score that differs by more than this from the package's score is not rounding: another model gave it."""


def live_evidence(store: Store, release: Release, previous: str, canary: Canary, metric: str) -> GateOutcome | None:
    """Compare candidate and champion on the labelled rows since the rollout began; None if there are too few.

    The outcome is that of the sequential test: pass if it has proven success, fail if it has proven harm. Its evidence
    has the looks of the test so far as `looks`, and `ready`: whether the present step has enough new rows and the
    estimate gives no sign of harm. The scores that the canary served must equal those of its package, otherwise the
    outcome is fail.

    Args:
        previous: key of the champion.
    """
    import numpy as np
    import polars as pl

    from everloop.prediction_log import read_labelled
    from everloop.registry import load_model

    step_began = step_started_at(release)
    known = read_labelled(store, release.endpoint, since=release.created_at)
    if known.select(pl.len()).collect().item() < canary.least_labels:
        # Most ticks end here, without reading inputs.
        return None
    labelled = known.collect()
    candidate, champion = (load_model(store, key) for key in (release.candidate, previous))
    began = release.created_at
    scored = {version: scored_rows(store.tables.root, began, version) for version in (release.candidate, previous)}
    rows = _with_labels(labelled, candidate, champion)
    if rows.height < canary.least_labels:
        return None
    by_candidate = rows.filter(pl.col("version") == release.candidate)
    if by_candidate.height and candidate.task != "multiclass":
        own = scored[release.candidate].answer(candidate, by_candidate).scores
        difference = float(np.abs(own - by_candidate["score"].to_numpy()).max())
        # An answer that is not a number differs from any other.
        if not difference <= _SERVED_DIFFERENCE:
            evidence = {"largest_difference": difference, "rows": by_candidate.height}
            return GateOutcome("fail", f"the canary's scores differ by {difference:.2g} from its package's", evidence)
    shared = rows.filter(has_all_inputs(rows, {release.candidate: candidate, previous: champion}))
    if shared.height >= canary.least_labels:
        if not _is_measurable(shared, candidate):
            return None
        every = classes_of_both(candidate, champion)
        own, other = (
            scores_of(metric, predictions_of(shared, model, version, scored[version]), model, every)
            for model, version in ((candidate, release.candidate), (champion, previous))
        )
        labels = shared["label"].to_numpy()
        measured = measure_gain(metric, labels, own, other, keys=_keys(shared), days=_days(shared))
        found = {"answered_by_canary": int((shared["version"] == release.candidate).sum())}
        return _judged(measured, release, previous, canary, metric, shared, step_began, found)
    return _compare_unpaired(rows, candidate, champion, release, previous, canary, metric, scored, step_began)


def scores_of(metric: str, predictions: ClassScores, model: Predictor, every: list[Json]) -> Array:
    """Return what a metric judges of a version's predictions, over the classes of both versions."""
    from everloop.training.metrics import scores_for

    return scores_for(metric, *spread(predictions, model.classes, every))


def _judged(
    measured: MeasuredGain,
    release: Release,
    previous: str,
    canary: Canary,
    metric: str,
    rows: pl.DataFrame,
    step_began: datetime,
    found: dict[str, Json],
) -> GateOutcome:
    """Look at a measured gain with the sequential test."""
    import polars as pl

    seen = look(
        measured,
        release.looks,
        rule=canary.rule,
        margin=canary.margin,
        error=canary.error,
        planned=canary.planned,
        least_days=canary.least_days,
    )
    fresh = rows.filter(pl.col("event_at") >= step_began).height
    outcome: Outcome = {"success": "pass", "harm": "fail", "open": "undecided"}[seen.verdict]  # type: ignore[assignment]
    wanted = f"not worse by {canary.margin:g}" if canary.rule == "not_worse" else f"better by {canary.margin:g}"
    proof = {
        "success": f"proven {wanted}",
        "harm": "proven worse",
        "open": f"not proven {wanted} yet" if seen.counted else "too little is new since the last look",
    }[seen.verdict]
    numbers = f"{measured.candidate_value:.3f} against {measured.champion_value:.3f} of {previous}"
    message = (
        f"{metric} {numbers} on {measured.rows:,} labelled rows: {measured.gain:+.4f} "
        f"(standard error {measured.standard_error:.4f}); {proof}"
    )
    evidence: dict[str, Json] = {
        "champion": previous,
        "metric": metric,
        "candidate_value": _finite(measured.candidate_value),
        "champion_value": _finite(measured.champion_value),
        "gain": _finite(measured.gain),
        "standard_error": _finite(measured.standard_error),
        "low": _finite(seen.low),
        "high": _finite(seen.high),
        "margin": canary.margin,
        "rule": canary.rule,
        "error": canary.error,
        "rows": measured.rows,
        "planned_rows": canary.planned,
        "deviations": _finite(seen.above),
        "needed": _finite(seen.needed),
        "design_effect": measured.design_effect,
        "days": measured.days,
        "since_step": fresh,
        "ready": fresh >= canary.least_labels and seen.seems_harmless,
        "looks": list(seen.looks),
        **found,
    }
    return GateOutcome(outcome, message, evidence)


def _keys(rows: pl.DataFrame) -> Array | None:
    """Numbers of the rows' keys. A row without a key is a key of its own."""
    import polars as pl

    if "entity" not in rows.columns:
        return None
    own = pl.concat_str(pl.lit("\0"), pl.int_range(pl.len()).cast(pl.String))
    found: Array = rows.select(pl.coalesce("entity", own).rank("dense")).to_series().to_numpy()
    return found


def _days(rows: pl.DataFrame) -> Array:
    """Numbers of the rows' days, in UTC."""
    found: Array = rows["event_at"].dt.epoch("d").to_numpy()
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def predictions_of(rows: pl.DataFrame, model: Predictor, version: str, scored: ScoredRows) -> ClassScores:
    """Return a version's predictions for logged rows, with the labels that it served for the rows it answered.

    Args:
        rows: rows of the log, or labelled rows, of any version.
        scored: what this process remembers of the version's answers.
    """
    import numpy as np
    import polars as pl

    from everloop.training.class_decisions import ClassScores

    scores, places = scored.answer(model, rows)
    if places is None or "predicted" not in rows.columns:
        return ClassScores(scores, places)
    served = rows.select(pl.when(pl.col("version") == version).then("predicted")).to_series()
    was_served = served.is_not_null().to_numpy()
    return ClassScores(scores, np.where(was_served, served.fill_null(0).to_numpy(), places).astype(np.intp))


def _with_labels(labelled: pl.DataFrame, candidate: Predictor, champion: Predictor) -> pl.DataFrame:
    """Return the rows with a known label, with a column `label`: a number, or a class index among those of both."""
    import polars as pl

    from everloop.training.targets import class_place

    if candidate.task == "regression" or same_classes(candidate.classes, champion.classes):
        return labelled.filter(pl.col("actual").is_not_null()).with_columns(label=pl.col("actual").cast(pl.Float64))
    every = classes_of_both(candidate, champion)
    texts = labelled["actual_text"]
    indices = {text: class_place(text, every) for text in texts.unique().to_list() if text is not None}
    known = {text: float(index) for text, index in indices.items() if index is not None}
    label = texts.replace_strict(known, default=None, return_dtype=pl.Float64).alias("label")
    return labelled.with_columns(label).filter(pl.col("label").is_not_null())


def has_all_inputs(rows: pl.DataFrame, models: dict[str, Predictor]) -> pl.Expr:
    """Whether a logged row has the inputs of every model."""
    import polars as pl

    from everloop.prediction_log.prediction_log import input_column

    if "unasked" in rows.columns:
        # The endpoint checked these rows against every version, and logged the inputs of all versions that fit.
        checked = pl.col("unasked").is_not_null()
        fits_all = ~pl.any_horizontal([cannot_score(version) for version in models])
        return pl.when(checked).then(fits_all).otherwise(has_all_inputs(rows.drop("unasked"), models))
    complete = pl.lit(value=True)
    for answering in rows["version"].unique().to_list():
        # Rows have the inputs of the version that answered; those of other versions only if they were logged as well.
        present = set(models[answering].signature.names) if answering in models else set()
        others = {name for model in models.values() for name in model.signature.names if name not in present}
        columns = [input_column(name) for name in sorted(others)]
        logged = [pl.col(name).is_not_null() if name in rows.columns else pl.lit(value=False) for name in columns]
        complete &= (pl.col("version") != answering) | pl.all_horizontal(pl.lit(value=True), *logged)
    return complete


def _is_measurable(rows: pl.DataFrame, model: Predictor) -> bool:
    """Whether a metric can be measured on these rows. Rows of a single class are not enough."""
    return rows.height > 1 and (model.task == "regression" or rows["label"].n_unique() > 1)


def _compare_unpaired(
    rows: pl.DataFrame,
    candidate: Predictor,
    champion: Predictor,
    release: Release,
    previous: str,
    canary: Canary,
    metric: str,
    scored: dict[str, ScoredRows],
    step_began: datetime,
) -> GateOutcome | None:
    import polars as pl

    every = classes_of_both(candidate, champion)
    samples = []
    for model, version in ((candidate, release.candidate), (champion, previous)):
        answered = rows.filter(pl.col("version") == version)
        if not _is_measurable(answered, model):
            return None
        judged = scores_of(metric, predictions_of(answered, model, version, scored[version]), model, every)
        samples.append((answered["label"].to_numpy(), judged, _days(answered)))
    measured = measure_separate_gain(metric, *samples)
    answered_by = {version: int((rows["version"] == version).sum()) for version in (release.candidate, previous)}
    why = "the versions read different columns, and too few requests had the columns of both"
    found: dict[str, Json] = {"paired": False, "why": why, "answered_by": dict(answered_by)}
    outcome = _judged(measured, release, previous, canary, metric, rows, step_began, found)
    message = f"{outcome.message}; each on its own rows, not comparable on the same rows: {why}"
    return GateOutcome(outcome.outcome, message, outcome.evidence)
