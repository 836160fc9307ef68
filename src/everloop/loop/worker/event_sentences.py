"""Events of loops, runs and releases as sentences, for the terminal of `everloop up`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.loop.worker.reloading import ReloadPlan
from everloop.stores.processes import host_of, pid_of

if TYPE_CHECKING:
    from everloop.records import Event, Json


SENTENCES = {
    "queued_run": {
        "queued": "Queued a run of '{loop}'. {trigger}",
        "joined": "Another trigger joins the queued run of '{loop}'. {trigger}",
        "started": "Started the run of '{loop}', on {runner}.",
        "taken_over": "Started the run of '{loop}' again, on {runner}: attempt {attempt}.",
        "done": "The run of '{loop}' has finished.",
        "failed": "The run of '{loop}' has failed. {error}",
        "died": "The process of the run of '{loop}' has died. It is started again.",
        "cancelled": "The run of '{loop}' is cancelled, by {actor}.",
        "cancel_requested": "The run of '{loop}' is cancelled, by {actor}.",
    },
    "loop": {
        "reload_failed": "The changed code cannot be used, so the previous loop stays. {error}",
        "tick_failed": "Checking the loop '{loop}' failed. {error}",
    },
    "endpoint": {"fold_failed": "What '{loop}' has logged on this machine cannot be moved into the log. {error}"},
    "runner": {"runner_failed": "A runner has a problem. {error}"},
    "release": {
        "created": "A release has begun.",
        "advanced": "The release is advanced. {reason}",
        "completed": "The release is completed. {reason}",
        "rolled_back": "The release is rolled back. {reason}",
        "rejected": "The release is rejected. {reason}",
    },
}
"""What events mean, by kind and verb. Other events need no attention."""


def event_sentences(event: Event) -> list[str]:
    """What an event means, as lines for people; empty for events that need no attention.

    Args:
        event: of the kind `loop`, `queued_run`, `runner`, `endpoint` or `release`.
    """
    if (event.kind, event.verb) == ("loop", "reloaded"):
        return _reloaded(event.data)
    template = SENTENCES.get(event.kind, {}).get(event.verb)
    if template is None:
        return []
    owner = str(event.data.get("runner", ""))
    sentence = template.format(
        loop=event.data.get("loop", event.key),
        trigger=_closed(event.data.get("trigger")),
        reason=_closed(event.data.get("reason")),
        runner=f"the runner {pid_of(owner)} of {host_of(owner)}" if "{runner}" in template else "",
        attempt=event.data.get("attempt"),
        error=event.data.get("error", ""),
        actor=event.actor,
    )
    return [sentence.rstrip()]


def _reloaded(data: dict[str, Json]) -> list[str]:
    files, changes, steps = (data.get(name) for name in ("files", "changes", "steps"))
    names = ", ".join(map(str, files)) if isinstance(files, list) else ""
    plan = ReloadPlan(
        [str(change) for change in changes] if isinstance(changes, list) else [],
        [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else [],
    )
    return [f"Loaded the changed code ({names}):", *(f"  {line}" for line in plan.sentences())]


def _closed(text: object) -> str:
    """A text with a full stop; empty stays empty."""
    words = str(text or "").rstrip(".")
    return f"{words}." if words else ""
