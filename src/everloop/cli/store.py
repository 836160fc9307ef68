"""Commands for the store as a whole: lineage, events, verification, garbage collection, backup and restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import (
    AsJson,
    Home,
    MaxBytes,
    console,
    count,
    emit,
    facts,
    messages,
    opened,
    say,
    short,
    table,
)
from everloop.errors import CorruptionError, StoreError, StoreVersionError, UnavailableError, UsageError

if TYPE_CHECKING:
    from everloop.records import Run
    from everloop.stores import Store
    from everloop.stores.repair import Repair
    from everloop.stores.verify_report import StoreProblem

_KINDS = ("alias", "model_version", "release", "endpoint", "snapshot", "contract", "run", "finding")
"""The kinds of record that `everloop events` covers without --kind."""


def lineage(
    thing: Annotated[
        str, typer.Argument(help="Id of a prediction or run, MODEL@VERSION, DATASET@VERSION, or a digest.")
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Trace where something came from: version, run, data, code."""
    from everloop.loop.lineage import trace_lineage

    with opened(home) as store:
        found = trace_lineage(store, thing)

    def draw() -> None:
        if found.prediction is not None:
            p = found.prediction
            pairs = [("endpoint", p.endpoint), ("time", p.event_at), ("role", p.role), ("entity", p.entity)]
            facts(f"prediction {p.id}", [*pairs, ("inputs", p.inputs), ("outputs", p.outputs)])
        if found.version is not None:
            v = found.version
            facts(f"version {v.key}", [("state", v.state), ("package", v.package), ("metrics", v.metrics)])
        if found.release is not None:
            r = found.release
            why = r.decisions[-1].reason if r.decisions else None
            facts(f"release {r.id}", [("state", r.state), ("trigger", r.trigger), ("why", why)])
        if found.run is not None:
            run = found.run
            pairs = [
                ("state", run.state),
                ("trigger", run.trigger),
                ("cause", run.cause.get("evidence")),
                ("started", run.started_at),
                ("host", run.source.host),
            ]
            facts(f"run {run.id}", [*pairs, ("commit", run.source.git_commit), ("python", run.source.python)])
        if found.snapshot is not None:
            s = found.snapshot
            facts(f"data {s.key}", [("digest", s.digest), ("rows", s.rows), ("from", s.starts_at), ("to", s.ends_at)])
        facts(f"code {found.code or '-'}", found.steps.items())
        for source in found.sources:
            # A snapshot that `data add` made has no step.
            facts(
                f"read by {source['step']}" if "step" in source else "read from",
                [(str(source.get("kind")), source.get("spec"))],
            )

    emit(found, json, draw)


