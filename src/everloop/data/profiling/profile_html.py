"""Write a profile as a single self-contained HTML page, without scripts, fonts or other files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.stores.printable import html_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.data.profiling.leakage import LeakageSuspect
    from everloop.data.profiling.profiles import Bars, ColumnProfile, Profile

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1c2733; --faint: #66737f; --line: #e3e6e8;
  --bar: #4c7fb8; --rate: #c8553d; --null: #d9a441; --grave: #b3392b; --mild: #8a6d1f; --chip: #eef2f5; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --card: #1c2227; --ink: #e4e8eb; --faint: #95a1ab;
  --line: #2e363d; --bar: #6ea0d8; --rate: #e8836d; --null: #d9a441; --grave: #f0887b; --mild: #d9bb62;
  --chip: #28313a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 40px 0 12px; }
p { margin: 0 0 10px; } .faint { color: var(--faint); font-size: 13px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 20px; }
.fact, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.fact b { display: block; font-size: 18px; font-weight: 600; overflow-wrap: anywhere; }
.fact span { color: var(--faint); font-size: 12px; }
.suspects { list-style: none; margin: 0; padding: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.suspects li { display: flex; gap: 14px; padding: 10px 14px; border-top: 1px solid var(--line); align-items: baseline; }
.suspects li:first-child { border-top: 0; }
.kind { flex: 0 0 168px; font-size: 12px; font-weight: 600; color: var(--mild); } .grave .kind { color: var(--grave); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: 14px; }
.card h3 { margin: 0; font-size: 15px; overflow-wrap: anywhere; }
.card header { display: flex; justify-content: space-between; gap: 8px; align-items: baseline; margin-bottom: 4px; }
.chip { background: var(--chip); border-radius: 10px; padding: 1px 8px; font-size: 11.5px; white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px 12px; margin: 10px 0 0; font-size: 12.5px; }
dl div { min-width: 0; } dt { color: var(--faint); font-size: 11.5px; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--faint); font: 10.5px system-ui, sans-serif; }
svg .name { fill: var(--ink); } .bar { fill: var(--bar); } .rate { fill: none; stroke: var(--rate); stroke-width: 1.8; }
.dot { fill: var(--rate); stroke: var(--card); stroke-width: 1.5; }
.base { stroke: var(--line); } .track { fill: var(--chip); }
.legend { display: flex; gap: 16px; font-size: 12.5px; color: var(--faint); margin-bottom: 12px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px;
  vertical-align: -1px; }
.wide { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; overflow-x: auto; }
footer { margin-top: 44px; color: var(--faint); font-size: 12.5px; }
"""
_GRAVE = ("knows the target", "nulls know the target", "later", "future", "across splits")
_WIDTH, _HEIGHT = 320, 96
_NAME_LENGTH = 22


def profile_page(profile: Profile) -> str:
    """The HTML page of a profile."""
    return "".join(_page(profile))


