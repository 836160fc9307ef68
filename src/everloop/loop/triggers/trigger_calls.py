"""Calls: requests of people and other systems to run a loop again.

A call is a record. It leads to at most one run: the first run that begins after it and ends by itself answers it,
whatever started that run. A run that was interrupted or whose process died is resumed for the same call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from everloop.errors import AlreadyExistsError, ConflictError, NotFoundError, UsageError
from everloop.loop.declaration_checks import check_name
from everloop.records import Run, TriggerCall

if TYPE_CHECKING:
    from everloop.loop.triggers.retrain_limits import RetrainLimits
    from everloop.loop.triggers.trigger_protocol import Due, TriggerContext
    from everloop.stores import Store

LONGEST_REASON = 2_000
LONGEST_KEY = 200


@dataclass(frozen=True, slots=True)
class OnCall:
    """Trigger: retrain on a call of `everloop trigger`, `POST /api/v1/loops/NAME/trigger` or `call_loop`.

    Several calls that wait lead to one run. Cool-down and back-off do not delay a call; a budget does.

    Args:
        limits: limits for this trigger.

    Example:
        `OnCall()`
    """

    limits: RetrainLimits | None = None

    @property
    def urgent(self) -> bool:
        return True

    def check(self, context: TriggerContext) -> Due | None:
        calls = open_calls(context.store, context.loop, context.last)
        calls = [call for call in calls if call.commit is None]
        if not calls:
            return None
        first = calls[0]
        more = f" and {len(calls) - 1} more" if len(calls) > 1 else ""
        evidence = {"calls": [call.id for call in calls], "asked_by": first.asked_by}
        return context.due(f"{first.reason or 'a call'} ({first.asked_by}){more}", evidence, calls[-1].id)


@dataclass(frozen=True, slots=True)
class ReportedCommit:
    """A commit that another system reports, with the branch and the files that it changes, if they are known."""

    commit: str
    branch: str | None = None
    files: tuple[str, ...] = ()


def call_loop(
    store: Store, loop: str, reason: str = "", *, idempotency: str | None = None, commit: ReportedCommit | None = None
) -> TriggerCall:
    """Ask for another run of a loop. The actor of the store is recorded with the reason.

    Args:
        loop: name of the loop. It must have run before; its first run needs no call.
        reason: why, for people.
        idempotency: a text that identifies the call. If the same call is repeated, the first one is returned.
        commit: the commit that is the reason, for `OnCommit`.

    Raises:
        NotFoundError: the project has no run of such a loop.
        UsageError: the name cannot be that of a loop, or a text is too long.
        ConflictError: the same `idempotency` was used with another reason or commit.
    """
    check_name("a loop", loop, "flight-delays")
    for what, text, most in (("reason", reason, LONGEST_REASON), ("idempotency", idempotency or "", LONGEST_KEY)):
        if len(text) > most:
            raise UsageError(f"'{what}' has {len(text):,} characters.", help=f"At most {most:,} are allowed.")
    if not store.records.find(Run, ("loop", "=", loop), limit=1):
        raise NotFoundError(
            f"The project '{store.project}' has no run of a loop '{loop}'.",
            help="Check the name. The first run of a loop needs no call: everloop run",
        )
    call = store.new(
        TriggerCall,
        loop=loop,
        reason=reason,
        asked_by=store.actor,
        idempotency=idempotency or "",
        commit=commit.commit if commit is not None else None,
        branch=commit.branch if commit is not None else None,
        files=commit.files if commit is not None else (),
    )
    if not idempotency:
        call = replace(call, idempotency=call.id)
    try:
        store.records.put(call, verb="called", data={"reason": reason, "loop": loop})
    except AlreadyExistsError:
        known = store.records.get(TriggerCall, call.key)
        if (known.reason, known.commit) != (call.reason, call.commit):
            raise ConflictError(
                f"The call '{idempotency}' of loop '{loop}' exists with the reason '{known.reason[:100]}'.",
                help="Use another idempotency key for another call.",
            ) from None
        return known
    return call


def open_calls(store: Store, loop: str, last: Run) -> list[TriggerCall]:
    """Return the calls that no run has answered yet, oldest first.

    Args:
        last: the loop's last run that ended by itself. It has answered the calls before its start.
    """
    found = store.records.find(
        TriggerCall, ("loop", "=", loop), ("created_at", ">=", last.started_at), ("created_at", "<=", store.now())
    )
    evidence = last.cause.get("evidence")
    # The clocks of two machines can differ, so a run also names the calls that it answers.
    answered = evidence.get("calls", ()) if isinstance(evidence, dict) else ()
    return [
        call
        for call in found
        # A simulated clock can stand still. Then the ids tell what was first.
        if (call.created_at > last.started_at or call.id > last.id) and call.id not in answered
    ]
