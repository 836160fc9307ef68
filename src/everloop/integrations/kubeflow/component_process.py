"""Runs the container of one task as a process of this machine.

The image is not used: the command of the container runs with this interpreter's programs. The code of a lightweight
component runs in `component_runtime`, so kfp need not be installed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import StepError
from everloop.integrations.kubeflow.placeholders import PlaceholderValues, fill_in, fill_in_words

if TYPE_CHECKING:
    from everloop.integrations.kubeflow.pipeline_spec import Spec

_EXECUTOR_MODULES = ("kfp.dsl.executor_main", "kfp.components.executor_main")
_PIP = re.compile(r"(?:python3?\s+-m\s+)?\bpip\b3?\s+install\s+(.*?)(?:&&|\|\||;|\n|$)", re.DOTALL)
_OPTIONS_WITH_VALUE = ("--index-url", "-i", "--extra-index-url", "--trusted-host", "--find-links", "-f")
_OWN_REQUIREMENTS = ("kfp", "kfp-pipeline-spec", "typing-extensions", "typing_extensions")
_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)")
_TAIL = 4000
_POLL_S = 0.1
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class LightweightComponent:
    """A function whose source is in the pipeline's file."""

    source: str
    function: str
    requirements: tuple[str, ...] = ()
    pip_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerTask:
    """One call of a container."""

    name: str
    container: Spec
    values: PlaceholderValues
    folder: Path
    """The task's own folder, which exists."""
    packages: Path
    """Where packages that components ask for are installed."""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


def lightweight_component(container: Spec) -> LightweightComponent | None:
    """The function that a container calls, or None if the container is something else.

    The last word of the command is the source; the arguments name the function.
    """
    command, args = list(container.get("command") or ()), list(container.get("args") or ())
    words = [word for word in [*command, *args] if isinstance(word, str)]
    if not any(module in word for word in words for module in _EXECUTOR_MODULES):
        return None
    if "--function_to_execute" not in words or words.index("--function_to_execute") + 1 >= len(words):
        return None
    function = words[words.index("--function_to_execute") + 1]
    definition = re.compile(rf"^(?:async\s+)?def\s+{re.escape(function)}\s*\(", re.MULTILINE)
    source = next((word for word in reversed(words) if definition.search(word)), None)
    if source is None:
        return None
    requirements: list[str] = []
    options: list[str] = []
    for word in words:
        if word is not source:
            found = _pip_words(word)
            requirements += found[0]
            options += found[1]
    return LightweightComponent(source, function, tuple(requirements), tuple(options))


