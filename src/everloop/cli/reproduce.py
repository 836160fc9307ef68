"""`everloop reproduce`: do a run again, and prove that it comes to the same."""

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
    run: Annotated[str, typer.Argument(help="Id of the run, or its beginning.")],
    reuse_environment: Annotated[
        bool, typer.Option("--reuse-environment", help="Use the packages that are here, even if others ran.")
    ] = False,
    repository: Annotated[
        Path | None, typer.Option(help="Where the run's git repository is now, if not where it was.")
    ] = None,
    project: Annotated[
        Path | None, typer.Option("--dir", help="The folder with loop.py, for a turn of a loop.")
    ] = None,
    link: Annotated[
        list[str] | None, typer.Option("--link", help="A file or folder that git does not keep; repeatable.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative, for metrics; 0 wants the same bits.")] = 0.0,
    timeout: Annotated[float | None, typer.Option(help="Seconds that the command may take.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep code, environment and new store in this new folder.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Execute a run that was not started on this machine. Read --show first.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Only show what would be executed, to the last line.")] = False,
    secret: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=VALUE", help="A secret that the run masked; repeatable."),
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> int:
    """Do a run again in a scratch folder and compare: ends with 'identical', or names what differs (exit code 1).

    This executes the run's command. A run that came from elsewhere is only executed with --trust, or if a key that is
    trusted here has signed it.
    """
    from everloop.errors import AlreadyExistsError

    given = _given(secret or [])
    if show:
        return _show(run, home, json, reuse_environment, repository, project)
    with ExitStack() as stack:
        if keep is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="everloop-reproduce-")))
        else:
            scratch = keep.absolute()
            if scratch.exists():
                raise AlreadyExistsError(f"'{scratch}' is there already.", help="Name a folder that is not.")
            scratch.mkdir(parents=True)
        # Before any chdir: a home may be given relative to where the command was called.
        store = stack.enter_context(opened(home))
        record = _find(store, run)
        done = _do(
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
    shown = {
        "run": done.run,
        "identical": done.identical,
        "compared": done.compared,
        "differences": done.differences,
        "remarks": done.remarks,
    }
    emit(shown, json, lambda: _draw(done))
    return 0 if done.identical else DIFFERENT


def _do(
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
            draw_plan(messages(), plan, whole=plan.provenance.kind == "foreign")

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
    emit(plain_plan(plan), json, lambda: draw_plan(console(), plan, whole=True))
    return 0


def _given(secrets: list[str]) -> dict[str, str]:
    from everloop.errors import UsageError

    found = {}
    for text in secrets:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError("--with takes a name and a value.", help="Write --with NAME=VALUE.")
        found[name] = value
    return found


def _find(store: Store, run: str) -> Run:
    from everloop.errors import UsageError
    from everloop.records import Run
    from everloop.tracking import recover_journals

    recover_journals(store)
    if len(run) >= 36:
        return store.records.get(Run, run)
    found = store.records.find(Run, ("id", "prefix", run), limit=2)
    if len(found) > 1:
        raise UsageError(f"Several runs begin with '{run}'.", help="Give more of the id: everloop runs ls")
    return found[0] if found else store.records.get(Run, run)


def _draw(done: Reproduction) -> None:
    from rich.markup import escape

    for remark in done.remarks:
        console().print(f"  [dim]{escape(remark)}[/dim]", soft_wrap=True)
    for difference in done.differences:
        console().print(f"  [red]differs[/red]  {escape(str(difference))}", soft_wrap=True)
    if done.identical:
        console().print(f"[green]identical[/green]: {done.compared} metrics, artifacts and steps compared")
    else:
        console().print(f"[red]not identical[/red]: {len(done.differences)} of {done.compared} things differ")
