from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.errors import (
    CorruptionError,
    EverloopError,
    NotFoundError,
    ReadOnlyError,
    StoreVersionError,
    UsageError,
)
from everloop.stores import ContentStore, LocalBytes, ObstoreBytes, TreeEntry
from everloop.stores.objects.manifests import SMALL_BYTES, decode_tree, encode_tree, safe_path


@pytest.fixture(params=["local", "memory"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> ContentStore:
    if request.param == "local":
        return ContentStore(tmp_path / "objects")
    return ContentStore(ObstoreBytes("memory://"), cache=tmp_path / "cache")


@pytest.fixture
def local(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "objects")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def damage(content: ContentStore, digest: str, data: bytes) -> None:
    content.bytes_store.put(f"sha256/{digest[7:9]}/{digest[9:]}", data, if_absent=False)


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_bytes_are_addressed_by_content(content: ContentStore) -> None:
    digest = content.add(b"hello")
    assert digest == digest_of(b"hello")
    assert content.add(b"hello") == digest
    assert content.read(digest) == b"hello"
    assert content.has(digest)
    assert content.size(digest) == 5
    assert list(content.digests()) == [(digest, 5)]
    assert content.written_at(digest) is not None


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES - 1, SMALL_BYTES, 3_000_001])
def test_files_are_addressed_by_content(content: ContentStore, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    digest = content.add_file(source)
    assert digest == digest_of(data)
    assert content.add_file(str(source)) == digest
    assert content.read(digest) == data
    content.prove(digest)
    assert content.fetch(digest, tmp_path / "deep" / "copy").read_bytes() == data
    assert content.path(digest).read_bytes() == data
    assert source.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_objects_have_the_documented_path_and_are_read_only(local: ContentStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    digest = local.add_file(source)
    path = tmp_path / "objects" / "sha256" / digest[7:9] / digest[9:]
    assert local.path(digest) == path
    assert path.stat().st_mode & 0o777 == 0o400
    assert source.stat().st_mode & 0o200
    source.write_bytes(b"changed")
    assert local.read(digest) == b"x" * 100_000


def test_what_is_not_there(content: ContentStore, tmp_path: Path) -> None:
    missing = digest_of(b"nothing")
    assert not content.has(missing)
    assert content.written_at(missing) is None
    for use in (
        lambda: content.read(missing),
        lambda: content.path(missing),
        lambda: content.prove(missing),
        lambda: content.tree(missing),
        lambda: content.fetch(missing, tmp_path / "copy"),
    ):
        with pytest.raises(NotFoundError, match=missing):
            use()
    assert not (tmp_path / "copy").exists()
    for absent in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError):
            content.add_file(absent)
    with pytest.raises(NotFoundError):
        content.add_tree(tmp_path / "none")
    assert list(content.digests()) == []


@pytest.mark.parametrize("digest", ["", "sha256:", "md5:" + "0" * 64, "sha256:" + "g" * 64, "sha256:../../etc/passwd"])
def test_malformed_digests_are_refused(content: ContentStore, digest: str) -> None:
    with pytest.raises(UsageError, match="not a digest"):
        content.read(digest)


def test_every_read_detects_a_flipped_bit(content: ContentStore, tmp_path: Path) -> None:
    data = bytes(200_000)
    digest = content.add(data)
    damage(content, digest, data[:-1] + b"\x01")
    for use in (
        lambda: content.read(digest),
        lambda: content.prove(digest),
        lambda: content.path(digest),
        lambda: content.fetch(digest, tmp_path / "copy"),
    ):
        with pytest.raises(CorruptionError, match=digest):
            use()
    assert not (tmp_path / "copy").exists()


def test_a_path_is_verified_again_when_its_file_changes(local: ContentStore) -> None:
    digest = local.add(b"hello")
    local.path(digest)
    damage(local, digest, b"jello")
    with pytest.raises(CorruptionError):
        local.path(digest)


def test_adding_repairs_a_file_without_its_bytes(content: ContentStore, tmp_path: Path) -> None:
    digest = content.add(b"hello")
    damage(content, digest, b"")
    assert content.add(b"hello") == digest
    assert content.read(digest) == b"hello"
    source = tmp_path / "large"
    source.write_bytes(b"x" * 100_000)
    digest = content.add_file(source)
    damage(content, digest, b"xx")
    content.add_file(source)
    assert content.size(digest) == 100_000
    content.prove(digest)


def test_a_read_only_view_adds_nothing(content: ContentStore, tmp_path: Path) -> None:
    digest = content.add(b"hello")
    (tmp_path / "f").write_bytes(b"x")
    view = content.read_only()
    assert view.read(digest) == b"hello"
    for use in (
        lambda: view.add(b"x"),
        lambda: view.add_file(tmp_path / "f"),
        lambda: view.add_tree(tmp_path),
        lambda: view.remove(digest),
    ):
        with pytest.raises(ReadOnlyError):
            use()


def test_a_folder_is_restored_unchanged(content: ContentStore, tmp_path: Path) -> None:
    files = {
        "model.txt": b"m" * 1000,
        "deep/er/é.json": b"{}",
        "big.bin": os.urandom(SMALL_BYTES * 3),
        "edge.bin": os.urandom(SMALL_BYTES),
        "empty": b"",
        "copy.txt": b"m" * 1000,
    }
    source = make_folder(tmp_path / "source", files)
    (source / "model.txt").chmod(0o755)
    digest = content.add_tree(source)
    entries = content.tree(digest)
    assert [entry.path for entry in entries] == sorted(files)
    assert {entry.path: content.read_entry(entry) for entry in entries} == files
    assert all(entry.digest == digest_of(files[entry.path]) for entry in entries)
    assert {entry.path for entry in entries if entry.pack is None} == {"big.bin", "edge.bin"}
    assert len({entry.pack for entry in entries if entry.pack}) == 1
    target = content.restore_tree(digest, tmp_path / "deep" / "target")
    restored = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in restored.items()} == files
    assert {name for name, path in restored.items() if path.stat().st_mode & 0o100} == {"model.txt"}
    assert content.add_tree(target) == digest
    assert content.is_tree(digest)
    assert content.references(digest) == {entry.holder for entry in entries}


