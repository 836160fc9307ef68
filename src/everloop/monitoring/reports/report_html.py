"""Write a monitoring report as one HTML page of at most 500 kB, without scripts, fonts or other files.

The page first answers whether there is anything to worry about, then lists incidents, performance, quality and columns.
The columns that have moved most get a card each, the others a row of a table; with many columns there are fewer cards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.monitoring.incidents.incident_actions import ONGOING
from everloop.monitoring.reports.report_charts import (
    distribution,
    metric_chart,
    metric_range,
    shortened,
    strip,
)
from everloop.monitoring.reports.report_style import STYLE
from everloop.stores.printable import html_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.reports.monitoring_report import (
        MetricPoint,
        MetricSeries,
        MonitoredColumn,
        MonitoringReport,
    )
    from everloop.records import Incident

MOST_BYTES = 500_000


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much of a report is shown: columns as cards, columns as rows (with a strip or without), entries of lists."""

    cards: int
    rows: int
    strips: bool
    listed: int


_PLANS = (
    _Plan(120, 2000, True, 50),
    _Plan(60, 2000, True, 50),
    _Plan(30, 2000, True, 50),
    _Plan(30, 2000, False, 30),
    _Plan(10, 300, False, 10),
)
"""The first plan whose page is small enough is used."""


def monitoring_page(report: MonitoringReport) -> str:
    """Return the HTML page of a report, at most 500 kB of UTF-8."""
    page = ""
    for plan in _PLANS:
        page = "".join(_page(report, plan))
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def _page(report: MonitoringReport, plan: _Plan) -> Iterator[str]:
    current, reference = (
        html_text(shortened(report.current_name, 200)),
        html_text(shortened(report.reference_name, 200)),
    )
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    # Nothing in the page may run or load, whatever the names of the columns are.
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{current} · monitoring</title><style>{STYLE}</style></head><body><main>"
    yield f"<h1>Monitoring of {html_text(shortened(report.current_name.rpartition('/')[2], 100))}</h1>"
    yield f'<p class="faint sub">{current}, compared with {reference}{_period(report)}</p>'
    yield from _answer(report)
    yield from _facts(report)
    yield from _incidents(report, plan.listed)
    if report.performance is not None:
        yield from _performance(report, report.performance)
    yield from _quality(report, plan.listed)
    yield from _columns(report, plan)
    yield from _footer(report, plan.listed)
    yield "</main></body></html>"


def _period(report: MonitoringReport) -> str:
    first, last = report.windows[0], report.windows[-1]
    if first.since is None or last.until is None:
        return ""
    count = len(report.windows)
    windows = f"{count} window{'s' if count != 1 else ''}"
    return f" · {windows} from {first.since:%Y-%m-%d %H:%M} to {last.until:%Y-%m-%d %H:%M} UTC"


def _answer(report: MonitoringReport) -> Iterator[str]:
    kind, label = "ok", "All quiet"
    if report.open_alarms:
        kind, label = "alarm", "Alarm"
    elif any(one.state in ONGOING for one in report.incidents):
        kind, label = "warn", "Notice"
    yield f'<p class="answer {kind}"><b>{label}</b>{html_text(shortened(report.headline, 600))}</p>'


def _facts(report: MonitoringReport) -> Iterator[str]:
    flagged = sum(column.verdict != "quiet" for column in report.columns)
    pairs = [
        ("rows now", f"{report.current_rows:,}"),
        ("rows of the reference", f"{report.reference_rows:,}"),
        ("columns monitored", f"{len(report.columns):,}"),
        ("columns that have moved", f"{flagged:,}"),
    ]
    if report.performance is not None:
        last = next((point for point in reversed(report.performance.points) if point.value is not None), None)
        pairs.append((f"{report.performance.metric} now", _number(last.value if last else None)))
        pairs.append((f"{report.performance.metric} in the reference", _number(report.performance.reference.value)))
    yield '<section class="facts" aria-label="Figures">'
    for label, value in pairs:
        yield f'<dl class="fact" style="margin:0"><dt>{html_text(label)}</dt><dd>{html_text(value)}</dd></dl>'
    yield "</section>"


def _incidents(report: MonitoringReport, listed: int) -> Iterator[str]:
    yield "<h2>Incidents</h2>"
    if not report.incidents:
        yield '<p class="box">None. Small deviations that chance explains are not incidents.</p>'
        return
    for one in report.incidents[:listed]:
        yield from _incident(report, one)
    if len(report.incidents) > listed:
        yield f'<p class="faint">And {len(report.incidents) - listed} earlier ones.</p>'


