"""`everloop monitor run`: check what is due in a project, or compare plain tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, Home, ProjectFolder, count, emit, messages, say, table
from everloop.cli.table_options import options_advised, print_notes, reads_tables

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl

    from everloop.monitoring.reports.monitoring_report import MonitoringReport
    from everloop.records import Finding, Incident

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Monitor endpoints and tables: incidents, drift, performance."
)

FOUND = 1
"""Exit code if an alarm is open, as of `everloop data check` if rows break the contract."""
_SHOWN = 20


@app.command()
@reads_tables
def run(
    loop: Annotated[str | None, typer.Argument(help="Check only this loop of the project. Default: all.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Table with the rows that are right: a file, glob or URL, or a database URL.")
    ] = None,
    current: Annotated[str | None, typer.Option(help="Table with the rows to judge.")] = None,
    log: Annotated[
        str | None,
        typer.Option(help="One table instead of two, such as the log of an endpoint served elsewhere; with --split."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --log: rows before this time are the reference, such as 2026-03-01.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column with the labels.")] = None,
    prediction: Annotated[
        str | None, typer.Option(help="Column with the predicted probability, class or number.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Column with the time of each row. Without it, all rows are compared at once.")
    ] = None,
    every: Annotated[str, typer.Option(help="With --time: length of a window, such as 1h, 1d or 1w.")] = "1d",
    budget: Annotated[float, typer.Option(help="Incidents a month that you tolerate if nothing has changed.")] = 1.0,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Columns to monitor. Default: all of the reference.")
    ] = None,
    season: Annotated[
        list[str] | None,
        typer.Option(
            help="With --time: a season of the data, such as 1y, month or 28d. Smooth changes within it are expected."
            " Repeat the option for several."
        ),
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Also measure how all columns together differ; takes some seconds.")
    ] = False,
    reference_query: Annotated[
        str | None, typer.Option(help="SELECT statement to run if the reference is a database.")
    ] = None,
    current_query: Annotated[
        str | None, typer.Option(help="SELECT statement to run if the current table or the log is a database.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="HTML report to write.")] = None,
    *,
    reading: dict[str, Any],
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Check the windows that are due in a project, or compare plain tables.

    In a project, every closed window of its endpoints that was not checked yet is checked, and messages about incidents
    are sent. With --reference and --current, or with --log, two tables are compared; that needs no project.

    The exit code is 1 if an alarm is open, else 0.
    """
    from everloop.errors import UsageError

    tables = {"--reference": reference, "--current": current, "--log": log}
    given = [name for name, value in tables.items() if value is not None]
    if not given:
        options = {"--target": target, "--prediction": prediction, "--time": time, "--split": split, "--html": html,
                   "--season": season}  # fmt: skip
        unused = [name for name, value in options.items() if value is not None]
        if unused:
            raise UsageError(
                f"{unused[0]} needs tables.", help="Name them: everloop monitor run --reference A --current B"
            )
        _run_watches(loop, project, home, json)
        return
    if given not in (["--reference", "--current"], ["--log"]):
        raise UsageError(
            f"{' and '.join(given)} cannot be used like this.",
            help="Pass --reference A and --current B, or --log TABLE with --time COLUMN and --split TIME.",
        )
    if loop is not None:
        raise UsageError(f"The loop '{loop}' has nothing to do with tables.", help="Leave one of them out.")
    if log is not None and (split is None or time is None):
        raise UsageError(
            "--log needs --time and --split, to tell reference and current rows apart.",
            help="For example: --log log.parquet --time sent_at --split 2026-03-01",
        )
    if log is None and split is not None:
        raise UsageError("--split needs --log.", help="With --reference and --current, leave it out.")
    report = _compare(
        reference=reference, current=current, log=log, split=split, target=target, prediction=prediction, time=time,
        every=every, budget=budget, columns=columns, season=season or [], joint=joint,
        queries=(reference_query, current_query), reading=reading,
    )  # fmt: skip
    if html is not None:
        from everloop.monitoring.reports.report_html import monitoring_page

        _write(html, monitoring_page(report))
    result = {**report.to_json(), **({"html": str(html)} if html is not None else {})}
    emit(result, json, lambda: _draw(report, html))
    if report.open_alarms:
        raise typer.Exit(FOUND)


def _compare(
    *,
    reference: str | None,
    current: str | None,
    log: str | None,
    split: str | None,
    target: str | None,
    prediction: str | None,
    time: str | None,
    every: str,
    budget: float,
    columns: str | None,
    season: list[str],
    joint: bool,
    queries: tuple[str | None, str | None],
    reading: dict[str, Any],
) -> MonitoringReport:
    from everloop.data import read
    from everloop.monitoring.reports.table_monitoring import monitor_tables, table_name

    def opened_table(source: str, query: str | None, event_time: str | None = None) -> pl.LazyFrame:
        found = source if "://" in source or source.startswith("everloop:") else str(Path(source).absolute())
        return read(found, query=query, event_time=event_time, **reading)

    with options_advised() as notes:
        if log is not None and split is not None and time is not None:
            import polars as pl

            moment, name = _moment(split), table_name(log, "the log")
            rows = opened_table(log, queries[1], time)
            before, now = rows.filter(pl.col(time) < moment), rows.filter(pl.col(time) >= moment)
            names = f"{name} before {split}", f"{name} from {split}"
        else:
            before, now = opened_table(str(reference), queries[0]), opened_table(str(current), queries[1])
            names = table_name(reference, "the reference"), table_name(current, "the current table")
        report = monitor_tables(
            before,
            now,
            target=target,
            prediction=prediction,
            time=time,
            every=every,
            incidents_per_month=budget,
            columns=None if columns is None else [name.strip() for name in columns.split(",") if name.strip()],
            seasons=season,
            joint=joint,
            names=names,
        )
    print_notes(notes)
    return report


