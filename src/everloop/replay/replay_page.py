"""Write the result of a replay as one HTML page without scripts, fonts or other files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.monitoring.reports.report_style import STYLE
from everloop.replay.metric_text import metric_text
from everloop.stores.printable import html_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from everloop.replay.hindsight import PeriodMetric
    from everloop.replay.replay_result import PolicyOutcome, ReplayResult

WIDTH, HEIGHT = 1000, 260
NOT_MEASURED = "No period has enough labels to measure a policy. Use an earlier --from, a longer --every, or more rows."
_COLOURS = ("#2f6db0", "#c0602a", "#2c7a4b", "#8a4fa3", "#b27a12", "#5d6a76", "#b3392b", "#2a8c94", "#7a6a2f")
_STYLE = """
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{color:var(--faint);font-weight:600;font-size:12.5px}
tr.best td{background:var(--ok-bg);font-weight:600}
svg.replay{height:auto;min-width:640px}
td.words,th.words{text-align:left;white-space:normal;min-width:280px}
svg.replay text{font:12px system-ui,sans-serif;fill:var(--faint)}
svg.replay .grid{stroke:var(--line)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;margin:8px 0 0;font-size:13px}
.legend i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 14px;overflow-x:auto}
"""


def replay_page(result: ReplayResult) -> str:
    """Return the HTML page of a replay."""
    return "".join(_page(result))


def _page(result: ReplayResult) -> Iterator[str]:
    title = html_text(result.title)
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title} · replay</title><style>{STYLE}{_STYLE}</style></head><body><main>"
    yield f"<h1>Replay of {title}</h1>"
    yield (
        f'<p class="faint sub">{result.start:%Y-%m-%d} to {result.end:%Y-%m-%d}, every {html_text(result.every)},'
        f" labels after {html_text(result.labels_after)} · {result.rows:,} rows · {result.seconds:.0f} s</p>"
    )
    advice = result.recommendation
    if advice is None:
        yield f'<p class="answer warn"><b>No recommendation</b>{NOT_MEASURED}</p>'
    else:
        rule = result.outcome(advice.name).policy.rule
        named = f"<b>{advice_title(result)}: {html_text(advice.name)}</b>{html_text(rule[0].upper() + rule[1:])}."
        yield f'<p class="answer ok">{named} {html_text(advice.why)}</p>'
    yield "<h2>Policies</h2>"
    yield from _table(result)
    yield f"<h2>Live {html_text(result.metric)} by period</h2>"
    yield from _chart(result)
    yield from _months(result)
    yield from _incidents(result)
    yield from _trainings(result)
    if result.suggestion:
        yield "<h2>In loop.py</h2><pre>" + html_text("\n".join(result.suggestion)) + "</pre>"
    if result.remarks:
        yield "<h2>Remarks</h2><ul>"
        yield from (f"<li>{html_text(text)}</li>" for text in result.remarks)
        yield "</ul>"
    yield "</main></body></html>"


def _months(result: ReplayResult) -> Iterator[str]:
    """A table of the live metric by month; long replays only, since the chart shows few periods well enough."""
    columns, rows = month_rows(result)
    if len(rows) < 2:
        return
    yield f'<h2>By month</h2><p class="faint">{html_text(months_note(result))}</p>'
    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(f"<th>{html_text(name)}</th>" for name in columns) + "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{html_text(text)}</td>" for text in row) + "</tr>"
    yield "</tbody></table></div>"


def advice_title(result: ReplayResult) -> str:
    """Return what the recommended policy is called. A policy that is compared with nothing is not recommended."""
    return "Recommended" if sum(one.mean is not None for one in result.policies) > 1 else "The only policy"


def months_note(result: ReplayResult) -> str:
    """Return what the numbers of `month_rows` are."""
    mean = "Mean of the periods that begin in a month."
    shown = [one for one in result.policies if one.months]
    if len(shown) > 1 and _basis(shown) is not None:
        return f"{mean} Policies that retrain: difference from never retraining."
    return mean


def _basis(shown: Sequence[PolicyOutcome]) -> PolicyOutcome | None:
    """The policy that never retrains, which the others are compared with."""
    return next((one for one in shown if not one.policy.retrain), None)


def month_rows(result: ReplayResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the names of the columns and one row of texts for each month: `never`, and how others differ from it."""
    shown = [one for one in result.policies if one.months]
    basis = _basis(shown)
    rows = []
    for month in sorted({month for one in shown for month in one.months}):
        row = [month]
        for one in shown:
            value, before = one.months.get(month), None if basis is None else basis.months.get(month)
            if value is None:
                row.append("-")
            else:
                row.append(
                    f"{metric_text(value)}"
                    if one is basis or before is None
                    else f"{metric_text(value - before, 3, sign=True)}"
                )
        rows.append(tuple(row))
    return ("month", *(one.policy.name for one in shown)), rows