def _incident(report: MonitoringReport, one: Incident) -> Iterator[str]:
    ongoing = one.state in ONGOING
    tone = "alarm" if one.severity == "alarm" else "warn"
    yield f'<article class="box incident {tone}{"" if ongoing else " over"}">'
    yield f'<span class="chip {tone}">{one.severity.capitalize()}{"" if ongoing else ", over"}</span> '
    yield f'<span class="faint">{html_text(one.kind)}'
    first, last = report.windows[0], report.windows[-1]
    timed = first.since is not None and last.until is not None
    if timed:
        until = "now" if ongoing else f"{one.seen_at:%Y-%m-%d %H:%M}"
        yield f" · {one.began_at:%Y-%m-%d %H:%M} to {until}"
    yield f"</span><h3>{html_text(shortened(one.title, 400))}</h3><p>{html_text(shortened(one.message, 1500))}</p>"
    if first.since is not None and last.until is not None and len(report.windows) > 1:
        total = (last.until - first.since).total_seconds() or 1.0
        left = 100 * (one.began_at - first.since).total_seconds() / total
        width = 100 * (one.seen_at - one.began_at).total_seconds() / total
        yield f'<div class="when" aria-hidden="true"><i style="left:{left:.1f}%;width:{width:.1f}%"></i></div>'
    yield "</article>"


def _performance(report: MonitoringReport, series: MetricSeries) -> Iterator[str]:
    yield f"<h2>Performance: {html_text(series.metric)}</h2>"
    better = "higher" if series.greater_is_better else "lower"
    yield f'<div class="box"><p class="faint">The {better}, the better. Intervals are 95 %.</p>'
    if len(report.windows) > 1:
        low, high = metric_range(series)
        first, last = report.windows[0].since, report.windows[-1].until
        yield '<p class="legend"><span><i style="background:var(--now)"></i>measured with labels</span>'
        if series.estimates:
            yield '<span><i style="background:var(--warn)"></i>estimated without labels</span>'
        yield '<span><i style="background:var(--before)"></i>reference</span>'
        yield '<span><i style="background:var(--alarm)"></i>alarm</span></p>' if "alarm" in series.verdicts else "</p>"
        yield f'<div class="chart"><div class="y"><span>{_number(high)}</span><span>{_number(low)}</span></div>'
        yield metric_chart(series)
        if first is not None and last is not None:
            yield f'<p class="ax"><span>{first:%Y-%m-%d}</span><span>{last:%Y-%m-%d}</span></p>'
        yield "</div><details><summary>Figures</summary>"
    yield '<div class="wide"><table><thead><tr><th scope="col">window</th><th scope="col" class="r">value</th>'
    yield '<th scope="col" class="r">interval</th><th scope="col" class="r">labelled rows</th>'
    yield '<th scope="col" class="r">estimate</th></tr></thead><tbody>' if series.estimates else "</tr></thead><tbody>"
    yield _metric_row("reference", series.reference, None, estimated=bool(series.estimates))
    shown = list(enumerate(zip(report.windows, series.points, strict=True)))[-200:]
    for index, (window, point) in shown:
        label = "now" if window.since is None else f"{window.since:%Y-%m-%d %H:%M}"
        estimate = series.estimates[index] if series.estimates else None
        yield _metric_row(label, point, estimate, estimated=bool(series.estimates))
    yield "</tbody></table></div>"
    yield "</details></div>" if len(report.windows) > 1 else "</div>"


def _metric_row(label: str, point: MetricPoint, estimate: MetricPoint | None, *, estimated: bool) -> str:
    interval = "–" if point.low is None or point.high is None else f"{_number(point.low)} – {_number(point.high)}"
    cells = [_number(point.value), interval, f"{point.rows:,}"]
    if estimated:
        cells.append(_number(estimate.value if estimate is not None else None))
    figures = "".join(f'<td class="r">{cell}</td>' for cell in cells)
    return f"<tr><td>{label}</td>{figures}</tr>"


def _quality(report: MonitoringReport, listed: int) -> Iterator[str]:
    yield "<h2>Data quality</h2>"
    if not report.quality:
        yield '<p class="box">Nothing was found: no new gaps, values out of range, new categories or duplicates.</p>'
        return
    yield '<div class="box"><ul class="notes">'
    for note in report.quality[:listed]:
        chip = '<span class="chip warn">Look at this</span> ' if note.grave else ""
        name = f"<b>{html_text(shortened(note.column, 80))}</b>: " if note.column is not None else ""
        yield f"<li>{chip}{name}{html_text(shortened(note.message, 400))}</li>"
    if len(report.quality) > listed:
        yield f"<li>And {len(report.quality) - listed} more.</li>"
    yield "</ul></div>"