def _moment(text: str) -> datetime:
    from datetime import UTC, datetime

    from everloop.errors import UsageError

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--split '{text}' is not a time.", help="Write a date or a time, such as 2026-03-01 or 2026-03-01T12:00Z."
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _write(path: Path, page: str) -> None:
    from everloop.errors import UsageError

    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"'{path}' cannot be written: {error.strerror}.", help="Choose another path.") from error


def _run_watches(name: str | None, project: Path | None, home: Path | None, as_json: bool) -> None:
    from everloop.cli.loop import store_of
    from everloop.loop import load_project
    from everloop.loop.watches.watch_runs import close_removed, watch
    from everloop.monitoring.incidents.incident_actions import is_muted, list_incidents
    from everloop.monitoring.incidents.notification_channels import read_channels
    from everloop.monitoring.incidents.notifications import send_notifications
    from everloop.prediction_log.log_reading import fold_logs

    loaded = load_project(project)
    loops = list(loaded.loops.values()) if name is None else [loaded.loop(name)]
    with store_of(loaded.folder, home) as store:
        found: list[Finding] = []
        errors = []
        for loop in loops:
            if loop.serve is not None:
                with store.lock(f"tick-{loop.name}"):
                    fold_logs(store, loop.serve.name)
                    more, _, failed = watch(loop, store)
                found += more
                errors += failed
        close_removed(loaded.loops.values(), store)
        sent, unsent = send_notifications(store, read_channels(loaded.folder))
        incidents = list_incidents(store)
        now = store.now()
    for error in (*errors, *unsent):
        messages().print(f"Warning: {error}", markup=False, soft_wrap=True)
    checked = len({(one.endpoint, one.kind, one.window_from, one.window_to) for one in found})
    result = {
        "checked": checked,
        "findings": found,
        "incidents": incidents,
        "messages": [message.id for message in sent],
        "errors": [error.message for error in (*errors, *unsent)],
    }
    emit(result, as_json, lambda: _draw_watches(checked, incidents))
    if any(one.severity == "alarm" and not is_muted(one, now) for one in incidents):
        raise typer.Exit(FOUND)
    if errors:
        raise typer.Exit(errors[0].exit_code)


def _draw_watches(checked: int, incidents: list[Incident]) -> None:
    say(f"Checked {count(checked, 'window')}." if checked else "No window is due.")
    rows = [(one.began_at, one.endpoint, one.severity, one.state, one.title) for one in incidents]
    columns = ("since", "endpoint", "severity", "state", "what")
    table("Open incidents, times in UTC", columns, rows, empty="No incident is open.")


def _draw(report: MonitoringReport, html: Path | None) -> None:
    say(report.headline)
    say(f"Compared {count(report.current_rows, 'row')} of {report.current_name} with {report.reference_rows:,} of "
        f"{report.reference_name}, in {count(len(report.windows), 'window')}.")  # fmt: skip
    if report.incidents:
        rows = [(one.severity, one.state, one.began_at, one.title, one.message) for one in report.incidents[:_SHOWN]]
        table("Incidents", ("severity", "state", "since", "what", "why"), rows, empty="", spare=("why",))
    moved = [column for column in report.columns if column.verdict != "quiet"] or report.columns[:5]
    shown = [(column.name, column.psi, f"{column.strength:.0%}", column.verdict) for column in moved[:_SHOWN]]
    table("Columns that have moved most", ("column", "PSI", "of limit", "verdict"), shown, empty="", wrap=("column",))
    if len(moved) > _SHOWN:
        say(f"And {count(len(moved) - _SHOWN, 'more column')}.")
    for pair in report.pairs[:_SHOWN]:
        say(pair.message())
    for sentence in report.joint.sentences() if report.joint is not None else ():
        say(sentence)
    if report.performance is not None:
        series = report.performance
        last = next((point for point in reversed(series.points) if point.value is not None), None)
        say(f"{series.metric}: {_interval(last)}; in the reference {_interval(series.reference)}.")
    for note in report.quality[:_SHOWN]:
        say(f"Quality: {f'{note.column}: ' if note.column is not None else ''}{note.message}")
    for remark in report.remarks:
        say(remark)
    if report.skipped:
        names = [f"'{name}' ({reason})" for name, reason in list(report.skipped.items())[:_SHOWN]]
        more = len(report.skipped) - len(names)
        say(f"Not compared: {'; '.join(names)}{f'; and {more} more' if more else ''}.")
    say(f"Report: {html}" if html is not None else "For the full report, add: --html report.html")


def _interval(point: Any) -> str:
    if point is None or point.value is None:
        return "unknown"
    return f"{point.value:.3g}" + (f" [{point.low:.3g}, {point.high:.3g}]" if point.low is not None else "")
