"""Rollouts: a candidate's way to all the traffic, each step decided by live evidence, or back out.

    rejected  <- a gate failed
    rolling_out -> completed      every step's evidence passed
                -> rolled_back    the evidence turned against it, or someone did
                -> superseded     a newer candidate came

The champion alias, the endpoint's routes, the version's state and the release change in one transaction, so
that no moment shows half a release.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from shlex import quote
from typing import TYPE_CHECKING, Literal

from everloop.errors import ConflictError, NotFoundError
from everloop.records import Alias, Decision, EndpointRecord, GateResult, Json, ModelVersion, Release, Route
from everloop.registry.aliases import ANYONE, check_holder
from everloop.registry.approvals import check_usable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.loop.gates import GateOutcome
    from everloop.stores import Store

CHAMPION = "champion"


def start_release(
    store: Store,
    endpoint: str,
    candidate: ModelVersion,
    *,
    steps: Sequence[float] = (100.0,),
    gates: Sequence[GateResult] = (),
    trigger: str | None = None,
    run: str | None = None,
    reason: str = "",
) -> Release:
    """Bring a judged candidate to the endpoint.

    A failed gate rejects it. The first champion of an endpoint takes all traffic at once. With one step only,
    an undecided gate leaves the release at 0 percent, waiting for `everloop release advance`.

    Args:
        reason: why it may take all traffic, where a person says so; default: what the gates said.

    Raises:
        ConflictError: the candidate has no package, so nothing can answer by it, or it is archived.
    """
    if not candidate.package:
        raise ConflictError(
            f"'{candidate.key}' came over MLflow's protocol and has no package yet.",
            help=f"Make one: everloop models adopt {quote(candidate.key)}",
        )
    with store.records.transaction():
        # Looked at again in here: it may have been archived or deleted since it was read.
        check_usable(store.records.get(ModelVersion, candidate.key))
        place = _endpoint(store, endpoint, candidate.model)
        champion = champion_of(store, candidate.model)
        release = store.new(
            Release,
            endpoint=endpoint,
            candidate=candidate.key,
            previous=champion,
            steps=tuple(float(step) for step in steps),
            gates=tuple(gate.id for gate in gates),
            trigger=trigger,
            run=run,
        )
        failed = [gate for gate in gates if gate.outcome == "fail"]
        undecided = [gate for gate in gates if gate.outcome == "undecided"]
        if failed:
            reason = "; ".join(f"{gate.gate}: {gate.message}" for gate in failed)
            release = _decided(release, store, "reject", 0.0, reason, state="rejected")
            store.records.put(release, verb="rejected", data={"reason": reason})
            _set_state(store, candidate.key, "rejected")
            return release
        _supersede(store, endpoint)
        if champion is None:
            release = _decided(release, store, "start", 0.0, "the endpoint has no champion yet")
            store.records.put(release)
            return _complete_or_wait(store, release, place, reason or "first champion", {})
        if undecided and len(release.steps) == 1:
            reason = "undecided and no canary to decide: " + "; ".join(
                f"{gate.gate}: {gate.message}" for gate in undecided
            )
            release = _decided(release, store, "hold", 0.0, reason)
            store.records.put(release, verb="held", data={"reason": reason})
            return release
        judged = "all gates passed" if not undecided else f"undecided: {', '.join(gate.gate for gate in undecided)}"
        told = reason or judged
        release = _decided(release, store, "start", release.steps[0], told)
        store.records.put(release)
        if release.steps[0] >= 100:
            return _complete_or_wait(store, release, place, told, {})
        _route(store, place, champion, candidate.key, release.steps[0])
        return release


def advance_release(store: Store, release: Release, reason: str, evidence: dict[str, Json] | None = None) -> Release:
    """Take the next step, or complete after the last.

    Raises:
        ConflictError: the release is over, or someone else moved it meanwhile.
    """
    _must_roll(release)
    with store.records.transaction():
        place = store.records.get(EndpointRecord, release.endpoint)
        later = [step for step in release.steps if step > release.percent]
        if not later or later[0] >= 100:
            return _complete_or_wait(store, release, place, reason, evidence or {})
        moved = _decided(release, store, "advance", later[0], reason, evidence)
        (moved,) = store.records.update(moved, verb="advanced", data={"percent": later[0], "reason": reason})
        _route(store, place, release.previous, release.candidate, later[0])
        return moved


def hold_release(store: Store, release: Release, reason: str, evidence: dict[str, Json] | None = None) -> Release:
    """Write down that the evidence does not decide yet: once a day, not at every look."""
    _must_roll(release)
    last = release.decisions[-1] if release.decisions else None
    if last is not None and last.action == "hold" and store.now() - last.at < timedelta(days=1):
        return release
    held = _decided(release, store, "hold", release.percent, reason, evidence)
    (held,) = store.records.update(held, verb="held", data={"reason": reason})
    return held


def abort_release(
    store: Store,
    release: Release,
    reason: str,
    evidence: dict[str, Json] | None = None,
    *,
    state: Literal["rolled_back", "superseded"] = "rolled_back",
) -> Release:
    """Give all the traffic back to the champion.

    Raises:
        ConflictError: the release is over, or someone else moved it meanwhile.
    """
    _must_roll(release)
    with store.records.transaction():
        place = store.records.get(EndpointRecord, release.endpoint)
        ended = _decided(release, store, "roll_back", 0.0, reason, evidence, state=state)
        (ended,) = store.records.update(ended, verb=state, data={"reason": reason})
        if release.previous is not None:
            _route(store, place, release.previous, None, 0.0)
        _set_state(store, release.candidate, "rolled_back" if state == "rolled_back" else "registered")
        return ended


def promote(store: Store, endpoint: str, version: ModelVersion, reason: str) -> Release:
    """Give `version` all the traffic now, on a person's word instead of evidence. Where it has it already, the
    release that gave it stands.

    Raises:
        ApprovalError: a policy guards the champion, and not enough others have agreed.
        ConflictError: the version has no package, or is archived.
    """
    with store.records.transaction():
        places = store.records.find(EndpointRecord, ("name", "=", endpoint), limit=1)
        answering = [route.version for route in places[0].routes if route.role != "shadow"] if places else []
        if answering == [version.key] and champion_of(store, version.model) == version.key:
            last = _completed(store, endpoint, version.key)
            if last:
                return last[0]
        return start_release(store, endpoint, version, steps=(100.0,), trigger="promote", reason=reason)


def move_alias(
    store: Store, model: str, alias: str, version_key: str, reason: str, *, expect: str | None = ANYONE
) -> Alias:
    """Move an alias as `set_alias` does; where the champion of an endpoint moves, its traffic moves with it."""
    from everloop.registry import find_alias, get_version, set_alias

    with store.records.transaction():
        held = check_holder(store, model, alias, expect)
        version = get_version(store, version_key)
        serving = store.records.find(EndpointRecord, ("model", "=", model), limit=1) if alias == CHAMPION else []
        if serving and version.model == model and (held is None or held.version != version.key):
            promote(store, serving[0].name, version, reason)
            moved = find_alias(store, model, alias)
            if moved is not None:
                return moved
        return set_alias(store, model, alias, version.key, reason=reason, expect=expect)


def roll_back(store: Store, endpoint: str, reason: str) -> Release:
    """Undo the newest release: abort it while it rolls out, else give the traffic back to the champion before.

    Raises:
        NotFoundError: nothing was released, or nothing stood before it.
    """
    with store.records.transaction():
        current = find_rolling(store, endpoint)
        if current is not None:
            return abort_release(store, current, reason)
        place = store.records.get(EndpointRecord, endpoint)
        champion = champion_of(store, place.model)
        done = _completed(store, endpoint, champion) or _completed(store, endpoint)
        if not done:
            raise NotFoundError(f"Nothing has been released to endpoint '{endpoint}'.", help="See: everloop release ls")
        # A release that gave the champion all the traffic again changed no version: what is undone is the one before.
        last = next((one for one in done if one.previous != one.candidate), done[0])
        if last.previous is None:
            raise NotFoundError(
                f"'{last.candidate}' is the first champion of '{endpoint}': there is none to go back to.",
                help="Promote another version with: everloop models promote MODEL@N",
            )
        ended = _decided(last, store, "roll_back", 0.0, reason, state="rolled_back")
        (ended,) = store.records.update(ended, verb="rolled_back", data={"reason": reason})
        _set_champion(store, last.previous, reason, {"rolled_back": last.candidate})
        _set_state(store, last.candidate, "rolled_back")
        _route(store, place, last.previous, None, 0.0)
        return ended


def find_rolling(store: Store, endpoint: str) -> Release | None:
    """The release under way at an endpoint."""
    rolling = store.records.find(
        Release, ("endpoint", "=", endpoint), ("state", "=", "rolling_out"), order="-created_at", limit=1
    )
    return rolling[0] if rolling else None


def _completed(store: Store, endpoint: str, candidate: str | None = None) -> list[Release]:
    """Releases that took all the traffic, newest first."""
    asked = [("candidate", "=", candidate)] if candidate else []
    return store.records.find(
        Release,
        ("endpoint", "=", endpoint),
        ("state", "=", "completed"),
        *asked,  # type: ignore[arg-type]
        order="-created_at",
    )


def champion_of(store: Store, model: str) -> str | None:
    """Key of the version that holds `champion`."""
    found = store.records.find(Alias, ("model", "=", model), ("name", "=", CHAMPION), limit=1)
    return found[0].version if found else None


def apply_answer(store: Store, release: Release, answer: GateOutcome, *, impatient: bool) -> Release:
    """Turn live evidence into a decision. `impatient`: the patience is over, so the better estimate wins."""
    if answer.outcome == "pass":
        return advance_release(store, release, answer.message, answer.evidence)
    if answer.outcome == "fail":
        return abort_release(store, release, answer.message, answer.evidence)
    gain = answer.evidence.get("gain")
    if impatient and isinstance(gain, float):
        verdict = advance_release if gain >= 0 else abort_release
        return verdict(store, release, f"patience is over; {answer.message}", answer.evidence)
    return hold_release(store, release, f"not decided yet: {answer.message}", answer.evidence)


def _must_roll(release: Release) -> None:
    if release.state != "rolling_out":
        raise ConflictError(
            f"The release of {release.candidate} to '{release.endpoint}' is over: {release.state}.",
            help="See: everloop release ls",
        )


def _decided(
    release: Release,
    store: Store,
    action: Literal["start", "advance", "hold", "complete", "roll_back", "reject"],
    percent: float,
    reason: str,
    evidence: dict[str, Json] | None = None,
    *,
    state: Literal["rejected", "rolling_out", "completed", "rolled_back", "superseded"] | None = None,
) -> Release:
    decision = Decision(at=store.now(), action=action, percent=percent, reason=reason, evidence=evidence or {})
    return replace(release, percent=percent, decisions=(*release.decisions, decision), state=state or release.state)


def _complete_or_wait(
    store: Store, release: Release, place: EndpointRecord, reason: str, evidence: dict[str, Json]
) -> Release:
    """Complete, or ask for the agreement that a policy on the champion wants and stay where it is until it is there."""
    from everloop.registry import ApprovalError, request_alias

    try:
        with store.records.transaction():
            return _complete(store, release, place, reason, evidence)
    except ApprovalError as error:
        if release.trigger == "promote":
            # Whoever promotes by hand is told at once, and nothing of it is left.
            raise
        release = store.records.get(Release, release.id)
        model = release.candidate.rpartition("@")[0]
        asked = request_alias(store, model, CHAMPION, release.candidate, reason)
        return hold_release(store, release, f"waits for agreement ({asked.id[:18]}): {error.message}", evidence)


def _complete(store: Store, release: Release, place: EndpointRecord, reason: str, evidence: dict[str, Json]) -> Release:
    done = _decided(release, store, "complete", 100.0, reason, evidence, state="completed")
    (done,) = store.records.update(done, verb="completed", data={"reason": reason})
    _set_champion(store, release.candidate, reason, {"release": release.id, **evidence})
    _set_state(store, release.candidate, "released")
    _route(store, place, release.candidate, None, 0.0)
    return done


def _set_champion(store: Store, version: str, reason: str, evidence: dict[str, Json]) -> None:
    from everloop.registry import set_alias

    set_alias(store, version.rpartition("@")[0], CHAMPION, version, reason=reason, evidence=evidence)


def _supersede(store: Store, endpoint: str) -> None:
    current = find_rolling(store, endpoint)
    if current is not None:
        abort_release(store, current, "a newer candidate came", state="superseded")


def _endpoint(store: Store, name: str, model: str) -> EndpointRecord:
    found = store.records.find(EndpointRecord, ("name", "=", name), limit=1)
    if found:
        return found[0]
    place = store.new(EndpointRecord, name=name, model=model)
    store.records.put(place)
    return store.records.get(EndpointRecord, name)


def _route(store: Store, place: EndpointRecord, champion: str | None, canary: str | None, percent: float) -> None:
    place = store.records.get(EndpointRecord, place.name)
    routes = []
    if champion is not None:
        routes.append(Route(version=champion, percent=100.0 - percent, role="champion"))
    if canary is not None:
        routes.append(Route(version=canary, percent=percent, role="canary"))
    shadows = [route for route in place.routes if route.role == "shadow"]
    store.records.update(
        replace(place, routes=(*routes, *shadows)),
        verb="routed",
        data={"routes": {route.version: route.percent for route in routes}},
    )


def _set_state(
    store: Store, version: str, state: Literal["registered", "rejected", "released", "rolled_back", "archived"]
) -> None:
    record = store.records.get(ModelVersion, version)
    if record.state != state:
        store.records.update(replace(record, state=state), verb=state)
