"""Limits on retraining: how often a loop, or one of its triggers, may start a run.

The limits are pure functions of the clock and of the runs so far. Nothing else is remembered, so they hold in every
process and in a replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from everloop.records import Run

DEFAULT_BUDGET = "1000 / week"
"""One run each ten minutes on average. Only a policy that would retrain for ever uses it up."""
_WORDS = {"minute": "1m", "hour": "1h", "day": "1d", "week": "1w", "month": "30d"}
_MOST_RUNS = 10_000
_MOST_DOUBLINGS = 40


@dataclass(frozen=True, slots=True)
class RetrainLimits:
    """How often triggers may start a run.

    Args:
        debounce: wait until nothing new has happened for this long, so that ten files in a minute lead to one run.
        cooldown: shortest time between the start of the last run and a run that a trigger starts.
        budget: most runs that triggers may start in a time, such as `"3 / week"` or `"1 / 12h"`; None for no limit.
        backoff: time to wait after a failed run. It doubles with each further failure in a row.
        longest_backoff: upper limit of that time.

    Raises:
        UsageError: a value is not a duration or not a budget.

    Example:
        `RetrainLimits(cooldown="1d", budget="3 / week")`
    """

    debounce: str = "0s"
    cooldown: str = "0s"
    budget: str | None = DEFAULT_BUDGET
    backoff: str = "10m"
    longest_backoff: str = "1d"

    def __post_init__(self) -> None:
        for name in ("debounce", "cooldown", "backoff", "longest_backoff"):
            check_duration(f"RetrainLimits({name}=)", getattr(self, name))
        if self.budget is not None:
            parse_budget(self.budget)

    def next_after_cooldown(self, last: Run) -> datetime:
        """Return when the cool-down after the last run ends."""
        return last.started_at + parse_duration(self.cooldown)

    def next_after_failures(self, runs: Sequence[Run]) -> tuple[int, datetime | None]:
        """Return how many runs in a row have failed, and when the next attempt may begin; None if it may begin now.

        Runs that were interrupted or whose process died are passed over: the next run resumes them at once.

        Args:
            runs: the loop's runs, newest first.
        """
        failures: list[Run] = []
        for run in runs:
            if run.state in ("interrupted", "lost"):
                continue
            if run.state != "failed":
                break
            failures.append(run)
        if not failures or not parse_duration(self.backoff):
            return len(failures), None
        factor = 2 ** min(len(failures) - 1, _MOST_DOUBLINGS)
        longest = parse_duration(self.longest_backoff)
        seconds = min(parse_duration(self.backoff).total_seconds() * factor, longest.total_seconds())
        newest = failures[0]
        return len(failures), (newest.ended_at or newest.started_at) + timedelta(seconds=seconds)

    def next_within_budget(self, runs: Sequence[Run], now: datetime) -> datetime | None:
        """Return when the budget allows the next run; None if it allows one now.

        A run counts from its start for the length of the budget's time. Runs that were started by hand do not count.

        Args:
            runs: the runs that count, newest first, at least those of the budget's time.
        """
        if self.budget is None:
            return None
        most, span = parse_budget(self.budget)
        recent = [run for run in runs if run.started_at > now - span]
        if len(recent) < most:
            return None
        return recent[most - 1].started_at + span

    @property
    def budget_span(self) -> timedelta:
        """The time that the budget is for; zero without a budget."""
        return timedelta(0) if self.budget is None else parse_budget(self.budget)[1]


def parse_budget(text: object) -> tuple[int, timedelta]:
    """Parse a budget such as `3 / week` or `1 / 12h`; returns the number of runs and the time.

    Raises:
        UsageError: it is not one.
    """
    digits, slash, unit = (part.strip() for part in text.partition("/")) if isinstance(text, str) else ("", "", "")
    if not slash or not unit or not (digits.isascii() and digits.isdigit()):
        raise UsageError(
            f"RetrainLimits(budget=) is {text!r}, but must be a number of runs and a time.",
            help="For example: '3 / week', '1 / day' or '2 / 12h'",
        )
    if len(digits) > len(str(_MOST_RUNS)) or not 1 <= int(digits) <= _MOST_RUNS:
        raise UsageError(
            f"RetrainLimits(budget=) allows {digits[:20]} runs, but must allow between 1 and {_MOST_RUNS}.",
            help="For no retraining at all, leave retrain= out. For no limit, write budget=None.",
        )
    span = check_duration("RetrainLimits(budget=)", _WORDS.get(unit.lower(), unit), positive=True)
    return int(digits), span


def counts_for_budget(run: Run) -> bool:
    """Whether a trigger has started this run. An interrupted run is resumed by the next one, so it does not count."""
    return run.trigger not in (None, "manual") and run.state != "interrupted"
