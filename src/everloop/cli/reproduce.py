"""`everloop reproduce`: repeat a run, and compare its results with the original."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, Home, console, emit, messages, opened

if TYPE_CHECKING:
    from everloop.records import Run
    from everloop.stores import Store
    from everloop.tracking.reproduction.execution_plan import ReproductionPlan
    from everloop.tracking.reproduction.result_comparison import Reproduction

DIFFERENT = 1


def reproduce(
    run: Annotated[str, typer.Argument(help="Id of the run, or a unique prefix of it.")],
    reuse_environment: Annotated[
        bool,
        typer.Option(
            "--reuse-environment", help="Use the packages installed here, even if the run used other versions."
        ),
    ] = False,
    repository: Annotated[
        Path | None, typer.Option(help="Git repository of the run. Default: where it was when the run started.")
    ] = None,
    project: Annotated[
        Path | None,
        typer.Option("--dir", help="For a run of a loop: project folder with loop.py. Default: the run's own."),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option("--link", help="File or folder that the run needs and git does not track; repeatable."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Relative tolerance for metrics; 0 requires identical bits.")
    ] = 0.0,
    timeout: Annotated[
        float | None, typer.Option(help="Time limit for the command, in seconds. Default: none.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="New folder in which to keep the code, the environment and the new store. Default: none."),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Execute a run that was not started on this machine. Look at --show first."),
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show everything that would be executed, without executing it.")
    ] = False,
    secret: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=VALUE", help="Value of a secret that the run masked; repeatable."),
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> int:
    """Reproduce a run in a scratch folder, and compare the results.

    Prints 'identical' if they are the same; otherwise lists the differences, with exit code 1. This executes the run's
    command. A run that was not started on this machine is executed only with --trust, or if a key that is trusted here
    has signed it.
    """
    from everloop.errors import AlreadyExistsError

    given = _secret_values(secret or [])
    if show:
        return _show(run, home, json, reuse_environment, repository, project)
    with ExitStack() as stack:
        if keep is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="everloop-reproduce-")))
        else:
            scratch = keep.absolute()
            if scratch.exists():
                raise AlreadyExistsError(f"'{scratch}' already exists.", help="Give --keep the name of a new folder.")
            scratch.mkdir(parents=True)
        # Opened before any chdir, because --home may be relative to the current folder.
        store = stack.enter_context(opened(home))
        record = _find(store, run)
        done = _reproduce(
            store,
            record,
            scratch,
            reuse_environment=reuse_environment,
            repository=repository.absolute() if repository else None,
            folder=project.absolute() if project else None,
            links=link or [],
            tolerance=tolerance,
            timeout_s=timeout,
            quiet=json,
            trust=trust,
            given=given,
        )
    result = {
        "run": done.run,
        "identical": done.identical,
        "compared": done.compared,
        "differences": done.differences,
        "remarks": done.remarks,
    }
    emit(result, json, lambda: _draw(done))
    return 0 if done.identical else DIFFERENT


def _reproduce(
    store: Store,
    record: Run,
    scratch: Path,
    *,
    reuse_environment: bool,
    repository: Path | None,
    folder: Path | None,
    links: list[str],
    tolerance: float,
    timeout_s: float | None,
    quiet: bool,
    trust: bool,
    given: dict[str, str],
) -> Reproduction:
    from everloop.cli.reproduction_view import draw_plan

    def announce(plan: ReproductionPlan) -> None:
        if not quiet or plan.provenance.kind == "foreign":
            draw_plan(messages(), plan, full=plan.provenance.kind == "foreign")

    if record.loop is not None:
        from everloop.loop.loop_reproduction import reproduce_loop_run

        listener = None
        if not quiet:
            from everloop.cli.progress import StepLines

            listener = StepLines()
        return reproduce_loop_run(
            store,
            record,
            scratch,
            folder=folder,
            tolerance=tolerance,
            listener=listener,
            trust=trust,
            given=given,
            shown=announce,
        )
    from everloop.tracking.reproduction.script_reproduction import reproduce_script

    return reproduce_script(
        store,
        record,
        scratch,
        reuse_environment=reuse_environment,
        repository=repository,
        links=links,
        tolerance=tolerance,
        timeout_s=timeout_s,
        trust=trust,
        given=given,
        listener=announce,
    )


def _show(
    run: str, home: Path | None, json: bool, reuse_environment: bool, repository: Path | None, project: Path | None
) -> int:
    from everloop.cli.reproduction_view import draw_plan, plain_plan
    from everloop.errors import NotFoundError
    from everloop.tracking.reproduction.execution_plan import plan_reproduction

    with opened(home) as store:
        record = _find(store, run)
        folder = project
        if record.loop is not None:
            from everloop.loop.loop_reproduction import producing_run, project_folder

            record, _ = producing_run(store, record, [])
            with suppress(NotFoundError):
                folder = project_folder(store, record, project.absolute() if project else None)
        plan = plan_reproduction(
            store,
            record,
            reuse_environment=reuse_environment,
            repository=repository.absolute() if repository else None,
            folder=folder,
        )
    emit(plain_plan(plan), json, lambda: draw_plan(console(), plan, full=True))
    return 0


def _secret_values(pairs: list[str]) -> dict[str, str]:
    from everloop.errors import UsageError

    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            # The text itself may be the secret, so it is not repeated.
            raise UsageError(
                "--with takes NAME=VALUE, and there is no '=' in what was given.",
                help="For example: --with password=VALUE",
            )
        values[name] = value
    return values


def _find(store: Store, run: str) -> Run:
    from everloop.errors import UsageError
    from everloop.records import Run
    from everloop.tracking import recover_journals

    recover_journals(store)
    if len(run) >= 36:
        return store.records.get(Run, run)
    found = store.records.find(Run, ("id", "prefix", run), limit=2)
    if len(found) > 1:
        raise UsageError(
            f"The ids of several runs begin with '{run}'.", help="Give more characters of the id. See: everloop runs ls"
        )
    return found[0] if found else store.records.get(Run, run)


def _draw(done: Reproduction) -> None:
    from rich.markup import escape

    for remark in done.remarks:
        console().print(f"  [dim]{escape(remark)}[/dim]", soft_wrap=True)
    for difference in done.differences:
        console().print(f"  [red]differs[/red]  {escape(str(difference))}", soft_wrap=True)
    if done.identical:
        console().print(f"[green]identical[/green]: compared {done.compared:,} metrics, artifacts and steps")
    else:
        verb = "differs" if len(done.differences) == 1 else "differ"
        console().print(
            f"[red]not identical[/red]: {len(done.differences):,} of {done.compared:,} metrics, artifacts and steps"
            f" {verb}"
        )
