"""A package to carry to another machine: one file, `churn.tar.zst`, or a folder, with the signature that vouches for
it.

Reading trusts nothing in it: names that lead outside and anything that is no plain file are refused, sizes are bounded,
every file is checked against the manifest, and what bears code comes in only with a signature by a key, or with a
digest, that is trusted here.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from everloop.errors import CorruptionError, NotFoundError, TrustError, UsageError
from everloop.packages import package_manifest as manifests
from everloop.packages.isolation.isolation_policy import admit
from everloop.packages.package import digest_of, digest_of_files, get_package, read_package, write_files
from everloop.packages.package_manifest import Manifest
from everloop.records import Package
from everloop.stores.archives import ArchiveLimits, UnpackBudget, limits_for, tar_members, zstd_or_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.stores import Store

SIGNATURE = "signature.json"
"""Beside the package's own files; a package has no file of this name."""
ENDING = ".tar.zst"
MOST_BYTES = 4 * 2**30
MOST_FILES = 10_000
_LEVEL = 9
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".zst", ".bz2", ".xz", ".whl")


def write_archive(store: Store, digest: str, path: Path | str) -> Path:
    """Write a package as one file where `path` ends in `.tar.zst`, otherwise as a folder.

    The same package gives the same bytes.

    Raises:
        NotFoundError: there is no such package.
        UsageError: the path exists already, or ends as another kind of archive does.
    """
    target = Path(path)
    if target.exists():
        raise UsageError(f"'{target}' exists already.", help="Choose another name, or remove it.")
    packed = target.name.endswith(ENDING)
    if not packed and target.suffix in _ARCHIVES:
        raise UsageError(
            f"A package is not written as '{target.suffix}'.", help=f"End the name in {ENDING}, or name a folder."
        )
    files = signed_files(store, digest)
    draft = target.with_name(f".{target.name}.part")
    if packed:
        draft.write_bytes(_pack(files))
    else:
        write_files(draft, files)
    draft.replace(target)
    return target


def signed_files(store: Store, digest: str) -> dict[str, bytes]:
    """Every file of a package, including its manifest and signature.

    Raises:
        NotFoundError: there is no such package.
    """
    record = get_package(store, digest)
    manifest, files = read_package(store, digest)
    trust = {"package": digest, "trust": record.trust, "parity": record.parity}
    return {
        **files,
        manifests.FILE: manifest.to_bytes(),
        SIGNATURE: json.dumps(trust, sort_keys=True).encode(),
    }


def import_package(store: Store, path: Path | str, *, max_bytes: int | None = None) -> Package:
    """Read what `export_package` wrote into a store; register it then as any other package.

    Args:
        max_bytes: how much the file may unpack to, at any ratio; default: a hundred times its own size, 4 GiB at most.

    Raises:
        NotFoundError: there is no such file.
        CorruptionError: it is not a package, not as it was written, or its model does not hold together.
        TrustError: it bears code, and nobody whom this machine trusts vouches for it; or its model names something
            outside of the package.
        MissingExtraError: the library that reads its model, and so could check it, is not installed.
    """
    from everloop.stores.trust import check, sign

    manifest, files, told, digest = open_archive(Path(path), max_bytes=max_bytes)
    trust = trust_of(told)
    try:
        check(digest, trust)
    except TrustError:
        if manifest.code_bearing:
            raise
        # Nothing in it can run, and what it names lies in it; this machine vouches only for what it could read.
        admit(manifest, files, digest, trust, store=store, told=f"The package '{path}'")
        trust = sign(digest)
    with tempfile.TemporaryDirectory(prefix="everloop-import-") as folder:
        store.objects.add_tree(write_files(Path(folder, "package"), files))
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


def open_archive(path: Path, *, max_bytes: int | None = None) -> tuple[Manifest, dict[str, bytes], dict[str, Any], str]:
    """The manifest, the files (the manifest among them), what stands in `signature.json`, and the digest.

    Nothing is run, and who vouches for it is not looked at.

    Raises:
        NotFoundError: there is no such file.
        CorruptionError: it is no package, or not as it was written.
    """
    files = _read_folder(path) if path.is_dir() else _read_file(path, max_bytes)
    if manifests.FILE not in files:
        raise CorruptionError(f"'{path}' is no package: it has no {manifests.FILE}.")
    try:
        told = json.loads(files.pop(SIGNATURE, b"{}"))
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"The {SIGNATURE} in '{path}' is damaged: {error}.") from error
    told = told if isinstance(told, dict) else {}
    manifest = Manifest.from_bytes(files[manifests.FILE])
    for name, expected in manifest.files.items():
        if name not in files:
            raise CorruptionError(f"'{path}' lacks its file {name}.")
        if digest_of(files[name]) != expected:
            raise CorruptionError(f"The file {name} in '{path}' differs from its digest.")
    strangers = sorted(set(files) - set(manifest.files) - {manifests.FILE})
    if strangers:
        raise CorruptionError(f"'{path}' holds a file that its manifest does not name: {strangers[0]}.")
    digest = digest_of_files(files)
    if told.get("package") not in (None, digest):
        raise CorruptionError(f"'{path}' says that it is {told['package']}, its files are {digest}.")
    return manifest, files, told, digest


def check_archive(manifest: Manifest, told: Mapping[str, Any], digest: str) -> None:
    """Refuse a package that bears code, unless somebody trusted vouches for it.

    Raises:
        TrustError: nobody does.
    """
    if manifest.code_bearing:
        from everloop.stores.trust import check

        check(digest, trust_of(told))
        manifest.check_python()


def trust_of(told: Mapping[str, Any]) -> dict[str, str] | None:
    """The signature in what stands in `signature.json`, if there is one."""
    trust = told.get("trust")
    return {str(key): str(value) for key, value in trust.items()} if isinstance(trust, dict) else None


def _pack(files: Mapping[str, bytes]) -> bytes:
    import pyarrow as pa

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o644
            try:
                archive.addfile(member, io.BytesIO(files[name]))
            except ValueError as error:
                raise UsageError(f"The file '{name}' has a name that no archive holds: {error}.") from error
    packed = pa.Codec("zstd", compression_level=_LEVEL).compress(out.getvalue(), asbytes=True)
    return cast("bytes", packed)


def _read_folder(path: Path) -> dict[str, bytes]:
    from everloop.stores.objects.manifests import walk_files

    files: dict[str, bytes] = {}
    budget = UnpackBudget(_limits(None), 0, path)
    try:
        for name, _ in walk_files(path, ()):
            size = (path / name).stat().st_size
            budget.admit(name, size)
            budget.spend(size)
            files[name] = (path / name).read_bytes()
    except UsageError as error:
        raise CorruptionError(f"'{path}' is no package: {error.message}") from error
    return files


def _read_file(path: Path, most_bytes: int | None) -> dict[str, bytes]:
    """The files in an archive by name."""
    if not path.exists():
        raise NotFoundError(f"There is no file '{path}'.")
    files: dict[str, bytes] = {}
    try:
        with zstd_or_plain(path) as stream:
            for member in tar_members(stream, UnpackBudget(_limits(most_bytes), path.stat().st_size, path)):
                files[member.name] = member.read()
    except CorruptionError:
        raise
    except Exception as error:  # a damaged archive makes its readers raise whatever they like
        raise CorruptionError(
            f"'{path}' is no package: {str(error).rstrip('.')}.", help=f"A package in one file ends in {ENDING}."
        ) from error
    return files


def _limits(most_bytes: int | None) -> ArchiveLimits:
    return limits_for(ArchiveLimits(total_bytes=MOST_BYTES, entries=MOST_FILES), most_bytes)
