"""`everloop data`: snapshots."""

from __future__ import annotations

from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, emit, facts, opened, table

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
    emit(snapshots, json, lambda: table("Snapshots", columns, rows, empty="No snapshots yet. Try: everloop run"))


@app.command()
def show(snapshot: str, home: Home = None, json: AsJson = False) -> None:
    """Show one snapshot: DATASET@VERSION."""
    from everloop.records import Snapshot

    with opened(home) as store:
        record = store.records.get(Snapshot, snapshot)

    def draw() -> None:
        facts(
            record.key,
            [
                ("digest", record.digest),
                ("rows", record.rows),
                ("target", record.target),
                ("time", record.time),
                ("key", record.entity),
                ("from", record.starts_at),
                ("to", record.ends_at),
                ("contract", record.contract),
                ("run", record.run),
            ],
        )
        rows = [(name, kind, *_summary(record.stats.get(name, {}))) for name, kind in record.columns.items()]
        table("Columns", ("column", "type", "nulls", "min", "max"), rows, empty="  no columns")

    emit(record, json, draw)


@app.command()
def diff(before: str, after: str, home: Home = None, json: AsJson = False) -> None:
    """Compare two snapshots: rows added, removed and changed, and the schema."""
    from everloop.data import diff_snapshots
    from everloop.records import Snapshot

    with opened(home) as store:
        first, second = (store.records.get(Snapshot, ref) for ref in (before, after))
        found = diff_snapshots(first, second, store)
    from dataclasses import asdict

    emit(found, json, lambda: facts(f"{first.key} → {second.key}", asdict(found).items()))


def _summary(stats: dict[str, object]) -> tuple[object, object, object]:
    return stats.get("nulls"), stats.get("min"), stats.get("max")
