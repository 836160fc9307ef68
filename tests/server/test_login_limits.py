"""Guessing passwords is slow, and failed logins of one client never lock out another."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import pytest

from everloop.errors import StoreError, UsageError
from everloop.server.access import Authenticator, CredentialsError, UserStore, rate_limits
from everloop.server.access.client_address import client_address, read_networks
from everloop.server.access.password_queue import FIRST, HashQueue, HashQueueFullError
from everloop.server.access.rate_limits import FailureLimit
from everloop.server.server_options import ServerOptions

PASSWORD = "correct horse battery"
HERE = "192.0.2.1"


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


class QuickUserStore(UserStore):
    """A user store that compares passwords without a slow hash, and counts concurrent checks."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.checks = self.running = self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def find_by_password(self, name: str, password: bytes) -> Any:
        with self._lock:
            self.checks += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            assert self.gate.wait(20)
            from everloop.server.access import Principal

            found = {user.name: user for user in self.users()}.get(name)
            good = found is not None and password == PASSWORD.encode()
            return Principal(f"user:{name}", name, found.roles) if good and found else None
        finally:
            with self._lock:
                self.running -= 1


@pytest.fixture
def user_store(store, monkeypatch) -> QuickUserStore:
    monkeypatch.setattr("everloop.server.access.users.hash_password", lambda password: f"none${password}")
    made = QuickUserStore(store)
    for name in ("ada", "bob"):
        made.add_user(name, {"*": "admin"}, PASSWORD)
    return made


@pytest.fixture
def quick(monkeypatch) -> None:
    """Shortens the pauses to milliseconds."""
    monkeypatch.setattr(rate_limits, "LONGEST_PAUSE_S", 0.01)


async def status(authenticator: Authenticator, header: bytes, address: str = HERE) -> int:
    try:
        await authenticator.identify(header, address)
    except CredentialsError as error:
        return error.status
    return 200


def test_a_valid_token_works_whatever_others_tried(user_store):
    _, secret = user_store.create_token("ci", "ada")

    async def attack() -> list[int]:
        authenticator = Authenticator(user_store)
        wrong = [await status(authenticator, b"Bearer evl_wrong%d" % number) for number in range(40)]
        assert set(wrong[:10]) == {401}
        assert set(wrong[10:]) == {429}
        token = secret.encode()
        return [
            await status(authenticator, b"Bearer " + token),
            await status(authenticator, basic("ada", secret)),
            await status(authenticator, b"Bearer evl_wrong"),
        ]

    assert asyncio.run(attack()) == [200, 200, 429]


def test_a_valid_password_works_from_the_very_address_of_the_attack(user_store, quick):
    async def attack() -> None:
        authenticator = Authenticator(user_store)
        wrong = [await status(authenticator, basic("ada", f"wrong{number}")) for number in range(30)]
        assert (set(wrong[:10]), set(wrong[10:])) == ({401}, {429})
        assert await status(authenticator, basic("ada", PASSWORD)) == 200
        assert await status(authenticator, basic("bob", PASSWORD)) == 200
        assert await status(authenticator, basic("ada", PASSWORD), "198.51.100.7") == 200

    asyncio.run(attack())


def test_an_attack_on_an_account_slows_that_account_from_that_address_only():
    limit = FailureLimit()
    for _ in range(30):
        limit.failed(HERE, "ada")
    assert limit.next_delay_s(HERE, "ada") == 0
    waits = [limit.next_delay_s(HERE, "ada") for _ in range(5)]
    assert waits[0] > 4
    assert waits[-1] is None
    assert limit.next_delay_s(HERE, "bob") == 0
    assert limit.next_delay_s("198.51.100.7", "ada") == 0


def test_guessing_is_slow():
    """After ten failures, at most 12 attempts a minute for an account are checked from one address."""
    assert rate_limits.LONGEST_PAUSE_S >= 5
    limit = FailureLimit()
    for _ in range(20):
        limit.failed(HERE, "ada")
    turns = [limit.next_delay_s(HERE, "ada") for _ in range(1000)]
    assert sum(turn is not None for turn in turns) <= rate_limits.PATIENCE_S / rate_limits.LONGEST_PAUSE_S + 2


