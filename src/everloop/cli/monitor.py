"""`everloop monitor`: what watching has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from everloop.cli.output import AsJson, Home, emit, messages, opened, say, table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Drift, performance, and what was found.")


@app.command()
def ls(
    endpoint: Annotated[str | None, typer.Argument(help="Only this endpoint.")] = None,
    severity: Annotated[str | None, typer.Option(help="info, warning or alarm.")] = None,
    kind: Annotated[str | None, typer.Option(help="drift, performance, quality, freshness or latency.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 30,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List findings, newest first."""
    from everloop.errors import UsageError
    from everloop.records import EndpointRecord, Finding, FindingKind, Severity

    asked = {"endpoint": endpoint, "severity": severity, "kind": kind}
    for name, words in (("severity", get_args(Severity)), ("kind", get_args(FindingKind))):
        if asked[name] is not None and asked[name] not in words:
            raise UsageError(f"No {name} called '{asked[name]}'.", help=f"There are: {', '.join(words)}")
    with opened(home) as store:
        if endpoint is not None:
            store.records.get(EndpointRecord, endpoint)
        where = [(name, "=", value) for name, value in asked.items() if value]
        findings = store.records.find(Finding, *where, order="-id", limit=limit)  # type: ignore[arg-type]
    rows = [(f.window_from, f.window_to, f.version, f.kind, f.severity, f.subject, f.message) for f in findings]
    columns = ("from", "to", "version", "kind", "severity", "subject", "what")
    emit(findings, json, lambda: table("Findings", columns, rows, empty="Nothing found. Watching runs in: everloop up"))


@app.command()
def performance(
    endpoint: str,
    metric: Annotated[
        str | None, typer.Option(help="Such as roc_auc or rmse. Default: the usual one of the model's task.")
    ] = None,
    every: Annotated[str, typer.Option(help="The period: 1d, 1w, 1mo, 1q.")] = "1mo",
    as_if: Annotated[
        str | None, typer.Option(help="Score the logged inputs again with this version: MODEL@VERSION.")
    ] = None,
    labels_after: Annotated[str, typer.Option(help="Leave out answers younger than this.")] = "0s",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """The live metric by period: as it was, or as another version would have done on the same questions."""
    from everloop.monitoring import performance_by, usual_metric
    from everloop.records import EndpointRecord

    with opened(home) as store:
        store.records.get(EndpointRecord, endpoint)
        metric = metric if metric is not None else usual_metric(store, endpoint)
        found = performance_by(store, endpoint, metric, every, as_if=as_if, labels_after=labels_after)
    periods = found.to_dicts()
    rows = [
        (f"{p['from']:%Y-%m-%d}", p["version"], p["predictions"], p["labelled"], p["value"], p["low"], p["high"])
        for p in periods
    ]
    columns = ("from", "version", "predictions", "labelled", metric, "low", "high")
    title = f"{metric} of '{endpoint}'" + (f", as if {as_if} had answered" if as_if else "")
    emit(periods, json, lambda: table(title, columns, rows, empty="No predictions yet."))


@app.command()
def drift(
    endpoint: str,
    window: Annotated[
        str | None, typer.Option(help="Look now, at answers of this long before the last one: 1d, 12h.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="MODEL@VERSION. Default: the endpoint's champion.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Each subject's distance from the training data: in the newest watched window, or in all answers now.

    Where a loop watches the endpoint, its newest window is shown. Otherwise, or with --window or --version, the answers
    are compared now, and nothing is kept.
    """
    from everloop.monitoring import report_drift
    from everloop.records import EndpointRecord, Finding
    from everloop.stores.durations import parse_duration

    span = None if window is None else parse_duration(window)
    with opened(home) as store:
        store.records.get(EndpointRecord, endpoint)
        newest = store.records.find(
            Finding, ("endpoint", "=", endpoint), ("kind", "=", "drift"), ("subject", "=", "window"),
            order="-id", limit=1,
        )  # fmt: skip
        watched = bool(newest) and "subjects" in newest[0].evidence and window is None and version is None
        look = None if watched else report_drift(store, endpoint, version=version, window=span)
    columns = ("subject", "PSI", "verdict")
    if look is None:
        subjects = newest[0].evidence["subjects"]
        rows = [(name, *(seen.get(field) for field in ("psi", "verdict"))) for name, seen in subjects.items()]
        title = f"Drift of '{endpoint}', {newest[0].window_from:%Y-%m-%d} to {newest[0].window_to:%Y-%m-%d}"
        emit(newest[0], json, lambda: table(title, columns, rows, empty="No subject can be compared."))
        return
    rows = [(shift.subject, shift.psi, shift.verdict) for shift in look.shifts]
    told = {
        "endpoint": endpoint, "version": look.version, "window_from": look.window_from, "window_to": look.window_to,
        "rows": look.rows, "reference_rows": look.reference_rows, "notice": look.notice,
        "subjects": {shift.subject: {"psi": shift.psi, "limit": shift.limit, "verdict": shift.verdict}
                     for shift in look.shifts},
    }  # fmt: skip
    if look.notice is not None:
        messages().print(look.notice, markup=False)
    title = f"Drift of '{endpoint}' ({look.version}), {look.rows:,} answers against {look.reference_rows:,} rows"
    emit(told, json, lambda: table(title, columns, rows, empty="No subject can be compared."))


@app.command()
def baseline(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION or MODEL@ALIAS.")],
    file: Annotated[str, typer.Argument(help="The rows that it was trained on: csv, parquet, json lines or arrow.")],
    time: Annotated[
        str | None, typer.Option(help="The time's column: seasons of the training data then count as noise.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Keep what a version's drift is measured against, made from the rows that it was trained on."""
    from everloop.data import read
    from everloop.errors import DataError
    from everloop.monitoring import build_baseline, keep_baseline
    from everloop.monitoring.drift_report import frame_for
    from everloop.packages.signature import Signature
    from everloop.registry import get_version

    rows = read(str(Path(file).absolute())).collect()
    with opened(home) as store:
        found = get_version(store, version)
        inputs = frame_for(Signature.from_json(found.signature), rows)
        if not inputs.width:
            raise DataError(
                f"'{file}' has none of the inputs of '{found.key}'.", help=f"It has: {', '.join(rows.columns)}"
            )
        whole = inputs if time is None or time in inputs.columns else inputs.with_columns(rows[time])
        made = build_baseline(whole, inputs.columns, time=time)
        keep_baseline(store, found.key, made)
    told = {"version": found.key, "rows": made.rows, "watched": list(made.bins), "skipped": made.skipped}
    emit(told, json, lambda: say(f"{made.rows:,} rows are the baseline of {found.key}; {len(made.bins)} inputs"))
