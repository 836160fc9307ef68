"""A build context for a version: everything that an image needs, so that building it asks nothing of this machine.

    Dockerfile         small, not root; its entry point answers `serve` and `train`
    requirements.txt   every distribution, pinned
    everloop/          everloop itself, as it is installed here
    package/           the package with its signature
    keys/trusted/      the public key that signed it, where the package brings code

The same version gives the same bytes, times and modes included. Who builds the image is its operator, so the key comes
out of this machine's list of trusted keys and not out of the package.
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

PLACE = "/opt/everloop"
"""Where the parts lie in the image."""
SERVING = ("cryptography", "httptools", "msgspec", "numpy", "obstore", "polars", "pyarrow", "uvicorn", "uvloop")
TRAINING = ("lightgbm", "scipy")
POSTGRES = ("psycopg", "psycopg-binary")
_ALONE = {"lightgbm"}
"""Only its shared library is used, and that needs none of what the distribution asks for."""
_FORMS = {"compiled trees": ("lightgbm",), "onnx": ("onnxruntime",)}
_EPOCH = 315532800
"""1980, the first moment that every archive can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """What was written."""

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
    """Write a build context into a folder that is made for it.

    Args:
        base: the image to build on; default: the slim one of the Python that made the package.
        train: with what training needs, so that `train` works as well.
        postgres: with what a prediction log in PostgreSQL needs.

    Raises:
        NotFoundError: there is no such version.
        UsageError: the folder exists already.
        TrustError: the package brings code, and its signature is not trusted here.
    """
    target = new_folder(folder)
    version = get_version(store, ref)
    files = signed_files(store, version.package)
    manifest = Manifest.from_bytes(files[manifests.FILE])
    locked = needed(manifest, files, train=train, postgres=postgres)
    whole = {
        "Dockerfile": dockerfile(manifest, version.model, locked, base=base).encode(),
        ".dockerignore": b"**/__pycache__\n",
        "requirements.txt": requirements(locked),
        **{f"everloop/{name}": data for name, data in sources().items()},
        **{f"package/{name}": data for name, data in named(files, version.key).items()},
        **{f"keys/trusted/{name}": data for name, data in keys(manifest, files).items()},
    }
    write_steadily(target, whole)
    return BuildContext(
        folder=target,
        version=version.key,
        package=version.package,
        files=len(whole),
        size_bytes=sum(map(len, whole.values())),
        distributions=tuple(f"{name}=={one.version}" for name, one in locked.items()),
    )


def dockerfile(manifest: Manifest, model: str, locked: dict[str, Locked], *, base: str | None = None) -> str:
    """The Dockerfile of a context.

    Raises:
        UsageError: the base image's name, or the model's, is none that can stand there.
        DataError: the package's Python is no version.
    """
    python = manifest.environment.python
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]+)*(?:[a-z+][a-z0-9+]*)?", python):
        raise DataError(f"'{python[:100]}' is no version of Python.")
    if base is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", base):
        raise UsageError(f"'{base[:100]}' is no name of an image.", help="Write it as python:3.12-slim.")
    if not model.isprintable():
        raise UsageError(f"{model[:100]!r} cannot be named in a Dockerfile.", help="Rename the model.")
    system = "libgomp1" if "lightgbm" in locked else ""
    install = (
        f"RUN apt-get update && apt-get install -y --no-install-recommends {system} && rm -rf /var/lib/apt/lists/*\n"
    )
    return f"""# Answers `serve` and `train` as SageMaker, Vertex AI, Azure ML and KServe ask it to.
# `serve` needs EVERLOOP_STORE in the deployment: a mounted folder, s3://…, gs://…, az://… or postgresql://… for the
# prediction log. EVERLOOP_LOG=none answers without one.
FROM {base or f"python:{python}-slim"}
{install if system else ""}COPY requirements.txt {PLACE}/
RUN pip install --no-cache-dir --no-deps --no-compile -r {PLACE}/requirements.txt
COPY everloop {PLACE}/lib/everloop
COPY package {PLACE}/package
COPY key[s] {PLACE}/keys
ENV PYTHONPATH={PLACE}/lib PYTHONUNBUFFERED=1 EVERLOOP_IMAGE={PLACE} EVERLOOP_MODEL={_quoted(model)}
USER 10001:10001
EXPOSE 8080
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
ENTRYPOINT ["python", "-m", "everloop.cli.container"]
CMD ["serve"]
"""


def _quoted(text: str) -> str:
    """A value as a Dockerfile takes it: a plain word as it is, all else in quotes, with nothing left to expand."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", text):
        return text
    return '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def needed(
    manifest: Manifest, files: Iterable[str], *, train: bool = False, postgres: bool = False
) -> dict[str, Locked]:
    """The distributions that an image with this package needs.

    A compiled form needs little; else the package's own lock holds, whose versions go before those installed here.
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
    """everloop's own files, as they are installed here."""
    top = Path(__file__).parents[1]
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def named(files: dict[str, bytes], version: str) -> dict[str, bytes]:
    """A package's files, whose signature also says which version they are."""
    told = json.loads(files[SIGNATURE])
    return {**files, SIGNATURE: json.dumps({**told, "version": version}, sort_keys=True).encode()}


def keys(manifest: Manifest, files: dict[str, bytes]) -> dict[str, bytes]:
    """The public key that signed a package of code, out of those that are trusted here; none for a safe format."""
    from everloop.stores.trust import Keyring

    if not manifest.code_bearing:
        return {}
    signer = (json.loads(files[SIGNATURE]).get("trust") or {}).get("key")
    trusted = {entry.id: entry for entry in Keyring().listing() if entry.public}
    entry = trusted.get(str(signer))
    return {} if entry is None else {f"signer-{normal(entry.id)}.pub": f"{entry.public}\n".encode()}


def new_folder(folder: Path | str) -> Path:
    """The path of a folder that is to be made.

    Raises:
        UsageError: it exists already, and holds something.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"'{target}' exists already.", help="Name a folder that is new or empty.")
    return target


def write_steadily(folder: Path, files: dict[str, bytes]) -> None:
    """Write files whose times and modes say nothing of when and where they were written."""
    write_files(folder, files)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (_EPOCH, _EPOCH))


def _form(files: Iterable[str]) -> str | None:
    """The compiled form that the files hold."""
    names = {name.partition("/")[2] for name in files if name.startswith(manifests.COMPILED_FOLDER)}
    if not names:
        return None
    return "compiled trees" if "trees.txt" in names else "onnx" if "model.onnx" in names else "compiled linear"
