"""Commands about the store as a whole: where things came from, what happened, whether it is sound."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, Home, MaxBytes, console, emit, facts, messages, opened, say, short, table
from everloop.errors import CorruptionError, StoreError, StoreVersionError, UnavailableError, UsageError

if TYPE_CHECKING:
    from everloop.records import Run
    from everloop.stores.repair import Repair
    from everloop.stores.verify_report import StoreProblem

_KINDS = ("alias", "model_version", "release", "endpoint", "snapshot", "contract", "run", "finding")
"""What `everloop events` shows without --kind."""


def lineage(
    thing: Annotated[
        str, typer.Argument(help="A prediction's id, MODEL@VERSION, DATASET@VERSION, a run's id or a digest.")
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show where a thing came from: model, run, data and code."""
    from everloop.loop.lineage import trace_lineage

    with opened(home) as store:
        found = trace_lineage(store, thing)

    def draw() -> None:
        if found.prediction is not None:
            p = found.prediction
            pairs = [("endpoint", p.endpoint), ("asked", p.event_at), ("answered as", p.role), ("for", p.entity)]
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
                ("started", run.started_at),
                ("host", run.source.host),
            ]
            facts(f"run {run.id}", [*pairs, ("commit", run.source.git_commit), ("python", run.source.python)])
        if found.snapshot is not None:
            s = found.snapshot
            facts(f"data {s.key}", [("digest", s.digest), ("rows", s.rows), ("from", s.starts_at), ("to", s.ends_at)])
        facts(f"code {found.code or '-'}", found.steps.items())
        for source in found.sources:
            facts(f"read by {source['step']}", [(str(source.get("kind")), source.get("spec"))])

    emit(found, json, draw)


