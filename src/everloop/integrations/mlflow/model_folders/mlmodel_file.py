"""The file `MLmodel`: what a model folder says of itself. Read by a safe loader; what it names stays in its folder.

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
MADE_UP_ROWS = 200

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
    """A model folder and what its `MLmodel` says."""

    folder: Path
    said: Mapping[str, Any]

    @property
    def flavors(self) -> Mapping[str, Mapping[str, Any]]:
        found = self.said.get("flavors")
        return (
            {str(name): flavor for name, flavor in (found or {}).items() if isinstance(flavor, dict)}
            if isinstance(found, dict)
            else {}
        )

    def file(self, name: object) -> Path:
        """A file that the description names.

        Raises:
            DataError: the name leads out of the folder, or a symbolic link stands in its way.
            NotFoundError: there is no such file.
        """
        text = str(name)
        parts = PurePosixPath(text).parts
        if not parts or "\\" in text or "\0" in text or PurePosixPath(text).is_absolute() or ".." in parts:
            raise DataError(f"'{text}' in {FILE} leads out of the model's folder '{self.folder}'.")
        place = self.folder
        for part in parts:
            place = place / part
            if place.is_symlink():
                raise DataError(f"'{place}' is a symbolic link, which a model's folder does not hold.")
        if not place.exists():
            raise NotFoundError(f"The model's folder '{self.folder}' lacks '{text}', which its {FILE} names.")
        return place

    def read(self, name: object) -> bytes:
        place = self.file(name)
        if place.stat().st_size > LARGEST_FILE:
            raise DataError(f"'{place}' has {place.stat().st_size:,} bytes; at most {LARGEST_FILE:,} are read.")
        return place.read_bytes()

    def columns(self) -> list[tuple[str, str]]:
        """Name and MLflow's type of each input, where the signature names columns."""
        return [
            (str(one["name"]), str(one["type"]))
            for one in self._inputs()
            if isinstance(one.get("type"), str) and one["type"] != "tensor" and "name" in one
        ]

    def width(self) -> int | None:
        """How many columns an input tensor of two dimensions has."""
        for one in self._inputs():
            shape = (one.get("tensor-spec") or {}).get("shape") if one.get("type") == "tensor" else None
            if isinstance(shape, list) and len(shape) == 2 and isinstance(shape[1], int) and 0 < shape[1] < 100_000:
                return shape[1]
        return None

    def example(self) -> pl.DataFrame | NDArray[np.float64] | None:
        """The input example that was logged with the model, as the table that it was; None where there is none.

        Raises:
            DataError: it cannot be read as a table.
        """
        info = self.said.get("saved_input_example_info")
        if not isinstance(info, dict) or "artifact_path" not in info:
            return None
        import msgspec

        try:
            data = msgspec.json.decode(self.read(info["artifact_path"]))
        except msgspec.DecodeError as error:
            raise DataError(f"The input example of '{self.folder}' is no JSON: {error}.") from error
        kind = info.get("type")
        try:
            if kind == "ndarray":
                return _array(data["inputs"] if isinstance(data, dict) else data)
            if kind == "dataframe":
                return self._frame(data)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"The input example of '{self.folder}' is no table: {error}.") from error
        return None

    def made_up(self, names: list[str], width: int | None) -> pl.DataFrame | NDArray[np.float64] | None:
        """Rows of the right shape where no example came along: by the signature, else by what the model knows of
        its columns; None where neither says anything."""
        import numpy as np
        import polars as pl

        chance = np.random.default_rng(0)
        columns = self.columns() or [(name, "double") for name in names]
        if not columns:
            width = self.width() or width
            return None if width is None else chance.normal(size=(MADE_UP_ROWS, width))
        made: dict[str, Any] = {}
        for name, kind in columns:
            if kind in ("long", "integer"):
                made[name] = chance.integers(0, 10, MADE_UP_ROWS)
            elif kind == "boolean":
                made[name] = chance.random(MADE_UP_ROWS) < 0.5
            elif kind == "string":
                made[name] = chance.choice(["a", "b", "c"], MADE_UP_ROWS)
            elif kind in ("double", "float"):
                made[name] = chance.normal(size=MADE_UP_ROWS)
            else:
                return None
        return self._typed(pl.DataFrame(made))

    def _inputs(self) -> list[dict[str, Any]]:
        signature = self.said.get("signature")
        text = signature.get("inputs") if isinstance(signature, dict) else None
        if not isinstance(text, str):
            return []
        try:
            found = json.loads(text)
        except ValueError as error:
            raise DataError(f"The signature in '{self.folder / FILE}' is no JSON: {error}.") from error
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def _frame(self, data: Any) -> pl.DataFrame:
        import polars as pl

        if isinstance(data, dict) and "data" in data and "columns" in data:
            names = [str(name) for name in data["columns"]]
            return self._typed(pl.DataFrame(data["data"], schema=names, orient="row", infer_schema_length=None))
        if isinstance(data, list):
            return self._typed(pl.DataFrame(data, infer_schema_length=None))
        raise ValueError("it has neither columns and data nor records")

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
        DataError: it is not what MLflow writes.
        MissingExtraError: PyYAML is not installed.
    """
    place = folder / FILE
    if place.is_symlink() or not place.is_file():
        raise NotFoundError(f"'{folder}' is no MLflow model: it has no {FILE}.")
    if place.stat().st_size > MOST_BYTES:
        raise DataError(f"'{place}' has {place.stat().st_size:,} bytes; at most {MOST_BYTES:,} are read.")
    yaml = need_yaml()
    try:
        said = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"'{place}' cannot be read: {error}") from error
    if not isinstance(said, dict) or not isinstance(said.get("flavors"), dict):
        raise DataError(f"'{place}' names no flavors.", help="Give the folder that mlflow.*.save_model wrote.")
    return Description(folder, said)


def need_yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError.of("MLflow's model folders", "pyyaml", "mlflow") from error
    return yaml


def signature_out(signature: Signature) -> dict[str, str | None]:
    """A signature as `MLmodel` spells it: JSON in texts."""
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
