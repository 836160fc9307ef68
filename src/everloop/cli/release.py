"""`everloop release`: releases, their rollout and its decisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, Home, OnlyEndpoint, emit, facts, opened, say, short, table

if TYPE_CHECKING:
    from everloop.records import Release
    from everloop.stores import Store

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Follow and control the rollout of versions.")

Reason = Annotated[str, typer.Option(help="Reason, recorded with the decision.")]
Which = Annotated[
    str, typer.Argument(help="Name of an endpoint, for its current release, or the id of a release or a unique prefix.")
]


@app.command()
def ls(
    endpoint: OnlyEndpoint = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List releases, newest first."""
    from everloop.records import EndpointRecord, Release

    with opened(home) as store:
        if endpoint is not None:
            store.records.get(EndpointRecord, endpoint)
        where = [("endpoint", "=", endpoint)] if endpoint else []
        releases = store.records.find(Release, *where, order="-created_at")  # type: ignore[arg-type]
    rows = [
        (short(r.id), r.candidate, r.previous, r.state, f"{r.percent:g}%", r.trigger, r.created_at, _last(r))
        for r in releases
    ]
    columns = ("id", "candidate", "previous", "state", "traffic", "trigger", "started", "why")
    emit(releases, json, lambda: table("Releases", columns, rows, empty="No releases yet. Start with: everloop run"))


@app.command()
def show(release: Which, home: Home = None, json: AsJson = False) -> None:
    """Show a release: its gates, and each decision with its reason."""
    from everloop.records import GateResult

    with opened(home) as store:
        record = _find(store, release, rolling=False)
        gates = [store.records.get(GateResult, gate) for gate in record.gates]

    def draw() -> None:
        pairs = [
            ("endpoint", record.endpoint),
            ("previous", record.previous),
            ("state", record.state),
            ("traffic", f"{record.percent:g}%"),
            ("trigger", record.trigger),
            ("run", record.run),
        ]
        facts(f"{record.candidate} ({record.id})", pairs)
        table("Gates", ("gate", "outcome", "evidence"), [(g.gate, g.outcome, g.message) for g in gates], empty="")
        decisions = [(d.at, d.action, f"{d.percent:g}%", d.reason) for d in record.decisions]
        table("Decisions", ("at", "decision", "traffic", "why"), decisions, empty="")

    emit({"release": record, "gates": gates}, json, draw)


@app.command()
def advance(release: Which, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Advance a rollout to its next step now."""
    from everloop.loop import advance_release

    with opened(home) as store:
        moved = advance_release(store, _find(store, release), reason)
    state = moved.state.replace("_", " ")
    emit(moved, json, lambda: say(f"{moved.candidate}: {state}, {moved.percent:g}% of the traffic."))


@app.command()
def abort(release: Which, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Abort a rollout and send all traffic to the champion."""
    from everloop.loop import abort_release

    with opened(home) as store:
        ended = abort_release(store, _find(store, release), reason)
    state = ended.state.replace("_", " ")
    emit(ended, json, lambda: say(f"{ended.candidate}: {state}. {ended.previous} now receives all traffic."))


@app.command()
def rollback(
    endpoint: Annotated[str, typer.Argument(help="Name of the endpoint, or of the model that it serves.")],
    reason: Reason = "by hand",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Roll back the newest release of an endpoint, completed or not."""
    roll_back_endpoint(endpoint, reason, home, json)


def roll_back_endpoint(endpoint: str, reason: str, home: Path | None, json: bool) -> None:
    """Roll back the newest release of an endpoint, given by its own name or its model's."""
    from everloop.loop import roll_back
    from everloop.records import EndpointRecord

    with opened(home) as store:
        serving = store.records.find(EndpointRecord, ("model", "=", endpoint), limit=1)
        record = serving[0] if serving else store.records.get(EndpointRecord, endpoint)
        ended = roll_back(store, record.name, reason)
    emit(ended, json, lambda: say(f"Rolled back {ended.candidate}. {ended.previous} now receives all traffic."))


def _find(store: Store, which: str, *, rolling: bool = True) -> Release:
    from everloop.errors import NotFoundError
    from everloop.records import EndpointRecord, Release

    if not store.records.find(EndpointRecord, ("name", "=", which), limit=1):
        matches = store.records.find(Release, ("id", "prefix", which), limit=2) if which else []
        return matches[0] if len(matches) == 1 else store.records.get(Release, which)
    state = [("state", "=", "rolling_out")] if rolling else []
    found = store.records.find(Release, ("endpoint", "=", which), *state, order="-created_at", limit=1)  # type: ignore[arg-type]
    if not found:
        raise NotFoundError(f"No release is rolling out to '{which}'.", help=f"See: everloop release ls {which}")
    return found[0]


def _last(release: Release) -> str:
    return release.decisions[-1].reason if release.decisions else ""
