"""`everloop data`: dataset versions, by hand and to look at."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, Home, console, emit, facts, messages, opened, table
from everloop.cli.table_options import (
    CommentPrefix,
    DecimalComma,
    DropUnnamed,
    Encoding,
    Format,
    NullValues,
    Schema,
    Separator,
    SkipRows,
    options_advised,
    print_notes,
    reading_options,
)
from everloop.errors import AlreadyExistsError, NotFoundError, ProjectError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.data import ReadProgress
    from everloop.loop.contract_acceptance import ContractProposal
    from everloop.records import Snapshot

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Dataset versions: what a model learned from.")


@app.command()
def ls(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List snapshots, newest first."""
    from everloop.records import Snapshot

    with opened(home) as store:
        asked = [("dataset", "=", dataset)] if dataset else []
        snapshots = store.records.find(Snapshot, *asked, order="-created_at")  # type: ignore[arg-type]
    rows = [(s.key, s.rows, len(s.columns), s.starts_at, s.ends_at, s.digest[:19]) for s in snapshots]
    columns = ("snapshot", "rows", "columns", "from", "to", "digest")
    emit(snapshots, json, lambda: table("Snapshots", columns, rows, empty="No snapshots yet. Try: everloop data add"))


@app.command()
def show(snapshot: str, home: Home = None, json: AsJson = False) -> None:
    """Show one snapshot: DATASET@VERSION, DATASET, or DATASET@TIME for what was the newest then."""
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
def diff(before: str, after: str, home: Home = None, json: AsJson = False) -> None:
    """Compare two snapshots: rows added, removed and changed by key, the schema, and distributions that moved."""
    from everloop.data import diff_snapshots
    from everloop.data.sources.snapshot_sources import find_version

    with opened(home) as store:
        first, second = (find_version(ref, store) for ref in (before, after))
        found = diff_snapshots(first, second, store)

    def draw() -> None:
        told = {name: value for name, value in asdict(found).items() if name != "shifts"}
        facts(f"{first.key} → {second.key}", told.items())
        rows = [
            (name, shift.kind, shift.distance, *shift.nulls, shift.before, shift.after)
            for name, shift in sorted(found.shifts.items(), key=lambda pair: -pair[1].distance)
        ]
        columns = ("column", "measure", "distance", "nulls before", "nulls after", "before", "after")
        table("Distributions that moved", columns, rows, empty="  No distribution moved.")

    emit(found, json, draw)


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="A file, a glob, an address, a database with --query, or a folder.")],
    dataset: Annotated[str, typer.Argument(help="The name of the dataset.")],
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    time: Annotated[str | None, typer.Option(help="The column that says when a row happened.")] = None,
    key: Annotated[str | None, typer.Option(help="The column that names a row; must not repeat.")] = None,
    query: Annotated[str | None, typer.Option(help="One SELECT, where the source is a database.")] = None,
    files: Annotated[bool, typer.Option("--files", help="Keep the files of a folder as they are.")] = False,
    separator: Separator = None,
    encoding: Encoding = None,
    null_values: NullValues = None,
    format: Format = None,
    schema: Schema = None,
    skip_rows: SkipRows = None,
    comment_prefix: CommentPrefix = None,
    decimal_comma: DecimalComma = False,
    drop_unnamed: DropUnnamed = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Keep a table, or a folder of files, as the next version of a dataset. The same content makes no new version."""
    from everloop.data import add_folder, add_table

    options = reading_options(
        separator=separator,
        encoding=encoding,
        null_values=null_values,
        format=format,
        schema=schema,
        skip_rows=skip_rows,
        comment_prefix=comment_prefix,
        decimal_comma=decimal_comma,
        drop_unnamed=drop_unnamed,
    )
    with opened(home, create=True) as store, _drawn(), options_advised() as notes:
        if files:
            if target or time or key or query or options:
                raise UsageError("--files keeps files as they are and takes no columns.", help="Leave the others out.")
            kept = add_folder(_place(source), dataset, store)
        else:
            kept = add_table(_place(source), dataset, store, target=target, time=time, key=key, query=query, **options)
    print_notes(notes)
    emit(kept, json, lambda: console().print(f"{kept.key}: {kept.rows:,} {_noun(kept)}", soft_wrap=True))


@app.command()
def export(
    snapshot: str,
    path: Annotated[Path, typer.Argument(help="A new .parquet, .csv, .jsonl or .arrow file, or a folder for files.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Write a snapshot's rows into a file, or its files into a folder."""
    from everloop.data import export_folder, export_table
    from everloop.data.snapshots.file_folders import is_folder
    from everloop.data.sources.snapshot_sources import find_version

    with opened(home) as store:
        record = find_version(snapshot, store)
        (export_folder if is_folder(record) else export_table)(record, store, path)
    said = {"snapshot": record.key, "rows": record.rows, "path": path}
    emit(said, json, lambda: console().print(f"{record.key}: {record.rows:,} {_noun(record)} → {path}", soft_wrap=True))


