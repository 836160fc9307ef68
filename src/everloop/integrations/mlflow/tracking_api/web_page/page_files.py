"""Serves MLflow's web page at `/`, from the files of an installed MLflow, which are not part of everloop.

File names are looked up in a table that is built when the server starts; a request never becomes part of a path. The
page may only load from, and connect to, this server.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import HTTPException

from everloop.errors import UsageError

_INDEX = "index.html"
_BUILT = Path("server", "js", "build")
_CONTENT = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:;"
    " frame-src 'self' blob: data:; connect-src 'self' data: blob:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'"
)
_FRAMES = {"x-frame-options": "SAMEORIGIN", "content-security-policy": _CONTENT}
_A_YEAR = "private, max-age=31536000, immutable"


class MlflowPage:
    """The built web page in a folder.

    Args:
        folder: the folder `mlflow` of an installed MLflow, or its `mlflow/server/js/build`.

    Raises:
        UsageError: the folder has no built page.
    """

    def __init__(self, folder: Path) -> None:
        found = next((path for path in (folder, folder / _BUILT) if (path / _INDEX).is_file()), None)
        if found is None:
            raise UsageError(
                f"The folder '{folder}' does not contain MLflow's web page.",
                help="Give the folder of an installed MLflow: python -c 'import mlflow; print(mlflow.__path__[0])'",
            )
        self.index = found / _INDEX
        self._files = {
            path.relative_to(found).as_posix(): path
            for path in found.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def routes(self) -> list[Any]:
        """Return the handlers of `/` and of the files that the page loads."""

        @get("/", opt={"role": "viewer"}, sync_to_thread=True, include_in_schema=False)
        def mlflow_page() -> Response[bytes]:
            return _file_response(self.index, "no-cache")

        @get("/static-files/{name:path}", opt={"role": "viewer"}, sync_to_thread=True, include_in_schema=False)
        def mlflow_page_file(request: Request[Any, Any, Any]) -> Response[bytes]:
            name = str(request.path_params["name"]).lstrip("/")
            if name not in self._files:
                raise HTTPException(status_code=404, detail=f"There is no file '{name[:100]}'.")
            # The names of files below `static` contain a digest of the content.
            return _file_response(self._files[name], _A_YEAR if name.startswith("static/") else "no-cache")

        return [mlflow_page, mlflow_page_file]


def _file_response(file: Path, cache_control: str) -> Response[bytes]:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    headers = {**_FRAMES, "cache-control": cache_control}
    return Response(file.read_bytes(), media_type=kind, headers=headers)
