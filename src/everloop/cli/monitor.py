"""`everloop monitor findings|drift|baseline`: what was measured at endpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from everloop.cli.monitor_performance import app as app
from everloop.cli.output import AsJson, EndpointName, Home, OnlyEndpoint, count, emit, messages, opened, say, table


@app.command()
def findings(
    endpoint: OnlyEndpoint = None,
    severity: Annotated[
        str | None, typer.Option(help="Show only this severity: info, warning or alarm. Default: all.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Show only this kind: drift, performance, quality, freshness or latency. Default: all."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of findings to show.")] = 30,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List monitoring findings, newest first."""
    from everloop.errors import UsageError
    from everloop.records import EndpointRecord, Finding, FindingKind, Severity

    filters = {"endpoint": endpoint, "severity": severity, "kind": kind}
    for name, choices in (("severity", get_args(Severity)), ("kind", get_args(FindingKind))):
        if filters[name] is not None and filters[name] not in choices:
            raise UsageError(f"--{name} '{filters[name]}' is unknown.", help=f"Choose one of: {', '.join(choices)}")
    with opened(home) as store:
        if endpoint is not None:
            store.records.get(EndpointRecord, endpoint)
        where = [(name, "=", value) for name, value in filters.items() if value]
        found = store.records.find(Finding, *where, order="-id", limit=limit)  # type: ignore[arg-type]
    rows = [(f.window_from, f.window_to, f.version, f.kind, f.severity, f.subject, f.message) for f in found]
    columns = ("from", "to", "version", "kind", "severity", "subject", "what")
    empty = "No findings. Endpoints are monitored while this command runs: everloop up"
    emit(found, json, lambda: table("Findings", columns, rows, empty=empty))


@app.command()
def drift(
    endpoint: EndpointName,
    window: Annotated[
        str | None,
        typer.Option(
            help="Compare the predictions of this span before the newest one, such as 1d or 12h."
            " Default: the newest monitored window, else all predictions."
        ),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Compare with this MODEL@VERSION. Default: the endpoint's champion.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show how far an endpoint's data has drifted from training.

    If a loop monitors the endpoint, its newest window is shown. Otherwise, or with --window or --version, the logged
    predictions are compared now and nothing is stored.
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
        report = None if watched else report_drift(store, endpoint, version=version, window=span)
    columns = ("subject", "PSI", "verdict")
    if report is None:
        subjects = newest[0].evidence["subjects"]
        rows = [(name, *(seen.get(field) for field in ("psi", "verdict"))) for name, seen in subjects.items()]
        title = f"Drift of '{endpoint}', {newest[0].window_from:%Y-%m-%d} to {newest[0].window_to:%Y-%m-%d}"
        emit(newest[0], json, lambda: table(title, columns, rows, empty="No subject can be compared."))
        return
    rows = [(shift.subject, shift.psi, shift.verdict) for shift in report.shifts]
    result = {
        "endpoint": endpoint, "version": report.version,
        "window_from": report.window_from, "window_to": report.window_to,
        "rows": report.rows, "reference_rows": report.reference_rows, "notice": report.notice,
        "subjects": {shift.subject: {"psi": shift.psi, "p_value": shift.p_value, "verdict": shift.verdict}
                     for shift in report.shifts},
    }  # fmt: skip
    if report.notice is not None:
        messages().print(report.notice, markup=False)
    compared = f"{count(report.rows, 'prediction')} against {count(report.reference_rows, 'row')}"
    title = f"Drift of '{endpoint}' ({report.version}), {compared}"
    emit(result, json, lambda: table(title, columns, rows, empty="No subject can be compared."))


@app.command()
def baseline(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION or MODEL@ALIAS.")],
    file: Annotated[
        str, typer.Argument(help="Table of the rows it was trained on: CSV, Parquet, JSON lines or Arrow.")
    ],
    time: Annotated[
        str | None,
        typer.Option(
            help="Column with the time of each row; seasonal changes of the training data then count as noise."
        ),
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Build a version's drift baseline from its training rows."""
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
        with_time = inputs if time is None or time in inputs.columns else inputs.with_columns(rows[time])
        made = build_baseline(with_time, inputs.columns, time=time)
        keep_baseline(store, found.key, made)
    result = {"version": found.key, "rows": made.rows, "watched": list(made.bins), "skipped": made.skipped}
    size = f"{count(made.rows, 'row')}, {count(len(made.bins), 'input')}"
    emit(result, json, lambda: say(f"Stored the baseline of {found.key}: {size}"))