def test_the_same_folder_is_the_same_tree_and_another_is_not(content: ContentStore, tmp_path: Path) -> None:
    one = make_folder(tmp_path / "one", {"a": b"1", "b/c": b"2"})
    two = make_folder(tmp_path / "two", {"b/c": b"2", "a": b"1"})
    os.utime(two / "a", (1, 1))
    digest = content.add_tree(one)
    assert content.add_tree(two) == digest
    (two / "a").rename(two / "A")
    assert content.add_tree(two) != digest
    assert content.add_tree(make_folder(tmp_path / "none", {})) == content.add_tree(make_folder(tmp_path / "nil", {}))


def test_ignored_files_are_left_out(content: ContentStore, tmp_path: Path) -> None:
    files = {"a.py": b"", "a.pyc": b"", "__pycache__/a.pyc": b"", "data/x.csv": b"", "data/y.csv": b"", "x.csv": b""}
    source = make_folder(tmp_path / "source", files)
    digest = content.add_tree(source, ignore=("*.pyc", "__pycache__", "data/x.*"))
    assert [entry.path for entry in content.tree(digest)] == ["a.py", "data/y.csv", "x.csv"]


def test_many_small_files_are_few_objects(content: ContentStore, tmp_path: Path) -> None:
    files = {f"f{number:04}": os.urandom(40_000) for number in range(500)}
    digest = content.add_tree(make_folder(tmp_path / "source", files))
    assert len(list(content.digests())) == 4
    content.restore_tree(digest, tmp_path / "target")
    assert all((tmp_path / "target" / name).read_bytes() == data for name, data in files.items())


