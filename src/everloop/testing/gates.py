"""The conformance suite for gates: declared, checked on rows of every kind, and safe to repeat and to cache."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from everloop.loop.gates.gate_checks import OUTCOMES, judge
from everloop.loop.gates.gate_protocol import SEVERITIES, GateContext, GateOutcome, check_gate, gate_name, gate_severity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.loop.gates.gate_protocol import Gate
    from everloop.stores import Store

MODEL = "gated"


class GateSuite:
    """Derive from this class and define a fixture `part` that returns the gate.

    The suite registers a real model of two classes with the inputs `distance` (numbers) and `carrier` (text), and
    checks the gate on its held-out rows, on a few of them, and on none.
    """

    rows = 400

    @pytest.fixture
    def candidate(self, tmp_path: Path) -> Iterator[GateContext]:
        """A registered candidate with its held-out rows, as in a run of a loop."""
        from everloop.stores import open_store

        with open_store(tmp_path / "home", project="gated") as store:
            yield sample_candidate(store, self.rows)

    def test_it_is_a_gate(self, part: Gate) -> None:
        assert check_gate(part, "The gate") is part
        assert gate_name(part)
        assert gate_severity(part) in SEVERITIES

    def test_it_can_be_printed(self, part: Gate) -> None:
        assert type(part).__name__ in repr(part)

    def test_a_check_returns_an_outcome(self, part: Gate, candidate: GateContext) -> None:
        found = part.check(candidate)
        assert isinstance(found, GateOutcome)
        assert found.outcome in OUTCOMES
        assert found.message

    def test_the_evidence_can_be_stored(self, part: Gate, candidate: GateContext) -> None:
        evidence = judge(part, candidate).evidence
        assert json.loads(json.dumps(evidence, allow_nan=False)) == evidence

    def test_a_repeated_check_has_the_same_outcome(self, part: Gate, candidate: GateContext) -> None:
        assert judge(part, candidate).outcome == judge(part, candidate).outcome

    def test_a_check_changes_nothing(self, part: Gate, candidate: GateContext) -> None:
        rows, labels, scores = candidate.rows.clone(), candidate.labels.copy(), candidate.scores.copy()
        store = candidate.store
        before = None if store is None else store.records.last_event()
        part.check(candidate)
        assert candidate.rows.equals(rows)
        assert (candidate.labels == labels).all()
        assert (candidate.scores == scores).all()
        assert store is None or store.records.last_event() == before

    @pytest.mark.parametrize("rows", [0, 1, 2])
    def test_too_few_rows_are_not_a_crash(self, part: Gate, candidate: GateContext, rows: int) -> None:
        from dataclasses import replace

        few = replace(
            candidate,
            rows=candidate.rows.head(rows),
            labels=candidate.labels[:rows],
            scores=candidate.scores[:rows],
            places=None if candidate.places is None else candidate.places[:rows],
            champions={},
        )
        found = judge(part, few)
        assert found.outcome in OUTCOMES
        assert found.evidence.get("error") is None, found.message

    def test_it_can_be_sent_to_a_worker_process(self, part: Gate) -> None:
        import cloudpickle

        again: Any = pickle.loads(cloudpickle.dumps(part))  # noqa: S301 - written one line above
        assert gate_name(again) == gate_name(part)
        assert gate_severity(again) == gate_severity(part)

    def test_its_result_can_be_cached(self, part: Gate) -> None:
        """A gate is an input of a cached step, so its content has the same digest each time."""
        from everloop.pipeline.fingerprint import _refer
        from everloop.pipeline.value_digests import digest_value

        assert digest_value(part, _refer) == digest_value(part, _refer)


def sample_candidate(store: Store, rows: int = 400) -> GateContext:
    """Train and register a small model of two classes, and return it with held-out rows.

    Args:
        rows: how many held-out rows. The model is trained on twice as many.
    """
    import numpy as np
    import polars as pl

    from everloop.loop.gates.gate_checks import context_for
    from everloop.packages import build_package
    from everloop.registry import register
    from everloop.training import AutoTrain

    rng = np.random.default_rng(0)
    total = 3 * rows
    distance = rng.normal(1000, 300, total)
    carrier = rng.choice(["AA", "DL", "UA"], total)
    odds = (distance - 1000) / 200 + (carrier == "AA") * 0.5
    late = rng.uniform(size=total) < 1 / (1 + np.exp(-odds))
    table = pl.DataFrame({"id": np.arange(total), "distance": distance, "carrier": carrier, "late": late})
    training, held_out = table.head(2 * rows), table.tail(rows)
    names = ["distance", "carrier"]
    half = rows
    trained = AutoTrain(budget_s=5, trials=1, candidates=("linear",), threads=1).fit(
        training.select(*names, "late").head(half), training.select(*names, "late").tail(half), target="late",
        features=names,
    )  # fmt: skip
    package = build_package(trained, store=store, sample=training)
    version = register(store, MODEL, package.digest, evaluation={"metric": "roc_auc"})
    return context_for(store, version, held_out, target="late", key="id", training_rows=training)
