"""A package as one file, to carry to another machine: a zip of its files and the signature that vouches for it.

Reading trusts nothing in it: names that lead outside are refused, sizes are bounded, every file is checked against
the manifest, and what bears code comes in only with a signature by a key that is trusted here.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError, NotFoundError, TrustError, UsageError
from everloop.models import manifest as manifests
from everloop.models.manifest import Manifest
from everloop.models.package import digest_of, read_package
from everloop.models.registry import get_package, get_version
from everloop.records import Package

if TYPE_CHECKING:
    from everloop.stores import Store

SIGNATURE = "signature.json"
"""Beside the package's own files in the zip; a package has no file of this name."""
MOST_BYTES = 4 * 2**30
MOST_FILES = 10_000
_EARLY = (1980, 1, 1, 0, 0, 0)


def export_package(store: Store, ref: str, path: Path | str) -> Path:
    """Write the package of a version, or one by its digest, as one zip file.

    The same package gives the same bytes.

    Raises:
        NotFoundError: there is no such version or package.
        UsageError: the path exists already.
    """
    target = Path(path)
    if target.exists():
        raise UsageError(f"'{target}' exists already.", help="Choose another name, or remove it.")
    digest = ref if ref.startswith("sha256:") else get_version(store, ref).package
    record = get_package(store, digest)
    manifest, files = read_package(store, digest)
    whole = {**files, manifests.FILE: manifest.to_bytes()}
    trust = {"package": digest, "trust": record.trust, "parity": record.parity}
    draft = target.with_name(f".{target.name}.part")
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(whole):
            archive.writestr(zipfile.ZipInfo(name, _EARLY), whole[name], zipfile.ZIP_DEFLATED)
        told = json.dumps(trust, sort_keys=True).encode()
        archive.writestr(zipfile.ZipInfo(SIGNATURE, _EARLY), told, zipfile.ZIP_DEFLATED)
    draft.replace(target)
    return target


def import_package(store: Store, path: Path | str) -> Package:
    """Read what `export_package` wrote into a store; register it then as any other package.

    Raises:
        NotFoundError: there is no such file.
        CorruptionError: it is no package, or not as it was written.
        TrustError: it bears code, and nobody whom this machine trusts vouches for it.
    """
    from everloop.stores.trust import check, sign

    files, told = _read(Path(path))
    manifest = Manifest.from_bytes(files[manifests.FILE])
    for name, expected in manifest.files.items():
        if name not in files:
            raise CorruptionError(f"'{path}' lacks its file {name}.")
        if digest_of(files[name]) != expected:
            raise CorruptionError(f"The file {name} in '{path}' differs from its digest.")
    strangers = sorted(set(files) - set(manifest.files) - {manifests.FILE})
    if strangers:
        raise CorruptionError(f"'{path}' holds a file that its manifest does not name: {strangers[0]}.")
    with tempfile.TemporaryDirectory(prefix="everloop-import-") as folder:
        for name, data in files.items():
            place = Path(folder, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        digest = store.objects.add_tree(Path(folder))
    if told.get("package") not in (None, digest):
        raise CorruptionError(f"'{path}' says that it is {told['package']}, its files are {digest}.")
    trust = told.get("trust")
    trust = {str(key): str(value) for key, value in trust.items()} if isinstance(trust, dict) else None
    try:
        check(digest, trust)
    except TrustError:
        if manifest.code_bearing:
            raise
        # Nothing in it can run; from here on this machine vouches for the bytes that it read.
        trust = sign(digest)
    with store.records.transaction():
        found = store.records.find(Package, ("digest", "=", digest), limit=1)
        if found:
            return found[0]
        parity = told.get("parity")
        package = store.new(
            Package,
            digest=digest,
            format=manifest.format,
            signature=manifest.signature,
            size_bytes=sum(map(len, files.values())),
            compiled=manifest.compiled,
            parity=dict(parity) if isinstance(parity, dict) else {},
            trust=trust,
        )
        store.records.put(package, verb="imported")
    return package


def _read(path: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    """The files in a zip by name, and what stands beside them. Bounded in number and size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_FILES:
                raise CorruptionError(f"'{path}' holds {len(members)} files.", help=f"At most {MOST_FILES} are read.")
            if sum(member.file_size for member in members) > MOST_BYTES:
                raise CorruptionError(f"'{path}' holds more than {MOST_BYTES} bytes.")
            files: dict[str, bytes] = {}
            for member in members:
                name = _checked(member.filename, path)
                if name in files:
                    raise CorruptionError(f"'{path}' holds {name} twice.")
                with archive.open(member) as file:
                    # The header's size is a claim; no more than it is read, and less is a damage.
                    data = file.read(member.file_size + 1)
                if len(data) != member.file_size:
                    raise CorruptionError(f"The file {name} in '{path}' is not as long as it says.")
                files[name] = data
    except FileNotFoundError:
        raise NotFoundError(f"There is no file '{path}'.") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError, ValueError) as error:
        raise CorruptionError(f"'{path}' is no package: {error}.") from error
    except Exception as error:
        if isinstance(error, CorruptionError):
            raise
        raise CorruptionError(f"'{path}' is no package: {error}.") from error
    if manifests.FILE not in files:
        raise CorruptionError(f"'{path}' is no package: it has no {manifests.FILE}.")
    try:
        told = json.loads(files.pop(SIGNATURE, b"{}"))
    except ValueError as error:
        raise CorruptionError(f"The {SIGNATURE} in '{path}' is damaged: {error}.") from error
    return files, told if isinstance(told, dict) else {}


def _checked(name: str, path: Path) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or ":" in parts[0] or "\0" in name or ".." in parts:
        raise CorruptionError(f"'{path}' names a file outside of itself: {name!r}.")
    if name.endswith("/") or str(PurePosixPath(name)) != name:
        raise CorruptionError(f"'{path}' names something that is no file: {name!r}.")
    return name
