"""`everloop runs`: search, compare, plot, archive, delete, export and import runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import (
    AsJson,
    Home,
    MaxBytes,
    Yes,
    cell,
    console,
    count,
    emit,
    facts,
    main_metrics,
    messages,
    opened,
    say,
    short,
    table,
)
from everloop.errors import NotFoundError, UsageError
from everloop.stores.printable import printable, shell_line

if TYPE_CHECKING:
    from everloop.records import Run

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Find, compare and manage runs.")

RunRef = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run, or a unique prefix of it.")]
RunRefs = Annotated[list[str], typer.Argument(metavar="RUN…", help="Ids of runs, or unique prefixes of them.")]
_PLOT_HEIGHT = 12
_PLOT_WIDTH = 100
_CURVES = 6


@app.command()
def ls(
    where: Annotated[
        str | None,
        typer.Option("--where", "-w", help="Filter, such as 'metrics.auc > 0.9 and not tags.team = \"b\"'."),
    ] = None,
    order_by: Annotated[
        list[str] | None,
        typer.Option(
            "--order-by",
            "-o",
            help="Field to sort by, with '-' in front for descending; repeatable. Default: newest first.",
        ),
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Fields to show, such as name,metrics.auc,params.lr.")] = None,
    loop: Annotated[str | None, typer.Option(help="Only runs of this loop.")] = None,
    state: Annotated[
        str | None,
        typer.Option(help="Only runs in this state: scheduled, running, finished, failed, interrupted or lost."),
    ] = None,
    archived: Annotated[bool, typer.Option("--archived", help="Show archived runs, too.")] = False,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Show the deleted runs that `runs restore` can bring back.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of runs to show.")] = 20,
    after: Annotated[
        str | None, typer.Option(help="Continue after this cursor, which the previous page printed at its end.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List runs, newest first."""
    from everloop.tracking.lifecycle import deleted_runs
    from everloop.tracking.search.run_filters import And, Compare, Expression, parse_filter
    from everloop.tracking.search.run_search import search_runs

    with opened(home) as store:
        if deleted:
            found = deleted_runs(store)[:limit]
            emit(found, json, lambda: _draw_runs("Deleted runs", found, "There are no deleted runs."))
            return
        filters: list[Expression] = [parse_filter(where, now=store.now())] if where else []
        filters += [Compare((name,), "=", value) for name, value in (("loop", loop), ("state", state)) if value]
        page = search_runs(
            store,
            And(tuple(filters)),
            order_by=order_by or ["-started_at"],
            limit=limit,
            after=after,
            columns=_split(columns) if columns else None,
            include_archived=archived,
        )

    def draw() -> None:
        if columns:
            names = ["id", *(name for name in _split(columns) if name != "id")]
            rows = [[short(row["id"]), *(row[name] for name in names[1:])] for row in page.rows]  # type: ignore[index]
            table("Runs", names, rows, empty="No runs match.")
        else:
            runs: list[Run] = page.rows  # type: ignore[assignment]
            _draw_runs("Runs", runs, "No runs match." if filters else "No runs yet. Start one with: everloop run")

    emit(page.rows, json, draw)
    if page.next:
        messages().print(f"To see more, add: --after {page.next}", soft_wrap=True)


@app.command()
def show(run: RunRef, home: Home = None, json: AsJson = False) -> None:
    """Show a run, and why each of its steps ran or not."""
    from everloop.records import Artifact, StepRun
    from everloop.tracking.lifecycle import find_run

    with opened(home) as store:
        record = find_run(store, run)
        steps = store.records.find(StepRun, ("run", "=", record.id), order="id")
        artifacts = store.records.find(Artifact, ("run", "=", record.id), ("step", "is", None), order="id")

    def draw() -> None:
        source = record.source
        facts(
            f"{record.name} {record.id}",
            [
                ("state", record.state),
                ("trigger", record.trigger),
                ("cause", record.cause.get("evidence")),
                ("parent", record.parent),
                ("started", record.started_at),
                ("seconds", record.seconds),
                ("archived", record.archived_at),
                ("error", record.error),
                ("params", record.params),
                ("metrics", record.metrics),
                ("tags", record.tags),
                ("command", shell_line(source.launch)),
                ("code", source.code),
                ("commit", source.git_commit and source.git_commit + (" (with changes)" if source.git_dirty else "")),
                ("python", source.python),
                ("host", source.host),
            ],
        )
        rows = [(step.name, step.status, f"{step.seconds:.2f}", step.reason) for step in steps]
        table("Steps", ("step", "status", "seconds", "why"), rows, empty="  no steps")
        if artifacts:
            listed = [(one.name, one.type, one.size_bytes, one.digest) for one in artifacts]
            table("Artifacts", ("name", "type", "bytes", "digest"), listed, empty="")

    emit({"run": record, "steps": steps, "artifacts": artifacts}, json, draw)


