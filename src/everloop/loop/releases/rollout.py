"""Roll out a candidate to an endpoint step by step, or roll it back.

    rejected       a gate failed
    rolling_out -> completed      the evidence passed at every step
                -> rolled_back    the evidence failed, or a person rolled it back
                -> superseded     a newer candidate was released

The champion alias, the endpoint's routes, the version's state and the release change in one transaction, so no
reader ever sees half a release.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from shlex import quote
from typing import TYPE_CHECKING, Literal

from everloop.errors import ConflictError, CorruptionError
from everloop.records import (
    Alias,
    Decision,
    DecisionAction,
    EndpointRecord,
    GateResult,
    Json,
    ModelVersion,
    Release,
    ReleaseState,
    Route,
)
from everloop.registry.approvals import check_usable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from everloop.loop.gates.gate_checks import GateOutcome
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
    """Release a candidate to an endpoint after its gates were checked.

    A failed gate rejects the candidate, unless it is only a warning. The first champion of an endpoint takes all the
    traffic at once. If a gate is undecided and there is only one step, the release waits at 0 percent for `everloop
    release advance`.

    Args:
        steps: shares of the traffic in percent, rising to 100.
        gates: results of the candidate's gates.
        trigger: what started the run or the release.
        run: id of the run that made the candidate.
        reason: why the candidate may take the traffic, if a person decided it. Default: the outcome of the gates.

    Raises:
        ConflictError: the candidate is archived, has no package and so cannot be served, or the endpoint serves another
            model.
        ApprovalError: `trigger` is `promote`, and a policy on the champion lacks approvals.
    """
    if not candidate.package:
        raise ConflictError(
            f"'{candidate.key}' was registered over the MLflow protocol and has no package yet.",
            help=f"Build one with: everloop models adopt {quote(candidate.key)}",
        )
    with store.records.transaction():
        # Read again inside the transaction: the version may have been archived or deleted in the meantime.
        check_usable(store.records.get(ModelVersion, candidate.key))
        served_at = _endpoint(store, endpoint, candidate.model)
        if served_at.model != candidate.model and not served_at.routes:
            # Nothing answers there yet; every candidate of the other model was rejected.
            (served_at,) = store.records.update(replace(served_at, model=candidate.model))
        if served_at.model != candidate.model:
            # Without a champion of its own model, it would take all the traffic from that of the other model.
            raise ConflictError(
                f"Endpoint '{endpoint}' serves the model '{served_at.model}', so it cannot get '{candidate.key}'.",
                help=f"Choose another endpoint, or keep the model's name: el.Loop(…, model='{served_at.model}').",
            )
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
        deciding = [gate for gate in gates if gate.severity == "error"]
        failed = [gate for gate in deciding if gate.outcome == "fail"]
        undecided = [gate for gate in deciding if gate.outcome == "undecided"]
        if failed:
            reason = "; ".join(f"{gate.gate}: {gate.message}" for gate in failed)
            release = decided(release, store, "reject", 0.0, reason, state="rejected")
            store.records.put(release, verb="rejected", data={"reason": reason})
            set_version_state(store, candidate.key, "rejected")
            return release
        _supersede(store, endpoint)
        if champion is None:
            release = decided(release, store, "start", 0.0, "the endpoint has no champion yet")
            store.records.put(release)
            return _complete_or_wait(store, release, reason or "first champion", {})
        if undecided and len(release.steps) == 1:
            reason = "undecided, and there is no canary to decide it: " + "; ".join(
                f"{gate.gate}: {gate.message}" for gate in undecided
            )
            release = decided(release, store, "hold", 0.0, reason)
            store.records.put(release, verb="held", data={"reason": reason})
            return release
        if not reason:
            names = ", ".join(gate.gate for gate in undecided)
            reason = f"undecided: {names}" if undecided else "all gates passed"
            warned = ", ".join(gate.gate for gate in gates if gate.severity == "warning" and gate.outcome != "pass")
            reason += f"; with warnings: {warned}" if warned else ""
        release = decided(release, store, "start", release.steps[0], reason)
        store.records.put(release)
        if release.steps[0] >= 100:
            return _complete_or_wait(store, release, reason, {})
        set_routes(store, release, champion, release.steps[0])
        return release


def advance_release(store: Store, release: Release, reason: str, evidence: dict[str, Json] | None = None) -> Release:
    """Give the candidate the next share of the traffic; after the last step, complete the release.

    Raises:
        ConflictError: the release has ended, or another process changed it in the meantime.
    """
    check_rolling(release)
    if release.paused:
        raise ConflictError(
            f"The release of {release.candidate} to '{release.endpoint}' is paused, so it cannot advance.",
            help=f"Resume it first: everloop release resume {quote(release.endpoint)}",
        )
    with store.records.transaction():
        later = [step for step in release.steps if step > release.percent]
        if not later or later[0] >= 100:
            return _complete_or_wait(store, release, reason, evidence or {})
        moved = decided(release, store, "advance", later[0], reason, evidence)
        (moved,) = store.records.update(moved, verb="advanced", data={"percent": later[0], "reason": reason})
        set_routes(store, release, release.previous, later[0])
        return moved


def hold_release(store: Store, release: Release, reason: str, evidence: dict[str, Json] | None = None) -> Release:
    """Record that the release takes no step now. At most one such decision is recorded per day.

    If the test has taken a look that is not in the store yet, it is stored in any case.
    """
    check_rolling(release)
    last = release.decisions[-1] if release.decisions else None
    if last is not None and last.action == "hold" and timedelta(0) <= store.now() - last.at < timedelta(days=1):
        stored = store.records.get(Release, release.id)
        if (stored.looks, stored.awaits) == (release.looks, release.awaits):
            return release
        return store.records.update(release, verb="looked", data={"reason": reason})[0]
    held = decided(release, store, "hold", release.percent, reason, evidence)
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
    """End a rollout and give all the traffic back to the champion.

    Raises:
        ConflictError: the release has ended, or another process changed it in the meantime.
    """
    check_rolling(release)
    with store.records.transaction():
        ended = decided(release, store, "roll_back", 0.0, reason, evidence, state=state)
        (ended,) = store.records.update(ended, verb=state, data={"reason": reason})
        if release.previous is not None:
            set_routes(store, release, release.previous, None)
        set_version_state(store, release.candidate, "rolled_back" if state == "rolled_back" else "registered")
        return ended


def find_rolling(store: Store, endpoint: str) -> Release | None:
    """Return the release that is being rolled out at an endpoint; None if there is none."""
    rolling = store.records.find(
        Release, ("endpoint", "=", endpoint), ("state", "=", "rolling_out"), order="-created_at", limit=1
    )
    return rolling[0] if rolling else None


def step_started_at(release: Release) -> datetime:
    """Return when the candidate got its present share of the traffic.

    Raises:
        CorruptionError: no decision of the release gave it a share.
    """
    for decision in reversed(release.decisions):
        if decision.action in ("start", "advance"):
            return decision.at
    raise CorruptionError(
        f"The release of {release.candidate} to '{release.endpoint}' has {release.percent:g} percent of the traffic, "
        f"but its record has no decision that started or advanced it.",
        help=f"End it with: everloop release rollback {quote(release.endpoint)}",
    )


def champion_of(store: Store, model: str) -> str | None:
    """Return the key of the model's champion; None if it has none."""
    found = store.records.find(Alias, ("model", "=", model), ("name", "=", CHAMPION), limit=1)
    return found[0].version if found else None


