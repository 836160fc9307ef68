"""`everloop models verify|sbom|export|import|adopt|context|…`: verify, exchange and deploy model packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.gates import app as app
from everloop.cli.output import AsJson, Home, MaxBytes, count, emit, facts, opened, say
from everloop.cli.progress import packaging

Version = Annotated[
    str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS, MODEL for its champion, or a package's digest.")
]
ModelVersionName = Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS, or MODEL for its champion.")]


@app.command()
def verify(version: Version, home: Home = None, json: AsJson = False) -> None:
    """Verify a package: its bytes, signature and predictions.

    Predictions on example rows must be the same here as when the package was made. Exit code 10 if a check fails.
    """
    from everloop.errors import CorruptionError
    from everloop.registry import verify_package

    with opened(home) as store:
        found = verify_package(store, version)

    def draw() -> None:
        facts(
            f"{found.version or found.package} is {'valid' if found.ok else 'not valid'}",
            [
                ("package", found.package),
                ("format", found.format + (", compiled" if found.compiled else "")),
                ("files", f"{found.files}, {count(found.size_bytes, 'byte')}"),
                ("signed by", found.signed_by),
                ("trusted", found.trusted),
                (
                    "predictions",
                    f"{count(found.answered_rows, 'row')}, largest difference {found.largest_difference:.2g}",
                ),
                ("version mismatches", found.environment),
                ("problems", found.problems),
            ],
        )

    emit(found, json, draw)
    if not found.ok:
        raise typer.Exit(CorruptionError.exit_code)


@app.command()
def sbom(
    version: Version,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: standard output.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Print the SBOM of a version's environment.

    The software bill of materials is always CycloneDX 1.6 JSON.
    """
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
    str | None, typer.Option("--format", help="Format of the model folder: mlflow. Default: everloop's own format.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Accept pickles and Python models. Their code runs on this machine.")
]
Example = Annotated[
    Path | None, typer.Option("--example", help="Table of example rows to check the package on, such as rows.parquet.")
]


@app.command()
def export(
    version: Version,
    output: Annotated[Path, typer.Option("--output", "-o", help="File that ends in .tar.zst, or a new folder.")],
    format: FolderFormat = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Export a package, as one file or as a folder.

    Its signature is included. The same package always gives the same bytes.
    """
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
    path: Annotated[
        Path, typer.Argument(help="File or folder from `everloop models export`; with --format, a model folder.")
    ],
    model: Annotated[
        str | None, typer.Option("--as", help="Register the package as the next version of this model.")
    ] = None,
    format: FolderFormat = None,
    example: Example = None,
    allow_code: AllowCode = False,
    max_bytes: MaxBytes = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Import a package from a file or a folder.

    A package with code needs a signature that is trusted here.

    With --format mlflow, import a folder that mlflow.*.save_model wrote. The package is checked against the original
    on the folder's input example.
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
            raise UsageError(
                "--format needs --as: a model folder becomes a version of a model.",
                help="Name the model, for example: --as churn",
            )
        else:
            reader = plugins.load("model_folder", format)
            with packaging() as progress:
                version = reader.read(
                    store, path, model, allow_code=allow_code, example=_rows(example), progress=progress
                )
            package = get_package(store, version.package)

    def draw() -> None:
        name = package.digest if version is None else f"{version.key} ({package.digest})"
        say(f"{name}: {package.format}, {count(package.size_bytes, 'byte')}.")

    emit({"package": package, "version": version}, json, draw)


@app.command()
def adopt(
    version: Annotated[
        str, typer.Argument(help="MODEL@VERSION or MODEL@ALIAS that was registered through MLflow's client.")
    ],
    example: Example = None,
    allow_code: AllowCode = False,
    artifacts: Annotated[
        str | None,
        typer.Option(help="Folder or bucket with the server's artifacts. Default: artifacts in the store folder."),
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Package a version that MLflow's client registered. It can be served afterwards."""
    from everloop import plugins
    from everloop.errors import ConflictError
    from everloop.integrations.mlflow.tracking_api import ArtifactLocations, open_folder
    from everloop.integrations.mlflow.tracking_api.model_version_routes import files_of
    from everloop.packages import get_package
    from everloop.registry import get_version

    with opened(home) as store:
        record = get_version(store, version)
        if record.package:
            raise ConflictError(
                f"'{record.key}' already has a package.", help=f"Show it: everloop models show {record.key}"
            )
        allowed = (artifacts,) if artifacts else ()
        locations = ArtifactLocations(open_folder(artifacts or store.home / "artifacts"), allowed=allowed)
        folder = files_of(store, record, locations)
        reader = plugins.load("model_folder", "mlflow")
        with packaging() as progress:
            adopted = reader.adopt(
                store, record, folder, allow_code=allow_code, example=_rows(example), progress=progress
            )
        package = get_package(store, adopted.package)

    def draw() -> None:
        size = count(package.size_bytes, "byte")
        say(f"{adopted.key} now has a package: {package.digest}, {package.format}, {size}.")
        say(f"Serve it with: everloop serve {adopted.key}")

    emit({"package": package, "version": adopted}, json, draw)


def _rows(example: Path | None) -> object:
    if example is None:
        return None
    from everloop.data import read

    return read(str(example))


Base = Annotated[
    str | None, typer.Option(help="Base image. Default: python:X.Y-slim with the Python version of the package.")
]
WithPostgres = Annotated[
    bool, typer.Option("--postgres", help="Include what logging to PostgreSQL (EVERLOOP_STORE) needs.")
]
WithTraining = Annotated[bool, typer.Option("--train", help="Include what training needs, so that `train` works too.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="New or empty folder to write to.")]


@app.command()
def context(
    version: ModelVersionName,
    output: Folder,
    base: Base = None,
    train: WithTraining = False,
    postgres: WithPostgres = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Write a Docker build context that serves a version.

    The image runs on SageMaker, Vertex AI, Azure ML and KServe.
    """
    from everloop.deploy.images import write_context

    with opened(home) as store:
        context = write_context(store, version, output, base=base, train=train, postgres=postgres)

    def draw() -> None:
        size = f"{count(context.files, 'file')}, {count(context.size_bytes, 'byte')}"
        say(f"{context.version}: {size} in {context.folder}")
        say(f"Build the image with: docker build -t {context.version.replace('@', ':')} {context.folder}")

    emit(context, json, draw)


@app.command()
def dockerfile(
    version: ModelVersionName,
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
    version: ModelVersionName,
    output: Folder,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Write an Azure ML scoring script for a version. The folder holds score.py and everything it needs."""
    from everloop.deploy.azure_ml import export_script
    from everloop.registry import get_version

    with opened(home) as store:
        key = get_version(store, version).key
        folder = export_script(store, version, output)
    emit({"version": key, "folder": folder}, json, lambda: say(f"{key} → {folder / 'score.py'}"))
