"""Export of runs into one file, and import into another home.

The file is a zip. `manifest.json` has the format version and the digest of every other member; `runs/<n>.json` holds
one run with its steps, artifacts and metric points; `objects/<sha256>` holds the bytes of artifacts, each once. The
import does not trust the file: members are read by their names in the manifest and never extracted to a path, and each
is checked against its digest before anything is written.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from everloop.errors import AlreadyExistsError, CorruptionError, NotFoundError, StoreVersionError, UsageError
from everloop.records import Artifact, Record, Run, StepRun
from everloop.stores.archives import ArchiveLimits, SafeZip, limits_for, open_zip
from everloop.stores.clock import micros
from everloop.stores.records.expressions import And
from everloop.stores.records.record_codec import decode, encode
from everloop.tracking.journal.last_points import series_of
from everloop.tracking.journal.recovery import recover_journals
from everloop.tracking.journal.run_folding import read_metrics
from everloop.tracking.reproduction.run_trust import signed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from everloop.stores import Store

FORMAT = 1
_MANIFEST = "manifest.json"
_MEMBER = re.compile(r"runs/\d{1,9}\.json|objects/[0-9a-f]{64}")
_CHUNK = 1 << 20
_LEVEL = 3
_MOST_RECORDS = 512 << 20
"""The largest size in bytes of the manifest or of one run, unpacked."""
_FREE_RECORDS = 8 << 20
_RECORD_RATIO = 20
"""The highest compression ratio of a run. Real runs have ratios of 4 to 10."""
LIMITS = ArchiveLimits(total_bytes=1 << 40)
_STORED_FROM = 50
"""An object with a higher compression ratio is stored uncompressed, so that our exports pass our own limits."""
_BATCH = 20_000
_KEY = re.compile(rb'("(?:[^"\\]++|\\.)*+"):\[', re.DOTALL)
_ROW = re.compile(rb'\[(-?\d{1,20}+),(-?\d{1,20}+),(null|"[a-z+-]{1,9}+"|-?[0-9][0-9.eE+-]{0,40}+)\]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The result of an export."""

    path: Path
    runs: int
    objects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The result of an import from a file or from another tool, as ids of runs."""

    added: tuple[str, ...]
    known: tuple[str, ...]
    """Runs that existed already and were not changed."""
    updated: tuple[str, ...] = ()
    """Runs that existed already and were updated from the source."""
    notes: tuple[str, ...] = ()
    """Descriptions of what could not be imported."""


class _Body(msgspec.Struct):
    """One run in the file. Records are strings, exactly as the store encodes them."""

    run: str
    steps: list[str]
    artifacts: list[str]
    points: msgspec.Raw
    """Metric to `[step, µs since 1970, value]`; NaN and the infinities are strings. Parsed piece by piece: as Python
    objects, each of a million points would take a hundred bytes."""


class _Manifest(msgspec.Struct):
    format: int
    created_at: str
    project: str
    members: dict[str, str]
    """Name to sha256 in hexadecimal."""


def export_runs(store: Store, runs: Sequence[Run | str] | None, path: Path | str) -> Exported:
    """Write runs, with their steps, artifacts, points and objects, into one file. The file appears only when complete.

    Args:
        runs: ids or records. None: every run of the store's project, including archived ones.
        path: ends in `.zip`.

    Raises:
        UsageError: the path has another ending.
        AlreadyExistsError: the file exists.
        NotFoundError: a run does not exist.
    """
    target = Path(path)
    if target.suffix != ".zip":
        raise UsageError(f"'{target.name}' does not end in .zip.", help=f"Write to '{target.stem}.zip', for example.")
    if target.exists():
        raise AlreadyExistsError(f"The file '{target}' already exists.", help="Choose another name.")
    recover_journals(store)
    if runs is None:
        runs = [hit.id for hit in store.records.search(Run, And(()))]
    target.parent.mkdir(parents=True, exist_ok=True)
    members: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".everloop-export-", dir=target.parent) as scratch:
        draft = Path(scratch) / "export"
        digests: set[str] = set()
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as file:
            for number, ref in enumerate(runs):
                body, named = _body(store, ref.id if isinstance(ref, Run) else ref)
                _write(file, members, f"runs/{number}.json", msgspec.json.encode(body))
                digests |= named
            for digest in sorted(_reachable(store, digests)):
                _write(file, members, f"objects/{digest.removeprefix('sha256:')}", store.objects.path(digest))
            manifest = _Manifest(FORMAT, store.now().isoformat(), store.project, members)
            file.writestr(_MANIFEST, msgspec.json.encode(manifest))
        draft.chmod(0o600)
        draft.rename(target)
    objects = sum(name.startswith("objects/") for name in members)
    return Exported(path=target, runs=len(members) - objects, objects=objects)


def import_runs(store: Store, path: Path | str, *, max_bytes: int | None = None) -> Imported:
    """Import the runs of a file into the store's project. Runs that exist already are not changed.

    Imported runs are not trusted: `everloop reproduce` shows what such a run would execute, and first asks for trust.

    Args:
        max_bytes: how many bytes the file may unpack to, at any compression ratio. Default: 100 times its own size.

    Raises:
        NotFoundError: the file does not exist.
        CorruptionError: the file is not an export, or is damaged. Nothing has been imported.
        StoreVersionError: a newer everloop wrote the file.
        AlreadyExistsError: one of the runs is in another project of this home, or is deleted.
    """
    file_path = Path(path)
    if not file_path.is_file():
        raise NotFoundError(f"There is no file '{file_path}'.")
    with open_zip(file_path, limits_for(LIMITS, max_bytes)) as file:
        manifest = _manifest(file)
        _check(file, manifest)
        with tempfile.TemporaryDirectory(prefix="everloop-import-") as scratch:
            for name in manifest.members:
                if name.startswith("objects/"):
                    # Objects that exist already are added too: this protects them from a concurrent `gc`.
                    extracted = Path(scratch) / "object"
                    with file.open(name) as source, extracted.open("wb") as copy:
                        shutil.copyfileobj(source, copy, _CHUNK)
                    store.objects.add_file(extracted)
        added: list[str] = []
        known: list[str] = []
        for name in manifest.members:
            if name.startswith("runs/"):
                body = _decoded(_read(file, name), name)
                run = decode(Run, body.run)
                # A seal is valid only on the machine that made it, so it is not imported.
                run = replace(run, project=store.project, revision=0, source=replace(run.source, seal=None))
                (added if _put(store, run, body) else known).append(run.id)
    return Imported(added=tuple(added), known=tuple(known))


def _body(store: Store, ref: str) -> tuple[_Body, set[str]]:
    run = store.records.get(Run, ref)
    points: dict[str, list[Any]] = {}
    for point in read_metrics(store, run.id) if not store.read_only else store.records.read_points(series_of(run.id)):
        value = point.value if abs(point.value) < float("inf") else repr(point.value)
        points.setdefault(point.key, []).append((point.step, micros(point.at), value))
    run = store.records.get(Run, ref)  # folding may have changed it
    steps = store.records.find(StepRun, ("run", "=", run.id))
    artifacts = store.records.find(Artifact, ("run", "=", run.id))
    digests = {artifact.digest for artifact in artifacts}
    if run.source.changes:
        digests.add(run.source.changes)
    rows = msgspec.Raw(msgspec.json.encode(points))
    return _Body(
        encode(signed(run)), [encode(step) for step in steps], [encode(one) for one in artifacts], rows
    ), digests


def _reachable(store: Store, digests: set[str]) -> set[str]:
    """The objects that exist, with those that they refer to. Missing objects are left out."""
    found: set[str] = set()
    waiting = list(digests)
    while waiting:
        digest = waiting.pop()
        if digest in found or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or not store.objects.has(digest):
            continue
        found.add(digest)
        waiting += store.objects.references(digest)
    return found


def _write(file: zipfile.ZipFile, members: dict[str, str], name: str, content: bytes | Path) -> None:
    digest = hashlib.sha256()
    with file.open(_member(name, content), "w", force_zip64=True) as member:
        for chunk in [content] if isinstance(content, bytes) else _chunks_of(content):
            digest.update(chunk)
            member.write(chunk)
    members[name] = digest.hexdigest()


def _member(name: str, content: bytes | Path) -> zipfile.ZipInfo:
    """The zip entry of a file: compressed, unless its ratio is so high that the import would refuse it."""
    if isinstance(content, bytes):
        sample, max_ratio = content, _RECORD_RATIO // 2
    else:
        with content.open("rb") as start:
            sample, max_ratio = start.read(_CHUNK), _STORED_FROM
    info = zipfile.ZipInfo(name)
    is_suspicious = len(sample) > max_ratio * len(zlib.compress(sample, _LEVEL))
    info.compress_type = zipfile.ZIP_STORED if is_suspicious else zipfile.ZIP_DEFLATED
    info.external_attr = 0o600 << 16
    return info


def _chunks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from _chunks(file)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _manifest(file: SafeZip) -> _Manifest:
    try:
        content = msgspec.json.decode(_read(file, _MANIFEST))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _corrupt(f"its manifest is invalid: {error}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise StoreVersionError(
            f"The export has format {number}; this version of everloop reads formats up to {FORMAT}.",
            help="Upgrade everloop: pip install --upgrade everloop",
        )
    try:
        manifest = msgspec.convert(content, _Manifest)
    except msgspec.ValidationError as error:
        raise _corrupt(f"its manifest is invalid: {error}") from error
    for name, digest in manifest.members.items():
        if not _MEMBER.fullmatch(name) or (name.startswith("objects/") and name != f"objects/{digest}"):
            raise _corrupt(f"its manifest has an invalid name: '{name}'")
    return manifest


def _check(file: SafeZip, manifest: _Manifest) -> None:
    """Read and check every member once before anything is imported."""
    for name, expected in manifest.members.items():
        if name not in file:
            raise _corrupt(f"'{name}' is missing")
        digest = hashlib.sha256()
        with file.open(name) as member:
            for chunk in _chunks(member):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise _corrupt(f"'{name}' does not match its digest")
        if name.startswith("runs/"):
            _decoded(_read(file, name), name)


def _read(file: SafeZip, name: str) -> bytes:
    """Read the manifest or one run into memory. Its compression ratio is limited, to prevent decompression bombs."""
    if name not in file:
        raise _corrupt(f"'{name}' is missing")
    size = file.size(name)
    limit = _MOST_RECORDS if file.trusted else max(_FREE_RECORDS, file.packed_size(name) * _RECORD_RATIO)
    if size > min(limit, _MOST_RECORDS):
        raise CorruptionError(
            f"'{name}' in the file unpacks from {file.packed_size(name)} to {size} bytes, which is more than allowed.",
            help="If you trust the file, raise the limit: --max-bytes BYTES",
        )
    return file.read(name)


def _decoded(content: bytes, name: str) -> _Body:
    try:
        body = msgspec.json.decode(content, type=_Body)
        decode(Run, body.run)
        for _ in _rows(body):
            pass
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _corrupt(f"'{name}' is not a run: {error}") from error
    return body


def _corrupt(reason: str) -> CorruptionError:
    return CorruptionError(f"The file is not a valid export of runs: {reason}.", help="Export the runs again.")


def _put(store: Store, run: Run, body: _Body) -> bool:
    """Write one run with its steps, artifacts and points in one transaction. Returns False if it already exists."""
    related: list[Record] = [
        *(replace(decode(StepRun, text), project=store.project, revision=0) for text in body.steps),
        *(replace(decode(Artifact, text), project=store.project, revision=0) for text in body.artifacts),
    ]
    if any(getattr(record, "run", None) != run.id for record in related):
        raise _corrupt(f"the run {run.id} has steps or artifacts of another run")
    with store.records.transaction():
        if store.records.get_many(Run, [run.id]):
            return False
        store.records.put(run, *related, verb="imported")
        rows = _rows(body)
        while batch := list(islice(rows, _BATCH)):
            store.records.append_rows(series_of(run.id), batch)
    return True


def _rows(body: _Body) -> Iterator[tuple[str, int, int, float]]:
    """Metric, step, µs since 1970 and value of each point. The JSON must be as the export writes it, without spaces."""
    text = memoryview(body.points).toreadonly()
    position, end = 1, len(text) - 1
    if bytes(text[:1]) != b"{" or bytes(text[end:]) != b"}":
        raise _corrupt("its points were changed")
    while position < end:
        key = _KEY.match(text, position)
        if key is None:
            raise _corrupt("its points were changed")
        name = msgspec.json.decode(key[1], type=str)
        position = key.end()
        while (row := _ROW.match(text, position)) is not None:
            step, moment = int(row[1]), int(row[2])
            if not (-(1 << 63) <= step < 1 << 63 and -(1 << 56) < moment < 1 << 56):
                raise _corrupt(f"a point of '{name}' has a step or a time that is out of range")
            yield name, step, moment, _number(row[3])
            position = row.end()
            if bytes(text[position : position + 1]) == b",":
                position += 1
        if bytes(text[position : position + 1]) != b"]":
            raise _corrupt(f"the points of '{name}' were changed")
        position += 2  # the bracket, and the comma or the end


def _number(text: bytes) -> float:
    if text == b"null":
        return float("nan")
    try:
        return float(text.strip(b'"'))
    except ValueError as error:
        raise _corrupt(f"a point has the value {text.decode('ascii', 'replace')}") from error
