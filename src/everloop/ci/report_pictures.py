"""Pictures of a report on a change, as SVG files for the artifacts of a CI run."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.ci.change_report import ChangeReport

_WIDTH, _LEFT, _ROW = 720, 220, 26
_BLUE, _GREY = "#2563eb", "#94a3b8"
_MOST_ROWS = 25


def write_pictures(report: ChangeReport, folder: Path) -> list[Path]:
    """Write the pictures that the report has content for, and return their paths.

    Args:
        folder: created if missing.

    Raises:
        UsageError: the folder cannot be written.
    """
    from everloop.errors import UsageError

    texts = {"gains.svg": gains_picture(report), "importance.svg": importance_picture(report)}
    written = []
    try:
        for name, text in texts.items():
            if text:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8", errors="replace")
                written.append(folder / name)
    except OSError as error:
        raise UsageError(f"Cannot write into '{folder}': {error.strerror}.", help="Choose another folder.") from error
    return written


def gains_picture(report: ChangeReport) -> str:
    """Draw the gain over the champion with its 95 % interval, for each metric and slice; empty without a champion."""
    rows = [
        (one.metric, one.gain, one.gain_low, one.gain_high)
        for one in report.metrics
        if one.gain is not None and one.gain_low is not None and one.gain_high is not None
    ]
    rows += [
        (f"{one.column} = {one.value}", one.gain, one.gain_low, one.gain_high)
        for one in report.slices
        if one.gain is not None and one.gain_low is not None and one.gain_high is not None
    ]
    if not rows:
        return ""
    rows = rows[:_MOST_ROWS]
    parts = []
    for number, (name, gain, low, high) in enumerate(rows):
        # Metrics differ in their units, so every row has its own scale around zero.
        reach = max(abs(low or 0.0), abs(high or 0.0), abs(gain or 0.0)) or 1.0
        y = 50 + number * _ROW

        def x(value: float | None, reach: float = reach) -> float:
            return (_LEFT + _WIDTH) / 2 + (value or 0.0) / reach * (_WIDTH - _LEFT) * 0.4

        parts.append(_text(10, y + 4, name))
        parts.append(
            f'<line x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}" stroke="{_BLUE}" stroke-width="4"/>'
        )
        parts.append(f'<circle cx="{x(gain):.1f}" cy="{y}" r="5" fill="{_BLUE}"><title>{gain:+.4f}</title></circle>')
    middle, bottom = (_LEFT + _WIDTH) / 2, 50 + len(rows) * _ROW
    parts.append(f'<line x1="{middle}" y1="36" x2="{middle}" y2="{bottom}" stroke="{_GREY}" stroke-dasharray="4 3"/>')
    return _picture("Gain over the champion, with 95 % intervals; right of the line is better", parts, bottom)


def importance_picture(report: ChangeReport) -> str:
    """Draw the importance of each feature for candidate and champion; empty if none was measured."""
    rows = report.importances[:_MOST_ROWS]
    most = max(
        (abs(value) for one in rows for value in (one.candidate, one.champion) if value is not None), default=0.0
    )
    if not most:
        return ""
    parts = []
    for number, one in enumerate(rows):
        y = 44 + number * _ROW
        parts.append(_text(10, y + 14, one.feature))
        for offset, value, colour in ((0, one.candidate, _BLUE), (10, one.champion, _GREY)):
            if value is not None:
                width = max(value, 0.0) / most * (_WIDTH - _LEFT - 20)
                parts.append(
                    f'<rect x="{_LEFT}" y="{y + offset}" width="{width:.1f}" height="9" fill="{colour}">'
                    f"<title>{value:.4f}</title></rect>"
                )
    title = f"Loss of {report.metric} when a feature is shuffled: candidate blue, champion grey"
    return _picture(title, parts, 50 + len(rows) * _ROW)


def _picture(title: str, parts: list[str], bottom: float) -> str:
    size = f'width="{_WIDTH}" height="{bottom + 10}" viewBox="0 0 {_WIDTH} {bottom + 10}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
            f'<rect width="{_WIDTH}" height="{bottom + 10}" fill="#ffffff"/>',
            _text(10, 22, title),
            *parts,
            "</svg>",
            "",
        ]
    )


def _text(x: float, y: float, text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return f'<text x="{x}" y="{y}" fill="#0f172a">{escape(shown[:90])}</text>'
