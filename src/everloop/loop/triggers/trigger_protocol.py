"""The protocol of triggers: objects that decide whether a loop runs again.

A trigger has a method `check`. The triggers of everloop use nothing that others cannot use. `trigger_checks` calls
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

from everloop.errors import UsageError
from everloop.loop.triggers.retrain_limits import RetrainLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from everloop.pipeline import Planned
    from everloop.records import Json, Run
    from everloop.stores import Store


ANY_RUN = "any"
"""A value of `Due.after`: the run starts whichever run is the newest."""


@dataclass(frozen=True, slots=True)
class Due:
    """A run that is due.

    Attributes:
        trigger: name of the trigger that fired.
        reason: one sentence for a person.
        evidence: what the decision was made on, as JSON values, such as the id of an incident.
        token: identifies what has happened, such as a commit. While it changes, a `debounce` waits. Default: the
            reason.
        after: id of the loop's newest run when this was decided. `run_loop` refuses to start if there is a newer one,
            so two processes never start a run for the same reason. `ANY_RUN` if the caller makes sure of that itself.
    """

    trigger: str
    reason: str
    evidence: dict[str, Json] = field(default_factory=dict)
    token: str = ""
    after: str | None = None

    def __str__(self) -> str:
        return f"{self.trigger}: {self.reason}"

    def to_dict(self) -> dict[str, Json]:
        """Return name, reason and evidence, as they are recorded with a run."""
        return {"trigger": self.trigger, "reason": self.reason, "evidence": dict(self.evidence)}


class Trigger(Protocol):
    """Something that decides whether a loop runs again.

    `check` is called at each tick of the loop. It returns why a run is due, or None. It reads and never writes.

    - It is called only if the loop has run before, no run is in progress and no candidate is being rolled out.
    - It is called often, so it must be quick: a few milliseconds if nothing is due.
    - A trigger that fires keeps firing until a run has begun. It must not fire again for what that run has answered:
      `context.last` is the last run.
    - If it raises, that becomes an event, once for each message. The other triggers still work.
    - Its only clock is `context.store.now()`.

    A trigger may also have these attributes and methods:

    - `name`: identifies the trigger, default: the name of its class. A second one of a name is called `Name 2`.
    - `limits`: a `RetrainLimits` for this trigger only. Limits of the loop apply as well.
    - `urgent`: True for a decision of a person. Cool-down, debounce and back-off do not delay it; a budget does.
    - `scheduled`: True if the time itself is the reason. Debounce does not delay it.
    - `mark(context)`: returns a JSON value that is stored with every run of the loop when the run begins, such as the
      number of rows at that time. `context.mark` is the value of the last run.
    - `next_at(context)`: returns when the trigger will be considered next, if it is known; for `everloop triggers`.
    """

    def check(self, context: TriggerContext) -> Due | None:
        """Return why a run is due now; None if none is."""


@dataclass(frozen=True, slots=True)
class TriggerContext:
    """What a trigger may use: the store, and the loop's last run.

    Attributes:
        store: the store. Its clock is the present: `context.store.now()`.
        loop: name of the loop.
        model: name of the model in the registry.
        endpoint: name of the endpoint, if the loop serves one.
        last: the last run that ended by itself.
        trigger: name of the trigger.
        mark: what `mark` of this trigger returned when the last run began; None if it returned nothing.
        plan: returns the steps that a run would execute now, and why. This takes longer than other checks.
    """

    store: Store
    loop: str
    model: str
    endpoint: str | None
    last: Run
    trigger: str
    mark: Json
    plan: Callable[[], Sequence[Planned]]

    def now(self) -> datetime:
        """Return the present."""
        return self.store.now()

    def due(self, reason: str, evidence: dict[str, Json] | None = None, token: str = "") -> Due:
        """Create the answer of a trigger that fires.

        Args:
            reason: one sentence for a person.
            evidence: what the decision was made on, as JSON values.
            token: identifies what has happened, see `Due`.
        """
        return Due(self.trigger, reason, evidence if evidence is not None else {}, token)


def load_trigger(name: str, **options: Any) -> Trigger:
    """Create a trigger that everloop or an installed package provides under a name.

    Args:
        name: such as `drift`. Packages register triggers in the entry-point group `everloop.plugins`, as
            `trigger.<name>`.
        options: arguments of the trigger, such as `cooldown="1w"`.

    Raises:
        NotFoundError: no installed package has such a trigger.
        UsageError: the options do not fit the trigger, or the plugin is not a trigger.
    """
    from everloop.plugins import create

    return check_trigger(create("trigger", name, options), f"The plugin '{name}'")


def check_trigger(part: Any, what: str) -> Trigger:
    """Return `part` if it is a trigger.

    Raises:
        UsageError: it has no method `check`, or its `limits` are not a `RetrainLimits`. The message begins with `what`.
    """
    if not is_trigger(part):
        raise UsageError(
            f"{what} is not a trigger: {part!r}", help="A trigger has a method check(context); see el.Trigger."
        )
    limits = getattr(part, "limits", None)
    if limits is not None and not isinstance(limits, RetrainLimits):
        raise UsageError(
            f"{trigger_name(part)}(limits=) is {limits!r}, but must be an el.RetrainLimits.",
            help='For example: limits=el.RetrainLimits(budget="3 / week")',
        )
    trigger: Trigger = part
    return trigger


def is_trigger(part: object) -> bool:
    """Whether an object has the members of a trigger. A class has not, only its instances have."""
    if isinstance(part, type) or not callable(check := getattr(part, "check", None)):
        return False
    try:
        # The check of a watch takes a window as well.
        signature(check).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def trigger_name(part: object) -> str:
    """Return the name by which a trigger is known in runs and events."""
    name = getattr(part, "name", None)
    return name if isinstance(name, str) and name else type(part).__name__