def test_unsupported_entries_are_refused(content: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for number, make in enumerate(
        (
            lambda path: path.symlink_to(tmp_path / "target"),
            lambda path: path.symlink_to("nowhere"),
            lambda path: os.mkfifo(path),
            lambda path: path.with_name("back\\slash").write_bytes(b""),
            lambda path: Path(os.fsdecode(os.fsencode(path.parent) + b"/\xff")).write_bytes(b""),
        )
    ):
        source = make_folder(tmp_path / f"source{number}", {"fine": b""})
        make(source / "odd")
        with pytest.raises(UsageError):
            content.add_tree(source)


def test_a_folder_that_is_not_empty_is_not_written_to(content: ContentStore, tmp_path: Path) -> None:
    digest = content.add_tree(make_folder(tmp_path / "source", {"a": b"1"}))
    with pytest.raises(UsageError, match="not empty"):
        content.restore_tree(digest, make_folder(tmp_path / "taken", {"b": b"2"}))
    with pytest.raises(UsageError, match="not empty"):
        content.restore_tree(digest, tmp_path / "taken" / "b")
    (tmp_path / "empty").mkdir()
    assert (content.restore_tree(digest, tmp_path / "empty") / "a").read_bytes() == b"1"


def test_a_tree_with_damage_is_not_restored(content: ContentStore, tmp_path: Path) -> None:
    digest = content.add_tree(make_folder(tmp_path / "source", {"a": b"1111", "b": b"2222"}))
    (entry, _) = content.tree(digest)
    damage(content, entry.holder, b"11112223")
    with pytest.raises(CorruptionError):
        content.restore_tree(digest, tmp_path / "target")
    content.remove(entry.holder)
    with pytest.raises(NotFoundError):
        content.restore_tree(digest, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a/../../b", "", ".", "a//b", "a/./b", "a/", "..", "a\0b", "a\\..\\b"]
)
def test_trees_with_unsafe_paths_are_refused(content: ContentStore, tmp_path: Path, path: str) -> None:
    assert not safe_path(path)
    data = content.add(b"evil")
    manifest = encode_tree([TreeEntry(path=path, mode=0o644, size_bytes=4, digest=data)])
    with pytest.raises(CorruptionError, match="invalid entries"):
        content.restore_tree(content.add(manifest), tmp_path / "inside" / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) in (["inside", "objects"], ["inside"], ["objects"], [])


def test_other_invalid_trees_are_refused(content: ContentStore) -> None:
    entry = TreeEntry(path="a", mode=0o644, size_bytes=1, digest=digest_of(b"x"))
    with pytest.raises(UsageError, match="not a tree"):
        content.tree(content.add(b"hello"))
    newer = encode_tree([entry]).replace(b'"version":1', b'"version":2')
    with pytest.raises(StoreVersionError, match="format 2"):
        content.tree(content.add(newer))
    for wrong in (
        encode_tree([entry, entry]),
        encode_tree([entry]).replace(b'"mode":420', b'"mode":2541'),
        encode_tree([entry]).replace(b'"size_bytes":1', b'"size_bytes":-1'),
        encode_tree([entry]).replace(b"sha256:", b"sha255:"),
        encode_tree([entry]).replace(b'"path"', b'"bath"'),
        encode_tree([entry])[:-3],
    ):
        with pytest.raises(CorruptionError):
            content.tree(content.add(wrong))


names = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=5)
safe_paths = st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)
entries_of_trees = st.lists(
    st.builds(
        TreeEntry,
        path=safe_paths,
        mode=st.sampled_from([0o644, 0o755]),
        size_bytes=st.integers(0, 2**40),
        digest=st.binary().map(digest_of),
        pack=st.none() | st.binary().map(digest_of),
    ),
    unique_by=lambda entry: entry.path,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
@given(entries_of_trees)
def test_manifests_are_sorted_by_path(entries: list[TreeEntry]) -> None:
    data = encode_tree(entries)
    assert decode_tree(data, "d") == sorted(entries, key=lambda entry: entry.path)
    assert encode_tree(entries[::-1]) == data


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_damage_to_a_manifest_causes_only_errors(data: st.DataObject) -> None:
    manifest = bytearray(encode_tree([TreeEntry(path="a", mode=0o644, size_bytes=1, digest=digest_of(b"x"))]))
    manifest[data.draw(st.integers(0, len(manifest) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        entries = decode_tree(bytes(manifest), "d")
    except EverloopError:
        return
    assert all(safe_path(entry.path) for entry in entries)


def test_references_of_other_manifests(content: ContentStore) -> None:
    digests = sorted(digest_of(bytes([number])) for number in range(3))
    listing = content.add(json.dumps({"files": digests, "pad": "x" * (9 << 20), "last": digests[0]}).encode())
    assert content.references(listing) == set(digests)
    assert content.references(content.add(b"\n " + json.dumps(digests).encode())) == set(digests)
    assert content.references(content.add(digests[0].encode())) == set()
    assert content.references(content.add(b"")) == set()


def test_references_across_the_portions_of_a_read(local: ContentStore) -> None:
    digest = digest_of(b"x")
    for lead in (8 << 20) - 80, (8 << 20) - 10, (8 << 20) - 71, (8 << 20) - 1:
        assert local.references(local.add(b"[" + b" " * (lead - 1) + digest.encode() + b"]")) == {digest}


def test_a_store_over_a_url(tmp_path: Path) -> None:
    content = ContentStore(f"file://{tmp_path}/objects")
    assert isinstance(content.bytes_store, LocalBytes)
    assert ContentStore(tmp_path / "objects").read(content.add(b"x")) == b"x"


def test_a_remote_path_without_a_cache_is_a_copy(tmp_path: Path) -> None:
    content = ContentStore("memory://")
    digest = content.add(b"x")
    path = content.path(digest)
    assert path.read_bytes() == b"x"
    assert content.path(digest) == path
