"""`everloop run` and `everloop up`: run a project's loop once, or keep it running."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, Home, ProjectFolder, cell, console, count, emit, messages, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.loop import Loop, LoopRun
    from everloop.pipeline import Planned
    from everloop.records import Event, StepRun
    from everloop.stores import Store


REJECTED = 11
"""Exit code if a gate rejects the candidate. No kind of error has it."""
_SHOWN = 12
"""How many columns or violations are listed; the others are only counted."""


def run(
    target: Annotated[
        str | None,
        typer.Argument(
            help="Step to stop after (STEP or LOOP.STEP), or the LOOP to run; or the file of a compiled Kubeflow "
            "pipeline, training job or Katib experiment (.yaml), which runs here as processes. Default: the whole loop."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Parameter of a step: NAME=VALUE or STEP.NAME=VALUE; repeatable."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            help="Where steps run: local (in this process), pool (in warm worker processes), ray or ray://HOST:PORT "
            "(on a Ray cluster). Default: 'executor' in everloop.toml, else local.",
        ),
    ] = None,
    force: Annotated[
        list[str] | None, typer.Option("--force", help="Step to run even if its result is cached; repeatable.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which steps would run and why, without running them.")
    ] = False,
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Run the loop once, from the data to the release.

    The steps are data → train → evaluate → register → release. Steps that are up to date are skipped.

    The exit code is 11 if a gate rejects the candidate.
    """
    if target is not None and target.lower().endswith((".yaml", ".yml")):
        from everloop.cli.pipeline_files import run_pipeline_file

        run_pipeline_file(
            target, parse_params(set_ or []), on=on, force=force or (), explain=explain, home=home, json=json
        )
        return
    from everloop.loop import explain_run, load_project, run_loop
    from everloop.pipeline.executors.executor_choice import check_executor

    if on is not None:
        check_executor(on, "--on")
    loaded = load_project(project)
    loop, step = _aim(loaded.loops, target)
    with store_of(loaded.folder, home) as store:
        params = parse_params(set_ or [])
        if explain:
            planned = explain_run(loop, store, target=step, params=params, force=force or ())
            plan = {"loop": loop.name, "steps": [_planned_json(one) for one in planned]}
            emit(plan, json, lambda: _draw_plan(planned))
            return
        listener = None
        if not json:
            from everloop.cli.progress import StepLines

            listener = StepLines()
            messages().print(f"[bold]{cell(loop.name)}[/bold] → {cell(store.home)}")
        result = run_loop(
            loop,
            store,
            trigger="manual",
            target=step,
            params=params,
            executor=on,
            force=force or (),
            listener=listener,
        )
        emit(_result_json(result), json, lambda: _draw_result(result, loop))
        if any(gate.outcome == "fail" and gate.severity == "error" for gate in result.gates):
            raise typer.Exit(REJECTED)


def up(
    project: ProjectFolder = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the API and web page; 0 picks a free one. Default: 8100.")
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two checks of logs and triggers.")] = 10.0,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on. Any but loopback requires a login. Default: 127.0.0.1."),
    ] = None,
    runners: Annotated[
        int,
        typer.Option(
            min=0, max=64, help="Number of runners, which is how many runs can be in progress here at once; 0: none."
        ),
    ] = 1,
    write_systemd: Annotated[
        Path | None, typer.Option(help="Write a systemd unit that runs this command to this file, and exit.")
    ] = None,
    write_compose: Annotated[
        Path | None, typer.Option(help="Write a compose file that runs this command to this file, and exit.")
    ] = None,
    home: Home = None,
) -> None:
    """Keep the loop running until Ctrl-C.

    This starts the endpoints, the monitoring, the triggers, a runner for runs that are due, the API and the status
    page. It restarts processes that die, and loads `loop.py` again when it changes.

    The server is configured by [server] in everloop.toml, as for `everloop server`.
    """
    from everloop.loop.project_folder import find_folder

    folder = find_folder(project)
    if write_systemd is not None or write_compose is not None:
        from everloop.cli.unit_files import write_services

        options = {"--port": port, "--every": None if every == 10.0 else every, "--host": host, "--home": home}
        options["--runners"] = None if runners == 1 else runners
        write_services(folder, write_systemd, write_compose, options)
        return
    with store_of(folder, home) as store:
        keep_up(store, folder, port=port, every=every, host=host, runners=runners)


