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
    """Show a release: where it is, what the evidence says, what the next step needs, and each decision."""
    from everloop.loop.releases.release_steps import needs
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
        say(_sentence(record))
        if record.decisions:
            say(f"Last decision: {record.decisions[-1].reason}.")
        if needs(record):
            say(needs(record))
        facts(f"{record.candidate} ({record.id})", pairs)
        table("Gates", ("gate", "outcome", "evidence"), [(g.gate, g.outcome, g.message) for g in gates], empty="")
        decisions = [(d.at, d.action, f"{d.percent:g}%", d.actor, d.reason) for d in record.decisions]
        table("Decisions", ("at", "decision", "traffic", "who", "why"), decisions, empty="")

    emit({"release": record, "gates": gates, "needs": needs(record)}, json, draw)


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
def pause(release: Which, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Pause a rollout. It keeps its share of the traffic, and is still rolled back if it does harm."""
    from everloop.loop import pause_release

    with opened(home) as store:
        paused = pause_release(store, _find(store, release), reason)
    emit(paused, json, lambda: say(f"Paused {paused.candidate} at {paused.percent:g}% of the traffic."))


@app.command()
def resume(release: Which, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Resume a paused rollout."""
    from everloop.loop import resume_release

    with opened(home) as store:
        resumed = resume_release(store, _find(store, release), reason)
    emit(resumed, json, lambda: say(f"Resumed {resumed.candidate} at {resumed.percent:g}% of the traffic."))


@app.command()
def approve(release: Which, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Approve that the candidate takes all the traffic once its evidence suffices."""
    from everloop.loop import approve_release

    with opened(home) as store:
        approved = approve_release(store, _find(store, release), reason)
    text = f"Approved {approved.candidate}. The worker (everloop up) completes the release when the evidence suffices."
    emit(approved, json, lambda: say(text))


@app.command()
def reject(release: Which, reason: Reason = "by hand", home: Home = None, json: AsJson = False) -> None:
    """Reject a rollout and send all traffic to the champion."""
    from everloop.loop import reject_release

    with opened(home) as store:
        ended = reject_release(store, _find(store, release), reason)
    emit(ended, json, lambda: say(f"Rejected {ended.candidate}. {ended.previous} now receives all traffic."))


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


def _sentence(release: Release) -> str:
    """Say where a release is."""
    at = f"endpoint '{release.endpoint}'"
    if release.state == "completed":
        return f"{release.candidate} has all the traffic of {at}."
    if release.state != "rolling_out":
        return f"The release of {release.candidate} to {at} has ended: {release.state.replace('_', ' ')}."
    if release.percent > 0:
        return (
            f"{release.candidate} gets {release.percent:g}% of the traffic of {at}; {release.previous} gets the rest."
        )
    shadow = release.steps[0] == 0 and any(decision.action == "start" for decision in release.decisions)
    role = "scores copies of the requests" if shadow else "waits without traffic"
    return f"{release.candidate} {role} at {at}; {release.previous} gets all the traffic."
