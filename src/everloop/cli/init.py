"""`everloop init`: create a project, with example data or for the user's own table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, console, count, emit, table
from everloop.cli.table_options import options_advised, read_table, reads_tables
from everloop.errors import AlreadyExistsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from everloop.loop.new_project.project_draft import Goal
    from everloop.loop.new_project.table_inspection import TableInspection

_EXAMPLE = {
    "loop.py": "loop.py",
    "everloop.toml": "everloop.toml",
    "data.csv": "data/wine.csv",
    "test_loop.py": "tests/test_loop.py",
    "gitignore": ".gitignore",
}


@reads_tables
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[NAME]", help="Project folder, created if missing. Its name names the project.")
    ] = Path(),
    data: Annotated[
        str | None, typer.Option("--data", help="Your own table: a file, glob or URL. It is not copied.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="With --data: column to predict.")] = None,
    time: Annotated[str | None, typer.Option(help="With --data: column with the time of each row's event.")] = None,
    key: Annotated[
        str | None, typer.Option(help="With --data: column that identifies a row; its values must be unique.")
    ] = None,
    *,
    reading: dict[str, Any],
    json: AsJson = False,
) -> None:
    """Create a project: loop.py, a test and a CI workflow.

    With --data and --target the project is for your own table, and the command lists what each column is and how it is
    treated. Otherwise the project contains a small example. Existing files are never overwritten.
    """
    folder = folder.absolute()
    _check_folder(folder)
    if data is None:
        given = {"--target": target, "--time": time, "--key": key, "How to read a table": reading}
        if option := next((name for name, value in given.items() if value), None):
            raise UsageError(
                f"{option} was given without --data, so there is no table that it could apply to.",
                help="Name the table: everloop init NAME --data FILE --target COLUMN",
            )
        _example(folder, json)
        return
    with options_advised():
        _own_table(folder, data, target, time, key, reading, json)


def _example(folder: Path, json: bool) -> None:
    from importlib.resources import files

    from everloop.ci.workflow_files import PATHS, workflow_text
    from everloop.loop.new_project.project_draft import project_name

    template = files("everloop.cli") / "template"
    texts = {
        name: (template / source).read_text(encoding="utf-8").replace("{{name}}", project_name(folder.name))
        for source, name in _EXAMPLE.items()
    }
    texts[PATHS["github"]] = workflow_text("github")
    written = _write(folder, texts)
    emit({"folder": folder, "written": written}, json, lambda: _draw_written(folder, written))


def _own_table(
    folder: Path,
    data: str,
    target: str | None,
    time: str | None,
    key: str | None,
    options: dict[str, Any],
    json: bool,
) -> None:
    from everloop.ci.workflow_files import PATHS, workflow_text
    from everloop.data import split
    from everloop.loop.new_project.project_draft import draft_files, find_goal, project_name
    from everloop.loop.new_project.table_inspection import inspect_table

    rows = read_table(data, options)
    if target is None:
        raise UsageError(
            "--data needs the column to predict.", help=f"Add --target with one of: {', '.join(rows.columns)}"
        )
    inspection = inspect_table(rows, target, time=time, key=key)
    goal = find_goal(inspection)
    # The loop will split the rows like this. An error here, such as a class that the last rows do not contain, is
    # reported before anything is written.
    split(_learnable(inspection, goal), time=inspection.time, key=inspection.key, target=inspection.target)
    title = Path(data).name.split(".")[0]
    texts = draft_files(project_name(folder.name), title, _seen_from(folder, data), options, inspection, goal)
    texts[PATHS["github"]] = workflow_text("github")
    written = _write(folder, texts)
    result = {
        "folder": folder,
        "written": written,
        "rows": rows.height,
        "target": {"column": target, "task": goal.task, "classes": goal.classes, "says": goal.says},
        "metric": goal.metric,
        "columns": [
            {name: getattr(one, name) for name in ("name", "type", "kind", "treatment", "message")}
            for one in inspection.columns
        ],
        "remarks": inspection.remarks,
    }

    def draw() -> None:
        console().print(f"{count(rows.height, 'row')}. '{target}' is {goal.says}.", soft_wrap=True, markup=False)
        columns = [(one.name, one.type, one.treatment, one.message) for one in inspection.columns]
        table("Columns", ("column", "type", "treated as", "what"), columns, empty="")
        for remark in (*inspection.remarks, *_remarks(goal)):
            console().print(remark, soft_wrap=True, markup=False)
        _draw_written(folder, written)

    emit(result, json, draw)


def _learnable(inspection: TableInspection, goal: Goal) -> pl.DataFrame:
    """Return the rows that have a label, without the classes that are too rare."""
    import polars as pl

    target = pl.col(inspection.target)
    labelled = inspection.rows.filter(target.is_not_null())
    return labelled.filter(~target.is_in(list(goal.rare))) if goal.rare else labelled


def _seen_from(folder: Path, data: str) -> str:
    """Return `data` as `el.read` takes it in the project: a relative path if the file is near the project folder."""
    if "://" in data or data.startswith("everloop:"):
        return data
    path = Path(os.path.abspath(data))  # noqa: PTH100 - unlike `resolve`, it keeps symbolic links
    relative = os.path.relpath(path, folder)
    return Path(relative).as_posix() if relative.count("..") <= 1 else str(path)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise AlreadyExistsError(f"'{folder}' is a file.", help="Choose the name of a new folder.")
    if (folder / "loop.py").exists():
        raise AlreadyExistsError(f"{folder} already has a loop.py.", help="Run it with: everloop run")


def _write(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Write the files that do not exist yet. If one of them cannot be written, remove what was created."""
    made: list[Path] = []
    written: list[str] = []
    try:
        for name, text in texts.items():
            path = folder / name
            if path.exists():
                continue
            for parent in reversed([one for one in path.parents if not one.exists()]):
                parent.mkdir()
                made.append(parent)
            made.append(path)
            path.write_text(text, encoding="utf-8")
            written.append(name)
    except BaseException as error:
        for path in reversed(made):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"The project cannot be written: {error}.", help="Choose another folder.") from error
        raise
    return written


def _remarks(goal: Goal) -> list[str]:
    remarks = [f"Metric: {goal.metric} ({goal.why_metric})."]
    if goal.task == "multiclass" and all(isinstance(one, int) for one in goal.classes):
        remarks.append(
            'The integers of the target are treated as classes. If they are amounts, use AutoTrain(task="regression").'
        )
    if goal.rare:
        classes = ", ".join(repr(one) for one in goal.rare[:5])
        more = f" and {len(goal.rare) - 5} more" if len(goal.rare) > 5 else ""
        remarks.append(f"Rows with the target {classes}{more} are left out: too few to learn from.")
    return remarks


def _draw_written(folder: Path, written: list[str]) -> None:
    for name in written:
        console().print(f"  {name}")
    where = "" if folder == Path.cwd() else f"cd {os.path.relpath(folder)} && "
    console().print(f"Created a project in {folder}. Run its loop with: {where}everloop run", soft_wrap=True)