@app.command()
def rm(
    snapshots: Annotated[list[str], typer.Argument(metavar="SNAPSHOT…", help="DATASET@VERSION, or a whole DATASET.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also those that a model learned from.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Delete snapshots. `data restore` undoes it until `gc`."""
    from everloop.data import delete_snapshots

    with opened(home) as store:
        if not yes:
            if json or not sys.stdin.isatty():
                raise UsageError("There is nobody to ask whether to delete.", help="Add --yes.")
            typer.confirm(f"Delete {', '.join(snapshots)}?", abort=True, err=True)
        gone = delete_snapshots(store, snapshots, force=force)
    keys = [snapshot.key for snapshot in gone]
    said = f"Deleted: {', '.join(keys)}. Back: everloop data restore {keys[0]}"
    emit({"deleted": keys}, json, lambda: console().print(said, soft_wrap=True))


@app.command()
def restore(snapshot: str, home: Home = None, json: AsJson = False) -> None:
    """Bring back a deleted snapshot."""
    from everloop.data import restore_snapshot

    with opened(home) as store:
        record = restore_snapshot(store, snapshot)
    emit(record, json, lambda: console().print(f"{record.key} is back."))


@app.command()
def profile(
    source: Annotated[
        str, typer.Argument(help="DATASET@VERSION or DATASET; or a file, a glob or an address that is not kept yet.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The HTML file to write.")] = None,
    target: Annotated[str | None, typer.Option(help="Of a file: the column to predict.")] = None,
    time: Annotated[str | None, typer.Option(help="Of a file: the column that says when a row happened.")] = None,
    key: Annotated[str | None, typer.Option(help="Of a file: the column that names a row.")] = None,
    separator: Separator = None,
    encoding: Encoding = None,
    null_values: NullValues = None,
    format: Format = None,
    schema: Schema = None,
    skip_rows: SkipRows = None,
    comment_prefix: CommentPrefix = None,
    decimal_comma: DecimalComma = False,
    drop_unnamed: DropUnnamed = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Look at a table from all sides: distributions, correlations, gaps, and what could mislead a model."""
    from everloop.data import profile_page, profile_snapshot, profile_table, read
    from everloop.data.sources.snapshot_sources import find_version

    options = reading_options(
        separator=separator,
        encoding=encoding,
        null_values=null_values,
        format=format,
        schema=schema,
        skip_rows=skip_rows,
        comment_prefix=comment_prefix,
        decimal_comma=decimal_comma,
        drop_unnamed=drop_unnamed,
    )
    kept = not (options or _is_file(source))
    if kept and (target or time or key):
        raise UsageError(
            f"'{source}' is a version of a dataset, which has its target, time and key.", help="Leave them out."
        )
    with opened(home, create=not kept) as store, options_advised() as notes:
        if kept:
            found = profile_snapshot(find_version(source, store), store)
            key_of = found.snapshot.key
        else:
            read_as = options if time is None else {**options, "event_time": time}
            frame = read(_place(source), **read_as)
            found, key_of = profile_table(frame, source, store, target=target, time=time, key=key), source
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(profile_page(found), encoding="utf-8")

    def draw() -> None:
        rows = [(suspect.kind, suspect.column, suspect.message) for suspect in found.suspects]
        table(
            f"{key_of}: what could mislead a model",
            ("kind", "column", "what"),
            rows,
            empty=f"{key_of}: nothing suspect.",
        )
        console().print(f"Written: {output}" if output else "Add --output page.html for the whole page.")

    print_notes(notes)
    emit(
        {
            "snapshot": key_of,
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
    dataset: Annotated[str, typer.Argument(help="A dataset, or one of its snapshots: DATASET@VERSION.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The TOML file to write.")] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="The data changed on purpose: change the contract so that they keep it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --accept: do not ask.")] = False,
    project: Annotated[Path | None, typer.Option("--dir", help="With --accept: the project's folder.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Print what a snapshot's rows look like, as a TOML to edit and to check with. With --accept, change the contract
    of a project's dataset to fit the data of today: what is different is shown first, and kept as an event."""
    if accept:
        if output is not None:
            raise UsageError("--accept writes the project's own file.", help="Leave --output out.")
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
            raise AlreadyExistsError(f"'{output}' is there already.", help="People edit contracts: name a new file.")
        output.write_text(text, encoding="utf-8")
    emit(found, json, lambda: console().print(text if output is None else f"Written: {output}", markup=False))


def _accept(dataset: str, project: Path | None, home: Path | None, *, yes: bool, json: bool) -> None:
    from everloop.loop.contract_acceptance import accept_contract, find_loop, propose_contract
    from everloop.loop.project import FILE, find_folder, load_project

    try:
        folder = find_folder(project)
    except ProjectError:
        if project is not None:
            raise
        folder = None  # a dataset that is kept by hand, without a loop
    loops = load_project(folder).loops if folder is not None else {}
    if folder is not None and home is None and "EVERLOOP_STORE" not in os.environ:
        os.chdir(folder)
    with opened(home) as store:
        loop = find_loop(store, loops, dataset)
        proposal = propose_contract(store, dataset, loop)
        if not json:
            _draw_changes(proposal)
        if proposal.changes and not (yes or json) and sys.stdin.isatty():
            typer.confirm(f"Change the contract of '{dataset}' so?", abort=True, err=True)
        kept, path = accept_contract(store, proposal)
    said = {"contract": kept.key, "before": proposal.before, "changes": proposal.changes, "path": path}

    def draw() -> None:
        if proposal.changes or proposal.before is None:
            where = f" in {path}" if path is not None else ""
            console().print(f"{kept.key} holds from now on{where}.", soft_wrap=True)
            if path is None and proposal.declared is not None:
                console().print(f'Declare it: contract="{kept.key}" in {FILE}', soft_wrap=True, markup=False)
            elif loop is not None:
                console().print("Go on with: everloop run")

    emit(said, json, draw)


def _draw_changes(proposal: ContractProposal) -> None:
    if proposal.before is None:
        console().print(f"'{proposal.contract.dataset}' has no contract yet: it is inferred from the data of today.")
        return
    rows = [(change.kind, change.column, change.message) for change in proposal.changes]
    empty = f"The data keep {proposal.before}: there is nothing to accept."
    table(f"{proposal.before} and the data of today", ("change", "column", "what"), rows, empty=empty)


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="A file, a glob, an address, or everloop:DATASET@VERSION.")],
    contract: Annotated[str, typer.Argument(help="The contract: a TOML file, or DATASET@VERSION.")],
    bad: Annotated[Path | None, typer.Option("--bad", help="Write the bad rows, with what each broke.")] = None,
    separator: Separator = None,
    encoding: Encoding = None,
    null_values: NullValues = None,
    format: Format = None,
    schema: Schema = None,
    skip_rows: SkipRows = None,
    comment_prefix: CommentPrefix = None,
    decimal_comma: DecimalComma = False,
    drop_unnamed: DropUnnamed = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Check a table against a contract; exit code 1 where it breaks it."""
    from everloop.data import check_contract, read
    from everloop.data.contracts.contract_toml import load_contract
    from everloop.records import Contract

    options = reading_options(
        separator=separator,
        encoding=encoding,
        null_values=null_values,
        format=format,
        schema=schema,
        skip_rows=skip_rows,
        comment_prefix=comment_prefix,
        decimal_comma=decimal_comma,
        drop_unnamed=drop_unnamed,
    )
    with opened(home, create=True) as store, options_advised() as notes:
        named = Path(contract)
        if named.suffix == ".toml":
            if not named.is_file():
                raise NotFoundError(f"There is no contract '{contract}'.", help="Write one: everloop data contract")
            held = load_contract(named, store)
        else:
            held = store.records.get(Contract, contract)
        report = check_contract(read(_place(source), **options), held, now=store.now())
        if bad is not None and report.bad_rows:
            report.bad.collect().write_parquet(bad)
    print_notes(notes)
    said = {
        "contract": held.key,
        "source": source,
        "notes": [str(note) for note in notes],
        "rows": report.rows,
        "bad_rows": report.bad_rows,
        "violations": report.violations,
    }

    def draw() -> None:
        rows = [(one.severity, one.column, one.rule, one.rows, one.message) for one in report.violations]
        table(source, ("severity", "column", "rule", "rows", "what"), rows, empty=f"{source} keeps {held.key}.")

    emit(said, json, draw)
    if not report.passed:
        raise typer.Exit(1)


@contextmanager
def _drawn() -> Iterator[None]:
    """A bar on standard error for what takes long, where somebody looks."""
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


def _place(source: str) -> str:
    """A path from here as a path from anywhere; addresses and versions as they are."""
    return source if "://" in source or source.startswith("everloop:") else str(Path(source).absolute())


def _is_file(source: str) -> bool:
    """Whether this means a file, a glob or an address, and not a version of a dataset."""
    from everloop.data.sources.snapshot_sources import is_version

    if "://" in source or any(letter in source for letter in "*?[/") or is_version(source):
        return True
    return Path(source).is_file() or ("@" not in source and "." in source)


def _noun(snapshot: Snapshot) -> str:
    from everloop.data.snapshots.file_folders import is_folder

    return "files" if is_folder(snapshot) else "rows"


def _source(source: dict[str, Any]) -> str:
    spec = source.get("spec", {})
    return f"{source.get('kind')} {', '.join(str(value) for value in spec.values())}"


def _summary(stats: dict[str, object]) -> tuple[object, object, object, object]:
    return stats.get("nulls"), stats.get("distinct"), stats.get("min"), stats.get("max")
