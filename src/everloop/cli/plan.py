"""`everloop plan` and `everloop apply`: make a store equal to a desired state that is kept in git."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, Home, count, emit, opened, say, table

if TYPE_CHECKING:
    from everloop.ci.state_plan import StatePlan

CHANGES = 2
"""Exit code of `plan --detailed-exitcode` if there are changes."""

StateFile = Annotated[Path, typer.Argument(metavar="[FILE]", help="File with the desired state.")]
Prune = Annotated[
    bool, typer.Option("--prune", help="Also remove aliases, approvals and webhooks that the file does not name.")
]


def plan(
    file: StateFile = Path("everloop-state.toml"),
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan here. See: everloop apply")] = None,
    prune: Prune = False,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit with 2 if there are changes.")
    ] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show what would change to make the store equal to a desired state. Nothing is changed."""
    from everloop.ci import plan_state, read_state
    from everloop.ci.state_plan import save_plan

    state = read_state(file)
    with opened(home) as store:
        found = plan_state(state, store, prune=prune)
    if out is not None:
        save_plan(found, out)
    emit(found.to_json(), json, lambda: _draw(found, "would change", "The store is equal to the desired state."))
    if detailed_exitcode and found.changes:
        raise typer.Exit(CHANGES)


def apply(
    file: StateFile = Path("everloop-state.toml"),
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Saved plan. Refused if anything has changed since.")
    ] = None,
    prune: Prune = False,
    reason: Annotated[str, typer.Option(help="Reason, recorded with every change.")] = "",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Make the store equal to a desired state. All changes are made, or none. A second call does nothing."""
    from everloop.ci import apply_plan, read_state
    from everloop.ci.state_plan import load_plan

    state = read_state(file)
    saved = load_plan(plan) if plan is not None else None
    with opened(home) as store:
        done = apply_plan(state, store, plan=saved, prune=prune, reason=reason)
    emit(
        done.to_json(), json, lambda: _draw(done, "changed", "Nothing to do: the store is equal to the desired state.")
    )


def _draw(plan: StatePlan, verb: str, empty: str) -> None:
    rows = [(one.kind, one.subject, one.before, one.after or "removed") for one in plan.changes]
    table(f"Project {plan.project}", ("what", "of", "before", "after"), rows, empty=empty)
    if rows:
        say(f"{count(len(rows), 'setting')} {verb}.")
