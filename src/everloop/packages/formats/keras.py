"""Keras models: `.keras` files, read in safe mode and only if every class in them is on a list.

Keras' safe mode refuses code in lambdas, but configurations that name other modules or files have bypassed it. So the
configuration is checked first: every class that it names must be a layer, an initializer or the like that is known to
do only arithmetic. The weights are an HDF5 file, which can link to other files, so that is checked as well before Keras
reads it. Networks with custom layers are saved as Python models, which are code.
Sources: Keras, "Save, serialize, and export models"; The HDF Group, "HDF5 File Format Specification".
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
import zipfile
import zlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from everloop.errors import CorruptionError, MissingExtraError, TrustError, UsageError
from everloop.packages.formats.input_tables import TableKind
from everloop.packages.formats.neural_networks import NetworkModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from everloop.training.trained_model import Files, Task

_STATE, _MODEL = "keras.json", "model.keras"
_MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}
_EARLY = (1980, 1, 1, 0, 0, 0)

KNOWN = frozenset(
    {
        *("Sequential", "Functional", "InputLayer", "Dense", "Dropout", "Activation", "Flatten", "Reshape", "Identity"),
        *("BatchNormalization", "LayerNormalization", "UnitNormalization", "GroupNormalization", "Normalization"),
        *("ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
        *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Dot", "Rescaling"),
        *("ActivityRegularization", "RepeatVector", "Permute", "Embedding", "EinsumDense", "Discretization"),
    }
)
"""Layers and models."""
_KINDS = {
    "initializers": frozenset(
        {
            *("Constant", "Identity", "IdentityInitializer", "Ones", "Zeros", "RandomNormal", "RandomUniform"),
            *("TruncatedNormal", "VarianceScaling", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform"),
            *("LecunNormal", "LecunUniform", "Orthogonal", "OrthogonalInitializer"),
        }
    ),
    "regularizers": frozenset({"L1", "L2", "L1L2", "OrthogonalRegularizer"}),
    "constraints": frozenset({"MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm"}),
    "dtype_policies": frozenset(
        {"DTypePolicy", "DTypePolicyMap", "FloatDTypePolicy", "QuantizedDTypePolicy", "QuantizedFloat8DTypePolicy"}
    ),
}
_MOST_CONFIG = 64 * 2**20
_MOST_BYTES = 4 * 2**30


class KerasModel(NetworkModel):
    """A Keras model of known layers."""

    format = "keras"
    final = "Give the last layer an activation: 'sigmoid' for one output, 'softmax' for one output per class."

    def __init__(self, model: Any, blob: bytes, table: TableKind, task: Task) -> None:
        super().__init__(table, task)
        self.model, self._blob = model, blob

    def forward(self, matrix: NDArray[np.float32]) -> NDArray[Any]:
        import numpy as np

        inputs: Any = matrix
        if len(self.model.inputs) > 1:
            # One input for each column, by its name.
            indices = {name: index for index, name in enumerate(self.inputs)}
            inputs = {item.name: matrix[:, [indices[item.name]]] for item in self.model.inputs}
        found = self.model(inputs, training=False)
        return np.asarray(found.detach().cpu() if hasattr(found, "detach") else found)

    def to_files(self) -> Files:
        state = {"version": 1, "task": self.task, "table": self.table.to_json()}
        return {_MODEL: self._blob, _STATE: json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state, blob = json.loads(files[_STATE]), files[_MODEL]
            task, table = state["task"], TableKind.from_json(state["table"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not a Keras model: {error!r}.", help="Package the model again."
            ) from error
        return cls(load_keras(blob), blob, table, task)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (self.to_files(),)


def is_keras(model: Any) -> bool:
    """Whether it is a Keras model. Does not import Keras."""
    import sys

    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Model)


def adopt_keras(model: Any, table: TableKind, task: Task) -> KerasModel:
    """Wrap a built Keras model without changing it.

    Raises:
        UsageError: it contains custom classes, which no safe format can hold, or inputs that are not columns.
    """
    with tempfile.TemporaryDirectory(prefix="everloop-keras-") as folder, warnings.catch_warnings():
        # Keras warns about NumPy and the like.
        warnings.simplefilter("ignore")
        path = Path(folder, _MODEL)
        model.save(str(path), include_optimizer=False)
        blob = _reproducible(path.read_bytes())
    try:
        loaded = load_keras(blob)
    except TrustError as error:
        raise UsageError(
            error.message,
            help="Save it as a Python model, which is code and signed: an object with predict(context, table).",
        ) from error
    absent = [item.name for item in loaded.inputs if item.name not in table.names] if len(loaded.inputs) > 1 else []
    if absent:
        raise UsageError(
            f"The example lacks the column '{absent[0]}', which is an input of the Keras model.",
            help=f"It has: {', '.join(table.names[:30])}",
        )
    return KerasModel(loaded, blob, table, task)


def load_keras(blob: bytes) -> Any:
    """Read a `.keras` file.

    Raises:
        MissingExtraError: Keras or its backend is not installed.
        TrustError: it names a class that is not known to be harmless.
        CorruptionError: it is not a `.keras` file.
    """
    check_keras(blob)
    if "KERAS_BACKEND" not in os.environ:
        # By default Keras requires TensorFlow, even if another backend is installed.
        found = next((name for name in ("tensorflow", "jax", "torch") if find_spec(name)), None)
        if found is not None:
            os.environ["KERAS_BACKEND"] = found
    try:
        keras: Any = import_module("keras")
    except ImportError:
        raise MissingExtraError.of("A Keras model", "keras and one of tensorflow, jax and torch", "keras") from None
    _check_weights(blob)
    with tempfile.TemporaryDirectory(prefix="everloop-keras-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, _MODEL)
        path.write_bytes(blob)
        try:
            return keras.saving.load_model(str(path), compile=False, safe_mode=True)
        except Exception as error:  # Keras raises many kinds of errors
            raise CorruptionError(
                f"The Keras model cannot be read: {error}", help="Package the model again."
            ) from error


def check_keras(blob: bytes) -> None:
    """Check that a `.keras` file names only known classes. Does not need Keras.

    Raises:
        TrustError: it names a class that is not known to be harmless.
        CorruptionError: it is not a `.keras` file.
    """
    unknown = next(_unknown_names(blob), None)
    if unknown is not None:
        raise TrustError(
            f"The Keras model contains '{unknown}', which is not known to be harmless.",
            help="Save it as a Python model, which is code and signed: an object with predict(context, table).",
        )


def _check_weights(blob: bytes) -> None:
    """Check that all weights are in this file; HDF5 has four ways to keep them in another.

    Raises:
        TrustError: some are in another file.
        CorruptionError: they cannot be read.
    """
    h5py: Any = import_module("h5py")
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        weights = io.BytesIO(archive.read("model.weights.h5")) if "model.weights.h5" in archive.namelist() else None
    if weights is None:
        return
    try:
        with h5py.File(weights, "r") as file:
            waiting = [file]
            links = 0
            while waiting:
                group = waiting.pop()
                for name in group:
                    links += 1
                    link = group.get(name, getlink=True)
                    if not isinstance(link, h5py.HardLink) or links > 1_000_000:
                        raise TrustError(
                            f"The Keras model's weights contain the link '{name}', which points to another file.",
                            help="Save the model again as a single .keras file.",
                        )
                    member = group[name]
                    if isinstance(member, h5py.Group):
                        waiting.append(member)
                    elif isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
                        raise TrustError(
                            f"The numbers of '{member.name}' in the Keras model's weights are in other files.",
                            help="Save the model again as a single .keras file.",
                        )
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CorruptionError(
            f"The Keras model's weights cannot be read: {error}", help="Package the model again."
        ) from error


def _unknown_names(blob: bytes) -> Iterator[str]:
    """Yield files in the archive, and classes in the configuration, that are not known."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            names = archive.namelist()
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            if len(set(names)) != len(names):
                raise ValueError("a file is in it twice")
            if sizes.get("config.json", 0) > _MOST_CONFIG or sum(sizes.values()) > _MOST_BYTES:
                raise ValueError(f"it unpacks to {sum(sizes.values()):,} bytes")
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, EOFError, RuntimeError) as error:
        raise CorruptionError(f"The Keras model cannot be read: {error}", help="Package the model again.") from error
    yield from (name for name in names if name not in _MEMBERS)
    waiting: list[Any] = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "class_name" in item and (unknown := _unknown_class(item)) is not None:
                yield unknown
            # All values are searched, because Keras compiles inner models even with compile=False.
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _unknown_class(item: Mapping[str, Any]) -> str | None:
    """Return the qualified name of a class if it is not known to be harmless."""
    module, name, registered = str(item.get("module")), str(item["class_name"]), item.get("registered_name")
    qualified = f"{module}.{name}"
    if name in ("__keras_tensor__", "__tuple__", "__numpy__", "__tensor__", "__slice__", "DTypePolicy"):
        return None
    if registered not in (None, name) or not (module == "keras" or module.startswith("keras.")):
        return qualified
    kind = module.removeprefix("keras.src.").removeprefix("keras.").partition(".")[0]
    if kind in _KINDS:
        return None if name in _KINDS[kind] else qualified
    return None if kind in ("layers", "models", "keras") and name in KNOWN else qualified


def _reproducible(blob: bytes) -> bytes:
    """Remove times and the training configuration from a file, so that the same model gives the same bytes."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(files["metadata.json"])
    metadata.pop("date_saved", None)
    config = _not_compiled(json.loads(files["config.json"]))
    files["metadata.json"] = json.dumps(metadata, sort_keys=True).encode()
    files["config.json"] = json.dumps(config).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EARLY), files[name])
    return out.getvalue()


def _not_compiled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _not_compiled(one) for name, one in value.items() if name != "compile_config"}
    return [_not_compiled(one) for one in value] if isinstance(value, list) else value


def _reread(files: Files) -> KerasModel:
    return KerasModel.from_files(files)
