"""Export a version as a scoring script for Azure ML: a folder with `score.py`, which Microsoft's server runs.

    score.py           `init()` loads the package, `run(raw_data)` answers a request
    requirements.txt   distributions to install in addition to Microsoft's azureml-inference-server-http
    everloop/, package/, keys/   as in a build context; see `images`

This module writes the folder; the script runs `everloop.deploy.azure_runtime`. The package can also be the deployment's
model: `AZUREML_MODEL_DIR` then holds its path, and it takes precedence over the one beside the script. Source: Azure
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
        UsageError: the folder exists already and is not empty.
    """
    from everloop.deploy.images import keys, named, needed, new_folder, sources, write_reproducibly
    from everloop.packages.archive import signed_files
    from everloop.packages.environment_lock import requirements
    from everloop.registry.model_versions import get_version

    target = new_folder(folder)
    version = get_version(store, ref)
    files = signed_files(store, version.package)
    manifest = manifests.Manifest.from_bytes(files[manifests.FILE])
    serving = {"httptools", "uvicorn", "uvloop", "click", "h11"}
    locked = {name: one for name, one in needed(manifest, files).items() if name not in serving}
    write_reproducibly(
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
    """A loaded package that answers request bodies."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @classmethod
    def start(cls, script_folder: Path) -> AzureScoring:
        """Load the deployment's model if it is a package, otherwise the package beside the script.

        Raises:
            NotFoundError: there is no package in either folder.
            CorruptionError, TrustError: the package is damaged or not trusted.
        """
        from everloop.registry.version_packages import load_model

        # The operator wrote the keys beside the script, so they are trusted.
        if (script_folder / "keys").is_dir():
            os.environ.setdefault("EVERLOOP_KEYS", str(script_folder / "keys"))
        package = deployed_package(script_folder)
        if package is None:
            folders = [os.environ.get("AZUREML_MODEL_DIR", ""), str(script_folder)]
            raise NotFoundError(
                f"There is no package in {' or '.join(filter(None, folders))}.",
                help="Write the folder again: everloop models azure MODEL@VERSION --output FOLDER",
            )
        predictor = load_model(package)
        predictor.warm()
        return cls(predictor)

    def answer(self, raw: str | bytes) -> dict[str, Any]:
        """Return the predictions, and for classifiers the probabilities, for a body in the format of `/score`.

        Raises:
            RequestError: the body does not match the signature; the message names row and field.
        """
        return self.answer_rows(self.rows_of(raw))

    def rows_of(self, raw: str | bytes) -> list[dict[str, Any]]:
        """Decode and check the rows of a body; raises what `answer` raises."""
        signature = self.predictor.signature
        try:
            body = json.loads(raw)
        except ValueError as error:
            raise RequestError(f"The body is not valid JSON: {error}") from None
        if not isinstance(body, dict) or not isinstance(body.get("instances"), list) or not body["instances"]:
            raise RequestError(
                'The body has no list "instances" with rows.',
                help='Send {"instances": [{…}, …]}, one object or list for each row.',
            )
        rows = [
            dict(zip(signature.names, row, strict=True))
            if isinstance(row, list) and len(row) == len(signature.names)
            else row
            for row in body["instances"]
        ]
        return self.predictor.validate(rows)

    def answer_rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the response to checked rows; raises what `answer` raises."""
        scores, indices = self.predictor.answer_rows(rows)
        labels = self.predictor.name_places(indices)
        if labels is None:
            return {"predictions": scores.tolist()}
        return {"predictions": labels, "probabilities": scores.tolist()}


def deployed_package(script_folder: Path) -> Path | None:
    """Return the path of the package to score with; see `AzureScoring.start`."""
    folders = [os.environ.get("AZUREML_MODEL_DIR", ""), str(script_folder)]
    return next((found for folder in folders if folder and (found := find_package(Path(folder)))), None)


def find_package(folder: Path) -> Path | None:
    """Return the package in a folder that a platform has filled: the folder itself, a subfolder, or a file in it."""
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
