"""Events of loops, runs and releases as sentences, for the terminal of `everloop up`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.loop.worker.reloading import ReloadPlan
from everloop.stores.processes import host_of, pid_of

if TYPE_CHECKING:
    from everloop.records import Event, Json


def event_sentences(event: Event) -> list[str]:
    """What an event means, as lines for people; empty for events that need no attention.

    Args:
        event: of the kind `loop`, `queued_run`, `runner` or `release`.
    """
    data = event.data
    loop = str(data.get("loop", event.key))
    error = str(data.get("error", ""))
    match event.kind, event.verb:
        case "queued_run", "queued":
            return [f"Queued a run of '{loop}'. {_sentence(data.get('trigger'))}"]
        case "queued_run", "joined":
            return [f"Another trigger joins the queued run of '{loop}'. {_sentence(data.get('trigger'))}"]
        case "queued_run", "started":
            return [f"Started the run of '{loop}', on {_runner(data)}."]
        case "queued_run", "taken_over":
            return [f"Started the run of '{loop}' again, on {_runner(data)}: attempt {data.get('attempt')}."]
        case "queued_run", "done":
            return [f"The run of '{loop}' has finished."]
        case "queued_run", "failed":
            return [f"The run of '{loop}' has failed. {error}"]
        case "queued_run", "died":
            return [f"The process of the run of '{loop}' has died. It is started again."]
        case "queued_run", "cancelled" | "cancel_requested":
            return [f"The run of '{loop}' is cancelled, by {event.actor}."]
        case "loop", "reloaded":
            plan = ReloadPlan(list(data.get("changes", [])), list(data.get("steps", [])))
            files = ", ".join(data.get("files", []))
            return [f"Loaded the changed code ({files}):", *(f"  {line}" for line in plan.sentences())]
        case "loop", "reload_failed":
            return [f"The changed code cannot be used, so the previous loop stays. {error}"]
        case "loop", "tick_failed":
            return [f"Checking the loop '{loop}' failed. {error}"]
        case "runner", "runner_failed":
            return [f"A runner has a problem. {error}"]
        case "release", "created":
            return ["A release has begun."]
        case "release", "advanced" | "completed" | "rolled_back" | "rejected":
            return [f"The release is {event.verb.replace('_', ' ')}. {_sentence(data.get('reason'))}".rstrip()]
    return []


def _runner(data: dict[str, Json]) -> str:
    owner = str(data.get("runner", ""))
    return f"the runner {pid_of(owner)} of {host_of(owner)}"


def _sentence(text: object) -> str:
    words = str(text or "").rstrip(".")
    return f"{words}." if words else ""
