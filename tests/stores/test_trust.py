from __future__ import annotations

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from everloop.errors import StoreError, TrustError, UsageError
from everloop.stores.trust import Keyring, check, keys_folder, sign

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
OTHER = f"sha256:{hashlib.sha256(b'y').hexdigest()}"


def test_a_machine_trusts_what_it_signed() -> None:
    signature = sign(DIGEST)
    check(DIGEST, signature)
    assert set(signature) == {"key", "signature"}
    assert sign(DIGEST) == signature


def test_the_key_is_private() -> None:
    sign(DIGEST)
    assert (keys_folder() / "machine.key").stat().st_mode & 0o777 == 0o600
    assert keys_folder().stat().st_mode & 0o777 == 0o700
    assert [path.name for path in keys_folder().iterdir()] == ["machine.key"]


def test_the_folder_is_the_users_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EVERLOOP_KEYS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys_folder() == tmp_path / ".config" / "everloop" / "keys"


def test_unsigned_digests_are_refused(tmp_path: Path) -> None:
    signature = sign(DIGEST)
    for missing in (None, {}, {"key": signature["key"]}, {"signature": signature["signature"]}):
        with pytest.raises(TrustError, match="is unsigned"):
            check(DIGEST, missing)


def test_a_signature_of_other_bytes_or_a_changed_one() -> None:
    signature = sign(DIGEST)
    raw = bytearray(base64.b64decode(signature["signature"]))
    raw[0] ^= 1
    for digest, changed in (
        (OTHER, signature["signature"]),
        (DIGEST, base64.b64encode(raw).decode()),
        (DIGEST, "!!!"),
        (DIGEST, "AAAA"),
        (DIGEST, "é"),
    ):
        with pytest.raises(TrustError, match="everloop trust"):
            check(digest, {"key": signature["key"], "signature": changed})


def test_a_key_of_another_machine_is_trusted_once_it_is_added(tmp_path: Path) -> None:
    theirs, ours = Keyring(tmp_path / "theirs"), Keyring(tmp_path / "ours")
    signature = theirs.sign(DIGEST)
    with pytest.raises(TrustError, match=signature["key"]) as caught:
        ours.check(DIGEST, signature)
    assert "everloop trust" in str(caught.value)
    assert ours.trust(theirs.public_key() + " ann@desk", "ann-desk") == signature["key"]
    ours.check(DIGEST, signature)
    assert signature["key"] in ours.trusted()
    (tmp_path / "ours" / "trusted" / "ann-desk.pub").unlink()
    with pytest.raises(TrustError):
        ours.check(DIGEST, signature)


def test_checking_creates_no_key(tmp_path: Path) -> None:
    with pytest.raises(TrustError):
        Keyring(tmp_path / "ours").check(DIGEST, Keyring(tmp_path / "theirs").sign(DIGEST))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(("public", "name"), [("x", "fine"), ("", "fine"), ("AAAA", "fine"), (None, "../evil")])
def test_invalid_keys_are_not_trusted(tmp_path: Path, public: str | None, name: str) -> None:
    ring = Keyring(tmp_path / "ours")
    with pytest.raises(UsageError):
        ring.trust(public if public is not None else ring.public_key(), name)


def test_damaged_keys_are_reported(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    signature = ring.sign(DIGEST)
    (tmp_path / "keys" / "trusted").mkdir()
    (tmp_path / "keys" / "trusted" / "bad.pub").write_text("nonsense\n")
    with pytest.raises(TrustError, match=r"bad\.pub"):
        ring.check(DIGEST, signature)
    (tmp_path / "keys" / "machine.key").chmod(0o600)
    (tmp_path / "keys" / "machine.key").write_bytes(b"short")
    with pytest.raises(StoreError, match=r"machine\.key"):
        ring.sign(DIGEST)


def test_malformed_digests_are_not_signed() -> None:
    with pytest.raises(UsageError, match="not a digest"):
        sign("hello")


def test_the_first_use_in_parallel_makes_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        signatures = list(pool.map(lambda _: Keyring(tmp_path / "keys").sign(DIGEST), range(16)))
    assert all(signature == signatures[0] for signature in signatures)
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["machine.key"]
