"""Runs as one file, to be carried to another home.

The file is a zip. `manifest.json` says its format and the digest of every other member; `runs/<n>.json` holds one run
with its steps, its artifacts and the points of its metrics; `objects/<sha256>` are the bytes that artifacts name, each
once. Reading it trusts nothing: members are read by their names in the manifest and never unpacked to a path, and
every one is checked against its digest before anything is written.
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
"""Bytes of the manifest or of one run, unpacked."""
_FREE_RECORDS = 8 << 20
_RECORD_RATIO = 20
"""Points and records of a real run pack to a fourth or a tenth."""
LIMITS = ArchiveLimits(total_bytes=1 << 40)
_STORED_FROM = 50
"""An object that packs better than this is stored as it is, so that what we export passes our own limits."""
_BATCH = 20_000
_KEY = re.compile(rb'("(?:[^"\\]++|\\.)*+"):\[', re.DOTALL)
_ROW = re.compile(rb'\[(-?\d{1,20}+),(-?\d{1,20}+),(null|"[a-z+-]{1,9}+"|-?[0-9][0-9.eE+-]{0,40}+)\]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    path: Path
    runs: int
    objects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of the runs of a file or of another tool: their ids."""

    added: tuple[str, ...]
    known: tuple[str, ...]
    """Already here, and left as they are."""
    updated: tuple[str, ...] = ()
    """Already here, and brought to what the source says now."""
    notes: tuple[str, ...] = ()
    """What could not be taken over, in words."""


class _Body(msgspec.Struct):
    """One run as it stands in the file. Records are texts, so that they stay as the store had them."""

    run: str
    steps: list[str]
    artifacts: list[str]
    points: msgspec.Raw
    """Metric to `[step, µs since 1970, value]`; NaN and the infinities are texts. Taken apart piece by piece: a million
    points take a hundred bytes each as Python's objects, and eight as JSON."""


class _Manifest(msgspec.Struct):
    format: int
    created_at: str
    project: str
    members: dict[str, str]
    """Name to sha256 in hexadecimal."""


