"""The table of all protocols' routes: finds the function for a method and a path."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from everloop import plugins
from everloop.serving.responses import problem

if TYPE_CHECKING:
    from everloop.serving.protocols.protocol import Handle, Request, Response, Routes


class ProtocolRoutes:
    """The routes of every installed protocol.

    Attributes:
        exact: routes without variable parts.
        patterns: the others: method, compiled path, path as written, and function.
        paths: every path as written; `/metrics` counts requests under these and under "other".
    """

    def __init__(self, routes: Routes) -> None:
        """Add the routes of every protocol plugin to these."""
        self.exact: dict[tuple[str, str], Handle] = dict(routes)
        self.patterns: list[tuple[str, re.Pattern[str], str, Handle]] = []
        for name in plugins.names("protocol"):
            for (method, path), handle in plugins.load("protocol", name).items():
                self._add(method, path, handle)
        self.paths = {path for _, path in self.exact} | {path for _, _, path, _ in self.patterns}

    def find(self, request: Request) -> Handle | None:
        """The function for a request. Sets the request's `params`, and its `path` to the path as written."""
        method = "GET" if request.method == "HEAD" else request.method
        handle = self.exact.get((method, request.path))
        if handle is not None:
            return handle
        for wanted, pattern, path, candidate in self.patterns:
            if wanted == method and (found := pattern.fullmatch(request.path)):
                request.params = found.groupdict()
                request.path = path
                return candidate
        return None

    def not_found(self, request: Request) -> Response:
        """The response to a request that has no route: 405 if its path has other methods, else 404."""
        methods = {method for method, path in self.exact if path == request.path}
        methods |= {method for method, pattern, _, _ in self.patterns if pattern.fullmatch(request.path)}
        if methods:
            allowed = ", ".join(sorted(methods))
            response = problem(405, "UsageError", f"{request.path} takes {allowed}, not {request.method}.")
            response.headers = [(b"allow", allowed.encode())]
            return response
        known = ", ".join(sorted({path for _, path in self.exact}))
        return problem(404, "NotFoundError", f"This endpoint has no path {request.path[:200]}.", f"Paths: {known}")

    def _add(self, method: str, path: str, handle: Handle) -> None:
        if "{" not in path:
            self.exact[method, path] = handle
            return
        pattern = "".join(
            f"(?P<{part[1:-1]}>[^/:]+)" if part.startswith("{") else re.escape(part)
            for part in re.split(r"(\{\w+\})", path)
        )
        self.patterns.append((method, re.compile(pattern), path, handle))


__all__ = ["ProtocolRoutes"]
