"""Secrets are stored encrypted, with a key that is not in the database."""

from __future__ import annotations

import os
import secrets
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everloop.errors import UnavailableError, UsageError
from everloop.stores import Store, open_store
from everloop.stores.backup import backup, restore
from everloop.stores.sealing import MARK, SecretKeys, is_sealed

ABOUT = "webhook:1:secret"
TEXTS = ["", "x", "s3cr3t" * 30, "pässwörd", "line\nbreak", "\udcff", MARK]


@pytest.fixture
def keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> SecretKeys:
    monkeypatch.delenv("EVERLOOP_SECRET_KEY", raising=False)
    monkeypatch.delenv("EVERLOOP_SECRET_KEY_FILE", raising=False)
    return SecretKeys(store.home)


@pytest.mark.parametrize("text", TEXTS)
def test_a_sealed_text_is_decrypted(keys: SecretKeys, text: str) -> None:
    sealed = keys.seal(text, ABOUT)
    assert is_sealed(sealed)
    assert sealed.isascii()
    assert len(text) < 4 or text == MARK or text not in sealed
    assert keys.open(sealed, ABOUT) == text
    assert keys.seal(text, ABOUT) != sealed, "the same text twice does not show as such"


def test_a_sealed_text_opens_nowhere_else(keys: SecretKeys) -> None:
    sealed = keys.seal("x", ABOUT)
    with pytest.raises(UnavailableError, match="belongs to another record"):
        keys.open(sealed, "webhook:2:secret")
    head, _, tail = sealed.rpartition(":")
    for changed in (f"{head}:{tail[:-4]}AAA=", f"{head}:", f"{head}:!!!", f"{head}:{tail[:8]}", f"{sealed[:-6]}"):
        with pytest.raises(UnavailableError):
            keys.open(changed, ABOUT)


def test_the_homes_key_is_its_owners_and_no_part_of_the_database(keys: SecretKeys, store: Store) -> None:
    before = os.umask(0)
    try:
        sealed = keys.seal("x", ABOUT)
    finally:
        os.umask(before)
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert [path.name for path in store.home.glob("*secret*")] == ["secret.key"], "no draft is left"
    keys.path.unlink()
    with pytest.raises(UnavailableError, match="which is missing here") as caught:
        keys.open(sealed, ABOUT)
    assert "EVERLOOP_SECRET_KEY" in str(caught.value.help)


def test_of_many_that_make_the_key_at_once_all_use_the_same(keys: SecretKeys) -> None:
    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(lambda number: SecretKeys(keys.path.parent).seal(str(number), ABOUT), range(16)))
    assert [keys.open(text, ABOUT) for text in sealed] == [str(number) for number in range(16)]


@pytest.mark.parametrize("source", ["variable", "file"])
def test_a_key_of_the_environment_comes_first(
    keys: SecretKeys, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = keys.seal("old", ABOUT)
    first, second = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    other = SecretKeys(tmp_path / "other")

    def use(*chosen: str) -> None:
        if source == "variable":
            monkeypatch.setenv("EVERLOOP_SECRET_KEY", ",".join(chosen))
        else:
            (tmp_path / "keys").write_text("# mine\n" + "\n".join(chosen) + "\n")
            monkeypatch.setenv("EVERLOOP_SECRET_KEY_FILE", str(tmp_path / "keys"))

    use(first)
    sealed = keys.seal("new", ABOUT)
    assert keys.from_environment
    assert keys.open(old, ABOUT) == "old", "the home's key still opens"
    assert other.open(sealed, ABOUT) == "new", "another machine opens it without the home's key"
    assert not other.path.exists()
    use(second, first)
    assert keys.open(sealed, ABOUT) == "new"
    assert keys.is_current(keys.seal("x", ABOUT))
    assert not keys.is_current(sealed)
    use(second)
    with pytest.raises(UnavailableError):
        other.open(sealed, ABOUT)


@pytest.mark.parametrize("text", ["short", "x" * 43 + "!", "é" * 43, "k3" * 20 + "k", "5d" * 32])
def test_a_malformed_key_is_refused_and_not_shown(keys: SecretKeys, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_SECRET_KEY", text)
    with pytest.raises(UsageError, match="32 bytes") as caught:
        keys.seal("x", ABOUT)
    assert text not in str(caught.value)
    assert not keys.path.exists()


def test_a_missing_file_of_keys_is_an_error(keys: SecretKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_SECRET_KEY_FILE", "/nowhere/key")
    with pytest.raises(UsageError, match="Cannot read the file of secret keys"):
        keys.seal("x", ABOUT)


def test_a_new_key_takes_over_and_the_old_one_goes(keys: SecretKeys) -> None:
    old = keys.seal("x", ABOUT)
    keys.add_key()
    assert keys.open(old, ABOUT) == "x"
    new = keys.seal("x", ABOUT)
    keys.drop_old_keys()
    assert keys.open(new, ABOUT) == "x"
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    with pytest.raises(UnavailableError):
        keys.open(old, ABOUT)


def test_a_backup_contains_the_key_only_on_request(keys: SecretKeys, store: Store, tmp_path: Path) -> None:
    sealed = keys.seal("x", ABOUT)
    without = restore(backup(store, tmp_path / "without.tar"), tmp_path / "a")
    assert keys.path.read_bytes()[-40:] not in (tmp_path / "without.tar").read_bytes()
    with pytest.raises(UnavailableError):
        SecretKeys(without).open(sealed, ABOUT)
    whole = restore(backup(store, tmp_path / "with.tar", with_key=True), tmp_path / "b")
    assert SecretKeys(whole).open(sealed, ABOUT) == "x"
    assert stat.S_IMODE((whole / "secret.key").stat().st_mode) == 0o600


@pytest.mark.slow
def test_no_record_of_access_holds_a_secret(store: Store) -> None:
    """Users, tokens and tokens of endpoints are stored only as digests."""
    from everloop.records import EndpointRecord
    from everloop.server.access import UserStore
    from everloop.serving.access.endpoint_tokens import add_token

    book = UserStore(store)
    _, password = book.add_user("ann", {"*": "admin"})
    _, token = book.create_token("ci", "ann")
    chosen = "a password of Ann's own"
    book.set_password("ann", chosen)
    store.records.put(store.new(EndpointRecord, name="e", model="m"))
    opened = add_token(store, "e", "client")
    store.close()
    held = b"".join(path.read_bytes() for path in store.home.rglob("*") if path.is_file())
    for secret in (password, token, chosen, opened):
        assert secret is not None
        assert secret.encode() not in held


def test_a_password_in_the_address_of_a_query_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.data.sources.sql_sources import redacted
    from everloop.stores import collect_observations

    monkeypatch.chdir(tmp_path)
    shown = redacted("postgresql://ann:hunter2@host/db?password=hunter3")
    assert "hunter" not in shown
    with collect_observations() as seen:
        pass
    assert not list(seen)


def test_the_key_of_a_home_is_read_again(keys: SecretKeys, tmp_path: Path) -> None:
    """A running server uses a key that was copied into its home."""
    sealed = keys.seal("x", ABOUT)
    with open_store(tmp_path / "second") as second:
        other = SecretKeys(second.home)
        with pytest.raises(UnavailableError):
            other.open(sealed, ABOUT)
        other.path.write_bytes(keys.path.read_bytes())
        assert other.open(sealed, ABOUT) == "x"
