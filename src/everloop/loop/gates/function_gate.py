"""A gate that is a plain function of the user."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from everloop.errors import EmptySampleError, StoreError, UnavailableError, UsageError
from everloop.loop.declaration_checks import check_number, check_text
from everloop.loop.gates.gate_protocol import GateOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.loop.gates.gate_protocol import GateContext
    from everloop.records import GateSeverity, Outcome


@dataclass(frozen=True, slots=True)
class Check:
    """Gate: a function of your own, which gets a `GateContext`.

    The function returns True or False, a number that is compared with `at_least` and `at_most`, or a `GateOutcome`. If
    it raises an exception, such as that of an `assert`, the gate fails with the exception as its message. If it returns
    anything else, the gate fails as well, so that a forgotten `return` does not let every candidate pass.

    `gates=[function]` is short for `gates=[Check(function)]`. A changed function is checked again, because its code is
    part of the step's cache key.

    Args:
        function: takes a `GateContext`.
        name: identifies the gate in its results. Default: the name of the function.
        at_least: the smallest number that passes.
        at_most: the largest number that passes.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Raises:
        UsageError: `function` is not a function, or the limits exclude every number.

    Example:
        `Check(lambda context: abs(context.scores.mean() - context.labels.mean()), name="mean", at_most=0.02)`
    """

    function: Callable[[GateContext], Any]
    name: str = ""
    at_least: float | None = None
    at_most: float | None = None
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            raise UsageError(
                f"Check(function=) is {self.function!r}, but must be a function.",
                help="Pass a function that takes a context: el.Check(my_function)",
            )
        if not self.name:
            object.__setattr__(self, "name", str(getattr(self.function, "__name__", type(self.function).__name__)))
        check_text("Check(name=)", self.name, "el.Check(function, name='my check')")
        for argument, limit in (("at_least", self.at_least), ("at_most", self.at_most)):
            if limit is not None:
                check_number(f"Check({argument}=)", limit)
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise UsageError(
                f"Check(at_least=) is {self.at_least:g}, which is above at_most={self.at_most:g}: no number passes.",
                help="Exchange the two limits.",
            )

    def check(self, context: GateContext) -> GateOutcome:
        try:
            found = self.function(context)
        except (EmptySampleError, StoreError, UnavailableError):
            raise  # says nothing about the candidate; see the protocol
        except Exception as error:
            kind = type(error).__name__
            text = f"{kind}: {error}" if str(error) else f"{kind} in {self.name}"
            return GateOutcome("fail", text, {"error": kind})
        return self._outcome(found)

    def _outcome(self, found: object) -> GateOutcome:
        import numpy as np

        if isinstance(found, GateOutcome):
            return found
        if isinstance(found, np.generic):
            found = found.item()
        if isinstance(found, bool):
            return GateOutcome("pass" if found else "fail", f"{self.name} returned {found}", {"value": found})
        if isinstance(found, Real):
            return self._within(float(found))
        return GateOutcome(
            "fail",
            f"{self.name} returned {_shortened(found)}, but must return True, False, a number or a GateOutcome",
            {},
        )

    def _within(self, number: float) -> GateOutcome:
        limits = []
        if self.at_least is not None:
            limits.append(f"at least {self.at_least:g}")
        if self.at_most is not None:
            limits.append(f"at most {self.at_most:g}")
        if not limits:
            text = (
                f"{self.name} returned the number {number:g}, but has no limit: set at_least= or at_most= of el.Check"
            )
            return GateOutcome("fail", text, {"value": number if math.isfinite(number) else None})
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        outcome: Outcome = "pass" if low <= number <= high and math.isfinite(number) else "fail"
        evidence = {
            "value": number if math.isfinite(number) else None,
            "at_least": self.at_least,
            "at_most": self.at_most,
        }
        return GateOutcome(outcome, f"{self.name} is {number:.4g}, required {' and '.join(limits)}", dict(evidence))


def _shortened(value: object, characters: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= characters else f"{text[:characters]}…"
