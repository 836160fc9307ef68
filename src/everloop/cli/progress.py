"""Drawing a graph's run in the terminal, step by step, on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from everloop.cli.output import messages
from everloop.pipeline import Listener

if TYPE_CHECKING:
    from rich.status import Status

    from everloop.records import Step

MARKS = {
    "ran": "[green]✓[/green]",
    "cached": "[dim]·[/dim]",
    "failed": "[red]✗[/red]",
    "skipped": "[dim]-[/dim]",
    "interrupted": "[yellow]![/yellow]",
}


class StepLines(Listener):
    """One line a step as it ends, and a spinner for those that run."""

    def __init__(self) -> None:
        self._running: dict[str, str] = {}
        self._status: Status | None = None

    def on_begin(self, names: Sequence[str]) -> None:
        if messages().is_terminal:
            self._status = messages().status("starting")
            self._status.start()

    def on_start(self, name: str, reason: str) -> None:
        self._running[name] = reason
        self._spin()

    def on_retry(self, name: str, error: BaseException, wait_s: float) -> None:
        from rich.markup import escape

        messages().print(f"  [yellow]↻[/yellow] {escape(name)}: {escape(str(error))}; again in {wait_s:.1f} s")

    def on_finish(self, step: Step) -> None:
        from rich.markup import escape

        self._running.pop(step.name, None)
        taken = f"{step.seconds:6.2f} s" if step.status in ("ran", "failed") else " " * 8
        line = f"  {MARKS[step.status]} {step.name:<12} {step.status:<11} {taken}  [dim]{escape(step.reason)}[/dim]"
        messages().print(line, soft_wrap=True)
        for note in (note for observed in step.observed for note in observed.get("notes", ())):
            messages().print(f"    {escape(note)}", soft_wrap=True)
        self._spin()

    def on_end(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _spin(self) -> None:
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(", ".join(self._running)) or "…")
