"""Compare a desired state with a store: the changes that would make them equal. Nothing is changed here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from everloop.errors import ConflictError, NotFoundError, ProjectError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.ci.desired_state import DesiredEndpoint, DesiredState
    from everloop.records import Webhook
    from everloop.stores import Store

FORMAT = 1
WEBHOOK_PROJECT = "_access"
"""The project that the control plane keeps its own records in."""

Kind = Literal["approvals", "alias", "champion", "webhook"]


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change: of what, from which value, to which value. None means that it does not exist."""

    kind: Kind
    subject: str
    """`delays@staging` for aliases and approvals, the name of an endpoint or webhook otherwise."""
    before: str | None
    after: str | None
    rollout: tuple[float, ...] = ()
    """For a champion: shares of the traffic in percent."""


@dataclass(frozen=True, slots=True)
class StatePlan:
    """The changes that make a store equal to a desired state, in the order in which they are made."""

    project: str
    changes: tuple[StateChange, ...]
    prune: bool = False
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_state(state: DesiredState, store: Store, *, prune: bool = False) -> StatePlan:
    """Find the changes that make a store equal to a desired state.

    Approvals that get stricter come first and those that get looser last, so that a file cannot lift a policy and use
    that in one step.

    Args:
        prune: also remove aliases and approvals of the named models, and webhooks, that the file does not name.

    Raises:
        NotFoundError: the state names a version, package, webhook or channel that does not exist.
        ConflictError: an endpoint serves another model, or a version is archived.
    """
    _check_channels(state)
    stricter: list[StateChange] = []
    looser: list[StateChange] = []
    for change in _approvals(state, store, prune=prune):
        (stricter if int(change.after or 0) > int(change.before or 0) else looser).append(change)
    changes = [
        *stricter,
        *_aliases(state, store, prune=prune),
        *_champions(state, store),
        *_webhooks(state, store, prune=prune),
        *looser,
    ]
    return StatePlan(store.project, tuple(changes), prune)