def apply_evidence(
    store: Store,
    release: Release,
    outcome: GateOutcome,
    *,
    impatient: bool,
    if_undecided: Literal["back", "advance", "hold"] = "back",
) -> Release:
    """Advance, hold or roll back a release, depending on the live evidence.

    Args:
        impatient: the rollout's patience has run out.
        if_undecided: what happens then without a result. `advance` only if the estimate is within the margin.
    """
    if outcome.outcome == "pass":
        return advance_release(store, release, outcome.message, outcome.evidence)
    if outcome.outcome == "fail":
        return abort_release(store, release, outcome.message, outcome.evidence)
    reason = f"patience has run out; {outcome.message}"
    if impatient and if_undecided == "back":
        return abort_release(store, release, reason, outcome.evidence)
    gain, margin = outcome.evidence.get("gain"), outcome.evidence.get("margin", 0.0)
    if impatient and if_undecided == "advance" and isinstance(gain, float) and isinstance(margin, float):
        decide = advance_release if gain >= -margin else abort_release
        return decide(store, release, reason, outcome.evidence)
    return hold_release(store, release, f"not decided yet: {outcome.message}", outcome.evidence)


def is_shadowing(release: Release) -> bool:
    """Whether the candidate scores copies of the requests, as the first step of its release."""
    started = any(decision.action == "start" for decision in release.decisions)
    return release.state == "rolling_out" and release.percent == 0 and release.steps[0] == 0 and started


