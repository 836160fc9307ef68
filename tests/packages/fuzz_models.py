"""Run by itself: reads changed packages on trial, each in a fork, and asks again those that pass.

A trial in production starts Python for each package. Here the libraries are imported once and each trial is a fork of
this process, with the same limits and the same checks; so hundreds of changed packages take as long as a few.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from everloop.errors import EverloopError
from everloop.packages.isolation import child_process
from everloop.packages.isolation.isolated_load import ProcessLimits
from everloop.packages.package_manifest import Manifest
from everloop.packages.parity import try_predict
from everloop.packages.predictor import predictor_from

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = ProcessLimits(cpu_s=3, wall_s=60, memory_bytes=2**30)
ROWS = 200


def main(jobs: str, out: str, *libraries: str) -> None:
    child_process._START_CPU_S = 0
    for name in libraries:
        import_module(name)
    outcomes = []
    for manifest, files in pickle.loads(Path(jobs).read_bytes()):  # noqa: S301
        first = forked(lambda manifest=manifest, files=files: tried(manifest, files))
        second = forked(lambda manifest=manifest, files=files: asked(manifest, files)) if first == "ok" else ""
        outcomes.append([first, second])
    Path(out).write_text(json.dumps(outcomes))


def tried(manifest: bytes, files: dict[str, bytes]) -> str:
    child_process._package(LIMITS, manifest, files)
    return "ok"


def asked(manifest: bytes, files: dict[str, bytes]) -> str:
    """Load it without any check, and ask for rows of all kinds, as anybody may."""
    resource.setrlimit(resource.RLIMIT_CPU, (5, 6))
    predictor = predictor_from(Manifest.from_bytes(manifest), files)
    chance = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for item in predictor.signature.inputs:
        if item.type == "string":
            columns[item.name] = chance.choice([*item.categories, "?"], ROWS)
        elif item.type == "int":
            columns[item.name] = chance.integers(-5, 60, ROWS)
        else:
            columns[item.name] = chance.normal(size=ROWS) * 10.0 ** chance.integers(-3, 5, ROWS)
    frame = pl.DataFrame(columns)
    found = try_predict(predictor.model, frame)
    for at in range(0, ROWS, 50):
        try_predict(predictor.model, frame[at : at + 1])
    return "answers" if not isinstance(found, Exception) else f"refuses rows: {type(found).__name__}"


def forked(work: Callable[[], str]) -> str:
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            said = work()
        except EverloopError as error:
            said = f"refused: {type(error).__name__}: {error.message[:300]}"
        except BaseException as error:
            said = f"raised: {type(error).__name__}: {str(error)[:300]}"
        os.write(theirs, said.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said


if __name__ == "__main__":
    main(*sys.argv[1:])