def events(
    kind: Annotated[
        list[str] | None,
        typer.Option(help=f"Kind of record to show events about; repeatable. Default: {', '.join(_KINDS)}."),
    ] = None,
    since: Annotated[int, typer.Option(help="Show only events after the one with this number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of events to show; the newest are shown.")] = 50,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List events: who did what, when and why."""
    from everloop.records import KINDS

    known = (*KINDS, "loop", "store")
    for one in kind or ():
        if one not in known:
            raise UsageError(f"--kind '{one}' is unknown.", help=f"Choose from: {', '.join(known)}")
    with opened(home) as store:
        kinds = tuple(kind or _KINDS)
        found, seen = [], since
        while page := store.records.events_since(seq=seen, kinds=kinds):
            found.extend(page)
            seen = page[-1].seq
    found = found[-limit:]
    rows = [(e.seq, e.at, e.actor, e.verb, e.kind, short(e.key), e.data.get("reason", "")) for e in found]
    columns = ("#", "at", "by", "event", "kind", "name", "why")
    emit(found, json, lambda: table("Events", columns, rows, empty="No events yet. Start with: everloop run"))


def verify(
    heal: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired, after a confirmation.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="With --repair: backup file to restore damaged files from.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --repair: do not ask for confirmation.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> int:
    """Verify the store: check that every byte is as it was written.

    Exit code 0: the store is intact. 10: something is damaged or missing. 9: no damage was found, but something could
    not be checked. If the store is intact, data that an earlier version wrote without checksums gets them now.
    """
    from everloop.stores.home import find_store_urls
    from everloop.stores.repair import can_heal, keep_database_log, repair
    from everloop.stores.verify import check_before_opening, mark_lost, projects_with_runs, seal, verify as verify_store

    if source is not None and not heal:
        raise UsageError("--from names a backup to repair from, so it needs --repair.", help="Add --repair.")
    urls, _ = find_store_urls(home)
    found = check_before_opening(urls)
    if found:
        copy = keep_database_log(urls.home, Path(urls.records))
        messages().print(f"The database and its log were copied to {copy} before they were opened.")
    try:
        opened_store = opened(home)
    except (CorruptionError, StoreVersionError):
        raise
    except StoreError as error:
        # The store cannot be opened, which does not mean that its content is damaged.
        raise UnavailableError(f"The store cannot be checked: {error.message}", help=error.help) from error
    with opened_store as store:
        lost: list[Run] = []
        with suppress(StoreError, OSError):
            for project in projects_with_runs(store):
                lost += mark_lost(store.for_project(project))
        report = verify_store(store, found=found)
        repairs: list[Repair] = []
        repairable = [one for one in report.problems if can_heal(one, backup=source is not None)]
        if heal and repairable:
            if not yes:
                _show_problems(repairable)
                problems = count(len(report.problems), "problem")
                typer.confirm(f"Repair {len(repairable)} of {problems}?", abort=True, err=True)
            repairs = repair(store, report, backup=source)
            report = verify_store(store, found=found)
        sealed = (0, 0)
        if report.ok and not report.unchecked and (report.checked.unsealed_rows or report.checked.unsealed_files):
            with suppress(StoreError, OSError):
                sealed = seal(store)

    def draw() -> None:
        if lost:
            verb = "is" if len(lost) == 1 else "are"
            messages().print(
                f"{count(len(lost), 'run')} ended without reporting a result and {verb} now marked as lost."
            )
        for done in repairs:
            original = f" The original is in {done.kept}." if done.kept else ""
            console().print(
                f"{'Repaired' if done.healed else 'Not repaired'}: {done.problem.subject}: {done.message}{original}"
            )
        checked = report.checked
        records = ", ".join(count(number, name.removesuffix("s")) for name, number in report.counts.items())
        extent = (
            f"{records}; {count(checked.files, 'file')}, {count(checked.rows, 'row')},"
            f" {count(checked.size_bytes, 'byte')}"
        )
        if report.problems:
            _show_problems(report.problems)
            console().print(f"Checked: {extent}.")
        elif report.unchecked:
            rows = [(one.kind, one.subject, one.message) for one in report.unchecked]
            table("Could not be checked", ("kind", "subject", "what"), rows, empty="")
            console().print(f"Everything else is intact: {extent}.")
        else:
            console().print(f"The store is intact: {extent}.")
        if any(sealed):
            console().print(
                f"{count(sealed[0], 'row')} and {count(sealed[1], 'table file')} had no checksum, because an earlier"
                " version wrote them or their writer was killed. They are readable, and have checksums now."
            )

    intact = not report.problems and not report.unchecked
    emit({"whole": intact, "report": report, "lost": lost, "repairs": repairs, "sealed": sealed}, json, draw)
    if report.problems:
        return CorruptionError.exit_code
    return UnavailableError.exit_code if report.unchecked else 0


def _show_problems(problems: Sequence[StoreProblem]) -> None:
    rows = [(one.kind, one.subject, one.message, one.heal or one.repair or "-") for one in problems]
    table("Problems", ("kind", "subject", "what", "repair"), rows, empty="", wrap=("repair",))


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, without removing it.")
    ] = False,
    grace_s: Annotated[float, typer.Option(help="Keep objects that are younger than this, in seconds.")] = 3600,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Remove deleted records and unused objects permanently.

    An object is unused if nothing refers to it.
    """
    from dataclasses import asdict

    from everloop.stores.gc import gc as sweep

    with opened(home) as store:
        swept = sweep(store, dry_run=dry_run, grace_s=grace_s)
    emit(swept, json, lambda: facts("Would remove" if dry_run else "Removed", asdict(swept).items()))


def backup(
    path: Annotated[Path, typer.Argument(help="File to write.")],
    with_key: Annotated[
        bool,
        typer.Option(
            "--with-key", help="Include the key that decrypts the webhooks' secrets. Keep the file safe then."
        ),
    ] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Back up the whole store to one file. The store may be in use meanwhile."""
    from everloop.stores.backup import backup as write_backup

    with opened(home) as store:
        write_backup(store, path, with_key=with_key)
    size_bytes = path.stat().st_size
    emit(
        {"path": path, "size_bytes": size_bytes},
        json,
        lambda: say(f"Backed up the store → {path} ({count(size_bytes, 'byte')})"),
    )


def restore(
    path: Annotated[Path, typer.Argument(help="File that `everloop backup` wrote.")],
    home: Annotated[Path, typer.Option("--home", help="New or empty folder for the store.")],
    max_bytes: MaxBytes = None,
    json: AsJson = False,
) -> None:
    """Restore a store from a backup."""
    from everloop.stores.backup import restore as read_backup

    read_backup(path, home, max_bytes=max_bytes)
    without_key = _webhooks_without_key(home)

    def draw() -> None:
        say(f"Restored to {home}. Verify it with: everloop verify --home {home}")
        if without_key:
            messages().print(
                f"The backup contains no key, so the secrets of these webhooks cannot be used: "
                f"{', '.join(without_key)}. Copy 'secret.key' from the old store folder to '{home}', or renew each"
                " webhook: everloop webhooks renew NAME --url URL"
            )

    emit({"home": home, "webhooks_without_key": without_key}, json, draw)


app = typer.Typer(no_args_is_help=True, help="Move the store.")


@app.command()
def move(
    target: Annotated[
        str | None,
        typer.Argument(help="New URL of the records: postgresql://…, or a SQLite file, relative to the store folder."),
    ] = None,
    objects: Annotated[str | None, typer.Option("--objects", help="New URL or folder of the objects.")] = None,
    tables: Annotated[str | None, typer.Option("--tables", help="New URL or folder of the tables.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be moved.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Move records, objects or tables to another database, folder or bucket.

    Everything is compared before everloop.toml is switched. If the command is interrupted, run it again. The old parts
    stay where they are, until you delete them.
    """
    from everloop.stores.relocation import move_store, refuse_while_used

    named = {"records": target, "objects": objects, "tables": tables}
    changes = {part: place for part, place in named.items() if place is not None}
    if not changes:
        raise UsageError(
            "There is nothing to move.", help="For example: everloop store move postgresql://… --objects s3://…"
        )
    with opened(home) as store:
        if not dry_run:
            refuse_while_used(store)
            _fold_journals(store)
        with _moving(json) as progress:
            found = move_store(store, changes, dry_run=dry_run, progress=progress)

    def draw() -> None:
        places = [(part, f"{old} → {new}") for part, (old, new) in found.moved.items()]
        sums = [("rows", sum(found.rows.values())), ("objects", found.objects), ("table files", found.table_files)]
        facts("Would move" if dry_run else "Moved", [*places, *sums, ("switched in", found.config)])

    emit(found, json, draw)


def _fold_journals(store: Store) -> None:
    """Bring waiting points, predictions and labels into the store. Those of other projects stay in the home."""
    from everloop.prediction_log import fold_labels, fold_predictions
    from everloop.records import EndpointRecord
    from everloop.tracking import fold

    fold(store)
    for endpoint in store.records.find(EndpointRecord):
        fold_predictions(store, endpoint.name)
        fold_labels(store, endpoint.name)


@contextmanager
def _moving(json: bool) -> Iterator[Callable[[str, int], None]]:
    """Shows on standard error how many rows or files of each part have been copied."""
    if json or not messages().is_terminal:
        yield lambda part, done: None
        return
    with messages().status("Moving …") as status:
        yield lambda part, done: status.update(f"Moving {part}: {done:,}")


def _webhooks_without_key(home: Path) -> list[str]:
    """Return the names of the webhooks of a store whose secrets cannot be decrypted."""
    from everloop.server.server_options import ServerOptions
    from everloop.server.webhooks.webhook_delivery import Webhooks
    from everloop.stores import open_store

    with open_store(home, create=False) as store:
        return [hook.name for hook in Webhooks(store, ServerOptions()).secrets.without_key()]