def _page(profile: Profile) -> Iterator[str]:
    snapshot = profile.snapshot
    # A table that is not stored has no version.
    name = html_text(snapshot.key if snapshot.version else snapshot.dataset)
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    # Nothing in the page may run or load, whatever the names of the columns are.
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{name} · profile</title><style>{_STYLE}</style></head><body><main>"
    yield f"<h1>{name}</h1>"
    yield f'<p class="faint">Taken {_moment(snapshot.created_at)}'
    yield f" · {html_text(snapshot.digest[:23])}…" if snapshot.digest else ""
    yield f" · contract {html_text(snapshot.contract)}" if snapshot.contract else ""
    yield "</p>"
    yield '<section class="facts">'
    spans = [("rows", f"{snapshot.rows:,}"), ("columns", str(len(snapshot.columns)))]
    if snapshot.size_bytes:
        spans.append(("size", _size(snapshot.size_bytes)))
    if snapshot.target:
        spans.append(("target", snapshot.target))
    if snapshot.starts_at is not None and snapshot.ends_at is not None:
        spans.append(("from", f"{snapshot.starts_at:%Y-%m-%d}"))
        spans.append(("to", f"{snapshot.ends_at:%Y-%m-%d}"))
    empty = sum(column.nulls for column in profile.columns) / max(1, len(profile.columns))
    spans.append(("of all values are null", f"{empty:.1%}"))
    for label, value in spans:
        yield f'<div class="fact"><b>{html_text(value)}</b><span>{html_text(label)}</span></div>'
    yield "</section>"
    yield from _suspects(profile.suspects)
    yield "<h2>Columns</h2>"
    if snapshot.target and any(column.bars and any(_scaled_targets(column.bars)) for column in profile.columns):
        yield '<div class="legend"><span><i style="background:var(--bar)"></i>rows</span>'
        yield f'<span><i style="background:var(--rate)"></i>mean of {html_text(snapshot.target)}</span></div>'
    yield '<section class="cards">'
    for column in profile.columns:
        yield from _card(column, snapshot.rows)
    yield "</section>"
    yield from _scores(profile)
    yield from _correlations(profile)
    yield from _missing(profile)
    yield f"<footer>Distributions, correlations and suspects from {profile.sampled:,} of {snapshot.rows:,} rows, "
    yield "evenly spread; nulls, extremes and distinct values from all. Written by everloop.</footer>"
    yield "</main></body></html>"


def _suspects(suspects: tuple[LeakageSuspect, ...]) -> Iterator[str]:
    yield "<h2>What could mislead a model</h2>"
    if not suspects:
        yield "<p>Nothing was found: no column predicts the target too well, identifies rows or is from the future.</p>"
        return
    yield '<ul class="suspects">'
    for suspect in sorted(suspects, key=lambda each: each.kind not in _GRAVE):
        grave = ' class="grave"' if suspect.kind in _GRAVE else ""
        yield f'<li{grave}><span class="kind">{html_text(suspect.kind)}</span>'
        yield f"<span>{html_text(suspect.message)}</span></li>"
    yield "</ul>"


def _card(column: ColumnProfile, rows: int) -> Iterator[str]:
    yield f'<article class="card"><header><h3>{html_text(column.name)}</h3>'
    yield f'<span class="chip">{html_text(column.role)}</span>' if column.role else ""
    yield f'</header><p class="faint">{html_text(_short(column.type, 60))}</p>'
    yield (
        _chart(column.bars)
        if column.bars is not None
        else '<p class="faint">No chart: the column identifies rows, or does not contain simple values.</p>'
    )
    yield "<dl>"
    for label, value in _figures(column, rows):
        yield f"<div><dt>{html_text(label)}</dt><dd>{html_text(value)}</dd></div>"
    yield "</dl></article>"


def _figures(column: ColumnProfile, rows: int) -> Iterator[tuple[str, str]]:
    yield "nulls", f"{column.nulls:.1%}" if column.nulls else "none"
    distinct = column.stats.get("distinct")
    if isinstance(distinct, int):
        yield "distinct", "all" if distinct == rows else f"{distinct:,}"
    for label in ("min", "mean", "max"):
        if label in column.stats:
            yield label, _value(column.stats[label])
    if column.score is not None:
        yield "predicts the target", f"{column.score:.0%}"


def _chart(bars: Bars) -> str:
    # Classes get one row each, amounts a histogram.
    ordered = len(bars.counts) > 12
    return _histogram(bars) if ordered else _rows(bars)


