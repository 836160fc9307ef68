"""Write the OpenAPI description of the control plane to `openapi.json`, from which the page's types are generated."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from everloop.server.control_app import make_app
from everloop.stores import open_store


def openapi() -> str:
    """Return the description as JSON with sorted names."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "home", project="p") as store:
        return json.dumps(make_app(store).app.openapi_schema.to_schema(), sort_keys=True)  # type: ignore[attr-defined]


if __name__ == "__main__":
    (Path(__file__).parent / "openapi.json").write_text(openapi(), encoding="utf-8")
