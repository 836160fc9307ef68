"""LightGBM's prediction through its C interface, without LightGBM's Python package.

`import lightgbm` brings scikit-learn and pandas along where they are installed, a second and a half and a hundred
megabytes that answering does not need. The shared library alone loads in a few milliseconds, and its single-row
entry point answers in microseconds.

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
"""Below this waking other threads costs more than they save."""


class Booster:
    """A model text, loaded for answering. Safe to ask from several threads at once.

    Args:
        text: what LightGBM's `model_to_string` gave.

    Raises:
        MissingExtraError: LightGBM is not installed.
        CorruptionError: the text is no model.
    """

    def __init__(self, text: str) -> None:
        self._library = library()
        self._handle = ctypes.c_void_p()
        written = text.encode()
        _check_layout(written)
        rounds = ctypes.c_int()
        self._call(
            "LGBM_BoosterLoadModelFromString",
            ctypes.c_char_p(written),
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
        """Answers for a matrix of shape (n, width): (n,), or (n, outputs) for several classes."""
        out = self._predict(matrix, _NORMAL, self.outputs)
        return out[:, 0] if self.outputs == 1 else out

    def contributions(self, matrix: Array) -> Array:
        """What each column adds to the sum of the trees, before any link: shape (n, outputs, width + 1).

        The last of each is the sum that is expected of no row in particular. By TreeSHAP (Lundberg et al., 2018).
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
        """The answer for one row of `width` values: one number, or one for each class."""
        try:
            fast, row, length, out, function = self._local.one
        except AttributeError:
            fast, row, length, out, function = self._local.one = self._start_fast()
        row[:] = values
        if function(fast, row, length, out):
            raise self._failure("LGBM_BoosterPredictForMatSingleRowFast")
        return list(out)

    def importance(self) -> Array:
        """Total gain of each matrix column's splits, shape (width,)."""
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
        """The model as LightGBM holds it, written out again."""
        length = ctypes.c_int64()
        out = ctypes.create_string_buffer(1 << 16)
        for _ in range(2):
            # The first call tells the size, if the buffer is too small for the text.
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
        # One configuration and one pair of buffers a thread: the buffers are written while another thread predicts.
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
        said = self._library.LGBM_GetLastError().decode(errors="replace")
        if name == "LGBM_BoosterLoadModelFromString":
            return CorruptionError(f"The bytes are not a LightGBM model: {said}", help="Build the package again.")
        return EverloopError(f"LightGBM refused {name}: {said}")

    def __del__(self) -> None:
        # A refused constructor leaves the handle empty; at interpreter exit the library outlives us.
        for fast in getattr(self, "_fast", ()):
            self._library.LGBM_FastConfigFree(fast)
        handle = getattr(self, "_handle", None)
        if handle:
            self._library.LGBM_BoosterFree(handle)


def _check_layout(text: bytes) -> None:
    """Refuse a text whose trees are not where its header says.

    LightGBM trusts that header: it reads a cut or shifted text beyond its end and takes the process down.
    """
    header, _, rest = text.partition(b"\n\n")
    sizes = next((line[11:].split() for line in header.splitlines() if line.startswith(b"tree_sizes=")), None)
    sound = text.startswith(b"tree\n") and sizes is not None and all(size.isdigit() for size in sizes)
    at = 0
    for number, size in enumerate(sizes or ()):
        sound = sound and rest.startswith(b"Tree=%d\n" % number, at)
        at += int(size) if sound else 0
    if not sound or not rest.startswith(b"end of trees", at):
        raise CorruptionError("The bytes are not a whole LightGBM model.", help="Build the package again.")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """LightGBM's shared library.

    Raises:
        MissingExtraError: it is not installed.
    """
    spec = find_spec("lightgbm")  # looks the package up without running it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("lib_lightgbm.so", "lib_lightgbm.dylib"):
            path = Path(folder, "lib", name)
            if path.is_file():
                loaded = ctypes.CDLL(str(path))
                loaded.LGBM_GetLastError.restype = ctypes.c_char_p
                return loaded
    raise MissingExtraError.of("A LightGBM model", "lightgbm", "ml")
