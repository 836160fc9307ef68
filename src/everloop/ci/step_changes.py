"""Which steps of a loop a change touches: compares the code and the parameters of every step before and after.

The loop before the change is imported by another process, from a copy of the project, because two versions of the same
modules cannot live in one. That process runs
`python -m everloop.ci.step_changes FOLDER LOOP CHANGED_FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.ci.git_changes import GitChange
    from everloop.loop import Loop

_TIMEOUT_S = 600.0
_WIRING = "input:wiring"


@dataclass(frozen=True, slots=True)
class TouchedStep:
    """A step that a change touches, itself or because a step before it is touched."""

    name: str
    reason: str
    direct: bool
    """Whether its own code or parameters differ."""


@dataclass(frozen=True, slots=True)
class StepChanges:
    """The steps that a change touches, in the order of running, and steps that it removes."""

    touched: tuple[TouchedStep, ...]
    removed: tuple[str, ...] = ()
    remark: str = ""
    """Why the loop before the change could not be compared, if it could not."""

    @property
    def direct(self) -> tuple[TouchedStep, ...]:
        return tuple(step for step in self.touched if step.direct)


def find_touched(loop: Loop, folder: Path, change: GitChange) -> StepChanges:
    """Find the steps that a change touches.

    A changed data file or environment touches every step, because any step may depend on it.

    Args:
        loop: the loop after the change.
        folder: the project's folder.
        change: what was changed.
    """
    from everloop.ci.git_changes import export_project

    after = describe_steps(loop)
    try:
        with tempfile.TemporaryDirectory(prefix="everloop-base-") as copy:
            before = _describe_in_process(export_project(folder, change.base, Path(copy)), loop.name, folder)
    except EverloopError as error:
        reason = "the loop before the change cannot be compared"
        steps = tuple(TouchedStep(name, reason, direct=True) for name in after)
        return StepChanges(steps, remark=error.message)
    return compare_steps(before, after, change)


def compare_steps(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], change: GitChange
) -> StepChanges:
    """Compare two descriptions of a loop's steps, as `describe_steps` returns them."""
    from everloop.pipeline import fingerprint as fp

    everywhere = ""
    if change.environment:
        everywhere = f"the environment changed: {', '.join(change.environment[:3])}"
    elif change.data:
        everywhere = f"files changed that a step may read: {', '.join(change.data[:3])}"
    touched: dict[str, TouchedStep] = {}
    for name, step in after.items():
        own = ""
        if name not in before:
            own = "new step"
        elif step["parts"] != before[name]["parts"]:
            own = fp.reason(step["parts"], before[name]["parts"], step["home"])
            own = "its inputs are wired differently" if "wiring" in own else own
            own = "code changed" if own == fp.NOTHING_CHANGED else own
        follows = [need for need in step["needs"] if need in touched]
        if own or everywhere:
            touched[name] = TouchedStep(name, own or everywhere, direct=bool(own))
        elif follows:
            touched[name] = TouchedStep(name, f"follows {', '.join(follows)}", direct=False)
    return StepChanges(tuple(touched.values()), tuple(name for name in before if name not in after))


def describe_steps(loop: Loop) -> dict[str, dict[str, Any]]:
    """Return what each step of a loop depends on, besides data: parts of its fingerprint, and the steps before it."""
    from everloop.loop.stages import graph_of
    from everloop.pipeline import fingerprint as fp
    from everloop.pipeline.code.step_code import code_of
    from everloop.pipeline.graph import find_refs
    from everloop.stores.objects.content_addressing import ContentStore

    graph = graph_of(loop)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="everloop-steps-") as folder:
        objects = ContentStore(str(Path(folder, "objects")))
        for name in graph.order():
            node = graph.nodes[name]
            code = code_of(node.step.function)
            parts = dict(fp.parts_of(node, node.params, objects, code=code))
            refs = [(key, ref.node, ref.output) for key, value in node.inputs.items() for ref in find_refs(value)]
            parts[_WIRING] = repr(refs)
            found[name] = {"parts": parts, "needs": list(node.needs), "home": code.home}
    return found


def _describe_in_process(folder: Path, loop: str, after: Path) -> dict[str, dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "EVERLOOP_PROJECT"}
    command = [sys.executable, "-m", "everloop.ci.step_changes", str(folder), loop, str(after)]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFoundError(f"The loop before the change cannot be imported: {error}.") from error
    try:
        # A project may print while it is imported. The description is the last line.
        answer: dict[str, Any] = json.loads(done.stdout.decode("utf-8", "replace").strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NotFoundError(
            f"The loop before the change cannot be imported: {lines[-1] if lines else 'it printed nothing'}"
        ) from error
    if "error" in answer:
        raise NotFoundError(f"The loop before the change cannot be imported: {answer['error']}")
    steps: dict[str, dict[str, Any]] = answer["steps"]
    return steps


def _imported_files() -> list[Path]:
    """Return the files of imported modules that are not installed packages."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    paths = [Path(file) for file in files if isinstance(file, str)]
    own = Path(__file__).parents[2]
    return [
        path
        for path in paths
        if not path.is_relative_to(sys.prefix)
        and not path.is_relative_to(own)
        and not {"site-packages", "dist-packages"} & set(path.parts)
    ]


def _main(folder: str, name: str, after: str) -> None:
    from everloop.loop import load_project

    answer: dict[str, Any]
    try:
        answer = {"steps": describe_steps(load_project(Path(folder)).loop(name))}
    except EverloopError as error:
        answer = {"error": error.message}
    inside = [path for path in _imported_files() if path.is_relative_to(Path(after))]
    if inside:
        # Such as a package of the project that is installed in place: it would hide what has changed.
        answer = {"error": f"it imports {inside[0].name} of the changed project"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3])
