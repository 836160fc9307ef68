"""Predict with LightGBM through its C interface, without importing its Python package.

`import lightgbm` also imports scikit-learn and pandas if they are installed, which costs 1.5 seconds and a hundred
megabytes that predictions do not need. The shared library alone loads in a few milliseconds, and its function for
single rows predicts in microseconds.

Source: LightGBM's `include/LightGBM/c_api.h`, 4.5 and later; the functions used are unchanged since 3.0.
"""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everloop.errors import CorruptionError, EverloopError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_FLOAT64 = 1  # C_API_DTYPE_FLOAT64
_NORMAL = 0  # C_API_PREDICT_NORMAL: probabilities for the classifying objectives
_CONTRIBUTIONS = 3  # C_API_PREDICT_CONTRIB
_GAIN = 1  # C_API_FEATURE_IMPORTANCE_GAIN
_FEW_ROWS = 256
"""For fewer rows than this, one thread is faster than several."""


class Booster:
    """A LightGBM model that was loaded from its text. It is thread-safe.

    Args:
        text: the text from LightGBM's `model_to_string`.

    Raises:
        MissingExtraError: LightGBM is not installed.
        CorruptionError: the text is not a model.
    """

    def __init__(self, text: str) -> None:
        self._library = library()
        self._handle = ctypes.c_void_p()
        content = text.encode()
        _check_layout(content)
        rounds = ctypes.c_int()
        self._call(
            "LGBM_BoosterLoadModelFromString",
            ctypes.c_char_p(content),
            ctypes.byref(rounds),
            ctypes.byref(self._handle),
        )
        self.rounds = rounds.value
        width, outputs = ctypes.c_int(), ctypes.c_int()
        self._call("LGBM_BoosterGetNumFeature", self._handle, ctypes.byref(width))
        self._call("LGBM_BoosterGetNumClasses", self._handle, ctypes.byref(outputs))
        self.width, self.outputs = width.value, outputs.value
        self._local = threading.local()
        self._fast: list[ctypes.c_void_p] = []

    def predict(self, matrix: Array) -> Array:
        """Return the scores of a matrix of shape (n, width): shape (n,), or (n, outputs) for several classes."""
        out = self._predict(matrix, _NORMAL, self.outputs)
        return out[:, 0] if self.outputs == 1 else out

    def contributions(self, matrix: Array) -> Array:
        """Return the SHAP values of each column, before the link function: shape (n, outputs, width + 1).

        The last value of each row is the expected sum of the trees. Source: TreeSHAP (Lundberg et al., 2018).
        """
        out = self._predict(matrix, _CONTRIBUTIONS, self.outputs * (self.width + 1))
        return out.reshape(len(out), self.outputs, self.width + 1)

    def _predict(self, matrix: Array, kind: int, numbers: int) -> Array:
        data = np.ascontiguousarray(matrix, dtype=np.float64)
        rows = data.shape[0]
        out = np.empty((rows, numbers))
        if rows:
            length = ctypes.c_int64()
            self._call(
                "LGBM_BoosterPredictForMat",
                self._handle,
                data.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_int(_FLOAT64),
                ctypes.c_int32(rows),
                ctypes.c_int32(data.shape[1]),
                ctypes.c_int(1),  # row-major
                ctypes.c_int(kind),
                ctypes.c_int(0),
                ctypes.c_int(-1),
                ctypes.c_char_p(b"num_threads=1" if rows < _FEW_ROWS else b""),
                ctypes.byref(length),
                out.ctypes.data_as(ctypes.c_void_p),
            )
        return out

    def predict_row(self, values: Sequence[float]) -> list[float]:
        """Return the score of one row of `width` values: one number, or one for each class."""
        try:
            fast, row, length, out, function = self._local.single_row
        except AttributeError:
            fast, row, length, out, function = self._local.single_row = self._start_fast()
        row[:] = values
        if function(fast, row, length, out):
            raise self._failure("LGBM_BoosterPredictForMatSingleRowFast")
        return list(out)

    def importance(self) -> Array:
        """Return the total gain of the splits of each matrix column, shape (width,)."""
        out = np.zeros(self.width)
        self._call(
            "LGBM_BoosterFeatureImportance",
            self._handle,
            ctypes.c_int(-1),
            ctypes.c_int(_GAIN),
            out.ctypes.data_as(ctypes.c_void_p),
        )
        return out

    def to_text(self) -> str:
        """Return the model as text, written by LightGBM."""
        length = ctypes.c_int64()
        out = ctypes.create_string_buffer(1 << 16)
        for _ in range(2):
            # If the buffer is too small, the first call returns the size that the second one needs.
            self._call(
                "LGBM_BoosterSaveModelToString",
                self._handle,
                ctypes.c_int(0),
                ctypes.c_int(-1),
                ctypes.c_int(_GAIN),
                ctypes.c_int64(len(out)),
                ctypes.byref(length),
                out,
            )
            if length.value <= len(out):
                break
            out = ctypes.create_string_buffer(length.value)
        return out.value.decode("utf-8", "replace")

    def _start_fast(self) -> tuple[ctypes.c_void_p, object, object, object, object]:
        # Each thread has its own configuration and buffers, because predicting writes to them.
        fast = ctypes.c_void_p()
        self._call(
            "LGBM_BoosterPredictForMatSingleRowFastInit",
            self._handle,
            ctypes.c_int(_NORMAL),
            ctypes.c_int(0),
            ctypes.c_int(-1),
            ctypes.c_int(_FLOAT64),
            ctypes.c_int32(self.width),
            ctypes.c_char_p(b"num_threads=1"),
            ctypes.byref(fast),
        )
        self._fast.append(fast)
        row, out, length = (ctypes.c_double * self.width)(), (ctypes.c_double * self.outputs)(), ctypes.c_int64()
        return fast, row, ctypes.byref(length), out, self._library.LGBM_BoosterPredictForMatSingleRowFast

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._library, name)(*arguments):
            raise self._failure(name)

    def _failure(self, name: str) -> EverloopError:
        message = self._library.LGBM_GetLastError().decode(errors="replace")
        if name == "LGBM_BoosterLoadModelFromString":
            return CorruptionError(f"The bytes are not a LightGBM model: {message}", help="Build the package again.")
        return EverloopError(f"LightGBM failed in {name}: {message}")

    def __del__(self) -> None:
        # If the constructor failed, there is no handle. At interpreter exit, the library is unloaded after this object.
        for fast in getattr(self, "_fast", ()):
            self._library.LGBM_FastConfigFree(fast)
        handle = getattr(self, "_handle", None)
        if handle:
            self._library.LGBM_BoosterFree(handle)