def check_rolling(release: Release) -> None:
    if release.state != "rolling_out":
        raise ConflictError(
            f"The release of {release.candidate} to '{release.endpoint}' has ended: {release.state}.",
            help="See: everloop release ls",
        )


def decided(
    release: Release,
    store: Store,
    action: DecisionAction,
    percent: float,
    reason: str,
    evidence: dict[str, Json] | None = None,
    *,
    state: ReleaseState | None = None,
) -> Release:
    decision = Decision(
        at=store.now(), action=action, percent=percent, reason=reason, evidence=evidence or {}, actor=store.actor
    )
    # What the step before waited for does not hold for the next one.
    awaits = release.awaits if action in ("hold", "pause", "resume", "approve") else None
    return replace(
        release,
        percent=percent,
        decisions=(*release.decisions, decision),
        state=state or release.state,
        awaits=awaits,
    )


def _complete_or_wait(store: Store, release: Release, reason: str, evidence: dict[str, Json]) -> Release:
    """Complete a release. If a policy on the champion lacks approvals, request them and hold the release until then."""
    from everloop.registry import ApprovalError, request_alias

    try:
        with store.records.transaction():
            return _complete(store, release, reason, evidence)
    except ApprovalError as error:
        if release.trigger == "promote":
            # A person who promotes by hand gets the error, and the transaction leaves nothing behind.
            raise
        stored = store.records.get(Release, release.id)
        release = replace(stored, looks=release.looks, awaits="approval")
        model = release.candidate.rpartition("@")[0]
        request = request_alias(store, model, CHAMPION, release.candidate, reason)
        return hold_release(store, release, f"waiting for approval ({request.id[:18]}): {error.message}", evidence)


def _complete(store: Store, release: Release, reason: str, evidence: dict[str, Json]) -> Release:
    completed = decided(release, store, "complete", 100.0, reason, evidence, state="completed")
    (completed,) = store.records.update(completed, verb="completed", data={"reason": reason})
    set_champion(store, release.candidate, reason, {"release": release.id, **evidence})
    set_version_state(store, release.candidate, "released")
    set_routes(store, release, release.candidate, None)
    return completed


def set_champion(store: Store, version: str, reason: str, evidence: dict[str, Json]) -> None:
    from everloop.registry import set_alias

    set_alias(store, version.rpartition("@")[0], CHAMPION, version, reason=reason, evidence=evidence)


def _supersede(store: Store, endpoint: str) -> None:
    current = find_rolling(store, endpoint)
    if current is not None:
        abort_release(store, current, "superseded by a newer candidate", state="superseded")


def _endpoint(store: Store, name: str, model: str) -> EndpointRecord:
    found = store.records.find(EndpointRecord, ("name", "=", name), limit=1)
    if found:
        return found[0]
    store.records.put(store.new(EndpointRecord, name=name, model=model))
    return store.records.get(EndpointRecord, name)


def set_routes(store: Store, release: Release, champion: str | None, percent: float | None) -> None:
    """Set the routes of a release's endpoint.

    Args:
        champion: the version that gets what the candidate leaves.
        percent: the candidate's share; 0 makes it a shadow, None takes its route away.
    """
    endpoint = store.records.get(EndpointRecord, release.endpoint)
    candidate = release.candidate
    routes = []
    if champion is not None:
        routes.append(Route(version=champion, percent=100.0 - (percent or 0.0), role="champion"))
    if percent:
        routes.append(Route(version=candidate, percent=percent, role="canary"))
    shadows = [route for route in endpoint.routes if route.role == "shadow" and route.version != candidate]
    if percent == 0:
        # A shadow's share is that of the requests whose copies it scores.
        shadows.append(Route(version=candidate, percent=100.0, role="shadow"))
    store.records.update(
        replace(endpoint, routes=(*routes, *shadows)),
        verb="routed",
        data={"routes": {route.version: route.percent for route in routes}, "release": release.id},
    )


def set_version_state(
    store: Store, version: str, state: Literal["registered", "rejected", "released", "rolled_back", "archived"]
) -> None:
    record = store.records.get(ModelVersion, version)
    if record.state != state:
        store.records.update(replace(record, state=state), verb=state)