@app.command()
def diff(runs: RunRefs, home: Home = None, json: AsJson = False) -> None:
    """Compare runs. Shows the parameters, tags, metrics, code, commit and packages that differ."""
    from everloop.tracking.lifecycle import find_run
    from everloop.tracking.search.run_comparison import compare_runs

    with opened(home) as store:
        compared = compare_runs(store, [find_run(store, ref) for ref in runs])
    groups = {name: getattr(compared, name) for name in ("about", "params", "tags", "metrics", "source")}

    def draw() -> None:
        names = [short(run.id) for run in compared.runs]
        for group, values in groups.items():
            rows = [(name, *row) for name, row in values.items()]
            same = compared.same[group]
            if rows:
                table(f"{group} ({same} identical)" if same else group, (group, *names), rows, empty="")
        if not any(groups.values()):
            console().print("The runs do not differ.")

    emit({"runs": [run.id for run in compared.runs], **groups, "same": compared.same}, json, draw)


@app.command("log", hidden=True)
@app.command()
def plot(
    runs: RunRefs,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="Only this metric; repeatable. Default: all.")
    ] = None,
    points: Annotated[
        int, typer.Option(min=6, help="Maximum number of points per curve. Thinning out keeps the peaks.")
    ] = 400,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Plot the metrics of runs in the terminal. There is one plot per metric, with one colour per run."""
    from everloop.tracking.journal.run_folding import read_metrics
    from everloop.tracking.lifecycle import find_run
    from everloop.tracking.metric_history import read_history

    with opened(home) as store:
        found = [find_run(store, ref) for ref in runs[:_CURVES]]
        names = metric or list(
            dict.fromkeys(
                name
                for run in found
                for name in (run.metrics or {point.key: 0 for point in read_metrics(store, run.id)})
            )
        )
        histories = {name: [read_history(store, run, name, points) for run in found] for name in names}
    for name in metric or ():
        if not any(len(one) for one in histories[name]):
            known = ", ".join(dict.fromkeys(known for run in found for known in run.metrics)) or "none"
            raise NotFoundError(f"None of the runs logged the metric '{name}'.", help=f"Their metrics: {known}")
    plain = [
        {"run": run.id, "metric": name, "total": history.total, "step": history.steps.tolist(),
         "value": history.values.tolist()}
        for name, row in histories.items()
        for run, history in zip(found, row, strict=True)
    ]  # fmt: skip
    emit(plain, json, lambda: _draw_histories(found, histories))


@app.command()
def export(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN…]", help="Ids of runs, or unique prefixes. Default: every run of the project."),
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="File to write; its name ends in .zip.")] = Path("runs.zip"),
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Export runs with their steps, metrics and artifacts to one file."""
    from everloop.tracking.lifecycle import find_run
    from everloop.tracking.run_archive import export_runs

    with opened(home) as store:
        done = export_runs(store, [find_run(store, ref) for ref in runs] if runs else None, to)
    size = f"{count(done.runs, 'run')} and {count(done.objects, 'object')}"
    emit(done, json, lambda: console().print(f"Exported {size} → {done.path}", soft_wrap=True))


