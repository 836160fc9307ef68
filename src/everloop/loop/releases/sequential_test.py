"""The test that decides a release: is the candidate good enough, is it harmful, or is it too early to say?

One error budget belongs to the whole release, over all its steps and looks. Two one-sided tests share its looks:

* The test of success has to pass before the candidate may take all the traffic. It spends little of its error early
  (`late`), so that a release is not completed on its first few labels.
* The test of harm rolls the candidate back. It spends its error evenly, because waiting costs more there.

With the rule `not_worse`, success means a gain above `-margin`, and harm a gain below it. With `better`, success means
a gain above `margin`, and harm a gain below 0. A candidate exactly at the limit of success is promoted with at most the
probability `error`, however often the release is looked at.

Looks at a sample count as if there were more rows (`MeasuredGain.information`). A smaller sample shares fewer rows with
the looks before it, so chance gets more opportunities, and the boundary takes that into account.

Success is judged by the standard error between days, without an assumption about how much days differ, and corrected
for days on which the candidate is far worse than usual (`ProofError`). Harm is judged by a standard error that assumes
a little, so that a bad candidate is rolled back on its first days.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from everloop.loop.releases.metric_influence import t_equivalent
from everloop.loop.releases.spending_boundaries import boundaries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.loop.releases.metric_influence import MeasuredGain

Rule = Literal["not_worse", "better"]
Verdict = Literal["success", "harm", "open"]

LEAST_GROWTH = 1.02
"""A look needs this many times the labelled rows of the look before it. This bounds the number of looks."""
LEAST_UNITS = 30
"""With fewer keys, or rows of the rarest class, nothing is decided."""
MOST_LOOKS = 400
"""After this many looks, which is 2,700 times the first one's labels, the test decides nothing more."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the evidence of a release.

    Attributes:
        verdict: `success`, `harm`, or `open` if neither is proven.
        looks: labelled rows at each look so far, this one included if it counts; for samples, their `information`.
        counted: whether this was a look of the test. If too little is new, nothing can be decided from it.
        above: standard deviations of the gain above the limit of success.
        needed: the boundary that `above` has to exceed.
        below: standard deviations of the gain below the limit of harm.
        harmful: the boundary that `below` has to exceed for a rollback.
        low: lower end of the confidence sequence of the gain: it is valid at all looks together.
        high: upper end of it, for the test of harm.
    """

    verdict: Verdict
    looks: tuple[int, ...]
    counted: bool
    above: float
    needed: float
    below: float
    harmful: float
    low: float
    high: float

    @property
    def seems_harmless(self) -> bool:
        """Whether the estimate gives no sign of harm: it is at most one standard deviation below the limit of harm."""
        return self.verdict != "harm" and self.below <= 1.0


def may_look_at(measured: MeasuredGain, looks: Sequence[int]) -> bool:
    """Whether there are enough rows since the last look."""
    return not looks or measured.information >= LEAST_GROWTH * looks[-1]


def look(
    measured: MeasuredGain,
    looks: Sequence[int],
    *,
    rule: Rule = "not_worse",
    margin: float = 0.0,
    error: float = 0.05,
    planned: int = 5_000,
    least_days: int = 1,
) -> Look:
    """Look at the evidence, after some looks that decided nothing.

    Args:
        measured: the gain on all labelled rows of the release.
        looks: labelled rows at the earlier looks, or their `information`.
        rule: what has to be proven.
        margin: for `not_worse`, the loss that is tolerated; for `better`, the gain that is required.
        error: the probability that a candidate at the limit of success is promoted, over the whole release.
        planned: labelled rows by which most of the error is spent.
        least_days: with labelled rows of fewer days, success is not proven.
    """
    success_above = -margin if rule == "not_worse" else margin
    harm_below = -margin if rule == "not_worse" else 0.0
    above = measured.proven_above(success_above)
    below = -measured.deviations_above(harm_below)
    counted = (
        math.isfinite(above)
        and measured.units >= LEAST_UNITS
        and len(looks) < MOST_LOOKS
        and may_look_at(measured, looks)
    )
    if not counted:
        return Look("open", tuple(looks), False, above, math.inf, below, math.inf, -math.inf, math.inf)
    rows = (*looks, measured.information)
    fractions = [count / planned for count in rows]
    needed = boundaries(fractions, error, "late")[-1]
    harmful = boundaries(fractions, error, "even")[-1]
    verdict: Verdict = "harm" if below > harmful else "open"
    if above > needed and measured.days >= least_days:
        verdict = "success"
    low = measured.gain - measured.error_of_proof.reach(needed)
    high = measured.gain + t_equivalent(harmful, measured.freedom) * measured.standard_error
    return Look(verdict, rows, True, above, needed, below, harmful, low, high)


__all__ = ["LEAST_GROWTH", "LEAST_UNITS", "Look", "Rule", "Verdict", "look", "may_look_at"]