def run_container(task: ContainerTask) -> None:
    """Run the process and wait for its end. Its output goes to the task's log.

    Raises:
        StepError: the process cannot start, or ends with another code than 0. The text has the end of its output.
        KeyboardInterrupt: `task.stop` was set; the process has been killed.
    """
    environment = _environment(task)
    component = lightweight_component(task.container)
    if component is not None:
        command = _component_command(task, component, environment)
    else:
        command = _container_command(task)
    with task.log.open("ab") as log:
        try:
            process = subprocess.Popen(
                command,
                cwd=task.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StepError(
                f"Task '{task.name}' cannot start '{command[0]}': {error}.",
                help="Install the program, or run the pipeline on Kubeflow.",
            ) from error
        try:
            code = _wait(process, task.stop)
        finally:
            if process.poll() is None:
                _kill(process)
    if code != 0:
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        image = task.container.get("image")
        raise StepError(
            f"Task '{task.name}' {ended}.\n{log_tail(task.log)}".rstrip(),
            help=f"The task ran as a process of this machine, not in the image '{image}'."
            if component is None
            else None,
        )


def log_tail(log: Path, size: int = _TAIL) -> str:
    """The end of a task's output."""
    try:
        data = log.read_bytes()
    except FileNotFoundError:
        return ""
    text = data[-size:].decode("utf-8", "replace").strip()
    return text if len(data) <= size else f"…{text}"


def _environment(task: ContainerTask) -> dict[str, str]:
    environment = dict(os.environ)
    for one in task.container.get("env") or ():
        environment[str(one["name"])] = fill_in(str(one.get("value", "")), task.values)
    # `python3` in a command of the pipeline is this interpreter, and everloop can be imported from it.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    before = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([*([before] if before else []), str(_PACKAGE_ROOT)])
    environment["_KFP_RUNTIME"] = "true"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _component_command(task: ContainerTask, component: LightweightComponent, environment: dict[str, str]) -> list[str]:
    missing = [one for one in component.requirements if not _is_installed(fill_in(one, task.values))]
    if missing:
        folder = _install(task, missing, component.pip_options)
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    source = task.folder / "ephemeral_component.py"
    source.write_text(component.source, encoding="utf-8")
    order = {
        "source": str(source),
        "function": component.function,
        "folder": str(task.folder),
        "executor_input": task.values.executor_input,
    }
    written = task.folder / "order.json"
    written.write_text(json.dumps(order), encoding="utf-8")
    return [sys.executable, "-m", "everloop.integrations.kubeflow.component_runtime", str(written)]


def _container_command(task: ContainerTask) -> list[str]:
    container = task.container
    image = container.get("image")
    words = [str(word) for word in container.get("command") or ()]
    if "--function_to_execute" in (container.get("args") or ()) and any(
        module in word for word in words for module in _EXECUTOR_MODULES
    ):
        raise StepError(
            f"Task '{task.name}' runs code that is only in the image '{image}'.",
            help="Declare it with @dsl.component without target_image, so that its source is in the pipeline.",
        )
    if not words:
        raise StepError(
            f"Task '{task.name}' has no command: its program is only in the image '{image}'.",
            help="Give the component a command, or run the pipeline on Kubeflow.",
        )
    command = fill_in_words([*(container.get("command") or ()), *(container.get("args") or ())], task.values)
    if shutil.which(command[0], path=_environment(task)["PATH"]) is None:
        raise StepError(
            f"Task '{task.name}' runs '{command[0]}', which this machine does not have; it is in the image '{image}'.",
            help="Install the program, or run the pipeline on Kubeflow.",
        )
    return command


def _pip_words(script: str) -> tuple[list[str], list[str]]:
    """Requirements and options for indexes of the `pip install` commands in a shell script."""
    requirements: list[str] = []
    options: list[str] = []
    for found in _PIP.finditer(script):
        try:
            words = shlex.split(found[1])
        except ValueError:
            continue
        if any(word == '"$0"' or word.startswith("$") for word in words):
            continue
        position = 0
        while position < len(words):
            word = words[position]
            if word in _OPTIONS_WITH_VALUE and position + 1 < len(words):
                options += [word, words[position + 1]]
                position += 2
                continue
            name = _NAME.match(word)
            if word.startswith(_OPTIONS_WITH_VALUE):
                options.append(word)
            elif word.startswith(("git+", "http://", "https://")) or (
                name is not None and name[1].lower() not in _OWN_REQUIREMENTS
            ):
                requirements.append(word)
            position += 1
    return requirements, options


def _is_installed(requirement: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    name = _NAME.match(requirement)
    if name is None or "://" in requirement:
        return False
    try:
        found = version(name[1])
    except PackageNotFoundError:
        return False
    rest = requirement[name.end() :].strip()
    if not rest:
        return True
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return rest == f"=={found}"
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return False
    if parsed.marker is not None and not parsed.marker.evaluate():
        return True
    return bool(parsed.specifier.contains(found, prereleases=True))


def _install(task: ContainerTask, requirements: list[str], options: tuple[str, ...]) -> Path:
    """Install packages into a folder of their own. A folder that is complete is used again."""
    from everloop.pipeline.value_digests import digest_text

    wanted = [fill_in(one, task.values) for one in requirements]
    folder = task.packages / digest_text(sys.version, *wanted, *options)[:32]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.{threading.get_ident()}")
    command = [_python_with_pip(task), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(draft), *options, *wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise StepError(
                f"Task '{task.name}' needs {', '.join(wanted)}, which cannot be installed:\n{done.stderr[-_TAIL:]}",
                help=f"Install it yourself: pip install {shlex.join(wanted)}",
            )
        try:
            draft.rename(folder)
        except OSError:
            # Another task has installed the same at the same time.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _python_with_pip(task: ContainerTask) -> str:
    """This interpreter, or one in an environment of its own if this one has no pip."""
    from importlib.util import find_spec

    if find_spec("pip") is not None:
        return sys.executable
    folder = task.packages / "pip"
    if not (folder / "bin" / "pip").exists():
        done = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True)
        if done.returncode != 0:
            raise StepError(
                f"Task '{task.name}' needs packages, and this interpreter has no pip: {done.stderr[-_TAIL:]}",
                help="Install pip: python -m ensurepip",
            )
    return str(folder / "bin" / "python")


def _wait(process: subprocess.Popen[Any], stop: threading.Event) -> int:
    while True:
        try:
            return process.wait(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                _kill(process)
                raise KeyboardInterrupt from None


def _kill(process: subprocess.Popen[Any]) -> None:
    """End the process and everything that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
