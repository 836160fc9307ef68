"""The home page: every loop as a ring of stages, what needs a person, and what has happened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from everloop.records import (
    Alias,
    AliasRequest,
    EndpointRecord,
    Event,
    GateResult,
    Incident,
    ModelVersion,
    Release,
    Run,
    Snapshot,
)
from everloop.tracking import recover_journals

if TYPE_CHECKING:
    from everloop.stores import Store

StageName = Literal["data", "train", "gates", "release", "serve", "watch", "retrain"]
StageState = Literal["ok", "busy", "attention", "failed", "none"]

STAGES: tuple[StageName, ...] = ("data", "train", "gates", "release", "serve", "watch", "retrain")
_EVENT_KINDS = ("alias", "release", "run", "snapshot", "model_version", "incident", "alias_request")
_DULL = {
    ("incident", "updated"),
    ("incident", "joined"),
    ("run", "updated"),
    ("run", "progress"),
    ("release", "updated"),
    ("release", "guarded"),
}
"""Changes of a record that are not worth a line."""
_MOST_LOOPS = 50
_RUNS_READ = 500
_EVENTS_READ = 2000
_EVENTS_SHOWN = 40
_MOST_ATTENTION = 30


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a loop: its state, one line about it, and the page that shows more."""

    name: StageName
    state: StageState
    headline: str
    detail: str
    link: str
    """Address of a page inside the web page, such as `runs/0198…`; empty if there is nothing to show yet."""
    at: datetime | None = None
    """When the stage last changed."""


@dataclass(frozen=True, slots=True)
class LoopState:
    """A loop and its stages, in the order of the data's way."""

    name: str
    model: str | None
    endpoint: str | None
    champion: str | None
    stages: list[Stage]


@dataclass(frozen=True, slots=True)
class Attention:
    """Something that waits for a person."""

    kind: Literal["incident", "approval", "release", "run"]
    severity: Literal["notice", "alarm"]
    title: str
    detail: str
    link: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of what has happened."""

    seq: int
    at: datetime
    kind: str
    verb: str
    subject: str
    """What it is about, in words."""
    reason: str
    link: str
    actor: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of one project. `happenings` are newest first."""

    project: str
    now: datetime
    simulated: bool
    loops: list[LoopState]
    attention: list[Attention]
    happenings: list[Happening]
    runs: int
    """How many runs the project has, at most as many as were read."""


def read_overview(store: Store) -> Overview:
    """Read the home page. A few indexed queries, so it takes milliseconds whatever the store's size."""
    recover_journals(store)
    records = store.records
    runs = records.find(Run, order="-created_at", limit=_RUNS_READ)
    names = list(dict.fromkeys(run.loop for run in runs if run.loop))[:_MOST_LOOPS]
    last = records.last_event()
    events = records.events_since(max(0, last - _EVENTS_READ), kinds=_EVENT_KINDS, limit=_EVENTS_READ)
    return Overview(
        project=store.project,
        now=store.now(),
        simulated=store.clock.simulated,
        loops=[_loop(store, name, [run for run in runs if run.loop == name]) for name in names],
        attention=_attention(store, runs),
        happenings=_happenings(store, [event for event in events if (event.kind, event.verb) not in _DULL]),
        runs=len(runs),
    )


def _loop(store: Store, name: str, runs: list[Run]) -> LoopState:
    version = _newest_version(store, runs)
    model = version.model if version is not None else None
    endpoints = store.records.find(EndpointRecord, ("model", "=", model), limit=1) if model else []
    endpoint = endpoints[0] if endpoints else None
    champions = store.records.find(Alias, ("key", "=", f"{model}@champion"), limit=1) if model else []
    champion = champions[0].version if champions else None
    stages = [
        _data(store, runs),
        _train(runs, version),
        _gates(store, version),
        _release(store, endpoint),
        _serve(store, endpoint, champion),
        _watch(store, endpoint),
        _retrain(runs),
    ]
    return LoopState(name, model, endpoint.name if endpoint else None, champion, stages)


def _newest_version(store: Store, runs: list[Run]) -> ModelVersion | None:
    for run in runs[:50]:
        found = store.records.find(ModelVersion, ("run", "=", run.id), order="-id", limit=1)
        if found:
            return found[0]
    return None