def test_credentials_that_were_good_before_wait_for_nobody(user_store):
    async def attack() -> None:
        authenticator = Authenticator(user_store)
        assert await status(authenticator, basic("ada", PASSWORD)) == 200
        for _ in range(500):
            authenticator.limit.failed(HERE, "ada")
        while authenticator.limit.next_delay_s(HERE, "ada") is not None:
            pass
        assert await status(authenticator, basic("ada", "wrong")) == 429
        # Not remembered any more, as after ten minutes or a change of the book.
        authenticator._known.clear()
        assert await status(authenticator, basic("ada", PASSWORD)) == 200

    asyncio.run(attack())


@pytest.mark.slow
def test_memory_is_bounded_and_entries_expire(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(rate_limits, "monotonic", lambda: now[0])
    limit = FailureLimit(most=100)
    for number in range(5000):
        limit.failed(HERE, f"user{number}" + "x" * 100_000)
        limit.failed(f"2001:db8:{number % 60000:x}::1", "ada")
    assert len(limit) == 100
    assert sum(len(part) for key in limit._records for part in key) < 100 * 150
    now[0] += limit.window_s + 1
    limit.failed(HERE, "ada")
    assert len(limit) == 1
    now[0] += limit.window_s + 1
    assert limit.wait_s(HERE, "ada") == 0
    assert len(limit) == 0


def test_only_half_of_the_cores_check_passwords_and_a_flood_is_refused_not_kept(user_store):
    async def flood() -> None:
        authenticator = Authenticator(user_store, hashes=HashQueue(at_once=1, most_waiting=8))
        user_store.gate.clear()
        attempts = [
            asyncio.create_task(status(authenticator, basic(f"nobody{number}", "wrong"))) for number in range(200)
        ]
        other = asyncio.create_task(status(authenticator, basic("bob", PASSWORD), "198.51.100.7"))
        # The flood's own attempts are refused to make room, before a single check has ended.
        for _ in range(3000):
            if sum(attempt.done() for attempt in attempts) >= 190:
                break
            await asyncio.sleep(0.01)
        assert sum(attempt.done() for attempt in attempts) >= 190
        assert not other.done()
        user_store.gate.set()
        assert await other == 200
        statuses = [await attempt for attempt in attempts]
        assert statuses.count(429) >= 190
        assert user_store.most == 1
        assert user_store.checks <= 11
        assert authenticator.hashes._running == 0
        assert authenticator.hashes._waiting == 0

    asyncio.run(flood())


def test_addresses_are_served_in_turn():
    order: list[str] = []

    async def serve() -> None:
        queue = HashQueue(at_once=1)
        gate = threading.Event()
        first = asyncio.create_task(queue.run("a", gate.wait))
        await asyncio.sleep(0)
        waiting = [
            asyncio.create_task(queue.run(line, lambda line=line: order.append(line)))
            for line in ["a"] * 5 + ["b", "c"]
        ]
        await asyncio.sleep(0)
        known = asyncio.create_task(queue.run(FIRST, lambda: order.append(FIRST)))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, known, *waiting)

    asyncio.run(serve())
    assert order == [FIRST, "a", "b", "c", "a", "a", "a", "a"]


