"""`everloop ci`: check a change, release it after the merge, and promote it through the environments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.loop import REJECTED
from everloop.cli.output import AsJson, Home, ProjectFolder, cell, console, count, emit, facts, messages, say, table

if TYPE_CHECKING:
    from everloop.ci.change_report import ChangeReport
    from everloop.loop import Loop

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check changes, release them, and promote them to environments."
)

LoopName = Annotated[str | None, typer.Argument(metavar="[LOOP]", help="Loop, if loop.py declares several.")]
Junit = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as JUnit XML.")]
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "error": "red"}


@app.command("init")
def init_(
    host: Annotated[str, typer.Argument(metavar="github|gitlab", help="The CI system.")],
    folder: Annotated[Path, typer.Option("--dir", help="Root of the repository.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that differs.")] = False,
    json: AsJson = False,
) -> None:
    """Write the file that makes the CI system check every change and release from the main branch."""
    from everloop.ci import write_workflow

    path = write_workflow(host, folder.absolute(), force=force)
    emit({"host": host, "written": path}, json, lambda: say(f"{path} checks every change. Next: commit it."))


@app.command("run")
def run_(
    loop: LoopName = None,
    base: Annotated[str, typer.Option(help="Branch that the change is made for, or a commit.")] = "origin/main",
    sample: Annotated[int, typer.Option(min=100, help="Number of rows to run on.")] = 20_000,
    full: Annotated[bool, typer.Option("--full", help="Run on all rows.")] = False,
    replay: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Replay this much of the history, such as 4w.")
    ] = None,
    comment: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as Markdown.")] = None,
    junit: Junit = None,
    pictures: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write pictures as SVG files.")] = None,
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Check what the present branch does to a loop. The store is only read.

    If the branch touches a step, the changed loop runs up to its gates and is compared with the champion. The exit
    code is 11 if a gate rejects the candidate, and 7 if the loop cannot be run.
    """
    from everloop.ci import check_change
    from everloop.loop import load_project

    # Opening the store of a project changes the folder.
    files = {"comment": comment, "junit": junit, "pictures": pictures}
    files = {name: None if path is None else path.absolute() for name, path in files.items()}
    loaded = load_project(project)
    listener = None
    if not json:
        from everloop.cli.progress import StepLines

        listener = StepLines()
    report = check_change(
        loaded.loop(loop),
        loaded.folder,
        base=base,
        sample=None if full else sample,
        replay=replay,
        home=home.absolute() if home is not None else None,
        listener=listener,
    )
    _write(report, files)
    emit(report.to_json(), json, lambda: _draw(report))
    if report.verdict == "fail":
        raise typer.Exit(REJECTED)
    if report.verdict == "error":
        from everloop.errors import StepError

        raise typer.Exit(StepError.exit_code)


@app.command()
def note(
    file: Annotated[Path, typer.Argument(help="Report that `everloop ci run --comment FILE` wrote.")],
    json: AsJson = False,
) -> None:
    """Write a report as one note on a GitLab merge request, replacing the earlier one.

    It reads CI_API_V4_URL, CI_PROJECT_ID, CI_MERGE_REQUEST_IID and EVERLOOP_GITLAB_TOKEN from the environment.
    """
    import os

    from everloop.ci.gitlab_note import post_note
    from everloop.errors import NotFoundError

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFoundError(
            f"Cannot read '{file}': {error}.", help="Write it: everloop ci run --comment FILE"
        ) from error
    done = post_note(text, os.environ)
    emit({"note": done}, json, lambda: say(f"The note was {done}."))


@app.command()
def release(
    loop: LoopName = None,
    environment: Annotated[str, typer.Option(help="Environment to release to.")] = "dev",
    junit: Junit = None,
    project: ProjectFolder = None,
    json: AsJson = False,
) -> None:
    """Train, check the gates, register and release to an environment, after a merge.

    The exit code is 11 if a gate rejects the candidate.
    """
    from everloop.ci.deployment_environments import get_environment
    from everloop.loop import load_project, run_loop
    from everloop.loop.gates.gate_checks import rejects
    from everloop.loop.gates.gate_report import junit_xml, verdict

    junit = None if junit is None else junit.absolute()
    loaded = load_project(project)
    chosen: Loop = loaded.loop(loop)
    with get_environment(loaded.folder, environment).open(loaded.folder, create=True) as store:
        listener = None
        if not json:
            from everloop.cli.progress import StepLines

            listener = StepLines()
        result = run_loop(chosen, store, trigger="ci", listener=listener)
    key = result.version.key if result.version is not None else chosen.model
    if junit is not None:
        _write_text(junit, junit_xml(result.gates, key))
    done: dict[str, Any] = {
        "environment": environment,
        "version": result.version,
        "gates": result.gates,
        "release": result.release,
    }

    def draw() -> None:
        state = result.release.state.replace("_", " ") if result.release is not None else "not released"
        facts(f"{key} in {environment}", [
            ("package", result.version.package if result.version is not None else None),
            ("gates", verdict(result.gates)),
            ("release", state),
        ])  # fmt: skip

    emit(done, json, draw)
    if any(rejects(gate) for gate in result.gates):
        raise typer.Exit(REJECTED)


