"""Write a build context for a version: everything that `docker build` needs to make an image that serves it.

    Dockerfile         a small image that does not run as root; its entry point takes `serve` and `train`
    requirements.txt   every distribution, pinned
    everloop/          everloop itself, as it is installed here
    package/           the package with its signature
    keys/trusted/      the public key that signed it, if the package contains code

The same version gives the same bytes, including times and modes. The operator who builds the image decides whom it
trusts, so the key comes from this machine's list of trusted keys, not from the package.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import DataError, UsageError
from everloop.packages import package_manifest as manifests
from everloop.packages.archive import SIGNATURE, signed_files
from everloop.packages.environment_lock import lock, normal, requirements
from everloop.packages.package import write_files
from everloop.packages.package_manifest import Manifest
from everloop.registry.model_versions import get_version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from everloop.packages.environment_lock import Locked
    from everloop.stores import Store

IMAGE_FOLDER = "/opt/everloop"
SERVING = ("cryptography", "httptools", "msgspec", "numpy", "obstore", "polars", "pyarrow", "uvicorn", "uvloop")
TRAINING = ("lightgbm", "scipy")
POSTGRES = ("psycopg", "psycopg-binary")
_ALONE = {"lightgbm"}
"""Installed without its requirements: only its shared library is used."""
_FORMS = {"compiled trees": ("lightgbm",), "onnx": ("onnxruntime",)}
_EPOCH = 315532800
"""1980-01-01, the earliest time that every archive format can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """A build context that was written."""

    folder: Path
    version: str
    package: str
    files: int
    size_bytes: int
    distributions: tuple[str, ...]


def write_context(
    store: Store,
    ref: str,
    folder: Path | str,
    *,
    base: str | None = None,
    train: bool = False,
    postgres: bool = False,
) -> BuildContext:
    """Write a build context into a new folder.

    Args:
        base: the image to build on; None takes the slim image of the Python that made the package.
        train: install the training libraries too, so that `train` works in the image.
        postgres: install the driver for a prediction log in PostgreSQL.

    Raises:
        NotFoundError: there is no such version.
        UsageError: the folder exists already and is not empty.
        TrustError: the package contains code, and its signature is not trusted here.
    """
    target = new_folder(folder)
    version = get_version(store, ref)
    files = signed_files(store, version.package)
    manifest = Manifest.from_bytes(files[manifests.FILE])
    locked = needed(manifest, files, train=train, postgres=postgres)
    contents = {
        "Dockerfile": dockerfile(manifest, version.model, locked, base=base).encode(),
        ".dockerignore": b"**/__pycache__\n",
        "requirements.txt": requirements(locked),
        **{f"everloop/{name}": data for name, data in sources().items()},
        **{f"package/{name}": data for name, data in named(files, version.key).items()},
        **{f"keys/trusted/{name}": data for name, data in keys(manifest, files).items()},
    }
    write_reproducibly(target, contents)
    return BuildContext(
        folder=target,
        version=version.key,
        package=version.package,
        files=len(contents),
        size_bytes=sum(map(len, contents.values())),
        distributions=tuple(f"{name}=={one.version}" for name, one in locked.items()),
    )


