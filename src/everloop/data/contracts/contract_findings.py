"""Store contract violations as findings, with the rule, the number of rows and some of their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.records import Finding, Json

if TYPE_CHECKING:
    from everloop.data.contracts.contract_checks import ContractReport, Violation
    from everloop.stores import Store

DATASET_PREFIX = "data:"
"""The `endpoint` of a finding about a dataset is `data:<dataset>`."""


def record_findings(report: ContractReport, dataset: str, store: Store) -> list[Finding]:
    """Store one finding per violation, with the severity `alarm` for an error and `warning` for a warning."""
    now = store.now()
    findings = [
        store.new(
            Finding,
            endpoint=f"{DATASET_PREFIX}{dataset}",
            kind="freshness" if violation.rule == "fresh" else "quality",
            severity="alarm" if violation.severity == "error" else "warning",
            subject=violation.column or violation.rule,
            window_from=now,
            window_to=now,
            value=float(violation.rows),
            message=violation.message,
            evidence=_evidence(report, violation),
        )
        for violation in report.violations
    ]
    if findings:
        store.records.put(*findings, verb="found")
    return findings


def _evidence(report: ContractReport, violation: Violation) -> dict[str, Json]:
    return {
        "contract": report.contract,
        "rule": violation.rule,
        "rows": violation.rows,
        "of": report.rows,
        "samples": list(violation.samples),
        "first_rows": list(violation.first_rows),
    }
