"""The endpoint of a loop and how a candidate replaces its champion, as a loop declares them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration, check_name, check_number


@dataclass(frozen=True, slots=True)
class Canary:
    """A rollout that gives the candidate a growing share of the traffic, as live evidence allows.

    Once enough labels have arrived, candidate and champion are compared on the same live rows. If the candidate is not
    worse by more than `margin`, it gets the next share. If it is worse, it is rolled back and the champion gets all the
    traffic. If `patience` runs out without a clear result, the version with the better estimate wins.

    Args:
        steps: shares of the traffic in percent, rising and ending with 100.
        margin: the loss that you tolerate, in the unit of the metric.
        least_labels: how many labelled predictions are needed at each step before it is decided.
        patience: how long a step may stay undecided, such as `"4w"`.

    Raises:
        UsageError: the steps do not rise to 100, or `patience` is not a duration.

    Example:
        `Canary(steps=[10, 50, 100], least_labels=500, patience="2w")`
    """

    steps: tuple[float, ...] | list[float] = (10, 50, 100)
    margin: float = 0.01
    least_labels: int = 200
    patience: str = "4w"

    def __post_init__(self) -> None:
        given: object = self.steps
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise UsageError(
                f"Canary(steps=) is {self.steps!r}, but must be a list of percentages.",
                help="For example: Canary(steps=[10, 50, 100])",
            )
        for step in self.steps:
            check_number("A step of Canary(steps=)", step, above=0)
        steps = tuple(float(step) for step in self.steps)
        rising = all(earlier < later for earlier, later in itertools.pairwise(steps))
        if not steps or not rising or steps[-1] != 100:
            raise UsageError(
                f"Canary steps must rise from above 0 to 100 percent, not {list(self.steps)}.",
                help="For example: Canary(steps=[10, 50, 100])",
            )
        check_number("Canary(margin=)", self.margin)
        check_number("Canary(least_labels=)", self.least_labels, least=1, whole=True)
        check_duration("Canary(patience=)", self.patience)
        object.__setattr__(self, "steps", steps)

    @property
    def percents(self) -> tuple[float, ...]:
        return tuple(self.steps)


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
