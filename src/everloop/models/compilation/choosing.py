"""Compiling a model: every form that can be made is proved, and the quickest of those that pass is taken."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, ParityError
from everloop.models.compilation.compiled import CompiledModel, LinearForm, TreeForm
from everloop.models.compilation.proof import prove_compiled
from everloop.models.compilation.reading import (
    Ground,
    NotCompilableError,
    Subject,
    run_steps,
    segments_of,
    split_pipeline,
)
from everloop.models.parity import plain_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from everloop.models.signature import Signature
    from everloop.records import Json
    from everloop.training.trained import Model

logger = logging.getLogger("everloop.models")

_TURNS = 300


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What came of it. `model` is None where the original answers; `evidence` says why, form by form."""

    model: CompiledModel | None
    evidence: dict[str, Json] = field(default_factory=dict)


def compile_model(original: Model, signature: Signature, sample: pl.DataFrame) -> Compilation:
    """Look for a compiled form that is proved equal to `original`.

    Args:
        sample: rows of the training data with the signature's columns, at most as many as `parity.sample_of` gives.
    """
    seen = _subject(original, sample)
    if seen is None:
        return Compilation(model=None)
    told: dict[str, Json] = {}
    passed: list[tuple[float, CompiledModel, dict[str, Json]]] = []
    for name, make in _MAKERS.items():
        if name == "onnx" and passed:
            # A graph is slower by far than what has been proved already.
            continue
        try:
            made = make(seen, signature, sample)
            parity = prove_compiled(original, made, signature, sample)
        except NotCompilableError as error:
            told[name] = f"not compiled: {error.message}"
            continue
        except ParityError as error:
            told[name] = f"refused: {error.message}"
            continue
        except EverloopError as error:
            told[name] = f"not compiled: {error.message}"
            continue
        except Exception as error:  # a foreign converter raises whatever it likes; the original then answers
            logger.debug("compiling as %s failed", name, exc_info=True)
            told[name] = f"not compiled: {type(error).__name__}: {str(error)[:300]}"
            continue
        passed.append((_seconds_a_row(made, signature, sample), made, parity))
    if not passed:
        return Compilation(model=None, evidence={"compiled": False, "reasons": told})
    seconds, chosen, parity = min(passed, key=lambda entry: entry[0])
    logger.debug("compiled as %s, %.1f µs a row", chosen.form.name, seconds * 1e6)
    # The measured time differs from build to build, so it is told to the log and not kept.
    return Compilation(model=chosen, evidence={"compiled": True, "form": chosen.form.name, **parity})


def _subject(original: Model, sample: pl.DataFrame) -> Subject | None:
    """What there is to compile; None where the model is of a form that answers in microseconds as it is."""
    from everloop.models.formats.estimator import EstimatorModel
    from everloop.models.formats.tables import read_example
    from everloop.training.adopted import AdoptedModel

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
    return Subject(estimator=original.estimator, table=table, task=original.task, order=original.order, model=original)


def _native(original: Subject, signature: Signature, sample: pl.DataFrame) -> CompiledModel:
    """Compiled encoders with trees or weights."""
    from everloop.models.compilation.columns import Preparation
    from everloop.models.compilation.ensembles import Trees, read_estimator

    if original.order:
        raise NotCompilableError("its classes are not in order")
    ground = Ground(table=original.table, signature=signature, sample=sample)
    steps, last = split_pipeline(original.estimator)
    outputs = run_steps(steps, ground.start(), ground)
    read = read_estimator(last, outputs, original.task, ground)
    preparation = Preparation(segments_of(read.outputs, signature))
    form = (
        TreeForm(preparation, read.text)
        if isinstance(read, Trees)
        else LinearForm(preparation, read.weights, read.bias, original.task)
    )
    return CompiledModel(form, original.task, signature.names)


def _graph(original: Subject, signature: Signature, sample: pl.DataFrame) -> CompiledModel:
    from everloop.models.compilation.graphs import convert

    return CompiledModel(convert(original, signature, sample), original.task, signature.names)


_MAKERS: dict[str, Callable[[Any, Any, Any], CompiledModel]] = {"native": _native, "onnx": _graph}


def _seconds_a_row(model: CompiledModel, signature: Signature, sample: pl.DataFrame) -> float:
    """The median time of one row, in seconds."""
    row = tuple(plain_rows(sample.head(1), signature)[0].values())
    ask = model.form.row
    times = []
    for _ in range(_TURNS):
        began = perf_counter()
        ask(row)
        times.append(perf_counter() - began)
    return sorted(times)[_TURNS // 2]
