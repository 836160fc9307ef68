"""Reads the file `MLmodel`, which describes a model folder, with a safe loader. Paths in it must stay in the folder.

Source: MLflow 3's model format; the keys are those that its own flavours write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, MissingExtraError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.packages.signature import Signature
    from everloop.records import Json

FILE = "MLmodel"
MOST_BYTES = 1 << 20
LARGEST_FILE = 4 << 30
GENERATED_ROWS = 200

_DTYPES = {
    "double": "Float64",
    "float": "Float32",
    "long": "Int64",
    "integer": "Int32",
    "boolean": "Boolean",
    "string": "String",
    "datetime": "Datetime",
    "binary": "Binary",
}
_TYPES = {"float": "double", "int": "long", "bool": "boolean", "string": "string", "datetime": "datetime"}


@dataclass(frozen=True, slots=True)
class Description:
    """A model folder and the content of its `MLmodel`."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def flavors(self) -> Mapping[str, Mapping[str, Any]]:
        found = self.content.get("flavors")
        return (
            {str(name): flavor for name, flavor in (found or {}).items() if isinstance(flavor, dict)}
            if isinstance(found, dict)
            else {}
        )

    def file(self, name: object) -> Path:
        """Return the path of a file that `MLmodel` names.

        Raises:
            DataError: the path leads out of the folder, or has a symbolic link in it.
            NotFoundError: there is no such file.
        """
        text = str(name)
        parts = PurePosixPath(text).parts
        if not parts or "\\" in text or "\0" in text or PurePosixPath(text).is_absolute() or ".." in parts:
            raise DataError(f"The path '{text}' in {FILE} leads out of the model folder '{self.folder}'.")
        path = self.folder
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise DataError(
                    f"'{path}' is a symbolic link, which is not allowed in a model folder.",
                    help="Copy the file instead.",
                )
        if not path.exists():
            raise NotFoundError(f"The model folder '{self.folder}' has no '{text}', which its {FILE} names.")
        return path

    def read(self, name: object) -> bytes:
        path = self.file(name)
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"'{path}' has {path.stat().st_size:,} bytes; at most {LARGEST_FILE:,} are allowed.")
        return path.read_bytes()

    def columns(self) -> list[tuple[str, str]]:
        """Return name and MLflow type of each input column; empty if the signature has no columns."""
        return [
            (str(one["name"]), str(one["type"]))
            for one in self._inputs()
            if isinstance(one.get("type"), str) and one["type"] != "tensor" and "name" in one
        ]

    def width(self) -> int | None:
        """Return the number of columns of a two-dimensional input tensor."""
        for one in self._inputs():
            shape = (one.get("tensor-spec") or {}).get("shape") if one.get("type") == "tensor" else None
            if isinstance(shape, list) and len(shape) == 2 and isinstance(shape[1], int) and 0 < shape[1] < 100_000:
                return shape[1]
        return None

    def example(self) -> pl.DataFrame | NDArray[np.float64] | None:
        """Return the input example that was logged with the model, as a table; None if there is none.

        Raises:
            DataError: it cannot be read as a table.
        """
        info = self.content.get("saved_input_example_info")
        if not isinstance(info, dict) or "artifact_path" not in info:
            return None
        import msgspec

        try:
            data = msgspec.json.decode(self.read(info["artifact_path"]))
        except msgspec.DecodeError as error:
            raise DataError(f"The input example of '{self.folder}' is not JSON: {error}.") from error
        kind = info.get("type")
        try:
            if kind == "ndarray":
                return _array(data["inputs"] if isinstance(data, dict) else data)
            if kind == "dataframe":
                return self._frame(data)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"The input example of '{self.folder}' is not a table: {error}.") from error
        return None

    def generated_rows(self, names: list[str], width: int | None) -> pl.DataFrame | NDArray[np.float64] | None:
        """Generate rows if there is no example: from the signature, else from the model's column names or width.

        Returns None if neither is known.
        """
        import numpy as np
        import polars as pl

        rng = np.random.default_rng(0)
        columns = self.columns() or [(name, "double") for name in names]
        if not columns:
            width = self.width() or width
            return None if width is None else rng.normal(size=(GENERATED_ROWS, width))
        data: dict[str, Any] = {}
        for name, kind in columns:
            if kind in ("long", "integer"):
                data[name] = rng.integers(0, 10, GENERATED_ROWS)
            elif kind == "boolean":
                data[name] = rng.random(GENERATED_ROWS) < 0.5
            elif kind == "string":
                data[name] = rng.choice(["a", "b", "c"], GENERATED_ROWS)
            elif kind in ("double", "float"):
                data[name] = rng.normal(size=GENERATED_ROWS)
            else:
                return None
        return self._typed(pl.DataFrame(data))

    def _inputs(self) -> list[dict[str, Any]]:
        signature = self.content.get("signature")
        text = signature.get("inputs") if isinstance(signature, dict) else None
        if not isinstance(text, str):
            return []
        try:
            found = json.loads(text)
        except ValueError as error:
            raise DataError(f"The signature in '{self.folder / FILE}' is not JSON: {error}.") from error
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def _frame(self, data: Any) -> pl.DataFrame:
        import polars as pl

        if isinstance(data, dict) and "data" in data and "columns" in data:
            names = [str(name) for name in data["columns"]]
            return self._typed(pl.DataFrame(data["data"], schema=names, orient="row", infer_schema_length=None))
        if isinstance(data, list):
            return self._typed(pl.DataFrame(data, infer_schema_length=None))
        raise ValueError("it has neither 'columns' and 'data', nor a list of records")

    def _typed(self, frame: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        kinds = dict(self.columns())
        wanted = {name: _DTYPES[kinds[name]] for name in frame.columns if kinds.get(name) in _DTYPES}
        casts = [
            pl.col(name).str.to_datetime() if kind == "Datetime" and frame.schema[name] == pl.String
            else pl.col(name).cast(getattr(pl, kind))
            for name, kind in wanted.items()
        ]  # fmt: skip
        return frame.with_columns(casts)


def read_description(folder: Path) -> Description:
    """Read a folder's `MLmodel`.

    Raises:
        NotFoundError: the folder has none.
        DataError: the file is not valid.
        MissingExtraError: PyYAML is not installed.
    """
    path = folder / FILE
    if path.is_symlink() or not path.is_file():
        raise NotFoundError(
            f"'{folder}' is not an MLflow model: it has no {FILE}.",
            help="Give the folder that mlflow.*.save_model wrote.",
        )
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"'{path}' has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are allowed.")
    yaml = need_yaml()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("flavors"), dict):
        raise DataError(f"'{path}' has no flavors.", help="Give the folder that mlflow.*.save_model wrote.")
    return Description(folder, content)


def need_yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError.of("MLflow's model folders", "pyyaml", "mlflow") from error
    return yaml


def signature_out(signature: Signature) -> dict[str, str | None]:
    """Return a signature in the format of `MLmodel`: JSON in strings."""
    inputs = [
        {"type": _TYPES.get(one.type, "string"), "name": one.name, "required": not one.nullable}
        for one in signature.inputs
    ]
    output = {"type": _answer_type(signature.task, signature.classes), "required": True}
    return {"inputs": json.dumps(inputs), "outputs": json.dumps([output]), "params": None}


def _answer_type(task: str, classes: tuple[Json, ...]) -> str:
    if task == "regression":
        return "double"
    if all(isinstance(one, bool) for one in classes):
        return "boolean"
    return "long" if all(isinstance(one, int) for one in classes) else "string"


def _array(data: Any) -> NDArray[np.float64]:
    import numpy as np

    found = np.asarray(data)
    if found.ndim != 2 or found.dtype.kind not in "fiub":
        raise ValueError(f"an array of shape {found.shape} and type {found.dtype}")
    return found
