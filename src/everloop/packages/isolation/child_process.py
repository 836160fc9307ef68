"""The child process in which a foreign model is read on trial; see `probing`.

It limits itself before it reads anything of the model: no core dump, so much processor time, so much memory beyond
what the libraries take. Then it reads the model, looks through its trees, and asks it the rows that came with it, since
some damage shows only there. It answers in one line of JSON.
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
"""Characters of a message: a library may put the whole file into it."""
_MOST_FILE_BYTES = 2**30
_START_CPU_S = 10
"""For importing the libraries."""
_LIBRARY_BYTES = 6 * 2**30
"""Address space that libraries map when they are imported; most of it is never touched."""
_LIBRARIES = {
    "skops": ("polars", "skops.io"),
    "sklearn": ("polars", "skops.io"),
    "xgboost": ("polars", "xgboost"),
    "catboost": ("polars", "catboost"),
    "onnx": ("polars", "onnxruntime"),
    "keras": ("polars", "keras"),
}
"""What is imported before memory is counted, as far as it is installed."""
_RESERVED_BYTES = {"catboost": 2 * 2**30}
"""Address space that a format's library reserves at its first model: CatBoost takes a GiB, and touches little of it."""


def main() -> None:
    """Read a job from standard input and answer on standard output."""
    out = os.fdopen(os.dup(1), "wb")
    # Libraries print, to both.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The parent made it; it holds a model's bytes and does not read them.
    job: IsolatedJob = pickle.load(sys.stdin.buffer)  # noqa: S301
    try:
        _JOBS[job.name](job.limits, **job.given)
        answer: dict[str, Any] = {"ok": True}
    except EverloopError as error:
        answer = {"error": type(error).__name__, "message": error.message[:_LONGEST], "help": error.help}
    except MemoryError:
        answer = {"error": "CorruptionError", "message": f"It takes more than {job.limits.memory_bytes:,} bytes."}
    except BaseException as error:  # whatever a stranger's bytes make a library raise
        told = f"It cannot be read: {type(error).__name__}: {error}"
        answer = {"error": "CorruptionError", "message": told[:_LONGEST]}
    out.write(json.dumps(answer).encode())
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
        # What is looked up is not here; the model itself takes what it finds.
        signature = Signature.from_json(known.lookups["signature"])
    folders = {known.format: MODEL_FOLDER} | ({"compiled": COMPILED_FOLDER} if known.compiled else {})
    forms = {
        form: {name.removeprefix(folder): data for name, data in files.items() if name.startswith(folder)}
        for form, folder in folders.items()
    }
    # What the bytes alone show is found before the libraries are loaded, which take longer.
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
            # Where its library is not installed, only its compiled form can ever answer.
            continue
        check_structure(model, boosters=True)
        _ask(model, signature, files)


def _ask(model: Model, signature: Signature, files: Mapping[str, bytes]) -> None:
    """Ask for the rows whose answers came with the package, and for rows at the borders of what it takes."""
    from everloop.packages.parity import frame_of
    from everloop.training.class_decisions import answer_frame, answer_rows

    rows = _rows(signature, files)
    if rows:
        answer_rows(model, rows)
        answer_frame(model, frame_of(rows, signature))
    base = rows[:1] or [dict.fromkeys(signature.names)]
    ask_edges(model, signature, frame_of(base, signature))


def ask_edges(model: Model, signature: Signature, sample: pl.DataFrame) -> None:
    """Ask for rows at the borders of what a model takes. Some are refused by right; what matters is to come back.

    Each is asked for with the others and alone, which are two ways through a library.
    """
    from everloop.packages.parity import edge_rows, frame_of, try_answers

    edges = edge_rows(signature, sample)
    found = try_answers(model, frame_of(edges, signature))
    for row in edges if isinstance(found, Exception) else edges[:20]:
        try_answers(model, frame_of([row], signature))


def _rows(signature: Signature, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    import msgspec

    from everloop.packages.golden_rows import FILE

    try:
        kept = [entry["row"] for entry in msgspec.json.decode(files.get(FILE, b"[]"))]
        values = signature.rows_of(kept)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, EverloopError) as error:
        raise CorruptionError(f"The package's {FILE} cannot be read: {error}") from error
    return [dict(zip(signature.names, row, strict=True)) for row in values]


def _check_request(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    import msgspec

    if "example.json" in files:
        try:
            manifest.read_signature().rows_of(msgspec.json.decode(files["example.json"])["rows"])
        except (msgspec.MsgspecError, KeyError, TypeError, EverloopError) as error:
            raise CorruptionError(f"The package's example is not a request: {error}") from error


def _folder(limits: ProcessLimits, format: str, libraries: list[str], **given: Any) -> None:
    """Read a model out of a folder that another system wrote."""
    from everloop import plugins

    _limit_time(limits)
    _limit_memory(limits, libraries)
    plugins.load("model_folder", format).probe(**given)


_JOBS: dict[str, Callable[..., None]] = {"package": _package, "folder": _folder}


def _limit_time(limits: ProcessLimits) -> None:
    cpu_s = int(_START_CPU_S + limits.cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_FILE_BYTES, _MOST_FILE_BYTES))
    if sys.platform == "linux":
        # A first limit, which leaves room for the libraries.
        most = _mapped() + limits.memory_bytes + _LIBRARY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _limit_memory(limits: ProcessLimits, formats: list[str]) -> None:
    """Import what the formats need, and limit from here on what reading the model takes."""
    for name in dict.fromkeys(library for form in formats for library in _LIBRARIES.get(form, ())):
        with suppress(ImportError):
            import_module(name)
    # What importing left of its share of the time is not the model's.
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (min(hard, int(used + limits.cpu_s) + 1), hard))
    if "polars" in sys.modules:
        # Its threads start with the first query.
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
    """Elsewhere the address space has no limit that holds, so a thread looks at what has been taken."""

    def taken() -> int:
        # Of macOS in bytes, of others in kilobytes.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

    limit = taken() + memory_bytes

    def watch() -> None:
        while taken() <= limit:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
