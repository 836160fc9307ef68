"""`everloop data`: snapshots of datasets, their profiles and their contracts."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, Home, Yes, console, count, emit, facts, messages, opened, table
from everloop.cli.table_options import (
    options_advised,
    print_notes,
    reads_tables,
)
from everloop.errors import AlreadyExistsError, NotFoundError, ProjectError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.data import ReadProgress
    from everloop.loop.contract_acceptance import ContractProposal
    from everloop.records import Snapshot

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Manage dataset snapshots and data contracts.")

SnapshotName = Annotated[
    str, typer.Argument(help="DATASET@VERSION, DATASET for the newest, or DATASET@TIME for the newest at that time.")
]


@app.command()
def ls(
    dataset: Annotated[str | None, typer.Argument(help="Show only this dataset. Default: all.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List snapshots, newest first."""
    from everloop.records import Snapshot

    with opened(home) as store:
        where = [("dataset", "=", dataset)] if dataset else []
        snapshots = store.records.find(Snapshot, *where, order="-created_at")  # type: ignore[arg-type]
        if dataset and not snapshots:
            known = sorted({one.dataset for one in store.records.find(Snapshot)})
            raise NotFoundError(
                f"There is no dataset '{dataset}'; datasets: {', '.join(known) or 'none'}.",
                help="See: everloop data ls",
            )
    rows = [(s.key, s.rows, len(s.columns), s.starts_at, s.ends_at, s.digest[:19]) for s in snapshots]
    columns = ("snapshot", "rows", "columns", "from", "to", "digest")
    empty = "No snapshots yet. Add one with: everloop data add FILE DATASET"
    emit(snapshots, json, lambda: table("Snapshots", columns, rows, empty=empty))


@app.command()
def show(snapshot: SnapshotName, home: Home = None, json: AsJson = False) -> None:
    """Show a snapshot: its sources, columns and statistics."""
    from everloop.data.snapshots.file_folders import is_folder
    from everloop.data.sources.snapshot_sources import find_version

    with opened(home) as store:
        record = find_version(snapshot, store)

    def draw() -> None:
        facts(
            record.key,
            [
                ("digest", record.digest),
                ("kind", "folder of files" if is_folder(record) else "table"),
                ("rows", record.rows),
                ("target", record.target),
                ("time", record.time),
                ("key", record.entity),
                ("from", record.starts_at),
                ("to", record.ends_at),
                ("contract", record.contract),
                ("run", record.run),
                ("sources", [_source(source) for source in record.sources]),
                ("notes", [note for source in record.sources for note in source.get("notes", ())]),
            ],
        )
        rows = [(name, kind, *_summary(record.stats.get(name, {}))) for name, kind in record.columns.items()]
        table("Columns", ("column", "type", "nulls", "distinct", "min", "max"), rows, empty="  no columns")

    emit(record, json, draw)


@app.command()
def diff(before: SnapshotName, after: SnapshotName, home: Home = None, json: AsJson = False) -> None:
    """Compare two snapshots.

    Shows rows added, removed and changed by key, schema changes and shifted distributions.
    """
    from everloop.data import diff_snapshots
    from everloop.data.sources.snapshot_sources import find_version

    with opened(home) as store:
        first, second = (find_version(ref, store) for ref in (before, after))
        found = diff_snapshots(first, second, store)

    def draw() -> None:
        summary = {name: value for name, value in asdict(found).items() if name != "shifts"}
        facts(f"{first.key} → {second.key}", summary.items())
        rows = [
            (name, shift.kind, shift.distance, *shift.nulls, shift.before, shift.after)
            for name, shift in sorted(found.shifts.items(), key=lambda pair: -pair[1].distance)
        ]
        columns = ("column", "measure", "distance", "nulls before", "nulls after", "before", "after")
        table("Shifted distributions", columns, rows, empty="  No distribution shifted.")

    emit(found, json, draw)


