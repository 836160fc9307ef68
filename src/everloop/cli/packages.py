"""`everloop models verify|sbom|export|import|adopt|context|…`: packages checked, carried, put into images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.approvals import app as app
from everloop.cli.output import AsJson, Home, MaxBytes, emit, facts, opened, say
from everloop.cli.progress import packaging

Version = Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS, MODEL, or a package's digest.")]


@app.command()
def verify(version: Version, home: Home = None, json: AsJson = False) -> None:
    """Check a package: every byte, its signature, and that it answers here as when it was made. Exit 10 if not."""
    from everloop.errors import CorruptionError
    from everloop.registry import verify_package

    with opened(home) as store:
        found = verify_package(store, version)

    def draw() -> None:
        facts(
            f"{found.version or found.package} is {'whole' if found.ok else 'not as it should be'}",
            [
                ("package", found.package),
                ("format", found.format + (", compiled" if found.compiled else "")),
                ("files", f"{found.files}, {found.size_bytes:,} bytes"),
                ("signed by", found.signed_by),
                ("trusted", found.trusted),
                ("answers", f"{found.answered_rows} rows, apart by {found.largest_difference:.2g} at most"),
                ("installed otherwise", found.environment),
                ("problems", found.problems),
            ],
        )

    emit(found, json, draw)
    if not found.ok:
        raise typer.Exit(CorruptionError.exit_code)


@app.command()
def sbom(
    version: Version,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; default: standard output.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Print the bill of materials of a version's environment: CycloneDX 1.6 as JSON, with or without --json."""
    from everloop.cli.output import to_json
    from everloop.packages import environment_sbom, read_package
    from everloop.registry import get_version

    with opened(home) as store:
        record = None if version.startswith("sha256:") else get_version(store, version)
        digest = version if record is None else record.package
        manifest, _ = read_package(store, digest)
    name, number = (digest[7:19], "") if record is None else (record.model, str(record.version))
    text = to_json(environment_sbom(manifest, name=name, version=number, digest=digest)) + "\n"
    if output is None:
        say(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


FolderFormat = Annotated[
    str | None, typer.Option("--format", help="Another system's form of a model folder: mlflow. Default: our own.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Read pickles and Python models, too: their code runs here.")
]
Example = Annotated[
    Path | None, typer.Option("--example", help="A table of rows to prove the package on, such as rows.parquet.")
]


@app.command()
def export(
    version: Version,
    output: Annotated[Path, typer.Option("--output", "-o", help="A file that ends in .tar.zst, or a new folder.")],
    format: FolderFormat = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Write a package with its signature as one file or as a folder; the same package gives the same bytes."""
    from everloop import plugins
    from everloop.registry import export_package, get_version

    with opened(home) as store:
        digest = version if version.startswith("sha256:") else get_version(store, version).package
        if format is None:
            path = export_package(store, digest, output)
        else:
            path = plugins.load("model_folder", format).write(store, version, output)
    emit({"package": digest, "path": path}, json, lambda: say(f"{digest} → {path}"))


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="What `everloop models export` wrote, or with --format a model folder.")],
    model: Annotated[str | None, typer.Option("--as", help="Register it as the next version of this model.")] = None,
    format: FolderFormat = None,
    example: Example = None,
    allow_code: AllowCode = False,
    max_bytes: MaxBytes = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Read a package from a file or a folder. One that brings code needs a signature that is trusted here.

    With --format mlflow it reads a folder that mlflow.*.save_model wrote, and proves the package equal on the example
    that lies in it.
    """
    from everloop import plugins
    from everloop.errors import UsageError
    from everloop.packages import get_package, import_package
    from everloop.registry import register

    with opened(home, create=True) as store:
        if format is None:
            package = import_package(store, path, max_bytes=max_bytes)
            version = None if model is None else register(store, model, package)
        elif model is None:
            raise UsageError("A model folder becomes a version of a model.", help="Say of which: --as churn")
        else:
            reader = plugins.load("model_folder", format)
            with packaging() as progress:
                version = reader.read(
                    store, path, model, allow_code=allow_code, example=_rows(example), progress=progress
                )
            package = get_package(store, version.package)

    def draw() -> None:
        told = package.digest if version is None else f"{version.key} ({package.digest})"
        say(f"{told}: {package.format}, {package.size_bytes:,} bytes.")

    emit({"package": package, "version": version}, json, draw)


@app.command()
def adopt(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION or MODEL@ALIAS that came over MLflow's protocol.")],
    example: Example = None,
    allow_code: AllowCode = False,
    artifacts: Annotated[
        str | None, typer.Option(help="The server's folder or bucket of artifacts. Default: artifacts in the home.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Make a package of a model that MLflow's client has logged and registered, so that it is served like any other."""
    from everloop import plugins
    from everloop.integrations.mlflow.tracking_api import ArtifactLocations, open_folder
    from everloop.integrations.mlflow.tracking_api.model_version_routes import files_of
    from everloop.packages import get_package
    from everloop.registry import get_version

    with opened(home) as store:
        known = get_version(store, version)
        named = (artifacts,) if artifacts else ()
        places = ArtifactLocations(open_folder(artifacts or store.home / "artifacts"), allowed=named)
        folder = files_of(store, known, places)
        reader = plugins.load("model_folder", "mlflow")
        with packaging() as progress:
            made = reader.adopt(store, known, folder, allow_code=allow_code, example=_rows(example), progress=progress)
        package = get_package(store, made.package)

    def draw() -> None:
        say(f"{made.key} has its package now: {package.digest}, {package.format}, {package.size_bytes:,} bytes.")
        say(f"Serve it: everloop serve {made.key}")

    emit({"package": package, "version": made}, json, draw)


def _rows(example: Path | None) -> object:
    if example is None:
        return None
    from everloop.data import read

    return read(str(example))


Base = Annotated[str | None, typer.Option(help="Image to build on; default: python:<the package's>-slim.")]
WithPostgres = Annotated[bool, typer.Option("--postgres", help="With what a log in PostgreSQL needs (EVERLOOP_STORE).")]
WithTraining = Annotated[bool, typer.Option("--train", help="With what training needs, so that `train` works too.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="A folder that is new or empty.")]


@app.command()
def context(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS or MODEL.")],
    output: Folder,
    base: Base = None,
    train: WithTraining = False,
    postgres: WithPostgres = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Write a build context for an image that serves a version on SageMaker, Vertex AI, Azure ML and KServe."""
    from everloop.deploy.images import write_context

    with opened(home) as store:
        made = write_context(store, version, output, base=base, train=train, postgres=postgres)

    def draw() -> None:
        say(f"{made.version}: {made.files} files, {made.size_bytes:,} bytes in {made.folder}")
        say(f"Build it: docker build -t {made.version.replace('@', ':')} {made.folder}")

    emit(made, json, draw)


@app.command()
def dockerfile(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS or MODEL.")],
    base: Base = None,
    train: WithTraining = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Print the Dockerfile that `everloop models context` writes."""
    from everloop.deploy.images import dockerfile as text_of, needed
    from everloop.packages import read_package
    from everloop.registry import get_version

    with opened(home) as store:
        record = get_version(store, version)
        manifest, files = read_package(store, record.package)
    text = text_of(manifest, record.model, needed(manifest, files, train=train), base=base)
    emit({"version": record.key, "dockerfile": text}, json, lambda: say(text, nl=False))


@app.command()
def azure(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS or MODEL.")],
    output: Folder,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Write Azure ML's scoring script for a version: a folder with score.py and everything that it needs."""
    from everloop.deploy.azure_ml import export_script
    from everloop.registry import get_version

    with opened(home) as store:
        key = get_version(store, version).key
        folder = export_script(store, version, output)
    emit({"version": key, "folder": folder}, json, lambda: say(f"{key} → {folder / 'score.py'}"))
