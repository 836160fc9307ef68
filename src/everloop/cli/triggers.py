"""`everloop trigger` and `everloop triggers`: call a loop, and see why it runs again or not."""

from __future__ import annotations

from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, ProjectFolder, emit, opened, say, table


def trigger(
    loop: Annotated[str, typer.Argument(help="Name of the loop.")],
    reason: Annotated[str, typer.Option(help="Reason, recorded with the call.")] = "",
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: repeating a call with the same key has no effect.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Run a loop again that has the trigger el.OnCall().

    The worker of `everloop up` starts the run. Each call leads to at most one run.
    """
    from everloop.loop import call_loop

    with opened(home) as store:
        call = call_loop(store, loop, reason, idempotency=key)
    emit(call, json, lambda: say(f"Called '{loop}' ({call.id}). To see when it runs: everloop triggers {loop}"))


def triggers(
    loop: Annotated[str | None, typer.Argument(help="Name of the loop. Default: all loops of the project.")] = None,
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show for each trigger of a loop whether it starts a run now, and why or when it will next."""
    from everloop.cli.loop import store_of
    from everloop.errors import NotFoundError
    from everloop.loop import explain_due, load_project

    loaded = load_project(project)
    if loop is not None and loop not in loaded.loops:
        raise NotFoundError(f"There is no loop '{loop}'.", help=f"There are: {', '.join(loaded.loops)}")
    with store_of(loaded.folder, home) as store:
        found = {name: explain_due(declared, store) for name, declared in loaded.loops.items() if loop in (None, name)}

    def draw() -> None:
        for name, reports in found.items():
            rows = [
                (one.trigger, one.state, one.next_at, one.due.reason if one.due else "", one.reason) for one in reports
            ]
            columns = ("trigger", "state", "next check", "what", "why")
            table(f"Triggers of {name}", columns, rows, empty=f"'{name}' has no triggers. Add some: retrain=[...]")

    emit(found, json, draw)
