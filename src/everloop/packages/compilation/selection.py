"""Select the form that predicts: candidates are built and measured, and the fastest one that is proved equal wins.

A candidate that is not clearly faster than one that has been proved already is not proved, because it cannot win.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, ParityError
from everloop.packages.compilation.compiled_model import CompiledModel, LinearForm, TreeForm
from everloop.packages.compilation.equivalence_proof import prove_compiled
from everloop.packages.compilation.fitted_ensembles import STRICT
from everloop.packages.compilation.pipelines import (
    CompilationSource,
    InputContext,
    NotCompilableError,
    run_steps,
    segments_of,
    split_pipeline,
)
from everloop.packages.parity import plain_rows
from everloop.packages.prediction_cache import plain_model
from everloop.packages.time_budget import TimeBudget
from everloop.training.class_decisions import Rule, answer_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from everloop.packages.signature import Signature
    from everloop.records import Json
    from everloop.training.trained_model import Model

logger = logging.getLogger("everloop.packages")

CLEARLY = 0.5
"""A candidate replaces a proved form only if it takes less than this share of its time, so that noise does not decide.
"""
_SESSION_S = 5e-6
_INPUT_S = 1e-6
"""Lower bounds for scoring a row with ONNX: for the session, and for each input. If a graph would have to be faster, it
is not converted, because loading the converter and converting can take seconds."""
_REPEATS = 300
_MOST_S = 0.05
"""Longest time for measuring one form, unless a single prediction takes longer."""
_SEARCHES = {"GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV"}
_THRESHOLDS = {"FixedThresholdClassifier", "TunedThresholdClassifierCV"}
_MOST_TEXT = 4_000_000
"""With trees of more bytes than this, no graph is converted for comparison, because that takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """Result of a compilation. `model` is None if the original predicts; `evidence` gives the reasons.

    `evidence`: `compiled`, `form` (the form that predicts), `row_us` (microseconds per row, by form, measured here),
    `reasons` (why a form is not used), and the evidence of the proof.
    """

    model: CompiledModel | None
    evidence: dict[str, Json] = field(default_factory=dict)


def compile_model(
    original: Model, signature: Signature, sample: pl.DataFrame, effort: TimeBudget | None = None
) -> Compilation:
    """Look for a compiled form that is proved equal to `original`.

    Args:
        sample: rows of the training data with the signature's columns, limited by `parity.sample_of`.
        effort: how long it may take; it notes the forms that were not tried.
    """
    effort = effort or TimeBudget()
    with warnings.catch_warnings():
        # Edge rows cause warnings on purpose.
        warnings.simplefilter("ignore")
        return _compile(original, signature, sample, effort)


def _compile(original: Model, signature: Signature, sample: pl.DataFrame, effort: TimeBudget) -> Compilation:
    row = plain_rows(sample.head(1), signature)[0]
    times = {"original": measure_row(lambda: answer_rows(original, [row]))}
    source = _source(plain_model(original), sample)
    if source is None:
        return Compilation(model=None, evidence={"row_us": _microseconds(times)})
    reasons: dict[str, Json] = {}
    best: tuple[CompiledModel, dict[str, Json]] | None = None
    fastest = times["original"]
    values = tuple(row.values())
    for number, (name, compile_form) in enumerate(_COMPILERS.items()):
        # The native form is compiled quickly and is the fastest, so it is always tried.
        if effort.over and name != "native":
            effort.leave_out(f"the form '{name}'")
            continue
        effort.report(f"compiling as {name}", number, len(_COMPILERS))
        try:
            if best is not None and (best[0].size_bytes > _MOST_TEXT or name not in ("native", "onnx")):
                raise NotCompilableError(f"{best[0].form.name} is proved already")
            inputs = 1 if source.table.container == "numpy" else len(signature.inputs)
            if best is not None and fastest * CLEARLY < _SESSION_S + inputs * _INPUT_S:
                raise NotCompilableError(
                    f"{best[0].form.name} takes {fastest * 1e6:.3g} µs per row, and a graph cannot halve that"
                )
            made = compile_form(source, signature, sample)
            score_row = made.form.row
            taken = measure_row(lambda score_row=score_row: score_row(values))  # type: ignore[misc]
            times[made.form.name] = taken
            if taken >= fastest * (1.0 if best is None else CLEARLY):
                reasons[name] = f"not clearly faster: {taken * 1e6:.3g} µs per row, {fastest * 1e6:.3g} µs without it"
                continue
            best, fastest = (made, prove_compiled(original, made, signature, sample, effort)), taken
        except ParityError as error:
            reasons[name] = f"refused: {error.message}"
        except EverloopError as error:
            reasons[name] = f"not compiled: {error.message}"
        except Exception as error:  # a converter can raise anything; the original predicts then
            logger.debug("compiling as %s failed", name, exc_info=True)
            reasons[name] = f"not compiled: {type(error).__name__}: {str(error)[:300]}"
    evidence = {"row_us": _microseconds(times), **({"reasons": reasons} if reasons else {})}
    if best is None:
        return Compilation(model=None, evidence={"compiled": False, **evidence})
    chosen, parity = best
    return Compilation(model=chosen, evidence={"compiled": True, "form": chosen.form.name, **evidence, **parity})


