"""The report on a change as one comment on a pull request, in Markdown, and as JUnit XML.

GitHub does not show SVG in comments, so intervals are drawn with characters; `report_pictures` writes the pictures.
Everything that comes from the change, such as names of files, columns and messages, is escaped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from everloop.ci.change_report import ChangeReport, MetricComparison

MARKER = "<!-- everloop-ci -->"
"""The first line of the comment, by which the next run finds and replaces it."""
MOST_CHARACTERS = 60_000
"""GitHub accepts 65,536."""
_SIGNS = {"pass": "✅ pass", "warn": "⚠️ warn", "fail": "❌ fail", "error": "💥 error"}
_BAR = 21
_MOST_FILES = 20
_MOST_FEATURES = 10
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def comment_text(report: ChangeReport) -> str:
    """Return the report as Markdown, short enough for a comment."""
    lines = [MARKER, *_heading(report)]
    sections = [
        _metrics(report),
        _gates(report),
        _slices(report),
        _listed("Requests and responses", [f"{'**breaking:** ' if one.breaking else ''}{_plain(one.what)}"
                                           for one in report.schema]),
        _listed("Data", [_plain(text) for text in report.data]),
        _listed("Contract", [_plain(text) for text in report.contract]),
        _importances(report),
        _replay(report),
        _costs(report),
        _touched(report),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    for number, section in enumerate(sections):
        added = "\n".join(section)
        if len(text) + len(added) > MOST_CHARACTERS:
            left = len([one for one in sections[number:] if one])
            text += (
                f"\n_{left} more sections are left out, because a comment has a limited length. See the artifacts._\n"
            )
            break
        text += f"\n{added}\n" if added else ""
    return text


def report_junit(report: ChangeReport) -> str:
    """Return the report as JUnit XML: a test case for the verdict, and one for each gate."""
    from everloop.loop.gates.gate_checks import rejects

    cases = []
    reasons = "; ".join(report.reasons)
    inner = f"<system-out>{_xml(reasons)}</system-out>"
    if report.verdict == "error":
        inner = f'<error message={_attribute(reasons)} type="error">{_xml(report.error)}</error>'
    elif report.verdict == "fail":
        inner = f'<failure message={_attribute(reasons)} type="fail">{_xml(reasons)}</failure>'
    cases.append(("verdict", inner))
    for gate in report.gates:
        if rejects(gate):
            inner = f'<failure message={_attribute(gate.message)} type="fail">{_xml(gate.message)}</failure>'
        elif gate.outcome != "pass":
            inner = f"<skipped message={_attribute(f'{gate.outcome}: {gate.message}')}/>"
        else:
            inner = f"<system-out>{_xml(gate.message)}</system-out>"
        cases.append((f"gate {gate.gate}", inner))
    counts = " ".join(
        f'{name}="{sum(found.startswith(f"<{tag}") for _, found in cases)}"'
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    )
    counts = f'tests="{len(cases)}" {counts} time="0"'
    suite = _attribute(f"everloop {report.loop}")
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name="everloop ci" {counts}>',
        f"  <testsuite name={suite} {counts}>",
        *(
            f'    <testcase classname={suite} name={_attribute(name)} time="0">{inner}</testcase>'
            for name, inner in cases
        ),
        "  </testsuite>",
        "</testsuites>",
        "",
    ]
    return "\n".join(lines)


def _heading(report: ChangeReport) -> Iterator[str]:
    yield f"## everloop: {_SIGNS[report.verdict]} — `{_code(report.loop)}`"
    yield ""
    yield from (f"- {_plain(reason)}" for reason in report.reasons)
    yield ""
    if report.candidate is None:
        return
    rows = "all rows" if report.sample is None else f"a sample of at most {report.sample:,} rows"
    against = f" Champion: `{_code(report.champion)}`." if report.champion else ""
    yield f"Ran on {rows}; {report.rows:,} held-out rows were scored.{against}"
    if report.seen_by_champion:
        yield (f"The champion was trained on {report.seen_by_champion:,} of these rows, which flatters it here.")
    yield from (_plain(remark) for remark in report.remarks)


def _metrics(report: ChangeReport) -> list[str]:
    if not report.metrics:
        return []
    lines = ["### Metrics", ""]
    if any(one.champion is not None for one in report.metrics):
        rows = [
            (
                f"**{one.metric}**" if one.deciding else one.metric,
                _interval(one.value, one.low, one.high),
                _number(one.champion),
                _interval(one.gain, one.gain_low, one.gain_high, signed=True),
                f"`{_bar(one)}`" if one.gain_low is not None else "",
            )
            for one in report.metrics
        ]
        heads = ("metric", "candidate [95 %]", "champion", "gain [95 %]", "worse · better")
        lines += _table(heads, rows)
        return [*lines, "", "A positive gain is better for every metric."]
    rows2 = [(one.metric, _interval(one.value, one.low, one.high)) for one in report.metrics]
    return [*lines, *_table(("metric", "candidate [95 %]"), rows2)]


def _gates(report: ChangeReport) -> list[str]:
    rows = [
        (_plain(gate.gate), gate.outcome, gate.severity, _plain(gate.champion or ""), _plain(gate.message))
        for gate in report.gates
    ]
    return ["### Gates", "", *_table(("gate", "outcome", "severity", "against", "evidence"), rows)] if rows else []


def _slices(report: ChangeReport) -> list[str]:
    rows = [
        (
            _plain(f"{one.column} = {one.value}"),
            f"{one.rows:,}",
            _number(one.candidate),
            _number(one.champion),
            _interval(one.gain, one.gain_low, one.gain_high, signed=True),
        )
        for one in report.slices
    ]
    heads = ("slice", "rows", "candidate", "champion", "gain [95 %]")
    return [f"### Slices by {report.metric}", "", *_table(heads, rows)] if rows else []


def _importances(report: ChangeReport) -> list[str]:
    rows = [
        (_plain(one.feature), _number(one.candidate), _number(one.champion))
        for one in report.importances[:_MOST_FEATURES]
    ]
    table = _table(("feature", "candidate", "champion"), rows)
    title = f"Importance of features: loss of {report.metric} when a feature is shuffled"
    return _folded(title, table) if rows else []


def _replay(report: ChangeReport) -> list[str]:
    if report.candidate is None:
        return []
    if not report.replay:
        return [f"_The history was not replayed: {_plain(report.replay_remark)}._"]
    rows = [
        (one.policy, _number(one.mean), str(one.retrainings), str(one.promotions), str(one.rollbacks))
        for one in report.replay
    ]
    heads = ("policy", f"live {report.metric}", "retrainings", "promotions", "rollbacks")
    remark = ["", f"_{_plain(report.replay_remark)}._"] if report.replay_remark else []
    return ["### Replay of the last weeks", "", *_table(heads, rows), *remark]


def _costs(report: ChangeReport) -> list[str]:
    rows = [
        (
            _plain(one.step),
            one.status,
            f"{one.seconds:.2f}",
            "" if one.champion_seconds is None else f"{one.champion_seconds:.2f}",
        )
        for one in report.costs
    ]
    if not rows:
        return []
    total = sum(one.seconds for one in report.costs)
    return _folded(f"Cost: {total:.1f} s", _table(("step", "status", "seconds", "champion's run, seconds"), rows))


def _touched(report: ChangeReport) -> list[str]:
    rows = [(_plain(one.name), _plain(one.reason)) for one in report.steps.touched]
    rows += [(_plain(name), "removed") for name in report.steps.removed]
    files = [f"- `{_code(name)}`" for name in report.changed_files[:_MOST_FILES]]
    more = len(report.changed_files) - _MOST_FILES
    files += [f"- and {more} more"] if more > 0 else []
    body = [*(_table(("step", "why"), rows) if rows else ["No step of the loop is touched."]), "", *files]
    return _folded(f"What the change touches: {report.base[:10]} → {report.head[:10]}", body)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _listed(title: str, items: Sequence[str]) -> list[str]:
    return [f"### {title}", "", *(f"- {item}" for item in items)] if items else []


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{escape(title)}</summary>", "", *lines, "", "</details>"]


def _bar(one: MetricComparison) -> str:
    """Draw the interval of the gain around zero, which is the mark in the middle."""
    low, high = one.gain_low or 0.0, one.gain_high or 0.0
    reach = max(abs(low), abs(high)) or 1.0
    middle = _BAR // 2
    left, right = (middle + round(value / reach * middle) for value in (low, high))
    cells = ["━" if left <= index <= right else "·" for index in range(_BAR)]
    cells[middle] = "┿" if left <= middle <= right else "│"
    return "".join(cells)


def _interval(value: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    if value is None:
        return ""
    form = "+.3f" if signed else ".3f"
    ends = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{ends}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _plain(text: str) -> str:
    """Return text for Markdown that is shown as it is: no markup, no HTML, no mention of a person."""
    one_line = " ".join(_visible(text).split())
    escaped = re.sub(r"([\\`*_{}\[\]<>|#~&!])", r"\\\1", one_line)
    return escaped.replace("@", "@\u200b")


def _code(text: str | None) -> str:
    """Return text for a span of code: without backticks and line breaks."""
    return " ".join(_visible(text or "").replace("`", "'").replace("|", "¦").split())


def _visible(text: str) -> str:
    """Replace what is not valid Unicode, and control characters that could reorder the text."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]", "\ufffd", valid)


def _xml(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text))


def _attribute(text: str) -> str:
    return quoteattr(_NOT_XML.sub("\ufffd", text), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})