def dockerfile(manifest: Manifest, model: str, locked: dict[str, Locked], *, base: str | None = None) -> str:
    """Return the text of a context's Dockerfile.

    Raises:
        UsageError: the name of the base image or of the model is not allowed in a Dockerfile.
        DataError: the Python version in the package is malformed.
    """
    python = manifest.environment.python
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]+)*(?:[a-z+][a-z0-9+]*)?", python):
        raise DataError(f"'{python[:100]}' is not a Python version.")
    if base is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", base):
        raise UsageError(f"'{base[:100]}' is not the name of an image.", help="Write it as python:3.12-slim.")
    if not model.isprintable():
        raise UsageError(
            f"The model's name {model[:100]!r} is not allowed in a Dockerfile.",
            help="Use printable characters only: save the model under another name.",
        )
    system = "libgomp1" if "lightgbm" in locked else ""
    install = (
        f"RUN apt-get update && apt-get install -y --no-install-recommends {system} && rm -rf /var/lib/apt/lists/*\n"
    )
    return f"""# Runs `serve` and `train` as SageMaker, Vertex AI, Azure ML and KServe start them.
# `serve` needs EVERLOOP_STORE in the deployment: a mounted folder, s3://…, gs://…, az://… or postgresql://… for the
# prediction log. Set EVERLOOP_LOG=none to serve without one.
FROM {base or f"python:{python}-slim"}
{install if system else ""}COPY requirements.txt {IMAGE_FOLDER}/
RUN pip install --no-cache-dir --no-deps --no-compile -r {IMAGE_FOLDER}/requirements.txt
COPY everloop {IMAGE_FOLDER}/lib/everloop
COPY package {IMAGE_FOLDER}/package
COPY key[s] {IMAGE_FOLDER}/keys
ENV PYTHONPATH={IMAGE_FOLDER}/lib PYTHONUNBUFFERED=1 EVERLOOP_IMAGE={IMAGE_FOLDER} EVERLOOP_MODEL={_quoted(model)}
USER 10001:10001
EXPOSE 8080
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
ENTRYPOINT ["python", "-m", "everloop.cli.container"]
CMD ["serve"]
"""


def _quoted(text: str) -> str:
    """Quote a value for a Dockerfile so that nothing in it is expanded; a plain word stays as it is."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", text):
        return text
    return '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def needed(
    manifest: Manifest, files: Iterable[str], *, train: bool = False, postgres: bool = False
) -> dict[str, Locked]:
    """Return the distributions that an image with this package needs, by name.

    A compiled form needs few. Otherwise they come from the package's lock, whose versions take precedence over the
    installed ones.
    """
    form = _form(files)
    if manifest.compiled and form is not None:
        alone = [name for name in _FORMS.get(form, ()) if name in _ALONE]
        follow = [name for name in _FORMS.get(form, ()) if name not in _ALONE]
        found = {name: one for name, one in lock(alone).items() if name in alone} | lock(follow)
    elif manifest.format in _ALONE:
        found = {name: one for name, one in manifest.environment.locked.items() if name in _ALONE}
    else:
        found = {name: one for name, one in manifest.environment.locked.items() if name != "everloop"}
    wanted = [*SERVING, *(TRAINING if train else ()), *(POSTGRES if postgres else ())]
    return dict(sorted({**lock(wanted), **found}.items()))


def sources() -> dict[str, bytes]:
    """Return the files of everloop itself, as they are installed here, by path."""
    root = Path(__file__).parents[1]
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def named(files: dict[str, bytes], version: str) -> dict[str, bytes]:
    """Return a package's files with the version's key added to the signature file."""
    signature = json.loads(files[SIGNATURE])
    return {**files, SIGNATURE: json.dumps({**signature, "version": version}, sort_keys=True).encode()}


def keys(manifest: Manifest, files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the trusted public key that signed the package, as a file; empty for formats without code."""
    from everloop.stores.trust import Keyring

    if not manifest.code_bearing:
        return {}
    signer = (json.loads(files[SIGNATURE]).get("trust") or {}).get("key")
    trusted = {entry.id: entry for entry in Keyring().listing() if entry.public}
    entry = trusted.get(str(signer))
    return {} if entry is None else {f"signer-{normal(entry.id)}.pub": f"{entry.public}\n".encode()}


def new_folder(folder: Path | str) -> Path:
    """Return the path of a folder to write to.

    Raises:
        UsageError: it exists already and is not empty.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"'{target}' exists already.", help="Name a folder that is new or empty.")
    return target


def write_reproducibly(folder: Path, files: dict[str, bytes]) -> None:
    """Write files with fixed times and modes, so that the same content always gives the same folder."""
    write_files(folder, files)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (_EPOCH, _EPOCH))


def _form(files: Iterable[str]) -> str | None:
    """Return the name of the compiled form in the files, or None."""
    names = {name.partition("/")[2] for name in files if name.startswith(manifests.COMPILED_FOLDER)}
    if not names:
        return None
    return "compiled trees" if "trees.txt" in names else "onnx" if "model.onnx" in names else "compiled linear"
