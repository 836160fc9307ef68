"""`everloop demo`: the whole life cycle on real flights."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, console, emit, messages, table

if TYPE_CHECKING:
    from everloop.demo import Simulation, SimulationListener, YearOutcome

PORT = 8100


def demo(
    folder: Annotated[Path, typer.Argument(help="The project's folder; made, or gone on with.")] = Path(
        "flight-delays"
    ),
    exit: Annotated[bool, typer.Option("--exit", help="End after the final table; do not stay up.")] = False,
    port: Annotated[int, typer.Option(help="Of the API and status page afterwards; 0 takes a free one.")] = PORT,
    json: AsJson = False,
) -> None:
    """A model's whole life on the flights of New York in 2013: trained, served, gone stale, noticed, replaced."""
    from everloop.demo import Simulation, read_outcome

    started = perf_counter()
    story = Simulation(folder, _telling(json))
    with story.run() as store:
        story.listener.chapter("Reading the year back from the store")
        outcome = read_outcome(store, story.loop.name, story.endpoint)
        seconds = perf_counter() - started
        emit(_as_json(outcome, seconds), json, lambda: _draw(outcome, story, seconds))
        if exit:
            return
        from everloop.cli.loop import keep_up
        from everloop.stores import SharedClock

        if isinstance(store.clock, SharedClock):
            # From here on time passes as it does outside.
            store.clock.tick()
        keep_up(store, story.folder, port=port)


def _telling(quiet: bool) -> SimulationListener:
    from everloop.demo import SimulationListener

    if quiet:
        return SimulationListener()
    from everloop.cli.demo_view import Timeline

    return Timeline()


def _as_json(outcome: YearOutcome, seconds: float) -> dict[str, Any]:
    return {
        "snapshots": outcome.snapshots,
        "runs": outcome.runs,
        "versions": outcome.versions,
        "alarms": outcome.alarms,
        "retrainings": outcome.retrainings,
        "promotions": outcome.promotions,
        "rollbacks": outcome.rollbacks,
        "live_metric": {month.month: month.live for month in outcome.months},
        "frozen_metric": {month.month: month.frozen for month in outcome.months},
        "prediction": outcome.sample,
        "seconds": round(seconds, 2),
    }


def _draw(outcome: YearOutcome, story: Simulation, seconds: float) -> None:
    def day(at: datetime) -> str:
        return f"{at:%Y-%m-%d}"

    console().print()
    runs = [(day(r.at), r.trigger, r.candidate, r.state.replace("_", " "), r.why) for r in outcome.loop_runs]
    table("What the loop did", ("day", "trigger", "candidate", "became", "why"), runs, empty="")
    months = [
        (
            month.month,
            month.labelled,
            month.versions,
            f"{month.live:.3f}" if month.live is not None else None,
            f"{month.frozen:.3f}" if month.frozen is not None else None,
            f"{month.live - month.frozen:+.3f}" if month.live is not None and month.frozen is not None else None,
        )
        for month in outcome.months
    ]
    columns = ("month", "labels", "answered by", "lived", "frozen", "gained")
    table("What it was worth: AUC as lived, and had the first version been frozen", columns, months, empty="")
    alarms = " and ".join(
        f"{sum(alarm.kind == kind for alarm in outcome.alarms)} {kind}" for kind in ("drift", "performance")
    )
    console().print(
        f"{len(outcome.snapshots)} snapshots, {len(outcome.versions)} versions, "
        f"{alarms} alarms, {len(outcome.retrainings)} retrainings, "
        f"{len(outcome.promotions)} promotions, {len(outcome.rollbacks)} rollbacks; {seconds:.0f} s."
    )
    endpoint = story.endpoint
    first = outcome.versions[0].key if outcome.versions else ""
    console().print("\nEvery number comes from the store; ask it yourself:")
    lines = [
        (f"cd {story.folder}", "an ordinary project: read it, change it, run it again"),
        (f"everloop release ls {endpoint}", "what the loop did"),
        (f"everloop monitor performance {endpoint} --labels-after 1d", "AUC lived"),
        (f"everloop monitor performance {endpoint} --labels-after 1d --as-if {first}", "AUC never retrained"),
        (f"everloop monitor ls {endpoint} --severity alarm", "the alarms"),
        (f"everloop lineage {outcome.sample}", "one answer, back to its model, data and code"),
        ("everloop up", "endpoint, API and status page"),
    ]
    width = max(len(command) for command, _ in lines)
    for command, what in lines:
        console().print(f"  {command:<{width}}  [dim]{what}[/dim]", soft_wrap=True)
    messages().print()