def policy_rows(result: ReplayResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the names of the columns and one row of texts for each policy, as the page and the terminal show them."""
    columns = (
        "policy", "trains on", result.metric, "regret [95 %]", "retrainings", "promotions", "rollbacks", "incidents",
        "needed", "seconds",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for one in result.policies:
        needed = sum(item.verdict == "needed" for item in one.incidents)
        regret = one.regret
        failed = f" ({one.failed} failed)" if one.failed else ""
        rows.append(
            (
                one.policy.name,
                one.policy.memory,
                "-" if one.mean is None else f"{metric_text(one.mean)}",
                "-"
                if regret is None
                else f"{metric_text(regret.value, 3)} [{metric_text(regret.low, 3)}, {metric_text(regret.high, 3)}]",
                f"{one.retrainings}{failed}",
                str(one.promotions),
                str(one.rollbacks),
                str(len(one.incidents)) if one.watched else "not watched",
                str(needed) if one.watched else "-",
                f"{one.training_seconds:.1f}",
            )
        )
    return columns, rows


def _table(result: ReplayResult) -> Iterator[str]:
    columns, rows = policy_rows(result)
    yield '<div class="scroll"><table><thead><tr>'
    yield from (f"<th>{html_text(name)}</th>" for name in columns)
    yield "</tr></thead><tbody>"
    chosen = result.recommendation.name if result.recommendation is not None else None
    for row in rows:
        yield '<tr class="best">' if row[0] == chosen else "<tr>"
        yield from (f"<td>{html_text(text)}</td>" for text in row)
        yield "</tr>"
    yield "</tbody></table></div>"
    better = "higher" if result.greater_is_better else "lower"
    yield (
        f'<p class="faint">{html_text(result.metric)}: mean over the periods, {better} is better. Regret: how much'
        " worse than the best policy in hindsight. Seconds: compute of all trainings.</p>"
    )
    for one in result.policies:
        if one.error is not None:
            yield f'<p class="faint">{html_text(one.policy.name)} ended early: {html_text(one.error)}</p>'


def _chart(result: ReplayResult) -> Iterator[str]:
    shown = [one for one in result.policies if one.mean is not None]
    values = [period.value for one in shown for period in one.periods if period.value is not None]
    if not values:
        yield '<p class="box">No period has enough labels for a metric.</p>'
        return
    low, high = min(values), max(values)
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    low, high = low - margin, high + margin
    count = max(len(one.periods) for one in shown)

    def x(index: int) -> float:
        return 52 + (index + 0.5) * (WIDTH - 60) / count

    def y(value: float) -> float:
        return 8 + (HEIGHT - 34) * (1 - (min(max(value, low), high) - low) / (high - low))

    label = f"{html_text(result.metric)} by period"
    yield f'<div class="scroll"><svg class="replay" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    for step in range(5):
        value = low + (high - low) * step / 4
        yield f'<path class="grid" d="M52 {y(value):.1f}H{WIDTH - 8}"/>'
        yield f'<text x="46" y="{y(value) + 4:.1f}" text-anchor="end">{metric_text(value, 3)}</text>'
    chosen = result.recommended
    if chosen is not None:
        yield f'<path class="b" style="opacity:.35" d="{_band(chosen.periods, x, y)}"/>'
    for number, one in enumerate(shown):
        colour = _COLOURS[number % len(_COLOURS)]
        width = 3 if one is chosen else 1.4
        for line in _lines(one.periods, x, y):
            yield f'<path d="{line}" style="stroke:{colour};stroke-width:{width}"/>'
    first, last = result.start, shown[0].periods[-1].end
    yield f'<text x="52" y="{HEIGHT - 6}">{first:%Y-%m-%d}</text>'
    yield f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{last:%Y-%m-%d}</text></svg></div>'
    yield '<div class="legend">'
    for number, one in enumerate(shown):
        yield f'<span><i style="background:{_COLOURS[number % len(_COLOURS)]}"></i>{html_text(one.policy.name)}</span>'
    yield "</div>"
    if chosen is not None:
        yield f'<p class="faint">Band: 95 % intervals of {html_text(chosen.policy.name)}.</p>'


def _lines(periods: Sequence[PeriodMetric], x: object, y: object) -> Iterator[str]:
    line: list[str] = []
    for index, one in enumerate(periods):
        if one.value is None:
            if len(line) > 1:
                yield "M" + "L".join(line)
            line = []
            continue
        line.append(f"{x(index):.1f} {y(one.value):.1f}")  # type: ignore[operator]
    if line:
        yield "M" + "L".join(line if len(line) > 1 else [*line, *line])


def _band(periods: Sequence[PeriodMetric], x: object, y: object) -> str:
    known = [
        (index, one.low, one.high) for index, one in enumerate(periods) if one.low is not None and one.high is not None
    ]
    if not known:
        return "M0 0"
    top = [f"{x(index):.1f} {y(high):.1f}" for index, _, high in known]  # type: ignore[operator]
    bottom = [f"{x(index):.1f} {y(low):.1f}" for index, low, _ in reversed(known)]  # type: ignore[operator]
    return "M" + "L".join([*top, *bottom]) + "Z"


def _incidents(result: ReplayResult) -> Iterator[str]:
    rows = [(one.policy.name, item) for one in result.policies for item in one.incidents]
    if not rows:
        return
    yield '<h2>Incidents, judged by hindsight</h2><div class="scroll"><table><thead><tr><th>policy</th><th>from</th>'
    yield '<th>severity</th><th>needed?</th><th class="words">what</th></tr></thead><tbody>'
    for name, item in rows[:100]:
        yield (
            f"<tr><td>{html_text(name)}</td><td>{item.incident.began_at:%Y-%m-%d}</td><td>{item.incident.severity}</td>"
            f'<td>{item.verdict}</td><td class="words">{html_text(item.incident.title)}'
            f' <span class="faint">{html_text(item.why)}</span></td></tr>'
        )
    yield "</tbody></table></div>"
    if len(rows) > 100:
        yield f'<p class="faint">And {len(rows) - 100} more.</p>'


def _trainings(result: ReplayResult) -> Iterator[str]:
    chosen = result.recommended
    if chosen is None or not chosen.trainings:
        return
    yield f"<h2>Trainings of {html_text(chosen.policy.name)}</h2>"
    yield from _training_table(chosen)


def _training_table(one: PolicyOutcome) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr><th>day</th><th>outcome</th><th>seconds</th>'
    yield '<th class="words">why</th></tr></thead><tbody>'
    for item in one.trainings[:200]:
        yield (
            f"<tr><td>{item.at:%Y-%m-%d}</td><td>{html_text(item.state.replace('_', ' '))}</td>"
            f'<td>{item.seconds:.1f}</td><td class="words">'
            f"{html_text(item.trigger)}; {html_text(item.why)}</td></tr>"
        )
    yield "</tbody></table></div>"