@app.command(name="import")
def import_(
    source: Annotated[
        str, typer.Argument(help="File from `runs export`, MLflow's SQLite file, or the URL of an MLflow server.")
    ],
    artifacts: Annotated[
        Path | None, typer.Option(help="MLflow's artifact folder. Default: the one beside its SQLite file.")
    ] = None,
    max_bytes: MaxBytes = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Import runs from an exported file, or from MLflow.

    Runs that were imported before are not duplicated.
    """
    from everloop.integrations.mlflow.run_import import import_mlflow
    from everloop.tracking.run_archive import import_runs

    with opened(home, create=True) as store:
        if source.endswith(".zip"):
            done = import_runs(store, source, max_bytes=max_bytes)
        else:
            done = import_mlflow(store, source, artifacts=artifacts)

    def draw() -> None:
        added = count(len(done.added), "run")
        console().print(f"{added} added, {len(done.updated):,} updated, {len(done.known):,} already known.")
        for note in done.notes:
            messages().print(note, markup=False)

    emit(done, json, draw)


@app.command()
def rm(
    runs: RunRefs,
    yes: Yes = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Delete runs with their child runs, steps and artifacts.

    `everloop runs restore` brings them back until `everloop gc` removes them.
    """
    from everloop.tracking.lifecycle import delete_run, family_of, find_run

    with opened(home) as store:
        found = [find_run(store, ref) for ref in dict.fromkeys(runs)]
        if not yes:
            if json or not sys.stdin.isatty():
                raise UsageError("Deleting needs a confirmation, and this is not a terminal.", help="Add --yes.")
            children = sum(len(family_of(store, run.id).children) for run in found)
            with_them = f" with {count(children, 'child run')}" if children else ""
            names = ", ".join(printable(run.name, breaks=False) for run in found)
            typer.confirm(f"Delete {names}{with_them}?", abort=True, err=True)
        families = [delete_run(store, run.id) for run in found]
    ids = [run.id for family in families for run in family.runs]
    message = f"Deleted {count(len(ids), 'run')}. Undo with: everloop runs restore {found[0].id}"
    emit({"deleted": ids}, json, lambda: console().print(message, soft_wrap=True))


@app.command()
def restore(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…", help="Ids of deleted runs, or prefixes of them. See: everloop runs ls --deleted"
        ),
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Restore deleted runs. Everything that was deleted along with them is restored, too."""
    from everloop.tracking.lifecycle import deleted_runs, restore_run

    with opened(home) as store:
        deleted = [run.id for run in deleted_runs(store)]
        ids = [next((run for run in deleted if run.startswith(ref)), ref) for ref in runs]
        restored = [restore_run(store, run) for run in ids]
    emit(restored, json, lambda: _draw_runs("Restored", restored, ""))


@app.command()
def archive(
    runs: RunRefs,
    undo: Annotated[bool, typer.Option("--undo", help="Unarchive the runs.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Archive runs. Lists and searches leave them out, and nothing is deleted."""
    from everloop.tracking.lifecycle import archive_run, find_run, unarchive_run

    with opened(home) as store:
        change = unarchive_run if undo else archive_run
        done = [change(store, find_run(store, ref).id) for ref in runs]
    emit(done, json, lambda: _draw_runs("Unarchived" if undo else "Archived", done, ""))


@app.command()
def queue(
    all_: Annotated[bool, typer.Option("--all", help="Show requests that have ended, too.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List the runs that triggers have requested: in progress or waiting for a runner."""
    from everloop.loop.worker.run_queue import active_runs, recent_runs

    with opened(home) as store:
        found = recent_runs(store) if all_ else active_runs(store)
    rows = [
        (short(q.id), q.loop, q.state, f"{q.attempts} of {q.most_attempts}", q.created_at, q.error or q.trigger)
        for q in found
    ]
    columns = ("id", "loop", "state", "attempts", "requested", "why")
    emit(found, json, lambda: table("Queued runs", columns, rows, empty="No run is queued."))


@app.command()
def cancel(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a loop, or the id of a queued run or a unique prefix of it.")
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Cancel a queued run, or stop one that a runner has started. Finished steps are kept."""
    from everloop.loop.worker.run_queue import cancel_run

    with opened(home) as store:
        cancelled = cancel_run(store, run)
    waits = cancelled.state == "running"
    text = f"The runner stops the run of '{cancelled.loop}'." if waits else f"Cancelled the run of '{cancelled.loop}'."
    emit(cancelled, json, lambda: say(text))


def _split(columns: str) -> list[str]:
    return [name.strip() for name in columns.split(",") if name.strip()]


def _draw_runs(title: str, runs: list[Run], empty: str) -> None:
    rows = [
        (
            short(run.id),
            run.name,
            run.state,
            run.trigger,
            run.started_at,
            run.seconds,
            main_metrics(run.metrics),
        )
        for run in runs
    ]
    table(title, ("id", "name", "state", "trigger", "started", "seconds", "metrics"), rows, empty=empty)


def _draw_histories(runs: list[Run], histories: dict[str, list[Any]]) -> None:
    from rich.markup import escape

    from everloop.cli.plot import COLOURS, draw_curves

    if not histories:
        console().print("The runs logged no metrics.")
    width = min(console().width, _PLOT_WIDTH)
    for name, row in histories.items():
        console().print(f"[bold]{escape(name)}[/bold]")
        for line in draw_curves([(one.steps.tolist(), one.values.tolist()) for one in row], width, _PLOT_HEIGHT):
            console().print(line)
        for number, (run, one) in enumerate(zip(runs, row, strict=True)):
            last = cell(float(one.values[-1])) if len(one) else "-"
            colour = COLOURS[number % len(COLOURS)]
            points = count(one.total, "point")
            console().print(f"  [{colour}]●[/] {escape(run.name)} {short(run.id)}  {points}, last {last}")
