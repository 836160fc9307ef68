"""The report on a change: what was compared, what was found, and the verdict with its reasons."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.ci.step_changes import StepChanges
    from everloop.records import GateResult

Verdict = Literal["pass", "warn", "fail", "error"]


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric of the candidate and of the champion, with 95 % intervals.

    `gain` is positive if the candidate is better, whichever direction the metric has.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    champion: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    deciding: bool = False


@dataclass(frozen=True, slots=True)
class SliceComparison:
    """The deciding metric on the held-out rows that share a value of a column."""

    column: str
    value: str
    rows: int
    candidate: float
    champion: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


@dataclass(frozen=True, slots=True)
class FeatureImportance:
    """How much the deciding metric worsens when a feature's values are shuffled."""

    feature: str
    candidate: float | None
    champion: float | None


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """A difference between the requests that the candidate and the champion accept, or between their responses."""

    what: str
    breaking: bool
    """Whether requests that the champion accepts are refused, or responses change their meaning."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """The time that a step took for the candidate, and in the run that made the champion."""

    step: str
    status: str
    seconds: float
    champion_seconds: float | None


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """A policy of the loop over the last weeks: its live metric, and what it did."""

    policy: str
    mean: float | None
    retrainings: int
    promotions: int
    rollbacks: int


@dataclass(frozen=True, kw_only=True)
class ChangeReport:
    """What a change does to a loop.

    Attributes:
        verdict: `pass`, `warn`, `fail`, or `error` if the changed loop could not be run.
        reasons: why the verdict is not `pass`; for `pass`, what was found.
        champion: key of the version that was compared with, or None.
        rows: how many held-out rows were compared.
        sample: size of the sample, or None if the loop ran on all rows.
        seen_by_champion: number of held-out rows that the champion was trained on; None if that is not known.
        replay_remark: why the history was not replayed, or why a policy has no live metric.
    """

    loop: str
    base: str
    head: str
    changed_files: tuple[str, ...]
    steps: StepChanges
    verdict: Verdict = "pass"
    reasons: tuple[str, ...] = ()
    candidate: str | None = None
    champion: str | None = None
    metric: str | None = None
    rows: int = 0
    sample: int | None = None
    seen_by_champion: int | None = None
    same_package: bool = False
    metrics: tuple[MetricComparison, ...] = ()
    slices: tuple[SliceComparison, ...] = ()
    importances: tuple[FeatureImportance, ...] = ()
    schema: tuple[SchemaChange, ...] = ()
    data: tuple[str, ...] = ()
    contract: tuple[str, ...] = ()
    costs: tuple[StepCost, ...] = ()
    gates: Sequence[GateResult] = ()
    replay: tuple[ReplayOutcome, ...] = ()
    replay_remark: str = ""
    remarks: tuple[str, ...] = ()
    error: str = ""
    dirty: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data; gate results stay records."""
        plain = asdict(self)
        plain["gates"] = list(self.gates)
        return plain


def decide(report: ChangeReport, violations: int, altered: str = "") -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict on a change, with its reasons.

    A gate that rejects the candidate fails the change. Undecided gates, gates with the severity `warning`, changes that
    break clients, a changed contract, rows that break the contract, and a metric or slice that is worse beyond chance
    are warnings.

    Args:
        violations: number of rows that break the contract.
        altered: what `altered_inputs` returns.
    """
    from everloop.loop.gates.gate_checks import rejects

    failed = [f"gate {gate.gate}: {gate.message}" for gate in report.gates if rejects(gate)]
    warned = [
        f"gate {gate.gate} {'is undecided' if gate.outcome == 'undecided' else 'warns'}: {gate.message}"
        for gate in report.gates
        if gate.outcome != "pass" and not rejects(gate)
    ]
    warned += [f"breaks clients: {change.what}" for change in report.schema if change.breaking]
    warned += [f"contract: {change}" for change in report.contract]
    if violations:
        warned.append(f"{violations:,} rows break the contract and were set aside")
    if altered:
        warned.append(altered)
    for metric in report.metrics:
        if metric.deciding and metric.gain_high is not None and metric.gain_high < 0:
            warned.append(f"{metric.metric} is worse than the champion's by {-(metric.gain or 0.0):.3f}")
    for part in report.slices:
        if part.gain_high is not None and part.gain_high < 0:
            warned.append(
                f"{report.metric} is worse where {part.column} is '{part.value}' by {-(part.gain or 0.0):.3f}"
            )
    if failed:
        return "fail", (*failed, *warned)
    if warned:
        return "warn", tuple(warned)
    if not report.gates:
        return "pass", ("the loop declares no gates, so only the comparison was made",)
    return "pass", (f"all {len(report.gates)} gates passed",)
