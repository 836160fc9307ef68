"""What is seen in a model's files before a library reads them: names of things outside, and trees that do not end.

Each format's own reader does what is cheap and matters always (ONNX: external data; Keras: classes). Here is what takes
as long as reading the model does, for files that came from elsewhere.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST_UNPACKED = 4 * 2**30
MOST_SCHEMA = 2**28
"""Bytes of the description in a skops file."""


def check_files(format: str, files: Mapping[str, bytes]) -> None:
    """Look through the files of a model, as `Model.to_files` names them.

    Raises:
        TrustError: one names a file, a library or an operator outside of the model.
        CorruptionError: one does not hold together.
    """
    if format == "average":
        _check_members(files)
    for name, check in _CHECKS.items():
        if name in files:
            check(files[name])


def check_skops(blob: bytes) -> None:
    """Look through a skops file: what it unpacks to, and the texts of LightGBM models in it.

    Raises:
        TrustError, CorruptionError: as `check_files`.
    """
    from everloop.packages.formats.lightgbm_text import check_text

    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            if sum(sizes.values()) > MOST_UNPACKED or sizes.get("schema.json", 0) > MOST_SCHEMA:
                raise CorruptionError(f"The skops file unpacks to {sum(sizes.values()):,} bytes, which is too many.")
            schema = json.loads(archive.read("schema.json"))
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, EOFError, RuntimeError) as error:
        # A RuntimeError: it is encrypted, packed in a way that Python does not know, or nested too deeply.
        raise CorruptionError(f"There is no model in skops' format here: {type(error).__name__}: {error}") from error
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, str) and node.startswith('"tree\\n'):
            # A text is kept as JSON in the JSON.
            try:
                text = json.loads(node)
            except ValueError as error:
                raise CorruptionError(f"A text in the skops file is damaged: {error}") from error
            check_text(text.encode())


def _check_members(files: Mapping[str, bytes]) -> None:
    try:
        formats = [str(name) for name in json.loads(files["average.json"])["formats"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"These files are not an average: {error!r}.", help="Build it again.") from error
    for place, one in enumerate(formats):
        prefix = f"{place}/"
        inner = {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}
        check_files(one, inner)


def _check_text(text: bytes) -> None:
    from everloop.packages.formats.lightgbm_text import check_text

    check_text(text)


def _check_xgboost(blob: bytes) -> None:
    from everloop.packages.formats.xgboost_trees import check_trees

    check_trees(blob)


def _check_onnx(graph: bytes) -> None:
    from everloop.packages.formats.onnx_references import check_references

    check_references(graph)


def _check_keras(blob: bytes) -> None:
    from everloop.packages.formats.keras import check_keras

    check_keras(blob)


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "model.txt": _check_text,
    "trees.txt": _check_text,
    "model.skops": check_skops,
    "model.ubj": _check_xgboost,
    "model.onnx": _check_onnx,
    "model.keras": _check_keras,
}
"""By the names that the formats give their files."""
