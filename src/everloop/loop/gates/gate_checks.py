"""Check the gates that a candidate must pass before it gets traffic.

The outcome of a gate is pass, fail or undecided, with the evidence. A failed gate rejects the candidate. If a gate is
undecided, the candidate may only enter a canary, where live evidence decides. A gate with the severity `warning` does
neither; it is only recorded and shown.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, DataError, EmptySampleError, StoreError, UnavailableError, UsageError
from everloop.loop.gates.gate_comparison import compare as compare, judge_unpaired as judge_unpaired
from everloop.loop.gates.gate_protocol import (
    GateContext,
    GateOutcome as GateOutcome,
    check_gate,
    gate_name,
    gate_severity as gate_severity,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import polars as pl

    from everloop.loop.gates.gate_protocol import Gate
    from everloop.records import GateResult, Json, ModelVersion
    from everloop.stores import Store

OUTCOMES = ("pass", "fail", "undecided")
MOST_CHARACTERS = 2000
"""Longer messages of a gate are cut."""


def context_for(
    store: Store,
    version: ModelVersion,
    rows: pl.DataFrame,
    *,
    target: str,
    key: str | None = None,
    time: str | None = None,
    metric: str | None = None,
    training_rows: pl.DataFrame | None = None,
) -> GateContext:
    """Score rows with a registered version, for its gates.

    Args:
        rows: rows that the version was not trained on, with the target.
        target: the column with the labels.
        key: the column that identifies a row, if there is one.
        time: the column with a row's time, if there is one.
        metric: the metric that decides. Default: the one that decided the version's evaluation.
        training_rows: the rows that the version was trained on, if they are known.

    Raises:
        NotFoundError: the version has no package.
        RequestError: the rows lack a column that the model needs.
        DataError: the rows lack the target, or it has a class that the model does not know.
    """
    from everloop.loop.comparison.champions import deciding_metric
    from everloop.registry import load_model
    from everloop.training import encode_target

    if target not in rows.columns:
        raise DataError(f"The rows have no target '{target}'.", help=f"They have: {', '.join(rows.columns)}")
    predictor = load_model(store, version.key)
    labels = encode_target(rows[target], predictor.task, list(predictor.classes))
    predictions = predictor.answer_frame(rows)
    return GateContext(
        rows=rows,
        labels=labels,
        scores=predictions.scores,
        places=predictions.places,
        metric=metric or deciding_metric(version),
        task=predictor.task,
        predict=predictor.predict,
        features=predictor.input_names,
        classes=predictor.classes,
        target=target,
        key=key,
        time=time,
        training_rows=training_rows,
        version=version.key,
        model=version.model,
        predictor=predictor,
        store=store,
    )


def judge_all(gates: Iterable[Gate], context: GateContext, *, run: str | None = None) -> list[GateResult]:
    """Check gates for a candidate. The results are not stored yet.

    Args:
        run: id of the run that made the candidate.

    Raises:
        UsageError: a gate is declared wrongly, or the context has no store.
        ConflictError: a gate compares with a version that predicts another kind of target.
    """
    from everloop.records import GateResult

    if context.store is None:
        raise UsageError("Gate results need a store.", help="Make the context with context_for(store, …).")
    listed = [check_gate(gate, "gates=") for gate in gates]
    results = []
    for gate, name in zip(listed, _distinct([gate_name(gate) for gate in listed]), strict=True):
        outcome = judge(gate, context)
        champion = outcome.evidence.get("champion")
        results.append(
            context.store.new(
                GateResult,
                gate=name,
                outcome=outcome.outcome,
                candidate=context.version,
                champion=champion if isinstance(champion, str) else None,
                message=outcome.message,
                severity=gate_severity(gate),
                evidence=outcome.evidence,
                run=run,
            )
        )
    return results


def judge(gate: Gate, context: GateContext) -> GateOutcome:
    """Check one gate for a candidate. An exception of the gate is a failure; see `Gate` for those that are not.

    Raises:
        UsageError: the gate is declared wrongly.
        ConflictError: the gate compares with a version that predicts another kind of target.
    """
    try:
        outcome: object = gate.check(context)
    except (UsageError, ConflictError, StoreError, UnavailableError):
        raise
    except EmptySampleError as error:
        return GateOutcome("undecided", error.message, {"rows": context.rows.height})
    except Exception as error:
        kind = type(error).__name__
        return GateOutcome("fail", f"{kind}: {error}"[:MOST_CHARACTERS], {"error": kind})
    if not isinstance(outcome, GateOutcome) or outcome.outcome not in OUTCOMES:
        text = f"{gate_name(gate)}.check returned {outcome!r}, not a GateOutcome of pass, fail or undecided"
        return GateOutcome("fail", text[:MOST_CHARACTERS], {})
    evidence = {str(name): _plain(value) for name, value in dict(outcome.evidence).items()}
    return GateOutcome(outcome.outcome, str(outcome.message)[:MOST_CHARACTERS], evidence)


def rejects(result: GateResult) -> bool:
    """Whether a gate result rejects the candidate: it failed, and is not only a warning."""
    return result.outcome == "fail" and result.severity == "error"


def latest_results(store: Store, version: str) -> list[GateResult]:
    """Return the latest result of each gate of a version, in the order in which the gates were declared."""
    from everloop.records import GateResult

    found = store.records.find(GateResult, ("candidate", "=", version), order="id")
    return list({result.gate: result for result in found}.values())


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names; repeated ones get a number, so that no result hides another."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _plain(value: Any) -> Json:
    """Return a value of the evidence as JSON: NumPy values become numbers and lists, NaN becomes null."""
    import numpy as np

    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return str(value)
