"""`everloop demo`: the whole life cycle of a model, on real flights."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, console, count, emit, messages, table

if TYPE_CHECKING:
    from everloop.demo import Simulation, SimulationListener, YearOutcome

PORT = 8100


def demo(
    folder: Annotated[Path, typer.Argument(help="Project folder; created if missing, otherwise resumed.")] = Path(
        "flight-delays"
    ),
    exit: Annotated[
        bool, typer.Option("--exit", help="Exit after the final table instead of serving the API and web page.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the API and web page afterwards; 0 picks a free one.")] = PORT,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            help="Where the steps of runs are executed, as for everloop run. Default: 'executor' in the folder's "
            "everloop.toml, else local.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Simulate a year in a model's life, on real flights.

    The model is trained, served, monitored, found to decay, retrained and replaced.
    """
    from everloop.demo import Simulation, read_outcome
    from everloop.pipeline.executors.executor_choice import check_executor

    if on is not None:
        check_executor(on, "--on")
    started = perf_counter()
    simulation = Simulation(folder, _listener(json), on=on)
    with simulation.run() as store:
        simulation.listener.chapter("Reading the year back from the store")
        outcome = read_outcome(store, simulation.loop.name, simulation.endpoint)
        seconds = perf_counter() - started
        emit(_as_json(outcome, seconds), json, lambda: _draw(outcome, simulation, seconds))
        if exit:
            return
        from everloop.cli.loop import keep_up
        from everloop.stores import SharedClock

        if isinstance(store.clock, SharedClock):
            # From here on, the simulated clock runs at the speed of real time.
            store.clock.tick()
        keep_up(store, simulation.folder, port=port)


def _listener(quiet: bool) -> SimulationListener:
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
        "incidents": [
            {**asdict(one.incident), "expected": one.expected, "live": one.live, "hindsight": one.verdict}
            for one in outcome.incidents
        ],
        "retrainings": outcome.retrainings,
        "promotions": outcome.promotions,
        "rollbacks": outcome.rollbacks,
        "live_metric": {month.month: month.live for month in outcome.months},
        "frozen_metric": {month.month: month.frozen for month in outcome.months},
        "prediction": outcome.sample,
        "seconds": round(seconds, 2),
    }


def _draw_incidents(outcome: YearOutcome) -> None:
    """Show each incident with what hindsight says about it: what the live AUC did meanwhile."""
    rows = [
        (
            f"{one.incident.began_at:%Y-%m-%d}",
            f"{one.incident.seen_at:%Y-%m-%d}",
            one.incident.severity,
            one.incident.title,
            f"{one.expected:.3f}" if one.expected is not None else None,
            f"{one.live:.3f}" if one.live is not None else None,
            one.verdict,
        )
        for one in outcome.incidents
    ]
    columns = ("from", "to", "severity", "what", "AUC before", "AUC then", "hindsight")
    table("Incidents, judged by the live AUC", columns, rows, empty="No incident.")


def _draw(outcome: YearOutcome, simulation: Simulation, seconds: float) -> None:
    def day(at: datetime) -> str:
        return f"{at:%Y-%m-%d}"

    console().print()
    runs = [(day(t.at), t.trigger, t.candidate, t.state.replace("_", " "), t.why) for t in outcome.loop_runs]
    table("Runs of the loop", ("day", "trigger", "candidate", "outcome", "why"), runs, empty="")
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
    columns = ("month", "labels", "answered by", "live", "frozen", "gain")
    table("AUC by month: live, and if the first version had never been retrained", columns, months, empty="")
    _draw_incidents(outcome)
    console().print(
        f"{count(len(outcome.snapshots), 'snapshot')}, {count(len(outcome.versions), 'version')},"
        f" {count(len(outcome.incidents), 'incident')}, {count(len(outcome.retrainings), 'retraining')},"
        f" {count(len(outcome.promotions), 'promotion')}, {count(len(outcome.rollbacks), 'rollback')};"
        f" {seconds:.0f} s."
    )
    endpoint = simulation.endpoint
    first = outcome.versions[0].key if outcome.versions else ""
    console().print("\nEvery number comes from the store. Look for yourself:")
    lines = [
        (f"cd {simulation.folder}", "an ordinary project: read it, change it, run it again"),
        (f"everloop release ls {endpoint}", "the releases"),
        (f"everloop monitor performance {endpoint} --labels-after 1d", "the live AUC"),
        (f"everloop monitor performance {endpoint} --labels-after 1d --as-if {first}", "the AUC without retraining"),
        (f"everloop monitor ls {endpoint} --all", "the incidents"),
        (f"everloop lineage {outcome.sample}", "one prediction, back to its model, data and code"),
        ("everloop replay --from 2013-04-01", "the same months with other policies: when should it retrain?"),
        ("everloop up", "endpoint, API and web page"),
    ]
    width = max(len(command) for command, _ in lines)
    for command, what in lines:
        console().print(f"  {command:<{width}}  [dim]{what}[/dim]", soft_wrap=True)
    messages().print()
