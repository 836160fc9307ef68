"""`everloop models verify|sbom|export|import`: a version's package, checked, listed and carried."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.models import app as app
from everloop.cli.output import AsJson, Home, emit, facts, opened

Version = Annotated[str, typer.Argument(help="MODEL@VERSION, MODEL@ALIAS, MODEL, or a package's digest.")]


@app.command()
def verify(version: Version, home: Home = None, json: AsJson = False) -> None:
    """Check a package: every byte, its signature, and that it answers here as when it was made. Exit 10 if not."""
    from everloop.errors import CorruptionError
    from everloop.models import verify_package

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
    from everloop.models import environment_sbom, get_version, read_package

    with opened(home) as store:
        record = None if version.startswith("sha256:") else get_version(store, version)
        digest = version if record is None else record.package
        manifest, _ = read_package(store, digest)
    name, number = (digest[7:19], "") if record is None else (record.model, str(record.version))
    text = to_json(environment_sbom(manifest, name=name, version=number, digest=digest)) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


@app.command()
def export(
    version: Version,
    output: Annotated[Path, typer.Option("--output", "-o", help="A file that ends in .tar.zst, or a new folder.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Write a package with its signature as one file or as a folder; the same package gives the same bytes."""
    from everloop.models import export_package, get_version

    with opened(home) as store:
        digest = version if version.startswith("sha256:") else get_version(store, version).package
        path = export_package(store, digest, output)
    emit({"package": digest, "path": path}, json, lambda: typer.echo(f"{digest} → {path}"))


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="What `everloop models export` wrote.")],
    model: Annotated[str | None, typer.Option("--as", help="Register it as the next version of this model.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Read a package from a file or a folder. One that brings code needs a signature that is trusted here."""
    from everloop.models import import_package, register

    with opened(home, create=True) as store:
        package = import_package(store, path)
        version = None if model is None else register(store, model, package)

    def draw() -> None:
        told = package.digest if version is None else f"{version.key} ({package.digest})"
        typer.echo(f"{told}: {package.format}, {package.size_bytes:,} bytes.")

    emit({"package": package, "version": version}, json, draw)
