"""The endpoint of a loop and how a candidate replaces its champion, as a loop declares them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration, check_name, check_number
from everloop.loop.releases.freeze_windows import parse_window
from everloop.stores.durations import parse_duration

USUAL_DAYS = 7
"""By default, success is proven by predictions of a week, which has every weekday in it."""
_BY_RULE = float("nan")
"""The default margin, which depends on the rule."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A rollout that gives the candidate a growing share of the traffic, as live evidence allows.

    Candidate and champion are compared on the same labelled live rows by a sequential test. Its `error` belongs to the
    whole release, over all steps and however often it is looked at.

    * A step forward needs `least_labels` new labelled predictions, and no sign of harm.
    * All the traffic needs the whole test: the candidate is proven to be not worse than the champion by more than
      `margin`, or, with `rule="better"`, to be better by more than `margin`.
    * If the candidate is proven to be worse, it is rolled back and the champion gets all the traffic.
    * Failed requests, slow answers and wrong answers roll it back within seconds, without labels.
    * Scores or estimates that are far from what held-out rows showed roll it back before labels arrive.

    Args:
        steps: shares of the traffic in percent, rising and ending with 100. A first step of 0 is a shadow: the
            candidate scores copies of the requests, and no client gets its answers.
        margin: `not_worse`: the loss that you tolerate; `better`: the gain that you require. In the unit of the metric.
            Default: 0.01 for `not_worse`, 0 for `better`.
        least_labels: how many labelled predictions are needed at each step before it is decided.
        patience: how long a step may stay undecided, such as `"4w"`.
        rule: what has to be proven before the candidate takes all the traffic, `"not_worse"` or `"better"`.
        error: the probability of promoting a candidate that is exactly at the limit of the rule.
        planned_labels: labelled predictions by which the test is planned to end. It is most sensitive there, and can
            still decide later. Default: 25 times `least_labels`.
        if_undecided: what happens when `patience` or `longest` runs out without a result: `"back"` to the champion,
            `"advance"` if the estimate is within the rule, or `"hold"` until a person decides.
        longest: how long the whole release may take, such as `"8w"`. Default: no limit.
        shadow: how long the candidate is a shadow before it gets the first share of the traffic, such as `"3d"`.
        approval: a person has to approve before the candidate takes all the traffic.
        freeze: weekly windows without a step forward, such as `"fri 16:00 - mon 08:00 Europe/Berlin"`, or dates such as
            `"2026-12-20 - 2027-01-03 Europe/Berlin"`. Rollbacks are always allowed.
        most_errors: the share of failed requests, and of invalid answers, that is tolerated.
        slowdown: the candidate may be this many times as slow as the champion, at the 99th percentile.
        p99_ms: a limit of the time of an answer, in milliseconds, that 99 % have to keep. Default: none.
        least_days: success is proven only by labelled predictions of at least this many days, because fewer days
            cannot show by how much days differ. Default: 7, or the whole days of `patience` or `longest` if these
            are shorter.
        before_labels: roll back as well if live rows without labels show that the candidate is bad: by estimates of its
            metric, by scores far from those of the held-out rows, or by answers far from the champion's.

    Raises:
        UsageError: the steps do not rise to 100, a duration or a window cannot be read, or a number is out of range.

    Example:
        `Canary(steps=[10, 50, 100], least_labels=500, patience="2w", freeze=["fri 16:00 - mon 08:00 Europe/Berlin"])`
    """

    steps: tuple[float, ...] | list[float] = (10, 50, 100)
    margin: float = _BY_RULE
    least_labels: int = 200
    patience: str = "4w"
    rule: Literal["not_worse", "better"] = "not_worse"
    error: float = 0.05
    planned_labels: int | None = None
    if_undecided: Literal["back", "advance", "hold"] = "back"
    longest: str | None = None
    shadow: str | None = None
    approval: bool = False
    freeze: tuple[str, ...] | list[str] = ()
    most_errors: float = 0.01
    slowdown: float = 2.0
    p99_ms: float | None = None
    least_days: int | None = None
    before_labels: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _checked_steps(self.steps))
        if self.margin is _BY_RULE:
            object.__setattr__(self, "margin", 0.01 if self.rule == "not_worse" else 0.0)
        check_number("Canary(margin=)", self.margin)
        check_number("Canary(least_labels=)", self.least_labels, least=1, whole=True)
        if self.least_days is not None:
            check_number("Canary(least_days=)", self.least_days, least=1, whole=True)
        check_duration("Canary(patience=)", self.patience)
        _check_choice("Canary(rule=)", self.rule, ("not_worse", "better"))
        _check_choice("Canary(if_undecided=)", self.if_undecided, ("back", "advance", "hold"))
        for name, share, most in (("error", self.error, 0.5), ("most_errors", self.most_errors, 1.0)):
            check_number(f"Canary({name}=)", share, above=0)
            if share >= most:
                raise UsageError(
                    f"Canary({name}=) is {share!r}, but must be below {most:g}.", help="Change the number in loop.py."
                )
        if self.planned_labels is not None:
            check_number("Canary(planned_labels=)", self.planned_labels, least=self.least_labels, whole=True)
        for name, span in (("longest", self.longest), ("shadow", self.shadow)):
            if span is not None:
                check_duration(f"Canary({name}=)", span)
        for name, value in (("approval", self.approval), ("before_labels", self.before_labels)):
            if not isinstance(value, bool):
                raise UsageError(
                    f"Canary({name}=) is {value!r}, but must be True or False.", help="Change it in loop.py."
                )
        check_number("Canary(slowdown=)", self.slowdown, least=1)
        if self.p99_ms is not None:
            check_number("Canary(p99_ms=)", self.p99_ms, above=0)
        windows: object = self.freeze
        if isinstance(windows, str) or not isinstance(windows, Sequence):
            raise UsageError(
                f"Canary(freeze=) is {self.freeze!r}, but must be a list of windows.",
                help='For example: Canary(freeze=["fri 16:00 - mon 08:00 Europe/Berlin"])',
            )
        for window in windows:
            parse_window(window)
        object.__setattr__(self, "freeze", tuple(windows))

    @property
    def planned(self) -> int:
        """Labelled predictions by which the test is planned to end."""
        return self.planned_labels if self.planned_labels is not None else 25 * self.least_labels

    @property
    def days_of_proof(self) -> int:
        """Days whose labelled predictions are needed to prove success."""
        if self.least_days is not None:
            return self.least_days
        limits = [parse_duration(span) for span in (self.patience, self.longest) if span is not None]
        return max(1, min(USUAL_DAYS, *(limit.days for limit in limits)))

    @property
    def percents(self) -> tuple[float, ...]:
        """The steps of the release; a shadow is a first step of 0 percent."""
        return (0.0, *self.steps) if self.shadow is not None and self.steps[0] > 0 else tuple(self.steps)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The endpoint that serves the champion.

    Args:
        name: letters, digits, `-` and `_`, such as `"delays"`. Clients see it in the URL.
        rollout: how a candidate replaces the champion. Without one, a candidate that passes all its gates takes all
            the traffic at once.

    Raises:
        UsageError: the name contains other characters.

    Example:
        `Endpoint("delays", rollout=Canary(steps=[10, 50, 100]))`
    """

    name: str
    rollout: Canary | None = None

    def __post_init__(self) -> None:
        check_name("an endpoint", self.name, "delays")
        if self.rollout is not None and not isinstance(self.rollout, Canary):
            raise UsageError(
                f"Endpoint(rollout=) is {self.rollout!r}, but must be a canary.",
                help="For example: Endpoint('delays', rollout=Canary(steps=[10, 50, 100]))",
            )


def _checked_steps(steps: object) -> tuple[float, ...]:
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise UsageError(
            f"Canary(steps=) is {steps!r}, but must be a list of percentages.",
            help="For example: Canary(steps=[10, 50, 100])",
        )
    for step in steps:
        check_number("A step of Canary(steps=)", step, least=0)
    found = tuple(float(step) for step in steps)
    rising = all(earlier < later for earlier, later in itertools.pairwise(found))
    if not found or not rising or found[-1] != 100:
        raise UsageError(
            f"Canary steps must rise from 0 or more to 100 percent, not {list(steps)}.",
            help="For example: Canary(steps=[10, 50, 100])",
        )
    return found


def _check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = " or ".join(f"'{choice}'" for choice in choices)
        raise UsageError(f"{argument} is {value!r}, but must be {listed}.", help=f"For example: '{choices[0]}'")
