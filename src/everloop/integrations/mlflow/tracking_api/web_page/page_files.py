"""MLflow's own page at `/`, for operators who have MLflow: the files of its wheel, which are no part of everloop.

The names are looked up in a table that is made when the server starts; no path is ever made of what a client sends.
What the page may load and whom it may talk to is this server alone.
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
    """The built page in a folder.

    Args:
        folder: `mlflow/server/js/build` of an installed MLflow, or its `mlflow`.

    Raises:
        UsageError: there is no built page.
    """

    def __init__(self, folder: Path) -> None:
        found = next((place for place in (folder, folder / _BUILT) if (place / _INDEX).is_file()), None)
        if found is None:
            raise UsageError(
                f"There is no page of MLflow in '{folder}'.",
                help="Name the folder of an installed MLflow: python -c 'import mlflow; print(mlflow.__path__[0])'",
            )
        self.index = found / _INDEX
        self._files = {
            place.relative_to(found).as_posix(): place
            for place in found.rglob("*")
            if place.is_file() and not place.is_symlink()
        }

    def routes(self) -> list[Any]:
        """Handlers of `/` and of the files that the page loads."""

        @get("/", opt={"role": "viewer"}, sync_to_thread=True, include_in_schema=False)
        def mlflow_page() -> Response[bytes]:
            return _answer(self.index, "no-cache")

        @get("/static-files/{name:path}", opt={"role": "viewer"}, sync_to_thread=True, include_in_schema=False)
        def mlflow_page_file(request: Request[Any, Any, Any]) -> Response[bytes]:
            name = str(request.path_params["name"]).lstrip("/")
            if name not in self._files:
                raise HTTPException(status_code=404, detail=f"No file '{name[:100]}'.")
            # Those below `static` have their content's digest in their names.
            return _answer(self._files[name], _A_YEAR if name.startswith("static/") else "no-cache")

        return [mlflow_page, mlflow_page_file]


def _answer(file: Path, keep: str) -> Response[bytes]:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    headers = {**_FRAMES, "cache-control": keep}
    return Response(file.read_bytes(), media_type=kind, headers=headers)