def _columns(report: MonitoringReport, plan: _Plan) -> Iterator[str]:
    yield "<h2>Columns</h2>"
    yield '<p class="legend"><span><i style="background:var(--before)"></i>reference</span>'
    yield '<span><i style="background:var(--now)"></i>now</span>'
    if len(report.windows) > 1:
        yield "<span>Small bars: how surprising each window was; dashed: the limit.</span>"
    yield '</p><section class="cards">'
    for column in report.columns[: plan.cards]:
        yield from _card(column)
    yield "</section>"
    rest = report.columns[plan.cards : plan.cards + plan.rows]
    if rest:
        yield from _rows(rest, strips=plan.strips and len(report.windows) > 1)
    hidden = len(report.columns) - plan.cards - plan.rows
    if hidden > 0:
        yield f'<p class="faint">{hidden:,} more columns have moved less than these.</p>'
    if report.joint is not None:
        text = " ".join(report.joint.sentences())
        yield f'<h2>All columns together</h2><div class="box"><p>{html_text(shortened(text, 1500))}</p></div>'
    if report.pairs:
        yield '<h2>Relations between columns</h2><div class="box"><ul class="notes">'
        for pair in report.pairs[: plan.listed]:
            yield f"<li>{html_text(shortened(pair.message(), 400))}</li>"
        if len(report.pairs) > plan.listed:
            yield f"<li>And {len(report.pairs) - plan.listed} more.</li>"
        yield "</ul></div>"


def _card(column: MonitoredColumn) -> Iterator[str]:
    tones = {"alarm": ("alarm", "Moved"), "warning": ("warn", "Perhaps moved"), "quiet": ("", "As before")}
    tone, text = tones[column.verdict]
    role = f' <span class="faint">{column.role}</span>' if column.role != "input" else ""
    yield f'<article class="card"><header><h3>{html_text(shortened(column.name, 80))}{role}</h3>'
    yield f'<span class="chip {tone}">{text}</span></header>{distribution(column)}{strip(column)}<dl>'
    for label, value in _figures(column):
        yield f"<div><dt>{label}</dt><dd>{value}</dd></div>"
    yield "</dl></article>"


def _figures(column: MonitoredColumn) -> Iterator[tuple[str, str]]:
    yield "PSI", _number(column.psi)
    yield "surprise", f"{column.strength:.1f} × limit"
    before, now = column.reference, column.current
    yield "missing", _change(f"{_missing(before):.1%}", f"{_missing(now):.1%}")
    if before.moments is not None and now.moments is not None:
        yield "mean", _change(_number(before.moments.mean), _number(now.moments.mean))
        yield "deviation", _change(_number(before.moments.deviation), _number(now.moments.deviation))
    labels = {"jensen_shannon": "Jensen-Shannon", "ks": "KS", "wasserstein": "Wasserstein"}
    for name, value in column.statistics.items():
        yield html_text(labels.get(name, name)), _number(value)


def _rows(columns: Sequence[MonitoredColumn], *, strips: bool) -> Iterator[str]:
    yield '<div class="box wide" style="margin-top:12px"><table><thead><tr><th scope="col">column</th>'
    yield '<th scope="col" class="r">PSI</th><th scope="col" class="r">missing</th><th scope="col" class="r">mean</th>'
    yield '<th scope="col">by window</th></tr></thead><tbody>' if strips else "</tr></thead><tbody>"
    for column in columns:
        means = [one.moments.mean if one.moments is not None else None for one in (column.reference, column.current)]
        mean = _change(_number(means[0]), _number(means[1])) if None not in means else ""
        missing = [f"{_missing(one):.1%}" for one in (column.reference, column.current)]
        tone = f' class="{column.verdict}"' if column.verdict != "quiet" else ""
        yield f'<tr{tone}><td>{html_text(shortened(column.name, 60))}</td><td class="r">{_number(column.psi)}</td>'
        yield f'<td class="r">{_change(*missing)}</td><td class="r">{mean}</td>'
        yield f"<td>{strip(column)}</td></tr>" if strips else "</tr>"
    yield "</tbody></table></div>"


def _footer(report: MonitoringReport, listed: int) -> Iterator[str]:
    yield "<footer>"
    for remark in report.remarks:
        yield f"<p>{html_text(shortened(remark, 400))}</p>"
    if report.skipped:
        yield "<details><summary>Columns that are not monitored</summary><ul>"
        for name, reason in list(report.skipped.items())[:listed]:
            yield f"<li>{html_text(shortened(name, 80))}: {html_text(shortened(reason, 200))}</li>"
        if len(report.skipped) > listed:
            yield f"<li>And {len(report.skipped) - listed} more.</li>"
        yield "</ul></details>"
    yield "<details><summary>How to read the figures</summary><p>The population stability index (PSI), "
    yield "Jensen-Shannon, KS and Wasserstein say how far a distribution is from the reference; 0 means equal. "
    yield "Surprise compares each window with what chance, wandering levels and seasons of the reference explain; at "
    yield "1 × limit an incident opens, as rarely without need as the budget says. The distances and the surprise are "
    yield "those of the most surprising window; the shapes, means and missing values are those of all rows. A notice "
    yield "changes nothing that matters yet; an alarm harms predictions, or is expected to.</p></details>"
    yield "<p>Written by everloop.</p></footer>"


def _change(before: str, now: str) -> str:
    return before if before == now else f"{before} → {now}"


def _missing(sketch: Sketch) -> float:
    counts = sketch.counts
    return counts[0] / (sum(counts) or 1)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
