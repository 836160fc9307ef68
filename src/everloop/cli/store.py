"""Commands about the store as a whole: where things came from, what happened, whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, console, emit, facts, messages, opened, short, table

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


def verify(home: Home = None, json: AsJson = False) -> int:
    """Check that every record, object, table and journal of the store is whole. Exit code 10 if not."""
    from everloop.stores.check import mark_lost
    from everloop.stores.check import verify as verify_store

    with opened(home) as store:
        lost = mark_lost(store)
        report = verify_store(store)

    def draw() -> None:
        rows = [(problem.kind, problem.subject, problem.message) for problem in report.problems]
        counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
        if lost:
            messages().print(f"{len(lost)} runs had died without a word; they are marked as lost.")
        if rows:
            table("Problems", ("kind", "subject", "what"), rows, empty="")
        else:
            console().print(f"The store is whole: {counts}.")

    emit({"whole": not report.problems, "report": report, "lost": lost}, json, draw)
    return 10 if report.problems else 0


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    grace_s: Annotated[float, typer.Option(help="Keep what is younger than this many seconds.")] = 3600,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Really remove what was deleted, and the objects that nothing refers to."""
    from dataclasses import asdict

    from everloop.stores.sweep import gc as sweep

    with opened(home) as store:
        swept = sweep(store, dry_run=dry_run, grace_s=grace_s)
    emit(swept, json, lambda: facts("Would remove" if dry_run else "Removed", asdict(swept).items()))


def backup(
    path: Annotated[Path, typer.Argument(help="The file to write.")], home: Home = None, json: AsJson = False
) -> None:
    """Copy the whole store into one file, while it may be in use."""
    from everloop.stores.backup import backup as write_backup

    with opened(home) as store:
        write_backup(store, path)
    emit(
        {"path": path, "size_bytes": path.stat().st_size},
        json,
        lambda: typer.echo(f"{path}: {path.stat().st_size:,} bytes"),
    )


def restore(
    path: Annotated[Path, typer.Argument(help="A file that `everloop backup` wrote.")],
    home: Annotated[Path, typer.Option("--home", help="A folder that is empty or not there yet.")],
    json: AsJson = False,
) -> None:
    """Make a store from a backup."""
    from everloop.stores.backup import restore as read_backup

    read_backup(path, home)
    emit({"home": home}, json, lambda: typer.echo(f"Restored to {home}. Check it with: everloop verify --home {home}"))
