"""`everloop run` and `up`: one turn of a project's loop, and keeping it turning."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, Home, cell, console, emit, messages, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.loop import Loop, LoopRun
    from everloop.pipeline import Planned
    from everloop.records import StepRun
    from everloop.stores import Store


_SHOWN = 12
"""How many columns or violations are named; the rest is counted."""


def run(
    target: Annotated[
        str | None, typer.Argument(help="A step to run up to, a loop, or LOOP.STEP. Default: all.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A step's parameter: NAME=VALUE or STEP.NAME=VALUE.")
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="Where steps run: local (this process) or pool (warm processes).")
    ] = "local",
    force: Annotated[
        list[str] | None, typer.Option("--force", help="Run this step even if cached; repeatable.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what would run and why; run nothing.")] = False,
    project: Annotated[Path | None, typer.Option("--dir", help="The project's folder.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Take one turn: data → train → judge → register → release. Does only what is not done yet."""
    from everloop.errors import UsageError
    from everloop.loop import explain_run, load_project, run_loop

    executors = {"local": "inline", "pool": "pool"}
    if on not in executors:
        raise UsageError(f"Nothing called '{on}' to run on.", help=f"There is: {', '.join(executors)}")
    loaded = load_project(project)
    loop, step = _aim(loaded.loops, target)
    with _store_of(loaded.folder, home) as store:
        params = _params(set_ or [])
        if explain:
            planned = explain_run(loop, store, target=step, params=params, force=force or ())
            shown = {"loop": loop.name, "steps": [_planned_json(one) for one in planned]}
            emit(shown, json, lambda: _draw_plan(planned))
            return
        listener = None
        if not json:
            from everloop.cli.progress import StepLines

            listener = StepLines()
            messages().print(f"[bold]{cell(loop.name)}[/bold] → {cell(store.home)}")
        turn = run_loop(
            loop,
            store,
            trigger="manual",
            target=step,
            params=params,
            executor=executors[on],
            force=force or (),
            listener=listener,
        )
        emit(_turn_json(turn), json, lambda: _draw_turn(turn, loop))


