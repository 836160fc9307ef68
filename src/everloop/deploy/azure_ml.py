"""Azure ML's scoring script for a version: a folder with `score.py`, whose `init` and `run` Microsoft's server calls.

    score.py           `init()` loads the package, `run(raw_data)` answers a request
    requirements.txt   what the environment must hold beside Microsoft's azureml-inference-server-http
    everloop/, package/, keys/   as in a build context, see `containers`

This module writes the folder; `everloop.deploy.azure_runtime` is what the script runs. The package may also come as
the deployment's model: then `AZUREML_MODEL_DIR` says where, and it goes before the one beside the script. Source: Azure
ML, "Author scoring scripts for online endpoints".
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError, RequestError
from everloop.packages import package_manifest as manifests

if TYPE_CHECKING:
    from everloop.packages.predictor import Predictor
    from everloop.stores import Store

SCRIPT = '''"""Azure ML calls `init` once and `run` for each request."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from everloop.deploy.azure_runtime import LoggedScoring, respond

scoring = None


def init():
    global scoring
    scoring = LoggedScoring.start(Path(__file__).parent)


def run(raw_data):
    return respond(scoring, raw_data)
'''


def export_script(store: Store, ref: str, folder: Path | str) -> Path:
    """Write the folder for `code_configuration: {code: folder, scoring_script: score.py}`.

    Raises:
        NotFoundError: there is no such version.
        UsageError: the folder exists already.
    """
    from everloop.deploy.images import keys, named, needed, new_folder, sources, write_steadily
    from everloop.packages.archive import signed_files
    from everloop.packages.environment_lock import requirements
    from everloop.registry.model_versions import get_version

    target = new_folder(folder)
    version = get_version(store, ref)
    files = signed_files(store, version.package)
    manifest = manifests.Manifest.from_bytes(files[manifests.FILE])
    serving = {"httptools", "uvicorn", "uvloop", "click", "h11"}
    locked = {name: one for name, one in needed(manifest, files).items() if name not in serving}
    write_steadily(
        target,
        {
            "score.py": SCRIPT.encode(),
            "requirements.txt": requirements(locked),
            **{f"everloop/{name}": data for name, data in sources().items()},
            **{f"package/{name}": data for name, data in named(files, version.key).items()},
            **{f"keys/trusted/{name}": data for name, data in keys(manifest, files).items()},
        },
    )
    return target


class AzureScoring:
    """A loaded package that answers bodies of requests."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @classmethod
    def start(cls, beside: Path) -> AzureScoring:
        """Load the package: the deployment's model where it holds one, else the one beside the script.

        Raises:
            NotFoundError: neither holds a package.
            CorruptionError, TrustError: it may not be used.
        """
        from everloop.registry.version_packages import load_model

        # The keys beside the script are its operator's, who made the folder.
        if (beside / "keys").is_dir():
            os.environ.setdefault("EVERLOOP_KEYS", str(beside / "keys"))
        places = [os.environ.get("AZUREML_MODEL_DIR", ""), str(beside)]
        package = next((found for place in places if place and (found := find_package(Path(place)))), None)
        if package is None:
            raise NotFoundError(f"There is no package in {' or '.join(filter(None, places))}.")
        predictor = load_model(package)
        predictor.warm()
        return cls(predictor)

    def answer(self, raw: str | bytes) -> dict[str, Any]:
        """Predictions, and probabilities where there are classes, for a body as the endpoint's `/score` takes it.

        Raises:
            RequestError: the body breaks the signature; the message names row and field.
        """
        return self.answer_rows(self.rows_of(raw))

    def rows_of(self, raw: str | bytes) -> list[dict[str, Any]]:
        """The checked rows of a body; errors as `answer`."""
        signature = self.predictor.signature
        try:
            body = json.loads(raw)
        except ValueError as error:
            raise RequestError(f"The body is no JSON that can be read: {error}") from None
        if not isinstance(body, dict) or not isinstance(body.get("instances"), list) or not body["instances"]:
            raise RequestError('Send {"instances": [{…}, …]}, one object or list for each row.')
        rows = [
            dict(zip(signature.names, row, strict=True))
            if isinstance(row, list) and len(row) == len(signature.names)
            else row
            for row in body["instances"]
        ]
        return self.predictor.validate(rows)

    def answer_rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The answer to checked rows; errors as `answer`."""
        scores, places = self.predictor.answer_rows(rows)
        labels = self.predictor.name_places(places)
        if labels is None:
            return {"predictions": scores.tolist()}
        return {"predictions": labels, "probabilities": scores.tolist()}


def find_package(folder: Path) -> Path | None:
    """The package in a folder that a platform has filled: the folder itself, one below it, or one file."""
    if not folder.is_dir():
        return None
    if (folder / manifests.FILE).is_file():
        return folder
    from everloop.packages.archive import ENDING

    entries = sorted(folder.iterdir())
    for entry in entries:
        if entry.is_dir() and (entry / manifests.FILE).is_file():
            return entry
    return next((entry for entry in entries if entry.name.endswith(ENDING)), None)