@app.command()
@reads_tables
def add(
    source: Annotated[str, typer.Argument(help="A file, glob, URL or folder, or a database URL with --query.")],
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    time: Annotated[str | None, typer.Option(help="Column with the time of each row's event.")] = None,
    key: Annotated[str | None, typer.Option(help="Column that identifies a row; its values must be unique.")] = None,
    query: Annotated[str | None, typer.Option(help="SELECT statement to run if the source is a database.")] = None,
    files: Annotated[bool, typer.Option("--files", help="Store the files of a folder unchanged.")] = False,
    *,
    reading: dict[str, Any],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Add a table or a folder of files to a dataset.

    It becomes the next version, unless its content is unchanged.
    """
    from everloop.data import add_folder, add_table

    with opened(home, create=True) as store, _progress_bars(), options_advised() as notes:
        if files:
            if target or time or key or query or reading:
                raise UsageError(
                    "--files stores files unchanged, so options about columns or about reading do not apply.",
                    help="Give --files alone.",
                )
            added = add_folder(_absolute(source), dataset, store)
        else:
            added = add_table(
                _absolute(source), dataset, store, target=target, time=time, key=key, query=query, **reading
            )
    print_notes(notes)
    emit(added, json, lambda: console().print(f"{added.key}: {_size(added)}", soft_wrap=True))


@app.command()
def export(
    snapshot: SnapshotName,
    path: Annotated[
        Path, typer.Argument(help="New .parquet, .csv, .jsonl or .arrow file, or a new folder for a snapshot of files.")
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Export a snapshot's rows to a file, or its files to a folder."""
    from everloop.data import export_folder, export_table
    from everloop.data.snapshots.file_folders import is_folder
    from everloop.data.sources.snapshot_sources import find_version

    with opened(home) as store:
        record = find_version(snapshot, store)
        (export_folder if is_folder(record) else export_table)(record, store, path)
    result = {"snapshot": record.key, "rows": record.rows, "path": path}
    emit(result, json, lambda: console().print(f"{record.key}: {_size(record)} → {path}", soft_wrap=True))


@app.command()
def rm(
    snapshots: Annotated[
        list[str], typer.Argument(metavar="SNAPSHOT…", help="DATASET@VERSION, or DATASET for all of its versions.")
    ],
    yes: Yes = False,
    force: Annotated[bool, typer.Option("--force", help="Delete snapshots that a model was trained on, too.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Delete snapshots. `everloop data restore` brings them back until `everloop gc` removes them."""
    from everloop.data import delete_snapshots

    with opened(home) as store:
        if not yes:
            if json or not sys.stdin.isatty():
                raise UsageError("Deleting needs a confirmation, and this is not a terminal.", help="Add --yes.")
            typer.confirm(f"Delete {', '.join(snapshots)}?", abort=True, err=True)
        deleted = delete_snapshots(store, snapshots, force=force)
    keys = [snapshot.key for snapshot in deleted]
    message = f"Deleted: {', '.join(keys)}. Undo with: everloop data restore {keys[0]}"
    emit({"deleted": keys}, json, lambda: console().print(message, soft_wrap=True))


@app.command()
def restore(
    snapshot: Annotated[str, typer.Argument(help="DATASET@VERSION of the deleted snapshot.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Restore a deleted snapshot."""
    from everloop.data import restore_snapshot

    with opened(home) as store:
        record = restore_snapshot(store, snapshot)
    emit(record, json, lambda: console().print(f"{record.key} is restored."))


@app.command()
@reads_tables
def profile(
    source: Annotated[
        str, typer.Argument(help="DATASET@VERSION or DATASET, or a file, glob or URL, which is not added to the store.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file to write.")] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict; files only.")] = None,
    time: Annotated[str | None, typer.Option(help="Column with the time of each row's event; files only.")] = None,
    key: Annotated[str | None, typer.Option(help="Column that identifies a row; files only.")] = None,
    *,
    reading: dict[str, Any],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Profile a table. Shows distributions, correlations, gaps, and what could mislead a model."""
    from everloop.data import profile_page, profile_snapshot, profile_table, read
    from everloop.data.sources.snapshot_sources import find_version

    is_snapshot = not (reading or _is_file(source))
    if is_snapshot and (target or time or key):
        raise UsageError(
            f"'{source}' is a snapshot, which already has a target, time and key.",
            help="Leave out --target, --time and --key.",
        )
    with opened(home, create=not is_snapshot) as store, options_advised() as notes:
        if is_snapshot:
            found = profile_snapshot(find_version(source, store), store)
            name = found.snapshot.key
        else:
            read_as = reading if time is None else {**reading, "event_time": time}
            frame = read(_absolute(source), **read_as)
            found, name = profile_table(frame, source, store, target=target, time=time, key=key), source
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(profile_page(found), encoding="utf-8")

    def draw() -> None:
        rows = [(suspect.kind, suspect.column, suspect.message) for suspect in found.suspects]
        table(
            f"{name}: what could mislead a model",
            ("kind", "column", "what"),
            rows,
            empty=f"{name}: nothing suspicious.",
        )
        console().print(f"Written: {output}" if output else "For the full report, add: --output page.html")

    print_notes(notes)
    emit(
        {
            "snapshot": name,
            "notes": [str(note) for note in notes],
            "suspects": found.suspects,
            "columns": found.columns,
            "output": output,
        },
        json,
        draw,
    )


@app.command()
def contract(
    dataset: Annotated[str, typer.Argument(help="DATASET for its newest snapshot, or DATASET@VERSION.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New TOML file to write.")] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Accept a deliberate change: update the contract to match today's data.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="Edited TOML file to save as the newest contract of the dataset.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --accept: do not ask for confirmation.")] = False,
    project: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="With --accept: project folder. Default: the nearest one, from here upwards, with a loop.py.",
        ),
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Infer a data contract from a snapshot.

    It is printed as TOML, ready to edit and to use with `data check`.

    With --accept, the contract of the project's dataset is updated to match today's data instead. The differences are
    shown first, and the change is recorded as an event.

    With --save, an edited contract is stored as the newest version instead, and the change is recorded as an event.
    """
    if save is not None:
        if accept or output is not None:
            raise UsageError("--save stores an edited contract.", help="Leave out --accept and --output.")
        _save_contract(dataset, save, home, json=json)
        return
    if accept:
        if output is not None:
            raise UsageError("--accept writes the project's own contract file.", help="Leave out --output.")
        _accept(dataset, project, home, yes=yes, json=json)
        return
    from everloop.data import contract_to_toml, infer_contract, load_snapshot
    from everloop.data.sources.snapshot_sources import find_version

    with opened(home) as store:
        record = find_version(dataset, store)
        found = infer_contract(
            load_snapshot(record, store),
            record.dataset,
            store,
            target=record.target,
            time=record.time,
            key=record.entity,
            now=store.now(),
        )
    text = contract_to_toml(found)
    if output is not None:
        if output.exists():
            raise AlreadyExistsError(
                f"'{output}' already exists and may have been edited, so it is not overwritten.",
                help="Choose a new file name.",
            )
        output.write_text(text, encoding="utf-8")
    emit(found, json, lambda: console().print(text if output is None else f"Written: {output}", markup=False))


def _save_contract(dataset: str, file: Path, home: Path | None, *, json: bool) -> None:
    from everloop.data.contracts.contract_editing import edit_contract

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"'{file}' cannot be read: {error}.", help="Name a TOML file in UTF-8.") from error
    with opened(home) as store:
        saved, _ = edit_contract(store, dataset, text)
    emit(saved, json, lambda: console().print(f"{saved.key} is the contract from now on.", markup=False))


def _accept(dataset: str, project: Path | None, home: Path | None, *, yes: bool, json: bool) -> None:
    from everloop.loop.contract_acceptance import accept_contract, find_loop, propose_contract
    from everloop.loop.project import load_project
    from everloop.loop.project_folder import FILE, enter_folder, find_folder

    try:
        folder = find_folder(project)
    except ProjectError:
        if project is not None:
            raise
        folder = None  # the dataset does not belong to a loop
    loops = load_project(folder).loops if folder is not None else {}
    if folder is not None:
        home = enter_folder(folder, home)
    with opened(home) as store:
        loop = find_loop(store, loops, dataset)
        proposal = propose_contract(store, dataset, loop)
        if not json:
            _draw_changes(proposal)
        if proposal.changes and not (yes or json) and sys.stdin.isatty():
            typer.confirm(f"Apply these changes to the contract of '{dataset}'?", abort=True, err=True)
        accepted, path = accept_contract(store, proposal)
    result = {"contract": accepted.key, "before": proposal.before, "changes": proposal.changes, "path": path}

    def draw() -> None:
        if proposal.changes or proposal.before is None:
            where = f" in {path}" if path is not None else ""
            console().print(f"{accepted.key} is the contract from now on{where}.", soft_wrap=True)
            if path is None and proposal.declared is not None:
                console().print(f'Declare it in {FILE}: contract="{accepted.key}"', soft_wrap=True, markup=False)
            elif loop is not None:
                console().print("Continue with: everloop run")

    emit(result, json, draw)


def _draw_changes(proposal: ContractProposal) -> None:
    if proposal.before is None:
        console().print(f"'{proposal.contract.dataset}' has no contract yet, so one is inferred from today's data.")
        return
    rows = [(change.kind, change.column, change.message) for change in proposal.changes]
    empty = f"The data conform to {proposal.before}: there is nothing to accept."
    table(f"Changes from {proposal.before} to today's data", ("change", "column", "what"), rows, empty=empty)


@app.command()
@reads_tables
def check(
    source: Annotated[str, typer.Argument(help="A file, glob or URL, or everloop:DATASET@VERSION for a snapshot.")],
    contract: Annotated[str, typer.Argument(help="Contract: a TOML file, or DATASET@VERSION.")],
    bad: Annotated[
        Path | None, typer.Option("--bad", help="Parquet file for the bad rows, with the rules that each one breaks.")
    ] = None,
    *,
    reading: dict[str, Any],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Check a table against a contract. Exit code 1 if it violates the contract."""
    from everloop.data import check_contract, read
    from everloop.data.contracts.contract_toml import load_contract
    from everloop.records import Contract

    with opened(home, create=True) as store, options_advised() as notes:
        path = Path(contract)
        if path.suffix == ".toml":
            if not path.is_file():
                raise NotFoundError(
                    f"There is no contract file '{contract}'.",
                    help=f"Create it with: everloop data contract DATASET --output {contract}",
                )
            expected = load_contract(path, store)
        else:
            expected = store.records.get(Contract, contract)
        report = check_contract(read(_absolute(source), **reading), expected, now=store.now())
        if bad is not None and report.bad_rows:
            report.bad.collect().write_parquet(bad)
    print_notes(notes)
    result = {
        "contract": expected.key,
        "source": source,
        "notes": [str(note) for note in notes],
        "rows": report.rows,
        "bad_rows": report.bad_rows,
        "violations": report.violations,
    }

    def draw() -> None:
        rows = [(one.severity, one.column, one.rule, one.rows, one.message) for one in report.violations]
        empty = f"{source} conforms to {expected.key}."
        table(f"Violations in {source}", ("severity", "column", "rule", "rows", "what"), rows, empty=empty)

    emit(result, json, draw)
    if not report.passed:
        raise typer.Exit(1)


@contextmanager
def _progress_bars() -> Iterator[None]:
    """Show progress bars for reading, on standard error, if it is a terminal."""
    if not messages().is_terminal:
        yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, TextColumn, TimeRemainingColumn

    from everloop.data import watch_progress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=messages(), transient=True) as bars:
        tasks: dict[tuple[str, str], Any] = {}

        def draw(news: ReadProgress) -> None:
            name = (news.what, news.name)
            if name not in tasks:
                tasks[name] = bars.add_task(f"{news.what} {news.name} ({news.unit})", total=news.total)
            bars.update(tasks[name], completed=news.done, total=news.total)

        with watch_progress(draw):
            yield


def _absolute(source: str) -> str:
    """Make a path absolute, so that it does not depend on the current folder. URLs and snapshots are left alone."""
    return source if "://" in source or source.startswith("everloop:") else str(Path(source).absolute())


def _is_file(source: str) -> bool:
    """Whether `source` means a file, a glob or a URL rather than a snapshot."""
    from everloop.data.sources.snapshot_sources import is_version

    if "://" in source or any(letter in source for letter in "*?[/") or is_version(source):
        return True
    return Path(source).is_file() or ("@" not in source and "." in source)


def _size(snapshot: Snapshot) -> str:
    from everloop.data.snapshots.file_folders import is_folder

    return count(snapshot.rows, "file" if is_folder(snapshot) else "row")


def _source(source: dict[str, Any]) -> str:
    spec = source.get("spec", {})
    return f"{source.get('kind')} {', '.join(str(value) for value in spec.values())}"


def _summary(stats: dict[str, object]) -> tuple[object, object, object, object]:
    return stats.get("nulls"), stats.get("distinct"), stats.get("min"), stats.get("max")