def _check_layout(text: bytes) -> None:
    """Check that the trees of a text are at the offsets that its header gives.

    LightGBM trusts the header. With a truncated or shifted text it reads beyond the end and crashes the process.

    Raises:
        CorruptionError: the offsets are wrong.
    """
    header, _, rest = text.partition(b"\n\n")
    sizes = next((line[11:].split() for line in header.splitlines() if line.startswith(b"tree_sizes=")), None)
    valid = text.startswith(b"tree\n") and sizes is not None and all(size.isdigit() for size in sizes)
    offset = 0
    for number, size in enumerate(sizes or ()):
        valid = valid and rest.startswith(b"Tree=%d\n" % number, offset)
        offset += int(size) if valid else 0
    if not valid or not rest.startswith(b"end of trees", offset):
        raise CorruptionError("The bytes are not a complete LightGBM model.", help="Build the package again.")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Load LightGBM's shared library.

    Raises:
        MissingExtraError: LightGBM is not installed.
    """
    spec = find_spec("lightgbm")  # finds the package without importing it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("lib_lightgbm.so", "lib_lightgbm.dylib"):
            path = Path(folder, "lib", name)
            if path.is_file():
                loaded = ctypes.CDLL(str(path))
                loaded.LGBM_GetLastError.restype = ctypes.c_char_p
                return loaded
    raise MissingExtraError.of("A LightGBM model", "lightgbm", "ml")
