"""What the triggers of a loop see: their names, their contexts, and the marks that they leave with a run."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.loop.triggers.trigger_protocol import TriggerContext, trigger_name
from everloop.records import Json, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from everloop.loop.loop_definition import Loop
    from everloop.loop.triggers.trigger_protocol import Trigger
    from everloop.pipeline import Planned
    from everloop.stores import Store

    Plan = Callable[[], Sequence[Planned]]


def newest_runs(store: Store, loop: str, most: int = 1) -> list[Run]:
    """Return the loop's newest runs, in whatever state, newest first."""
    return store.records.find(Run, ("loop", "=", loop), order="-started_at", limit=most)


def named_triggers(loop: Loop) -> dict[str, Trigger]:
    """Return the loop's triggers by name. Those of one name get a number: `Every`, `Every 2`."""
    named: dict[str, Trigger] = {}
    for trigger in loop.retrain:
        name = trigger_name(trigger)
        number = 1
        while (numbered := name if number == 1 else f"{name} {number}") in named:
            number += 1
        named[numbered] = trigger
    return named


def set_marks(loop: Loop, store: Store, plan: Plan) -> dict[str, Json]:
    """Return what each trigger of the loop wants to be stored with a run that begins now.

    A trigger that fails here does not stop the run. It sees no mark then.
    """
    marks: dict[str, Json] = {}
    for name, trigger in named_triggers(loop).items():
        mark = getattr(trigger, "mark", None)
        if callable(mark):
            nothing = store.new(Run, name=loop.name, loop=loop.name, started_at=store.now())
            with suppress(Exception):
                marks[name] = mark(make_context(loop, store, nothing, name, plan))
    return {name: value for name, value in marks.items() if value is not None}


def make_context(loop: Loop, store: Store, last: Run, name: str, plan: Plan) -> TriggerContext:
    """Return what the loop's trigger `name` may use. `plan` returns the steps that a run would execute now."""
    marks = last.cause.get("marks")
    return TriggerContext(
        store=store,
        loop=loop.name,
        model=loop.model,
        endpoint=loop.serve.name if loop.serve is not None else None,
        last=last,
        trigger=name,
        mark=marks.get(name) if isinstance(marks, dict) else None,
        plan=plan,
    )
