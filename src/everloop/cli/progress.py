"""Show the progress of a pipeline on standard error, step by step.

In a terminal, the running steps are shown below the finished ones, each with its seconds and its progress. In a file or
a pipe, a step that takes long gets a line of its own, at most every ten seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from everloop.cli.output import messages
from everloop.pipeline import Listener
from everloop.stores.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from everloop.packages.time_budget import PackagingProgress
    from everloop.pipeline import StepProgress
    from everloop.records import StepRun

MARKS = {
    "ran": "[green]✓[/green]",
    "cached": "[dim]·[/dim]",
    "failed": "[red]✗[/red]",
    "skipped": "[dim]-[/dim]",
    "interrupted": "[yellow]![/yellow]",
}
LINE_EVERY_S = 10.0
"""Seconds between two lines about a running step if the output is not a terminal."""
MOST_SHOWN = 8


class StepLines(Listener):
    """Prints one line per finished step, and shows one per running step."""

    def __init__(self, console: Console | None = None, *, line_every_s: float = LINE_EVERY_S) -> None:
        self._console = console or messages()
        self._every_s = line_every_s
        self._running: dict[str, float] = {}
        self._progress: dict[str, str] = {}
        self._printed_at: dict[str, float] = {}
        self._guard = threading.Lock()
        self._live: Live | None = None
        self._ended = threading.Event()
        self._printer: threading.Thread | None = None

    def on_begin(self, names: Sequence[str]) -> None:
        if self._console.is_terminal:
            from rich.live import Live

            # Transient: whatever ends the run, even Ctrl-C, removes the lines of running steps and restores the cursor.
            self._live = Live(
                console=self._console, get_renderable=self._draw, refresh_per_second=8, transient=True
            )  # fmt: skip
            self._live.start()
            return
        self._printer = threading.Thread(target=self._print_periodically, name="everloop-progress", daemon=True)
        self._printer.start()

    def on_start(self, name: str, reason: str) -> None:
        with self._guard:
            self._running[name] = self._printed_at[name] = monotonic()

    def on_progress(self, name: str, progress: StepProgress) -> None:
        text = progress.text()
        with self._guard:
            self._progress[name] = text

    def on_retry(self, name: str, error: BaseException, wait_s: float) -> None:
        from rich.markup import escape

        self._console.print(f"  [yellow]↻[/yellow] {escape(name)}: {escape(str(error))}; retry in {wait_s:.1f} s")

    def on_finish(self, step: StepRun) -> None:
        from rich.markup import escape

        with self._guard:
            for by_step in (self._running, self._progress, self._printed_at):
                by_step.pop(step.name, None)
        taken = f"{step.seconds:6.2f} s" if step.status in ("ran", "failed") else " " * 8
        line = f"  {MARKS[step.status]} {step.name:<12} {step.status:<11} {taken}  [dim]{escape(step.reason)}[/dim]"
        self._console.print(line, soft_wrap=True)
        for note in (note for observed in step.observed for note in observed.get("notes", ())):
            self._console.print(f"    {escape(note)}", soft_wrap=True)

    def on_end(self) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._printer is not None:
            self._printer.join()
            self._printer = None

    def lines(self, now: float | None = None) -> list[str]:
        """Return a line for each running step: its name, its seconds and its progress."""
        at = monotonic() if now is None else now
        with self._guard:
            running = list(self._running.items())
            progress = dict(self._progress)
        lines = [_line(name, at - began, progress.get(name)) for name, began in running[:MOST_SHOWN]]
        if len(running) > MOST_SHOWN:
            lines.append(f"and {len(running) - MOST_SHOWN} more")
        return lines

    def _draw(self) -> RenderableType:
        """Draw the running steps. Called at each refresh, so that the seconds advance."""
        from rich.console import Group
        from rich.text import Text

        mark = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[int(monotonic() * 8) % 10]
        return Group(
            *(
                Text(f"  {mark} {printable(line, breaks=False)}", no_wrap=True, overflow="ellipsis")
                for line in self.lines() or ["starting"]
            )
        )

    def _print_periodically(self) -> None:
        while not self._ended.wait(min(1.0, self._every_s / 4)):
            now = monotonic()
            with self._guard:
                due = [name for name, printed_at in self._printed_at.items() if now - printed_at >= self._every_s]
                lines = [_line(name, now - self._running[name], self._progress.get(name)) for name in due]
                self._printed_at |= dict.fromkeys(due, now)
            for line in lines[:MOST_SHOWN]:
                self._console.print(f"  … {line}", markup=False, soft_wrap=True)


@contextmanager
def packaging(
    console: Console | None = None, *, line_every_s: float = LINE_EVERY_S
) -> Iterator[Callable[[PackagingProgress], None]]:
    """Show the progress of packaging a model. Yields the function that reports it.

    In a terminal, one line is updated and removed at the end of the block. Otherwise a new line is printed, at most
    every `line_every_s` seconds.
    """
    console = console or messages()
    if console.is_terminal:
        with console.status("packaging") as status:
            yield lambda progress: status.update(_packaging(progress))
        return
    printed_at = 0.0

    def print_line(progress: PackagingProgress) -> None:
        nonlocal printed_at
        if progress.seconds - printed_at >= line_every_s:
            printed_at = progress.seconds
            console.print(f"  … {_packaging(progress)}", markup=False, soft_wrap=True)

    yield print_line


def _packaging(progress: PackagingProgress) -> str:
    return _line("packaging", progress.seconds, f"{progress.stage}: {progress.done:,} of {progress.total:,}")


def _line(name: str, seconds: float, progress: str | None) -> str:
    minutes, rest = divmod(int(seconds), 60)
    taken = f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{name:<12} {taken}" + (f"  {progress}" if progress else "")
