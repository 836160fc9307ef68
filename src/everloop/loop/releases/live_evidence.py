"""Compare candidate and champion of a rollout on live predictions whose labels have arrived.

Both versions score every logged row that has the inputs of both, no matter which of them answered it. Such pairs need a
tenth of the rows that two separate samples would need. A sequential test judges the difference. Metrics of predicted
labels use the label that a version served for the rows that it answered. If the versions read different columns, too
few rows may have the inputs of both. Then each version is measured on the rows that it answered itself. A process
scores each row once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from everloop.loop.comparison.champions import classes_of_both, same_classes, spread
from everloop.loop.comparison.scored_rows import ScoredRows, scored_rows
from everloop.loop.gates.gate_checks import GateOutcome
from everloop.loop.releases.evidence_rows import KeptScores, evidence_rows, has_all_inputs
from everloop.loop.releases.metric_influence import measure_gain, measure_separate_gain
from everloop.loop.releases.rollout import step_started_at
from everloop.loop.releases.sequential_test import look, may_look_at
from everloop.stores.clock import micros

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


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the labelled rows of a release show. It depends on the log only, and not on what has been decided."""

    measured: MeasuredGain | None
    """None: `outcome` says why."""
    outcome: GateOutcome | None = None
    """If nothing is measured: a failure, or None for too few rows."""
    events: Array | None = None
    """Event times of the rows, in µs since 1970, in order."""
    found: dict[str, Json] = field(default_factory=dict)
    remark: str = ""
    label_rows: int = 0
    """Rows of the table of labels when it was read."""
    logged: int = 0
    """Rows of the table of predictions when it was read."""


_LARGE = 20_000
"""Labelled rows, and 20 times as many predictions. Less than that is read again whenever a row is added, because that
takes a fraction of a second. The rows of larger logs are kept in the store, see `evidence_rows`."""
_remembered: OrderedDict[tuple[object, ...], tuple[tuple[object, ...], Evidence]] = OrderedDict()
"""Evidence by release and what is measured, with the versions of the tables that it was read from."""
_MOST_REMEMBERED = 4


def live_evidence(store: Store, release: Release, previous: str, canary: Canary, metric: str) -> GateOutcome | None:
    """Compare candidate and champion on the labelled rows since the rollout began; None if there are too few.

    The outcome is that of the sequential test: pass if it has proven success, fail if it has proven harm. Its evidence
    has the looks of the test so far as `looks`, and `ready`: whether the present step has enough new rows and the
    estimate gives no sign of harm. The scores that the canary served must equal those of its package, otherwise the
    outcome is fail.

    The log is read again only if predictions or labels have been added since the last call in this process. If there
    are many, only what is new is read, once there are enough new labels for a look of the test, or for a step. More
    than 200,000 labelled rows are sampled by key. Then `sampled` in the evidence is 2, 4, 8 …: one in this many keys.

    Args:
        previous: key of the champion.

    Raises:
        CorruptionError: no decision gave the candidate its share.
    """
    from everloop.prediction_log.log_reading import fold_logs

    step_began = step_started_at(release)
    fold_logs(store, release.endpoint)
    versions = _table_versions(store, release.endpoint)
    if versions is None:
        evidence = read_evidence(store, release, previous, canary.least_labels, metric)
    else:
        key = (store.tables.root, store.project, release.id, previous, metric, canary.least_labels)
        known = _remembered.pop(key, None)
        if known is not None and (known[0] == versions or not _may_decide(store, release, canary, known[1])):
            evidence = known[1]
        else:
            labels, logged = _count_rows(store, release.endpoint)
            large = labels >= _LARGE or logged >= 20 * _LARGE
            evidence = read_evidence(store, release, previous, canary.least_labels, metric, large)
            evidence = replace(evidence, label_rows=labels, logged=logged)
        _remembered[key] = (versions, evidence)
        while len(_remembered) > _MOST_REMEMBERED:
            _remembered.popitem(last=False)
    if evidence.measured is None or evidence.events is None:
        return evidence.outcome
    # In a sample, each row stands for several.
    fresh = evidence.measured.sampled * _count_since(evidence.events, step_began)
    return _judged(evidence, evidence.measured, fresh, release, previous, canary, metric)