def export_runs(store: Store, runs: Sequence[Run | str] | None, path: Path | str) -> Exported:
    """Write runs, with their steps, artifacts, points and objects, into one file, which appears whole or not at all.

    Args:
        runs: ids or records; None: every run of the store's project, the archived too.
        path: ends in `.zip`.

    Raises:
        UsageError: another ending.
        AlreadyExistsError: there is such a file.
        NotFoundError: there is no such run.
    """
    target = Path(path)
    if target.suffix != ".zip":
        raise UsageError(f"'{target.name}' is no name for the file.", help="End it in .zip.")
    if target.exists():
        raise AlreadyExistsError(f"There is a file '{target}' already.", help="Name another.")
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
    """Bring in the runs of a file, as runs of the store's project. Those that are here already stay as they are.

    What comes in is data: `everloop reproduce` shows what such a run would execute, and wants trust first.

    Args:
        max_bytes: how much the file may unpack to, at any ratio; default: a hundred times its own size.

    Raises:
        NotFoundError: there is no such file.
        CorruptionError: the file is no export, or not as it was written; nothing has been brought in.
        StoreVersionError: a newer everloop wrote it.
        AlreadyExistsError: a run of it is in another project of this home, or deleted.
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
                    # Also what is here already: adding it again keeps a sweep away meanwhile.
                    taken = Path(scratch) / "object"
                    with file.open(name) as source, taken.open("wb") as copy:
                        shutil.copyfileobj(source, copy, _CHUNK)
                    store.objects.add_file(taken)
        added: list[str] = []
        known: list[str] = []
        for name in manifest.members:
            if name.startswith("runs/"):
                body = _decoded(_read(file, name), name)
                run = decode(Run, body.run)
                # A seal proves something to the machine that made it, and is never carried.
                run = replace(run, project=store.project, revision=0, source=replace(run.source, seal=None))
                (added if _put(store, run, body) else known).append(run.id)
    return Imported(added=tuple(added), known=tuple(known))


def _body(store: Store, ref: str) -> tuple[_Body, set[str]]:
    run = store.records.get(Run, ref)
    points: dict[str, list[Any]] = {}
    for point in read_metrics(store, run.id) if not store.read_only else store.records.read_points(series_of(run.id)):
        value = point.value if abs(point.value) < float("inf") else repr(point.value)
        points.setdefault(point.key, []).append((point.step, micros(point.at), value))
    run = store.records.get(Run, ref)  # folding may have brought it further
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
    """The objects that are there, with those that they refer to. What is named without being there is left out."""
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
    """How a file goes into the zip: packed, unless it packs so well that reading it again would be refused."""
    if isinstance(content, bytes):
        sample, most = content, _RECORD_RATIO // 2
    else:
        with content.open("rb") as start:
            sample, most = start.read(_CHUNK), _STORED_FROM
    info = zipfile.ZipInfo(name)
    packs_too_well = len(sample) > most * len(zlib.compress(sample, _LEVEL))
    info.compress_type = zipfile.ZIP_STORED if packs_too_well else zipfile.ZIP_DEFLATED
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
        raise _broken(f"its manifest is wrong: {error}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise StoreVersionError(
            f"The export has format {number}; this everloop knows formats up to {FORMAT}.",
            help="Upgrade everloop: pip install --upgrade everloop",
        )
    try:
        manifest = msgspec.convert(content, _Manifest)
    except msgspec.ValidationError as error:
        raise _broken(f"its manifest is wrong: {error}") from error
    for name, digest in manifest.members.items():
        if not _MEMBER.fullmatch(name) or (name.startswith("objects/") and name != f"objects/{digest}"):
            raise _broken(f"its manifest names '{name}'")
    return manifest


def _check(file: SafeZip, manifest: _Manifest) -> None:
    """Read everything once, so that a damaged file changes nothing."""
    for name, expected in manifest.members.items():
        if name not in file:
            raise _broken(f"'{name}' is missing")
        digest = hashlib.sha256()
        with file.open(name) as member:
            for chunk in _chunks(member):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise _broken(f"'{name}' differs from its digest")
        if name.startswith("runs/"):
            _decoded(_read(file, name), name)


def _read(file: SafeZip, name: str) -> bytes:
    """The manifest or one run, which is held in memory: so it may not unpack to much more than was sent."""
    if name not in file:
        raise _broken(f"'{name}' is missing")
    size = file.size(name)
    most = _MOST_RECORDS if file.trusted else max(_FREE_RECORDS, file.packed_size(name) * _RECORD_RATIO)
    if size > min(most, _MOST_RECORDS):
        raise CorruptionError(
            f"'{name}' in the file unpacks from {file.packed_size(name)} to {size} bytes.",
            help="If the file is your own and you trust it, allow more: --max-bytes BYTES",
        )
    return file.read(name)


def _decoded(content: bytes, name: str) -> _Body:
    try:
        body = msgspec.json.decode(content, type=_Body)
        decode(Run, body.run)
        for _ in _rows(body):
            pass
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _broken(f"'{name}' holds no run: {error}") from error
    return body


def _broken(why: str) -> CorruptionError:
    return CorruptionError(f"The file is no whole export of runs: {why}.", help="Export it again.")


def _put(store: Store, run: Run, body: _Body) -> bool:
    """Write one run and what belongs to it, all or nothing; False where it is here already."""
    along: list[Record] = [
        *(replace(decode(StepRun, text), project=store.project, revision=0) for text in body.steps),
        *(replace(decode(Artifact, text), project=store.project, revision=0) for text in body.artifacts),
    ]
    if any(getattr(record, "run", None) != run.id for record in along):
        raise _broken(f"the run {run.id} has parts of another")
    with store.records.transaction():
        if store.records.get_many(Run, [run.id]):
            return False
        store.records.put(run, *along, verb="imported")
        rows = _rows(body)
        while batch := list(islice(rows, _BATCH)):
            store.records.append_rows(series_of(run.id), batch)
    return True


def _rows(body: _Body) -> Iterator[tuple[str, int, int, float]]:
    """Metric, step, µs since 1970 and value of each point, read from the JSON as it was written: without spaces."""
    text = memoryview(body.points).toreadonly()
    at, end = 1, len(text) - 1
    if bytes(text[:1]) != b"{" or bytes(text[end:]) != b"}":
        raise _broken("its points are not as they were written")
    while at < end:
        key = _KEY.match(text, at)
        if key is None:
            raise _broken("its points are not as they were written")
        name = msgspec.json.decode(key[1], type=str)
        at = key.end()
        while (row := _ROW.match(text, at)) is not None:
            step, moment = int(row[1]), int(row[2])
            if not (-(1 << 63) <= step < 1 << 63 and -(1 << 56) < moment < 1 << 56):
                raise _broken(f"a point of '{name}' has a step or a time that nothing can hold")
            yield name, step, moment, _number(row[3])
            at = row.end()
            if bytes(text[at : at + 1]) == b",":
                at += 1
        if bytes(text[at : at + 1]) != b"]":
            raise _broken(f"the points of '{name}' are not as they were written")
        at += 2  # and the comma, or the end


def _number(text: bytes) -> float:
    if text == b"null":
        return float("nan")
    try:
        return float(text.strip(b'"'))
    except ValueError as error:
        raise _broken(f"a point has the value {text.decode('ascii', 'replace')}") from error
