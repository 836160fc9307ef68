"""Keep the result of a replay in a project's store: a run of its own, whose artifact is the result as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.records import Artifact

if TYPE_CHECKING:
    from everloop.replay.replay_result import ReplayResult
    from everloop.stores import Store

REPLAY = "replay"
"""Name of the run and of its artifact."""


def keep_replay(store: Store, result: ReplayResult) -> Artifact:
    """Keep a result, so that the web page can list it.

    The run belongs to no loop: it trains nothing that could be released.

    Raises:
        StoreError: the store cannot be written to.
    """
    from everloop.tracking import start_run

    shown = result.to_json()
    advice = result.recommendation
    meta = {
        "shows": "json",
        "media": "application/json",
        "file": "replay.json",
        "title": result.title,
        "metric": result.metric,
        "policies": len(result.policies),
        "recommended": None if advice is None else advice.name,
    }
    params = {"title": result.title, "every": result.every, "labels_after": result.labels_after}
    with start_run(REPLAY, store=store, params=params, tags={"kind": REPLAY}) as run:
        means = {f"{one.policy.name}.{result.metric}": one.mean for one in result.policies}
        run.log({name: value for name, value in means.items() if value is not None})
        return run.log_artifact(REPLAY, shown, meta=meta)


def find_replays(store: Store, limit: int = 100) -> list[Artifact]:
    """Return the artifacts of kept replays, newest first."""
    return store.records.find(Artifact, ("name", "=", REPLAY), ("meta.shows", "=", "json"), order="-id", limit=limit)
