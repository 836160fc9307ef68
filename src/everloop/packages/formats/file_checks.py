"""Check a foreign model's files before a library reads them: references to the outside, and invalid trees.

Each format's own reader makes the cheap checks that always matter (ONNX: external data; Keras: classes). These checks
take as long as reading the model does, so they are made only for files from elsewhere.
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
"""Bytes of `schema.json` in a skops file."""


def check_files(format: str, files: Mapping[str, bytes]) -> None:
    """Check the files of a model, with the names that `Model.to_files` gives them.

    Raises:
        TrustError: one refers to a file, a library or an operator outside of the model.
        CorruptionError: one is damaged.
    """
    if format == "average":
        _check_members(files)
    for name, check in _CHECKS.items():
        if name in files:
            check(files[name])


def check_skops(blob: bytes) -> None:
    """Check a skops file: its unpacked size, and the texts of LightGBM models in it.

    Raises:
        TrustError, CorruptionError: as `check_files`.
    """
    from everloop.packages.formats.lightgbm_text import check_text

    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            if sum(sizes.values()) > MOST_UNPACKED or sizes.get("schema.json", 0) > MOST_SCHEMA:
                raise CorruptionError(
                    f"The skops file unpacks to {sum(sizes.values()):,} bytes, which is too many.",
                    help=f"At most {MOST_UNPACKED:,} bytes are read.",
                )
            schema = json.loads(archive.read("schema.json"))
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, EOFError, RuntimeError) as error:
        # A RuntimeError means that it is encrypted, packed with an unknown method, or nested too deeply.
        raise CorruptionError(
            f"The skops file cannot be read: {type(error).__name__}: {error}", help="Package the model again."
        ) from error
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, str) and node.startswith('"tree\\n'):
            # The text is JSON inside of the JSON.
            try:
                text = json.loads(node)
            except ValueError as error:
                raise CorruptionError(
                    f"A text in the skops file is damaged: {error}", help="Package the model again."
                ) from error
            check_text(text.encode())


def _check_members(files: Mapping[str, bytes]) -> None:
    try:
        formats = [str(name) for name in json.loads(files["average.json"])["formats"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"These files are not an average: {error!r}.", help="Package the model again.") from error
    for index, member in enumerate(formats):
        prefix = f"{index}/"
        inner = {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}
        check_files(member, inner)


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
"""The check for each name of a file in the formats."""