def keep_up(
    store: Store,
    folder: Path,
    *,
    port: int | None = None,
    every: float = 10.0,
    host: str | None = None,
    runners: int = 1,
) -> None:
    """Supervise the loop in the foreground. Print the URLs of the web page and the endpoints, and what happens."""
    import threading

    from everloop.loop.worker.event_sentences import event_sentences
    from everloop.server import Supervisor
    from everloop.server.server_settings import read_settings

    def show(event: Event) -> None:
        for line in event_sentences(event):
            messages().print(line, soft_wrap=True, markup=False)

    settings = read_settings(folder).changed(port=port, host=host)
    supervisor = Supervisor(store, folder, settings=settings, every_s=every, runners=runners, on_event=show)

    def announce() -> None:
        messages().print(f"Web page and API: [bold]{supervisor.url}[/bold]  (Ctrl-C stops everything)", soft_wrap=True)
        for name, url in supervisor.wait_for_endpoints().items():
            messages().print(
                f"Endpoint '{name}': POST [bold]{supervisor.address_of(name)}/predict[/bold]"
                f"  (for heavy load, use its own port: {url})",
                soft_wrap=True,
            )
            if name in supervisor.moved:
                before, now = supervisor.moved[name]
                messages().print(f"  Its previous port {before} is taken, so '{name}' now uses port {now}.")

    threading.Thread(target=announce, daemon=True).start()
    supervisor.serve()
    messages().print("Stopped. Nothing is lost: continue with everloop up")


def store_of(folder: Path, home: Path | None) -> Store:
    """Open the store of a project, no matter which folder the command was called from."""
    from everloop.loop.project_folder import enter_folder
    from everloop.stores import open_store

    return open_store(enter_folder(folder, home))


def _aim(loops: dict[str, Loop], target: str | None) -> tuple[Loop, str | None]:
    """Return the loop that `target` names, and the step to stop after, if any."""
    from everloop.errors import NotFoundError, UsageError
    from everloop.loop.stages import graph_of

    if target is None or target in loops:
        if target is None and len(loops) > 1:
            raise UsageError(
                f"loop.py declares {len(loops)} loops, so the command needs the name of one.",
                help=f"Name one of: {', '.join(loops)}",
            )
        return (loops[target] if target else next(iter(loops.values()))), None
    name, dot, step = target.partition(".")
    if dot and name in loops:
        return loops[name], step
    for loop in loops.values():
        if target in graph_of(loop).nodes:
            return loop, target
    steps = [step for loop in loops.values() for step in graph_of(loop).nodes]
    raise NotFoundError(f"There is no loop or step '{target}'.", help=f"There are: {', '.join([*loops, *steps])}")


def parse_params(pairs: list[str]) -> dict[str, Any]:
    """Parse `NAME=VALUE` pairs. A value that is not valid JSON is taken as text."""
    import msgspec

    from everloop.errors import UsageError

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, not '{pair}'.", help="For example: --set train.budget_s=10")
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


def _result_json(result: LoopRun) -> dict[str, Any]:
    return {
        "run": result.run,
        "steps": [_step_json(step) for step in result.steps],
        "version": result.version,
        "metric": result.metric,
        "gates": result.gates,
        "release": result.release,
        "columns": result.columns,
        "notes": result.notes,
        "contract": result.broken,
    }


def _draw_plan(planned: list[Planned]) -> None:
    rows = [(one.name, one.status, one.reason) for one in planned]
    table("Planned steps", ("step", "status", "why"), rows, empty="The loop has no steps.")


