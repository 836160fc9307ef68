"""Compiling a model: forms that can be made are measured beside the original, and the quickest that is proved answers.

A form that is not clearly quicker than one that has been proved already is not proved any more: it could not win.
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
    Ground,
    NotCompilableError,
    Subject,
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
"""The share of a proved form's time below which another takes its place: noise shall not decide what is packaged."""
_SESSION_S = 5e-6
_INPUT_S = 1e-6
"""No session of ONNX answers a row in less, nor with less for each input that it has; what has to be quicker is not
converted: that, and loading the converter, can take seconds."""
_TURNS = 300
_MOST_S = 0.05
"""Measuring one form takes no longer, unless one answer does."""
_SEARCHES = {"GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV"}
_THRESHOLDS = {"FixedThresholdClassifier", "TunedThresholdClassifierCV"}
_MOST_TEXT = 4_000_000
"""Bytes of trees above which no graph is made just to be compared: converting takes minutes then."""


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What came of it. `model` is None where the original answers; `evidence` says why, form by form.

    `evidence`: `compiled`, `form` (what answers), `row_us` (microseconds of one row by form, here and then),
    `reasons` (why a form does not answer), and what the proof looked at.
    """

    model: CompiledModel | None
    evidence: dict[str, Json] = field(default_factory=dict)


def compile_model(
    original: Model, signature: Signature, sample: pl.DataFrame, effort: TimeBudget | None = None
) -> Compilation:
    """Look for a compiled form that is proved equal to `original`.

    Args:
        sample: rows of the training data with the signature's columns, at most as many as `parity.sample_of` gives.
        effort: how long it may take; forms that time does not allow are not tried, and noted.
    """
    effort = effort or TimeBudget()
    with warnings.catch_warnings():
        # Values at the edge are asked on purpose.
        warnings.simplefilter("ignore")
        return _compile(original, signature, sample, effort)


def _compile(original: Model, signature: Signature, sample: pl.DataFrame, effort: TimeBudget) -> Compilation:
    row = plain_rows(sample.head(1), signature)[0]
    times = {"original": seconds_a_row(lambda: answer_rows(original, [row]))}
    seen = _subject(plain_model(original), sample)
    if seen is None:
        return Compilation(model=None, evidence={"row_us": _told(times)})
    told: dict[str, Json] = {}
    best: tuple[CompiledModel, dict[str, Json]] | None = None
    quickest = times["original"]
    values = tuple(row.values())
    for turn, (name, make) in enumerate(_MAKERS.items()):
        # Reading trees and weights is quick, and nothing else makes a model as quick.
        if effort.over and name != "native":
            effort.leave_out(f"the form '{name}'")
            continue
        effort.report(f"compiling as {name}", turn, len(_MAKERS))
        try:
            if best is not None and (best[0].size_bytes > _MOST_TEXT or name not in ("native", "onnx")):
                raise NotCompilableError(f"{best[0].form.name} is proved already")
            inputs = 1 if seen.table.container == "numpy" else len(signature.inputs)
            if best is not None and quickest * CLEARLY < _SESSION_S + inputs * _INPUT_S:
                raise NotCompilableError(
                    f"{best[0].form.name} takes {quickest * 1e6:.3g} µs a row, which no graph halves"
                )
            made = make(seen, signature, sample)
            ask = made.form.row
            taken = seconds_a_row(lambda ask=ask: ask(values))  # type: ignore[misc]
            times[made.form.name] = taken
            if taken >= quickest * (1.0 if best is None else CLEARLY):
                told[name] = f"not clearly quicker: {taken * 1e6:.3g} µs a row, {quickest * 1e6:.3g} µs without it"
                continue
            best, quickest = (made, prove_compiled(original, made, signature, sample, effort)), taken
        except NotCompilableError as error:
            told[name] = f"not compiled: {error.message}"
        except ParityError as error:
            told[name] = f"refused: {error.message}"
        except EverloopError as error:
            told[name] = f"not compiled: {error.message}"
        except Exception as error:  # a foreign converter raises whatever it likes; the original then answers
            logger.debug("compiling as %s failed", name, exc_info=True)
            told[name] = f"not compiled: {type(error).__name__}: {str(error)[:300]}"
    evidence = {"row_us": _told(times), **({"reasons": told} if told else {})}
    if best is None:
        return Compilation(model=None, evidence={"compiled": False, **evidence})
    chosen, parity = best
    return Compilation(model=chosen, evidence={"compiled": True, "form": chosen.form.name, **evidence, **parity})


def _told(times: dict[str, float]) -> dict[str, Json]:
    return {name: round(seconds * 1e6, 2) for name, seconds in times.items()}


def _subject(original: Model, sample: pl.DataFrame) -> Subject | None:
    """What there is to compile; None where the model is of a form that answers in microseconds as it is."""
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
    estimator, rule = _peeled(original.estimator)
    return Subject(
        estimator=estimator, table=table, task=original.task, order=original.order, model=original, rule=rule
    )


def _peeled(estimator: Any) -> tuple[Any, Rule | None]:
    """The estimator inside of a search or of a threshold that was fixed or tuned, and the rule of the threshold."""
    room, name = type(estimator).__module__, type(estimator).__name__
    if room.startswith("sklearn.model_selection.") and name in _SEARCHES and hasattr(estimator, "best_estimator_"):
        return _peeled(estimator.best_estimator_)
    if room.startswith("sklearn.") and name == "FrozenEstimator":
        return _peeled(estimator.estimator)
    if room.startswith("sklearn.model_selection.") and name in _THRESHOLDS:
        threshold = estimator.best_threshold_ if name == "TunedThresholdClassifierCV" else estimator.threshold
        by_chances = getattr(estimator, "response_method", "auto") != "decision_function"
        if isinstance(threshold, str) or not by_chances or not hasattr(estimator.estimator_, "predict_proba"):
            return estimator, None
        inner, _ = _peeled(estimator.estimator_)
        return inner, Rule(threshold=float(threshold))
    return estimator, None


def _native(original: Subject, signature: Signature, sample: pl.DataFrame) -> CompiledModel:
    """Compiled encoders with trees or weights."""
    from everloop.packages.compilation.fitted_ensembles import Trees, read_estimator
    from everloop.packages.compilation.preprocessing import Preparation

    if original.order:
        raise NotCompilableError("its classes are not in order")
    ground = Ground(table=original.table, signature=signature, sample=sample)
    steps, last = split_pipeline(original.estimator)
    outputs = run_steps(steps, ground.start(), ground)
    read = read_estimator(last, outputs, original.task, ground)
    preparation = Preparation(segments_of(read.outputs, signature))
    form = (
        TreeForm(preparation, read.text, original.task, read.divisor)
        if isinstance(read, Trees)
        else LinearForm(preparation, read.weights, read.bias, original.task)
    )
    return CompiledModel(form, original.task, signature.names, original.rule or read.rule)


def _graph(original: Subject, signature: Signature, sample: pl.DataFrame) -> CompiledModel:
    from everloop.packages.compilation.onnx_graphs import convert

    return CompiledModel(convert(original, signature, sample), original.task, signature.names, original.rule or STRICT)


def _single_graph(original: Subject, signature: Signature, sample: pl.DataFrame) -> CompiledModel:
    from everloop.packages.compilation.onnx_graphs import convert

    return CompiledModel(
        convert(original, signature, sample, single=True), original.task, signature.names, original.rule or STRICT
    )


_MAKERS: dict[str, Callable[[Any, Any, Any], CompiledModel]] = {
    "native": _native,
    "onnx": _graph,
    "onnx in single precision": _single_graph,
}


def seconds_a_row(ask: Callable[[], object]) -> float:
    """What asking one row takes when nothing else is in its way, in seconds; infinite where it is refused."""
    times: list[float] = []
    until = perf_counter() + _MOST_S
    while len(times) < _TURNS and (not times or perf_counter() < until):
        began = perf_counter()
        try:
            ask()
        except EverloopError:
            return float("inf")
        times.append(perf_counter() - began)
    return sorted(times)[len(times) // 10]