def _data(store: Store, runs: list[Run]) -> Stage:
    for run in runs[:50]:
        found = store.records.find(Snapshot, ("run", "=", run.id), order="-id", limit=1)
        if found:
            one = found[0]
            until = f"up to {one.ends_at:%Y-%m-%d}" if one.ends_at else f"{len(one.columns)} columns"
            return Stage("data", "ok", f"{one.rows:,} rows", until, f"data/{one.key}", one.created_at)
    return Stage("data", "none", "No snapshot yet", "", "")


def _train(runs: list[Run], version: ModelVersion | None) -> Stage:
    if not runs:
        return Stage("train", "none", "Never trained", "", "")
    run = runs[0]
    link = f"runs/{run.id}"
    if run.state in ("running", "scheduled"):
        return Stage("train", "busy", "Running now", run.trigger or "", link, run.started_at)
    if run.state in ("failed", "lost"):
        return Stage("train", "failed", f"Last run {run.state}", run.error or "", link, run.ended_at or run.started_at)
    metric = version.evaluation.get("metric") if version is not None else None
    value = version.metrics.get(metric) if version is not None and isinstance(metric, str) else None
    headline = f"{metric} {value:.4g}" if value is not None else f"Last run {run.state}"
    return Stage("train", "ok", headline, version.key if version else "", link, run.ended_at or run.started_at)


def _gates(store: Store, version: ModelVersion | None) -> Stage:
    if version is None:
        return Stage("gates", "none", "Nothing to judge yet", "", "")
    results = store.records.find(GateResult, ("candidate", "=", version.key), order="-id", limit=100)
    link = f"models/{version.model}/{version.version}"
    if not results:
        return Stage("gates", "none", "No gates declared", version.key, link, version.created_at)
    failed = [one for one in results if one.outcome == "fail"]
    undecided = [one for one in results if one.outcome == "undecided"]
    if failed:
        headline = f"{len(failed)} of {len(results)} failed"
        return Stage("gates", "failed", headline, failed[0].message, link, results[0].created_at)
    if undecided:
        headline = f"{len(undecided)} of {len(results)} undecided"
        return Stage("gates", "attention", headline, undecided[0].message, link, results[0].created_at)
    noun = "gate" if len(results) == 1 else "gates"
    return Stage("gates", "ok", f"{len(results)} {noun} passed", version.key, link, results[0].created_at)


def _release(store: Store, endpoint: EndpointRecord | None) -> Stage:
    if endpoint is None:
        return Stage("release", "none", "Nothing released", "", "")
    found = store.records.find(Release, ("endpoint", "=", endpoint.name), order="-id", limit=1)
    link = f"endpoints/{endpoint.name}"
    if not found:
        return Stage("release", "none", "Nothing released", "", link)
    one = found[0]
    reason = one.decisions[-1].reason if one.decisions else ""
    at = one.decisions[-1].at if one.decisions else one.created_at
    if one.state == "rolling_out":
        waits = one.percent <= 0
        headline = f"{one.candidate} waits for a decision" if waits else f"{one.candidate} has {one.percent:g} %"
        return Stage("release", "attention" if waits else "busy", headline, reason, link, at)
    words = {"completed": "took over", "rolled_back": "was rolled back", "rejected": "was rejected"}
    headline = f"{one.candidate} {words.get(one.state, one.state.replace('_', ' '))}"
    return Stage("release", "ok" if one.state == "completed" else "attention", headline, reason, link, at)


def _serve(store: Store, endpoint: EndpointRecord | None, champion: str | None) -> Stage:
    if endpoint is None:
        return Stage("serve", "none", "No endpoint", "", "")
    link = f"endpoints/{endpoint.name}"
    answering = ", ".join(f"{route.version} {route.percent:g} %" for route in endpoint.routes if route.role != "shadow")
    if not endpoint.routes:
        return Stage("serve", "none", "No champion yet", "", link)
    if endpoint.state != "ready":
        return Stage("serve", "attention", f"Endpoint is {endpoint.state}", answering, link)
    return Stage("serve", "ok", champion or "Serving", answering, link)


