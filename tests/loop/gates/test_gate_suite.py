"""Every built-in gate, and gates as users write them, pass the conformance suite."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import everloop as el
from everloop.testing.gates import GateSuite


@dataclass(frozen=True)
class MostAreOnTime:
    share: float = 0.9
    severity: str = "warning"

    def check(self, context: el.GateContext) -> el.GateOutcome:
        late = float(context.predicted_classes().mean()) if context.rows.height else 0.0
        return el.GateOutcome("pass" if late <= self.share else "fail", f"{late:.0%} predicted late", {"late": late})


def few_features(context: el.GateContext) -> bool:
    return len(context.features) < 10


@pytest.mark.slow
class TestGates(GateSuite):
    @pytest.fixture(
        params=[
            el.AtLeast("roc_auc", 0.6), el.NotWorseThan(), el.BetterThan("champion"), el.Slices("carrier", 0.2),
            el.Latency(500), el.Calibrated(), el.Fair("carrier"), el.Size(mb=5), el.Robust(), el.NoLeakage(),
            el.MeetsContract(), el.PackageParity(), el.Check(few_features), MostAreOnTime(),
        ],
        ids=lambda gate: type(gate).__name__,
    )  # fmt: skip
    def part(self, request):
        return request.param
