"""Export and import packages: one file, `churn.tar.zst`, or a folder, together with the package's signature.

Import trusts nothing in an archive. It refuses paths that lead outside and anything that is not a plain file, limits
sizes, and checks every file against the manifest. A package with code is imported only if a trusted key signed it or
its digest is trusted here.
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
"""Added to the package's own files on export; a package itself has no file of this name."""
ENDING = ".tar.zst"
MOST_BYTES = 4 * 2**30
MOST_FILES = 10_000
_LEVEL = 9
_EXPORT_AGAIN = "Export the package again on the machine that has it: everloop models export MODEL@VERSION"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".zst", ".bz2", ".xz", ".whl")


def write_archive(store: Store, digest: str, path: Path | str) -> Path:
    """Write a package as one file if `path` ends in `.tar.zst`, otherwise as a folder.

    The same package gives the same bytes.

    Raises:
        NotFoundError: there is no such package.
        UsageError: the path exists already, or has the suffix of another archive format.
    """
    target = Path(path)
    if target.exists():
        raise UsageError(f"'{target}' exists already.", help="Choose another name, or remove it.")
    packed = target.name.endswith(ENDING)
    if not packed and target.suffix in _ARCHIVES:
        raise UsageError(
            f"A package cannot be written as '{target.suffix}'.",
            help=f"Choose a name that ends in {ENDING}, or name a folder.",
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
    """Return every file of a package, including its manifest and signature.

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
    """Import into a store what `export_package` wrote. The package can then be registered like any other.

    Args:
        max_bytes: the most bytes that the file may unpack to; default: a hundred times its size, at most 4 GiB.

    Raises:
        NotFoundError: there is no such file.
        CorruptionError: it is not a package, it is damaged, or its model is invalid.
        TrustError: it contains code and is not signed by a key that this machine trusts; or its model refers to a
            file outside of the package.
        MissingExtraError: the library that reads its model, and is needed to check it, is not installed.
    """
    from everloop.stores.trust import check, sign

    manifest, files, signature, digest = open_archive(Path(path), max_bytes=max_bytes)
    trust = trust_of(signature)
    try:
        check(digest, trust)
    except TrustError:
        if manifest.code_bearing:
            raise
        # The format contains no code. This machine signs the package only after a trial load.
        admit(manifest, files, digest, trust, store=store, name=f"The package '{path}'")
        trust = sign(digest)
    with tempfile.TemporaryDirectory(prefix="everloop-import-") as folder:
        store.objects.add_tree(write_files(Path(folder, "package"), files))
    with store.records.transaction():
        found = store.records.find(Package, ("digest", "=", digest), limit=1)
        if found:
            return found[0]
        parity = signature.get("parity")
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
    """Read an archive: its manifest, its files including the manifest, the content of `signature.json`, its digest.

    Nothing is run, and the signature is not checked.

    Raises:
        NotFoundError: there is no such file.
        CorruptionError: it is not a package, or it is damaged.
    """
    files = _read_folder(path) if path.is_dir() else _read_file(path, max_bytes)
    if manifests.FILE not in files:
        raise CorruptionError(
            f"'{path}' is not a package: it has no {manifests.FILE}.",
            help=f"Give a file or folder that `everloop models export` wrote; a file ends in {ENDING}.",
        )
    try:
        signature = json.loads(files.pop(SIGNATURE, b"{}"))
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"The {SIGNATURE} in '{path}' is damaged: {error}.", help=_EXPORT_AGAIN) from error
    signature = signature if isinstance(signature, dict) else {}
    manifest = Manifest.from_bytes(files[manifests.FILE])
    for name, expected in manifest.files.items():
        if name not in files:
            raise CorruptionError(f"The file {name} is missing in '{path}'.", help=_EXPORT_AGAIN)
        if digest_of(files[name]) != expected:
            raise CorruptionError(f"The file {name} in '{path}' differs from its digest.", help=_EXPORT_AGAIN)
    unknown = sorted(set(files) - set(manifest.files) - {manifests.FILE})
    if unknown:
        raise CorruptionError(
            f"'{path}' holds a file that its manifest does not name: {unknown[0]}.", help=_EXPORT_AGAIN
        )
    digest = digest_of_files(files)
    if signature.get("package") not in (None, digest):
        raise CorruptionError(
            f"'{path}' says that it is {signature['package']}, but its files are {digest}.", help=_EXPORT_AGAIN
        )
    return manifest, files, signature, digest


def check_archive(manifest: Manifest, signature: Mapping[str, Any], digest: str) -> None:
    """Check that a package with code is trusted here and fits this Python.

    Args:
        signature: the content of `signature.json`.

    Raises:
        TrustError: it contains code and is not signed by a trusted key.
        OtherPythonError: another minor version of Python wrote the code.
    """
    if manifest.code_bearing:
        from everloop.stores.trust import check

        check(digest, trust_of(signature))
        manifest.check_python()


def trust_of(signature: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the trust entry of a `signature.json`, or None."""
    trust = signature.get("trust")
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
                raise UsageError(
                    f"The name of the file '{name}' does not fit into an archive: {error}.",
                    help="Export the package as a folder: give a path without a suffix.",
                ) from error
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
        raise CorruptionError(f"'{path}' is not a package: {error.message}") from error
    return files


def _read_file(path: Path, most_bytes: int | None) -> dict[str, bytes]:
    """Return the files in an archive by name."""
    if not path.exists():
        raise NotFoundError(f"There is no file '{path}'.", help="Check the path of the package.")
    files: dict[str, bytes] = {}
    try:
        with zstd_or_plain(path) as stream:
            for member in tar_members(stream, UnpackBudget(_limits(most_bytes), path.stat().st_size, path)):
                files[member.name] = member.read()
    except CorruptionError:
        raise
    except Exception as error:  # the readers can raise anything on a damaged archive
        raise CorruptionError(
            f"'{path}' is not a package: {str(error).rstrip('.')}.", help=f"A package in one file ends in {ENDING}."
        ) from error
    return files


def _limits(most_bytes: int | None) -> ArchiveLimits:
    return limits_for(ArchiveLimits(total_bytes=MOST_BYTES, entries=MOST_FILES), most_bytes)