def save_plan(plan: StatePlan, path: Path) -> None:
    """Write a plan to a file, for `everloop apply --plan`.

    Raises:
        ProjectError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
    except OSError as error:
        raise ProjectError(f"Cannot write '{path}': {error.strerror}.", help="Choose another file.") from error


def load_plan(path: Path) -> StatePlan:
    """Read a plan that `save_plan` wrote.

    Raises:
        ProjectError: the file cannot be read, or is not a plan of this version.
    """
    again = "Make it again: everloop plan --out FILE"
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=StatePlan)
    except OSError as error:
        raise ProjectError(f"Cannot read '{path}': {error.strerror}.", help=again) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProjectError(f"'{path}' is not a plan: {error}.", help=again) from error
    if plan.format != FORMAT:
        raise ProjectError(f"'{path}' is a plan of format {plan.format}, not {FORMAT}.", help=again)
    return plan


def find_webhook(store: Store, name: str) -> Webhook | None:
    """Return the webhook of a name in this project; None if there is none."""
    from everloop.records import Webhook

    records = store.records.for_project(WEBHOOK_PROJECT)
    found = records.find(Webhook, ("for_project", "=", store.project), ("name", "=", name), limit=1)
    return found[0] if found else None


def _approvals(state: DesiredState, store: Store, *, prune: bool) -> Iterator[StateChange]:
    from everloop.records import AliasPolicy

    for name, model in state.models.items():
        policies = store.records.find(AliasPolicy, ("model", "=", name), order="alias")
        held = {policy.alias: policy.approvals for policy in policies}
        wanted = {**(dict.fromkeys(held, 0) if prune else {}), **model.approvals}
        for alias, number in wanted.items():
            before = held.get(alias, 0)
            if before != number:
                yield StateChange("approvals", f"{name}@{alias}", _count(before), _count(number))


def _aliases(state: DesiredState, store: Store, *, prune: bool) -> Iterator[StateChange]:
    from everloop.records import Alias

    served = {endpoint.model for endpoint in state.endpoints.values()}
    for name, model in state.models.items():
        held = {one.name: one.version for one in store.records.find(Alias, ("model", "=", name), order="name")}
        for alias, ref in model.aliases.items():
            version = _resolve(store, name, ref)
            if held.get(alias) != version:
                yield StateChange("alias", f"{name}@{alias}", held.get(alias), version)
        if prune:
            for alias, version in held.items():
                if alias not in model.aliases and not (alias == "champion" and name in served):
                    yield StateChange("alias", f"{name}@{alias}", version, None)


def _champions(state: DesiredState, store: Store) -> Iterator[StateChange]:
    for name, endpoint in state.endpoints.items():
        version = _resolve(store, endpoint.model, endpoint.champion)
        before = _answering(store, name, endpoint)
        if before != version:
            yield StateChange("champion", name, before, version, endpoint.rollout)


def _answering(store: Store, name: str, wanted: DesiredEndpoint) -> str | None:
    """Return the version that an endpoint serves, or the one that is being rolled out there."""
    from everloop.loop.releases.rollout import champion_of, find_rolling
    from everloop.records import EndpointRecord

    found = store.records.find(EndpointRecord, ("name", "=", name), limit=1)
    if not found or not found[0].routes:
        return None
    if found[0].model != wanted.model:
        raise ConflictError(
            f"Endpoint '{name}' serves the model '{found[0].model}', not '{wanted.model}'.",
            help="An endpoint keeps its model. Use another endpoint.",
        )
    rolling = find_rolling(store, name)
    if rolling is not None:
        return rolling.candidate
    champion = next((route.version for route in found[0].routes if route.role == "champion"), None)
    # The alias and the routes differ only if a person moved one of them by hand.
    return champion if champion == champion_of(store, wanted.model) else None


def _webhooks(state: DesiredState, store: Store, *, prune: bool) -> Iterator[StateChange]:
    from everloop.records import Webhook

    for name, active in state.webhooks.items():
        hook = find_webhook(store, name)
        if hook is None:
            raise NotFoundError(
                f"The project '{store.project}' has no webhook '{name}'.",
                help=f"Its URL and secret do not belong into a file. Create it: everloop webhooks add {name} URL",
            )
        if hook.active != active:
            yield StateChange("webhook", name, _switch(hook.active), _switch(active))
    if prune and state.webhooks:
        records = store.records.for_project(WEBHOOK_PROJECT)
        for hook in records.find(Webhook, ("for_project", "=", store.project), order="name"):
            if hook.name not in state.webhooks:
                yield StateChange("webhook", hook.name, _switch(hook.active), None)


def _resolve(store: Store, model: str, ref: str) -> str:
    """Return the key of the version that a version or digest names."""
    from everloop.records import ModelVersion
    from everloop.registry import get_version
    from everloop.registry.approvals import check_usable

    if not ref.startswith("sha256:"):
        return check_usable(get_version(store, ref)).key
    found = store.records.find(ModelVersion, ("model", "=", model), ("package", "=", ref), order="-version", limit=1)
    if not found:
        raise NotFoundError(
            f"No version of '{model}' has the package {ref} here.",
            help="Bring it into this store first: everloop ci promote --from ENVIRONMENT --to ENVIRONMENT",
        )
    return check_usable(found[0]).key


def _check_channels(state: DesiredState) -> None:
    if not state.channels:
        return
    from everloop.monitoring.incidents.notification_channels import read_channels

    known = [channel.name for channel in read_channels()]
    for name in state.channels:
        if name not in known:
            raise NotFoundError(
                f"everloop.toml declares no notification channel '{name}'. Declared: {', '.join(known) or 'none'}.",
                help=f'Add it to everloop.toml: [[notify]] with name = "{name}" and url = "…".',
            )


def _count(number: int) -> str | None:
    return str(number) if number else None


def _switch(active: bool) -> str:
    return "active" if active else "inactive"
