"""Show the demo in a terminal: a progress bar for the year, and a line for each thing that happens in it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from everloop.cli.output import messages
from everloop.cli.progress import MARKS
from everloop.demo import SimulationListener
from everloop.pipeline import Listener

if TYPE_CHECKING:
    from rich.progress import TaskID

    from everloop.loop import LoopRun, Reconciliation
    from everloop.records import Incident, StepRun


class Timeline(SimulationListener):
    """Prints on standard error. If that is not a terminal, the progress bar is left out."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("weeks · {task.fields[questions]:,} requests answered"),
            TimeElapsedColumn(),
            console=messages(),
            transient=True,
            disable=not messages().is_terminal,
        )
        self._task: TaskID | None = None
        self._questions = 0

    def chapter(self, title: str) -> None:
        if self._task is not None:
            self._bar.stop()
            self._task = None
        messages().print(f"[bold]{title}[/bold]")

    def step_listener(self) -> Listener:
        return _Steps(self)

    def week(self, number: int, weeks: int, monday: datetime) -> None:
        if self._task is None:
            self._task = self._bar.add_task("2013", total=weeks, questions=0)
            self._bar.start()
        self._bar.update(self._task, completed=number - 1, description=f"{monday:%d %b}")

    def answered(self, requests: int) -> None:
        self._questions += requests
        if self._task is not None:
            self._bar.update(self._task, questions=self._questions)

    def doing(self, what: str) -> None:
        """Show the step that a run of the loop is at."""
        if self._task is not None:
            self._bar.update(self._task, description=what)

    def ticked(self, now: datetime, reconciliation: Reconciliation) -> None:
        for finding in reconciliation.findings:
            if finding.kind == "performance" and finding.severity == "info" and finding.value is not None:
                who = f"[dim]{escape(finding.version or '')}[/dim]"
                value = f"AUC [bold]{finding.value:.3f}[/bold] {_bar(finding.value)}"
                self._line(finding.window_from, f"week        {who} {value}")
        for incident in reconciliation.incidents:
            # What joins an incident is in its history; the timeline shows what is announced at once.
            if incident.history[-1].action in ("open", "escalate", "resolve"):
                self._line(now, incident_line(incident))
        if reconciliation.release is not None and reconciliation.release.decisions:
            release, last = reconciliation.release, reconciliation.release.decisions[-1]
            colour = {"roll_back": "red", "complete": "green", "advance": "green"}.get(last.action, "yellow")
            what = {"roll_back": "rolled back", "complete": "promoted", "advance": "advanced", "hold": "held"}
            action = f"[{colour}]{what.get(last.action, last.action):<11}[/{colour}]"
            self._line(now, f"{action} {release.candidate} at {release.percent:g}%: {escape(last.reason)}")
        if reconciliation.due is not None:
            self._line(
                now, f"[yellow]retrain[/yellow]     {reconciliation.due.trigger}: {escape(reconciliation.due.reason)}"
            )

    def loop_ran(self, now: datetime, loop_run: LoopRun) -> None:
        if loop_run.version is None:
            return
        colours = {"pass": "green", "fail": "red", "undecided": "yellow"}
        gates = "  ".join(f"[{colours[gate.outcome]}]{escape(gate.gate)}: {gate.outcome}[/]" for gate in loop_run.gates)
        seconds = f"[dim]{loop_run.run.seconds or 0:.1f} s[/dim]"
        state = loop_run.release.state.replace("_", " ") if loop_run.release else loop_run.version.state
        self._line(now, f"[cyan]candidate[/cyan]   {loop_run.version.key} {state} {seconds}  {gates}")

    def _line(self, at: datetime, text: str) -> None:
        messages().print(f"  {at:%d %b}  {text}", soft_wrap=not messages().is_terminal)


def incident_line(incident: Incident) -> str:
    """Return an incident as one line of the timeline."""
    if incident.state == "resolved":
        return f"[green]resolved[/green]    {incident.kind}: {escape(incident.title)}"
    colour = "red" if incident.severity == "alarm" else "yellow"
    return f"[{colour}]{incident.severity:<11}[/{colour}] {incident.kind}: {escape(incident.title)}"


def _bar(value: float) -> str:
    """Draw an AUC between 0.5 and 0.85 as a bar of up to 20 cells."""
    cells = round(max(0.0, min(1.0, (value - 0.5) / 0.35)) * 20)
    return f"[blue]{'█' * cells}[/blue]"


class _Steps(Listener):
    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def on_start(self, name: str, reason: str) -> None:
        self._timeline.doing(name)

    def on_finish(self, step: StepRun) -> None:
        if self._timeline._task is None:
            messages().print(f"  {MARKS[step.status]} {step.name:<10} [dim]{step.seconds:6.2f} s[/dim]")