def _watch(store: Store, endpoint: EndpointRecord | None) -> Stage:
    if endpoint is None:
        return Stage("watch", "none", "Nothing to watch", "", "")
    from everloop.monitoring.incidents.incident_actions import list_incidents

    ongoing = [one for one in list_incidents(store, limit=200) if one.endpoint == endpoint.name]
    link = f"monitor?endpoint={endpoint.name}"
    if not ongoing:
        return Stage("watch", "ok", "No open incidents", "", link)
    alarms = [one for one in ongoing if one.severity == "alarm"]
    noun = "incident" if len(ongoing) == 1 else "incidents"
    worst = (alarms or ongoing)[0]
    return Stage("watch", "attention", f"{len(ongoing)} open {noun}", worst.title, link, worst.seen_at)


def _retrain(runs: list[Run]) -> Stage:
    if not runs:
        return Stage("retrain", "none", "No run yet", "", "")
    run = runs[0]
    trigger, _, reason = (run.trigger or "manual").partition(": ")
    busy = run.state in ("running", "scheduled")
    link = f"runs?filter=loop='{run.loop}'"
    return Stage("retrain", "busy" if busy else "ok", f"Last run: {trigger}", reason, link, run.started_at)


def _happenings(store: Store, events: list[Event]) -> list[Happening]:
    shown = events[-_EVENTS_SHOWN:][::-1]
    records = store.records
    subjects = {
        kind: [event.subject for event in shown if event.kind == kind] for kind in ("incident", "run", "release")
    }
    titles = {one.id: one.title for one in records.get_many(Incident, subjects["incident"])}
    titles |= {one.id: f"Run of {one.loop or one.name}" for one in records.get_many(Run, subjects["run"])}
    releases = {one.id: one for one in records.get_many(Release, subjects["release"])}
    titles |= {one.id: f"Release of {one.candidate} to '{one.endpoint}'" for one in releases.values()}
    found = []
    for event in shown:
        reason = event.data.get("reason") or event.data.get("error") or ""
        subject = titles.get(event.subject, event.key)
        link = _link(event, releases)
        found.append(Happening(event.seq, event.at, event.kind, event.verb, subject, str(reason), link, event.actor))
    return found


def _link(event: Event, releases: dict[str, Release]) -> str:
    model, _, number = event.key.rpartition("@")
    release = releases.get(event.subject)
    match event.kind:
        case "incident":
            return f"monitor/{event.subject}"
        case "run":
            return f"runs/{event.subject}"
        case "release":
            return f"endpoints/{release.endpoint}" if release is not None else ""
        case "snapshot":
            return f"data/{event.key}"
        case "model_version":
            return f"models/{model}/{number}"
        case "alias":
            return f"models/{model}"
        case _:
            return ""


def _attention(store: Store, runs: list[Run]) -> list[Attention]:
    from everloop.monitoring.incidents.incident_actions import list_incidents

    found = [
        Attention("incident", one.severity, one.title, one.message, f"monitor/{one.id}", one.seen_at)
        for one in list_incidents(store, limit=_MOST_ATTENTION)
        if one.state == "open"
    ]
    for request in store.records.find(
        AliasRequest, ("state", "in", ["open", "approved"]), order="-id", limit=_MOST_ATTENTION
    ):
        model, _, number = request.version.rpartition("@")
        if request.state == "open":
            title = f"{request.version} needs approval to become {request.alias}"
            detail = request.reason or f"Requested by {request.asked_by}"
        else:
            title = f"{request.version} is approved to become {request.alias}"
            detail = "The alias has not moved yet."
        found.append(Attention("approval", "notice", title, detail, f"models/{model}/{number}", request.created_at))
    for release in store.records.find(Release, ("state", "=", "rolling_out"), order="-id", limit=_MOST_ATTENTION):
        if release.percent <= 0:
            reason = release.decisions[-1].reason if release.decisions else ""
            title = f"{release.candidate} waits for a decision on '{release.endpoint}'"
            link = f"endpoints/{release.endpoint}"
            found.append(Attention("release", "notice", title, reason, link, release.created_at))
    newest = {run.loop: run for run in reversed(runs) if run.loop}
    for run in newest.values():
        if run.state in ("failed", "lost"):
            at = run.ended_at or run.started_at
            found.append(
                Attention(
                    "run", "alarm", f"The last run of {run.loop} {_ending(run)}", run.error or "", f"runs/{run.id}", at
                )
            )
    return sorted(found, key=lambda one: (one.severity != "alarm", -one.at.timestamp()))[:_MOST_ATTENTION]


def _ending(run: Run) -> str:
    return "failed" if run.state == "failed" else "was lost: its process died"
