"""Serves many endpoints at one port. Each is loaded on its first request, and unloaded when others need its memory.

    /endpoints/{endpoint}/…     any path of that endpoint: /endpoints/delays/predict, /endpoints/delays/invocations
    /v1/models/{endpoint}…      KServe v1 and
    /v2/models/{endpoint}…      the Open Inference Protocol name the endpoint themselves
    GET /                       the endpoints, and which are loaded
    GET /v2/models, POST /v2/repository/index, POST /v2/repository/models/{endpoint}/load and …/unload
    GET /health, /ready, /ping, /v2/health/live, /v2/health/ready, /metrics

Each endpoint has its own settings, tokens, routes and prediction log, and follows its own record, as when it is served
alone. A request is authorized before an endpoint is loaded for it. Several processes may serve the same endpoints.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, TrustError
from everloop.http.host_names import HostRule
from everloop.http.request_guard import RequestGuard
from everloop.records import EndpointRecord, ModelVersion, Package
from everloop.serving.access.authorization import Authorization
from everloop.serving.access.endpoint_tokens import OPEN_PATHS, access_of
from everloop.serving.endpoint_app import EndpointApp
from everloop.serving.endpoint_settings import settings_of
from everloop.serving.observability.endpoint_metrics import CONTENT_TYPE
from everloop.serving.observability.telemetry import observers
from everloop.serving.protocols.protocol import Response
from everloop.serving.protocols.protocol_common import encode
from everloop.serving.reloader import POLL_S, EndpointReloader
from everloop.serving.responses import problem, refused_by, send_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.serving.responses import Receive, Scope, Send
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

_PREFIXED = re.compile(r"/endpoints/(?P<name>[^/]+)(?P<rest>/.*)")
_NAMED = re.compile(r"/v[12]/models/(?P<name>[^/:]+)(?:[/:].*)?")
_MOVED = re.compile(r"/v2/repository/models/(?P<name>[^/]+)/(?P<what>load|unload)")


@dataclass
class _LoadedApp:
    app: EndpointApp
    reloader: EndpointReloader
    size_bytes: int
    users: int = 0
    used_at: float = 0.0


_LISTS = frozenset({("GET", "/"), ("GET", "/v2/models"), ("GET", "/v1/models"), ("POST", "/v2/repository/index")})
"""Requests for the list of endpoints."""


class MultiEndpointApp:
    """An ASGI app over the endpoints of a store.

    Args:
        memory_bytes: limit for all loaded models together; the least recently used are unloaded first. None: no limit.
        open_to_all: whether endpoints without tokens are served; False if other machines can reach this process.
        guard: checks every request first. None: one that accepts only the names of this machine.
    """

    def __init__(
        self,
        store: Store,
        *,
        memory_bytes: int | None = None,
        open_to_all: bool = True,
        guard: RequestGuard | None = None,
    ) -> None:
        self._store = store
        self.guard = guard or RequestGuard(HostRule())
        self._memory_bytes = memory_bytes
        self._open_to_all = open_to_all
        self._apps: dict[str, _LoadedApp] = {}
        self._guard = threading.Lock()
        self._loading: dict[str, asyncio.Future[_LoadedApp]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="everloop-loading")
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._reload_all, args=(EndpointReloader.reload,), name="everloop-reloader", daemon=True
            ),
            # A revoked token must stop working also while another endpoint is being loaded.
            threading.Thread(target=self._reload_all, args=(_reload_access,), name="everloop-access", daemon=True),
        ]
        self.draining = False
        self.loads = 0
        self.evictions = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Say at `/ready` that the process is about to stop."""
        self.draining = True

    def close(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._loader.shutdown(wait=True)
        for loaded in self._apps.values():
            loaded.app.close()
        self._apps.clear()

    def loaded(self) -> list[str]:
        """The endpoints in memory, least recently used first."""
        return sorted(self._apps, key=lambda name: self._apps[name].used_at)

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"Endpoints speak only HTTP, not {scope['type']}.")
        refused = refused_by(self.guard, scope)
        if refused is not None:
            await send_response(send, refused)
            return
        prefixed = _PREFIXED.fullmatch(scope["path"])
        named = prefixed or _NAMED.fullmatch(scope["path"])
        if named is None:
            try:
                answered = await self._respond(scope)
            except EverloopError as error:
                answered = problem(error.http_status, type(error).__name__, error.message, error.help)
            await send_response(send, answered)
            return
        path = prefixed["rest"] if prefixed else scope["path"]
        try:
            loaded = await self._loaded_app(named["name"], path, scope["headers"])
        except EverloopError as error:
            refusal = problem(error.http_status, type(error).__name__, error.message, error.help)
            await send_response(send, refusal)
            return
        if isinstance(loaded, Response):
            await send_response(send, loaded)
            return
        try:
            await loaded.app.serve({**scope, "path": path}, receive, send)
        finally:
            loaded.users -= 1
            loaded.used_at = monotonic()

    async def _respond(self, scope: Scope) -> Response:
        method, path = scope["method"], scope["path"]
        if path in OPEN_PATHS:
            return Response(status=503 if self.draining else 200, body=encode({"ready": not self.draining}))
        if not self._open_to_all:
            # The list of endpoints is not public if endpoints need tokens.
            return problem(404, "NotFoundError", "Use the path of an endpoint: /endpoints/NAME/…")
        if (method, path) == ("GET", "/metrics"):
            return Response(body=self._metrics(), content_type=CONTENT_TYPE)
        moved = _MOVED.fullmatch(path)
        if method == "POST" and moved is not None:
            return await self._move(moved["name"], moved["what"], scope["headers"])
        if (method, path) not in _LISTS:
            missing = f"This server has no path {path[:200]}."
            return problem(404, "NotFoundError", missing, "Use the path of an endpoint: /endpoints/NAME/…")
        # The store may be slow.
        known = await asyncio.get_running_loop().run_in_executor(None, self._names)
        if (method, path) == ("GET", "/"):
            return Response(body=encode({"endpoints": known, "loaded": self.loaded()}))
        if method == "GET":
            return Response(body=encode({"models": known}))
        states = [
            {"name": name, "state": "READY" if name in self._apps else "UNAVAILABLE", "reason": ""} for name in known
        ]
        return Response(body=encode(states))

    def _names(self) -> list[str]:
        return [endpoint.name for endpoint in self._store.records.find(EndpointRecord, order="name")]

    async def _move(self, name: str, what: str, headers: Any) -> Response:
        loop = asyncio.get_running_loop()
        try:
            # Checked also if it is loaded: loading and unloading need the same token as requests.
            refused = await loop.run_in_executor(None, self._refused, name, "/", dict(headers))
            loaded = refused or await self._loaded_app(name, "/", headers)
        except EverloopError as error:
            return problem(error.http_status, type(error).__name__, error.message, error.help)
        if isinstance(loaded, Response):
            return loaded
        loaded.users -= 1
        if what == "unload":
            await loop.run_in_executor(self._loader, self._unload, name)
        return Response(body=b"{}")

    async def _loaded_app(self, name: str, path: str, headers: Any) -> _LoadedApp | Response:
        """The loaded endpoint, with one more user, or the response that refuses this client."""
        loaded = self._apps.get(name)
        loop = asyncio.get_running_loop()
        while loaded is None:
            refused = await loop.run_in_executor(None, self._refused, name, path, dict(headers))
            if refused is not None:
                return refused
            waiting = self._loading.get(name)
            if waiting is None:
                waiting = loop.run_in_executor(self._loader, self._load, name)
                self._loading[name] = waiting
            try:
                await waiting
            finally:
                self._loading.pop(name, None)
            # It may have been unloaded again meanwhile.
            loaded = self._apps.get(name)
        loaded.users += 1
        loaded.used_at = monotonic()
        return loaded

    def _refused(self, name: str, path: str, headers: dict[bytes, bytes]) -> Response | None:
        endpoint = self._store.records.get(EndpointRecord, name)
        digests, chosen = access_of(endpoint.options)
        if not digests and not self._open_to_all:
            raise TrustError(
                f"The endpoint '{name}' has no token, so it is not served at an address that other machines can reach.",
                help=f"Create a token: everloop endpoints token {name}",
            )
        admission = Authorization(settings_of({}), digests, chosen)
        status, _ = admission.check(path, headers.get(b"authorization"))
        return None if status == 200 else problem(status, "TrustError", "This endpoint requires a token.")

    # -- in the loader's thread

    def _load(self, name: str) -> _LoadedApp:
        loaded = self._apps.get(name)
        if loaded is not None:
            return loaded
        app = EndpointApp(self._store, name, guard=self.guard)
        app.observers += observers(name)
        try:
            reloader = EndpointReloader(self._store, app)
            before = _resident_bytes()
            reloader.load()
            if self._threads[0].is_alive():
                reloader.access.begin()
            size = max(_resident_bytes() - before, self._package_bytes(name))
        except BaseException:
            app.close()
            raise
        loaded = _LoadedApp(app, reloader, size, used_at=monotonic())
        with self._guard:
            self._apps[name] = loaded
            self.loads += 1
        self._make_space(name)
        return loaded

    def _make_space(self, newest: str) -> None:
        if self._memory_bytes is None:
            return
        for name in self.loaded():
            if sum(loaded.size_bytes for loaded in self._apps.values()) <= self._memory_bytes:
                return
            if name != newest:
                self._unload(name)

    def _unload(self, name: str) -> None:
        """Unload an endpoint, unless it is answering a request."""
        with self._guard:
            loaded = self._apps.get(name)
            if loaded is None or loaded.users:
                return
            del self._apps[name]
            self.evictions += 1
        loaded.app.close()

    def _package_bytes(self, name: str) -> int:
        total = 0
        for route in self._store.records.get(EndpointRecord, name).routes:
            version = self._store.records.get(ModelVersion, route.version)
            packages = self._store.records.find(Package, ("digest", "=", version.package), limit=1)
            total += sum(package.size_bytes for package in packages)
        return total

    # -- in the reloading threads

    def _reload_all(self, reload: Callable[[EndpointReloader], None]) -> None:
        while not self._stopped.wait(POLL_S):
            with self._guard:
                reloaders = [loaded.reloader for loaded in self._apps.values()]
            for reloader in reloaders:
                try:
                    reload(reloader)
                except EverloopError as error:
                    logger.warning("An endpoint cannot read its record: %s", error)
                except Exception:
                    logger.exception("Reloading an endpoint failed")

    def _metrics(self) -> bytes:
        lines = [
            "# HELP everloop_loaded_endpoints Endpoints whose models are in memory.",
            "# TYPE everloop_loaded_endpoints gauge",
            f"everloop_loaded_endpoints {len(self._apps)}",
            "# HELP everloop_loads_total Endpoints that were loaded.",
            "# TYPE everloop_loads_total counter",
            f"everloop_loads_total {self.loads}",
            "# HELP everloop_evictions_total Endpoints that were unloaded.",
            "# TYPE everloop_evictions_total counter",
            f"everloop_evictions_total {self.evictions}",
        ]
        seen: set[str] = set()
        for loaded in list(self._apps.values()):
            for line in loaded.app.metrics.text().decode().splitlines():
                # The format allows each family's header only once.
                if not line.startswith("#") or line not in seen:
                    lines.append(line)
                    seen.add(line)
        return ("\n".join(_by_family(lines)) + "\n").encode()


def _reload_access(reloader: EndpointReloader) -> None:
    reloader.access.reload()


def _by_family(lines: list[str]) -> list[str]:
    """Metrics lines with those of each family together, as the format requires."""
    families: dict[str, list[str]] = {}
    current = ""
    for line in lines:
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
        name = re.split(r"[{ ]", line, maxsplit=1)[0]
        family = current if line.startswith("#") else re.sub(r"_(bucket|sum|count)$", "", name)
        families.setdefault(family, []).append(line)
    return [line for lines_of_family in families.values() for line in lines_of_family]


def _resident_bytes() -> int:
    """Resident memory of this process; 0 if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * 4096


__all__ = ["MultiEndpointApp"]
