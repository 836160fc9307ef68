"""Notices that a project's code has changed on disk, and finds out what the change does before it is used.

The changed project is imported in a fresh process. If that fails, the loop that runs stays as it is. Otherwise the two
declarations are compared, and the steps that would run again are planned.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, ProjectError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from everloop.loop.loop_definition import Loop
    from everloop.loop.project import Project
    from everloop.stores import Store

DESCRIBE_S = 120.0
"""How long importing the changed project and planning its steps may take."""
PARTS = ("data", "train", "gates", "serve", "watch", "retrain", "model", "timeout")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_ELSEWHERE = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """What a change of the project's files does. `changes` are sentences; empty if the declaration is the same."""

    changes: list[str] = field(default_factory=list)
    steps: list[dict[str, str]] = field(default_factory=list)
    """The steps that the next run will execute, each with `loop`, `step` and `reason`."""

    def sentences(self) -> list[str]:
        """The plan as lines for people."""
        lines = list(self.changes) or ["The declaration is the same."]
        lines += [f"The next run of '{one['loop']}' runs the step {one['step']}: {one['reason']}" for one in self.steps]
        return lines


class ProjectFiles:
    """The files of a project's code as they were loaded, to notice changes. Call `changed` every second or so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._states = {path: _state(path) for path in self._paths()}
        self._digests = {path: _digest(path) for path in self._states}

    @property
    def digest(self) -> str:
        """SHA-256 of the names and contents of all files, in hexadecimal digits."""
        text = json.dumps(sorted((str(path.relative_to(self.folder)), d) for path, d in self._digests.items()))
        return sha256(text.encode()).hexdigest()

    def changed(self) -> list[Path]:
        """The files whose content has changed since the last call, or since they were loaded."""
        found = []
        for path, before in self._states.items():
            now = _state(path)
            if now == before:
                continue
            # Editors and `git checkout` often write a file without changing it.
            digest = _digest(path)
            self._states[path] = now
            if digest != self._digests[path]:
                self._digests[path] = digest
                found.append(path)
        return found

    def _paths(self) -> list[Path]:
        """`loop.py` and the modules below the project's folder that this process has imported."""
        paths = {self.folder / "loop.py"}
        for module in list(sys.modules.values()):
            name = getattr(module, "__file__", None)
            if not isinstance(name, str) or not name.endswith(".py"):
                continue
            path = Path(name).resolve()
            if path.is_relative_to(self.folder) and not set(path.parts) & set(_ELSEWHERE):
                paths.add(path)
        return sorted(paths)


def describe_project(project: Project, store: Store | None) -> dict[str, Any]:
    """The declaration of each loop as plain data, and the steps that a run would execute now.

    Args:
        store: None leaves the steps out.
    """
    return {name: _describe_loop(loop, store) for name, loop in project.loops.items()}


def describe_changed(folder: Path, arguments: Iterable[str], scratch: Path) -> dict[str, Any]:
    """As `describe_project`, in a fresh process that imports the project as it is on disk now.

    Args:
        arguments: options with which the process opens the store.
        scratch: a file that the process may write.

    Raises:
        ProjectError: the project cannot be imported. The message says why.
    """
    scratch.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "everloop.loop", "describe", str(folder), *arguments, "--to", str(scratch)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DESCRIBE_S, check=False
        )
        if done.returncode != 0 or not scratch.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
            raise ProjectError(last[0].removeprefix("ProjectError: "))
        described: dict[str, Any] = json.loads(scratch.read_text(encoding="utf-8"))
    except subprocess.TimeoutExpired:
        raise ProjectError(f"Importing {folder / 'loop.py'} took longer than {DESCRIBE_S:g} s.") from None
    finally:
        scratch.unlink(missing_ok=True)
    return described


def plan_reload(before: dict[str, Any], after: dict[str, Any]) -> ReloadPlan:
    """Compare two descriptions of a project, and return what switching from one to the other changes."""
    changes = [f"The loop '{name}' is new." for name in after if name not in before]
    changes += [f"The loop '{name}' is gone: it is not watched any more." for name in before if name not in after]
    for name in after:
        if name in before:
            changes += _changes(name, before[name]["parts"], after[name]["parts"])
    steps = [
        {"loop": name, "step": step["name"], "reason": step["reason"]}
        for name, loop in after.items()
        for step in loop["steps"]
    ]
    return ReloadPlan(changes, steps)


def _changes(loop: str, before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    found = []
    for part in PARTS:
        old, new = before.get(part, []), after.get(part, [])
        removed = [one for one in old if one not in new]
        added = [one for one in new if one not in old]
        if len(removed) == len(added) == 1:
            found.append(f"Loop '{loop}', {part}: {removed[0]} becomes {added[0]}")
        else:
            found += [f"Loop '{loop}', {part}: without {one}" for one in removed]
            found += [f"Loop '{loop}', {part}: with {one}" for one in added]
    return found


def _describe_loop(loop: Loop, store: Store | None) -> dict[str, Any]:
    steps: list[dict[str, str]] = []
    if store is not None:
        from everloop.loop.loop_run import explain_run

        try:
            steps = [
                {"name": one.name, "reason": one.reason}
                for one in explain_run(loop, store)
                if one.status not in ("cached", "skipped")
            ]
        except EverloopError as error:
            # For example a source that is not there at the moment. The declaration itself is valid.
            steps = [{"name": "(unknown)", "reason": f"the steps cannot be planned: {error.message}"}]
    return {"parts": {part: _texts(getattr(loop, part)) for part in PARTS}, "steps": steps}


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    return [_text(one) for one in value] if isinstance(value, (list, tuple)) else [_text(value)]


def _is_set(field: Field[Any], value: object) -> bool:
    """Whether a field is shown: it is part of the declaration, and differs from its default."""
    if not field.repr:
        return False
    return field.default is MISSING or getattr(value, field.name) != field.default


def _text(value: object) -> str:
    """A declared part as text that is the same in every process."""
    from everloop.pipeline import Step

    if isinstance(value, Step):
        return f"the step {value.name}"
    if is_dataclass(value) and not isinstance(value, type):
        shown = (f"{one.name}={_text(getattr(value, one.name))}" for one in fields(value) if _is_set(one, value))
        return f"{type(value).__name__}({', '.join(shown)})"
    return _ADDRESS.sub("", repr(value))


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"