def _draw_result(result: LoopRun, loop: Loop) -> None:
    _draw_violations(result)
    if result.version is None:
        console().print(f"{result.ran} of {count(len(result.steps), 'step')} ran.")
        return
    if result.ran == 0:
        console().print(f"Nothing to do: nothing has changed since {result.version.key} was made.")
    colours = {"pass": "green", "fail": "red", "undecided": "yellow"}
    console().print(f"[bold]{result.version.key}[/bold]  {cell(result.version.metrics)}", soft_wrap=True)
    if loop.training_metric is None and result.metric is not None:
        task = result.version.signature.get("task")
        console().print(f"  metric       {result.metric}, the default for {task} targets; the loop does not set one")
    classes = result.version.signature.get("classes")
    if isinstance(classes, list) and len(classes) == 2 and (isinstance(classes[1], str) or loop.positive is not None):
        line = f"  positive     {classes[1]!r}: probabilities, precision, recall and f1 are about this class"
        console().print(line, soft_wrap=True, markup=False)
    _draw_columns(result)
    for note in result.notes:
        console().print(f"  note         {note}", soft_wrap=True, markup=False)
    for gate in result.gates:
        colour = "yellow" if gate.severity == "warning" and gate.outcome == "fail" else colours[gate.outcome]
        warning = " (a warning)" if gate.severity == "warning" and gate.outcome != "pass" else ""
        evidence = f"{cell(gate.gate)}{warning}: {cell(gate.message)}"
        console().print(f"  [{colour}]{gate.outcome:<9}[/{colour}] {evidence}", soft_wrap=True)
    if result.release is not None:
        release = result.release
        last = release.decisions[-1].reason if release.decisions else ""
        state = release.state.replace("_", " ")
        console().print(
            f"  release to '{release.endpoint}': {state}, {release.percent:g}% of the traffic ({cell(last)})"
        )
        if release.state == "completed":
            console().print("Serve it and keep the loop running with: everloop up")
        elif release.state == "rolling_out":
            console().print("Live traffic decides the rollout while this command runs: everloop up")


def _draw_columns(result: LoopRun) -> None:
    """Print the columns that the model uses, those that it does not use and why, and changes from the champion."""
    columns = result.columns
    if columns is None:
        return
    line = partial(console().print, soft_wrap=True, markup=False)
    line(f"  learned from {count(len(columns.used), 'column')}: {_listed(columns.used)}")
    for name, reason in columns.left_out.items():
        line(f"  left out     {name}: {reason}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in columns.set_apart.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        line(f"  not used     {_listed(names)}: {reason}")
    changes = [
        *(["added " + _listed(columns.added)] if columns.added else []),
        *(["removed " + _listed(columns.removed)] if columns.removed else []),
        *(f"{name} is {change}" for name, change in (columns.retyped or {}).items()),
    ]
    if changes:
        line(f"  since {columns.against}: {'; '.join(changes)}")


def _draw_violations(result: LoopRun) -> None:
    from shlex import quote

    for report in result.broken:
        bad, rows = int(report["bad_rows"]), int(report["rows"])
        if bad:
            verb, be = ("violates", "is") if bad == 1 else ("violate", "are")
            console().print(
                f"  [yellow]{bad:,} of {count(rows, 'row')} {verb} the contract[/yellow]"
                f" and {be} set aside in quarantine/{report['dataset']}:"
            )
        for one in report["violations"][:_SHOWN]:
            console().print(f"    {one['severity']}: {one['message']}", soft_wrap=True, markup=False)
        more = len(report["violations"]) - _SHOWN + int(report["more"])
        if more > 0:
            console().print(f"    and {more} more")
        command = f"everloop data contract {quote(str(report['dataset']))} --accept"
        console().print(f"    If the data changed on purpose, run: {command}", soft_wrap=True, markup=False)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _SHOWN else f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
