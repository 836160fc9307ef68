from __future__ import annotations

import json
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import ConflictError
from everloop.packages import build_package
from everloop.records import Endpoint, ModelVersion, Package, Route
from everloop.registry import register
from everloop.serving import EndpointApp
from everloop.serving.protocols.protocol import Request
from everloop.serving.reloader import Follower
from everloop.stores import Store, open_store
from everloop.testing.models import sample_table, train_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home") as opened:
        yield opened


_built: dict[tuple[Any, ...], tuple[Package, dict[str, bytes]]] = {}


@pytest.fixture
def release(store: Store) -> Callable[..., ModelVersion]:
    """Registers the next version of `delays`; each seed is another model. Trained and packaged once a session."""

    def make(model: str = "delays", **options: Any) -> ModelVersion:
        key = tuple(sorted(options.items()))
        if key not in _built:
            trained = train_sample(**options)
            package = build_package(trained, store=store, sample=sample_table(100, options.get("seed", 0)))
            _built[key] = package, dict(_objects(store))
        package, objects = _built[key]
        for path, data in objects.items():
            place = store.home / "objects" / path
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
        if not store.records.find(Package, ("digest", "=", package.digest)):
            store.records.put(package)
        return register(store, model, package)

    return make


def _objects(store: Store) -> Iterator[tuple[str, bytes]]:
    root = store.home / "objects"
    for path in root.rglob("*"):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path.read_bytes()


@pytest.fixture
def route(store: Store) -> Callable[..., Endpoint]:
    """Puts the endpoint's record, or changes its routes: `route(champion="delays@1", canary=("delays@2", 10))`."""

    def change(
        champion: str | None = None,
        canary: tuple[str, float] | None = None,
        shadow: str | None = None,
        name: str = "delays",
    ) -> Endpoint:
        routes = []
        if champion is not None:
            routes.append(Route(version=champion, percent=100.0 - (canary[1] if canary else 0.0)))
        if canary is not None:
            routes.append(Route(version=canary[0], percent=canary[1], role="canary"))
        if shadow is not None:
            routes.append(Route(version=shadow, percent=0.0, role="shadow"))
        found = store.records.find(Endpoint, ("name", "=", name))
        if not found:
            endpoint = store.new(Endpoint, name=name, model="delays", routes=tuple(routes))
            store.records.put(endpoint)
            return endpoint
        while True:
            # A running process writes its state into the same record.
            found = store.records.find(Endpoint, ("name", "=", name))
            try:
                return store.records.update(replace(found[0], routes=tuple(routes)))[0]
            except ConflictError:
                continue

    return change


class Local:
    """An endpoint's app without a socket: `post` answers (status, body)."""

    def __init__(self, store: Store, name: str = "delays") -> None:
        self.app = EndpointApp(store, name)
        self.follower = Follower(store, self.app)
        self.follower.load()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, data)

    def ask(self, method: str, path: str, data: bytes = b"") -> tuple[int, Any]:
        response = self.app.respond(Request(method, path, data, perf_counter()))
        if response.answer is not None and response.answer.shadow is not None:
            self.shadowed = response.answer.shadow()
        text = response.body.decode()
        return response.status, json.loads(text) if response.content_type == b"application/json" else text

    def close(self) -> None:
        self.app.close()


@pytest.fixture
def local(store: Store) -> Iterator[Callable[..., Local]]:
    opened: list[Local] = []

    def make(name: str = "delays") -> Local:
        opened.append(Local(store, name))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
