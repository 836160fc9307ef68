"""The byte stores, each against the conformance suite."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from everloop.stores import ByteStore, LocalBytes, ObstoreBytes, open_bytes
from everloop.testing.stores import ByteStoreSuite

if TYPE_CHECKING:
    from pathlib import Path


class TestLocalBytes(ByteStoreSuite):
    @pytest.fixture
    def byte_store(self, tmp_path: Path) -> ByteStore:
        return LocalBytes(tmp_path / "objects")


class TestObstoreFolder(ByteStoreSuite):
    @pytest.fixture
    def byte_store(self, tmp_path: Path) -> ByteStore:
        return ObstoreBytes(tmp_path / "objects")


class TestObstoreMemory(ByteStoreSuite):
    @pytest.fixture
    def byte_store(self) -> ByteStore:
        return ObstoreBytes("memory://")


def test_folders_and_urls_open_the_right_store(tmp_path: Path) -> None:
    assert isinstance(open_bytes(tmp_path), LocalBytes)
    assert isinstance(open_bytes(str(tmp_path)), LocalBytes)
    assert isinstance(open_bytes("memory://"), ObstoreBytes)
    by_url = open_bytes(f"file://{tmp_path}/with%20space")
    assert isinstance(by_url, LocalBytes)
    assert by_url.folder == tmp_path / "with space"


def test_both_backends_for_a_folder_read_the_same(tmp_path: Path) -> None:
    LocalBytes(tmp_path).put("a/b", b"x")
    assert ObstoreBytes(tmp_path).get("a/b") == b"x"
    ObstoreBytes(tmp_path).put("a/c", b"y")
    assert list(LocalBytes(tmp_path).list()) == list(ObstoreBytes(tmp_path).list()) == [("a/b", 1), ("a/c", 1)]


class TestFolderWithoutLinks(ByteStoreSuite):
    """A file system without hard links, like some shared and removable ones."""

    @pytest.fixture
    def byte_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ByteStore:
        def refuse(source: str, target: str) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
        return LocalBytes(tmp_path / "objects")

    def test_of_simultaneous_puts_to_one_key_one_writes(self, byte_store: ByteStore) -> None:
        # Without hard links, `put` may return True for several writers. The bytes are those of one of them.
        with ThreadPoolExecutor(8) as pool:
            wrote = list(pool.map(lambda number: byte_store.put("k", bytes([number]) * 1000), range(8)))
        data = byte_store.get("k")
        assert wrote[data[0]]
        assert data == data[:1] * 1000


def test_a_finished_file_is_taken_in_without_a_copy(tmp_path: Path) -> None:
    store = LocalBytes(tmp_path / "objects")
    store.put("other", b"x")
    file = tmp_path / "objects" / "finished"
    file.write_bytes(b"data")
    inode = file.stat().st_ino
    assert store.adopt("k", file) is True
    assert store.path("k").stat().st_ino == inode
    assert store.get("k") == b"data"
    file.unlink(missing_ok=True)
    file.write_bytes(b"other")
    assert store.adopt("k", file) is False
    assert store.get("k") == b"data"


def test_a_key_that_is_put_during_a_delete_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the key is put between the check of its time and the rename, the file is moved back."""
    store = LocalBytes(tmp_path)
    store.put("k", b"x")
    os.utime(store.path("k"), (1, 1))
    rename = os.rename

    def put_first(source: str, target: str) -> None:
        assert store.put("k", b"x") is False
        rename(source, target)

    monkeypatch.setattr(os, "rename", put_first)
    assert store.delete("k", unless_since=datetime(2000, 1, 1, tzinfo=UTC)) is False
    assert store.get("k") == b"x"
    assert list(store.drafts()) == []
