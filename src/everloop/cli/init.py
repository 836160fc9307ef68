"""`everloop init`: a new project, with an example to look at or for a table of one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, console, emit, table
from everloop.cli.table_options import (
    CommentPrefix,
    DecimalComma,
    DropUnnamed,
    Encoding,
    Format,
    NullValues,
    Schema,
    Separator,
    SkipRows,
    options_advised,
    reading_options,
)
from everloop.errors import AlreadyExistsError, DataError, NotFoundError, UsageError

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
    "workflow.yml": ".github/workflows/loop.yml",
    "gitignore": ".gitignore",
}


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[NAME]", help="Folder, created if missing; names the project.")
    ] = Path(),
    data: Annotated[
        str | None, typer.Option("--data", help="Your own table: a file, a glob or a URL. It stays where it is.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="With --data: the column to predict.")] = None,
    time: Annotated[str | None, typer.Option(help="With --data: the column that says when a row happened.")] = None,
    key: Annotated[str | None, typer.Option(help="With --data: the column that names a row; must not repeat.")] = None,
    separator: Separator = None,
    encoding: Encoding = None,
    null_values: NullValues = None,
    format: Format = None,
    schema: Schema = None,
    skip_rows: SkipRows = None,
    comment_prefix: CommentPrefix = None,
    decimal_comma: DecimalComma = False,
    drop_unnamed: DropUnnamed = False,
    json: AsJson = False,
) -> None:
    """Create a project: loop.py, a test and a CI workflow. With --data and --target it is for your own table, and says
    of each column what it is and how it is treated; without, it has a small example. Overwrites nothing."""
    folder = folder.absolute()
    _check_place(folder)
    options = reading_options(
        separator=separator,
        encoding=encoding,
        null_values=null_values,
        format=format,
        schema=schema,
        skip_rows=skip_rows,
        comment_prefix=comment_prefix,
        decimal_comma=decimal_comma,
        drop_unnamed=drop_unnamed,
    )
    if data is None:
        given = {"--target": target, "--time": time, "--key": key, **options}
        if named := next((name for name, value in given.items() if value), None):
            raise UsageError(
                f"{named if named.startswith('--') else 'How to read'} is about a table, and none is named.",
                help="Name it: everloop init NAME --data FILE --target COLUMN",
            )
        _example(folder, json)
        return
    with options_advised():
        _own_table(folder, data, target, time, key, options, json)


def _example(folder: Path, json: bool) -> None:
    from importlib.resources import files

    from everloop.loop.new_project.project_draft import project_name

    template = files("everloop.cli") / "template"
    texts = {
        name: (template / source).read_text(encoding="utf-8").replace("{{name}}", project_name(folder.name))
        for source, name in _EXAMPLE.items()
    }
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
    from everloop.data import split
    from everloop.loop.new_project.project_draft import draft_files, find_goal, project_name
    from everloop.loop.new_project.table_inspection import inspect_table

    rows = _read(data, options)
    if target is None:
        raise UsageError(
            "Which column is to be predicted?", help=f"Add --target with one of: {', '.join(rows.columns)}"
        )
    look = inspect_table(rows, target, time=time, key=key)
    goal = find_goal(look)
    kept = _learnable(look, goal)
    # What the loop will do with these rows; whatever stops it there, such as a class that is not in the last rows, is
    # said before anything is written.
    split(kept, time=look.time, key=look.key, target=look.target)
    title = Path(data).name.split(".")[0]
    texts = draft_files(project_name(folder.name), title, _place_of(data, folder), options, look, goal)
    written = _write(folder, texts)
    said = {
        "folder": folder,
        "written": written,
        "rows": rows.height,
        "target": {"column": target, "task": goal.task, "classes": goal.classes, "says": goal.says},
        "metric": goal.metric,
        "columns": [
            {name: getattr(one, name) for name in ("name", "type", "kind", "treatment", "message")}
            for one in look.columns
        ],
        "remarks": look.remarks,
    }

    def draw() -> None:
        console().print(f"{rows.height:,} rows. '{target}' is {goal.says}.", soft_wrap=True, markup=False)
        shown = [(one.name, one.type, one.treatment, one.message) for one in look.columns]
        table("Columns", ("column", "type", "treated as", "what"), shown, empty="")
        for remark in (*look.remarks, *_about(goal)):
            console().print(remark, soft_wrap=True, markup=False)
        _draw_written(folder, written)

    emit(said, json, draw)


def _read(data: str, options: Mapping[str, Any]) -> pl.DataFrame:
    from everloop.data import read

    here = "://" not in data and not data.startswith("everloop:")
    if here and not any(character in data for character in "*?[") and not Path(data).exists():
        from everloop.data.table_inputs import nearest

        beside = Path(data).absolute().parent
        near = [item.name for item in sorted(beside.iterdir()) if item.is_file()] if beside.is_dir() else []
        raise NotFoundError(f"There is no file '{data}'.", help=nearest(Path(data).name, near))
    rows = read(str(Path(data).absolute()) if here else data, **options).collect()
    if rows.width == 1 and (mark := next((mark for mark in (";", "\t", "|") if mark in rows.columns[0]), None)):
        shown = "tab" if mark == "\t" else f"'{mark}'"
        raise DataError(f"'{data}' has one column only: {rows.columns[0]!r}.", help=f"Add --separator {shown}")
    return rows


def _learnable(look: TableInspection, goal: Goal) -> pl.DataFrame:
    import polars as pl

    known = look.rows.filter(pl.col(look.target).is_not_null())
    if not goal.rare:
        return known
    return known.filter(~pl.col(look.target).is_in(list(goal.rare)))


def _place_of(data: str, folder: Path) -> str:
    """What `el.read` takes from within the project: relative as long as the two are near each other."""
    if "://" in data or data.startswith("everloop:"):
        return data
    path = Path(data).absolute()
    near = os.path.relpath(path, folder)
    return Path(near).as_posix() if near.count("..") <= 1 else str(path)


def _check_place(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise AlreadyExistsError(f"'{folder}' is a file.", help="Name a new folder.")
    if (folder / "loop.py").exists():
        raise AlreadyExistsError(f"{folder} has a loop.py already.", help="Run it with: everloop run")


def _write(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Write the files that are not there yet; where one cannot be written, none is left behind."""
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
            raise UsageError(f"The project cannot be written: {error}.", help="Name another folder.") from error
        raise
    return written


def _about(goal: Goal) -> list[str]:
    told = [f"Judged by {goal.metric}: {goal.why_metric}."]
    if goal.task == "multiclass" and all(isinstance(one, int) for one in goal.classes):
        told.append('Its whole numbers are taken for classes. If they are amounts: AutoTrain(task="regression", …).')
    if goal.rare:
        named = ", ".join(repr(one) for one in goal.rare[:5])
        told.append(f"Rows of classes that are too rare to be learned are taken out: {named}.")
    return told


def _draw_written(folder: Path, written: list[str]) -> None:
    for name in written:
        console().print(f"  {name}")
    where = "" if folder == Path.cwd() else f"cd {os.path.relpath(folder)} && "
    console().print(f"A new project is in {folder}. Turn its loop: {where}everloop run", soft_wrap=True)