def _may_decide(store: Store, release: Release, canary: Canary, known: Evidence) -> bool:
    """Whether labels that have arrived since may allow a look of the test, or a step."""
    if known.measured is None or known.events is None or not release.looks:
        return True
    if known.measured.rows < _LARGE and known.logged < 20 * _LARGE:
        return True
    # A label counts for at most one prediction. In a sample, each row stands for several.
    sampled = known.measured.sampled
    new = _count_rows(store, release.endpoint)[0] - known.label_rows
    fresh = sampled * _count_since(known.events, step_started_at(release))
    grown = replace(known.measured, rows=known.measured.rows + math.ceil(new / sampled))
    may_look = may_look_at(grown, release.looks)
    return new < 0 or may_look or fresh < canary.least_labels <= fresh + new


def _count_rows(store: Store, endpoint: str) -> tuple[int, int]:
    """The rows of the tables of labels and of predictions."""
    import polars as pl

    from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name

    names = (table_name(store, what, endpoint) for what in (LABELS, PREDICTIONS))
    labels, logged = (int(store.tables.scan(name).select(pl.len()).collect().item()) for name in names)
    return labels, logged


def read_evidence(
    store: Store, release: Release, previous: str, least_labels: int, metric: str, large: bool = False
) -> Evidence:
    """Measure the gain on all labelled rows since the rollout began, or on a sample of them.

    Args:
        large: the log is long, so labelled rows are kept in the store.
    """
    import numpy as np
    import polars as pl

    from everloop.prediction_log import read_labelled
    from everloop.registry import load_model

    sampled = 1
    if large:
        kept = evidence_rows(store, release, previous)
        labelled, sampled = kept.rows, 2**kept.level
    else:
        found = read_labelled(store, release.endpoint, since=release.created_at)
        if found.select(pl.len()).collect().item() < least_labels:
            # Most ticks end here, without reading inputs.
            return Evidence(None)
        labelled = found.collect()
    candidate, champion = (load_model(store, key) for key in (release.candidate, previous))
    versions = {release.candidate: "candidate", previous: "champion"}
    scored: dict[str, ScoredRows | KeptScores] = {
        version: KeptScores(name) if large else scored_rows(store.tables.root, release.created_at, version)
        for version, name in versions.items()
    }
    rows = _with_labels(labelled, candidate, champion)
    if rows.height < least_labels:
        return Evidence(None)
    by_candidate = rows.filter(pl.col("version") == release.candidate)
    if by_candidate.height and candidate.task != "multiclass":
        own = scored[release.candidate].answer(candidate, by_candidate).scores
        difference = float(np.abs(own - by_candidate["score"].to_numpy()).max())
        # An answer that is not a number differs from any other.
        if not difference <= _SERVED_DIFFERENCE:
            evidence: dict[str, Json] = {"largest_difference": difference, "rows": by_candidate.height}
            message = f"the canary's scores differ by {difference:.2g} from its package's"
            return Evidence(None, GateOutcome("fail", message, evidence))
    models = {release.candidate: candidate, previous: champion}
    shared = rows.filter(pl.col("#shared") if large else has_all_inputs(rows, models))
    if shared.height >= least_labels:
        if not _is_measurable(shared, candidate):
            return Evidence(None)
        every = classes_of_both(candidate, champion)
        own, other = (
            scores_of(metric, predictions_of(shared, model, version, scored[version]), model, every)
            for model, version in ((candidate, release.candidate), (champion, previous))
        )
        labels = shared["label"].to_numpy()
        measured = measure_gain(metric, labels, own, other, keys=_keys(shared), days=_days(shared))
        measured = replace(measured, sampled=sampled)
        details: dict[str, Json] = {"answered_by_canary": int((shared["version"] == release.candidate).sum())}
        return Evidence(measured, events=_event_times(shared), found=details)
    compared = _compare_unpaired(rows, candidate, champion, release.candidate, previous, metric, scored)
    if compared.measured is None:
        return compared
    return replace(compared, measured=replace(compared.measured, sampled=sampled))


def _table_versions(store: Store, endpoint: str) -> tuple[object, ...] | None:
    """The versions of the tables that evidence is read from; None if there are no predictions or labels yet."""
    from everloop.prediction_log.label_matching import label_horizon
    from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name

    if store.read_only:
        # A view of the past hides rows of the tables.
        return None
    found = [store.tables.snapshot(table_name(store, what, endpoint)) for what in (PREDICTIONS, LABELS)]
    if None in found:
        return None
    return (label_horizon(store, endpoint), *((one.id, one.version) for one in found if one is not None))


