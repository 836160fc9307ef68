"""Make the changes of a plan, all of them in one transaction, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.ci.state_plan import WEBHOOK_PROJECT, StateChange, StatePlan, find_webhook, plan_state
from everloop.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from everloop.ci.desired_state import DesiredState
    from everloop.stores import Store


def apply_plan(
    state: DesiredState, store: Store, *, plan: StatePlan | None = None, prune: bool = False, reason: str = ""
) -> StatePlan:
    """Make a store equal to a desired state. Does nothing if it is equal already.

    Args:
        plan: a plan that was looked at. It is refused if the store or the file has changed since.
        prune: as for `plan_state`; with `plan`, the plan decides.
        reason: why, recorded with every change.

    Returns:
        The plan that was carried out.

    Raises:
        ConflictError: the present changes are not those of the plan.
        ApprovalError: a policy requires approvals for a move. Nothing was changed.
        NotFoundError: as for `plan_state`.
    """
    with store.records.transaction():
        # Planned again inside of the transaction, so nothing can change between this and the changes.
        current = plan_state(state, store, prune=plan.prune if plan is not None else prune)
        if plan is not None and plan != current:
            raise ConflictError(
                f"The store or the file has changed since the plan was made: {_first_difference(plan, current)}.",
                help="Make a new plan and look at it: everloop plan --out FILE",
            )
        for change in current.changes:
            _apply(store, change, reason or "desired state applied")
    return current


def _apply(store: Store, change: StateChange, reason: str) -> None:
    if change.kind == "approvals":
        from everloop.registry.approvals import set_policy

        model, _, alias = change.subject.rpartition("@")
        set_policy(store, model, alias, int(change.after or 0))
    elif change.kind == "alias":
        _move_alias(store, change, reason)
    elif change.kind == "champion":
        from everloop.loop.releases.rollout import start_release
        from everloop.registry import get_version

        version = get_version(store, change.after or "")
        start_release(
            store, change.subject, version, steps=change.rollout or (100.0,), trigger="promote", reason=reason
        )
    else:
        _switch_webhook(store, change)


def _move_alias(store: Store, change: StateChange, reason: str) -> None:
    from everloop.loop.releases.promotion import move_alias
    from everloop.registry import remove_alias

    model, _, alias = change.subject.rpartition("@")
    if change.after is None:
        remove_alias(store, model, alias, reason=reason)
    else:
        move_alias(store, model, alias, change.after, reason, expect=change.before)


def _switch_webhook(store: Store, change: StateChange) -> None:
    from everloop.records import Webhook

    hook = find_webhook(store, change.subject)
    if hook is None:
        raise NotFoundError(f"The webhook '{change.subject}' has been removed since the plan was made.")
    records = store.records.for_project(WEBHOOK_PROJECT)
    if change.after is None:
        records.delete(Webhook, hook.id)
        return
    active = change.after == "active"
    # Events that happened while it was off are not sent later.
    if active and not hook.active:
        hook = replace(hook, seq=store.records.last_event(), part=0)
    records.update(replace(hook, active=active, updated_at=store.now()))


def _first_difference(before: StatePlan, now: StatePlan) -> str:
    if before.project != now.project:
        return f"the plan is for the project '{before.project}', the store for '{now.project}'"
    for change in before.changes:
        if change not in now.changes:
            same = next((one for one in now.changes if (one.kind, one.subject) == (change.kind, change.subject)), None)
            if same is None:
                return f"{change.kind} '{change.subject}' has already been changed"
            return f"{change.kind} '{change.subject}' was {change.before} and is {same.before} now"
    added = next((one for one in now.changes if one not in before.changes), None)
    return (
        f"{added.kind} '{added.subject}' is to change, too" if added is not None else "the order of the changes differs"
    )