def _microseconds(times: dict[str, float]) -> dict[str, Json]:
    return {name: round(seconds * 1e6, 2) for name, seconds in times.items()}


def _source(original: Model, sample: pl.DataFrame) -> CompilationSource | None:
    """Return what can be compiled; None if the model is in a format that predicts in microseconds already."""
    from everloop.packages.formats.estimator import EstimatorModel
    from everloop.packages.formats.input_tables import read_example
    from everloop.training.adopted_estimator import AdoptedModel

    if isinstance(original, EstimatorModel):
        table = original.table
    elif isinstance(original, AdoptedModel):
        try:
            _, table = read_example(sample.select(original.inputs))
        except EverloopError:
            return None
        table = replace(table, container=original.container)
    else:
        return None
    estimator, rule = _unwrap(original.estimator)
    return CompilationSource(
        estimator=estimator, table=table, task=original.task, order=original.order, model=original, rule=rule
    )


def _unwrap(estimator: Any) -> tuple[Any, Rule | None]:
    """Unwrap a search or a threshold classifier. Return the inner estimator and the rule of the threshold."""
    module, name = type(estimator).__module__, type(estimator).__name__
    if module.startswith("sklearn.model_selection.") and name in _SEARCHES and hasattr(estimator, "best_estimator_"):
        return _unwrap(estimator.best_estimator_)
    if module.startswith("sklearn.") and name == "FrozenEstimator":
        return _unwrap(estimator.estimator)
    if module.startswith("sklearn.model_selection.") and name in _THRESHOLDS:
        threshold = estimator.best_threshold_ if name == "TunedThresholdClassifierCV" else estimator.threshold
        on_probabilities = getattr(estimator, "response_method", "auto") != "decision_function"
        if isinstance(threshold, str) or not on_probabilities or not hasattr(estimator.estimator_, "predict_proba"):
            return estimator, None
        inner, _ = _unwrap(estimator.estimator_)
        return inner, Rule(threshold=float(threshold))
    return estimator, None


def _native(original: CompilationSource, signature: Signature, sample: pl.DataFrame) -> CompiledModel:
    """Compile encoders together with trees or weights."""
    from everloop.packages.compilation.fitted_ensembles import Trees, read_estimator
    from everloop.packages.compilation.preprocessing import Preparation

    if original.order:
        raise NotCompilableError("its classes are not in order")
    context = InputContext(table=original.table, signature=signature, sample=sample)
    steps, last = split_pipeline(original.estimator)
    outputs = run_steps(steps, context.outputs(), context)
    read = read_estimator(last, outputs, original.task, context)
    preparation = Preparation(segments_of(read.outputs, signature))
    form = (
        TreeForm(preparation, read.text, original.task, read.divisor)
        if isinstance(read, Trees)
        else LinearForm(preparation, read.weights, read.bias, original.task)
    )
    return CompiledModel(form, original.task, signature.names, original.rule or read.rule)


def _graph(original: CompilationSource, signature: Signature, sample: pl.DataFrame) -> CompiledModel:
    from everloop.packages.compilation.onnx_graphs import convert

    return CompiledModel(convert(original, signature, sample), original.task, signature.names, original.rule or STRICT)


def _single_graph(original: CompilationSource, signature: Signature, sample: pl.DataFrame) -> CompiledModel:
    from everloop.packages.compilation.onnx_graphs import convert

    return CompiledModel(
        convert(original, signature, sample, single=True), original.task, signature.names, original.rule or STRICT
    )


_COMPILERS: dict[str, Callable[[Any, Any, Any], CompiledModel]] = {
    "native": _native,
    "onnx": _graph,
    "onnx in single precision": _single_graph,
}


def measure_row(score_row: Callable[[], object]) -> float:
    """Return the seconds that scoring one row takes on an idle machine; infinity if the row is refused.

    It is the 10th percentile of the measurements, because other load can only slow them down.
    """
    times: list[float] = []
    until = perf_counter() + _MOST_S
    while len(times) < _REPEATS and (not times or perf_counter() < until):
        began = perf_counter()
        try:
            score_row()
        except EverloopError:
            return float("inf")
        times.append(perf_counter() - began)
    return sorted(times)[len(times) // 10]