def up(
    project: Annotated[Path | None, typer.Option("--dir", help="The project's folder.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Of the API and the status page; 0 takes a free one. Default: 8100.")
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks at logs and triggers.")] = 10.0,
    home: Home = None,
) -> None:
    """Keep the loop turning until Ctrl-C: endpoints, watching, triggers, API and status page.

    The server is as [server] of everloop.toml says, as with everloop server.
    """
    from everloop.loop.project import find_folder

    folder = find_folder(project)
    with _store_of(folder, home) as store:
        keep_up(store, folder, port=port, every=every)


def keep_up(store: Store, folder: Path, *, port: int | None = None, every: float = 10.0) -> None:
    """Supervise in the foreground and say where things are."""
    import threading

    from everloop.server import Supervisor
    from everloop.server.server_settings import read_settings

    supervisor = Supervisor(store, folder, settings=read_settings(folder).changed(port=port), every_s=every)

    def tell() -> None:
        messages().print(
            f"Status page and API: [bold]{supervisor.url}[/bold]  (Ctrl-C stops everything)", soft_wrap=True
        )
        for name, url in supervisor.wait_for_endpoints().items():
            messages().print(
                f"Endpoint '{name}': POST [bold]{supervisor.address_of(name)}/predict[/bold]"
                f"  (for heavy load, its own port: {url})",
                soft_wrap=True,
            )
            if name in supervisor.moved:
                before, now = supervisor.moved[name]
                messages().print(f"  Port {before}, which '{name}' had before, is taken; it is at {now} now.")

    threading.Thread(target=tell, daemon=True).start()
    supervisor.serve()
    messages().print("Stopped. Nothing is lost: go on with everloop up")


def _store_of(folder: Path, home: Path | None) -> Store:
    """The store of a project's folder, wherever the command was called from."""
    import os

    from everloop.stores import open_store

    if home is None and "EVERLOOP_STORE" not in os.environ:
        os.chdir(folder)
    return open_store(home)


def _aim(loops: dict[str, Loop], target: str | None) -> tuple[Loop, str | None]:
    """Which loop, and up to which step."""
    from everloop.errors import NotFoundError, UsageError
    from everloop.loop.stages import graph_of

    if target is None or target in loops:
        if target is None and len(loops) > 1:
            raise UsageError(f"loop.py declares {len(loops)} loops.", help=f"Name one of: {', '.join(loops)}")
        return (loops[target] if target else next(iter(loops.values()))), None
    name, dot, step = target.partition(".")
    if dot and name in loops:
        return loops[name], step
    for loop in loops.values():
        if target in graph_of(loop).nodes:
            return loop, target
    steps = [step for loop in loops.values() for step in graph_of(loop).nodes]
    raise NotFoundError(f"No loop or step is called '{target}'.", help=f"There are: {', '.join([*loops, *steps])}")


def _params(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE`, the value as JSON where it is JSON, else as text."""
    import msgspec

    from everloop.errors import UsageError

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {pair} is no NAME=VALUE.", help="For example: --set train.budget_s=10")
        try:
            found[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            found[name] = text
    return found


def _planned_json(planned: Planned) -> dict[str, Any]:
    return {"name": planned.name, "status": planned.status, "reason": planned.reason}


def _step_json(step: StepRun) -> dict[str, Any]:
    return {
        "name": step.name,
        "status": step.status,
        "seconds": step.seconds,
        "reason": step.reason,
        "error": step.error,
        "code": step.code,
    }


def _turn_json(turn: LoopRun) -> dict[str, Any]:
    return {
        "run": turn.run,
        "steps": [_step_json(step) for step in turn.steps],
        "version": turn.version,
        "metric": turn.metric,
        "gates": turn.gates,
        "release": turn.release,
        "columns": turn.columns,
        "contract": turn.broken,
    }


def _draw_plan(planned: list[Planned]) -> None:
    rows = [(one.name, one.status, one.reason) for one in planned]
    table("What a run would do", ("step", "status", "why"), rows, empty="The graph has no steps.")


def _draw_turn(turn: LoopRun, loop: Loop) -> None:
    _draw_broken(turn)
    if turn.version is None:
        console().print(f"{turn.ran} of {len(turn.steps)} steps ran.")
        return
    if turn.ran == 0:
        console().print(f"Nothing to do: nothing has changed since {turn.version.key} was made.")
    colours = {"pass": "green", "fail": "red", "undecided": "yellow"}
    console().print(f"[bold]{turn.version.key}[/bold]  {cell(turn.version.metrics)}", soft_wrap=True)
    if loop.training_metric is None and turn.metric is not None:
        task = turn.version.signature.get("task")
        console().print(
            f"  judged by {turn.metric}: the loop names no metric, and this is the usual one of {task} targets"
        )
    _draw_columns(turn)
    for gate in turn.gates:
        colour = colours[gate.outcome]
        said = f"{cell(gate.gate)}: {cell(gate.message)}"
        console().print(f"  [{colour}]{gate.outcome:<9}[/{colour}] {said}", soft_wrap=True)
    if turn.release is not None:
        release = turn.release
        last = release.decisions[-1].reason if release.decisions else ""
        what = release.state.replace("_", " ")
        console().print(
            f"  release to '{release.endpoint}': {what}, {release.percent:g}% of the traffic ({cell(last)})"
        )
        if release.state == "completed":
            console().print("Serve it and keep the loop turning with: everloop up")
        elif release.state == "rolling_out":
            console().print("Its live evidence decides while this runs: everloop up")


def _draw_columns(turn: LoopRun) -> None:
    """One line for the columns that the model reads, one for each other, and what is different from the champion."""
    found = turn.columns
    if found is None:
        return
    say = partial(console().print, soft_wrap=True, markup=False)
    say(f"  learned from {len(found.used)} columns: {_listed(found.used)}")
    for name, reason in found.left_out.items():
        say(f"  left out     {name}: {reason}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in found.set_apart.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        say(f"  not offered  {_listed(names)}: {reason}")
    news = [
        *(["added " + _listed(found.added)] if found.added else []),
        *(["no longer " + _listed(found.removed)] if found.removed else []),
        *(f"{name} is {change}" for name, change in (found.retyped or {}).items()),
    ]
    if news:
        say(f"  since {found.against}: {'; '.join(news)}")


def _draw_broken(turn: LoopRun) -> None:
    from shlex import quote

    for told in turn.broken:
        bad, rows = int(told["bad_rows"]), int(told["rows"])
        if bad:
            aside = f"kept aside as quarantine/{told['dataset']}"
            console().print(f"  [yellow]{bad:,} of {rows:,} rows break the contract[/yellow] and are {aside}:")
        for one in told["violations"][:_SHOWN]:
            console().print(f"    {one['severity']}: {one['message']}", soft_wrap=True, markup=False)
        more = len(told["violations"]) - _SHOWN + int(told["more"])
        if more > 0:
            console().print(f"    and {more} more")
        command = f"everloop data contract {quote(str(told['dataset']))} --accept"
        console().print(f"    If the data changed on purpose: {command}", soft_wrap=True, markup=False)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _SHOWN else f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