def _histogram(bars: Bars) -> str:
    top, tall = max(bars.counts) or 1, _HEIGHT - 18
    step = _WIDTH / len(bars.counts)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="distribution">']
    for index, count in enumerate(bars.counts):
        height = tall * count / top
        title = f"<title>from {html_text(bars.labels[index])}: {count:,} rows{_target_text(bars, index)}</title>"
        shape = f'x="{index * step + 0.5:.1f}" y="{tall - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}"'
        parts.append(f'<rect class="bar" {shape} rx="1">{title}</rect>')
    parts.append(f'<line class="base" x1="0" x2="{_WIDTH}" y1="{tall}" y2="{tall}"/>')
    targets = _scaled_targets(bars)
    if any(value is not None for value in targets):
        # The means of bars with few rows are noise, and would make the line jump.
        least = max(1, sum(bars.counts) // 500)
        points = [
            (index * step + step / 2, tall - 4 - (tall - 12) * value)
            for index, (value, count) in enumerate(zip(targets, bars.counts, strict=True))
            if value is not None and count >= least
        ]
        parts.append(f'<polyline class="rate" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    first, last = html_text(_short(bars.labels[0], 24)), html_text(_short(bars.labels[-1], 24))
    parts.append(f'<text x="0" y="{_HEIGHT - 4}">{first}</text>')
    parts.append(f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{last}</text></svg>')
    return "".join(parts)


def _rows(bars: Bars) -> str:
    top, line = max((*bars.counts, 1)), 17
    targets = _scaled_targets(bars)
    height = line * len(bars.counts) + (line if bars.others else 0) + 2
    left, right = 108, _WIDTH - 52
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="distribution">']
    for index, (label, count) in enumerate(zip(bars.labels, bars.counts, strict=True)):
        y, wide = index * line, max(1.0, (right - left) * count / top)
        title = f"<title>{html_text(label)}: {count:,} rows{_target_text(bars, index)}</title>"
        parts.append(f'<text class="name" x="0" y="{y + 12}">{html_text(_short(label, 17))}</text>')
        parts.append(f'<rect class="bar" x="{left}" y="{y + 3}" width="{wide:.1f}" height="11" rx="1">{title}</rect>')
        value = targets[index]
        if value is not None:
            x = left + (right - left) * value
            parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y + 8.5}" r="3">{title}</circle>')
        parts.append(f'<text x="{_WIDTH}" y="{y + 12}" text-anchor="end">{_count(count)}</text>')
    if bars.others:
        y = line * len(bars.counts) + 12
        parts.append(f'<text x="0" y="{y}">others</text>')
        parts.append(f'<text x="{_WIDTH}" y="{y}" text-anchor="end">{_count(bars.others)}</text>')
    return "".join([*parts, "</svg>"])


def _scaled_targets(bars: Bars) -> list[float | None]:
    """The means of the target, scaled to 0 to 1 unless they are in that range already."""
    known = [value for value in bars.targets if value is not None]
    if not known:
        return [None] * len(bars.counts)
    low, high = (0.0, 1.0) if min(known) >= 0 and max(known) <= 1 else (min(known), max(known))
    span = (high - low) or 1.0
    return [None if value is None else (value - low) / span for value in bars.targets]


def _target_text(bars: Bars, index: int) -> str:
    value = bars.targets[index] if bars.targets else None
    return "" if value is None else f", target {value:.3g}"


def _scores(profile: Profile) -> Iterator[str]:
    scored = sorted((column for column in profile.columns if column.score is not None), key=lambda one: -_score(one))
    if not scored:
        return
    yield f"<h2>How well each column alone predicts {html_text(profile.snapshot.target or '')}</h2>"
    line, left, width = 20, 170, 760
    shown = scored[:40]
    yield f'<div class="wide"><svg style="max-width:{width}px" viewBox="0 0 {width} {line * len(shown)}">'
    for index, column in enumerate(shown):
        y, score = index * line, _score(column)
        yield f'<text class="name" x="0" y="{y + 14}">{html_text(_short(column.name, _NAME_LENGTH))}</text>'
        yield f'<rect class="track" x="{left}" y="{y + 5}" width="{width - left - 50}" height="10" rx="2"/>'
        color = "var(--grave)" if score >= 0.9 else "var(--bar)"
        length = (width - left - 50) * score
        yield f'<rect x="{left}" y="{y + 5}" width="{length:.1f}" height="10" rx="2" style="fill:{color}"/>'
        yield f'<text x="{width}" y="{y + 14}" text-anchor="end">{score:.1%}</text>'
    yield "</svg></div>"


def _score(column: ColumnProfile) -> float:
    return column.score or 0.0


def _correlations(profile: Profile) -> Iterator[str]:
    names, table = profile.correlated, profile.correlations
    if not table:
        return
    yield "<h2>Rank correlations</h2>"
    cell = max(16, min(34, 760 // len(names)))
    left, top = 170, 104
    size = cell * len(names)
    yield f'<div class="wide"><svg style="width:{left + size + 60}px" viewBox="0 0 {left + size + 60} {top + size}">'
    for index, name in enumerate(names):
        middle = index * cell + cell / 2
        short = html_text(_short(name, _NAME_LENGTH))
        yield f'<text class="name" x="{left - 8}" y="{top + middle + 4}" text-anchor="end">{short}</text>'
        yield f'<text class="name" transform="translate({left + middle + 3},{top - 8}) rotate(-50)">{short}</text>'
    for row, values in enumerate(table):
        for other, value in enumerate(values):
            square = f'x="{left + other * cell}" y="{top + row * cell}" width="{cell - 1}" height="{cell - 1}"'
            text = "unknown" if value is None else f"{value:+.2f}"
            title = f"<title>{html_text(names[row])} and {html_text(names[other])}: {text}</title>"
            yield f'<rect {square} rx="2" style="fill:{_shade(value)}">{title}</rect>'
            if value is not None and row != other and abs(value) >= 0.3 and cell >= 26:
                ink = "#fff" if abs(value) >= 0.6 else "var(--ink)"
                at = f'x="{left + other * cell + (cell - 1) / 2}" y="{top + row * cell + cell / 2 + 3}"'
                yield f'<text {at} text-anchor="middle" style="fill:{ink};font-size:9.5px">{value:+.1f}</text>'
    yield "</svg></div>"


def _shade(value: float | None) -> str:
    if value is None:
        return "var(--chip)"
    color = "#4c7fb8" if value >= 0 else "#c8553d"
    return f"color-mix(in srgb, {color} {abs(value) * 100:.0f}%, var(--chip))"


def _missing(profile: Profile) -> Iterator[str]:
    columns = [column for column in profile.columns if column.stripes]
    yield "<h2>Where values are missing</h2>"
    if not columns:
        yield "<p>No column contains nulls.</p>"
        return
    order = f"sorted by {profile.snapshot.time}" if profile.snapshot.time else "in their order"
    yield f'<p class="faint">All rows, {html_text(order)}, from left to right; darker means more nulls.</p>'
    line, left, width = 20, 170, 760
    tall = line * len(columns)
    yield f'<div class="wide"><svg style="max-width:{width + 60}px" viewBox="0 0 {width + 60} {tall}">'
    for index, column in enumerate(columns):
        y, step = index * line, (width - left) / len(column.stripes)
        yield f'<text class="name" x="0" y="{y + 14}">{html_text(_short(column.name, _NAME_LENGTH))}</text>'
        for section, nulls in enumerate(column.stripes):
            fill = f"color-mix(in srgb, var(--null) {nulls * 100:.0f}%, var(--chip))"
            at = f'x="{left + section * step:.1f}" y="{y + 3}" width="{step + 0.3:.1f}" height="14"'
            yield f'<rect {at} style="fill:{fill}"><title>{nulls:.1%} null</title></rect>'
        yield f'<text x="{width + 60}" y="{y + 14}" text-anchor="end">{column.nulls:.1%}</text>'
    yield "</svg></div>"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return _short(str(value).replace("T", " ").removesuffix("+00:00"), 26)


def _count(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} k" if count >= 10_000 else f"{count:,}"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _size(count: int) -> str:
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:,.1f} {unit}"
    return f"{count:,} bytes"


def _moment(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
