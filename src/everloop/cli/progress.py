"""Drawing a graph's run in the terminal, step by step, on standard error.

In a terminal, the steps that run stand below those that ended, each with its seconds and what it says of itself. In a
file or a pipe a step that takes long says so in a line of its own, at most every ten seconds.
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
"""How often a step that runs says so where the output is not a terminal."""
MOST_SHOWN = 8


class StepLines(Listener):
    """One line a step as it ends, and one for each that runs."""

    def __init__(self, console: Console | None = None, *, line_every_s: float = LINE_EVERY_S) -> None:
        self._console = console or messages()
        self._every_s = line_every_s
        self._running: dict[str, float] = {}
        self._news: dict[str, str] = {}
        self._said: dict[str, float] = {}
        self._guard = threading.Lock()
        self._live: Live | None = None
        self._over = threading.Event()
        self._speaker: threading.Thread | None = None

    def on_begin(self, names: Sequence[str]) -> None:
        if self._console.is_terminal:
            from rich.live import Live

            # Transient: whatever ends the run, also Ctrl-C, the lines of running steps are gone and the cursor is back.
            self._live = Live(
                console=self._console, get_renderable=self._draw, refresh_per_second=8, transient=True
            )  # fmt: skip
            self._live.start()
            return
        self._speaker = threading.Thread(target=self._speak, name="everloop-progress", daemon=True)
        self._speaker.start()

    def on_start(self, name: str, reason: str) -> None:
        with self._guard:
            self._running[name] = self._said[name] = monotonic()

    def on_progress(self, name: str, progress: StepProgress) -> None:
        text = progress.text()
        with self._guard:
            self._news[name] = text

    def on_retry(self, name: str, error: BaseException, wait_s: float) -> None:
        from rich.markup import escape

        self._console.print(f"  [yellow]↻[/yellow] {escape(name)}: {escape(str(error))}; again in {wait_s:.1f} s")

    def on_finish(self, step: StepRun) -> None:
        from rich.markup import escape

        with self._guard:
            for known in (self._running, self._news, self._said):
                known.pop(step.name, None)
        taken = f"{step.seconds:6.2f} s" if step.status in ("ran", "failed") else " " * 8
        line = f"  {MARKS[step.status]} {step.name:<12} {step.status:<11} {taken}  [dim]{escape(step.reason)}[/dim]"
        self._console.print(line, soft_wrap=True)
        for note in (note for observed in step.observed for note in observed.get("notes", ())):
            self._console.print(f"    {escape(note)}", soft_wrap=True)

    def on_end(self) -> None:
        self._over.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._speaker is not None:
            self._speaker.join()
            self._speaker = None

    def lines(self, now: float | None = None) -> list[str]:
        """A line for each step that runs: its name, its seconds and its news."""
        at = monotonic() if now is None else now
        with self._guard:
            running = list(self._running.items())
            news = dict(self._news)
        found = [_line(name, at - began, news.get(name)) for name, began in running[:MOST_SHOWN]]
        if len(running) > MOST_SHOWN:
            found.append(f"and {len(running) - MOST_SHOWN} more")
        return found

    def _draw(self) -> RenderableType:
        """What stands below the finished steps now; asked for at each refresh, so that the seconds go on."""
        from rich.console import Group
        from rich.text import Text

        mark = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[int(monotonic() * 8) % 10]
        return Group(
            *(
                Text(f"  {mark} {printable(line, breaks=False)}", no_wrap=True, overflow="ellipsis")
                for line in self.lines() or ["starting"]
            )
        )

    def _speak(self) -> None:
        while not self._over.wait(min(1.0, self._every_s / 4)):
            now = monotonic()
            with self._guard:
                due = [name for name, said in self._said.items() if now - said >= self._every_s]
                told = [_line(name, now - self._running[name], self._news.get(name)) for name in due]
                self._said |= dict.fromkeys(due, now)
            for line in told[:MOST_SHOWN]:
                self._console.print(f"  … {line}", markup=False, soft_wrap=True)


@contextmanager
def packaging(
    console: Console | None = None, *, line_every_s: float = LINE_EVERY_S
) -> Iterator[Callable[[PackagingProgress], None]]:
    """Show how far packaging a model has come: what is called in the block draws a line, gone at its end.

    Where standard error is not a terminal, a line of its own at most every `line_every_s` seconds.
    """
    shown = console or messages()
    if shown.is_terminal:
        with shown.status("packaging") as status:
            yield lambda at: status.update(_packaging(at))
        return
    said = 0.0

    def say(at: PackagingProgress) -> None:
        nonlocal said
        if at.seconds - said >= line_every_s:
            said = at.seconds
            shown.print(f"  … {_packaging(at)}", markup=False, soft_wrap=True)

    yield say


def _packaging(at: PackagingProgress) -> str:
    return _line("packaging", at.seconds, f"{at.stage}: {at.done:,} of {at.total:,}")


def _line(name: str, seconds: float, news: str | None) -> str:
    minutes, rest = divmod(int(seconds), 60)
    taken = f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{name:<12} {taken}" + (f"  {news}" if news else "")