@app.command()
def promote(
    from_: Annotated[str, typer.Option("--from", help="Environment that has the version.")],
    to: Annotated[str, typer.Option("--to", help="Environment that gets it.")],
    version: Annotated[
        str | None, typer.Argument(help="MODEL@VERSION or MODEL. Default: the champion of the project's loop.")
    ] = None,
    digest: Annotated[
        str | None, typer.Option(help="Digest that the package must have. Another one is refused.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason, recorded in both environments.")] = "",
    project: ProjectFolder = None,
    json: AsJson = False,
) -> None:
    """Promote a version to the next environment: the very same package, checked by digest and signature.

    Approvals that the target requires are requested. Repeat the command when they are given.
    """
    from everloop.ci.deployment_environments import get_environment
    from everloop.ci.package_promotion import promote_package
    from everloop.errors import UsageError
    from everloop.loop.project import load_project
    from everloop.loop.project_folder import find_folder

    folder = find_folder(project)
    if from_ == to:
        raise UsageError(f"'{from_}' is both source and target.", help="Name two environments: --from dev --to staging")
    ends = (get_environment(folder, from_), get_environment(folder, to))
    ref = version if version is not None else load_project(folder).loop().model
    with ends[0].open(folder) as source, ends[1].open(folder, create=True) as target:
        if source.urls == target.urls and source.project == target.project:
            raise UsageError(
                f"'{from_}' and '{to}' are the same store.",
                help="Give each environment its own store in everloop.toml.",
            )
        done = promote_package(
            source,
            target,
            ref,
            names=(from_, to),
            endpoint=ends[1].endpoint,
            rollout=ends[1].rollout,
            expect=digest,
            reason=reason,
        )
    pairs = [("package", done.package), ("from", f"{done.source} in {from_}"), ("to", f"{done.version} in {to}"),
             ("release", done.state.replace("_", " "))]  # fmt: skip
    emit(done, json, lambda: facts("Promoted", pairs))


@app.command()
def environments(project: ProjectFolder = None, json: AsJson = False) -> None:
    """List the environments of the project."""
    from everloop.ci import read_environments
    from everloop.loop.project_folder import find_folder

    found = read_environments(find_folder(project))
    rows = [(one.name, one.home or "the project's store", one.endpoint, one.rollout) for one in found.values()]
    empty = 'everloop.toml declares no environments. Add: \\[environments.staging] with store = "FOLDER"'
    plain = [
        {"name": one.name, "store": one.home, "endpoint": one.endpoint, "rollout": one.rollout}
        for one in found.values()
    ]
    emit(plain, json, lambda: table("Environments", ("name", "store", "endpoint", "rollout"), rows, empty=empty))


def _write(report: ChangeReport, files: dict[str, Path | None]) -> None:
    from everloop.ci.comment import comment_text, report_junit
    from everloop.ci.report_pictures import write_pictures

    if (path := files["comment"]) is not None:
        _write_text(path, comment_text(report))
    if (path := files["junit"]) is not None:
        _write_text(path, report_junit(report))
    if (path := files["pictures"]) is not None:
        write_pictures(report, path)


def _write_text(path: Path, text: str) -> None:
    from everloop.errors import UsageError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"Cannot write '{path}': {error.strerror}.", help="Choose another file.") from error


def _draw(report: ChangeReport) -> None:
    colour = _COLOURS[report.verdict]
    console().print(f"[bold {colour}]{report.verdict}[/bold {colour}]  {cell(report.loop)}", soft_wrap=True)
    for reason in report.reasons:
        console().print(f"  {cell(reason)}", soft_wrap=True)
    for remark in report.remarks:
        messages().print(f"  {cell(remark)}", soft_wrap=True)
    if report.metrics:
        rows = [(one.metric, one.value, one.champion, one.gain, one.gain_low, one.gain_high) for one in report.metrics]
        columns = ("metric", "candidate", "champion", "gain", "from", "to")
        table(f"{count(report.rows, 'held-out row')}", columns, rows, empty="", spare=("from", "to"))
