"""What broke a contract, as findings: records that stay, with the rule, how many rows and some of their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.records import Finding, Json

if TYPE_CHECKING:
    from everloop.data.contracts.contract_checks import ContractReport, Violation
    from everloop.stores import Store

PLACE = "data:"
"""Findings about a dataset stand under `data:<dataset>`, where those about an endpoint have its name."""


def record_findings(report: ContractReport, dataset: str, store: Store) -> list[Finding]:
    """Keep one finding for each violation: an alarm for an error, a warning for a warning."""
    now = store.now()
    made = [
        store.new(
            Finding,
            endpoint=f"{PLACE}{dataset}",
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
    if made:
        store.records.put(*made, verb="found")
    return made


def _evidence(report: ContractReport, violation: Violation) -> dict[str, Json]:
    return {
        "contract": report.contract,
        "rule": violation.rule,
        "rows": violation.rows,
        "of": report.rows,
        "samples": list(violation.samples),
        "first_rows": list(violation.first_rows),
    }
