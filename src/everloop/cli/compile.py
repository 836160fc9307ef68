"""`everloop compile`: the loop as a pipeline of another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, ProjectFolder, console, emit

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Compile the loop for other engines.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def kfp(
    loop: Annotated[
        str | None, typer.Argument(metavar="[LOOP]", help="Loop to compile. Default: the project's only one.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("loop.yaml"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Parameter of a step: NAME=VALUE or STEP.NAME=VALUE; repeatable."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="Image of the components: with everloop, kfp and your packages. Default: everloop:VERSION."),
    ] = None,
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Compile a loop to a Kubeflow pipeline (IR YAML), for kfp.Client, kfp.local and `everloop run`."""
    from everloop.cli.loop import parse_params, store_of
    from everloop.integrations.kubeflow.pipeline_compilation import compile  # noqa: A004
    from everloop.loop import load_project

    target = output.absolute()
    params = parse_params(set_ or [])
    loaded = load_project(project)
    with store_of(loaded.folder, home) as store:
        compile(loaded.loop(loop), target, store=store, params=params, image=image, folder=loaded.folder)
    emit({"path": str(target)}, json, lambda: console().print(f"Wrote {target}", markup=False, soft_wrap=True))