def test_an_attempt_that_is_given_up_leaves_its_place():
    async def serve() -> None:
        queue = HashQueue(at_once=1)
        gate = threading.Event()
        first = asyncio.create_task(queue.run("a", gate.wait))
        await asyncio.sleep(0)
        gone = [asyncio.create_task(queue.run("a", int)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        gate.set()
        await first
        assert await queue.run("a", lambda: 7) == 7
        assert (queue._running, queue._waiting, len(queue._queues)) == (0, 0, 0)

    asyncio.run(serve())


def test_nobody_is_refused_for_a_longer_line_of_another():
    async def serve() -> None:
        queue = HashQueue(at_once=1, most_waiting=4)
        gate = threading.Event()
        running = asyncio.create_task(queue.run("a", gate.wait))
        await asyncio.sleep(0)
        flood = [asyncio.create_task(queue.run("a", int)) for _ in range(20)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(queue.run(f"b{number}", int)) for number in range(3)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*others) == [0, 0, 0]
        ends = await asyncio.gather(*flood, return_exceptions=True)
        assert sum(isinstance(end, HashQueueFullError) for end in ends) == 19
        await running

    asyncio.run(serve())


def test_tokens_do_not_wait_for_passwords(user_store):
    _, secret = user_store.create_token("ci", "ada")

    async def ask() -> None:
        authenticator = Authenticator(user_store)
        user_store.gate.clear()
        attempts = [asyncio.create_task(status(authenticator, basic("ada", f"wrong{n}"))) for n in range(30)]
        await asyncio.sleep(0.02)
        assert await asyncio.wait_for(status(authenticator, b"Bearer " + secret.encode()), 10) == 200
        assert not any(attempt.done() for attempt in attempts)
        user_store.gate.set()
        await asyncio.gather(*attempts)

    asyncio.run(ask())


def test_what_was_revoked_while_it_was_looked_up_is_not_remembered(user_store, monkeypatch):
    _, secret = user_store.create_token("ci", "ada")
    real = UserStore.find_by_token
    revoked, seen = threading.Event(), threading.Event()

    def slow(self: Any, text: str) -> Any:
        found = real(self, text)
        self.revoke_token("ci")
        revoked.set()
        assert seen.wait(20)
        return found

    async def ask() -> list[int]:
        authenticator = Authenticator(user_store)
        await status(authenticator, b"Bearer evl_first")
        monkeypatch.setattr(QuickUserStore, "find_by_token", slow)
        first = asyncio.create_task(status(authenticator, b"Bearer " + secret.encode()))
        assert await asyncio.to_thread(revoked.wait, 20)
        authenticator._refreshed_at = 0
        await authenticator._refresh()
        seen.set()
        found = [await first]
        monkeypatch.setattr(QuickUserStore, "find_by_token", real)
        return [*found, await status(authenticator, b"Bearer " + secret.encode())]

    assert asyncio.run(ask()) == [200, 401]


def test_a_store_that_does_not_answer_is_503(user_store, monkeypatch):
    def broken(self: Any, text: str) -> Any:
        raise StoreError("The store failed.")

    monkeypatch.setattr(QuickUserStore, "find_by_token", broken)
    assert asyncio.run(status(Authenticator(user_store), b"Bearer evl_x")) == 503


def scope(client: str, *forwarded: str) -> dict[str, Any]:
    return {"client": (client, 1), "headers": [(b"x-forwarded-for", value.encode()) for value in forwarded]}


@pytest.mark.parametrize(
    ("client", "forwarded", "found"),
    [
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6", "203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["2001:db8::5"], "2001:db8::5"),
        ("10.0.0.1", ["[2001:db8::5]:99"], "2001:db8::5"),
        ("10.0.0.1", ["203.0.113.9:99"], "203.0.113.9"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, <script>"], "10.0.0.1"),
        ("10.0.0.1", ["x," * 30_000 + "203.0.113.9"], "203.0.113.9"),
        # Not a proxy: what it says is not looked at.
        ("203.0.113.7", ["1.1.1.1"], "203.0.113.7"),
    ],
)
def test_whom_a_proxy_speaks_for(client, forwarded, found):
    assert client_address(scope(client, *forwarded), read_networks(("10.0.0.0/8",))) == found
    assert client_address(scope(client, *forwarded), ()) == client


def test_a_proxy_has_an_address():
    with pytest.raises(UsageError, match="trusted_proxies"):
        read_networks(("proxy.example.com",))


@pytest.mark.slow
def test_clients_behind_a_trusted_proxy_are_told_apart(store, serve, monkeypatch):
    UserStore(store).add_user("ada", {"*": "admin"}, PASSWORD)
    checked: list[tuple[str, str]] = []
    failed = FailureLimit.failed
    monkeypatch.setattr(FailureLimit, "failed", lambda self, *who: (checked.append(who), failed(self, *who))[1])
    for trusted, address in (((), "127.0.0.1"), (("127.0.0.0/8",), "203.0.113.9")):
        with serve(store, ServerOptions(trusted_proxies=trusted)) as control:
            got = control.request(
                "GET", "/api/v1/runs", authorization="Bearer evl_x", x_forwarded_for="6.6.6.6, 203.0.113.9"
            )
            assert got.status == 401
            assert checked[-1] == (address, "")
