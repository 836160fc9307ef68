from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.errors import CorruptionError, InsufficientStorageError, NotFoundError, StoreVersionError, UsageError
from everloop.stores import Journal, read_journal, writer_alive
from everloop.stores.journals import HEADER, list_journals, stream_of

if TYPE_CHECKING:
    from pathlib import Path


def payloads(path: Path, offset: int = 0) -> list[bytes]:
    return [payload for payload, _ in read_journal(path, offset)]


def written(folder: Path, *frames: bytes) -> Path:
    with Journal.create(folder, "s") as journal:
        for frame in frames:
            journal.append(frame)
        return journal.path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(frames=st.lists(st.binary(max_size=200), max_size=8))
def test_what_is_appended_is_read_from_any_offset(tmp_path: Path, frames: list[bytes]) -> None:
    with Journal.create(tmp_path, "s") as journal:
        offsets = [journal.append(frame) for frame in frames]
        assert list(read_journal(journal.path)) == list(zip(frames, offsets, strict=True))
        for number, offset in enumerate(offsets):
            assert payloads(journal.path, offset) == frames[number + 1 :]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(frames=st.lists(st.binary(max_size=40), min_size=1, max_size=5), data=st.data())
def test_a_torn_tail_hides_its_own_frame_only(tmp_path: Path, frames: list[bytes], data: st.DataObject) -> None:
    path = written(tmp_path, *frames)
    whole = path.read_bytes()
    ends = [0, *(offset for _, offset in read_journal(path))]
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    assert payloads(path) == [frame for frame, end in zip(frames, ends[1:], strict=True) if end <= cut]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(frames=st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=5), data=st.data())
def test_a_flipped_bit_never_yields_a_wrong_frame(tmp_path: Path, frames: list[bytes], data: st.DataObject) -> None:
    path = written(tmp_path, *frames)
    whole = bytearray(path.read_bytes())
    ends = [len(HEADER), *(offset for _, offset in read_journal(path))]
    at = data.draw(st.integers(len(HEADER), len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    damaged = next(number for number, end in enumerate(ends[1:]) if at < end)
    read: list[bytes] = []
    if damaged == len(frames) - 1:
        # A damaged last frame looks the same as an incomplete one.
        assert payloads(path) == frames[:-1]
        return
    with pytest.raises(CorruptionError, match=f"byte {ends[damaged]}"):
        read.extend(payload for payload, _ in read_journal(path))
    assert read == frames[:damaged]


def test_large_frames_cross_the_readers_portions(tmp_path: Path) -> None:
    frames = [bytes([number]) * size for number, size in enumerate((3_000_000, 1, 1 << 20, (1 << 20) - 8, 0, 5))]
    assert payloads(written(tmp_path, *frames)) == frames


def test_a_tail_of_zeros_is_torn(tmp_path: Path) -> None:
    path = written(tmp_path, b"one")
    with path.open("ab") as file:
        file.write(b"\0" * 5000)
    assert payloads(path) == [b"one"]


def test_a_header_that_is_incomplete_invalid_or_newer(tmp_path: Path) -> None:
    path = tmp_path / "s.1.journal"
    for torn in (b"", HEADER[:3], HEADER):
        path.write_bytes(torn)
        assert payloads(path) == []
    path.write_bytes(b"something else entirely")
    with pytest.raises(CorruptionError, match="not a journal"):
        payloads(path)
    path.write_bytes(struct.pack("<4sHH", b"EVJL", 2, 0))
    with pytest.raises(StoreVersionError, match="format 2"):
        payloads(path)
    for bit in range(8 * len(HEADER)):
        data = bytearray(HEADER)
        data[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(bytes(data))
        with pytest.raises((CorruptionError, StoreVersionError)):
            payloads(path)
    with pytest.raises(NotFoundError):
        payloads(tmp_path / "none.journal")


def test_a_reader_follows_a_living_writer(tmp_path: Path) -> None:
    with Journal.create(tmp_path, "s") as journal:
        assert payloads(journal.path) == []
        journal.append(b"a")
        ((payload, offset),) = read_journal(journal.path)
        assert payload == b"a"
        assert payloads(journal.path, offset) == []
        journal.append(b"b")
        assert payloads(journal.path, offset) == [b"b"]
        assert payloads(journal.path, offset + 10_000) == []


def test_a_journal_shows_whether_its_writer_lives(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, "s")
    assert writer_alive(journal.path)
    journal.close()
    journal.close()
    assert not writer_alive(journal.path)
    assert not writer_alive(tmp_path / "none.journal")
    with pytest.raises(UsageError, match="closed"):
        journal.append(b"x")


def test_streams_and_names(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "new" / "folder", "run-1.x") as one, Journal.create(one.folder, "run-2") as two:
        assert stream_of(one.path) == "run-1.x"
        assert list_journals(one.folder) == sorted([one.path, two.path])
        assert list_journals(one.folder, "run-2") == [two.path]
    assert list_journals(tmp_path / "none") == []
    for name in ("", "a/b", "..", ".hidden", "a b", "a\0", "x" * 200):
        with pytest.raises(UsageError, match="not a valid name"):
            Journal.create(tmp_path, name)


def test_threads_may_share_a_journal(tmp_path: Path) -> None:
    with Journal.create(tmp_path, "s") as journal:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: [journal.append(b"%d" % number) for _ in range(200)], range(4)))
        assert sorted(payloads(journal.path)) == sorted(b"%d" % number for number in range(4) for _ in range(200))


def test_a_forked_child_writes_to_a_file_of_its_own(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, "s")
    journal.append(b"parent")
    child = os.fork()
    if child == 0:
        journal.append(b"child")
        os._exit(0)
    os.waitpid(child, 0)
    journal.append(b"parent again")
    assert payloads(journal.path) == [b"parent", b"parent again"]
    (other,) = set(list_journals(tmp_path)) - {journal.path}
    assert payloads(other) == [b"child"]
    assert not writer_alive(other)
    journal.close()


def test_a_living_child_does_not_keep_its_dead_parents_journal_alive(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, "s")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    journal.close()
    # The child closes its copy as soon as it runs, before it waits.
    deadline = time.monotonic() + 10
    while writer_alive(journal.path) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not writer_alive(journal.path)
    os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)


def test_what_was_appended_survives_the_kill(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from everloop.stores import Journal\n"
        "journal = Journal.create(sys.argv[1], 's')\n"
        "number = 0\n"
        "while True:\n"
        "    journal.append(b'%d' % number)\n"
        "    number += 1\n"
        "    if number % 100 == 0:\n"
        "        sys.stdout.write(f'{number}\\n')\n"
        "        sys.stdout.flush()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            told = int(writer.stdout.readline())
        (path,) = list_journals(tmp_path)
        assert writer_alive(path)
        writer.kill()
        writer.wait()
    frames = payloads(path)
    assert len(frames) >= told
    assert frames == [b"%d" % number for number in range(len(frames))]
    assert not writer_alive(path)


def test_a_full_device_leaves_no_half_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.create(tmp_path, "s")
    journal.append(b"one")
    write = os.write

    def short(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:5])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for failing in (short, full):
        monkeypatch.setattr(os, "write", failing)
        with pytest.raises(InsufficientStorageError):
            journal.append(b"lost")
        monkeypatch.undo()
        journal.append(failing.__name__.encode())
    assert payloads(journal.path) == [b"one", b"short", b"full"]
    journal.close()
