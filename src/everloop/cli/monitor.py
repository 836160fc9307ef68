"""`everloop monitor`: what watching has seen."""

from __future__ import annotations

from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, emit, opened, table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Drift, performance, and what was found.")


@app.command()
def ls(
    endpoint: Annotated[str | None, typer.Argument(help="Only this endpoint.")] = None,
    severity: Annotated[str | None, typer.Option(help="info, warning or alarm.")] = None,
    kind: Annotated[str | None, typer.Option(help="drift, performance, quality, …")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 30,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List findings, newest first."""
    from everloop.records import Finding

    asked = {"endpoint": endpoint, "severity": severity, "kind": kind}
    with opened(home) as store:
        where = [(name, "=", value) for name, value in asked.items() if value]
        findings = store.records.find(Finding, *where, order="-id", limit=limit)  # type: ignore[arg-type]
    rows = [(f.window_from, f.window_to, f.version, f.kind, f.severity, f.subject, f.message) for f in findings]
    columns = ("from", "to", "version", "kind", "severity", "subject", "what")
    emit(findings, json, lambda: table("Findings", columns, rows, empty="Nothing found. Watching runs in: everloop up"))


@app.command()
def performance(
    endpoint: str,
    metric: Annotated[str, typer.Option(help="Such as roc_auc.")] = "roc_auc",
    every: Annotated[str, typer.Option(help="The period: 1d, 1w, 1mo, 1q.")] = "1mo",
    as_if: Annotated[
        str | None, typer.Option(help="Score the logged inputs again with this version: MODEL@VERSION.")
    ] = None,
    labels_after: Annotated[str, typer.Option(help="Leave out answers younger than this.")] = "0s",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """The live metric by period: as it was, or as another version would have done on the same questions."""
    from everloop.monitoring import performance_by

    with opened(home) as store:
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
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Each subject's distance from the training data in the newest window."""
    from everloop.records import Finding

    with opened(home) as store:
        newest = store.records.find(
            Finding, ("endpoint", "=", endpoint), ("kind", "=", "drift"), ("subject", "=", "window"),
            order="-id", limit=1,
        )  # fmt: skip
    subjects = newest[0].evidence.get("subjects", {}) if newest else {}
    rows = [(name, *(seen.get(field) for field in ("psi", "verdict"))) for name, seen in subjects.items()]
    title = f"Drift of '{endpoint}'" + (
        f", {newest[0].window_from:%Y-%m-%d} to {newest[0].window_to:%Y-%m-%d}" if newest else ""
    )
    empty = "No window has been looked at yet. Watching runs in: everloop up"
    emit(newest[0] if newest else None, json, lambda: table(title, ("subject", "PSI", "verdict"), rows, empty=empty))