def events(
    kind: Annotated[list[str] | None, typer.Option(help="Only events about this kind of record; repeatable.")] = None,
    since: Annotated[int, typer.Option(help="Only events after this number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Who did what, when."""
    with opened(home) as store:
        kinds = tuple(kind or _KINDS)
        found, seen = [], since
        while page := store.records.events_since(seq=seen, kinds=kinds):
            found.extend(page)
            seen = page[-1].seq
    found = found[-limit:]
    rows = [(e.seq, e.at, e.actor, e.verb, e.kind, short(e.key), e.data.get("reason", "")) for e in found]
    columns = ("#", "at", "by", "did", "to", "name", "why")
    emit(found, json, lambda: table("Events", columns, rows, empty="Nothing has happened yet."))


def verify(
    heal: Annotated[bool, typer.Option("--repair", help="Heal what can be healed; asks first.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="With --repair: a backup to take damaged files from.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --repair: do not ask.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> int:
    """Check that every byte that the store promises to keep is as it was written.

    Exit code 0: all is whole. 10: something is damaged or missing. 9: nothing was found damaged, and something could
    not be checked. What was written by an earlier version without checksums gets them when all is whole.
    """
    from everloop.stores.home import find_store_urls
    from everloop.stores.repair import can_heal, keep_database_log, repair
    from everloop.stores.verify import check_before_opening, mark_lost, projects_with_runs, seal, verify as verify_store

    if source is not None and not heal:
        raise UsageError("--from names a backup to heal from.", help="Add --repair.")
    places, _ = find_store_urls(home)
    found = check_before_opening(places)
    if found:
        kept_log = keep_database_log(places.home, Path(places.records))
        messages().print(f"The database and its log were copied to {kept_log} before they were opened.")
    try:
        opened_store = opened(home)
    except (CorruptionError, StoreVersionError):
        raise
    except StoreError as error:
        # It may not be opened, which says nothing about what is in it.
        raise UnavailableError(f"The store cannot be checked: {error.message}", help=error.help) from error
    with opened_store as store:
        lost: list[Run] = []
        with suppress(StoreError, OSError):
            for project in projects_with_runs(store):
                lost += mark_lost(store.for_project(project))
        report = verify_store(store, found=found)
        repairs: list[Repair] = []
        healable = [one for one in report.problems if can_heal(one, backup=source is not None)]
        if heal and healable:
            if not yes:
                _show_problems(healable)
                typer.confirm(f"Heal {len(healable)} of {len(report.problems)} problems?", abort=True, err=True)
            repairs = repair(store, report, backup=source)
            report = verify_store(store, found=found)
        sealed = (0, 0)
        if report.ok and not report.unchecked and (report.checked.unsealed_rows or report.checked.unsealed_files):
            with suppress(StoreError, OSError):
                sealed = seal(store)

    def draw() -> None:
        if lost:
            many = f"{len(lost)} runs had" if len(lost) > 1 else "1 run had"
            messages().print(f"{many} died without a word and {'are' if len(lost) > 1 else 'is'} marked as lost.")
        for done in repairs:
            kept = f" The original is in {done.kept}." if done.kept else ""
            console().print(
                f"{'Healed' if done.healed else 'Not healed'}: {done.problem.subject}: {done.message}{kept}"
            )
        seen = report.checked
        counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
        looked = f"{counts}; {seen.files:,} files and {seen.rows:,} rows, {seen.size_bytes:,} bytes"
        if report.problems:
            _show_problems(report.problems)
            console().print(f"Checked: {looked}.")
        elif report.unchecked:
            rows = [(one.kind, one.subject, one.message) for one in report.unchecked]
            table("Could not be checked", ("kind", "subject", "what"), rows, empty="")
            console().print(f"What could be checked is whole: {looked}.")
        else:
            console().print(f"The store is whole: {looked}.")
        if any(sealed):
            console().print(
                f"{sealed[0]:,} rows and {sealed[1]:,} files of tables had no checksum, because an earlier version"
                " wrote them or their writer was killed. They could be read, and have one now."
            )

    whole = not report.problems and not report.unchecked
    emit({"whole": whole, "report": report, "lost": lost, "repairs": repairs, "sealed": sealed}, json, draw)
    if report.problems:
        return CorruptionError.exit_code
    return UnavailableError.exit_code if report.unchecked else 0


def _show_problems(problems: Sequence[StoreProblem]) -> None:
    rows = [(one.kind, one.subject, one.message, one.heal or one.repair or "-") for one in problems]
    table("Problems", ("kind", "subject", "what", "what heals it"), rows, empty="", wrap=("what heals it",))


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    grace_s: Annotated[float, typer.Option(help="Keep what is younger than this many seconds.")] = 3600,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Really remove what was deleted, and the objects that nothing refers to."""
    from dataclasses import asdict

    from everloop.stores.gc import gc as sweep

    with opened(home) as store:
        swept = sweep(store, dry_run=dry_run, grace_s=grace_s)
    emit(swept, json, lambda: facts("Would remove" if dry_run else "Removed", asdict(swept).items()))


def backup(
    path: Annotated[Path, typer.Argument(help="The file to write.")],
    with_key: Annotated[
        bool,
        typer.Option("--with-key", help="Also the key that opens the secrets of webhooks. Then keep the file safe."),
    ] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Copy the whole store into one file, while it may be in use."""
    from everloop.stores.backup import backup as write_backup

    with opened(home) as store:
        write_backup(store, path, with_key=with_key)
    emit(
        {"path": path, "size_bytes": path.stat().st_size},
        json,
        lambda: say(f"{path}: {path.stat().st_size:,} bytes"),
    )


def restore(
    path: Annotated[Path, typer.Argument(help="A file that `everloop backup` wrote.")],
    home: Annotated[Path, typer.Option("--home", help="A folder that is empty or not there yet.")],
    max_bytes: MaxBytes = None,
    json: AsJson = False,
) -> None:
    """Make a store from a backup."""
    from everloop.stores.backup import restore as read_backup

    read_backup(path, home, max_bytes=max_bytes)
    closed = _without_key(home)

    def draw() -> None:
        say(f"Restored to {home}. Check it with: everloop verify --home {home}")
        if closed:
            messages().print(
                f"The backup holds no key, so the secrets of these webhooks cannot be used: {', '.join(closed)}. "
                f"Copy 'secret.key' of the old home to '{home}', or set each again: "
                "everloop webhooks renew NAME --url URL"
            )

    emit({"home": home, "webhooks_without_key": closed}, json, draw)


def _without_key(home: Path) -> list[str]:
    """The webhooks of a home whose secrets cannot be opened."""
    from everloop.server.server_options import ServerOptions
    from everloop.server.webhooks.webhook_delivery import Webhooks
    from everloop.stores import open_store

    with open_store(home, create=False) as store:
        return [hook.name for hook in Webhooks(store, ServerOptions()).secrets.without_key()]
