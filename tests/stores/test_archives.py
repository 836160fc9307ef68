"""Untrusted archives unpack only within the limits, whatever they declare."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from everloop.errors import CorruptionError, EverloopError
from everloop.records import Run
from everloop.stores import Store, open_store
from everloop.stores.archives import (
    ArchiveLimits,
    SafeZip,
    UnpackBudget,
    is_safe_name,
    limits_for,
    open_zip,
    tar_members,
    zstd_or_plain,
)
from everloop.stores.backup import backup, restore
from everloop.tracking import read_metrics, start_run
from everloop.tracking.run_archive import export_runs, import_runs

MIB = 1 << 20
SMALL = ArchiveLimits(total_bytes=8 * MIB, free_bytes=MIB, entries=100)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "home")


def write_zip(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return path


def refused_zip(path: Path, limits: ArchiveLimits = SMALL) -> str:
    with pytest.raises(CorruptionError) as caught, open_zip(path, limits) as file:
        read_zip(file)
    return str(caught.value)


def read_zip(file: SafeZip) -> dict[str, bytes]:
    return {name: file.read(name) for name in file.names}


NAMES = [
    "../evil",
    "/evil",
    "a/../../evil",
    "a/./b",
    "./a",
    "a//b",
    "a\\b",
    "",
    ".",
    "..",
    "c:/x",
    "a/c:x",
    "a\nb",
    "a\x1b[2Kb",
    "\u202egpj.exe",
    "trailing ",
    "trailing.",
    "a/trailing./b",
    "/".join("a" * 40),
    "x" * 2000,
    "folder/",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_within_the_archive(name: str, tmp_path: Path) -> None:
    assert not is_safe_name(name) or len(name) > 32
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    stream.seek(0)
    with pytest.raises(CorruptionError):
        list(tar_members(stream, UnpackBudget(SMALL, 0, tmp_path / "x.tar")))
    refused_zip(write_zip(tmp_path / "x.zip", (name, b"x")))


def test_names_in_any_script_are_taken(tmp_path: Path) -> None:
    names = ["a", "a/b.txt", "größe/Ключ.json", "データ", "objects/" + "0" * 64, "x=1,y@2+3"]
    assert all(map(is_safe_name, names))
    with open_zip(write_zip(tmp_path / "x.zip", *((name, b"x") for name in names)), SMALL) as file:
        assert file.names == names


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = write_zip(tmp_path / "x.zip", ("a", b"1"), ("a", b"2"))
    assert "twice" in refused_zip(path)
    assert "twice" in refused_zip(write_zip(tmp_path / "y.zip", ("README", b"1"), ("readme", b"2")))
    assert "twice" in refused_zip(write_zip(tmp_path / "z.zip", ("caf\u00e9", b"1"), ("cafe\u0301", b"2")))


@pytest.mark.slow
def test_archives_that_are_too_large_are_refused_before_unpacking(tmp_path: Path) -> None:
    bomb = write_zip(tmp_path / "x.zip", ("a", bytes(64 * MIB)))
    assert bomb.stat().st_size < MIB
    tracemalloc.start()
    try:
        assert "--max-bytes" in refused_zip(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    many = write_zip(tmp_path / "many.zip", *((f"n{number}", bytes(MIB)) for number in range(60)))
    assert "unpacks to more than" in refused_zip(many)
    assert "more than 100 files" in refused_zip(write_zip(tmp_path / "f.zip", *((f"n{n}", b"") for n in range(101))))
    with open_zip(bomb, limits_for(SMALL, 64 * MIB)) as file:
        assert len(file.read("a")) == 64 * MIB


def test_a_zip_with_wrong_sizes_gives_no_more_than_it_declares(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", ("a", bytes(32 * MIB)))
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\1\2")
    struct.pack_into("<L", data, entry + 24, 100)  # unpacked size in the list of files
    path.write_bytes(data)
    assert "not a complete zip" in refused_zip(path)


def patched(path: Path, edit: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(bytes(data))
    return path


def test_files_that_share_bytes_are_refused(tmp_path: Path) -> None:
    def share(data: bytearray) -> None:
        first = data.find(b"PK\1\2")
        second = data.find(b"PK\1\2", first + 4)
        struct.pack_into("<L", data, second + 42, struct.unpack_from("<L", data, first + 42)[0])

    path = write_zip(tmp_path / "x.zip", ("a", b"x" * 1000), ("b", b"x" * 1000))
    assert "overlap" in refused_zip(patched(path, share))


def test_wrong_lists_of_files_are_refused(tmp_path: Path) -> None:
    def long_list(data: bytearray) -> None:
        struct.pack_into("<L", data, data.rfind(b"PK\5\6") + 12, 0xFFFFFFF0)

    def many(data: bytearray) -> None:
        struct.pack_into("<HH", data, data.rfind(b"PK\5\6") + 8, 0xFFF0, 0xFFF0)

    def encrypted(data: bytearray) -> None:
        data[data.find(b"PK\1\2") + 8] |= 1

    def method(data: bytearray) -> None:
        struct.pack_into("<H", data, data.find(b"PK\1\2") + 10, zipfile.ZIP_LZMA)

    def link(data: bytearray) -> None:
        struct.pack_into("<L", data, data.find(b"PK\1\2") + 38, 0o120777 << 16)

    for number, edit in enumerate((long_list, many, encrypted, method, link)):
        refused_zip(patched(write_zip(tmp_path / f"{number}.zip", ("a", b"x")), edit))


def test_a_long_list_of_files_is_not_read_into_memory(tmp_path: Path) -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0) + b"name"
    path = tmp_path / "x.zip"
    count = 200_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * len(entry), 0, 0)
    path.write_bytes(entry * count + end)
    tracemalloc.start()
    try:
        refused_zip(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_damaged_zips_are_refused(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "x.zip", ("a", b"x" * 1000), ("b/c", b"y" * 10)).read_bytes()
    for at in range(0, len(whole), 3):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            (tmp_path / "y.zip").write_bytes(data)
            with suppress(EverloopError), open_zip(tmp_path / "y.zip", SMALL) as file:
                assert sum(map(len, read_zip(file).values())) <= SMALL.total_bytes


# --- tar --------------------------------------------------------------------------------------------------------


def tar_bytes(
    *members: tuple[str, bytes], edit: Callable[[tarfile.TarInfo], None] | None = None, **options: object
) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if edit is not None:
                edit(info)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def read_tar(data: bytes, limits: ArchiveLimits = SMALL) -> dict[str, bytes]:
    budget = UnpackBudget(limits, len(data), Path("x.tar"))
    return {member.name: member.read() for member in tar_members(io.BytesIO(data), budget)}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_of_every_kind_are_read(format: int) -> None:
    def aged(info: tarfile.TarInfo) -> None:
        info.mtime = 1.5

    names = ["a", "b/c.txt", "x" * 90] + ([] if format == tarfile.USTAR_FORMAT else ["d/" * 5 + "é" * 150, "y" * 300])
    members = [(name, name.encode() * 7) for name in names]
    assert read_tar(tar_bytes(*members, edit=aged, format=format)) == dict(members)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    kinds = [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.XGLTYPE,
        tarfile.GNUTYPE_LONGLINK,
        b"Z",
    ]
    for kind in kinds:

        def typed(info: tarfile.TarInfo, kind: bytes = kind) -> None:
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0

        with pytest.raises(CorruptionError):
            read_tar(tar_bytes(("a", b""), edit=typed, format=tarfile.USTAR_FORMAT))


def header(name: str, size: int, kind: bytes = b"0", prefix: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_declared_sizes_are_checked_before_anything_is_read() -> None:
    class Endless:
        """A stream that fails if too much is read."""

        def __init__(self, start: bytes) -> None:
            self.start = io.BytesIO(start)
            self.given = 0

        def read(self, size: int) -> bytes:
            data = self.start.read(size) or bytes(size)
            self.given += len(data)
            return data

    for start in (
        header("a", 1 << 40),
        header("a", 1 << 62),
        header("a", 9 * MIB),
        header("x", 1 << 30, tarfile.XHDTYPE),
        header("x", 1 << 30, tarfile.GNUTYPE_LONGNAME),
        header("x", 20, tarfile.XHDTYPE) + b"20 size=99999999999\n".ljust(512, b"\0") + header("a", 1),
        header("x", 20, tarfile.XHDTYPE) + b"20 size=-9999999999\n".ljust(512, b"\0") + header("a", 1),
        header("x", 23, tarfile.XHDTYPE) + b"23 GNU.sparse.major=1\n\n".ljust(512, b"\0") + header("a", 1),
        header("x", 20, tarfile.XHDTYPE) + b"99999 path=../evil\n\n".ljust(512, b"\0") + header("a", 1),
        header("x", 20, tarfile.XHDTYPE) + b"0 path=xxxxxxxxxxxx\n".ljust(512, b"\0") + header("a", 1),
    ):
        stream = Endless(start)
        with pytest.raises(CorruptionError):
            list(tar_members(stream, UnpackBudget(SMALL, 0, Path("x.tar"))))
        assert stream.given <= len(start) + 512


def test_bytes_are_counted_even_if_no_size_is_declared() -> None:
    data = tar_bytes(*((f"n{number}", bytes(MIB // 2)) for number in range(30)))
    with pytest.raises(CorruptionError, match="unpacks to more than"):
        read_tar(data, ArchiveLimits(total_bytes=4 * MIB, ratio=None))
    with pytest.raises(CorruptionError, match="more than 10 files"):
        read_tar(tar_bytes(*((f"n{number}", b"") for number in range(20))), ArchiveLimits(total_bytes=MIB, entries=10))


def test_truncated_and_damaged_tars_are_refused() -> None:
    whole = tar_bytes(("a", b"x" * 1000), ("b", b"y" * 600), format=tarfile.PAX_FORMAT)
    for at in range(0, 4096, 7):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            with suppress(EverloopError):
                read_tar(data)


def test_a_compressed_bomb_is_stopped_while_it_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.zst"
    with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as out:
        out.write(header("a", 1 << 30))
        for _ in range(64):
            out.write(bytes(MIB))
    assert path.stat().st_size < MIB
    with zstd_or_plain(path) as stream, pytest.raises(CorruptionError, match="unpacks to more than"):
        list(tar_members(stream, UnpackBudget(SMALL, path.stat().st_size, path)))


# --- functions that read archives -----------------------------------------------------------------------------------


def export_of(tmp_path: Path, members: dict[str, bytes], name: str = "evil.zip") -> Path:
    digests = {key: hashlib.sha256(data).hexdigest() for key, data in members.items()}
    manifest = {"format": 1, "created_at": "2026-01-01T00:00:00+00:00", "project": "default", "members": digests}
    return write_zip(tmp_path / name, *members.items(), ("manifest.json", json.dumps(manifest).encode()))


def body_of(store: Store, points: bytes = b"{}", run: str | None = None) -> bytes:
    from everloop.stores.records.record_codec import encode

    record = store.new(Run, name="evil", started_at=store.now(), state="finished")
    text = json.dumps(encode(record) if run is None else run).encode()
    return b'{"run":%s,"steps":[],"artifacts":[],"points":%s}' % (text, points)


@pytest.mark.slow
def test_an_import_of_runs_that_unpacks_to_a_gigabyte_changes_nothing(store: Store, tmp_path: Path) -> None:
    zeros = bytes(80 * MIB)
    object_bomb = {f"objects/{hashlib.sha256(zeros).hexdigest()}": zeros}
    points = b'{"m":[' + b",".join([b"[0,0,1.0]"] * (2 * MIB)) + b"]}"
    run_bomb = {"runs/0.json": body_of(store, points)}
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name, members in (("objects.zip", object_bomb), ("runs.zip", run_bomb)):
        path = export_of(tmp_path, members, name)
        assert path.stat().st_size < MIB
        tracemalloc.start()
        try:
            with pytest.raises(CorruptionError, match="unpacks"):
                import_runs(store, path)
            assert tracemalloc.get_traced_memory()[1] < 30 * MIB
        finally:
            tracemalloc.stop()
        path.unlink()
    assert store.records.find(Run) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "points",
    [
        b'{"m":[[0,0,1.0],[1,0]]}',
        b'{"m":[[0,0,{"a":1}]]}',
        b'{"m":[[0,0,[[[[1]]]]]]}',
        b'{"m":[[99999999999999999999,0,1]]}',
        b'{"m":[[0,99999999999999999999,1]]}',
        b'{"m":[[0,0,"x"]]}',
        b'{"m":5}',
        b"[]",
        b'{"m":[[0, 0, 1]]}',
        b'{"m":[[0,0,1.0],]]}',
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_invalid_points_change_nothing(points: bytes, store: Store, tmp_path: Path) -> None:
    good = body_of(store)
    path = export_of(tmp_path, {"runs/0.json": good, "runs/1.json": body_of(store, points)})
    with pytest.raises(CorruptionError):
        import_runs(store, path)
    assert store.records.find(Run) == []


def test_deep_and_damaged_records_are_refused(store: Store, tmp_path: Path) -> None:
    deep = '{"params":{"a":' + "[" * 200_000 + "]" * 200_000 + "}}"
    for number, run in enumerate((deep, "[]", "{}", '"x"', "null")):
        path = export_of(tmp_path, {"runs/0.json": body_of(store, run=run)}, f"{number}.zip")
        with pytest.raises(CorruptionError):
            import_runs(store, path)
    assert store.records.find(Run) == []


@pytest.mark.slow
def test_own_exports_are_within_the_limits(store: Store, tmp_path: Path) -> None:
    with start_run("train", store=store) as run:
        run.log_artifact("zeros", bytes(100 * MIB))
        for step in range(5):
            run.log({"nan": float("nan"), "inf": float("inf"), "low": float("-inf"), 'q"]\\,[': 1e-300}, step=step)
            run.log({f"m{n}": 0.0 for n in range(300)}, step=step)
    path = export_runs(store, None, tmp_path / "runs.zip").path
    with open_store(tmp_path / "there") as there:
        assert import_runs(there, path).added == (run.id,)
        told, kept = read_metrics(there, run.id), read_metrics(store, run.id)
        assert [(p.key, p.step, p.at, repr(p.value)) for p in told] == [
            (p.key, p.step, p.at, repr(p.value)) for p in kept
        ]
        assert len(told) == 5 * 304


@pytest.mark.slow
def test_a_backup_that_is_too_large_leaves_no_files(store: Store, tmp_path: Path) -> None:
    head = json.dumps({"format": 1}).encode()
    data = tar_bytes(("everloop-backup.json", head), ("objects/x", bytes(80 * MIB)))
    path = tmp_path / "b.tar.zst"
    path.write_bytes(pa.compress(data, codec="zstd", asbytes=True))
    with pytest.raises(CorruptionError, match="The backup is refused") as caught:
        restore(path, tmp_path / "again")
    assert "--max-bytes" in (caught.value.help or "")
    assert not (tmp_path / "again").exists()
    assert [found.name for found in tmp_path.iterdir() if found.name.startswith(".everloop-restore")] == []
    # The user can raise the limit for a backup that compresses this well.
    store.objects.add(bytes(80 * MIB))
    ours = backup(store, tmp_path / "ours.tar.zst")
    with pytest.raises(CorruptionError):
        restore(ours, tmp_path / "again")
    assert restore(ours, tmp_path / "again", max_bytes=1 << 30) == tmp_path / "again"


def test_tables_whose_names_differ_in_case_are_restored(store: Store, tmp_path: Path) -> None:
    import polars as pl

    for name in ("sales", "Sales"):
        store.tables.append(name, pl.DataFrame({"event_at": [store.now()], "x": [1]}))
    with open_store(restore(backup(store, tmp_path / "b.tar.zst"), tmp_path / "again")) as again:
        assert all(again.tables.scan(name).collect().height == 1 for name in ("sales", "Sales"))


def test_a_manifest_that_is_too_deep_is_refused(store: Store, tmp_path: Path) -> None:
    for content in (b"[" * 200_000, b"{}", b"null", b'{"format":1}', b"\xff", zlib.compress(b"x")):
        with pytest.raises(CorruptionError):
            import_runs(store, write_zip(tmp_path / "x.zip", ("manifest.json", content)))
    assert msgspec.json.decode(b"{}") == {}


def test_unreadable_names_and_offsets_are_refused(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", ("\u00e9.txt", b"x")).read_bytes()
    end, name = whole.rfind(b"PK\5\6"), "\u00e9".encode()
    path = tmp_path / "other.zip"
    for data in (
        whole.replace(name, b"\xff\xfe"),
        whole.replace(name, b"\xff\xfe", 1),
        *(
            whole[:end] + struct.pack("<4sLQL", b"PK\6\7", 0, place, 1) + whole[end:]
            for place in (2**63 - 1, 2**64 - 1)
        ),
    ):
        path.write_bytes(data)
        refused_zip(path)


def test_names_of_code_page_437_do_not_look_like_an_overlap(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "old.zip", ("e.txt", b"x"), ("f.txt", b"y"))
    path.write_bytes(path.read_bytes().replace(b"e.txt", b"\x82.txt"))
    with open_zip(path, SMALL) as file:
        assert read_zip(file) == {"\u00e9.txt": b"x", "f.txt": b"y"}
