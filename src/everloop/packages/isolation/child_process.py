"""The child process that loads a foreign model on trial; see `isolated_load`.

It sets limits before it reads the model: no core dumps, a maximum of processor time, and a maximum of memory beyond
what the libraries take. Then it reads the model, checks its trees, and predicts the package's golden rows, because some
damage shows only there. It reports the result as one line of JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, EverloopError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import polars as pl

    from everloop.packages.isolation.isolated_load import IsolatedJob, ProcessLimits
    from everloop.packages.package_manifest import Manifest
    from everloop.packages.signature import Signature
    from everloop.training.trained_model import Model

_LONGEST = 2000
"""Characters of a message; a library may put the whole file into it."""
_MOST_FILE_BYTES = 2**30
_START_CPU_S = 10
"""Processor time for importing the libraries."""
_LIBRARY_BYTES = 6 * 2**30
"""Address space that libraries map on import; they never touch most of it."""
_LIBRARIES = {
    "skops": ("polars", "skops.io"),
    "sklearn": ("polars", "skops.io"),
    "xgboost": ("polars", "xgboost"),
    "catboost": ("polars", "catboost"),
    "onnx": ("polars", "onnxruntime"),
    "keras": ("polars", "keras"),
}
"""Modules to import, if installed, before memory is measured."""
_RESERVED_BYTES = {"catboost": 2 * 2**30}
"""Address space that a library reserves for its first model: CatBoost reserves a GiB and touches little of it."""


def main() -> None:
    """Read a job from standard input and write the result to standard output."""
    out = os.fdopen(os.dup(1), "wb")
    # Libraries print to both streams.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The parent process wrote this pickle; it holds the model's bytes unread.
    job: IsolatedJob = pickle.load(sys.stdin.buffer)  # noqa: S301
    try:
        _JOBS[job.name](job.limits, **job.arguments)
        result: dict[str, Any] = {"ok": True}
    except EverloopError as error:
        result = {"error": type(error).__name__, "message": error.message[:_LONGEST], "help": error.help}
    except MemoryError:
        result = {
            "error": "CorruptionError",
            "message": f"Reading it takes more than {job.limits.memory_bytes:,} bytes of memory.",
        }
    except BaseException as error:  # a library can raise anything on foreign bytes
        message = f"It cannot be read: {type(error).__name__}: {error}"
        result = {"error": "CorruptionError", "message": message[:_LONGEST]}
    out.write(json.dumps(result).encode())
    out.flush()
    # A library's threads may fail when the interpreter ends, and there is nothing left to do.
    os._exit(0)


def _package(limits: ProcessLimits, manifest: bytes, files: Mapping[str, bytes]) -> None:
    from everloop.packages.formats.estimator_structure import check_structure
    from everloop.packages.formats.file_checks import check_files
    from everloop.packages.package_manifest import COMPILED_FOLDER, MODEL_FOLDER, Manifest
    from everloop.packages.signature import Signature
    from everloop.training.trained_model import model_from_files

    known = Manifest.from_bytes(manifest)
    signature = known.read_signature()
    if known.lookups:
        # There is no online store here, so the inner model is tried.
        signature = Signature.from_json(known.lookups["signature"])
    folders = {known.format: MODEL_FOLDER} | ({"compiled": COMPILED_FOLDER} if known.compiled else {})
    forms = {
        form: {name.removeprefix(folder): data for name, data in files.items() if name.startswith(folder)}
        for form, folder in folders.items()
    }
    # Check the bytes first, because loading the libraries takes longer.
    _limit_time(limits)
    _check_request(known, files)
    for form, inner in forms.items():
        check_files(form, inner)
    _limit_memory(limits, list(forms))
    for form, inner in forms.items():
        try:
            model = model_from_files(form, inner)
        except MissingExtraError:
            if not known.compiled or form == "compiled":
                raise
            # Without its library, only the compiled form can ever predict.
            continue
        check_structure(model, boosters=True)
        _predict(model, signature, files)


def _predict(model: Model, signature: Signature, files: Mapping[str, bytes]) -> None:
    """Predict the package's golden rows, and edge rows."""
    from everloop.packages.parity import frame_of
    from everloop.training.class_decisions import answer_frame, answer_rows

    rows = _rows(signature, files)
    if rows:
        answer_rows(model, rows)
        answer_frame(model, frame_of(rows, signature))
    base = rows[:1] or [dict.fromkeys(signature.names)]
    predict_edges(model, signature, frame_of(base, signature))


def predict_edges(model: Model, signature: Signature, sample: pl.DataFrame) -> None:
    """Predict edge rows. A model may refuse some of them, but it must not crash or hang.

    Each row is predicted together with the others and alone, since libraries use different code for the two.
    """
    from everloop.packages.parity import edge_rows, frame_of, try_predict

    edges = edge_rows(signature, sample)
    found = try_predict(model, frame_of(edges, signature))
    for row in edges if isinstance(found, Exception) else edges[:20]:
        try_predict(model, frame_of([row], signature))


def _rows(signature: Signature, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    import msgspec

    from everloop.packages.golden_rows import FILE

    try:
        golden = [entry["row"] for entry in msgspec.json.decode(files.get(FILE, b"[]"))]
        values = signature.rows_of(golden)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, EverloopError) as error:
        raise CorruptionError(f"The package's {FILE} cannot be read: {error}") from error
    return [dict(zip(signature.names, row, strict=True)) for row in values]


def _check_request(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    import msgspec

    if "example.json" in files:
        try:
            manifest.read_signature().rows_of(msgspec.json.decode(files["example.json"])["rows"])
        except (msgspec.MsgspecError, KeyError, TypeError, EverloopError) as error:
            raise CorruptionError(f"The package's example is not a valid request: {error}") from error


def _folder(limits: ProcessLimits, format: str, libraries: list[str], **arguments: Any) -> None:
    """Read a model from a folder that another system wrote."""
    from everloop import plugins

    _limit_time(limits)
    _limit_memory(limits, libraries)
    plugins.load("model_folder", format).probe(**arguments)


_JOBS: dict[str, Callable[..., None]] = {"package": _package, "folder": _folder}


def _limit_time(limits: ProcessLimits) -> None:
    cpu_s = int(_START_CPU_S + limits.cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_FILE_BYTES, _MOST_FILE_BYTES))
    if sys.platform == "linux":
        # This first limit leaves room for the libraries.
        most = _mapped() + limits.memory_bytes + _LIBRARY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _limit_memory(limits: ProcessLimits, formats: list[str]) -> None:
    """Import what the formats need, and then limit what reading the model may take."""
    for name in dict.fromkeys(library for form in formats for library in _LIBRARIES.get(form, ())):
        with suppress(ImportError):
            import_module(name)
    # The model must not get the processor time that importing has not used.
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (min(hard, int(used + limits.cpu_s) + 1), hard))
    if "polars" in sys.modules:
        # Start its threads, which begin with the first query.
        sys.modules["polars"].DataFrame({"a": [1]}).select("a")
    if sys.platform == "linux":
        most = _mapped() + limits.memory_bytes + sum(_RESERVED_BYTES.get(form, 0) for form in set(formats))
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    else:
        _watch_memory(limits.memory_bytes)


def _mapped() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - nothing more is imported for it
        return int(file.read().split()[0]) * resource.getpagesize()


def _watch_memory(memory_bytes: int) -> None:
    """Watch memory in a thread, for systems on which a limit of the address space has no effect."""

    def taken() -> int:
        # In bytes on macOS, in kilobytes elsewhere.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

    limit = taken() + memory_bytes

    def watch() -> None:
        while taken() <= limit:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
