"""Reports of a version's gate results for other tools: JUnit XML, Markdown and plain data.

The JUnit format is that of the schema of Jenkins' xUnit plugin, which GitHub, GitLab, Azure DevOps and Jenkins read. A
failed gate is a `failure`, an undecided one and a failed warning are `skipped`, because they do not reject a candidate.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from everloop.loop.gates.gate_checks import rejects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.records import GateResult

# What XML 1.0 cannot contain, not even as a character reference.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(results: Sequence[GateResult], version: str) -> str:
    """Return gate results as a JUnit XML document with one test case for each gate.

    Args:
        results: results of one version.
        version: key of the version, such as `delays@3`. It becomes the name of the test suite.
    """
    cases = [_case(result, version) for result in results]
    failures = sum(rejects(result) for result in results)
    skipped = sum(result.outcome != "pass" and not rejects(result) for result in results)
    counts = f'tests="{len(results)}" failures="{failures}" errors="0" skipped="{skipped}"'
    stamp = f' timestamp="{results[0].created_at:%Y-%m-%dT%H:%M:%S}"' if results else ""
    suite = f'  <testsuite name={_attribute(version)} {counts} time="0"{stamp}>'
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<testsuites name="everloop gates" {counts} time="0">',
            suite,
            *cases,
            "  </testsuite>",
            "</testsuites>",
            "",
        ]
    )


def markdown_report(results: Sequence[GateResult], version: str) -> str:
    """Return gate results as Markdown: a verdict, and a table with a row for each gate.

    Args:
        results: results of one version.
        version: key of the version.
    """
    lines = [f"# Gates of {_cell(version)}", "", verdict(results), ""]
    if results:
        lines += ["| gate | outcome | severity | compared with | evidence |", "|---|---|---|---|---|"]
        for result in results:
            texts = (result.gate, result.outcome, result.severity, result.champion or "", result.message)
            lines.append(f"| {' | '.join(_cell(text) for text in texts)} |")
        lines.append("")
    return "\n".join(lines)


def report_data(results: Sequence[GateResult], version: str) -> dict[str, Any]:
    """Return gate results as plain data for JSON: the version, whether it is rejected, and the results."""
    return {
        "version": version,
        "rejected": any(rejects(result) for result in results),
        "verdict": verdict(results),
        "gates": list(results),
    }


def verdict(results: Sequence[GateResult]) -> str:
    """Return one sentence about all results."""
    if not results:
        return "No gates were checked."
    failed = [result.gate for result in results if rejects(result)]
    undecided = [result.gate for result in results if result.outcome == "undecided" and result.severity == "error"]
    warned = [result.gate for result in results if result.outcome != "pass" and result.severity == "warning"]
    if failed:
        text = f"Rejected: {len(failed)} of {len(results)} gates failed ({', '.join(failed)})."
    elif undecided:
        text = f"Undecided: {', '.join(undecided)}. A canary decides by live traffic."
    else:
        text = f"Passed: {len(results) - len(warned)} of {len(results)} gates."
    text += f" Warnings: {', '.join(warned)}." if warned else ""
    return _one_line(text)


def _case(result: GateResult, version: str) -> str:
    opening = f'    <testcase classname={_attribute(version)} name={_attribute(result.gate)} time="0">'
    message, text = _attribute(result.message), escape(_plain(result.message))
    if rejects(result):
        inner = f'      <failure message={message} type="fail">{text}</failure>'
    elif result.outcome != "pass":
        kind = "warning" if result.severity == "warning" else "undecided"
        inner = f"      <skipped message={_attribute(f'{kind}: {result.message}')}/>"
    else:
        inner = f"      <system-out>{text}</system-out>"
    return f"{opening}\n{inner}\n    </testcase>"


def _attribute(text: str) -> str:
    return quoteattr(_plain(text), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _plain(text: str) -> str:
    """Replace characters that XML cannot contain."""
    return _NOT_XML.sub("\ufffd", text)


def _cell(text: str) -> str:
    """Return text for a cell of a Markdown table: one line, shown as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
