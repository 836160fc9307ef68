"""Policies: when a loop retrains, and on which part of the past."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration, check_name
from everloop.loop.triggers.schedules import Every
from everloop.loop.triggers.trigger_declarations import OnDrift, OnPerformance
from everloop.loop.watches.watch_declarations import Drift, Performance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from everloop.loop import Loop
    from everloop.loop.triggers.trigger_protocol import Trigger

DECLARED = "declared"
NEVER = "never"
WEEKLY = "weekly"
MONTHLY = "monthly"
NAMES = (NEVER, WEEKLY, MONTHLY, "drift", "performance", DECLARED)
WINDOWS = ("30d", "90d", "365d")
"""Training windows that a replay tries, besides all the past."""
_WORDS = {
    "OnDrift": "if drift harms the predictions",
    "OnPerformance": "if the live metric becomes worse",
    "OnNewData": "if new rows have arrived",
}
HALF_LIVES = ("90d", "180d")
"""Half-lives that a replay tries: a row that is this much older counts half as much in training."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule for retraining, to be replayed.

    Args:
        name: name in the result; letters, digits, `-` and `_`.
        retrain: triggers, as in `el.Loop(retrain=...)`. Without any, the first model is never replaced.
        window: as in `el.Dataset(window=...)`: train only on the rows of this duration before the held-out rows, such
            as `"90d"`. Default: on all rows so far.
        half_life: as in `el.Dataset(half_life=...)`: a row that is this much older counts half as much in training.
            Default: all rows count alike.

    Raises:
        UsageError: the name or a duration cannot be read.

    Example:
        `Policy("monthly-90d", retrain=(el.Every("30d"),), window="90d")`
    """

    name: str
    retrain: Sequence[Trigger] = ()
    window: str | None = None
    half_life: str | None = None

    def __post_init__(self) -> None:
        check_name("a policy", self.name, "weekly")
        object.__setattr__(self, "retrain", tuple(self.retrain))
        for argument in ("window", "half_life"):
            value = getattr(self, argument)
            if value is not None:
                check_duration(f"Policy({argument}=)", value, positive=True)

    @property
    def rule(self) -> str:
        """When it retrains and on which rows, in words, such as `retrain every 4w on the last 90d`."""
        if not self.retrain:
            return "never retrain"
        when = [
            f"every {trigger.interval}"
            if isinstance(trigger, Every)
            else _WORDS.get(type(trigger).__name__, f"by {_code(trigger)}")
            for trigger in self.retrain
        ]
        return f"retrain {' or '.join(when)}, on {self.memory}"

    @property
    def memory(self) -> str:
        """Which part of the past is trained on, in words."""
        part = "all the past" if self.window is None else f"the last {self.window}"
        return part if self.half_life is None else f"{part}, half-life {self.half_life}"

    def suggested_lines(self) -> list[str]:
        """The lines of `el.Loop(...)` that declare this policy."""
        triggers = ", ".join(_code(trigger) for trigger in self.retrain)
        lines = [f"retrain=[{triggers}],"]
        if self.window is not None:
            lines.append(f"# in el.Dataset(...): window={self.window!r},")
        if self.half_life is not None:
            lines.append(f"# in el.Dataset(...): half_life={self.half_life!r},")
        return lines


def named_policies(names: Iterable[str], declared: Sequence[Trigger]) -> list[Policy]:
    """Return the policies of these names, each once.

    Args:
        names: some of `NAMES`.
        declared: the triggers of the loop, for the policy `declared`.

    Raises:
        UsageError: a name is unknown, or none is given.
    """
    known = {
        NEVER: Policy(NEVER),
        WEEKLY: Policy(WEEKLY, (Every("1w"),)),
        MONTHLY: Policy(MONTHLY, (Every("4w"),)),
        "drift": Policy("drift", (OnDrift(),)),
        "performance": Policy("performance", (OnPerformance(),)),
        DECLARED: Policy(DECLARED, tuple(declared)),
    }
    wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    unknown = next((name for name in wanted if name not in known), None)
    if unknown is not None:
        raise UsageError(f"Unknown policy '{unknown}'.", help=f"Policies: {', '.join(NAMES)}")
    if not wanted:
        raise UsageError("No policy is named.", help=f"Policies: {', '.join(NAMES)}")
    return [known[name] for name in wanted]


def with_policy(loop: Loop, policy: Policy, labels_after: str) -> Loop:
    """Return the loop with the triggers and the training window of a policy, and the watches that the triggers need.

    Args:
        labels_after: delay of the labels, for a `Performance` watch that the loop does not declare.
    """
    watches = list(loop.watch)
    if any(isinstance(one, OnDrift) for one in policy.retrain) and not any(isinstance(one, Drift) for one in watches):
        watches.append(Drift())
    if any(isinstance(one, OnPerformance) for one in policy.retrain) and not any(
        isinstance(one, Performance) for one in watches
    ):
        watches.append(Performance(loop.live_metric, labels_after=labels_after))
    data = loop.data
    if policy.window is not None or policy.half_life is not None:
        data = replace(data, window=policy.window, half_life=policy.half_life)
    return replace(loop, data=data, retrain=tuple(policy.retrain), watch=tuple(watches))


def _code(trigger: Trigger) -> str:
    return f"el.{type(trigger).__name__}({_arguments(trigger)})"


def _arguments(trigger: Any) -> str:
    """Return the arguments of a trigger that differ from their defaults, as they are written in a declaration."""
    if not is_dataclass(trigger):
        return ""
    values = ((field, getattr(trigger, field.name)) for field in fields(trigger) if field.init)
    return ", ".join(f"{field.name}={value!r}" for field, value in values if value != field.default)
