"""`everloop models gates|check`: reports of a version's gates, and checking them again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.approvals import app as app
from everloop.cli.loop import REJECTED, store_of
from everloop.cli.models import Version
from everloop.cli.output import AsJson, Home, ProjectFolder, emit, opened, say, table

if TYPE_CHECKING:
    import polars as pl

    from everloop.loop import Loop
    from everloop.loop.project import Project
    from everloop.records import GateResult, ModelVersion
    from everloop.stores import Store

Junit = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JUnit XML, for CI systems.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as Markdown.")]


@app.command()
def gates(
    version: Version, junit: Junit = None, markdown: Markdown = None, home: Home = None, json: AsJson = False
) -> None:
    """Show the latest result of each gate of a version.

    The exit code is 11 if a gate rejects the version. A warning does not.
    """
    from everloop.loop.gates.gate_checks import latest_results
    from everloop.registry import get_version

    with opened(home) as store:
        record = get_version(store, version)
        results = latest_results(store, record.key)
    _report(results, record.key, junit, markdown, json)


@app.command()
def check(
    version: Version,
    data: Annotated[
        str | None,
        typer.Option(
            help="Rows with the target: a file, glob or URL. Default: the held-out rows of the version's run."
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Store the results. The latest ones count for approvals.")
    ] = False,
    junit: Junit = None,
    markdown: Markdown = None,
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Check the gates of the project's loop again for a registered version.

    The gates are those that loop.py declares now. Nothing is released or rejected. The exit code is 11 if a gate fails
    that is not only a warning.
    """
    from everloop.loop import load_project
    from everloop.loop.gates.gate_checks import context_for, judge_all
    from everloop.registry import get_version

    given = str(Path(data).resolve()) if data is not None and Path(data).exists() else data
    # Opening the store of a project changes the folder.
    junit, markdown = (None if file is None else file.resolve() for file in (junit, markdown))
    loaded = load_project(project)
    with store_of(loaded.folder, home) as store:
        found = get_version(store, version)
        loop = _loop_of(loaded, found)
        rows = _read(given) if given is not None else _stored(store, found, "test")
        context = context_for(
            store,
            found,
            rows,
            target=loop.data.target,
            key=loop.data.key,
            time=loop.data.time,
            metric=loop.training_metric,
            training_rows=_find_stored(store, found, "train"),
        )
        results = judge_all(loop.gates, context)  # type: ignore[arg-type]  # Loop turns functions into gates
        if record and results:
            store.records.put(*results, verb="judged")
    _report(results, found.key, junit, markdown, json)


def _report(results: list[GateResult], version: str, junit: Path | None, markdown: Path | None, as_json: bool) -> None:
    from everloop.errors import UsageError
    from everloop.loop.gates.gate_checks import rejects
    from everloop.loop.gates.gate_report import junit_xml, markdown_report, report_data, verdict

    for path, write in ((junit, junit_xml), (markdown, markdown_report)):
        if path is None:
            continue
        try:
            path.write_text(write(results, version), encoding="utf-8", errors="replace")
        except OSError as error:
            raise UsageError(
                f"Cannot write '{path}': {error.strerror}.", help="Choose a file in an existing folder."
            ) from error

    def draw() -> None:
        rows = [(one.gate, _shown(one), one.champion, one.message) for one in results]
        empty = f"No gates were checked for {version}. Declare some in gates=[…] of loop.py."
        table(f"Gates of {version}", ("gate", "outcome", "against", "evidence"), rows, empty=empty, spare=("against",))
        if results:
            say(verdict(results))

    emit(report_data(results, version), as_json, draw)
    if any(rejects(result) for result in results):
        raise typer.Exit(REJECTED)


def _shown(result: GateResult) -> str:
    return (
        f"{result.outcome} (warning)" if result.severity == "warning" and result.outcome != "pass" else result.outcome
    )


def _loop_of(project: Project, version: ModelVersion) -> Loop:
    """Return the loop that makes versions of a model."""
    from everloop.errors import NotFoundError

    for loop in project.loops.values():
        if loop.model == version.model:
            return loop
    models = ", ".join(sorted({loop.model for loop in project.loops.values()}))
    raise NotFoundError(
        f"No loop of loop.py makes the model '{version.model}'.",
        help=f"It makes: {models}. Choose another folder: --dir FOLDER",
    )


def _read(source: str) -> pl.DataFrame:
    import everloop as el

    rows: pl.DataFrame = el.read(source).collect()
    return rows


def _stored(store: Store, version: ModelVersion, part: str) -> pl.DataFrame:
    from everloop.errors import NotFoundError

    rows: pl.DataFrame | None = _find_stored(store, version, part)
    if rows is None:
        raise NotFoundError(
            f"The held-out rows of {version.key} have been removed from the store.",
            help="Pass rows with the target: --data FILE",
        )
    return rows


def _find_stored(store: Store, version: ModelVersion, part: str) -> Any:
    from everloop.loop.comparison.champions import stored_part

    return stored_part(store, version, part)