def scores_of(metric: str, predictions: ClassScores, model: Predictor, every: list[Json]) -> Array:
    """Return what a metric judges of a version's predictions, over the classes of both versions."""
    from everloop.training.metrics import scores_for

    return scores_for(metric, *spread(predictions, model.classes, every))


def _judged(
    evidence: Evidence,
    measured: MeasuredGain,
    fresh: int,
    release: Release,
    previous: str,
    canary: Canary,
    metric: str,
) -> GateOutcome:
    """Look at a measured gain with the sequential test. `fresh` is the number of rows since the present step."""
    seen = look(
        measured,
        release.looks,
        rule=canary.rule,
        margin=canary.margin,
        error=canary.error,
        planned=canary.planned,
        least_days=canary.days_of_proof,
    )
    outcome: Outcome = {"success": "pass", "harm": "fail", "open": "undecided"}[seen.verdict]  # type: ignore[assignment]
    wanted = f"not worse by {canary.margin:g}" if canary.rule == "not_worse" else f"better by {canary.margin:g}"
    proof = {
        "success": f"proven {wanted}",
        "harm": "proven worse",
        "open": f"not proven {wanted} yet" if seen.counted else "too little is new since the last look",
    }[seen.verdict]
    if seen.verdict == "open" and seen.above > seen.needed:
        proof = f"{wanted} so far, but that needs {canary.days_of_proof} days and the rows are of {measured.days}"
    numbers = f"{measured.candidate_value:.3f} against {measured.champion_value:.3f} of {previous}"
    sample = f" (of one in {measured.sampled} keys)" if measured.sampled > 1 else ""
    message = (
        f"{metric} {numbers} on {measured.rows:,} labelled rows{sample}: {measured.gain:+.4f} "
        f"(standard error {measured.standard_error:.4f}); {proof}{evidence.remark}"
    )
    details: dict[str, Json] = {
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
        "least_days": canary.days_of_proof,
        "since_step": fresh,
        "ready": fresh >= canary.least_labels and seen.seems_harmless,
        "looks": list(seen.looks),
        **({"sampled": measured.sampled} if measured.sampled > 1 else {}),
        **evidence.found,
    }
    return GateOutcome(outcome, message, details)


def _count_since(events: Array, moment: datetime) -> int:
    return len(events) - int(events.searchsorted(micros(moment), side="left"))


def _event_times(rows: pl.DataFrame) -> Array:
    import numpy as np

    found: Array = np.sort(rows["event_at"].dt.epoch("us").to_numpy())
    return found


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


def predictions_of(rows: pl.DataFrame, model: Predictor, version: str, scored: ScoredRows | KeptScores) -> ClassScores:
    """Return a version's predictions for logged rows, with the labels that it served for the rows it answered.

    Args:
        rows: rows of the log, or labelled rows, of any version.
        scored: what is known of the version's answers.
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


def _is_measurable(rows: pl.DataFrame, model: Predictor) -> bool:
    """Whether a metric can be measured on these rows. Rows of a single class are not enough."""
    return rows.height > 1 and (model.task == "regression" or rows["label"].n_unique() > 1)


def _compare_unpaired(
    rows: pl.DataFrame,
    candidate: Predictor,
    champion: Predictor,
    candidate_key: str,
    previous: str,
    metric: str,
    scored: dict[str, ScoredRows | KeptScores],
) -> Evidence:
    import polars as pl

    every = classes_of_both(candidate, champion)
    samples = []
    for model, version in ((candidate, candidate_key), (champion, previous)):
        answered = rows.filter(pl.col("version") == version)
        if not _is_measurable(answered, model):
            return Evidence(None)
        judged = scores_of(metric, predictions_of(answered, model, version, scored[version]), model, every)
        samples.append((answered["label"].to_numpy(), judged, _days(answered)))
    measured = measure_separate_gain(metric, *samples)
    answered_by = {version: int((rows["version"] == version).sum()) for version in (candidate_key, previous)}
    why = "the versions read different columns, and too few requests had the columns of both"
    found: dict[str, Json] = {"paired": False, "why": why, "answered_by": dict(answered_by)}
    remark = f"; each on its own rows, not comparable on the same rows: {why}"
    return Evidence(measured, events=_event_times(rows), found=found, remark=remark)
