"""The plan of a reproduction: everything that it would execute, shown before anything happens.

For a run that was started on this machine, the plan is for information. For any other run, the user has to read it and
trust it first: the record came from elsewhere, and a reproduction executes the command, code and packages in it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from everloop.errors import NotFoundError, TrustError, UsageError
from everloop.tracking.reproduction.code_patches import PatchedFile, check_patch, left_out, masked_lines
from everloop.tracking.reproduction.environments import other_packages, pinned_packages
from everloop.tracking.reproduction.run_trust import RunProvenance, provenance_of
from everloop.tracking.secrets.masking import mask_text
from everloop.tracking.secrets.secret_names import MARK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.records import Json, Run
    from everloop.stores import Store

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
GIVEN = "EVERLOOP_WITH_"
_LOADED = ("LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")
_INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproductionPlan:
    """Everything that will be executed, and where it comes from. Of secrets, only the names are shown."""

    run: str
    name: str
    kind: Literal["script", "loop"]
    provenance: RunProvenance
    argv: tuple[str, ...]
    """The command with its arguments, exactly as it will be executed; empty for a loop run."""
    folder: str
    """The working folder; for a loop run, the project's folder, whose `loop.py` is loaded."""
    repository: str | None
    commit: str | None
    code: str | None
    """Digest over the code of a loop run's steps."""
    changes: str | None
    """Digest of the patch that is applied to the commit."""
    patch: str
    files: tuple[PatchedFile, ...]
    """The files that the patch changes."""
    left_out: tuple[str, ...]
    """Changed files that are not in the patch, because they may hold secrets."""
    python: str
    packages: tuple[str, ...]
    """Packages that are installed into a new environment; empty if this environment is used."""
    index: str
    """Where packages come from: always as configured on this machine, never from the record."""
    variables: dict[str, str]
    """Environment variables that are set for it, or that influence what commands load. All others are inherited."""
    params: dict[str, Json]
    """Parameters of a loop run."""
    secrets: tuple[str, ...]
    """Names of the masked values, which have to be supplied again."""


def plan_reproduction(
    store: Store,
    run: Run,
    *,
    scratch: Path | None = None,
    reuse_environment: bool = False,
    repository: Path | None = None,
    folder: Path | None = None,
) -> ReproductionPlan:
    """Plan the reproduction of a run. Only reads: nothing in the record is executed, opened or fetched.

    Raises:
        UsageError: the record has something that must not be executed: an invalid commit, a package that is an option,
            a patch that changes files outside of the repository.
        NotFoundError: the changes of the run are not in the store.
    """
    source = run.source
    code = (scratch or Path("SCRATCH")) / "code"
    if source.git_commit is not None and not COMMIT.fullmatch(source.git_commit):
        raise UsageError(
            f"The run's commit {source.git_commit[:80]!r} is not a full commit id.",
            help="A run can only be reproduced if its commit has 40 or 64 hexadecimal digits.",
        )
    root = _root(repository, source.git_root) if source.git_commit is not None else None
    patch = b""
    if root is not None and source.changes is not None:
        if not store.objects.has(source.changes):
            raise NotFoundError(f"The run's changes {source.changes} are not in this store.")
        patch = store.objects.read(source.changes)
    provenance = provenance_of(run)
    files = check_patch(patch, links=provenance.kind == "here")
    install = [] if reuse_environment or not other_packages(source.packages) else pinned_packages(source)
    python = str((scratch or Path("SCRATCH")) / "environment" / "bin" / "python") if install else sys.executable
    words: tuple[str, ...] = ()
    if run.loop is None:
        words = (python, *command_of(run))
        where = str(code / below(source.folder, source.git_root)) if root is not None else str(source.folder or "")
    else:
        where = str(folder or "")
    texts = [*words, *(text for text in _texts(run.params) if run.loop is not None)]
    return ReproductionPlan(
        run=run.id,
        name=run.name,
        kind="script" if run.loop is None else "loop",
        provenance=provenance,
        argv=words,
        folder=where,
        repository=None if root is None else str(root),
        commit=source.git_commit,
        code=source.code,
        changes=source.changes if patch else None,
        patch=patch.decode("utf-8", "surrogateescape"),
        files=tuple(files),
        left_out=tuple(left_out(patch)),
        python=python,
        packages=tuple(install),
        index=_index(),
        variables=_variables(scratch),
        params=run.params if run.loop is not None else {},
        secrets=tuple(dict.fromkeys([*(name for text in texts for name in MARK.findall(text)), *masked_lines(patch)])),
    )


def check_trust(plan: ReproductionPlan, *, trust: bool) -> None:
    """Check that the run may be executed here.

    Raises:
        TrustError: it is from elsewhere and not trusted.
    """
    if trust or plan.provenance.kind != "foreign":
        return
    raise TrustError(
        f"The run '{plan.name}' ({plan.run}) is data from elsewhere: {plan.provenance.why}. Reproducing it executes "
        f"{'its loop' if plan.kind == 'loop' else 'its command'} with your rights. Nothing was executed.",
        help=f"See what it would execute: everloop reproduce {plan.run} --show. If you trust it, add --trust, or "
        f"trust exactly this run permanently: everloop trust add {plan.provenance.digest} --name WHY",
    )


def given_secrets(plan: ReproductionPlan, given: Mapping[str, str] | None) -> dict[str, str]:
    """The values of the masked secrets: from `given`, or else from the variables `EVERLOOP_WITH_<NAME>`.

    Raises:
        UsageError: a value is missing, or the run has no secret of a given name.
    """
    found = dict(given or {})
    unknown = sorted(set(found) - set(plan.secrets))
    if unknown:
        names = f"Its masked secrets: {', '.join(plan.secrets)}" if plan.secrets else "It has no masked secrets."
        raise UsageError(f"The run has no masked secret '{unknown[0]}'.", help=names)
    missing = []
    for name in plan.secrets:
        value = found.get(name, os.environ.get(variable_of(name)))
        if value is None:
            missing.append(name)
        else:
            found[name] = value
    if missing:
        raise UsageError(
            f"The run '{plan.name}' used secrets that were not recorded: {', '.join(missing)}.",
            help=f"Supply them: --with {missing[0]}=VALUE, or set {variable_of(missing[0])}.",
        )
    return found


def variable_of(name: str) -> str:
    """The environment variable for the value of a masked secret."""
    return GIVEN + re.sub(r"[^A-Z0-9]", "_", name.upper())


def unmasked(text: str, given: Mapping[str, str]) -> str:
    """A text with the secrets filled in."""
    return MARK.sub(lambda mark: given.get(mark[1], mark[0]), text)


def command_of(run: Run) -> tuple[str, ...]:
    """The arguments that were passed to the interpreter.

    Raises:
        UsageError: the run has no command that can be executed again.
    """
    words = run.source.launch[1:]
    if not words or words[0] == "-" or words == ("-i",):
        raise UsageError(
            f"The run '{run.name}' was made in an interactive interpreter, so there is no command to run again.",
            help="Put the code into a file and run that.",
        )
    if any("ipykernel" in word for word in words[:3]):
        raise UsageError(
            f"The run '{run.name}' was made in a notebook, so there is no command to run again.",
            help="Put the code into a file and run that.",
        )
    if any("\0" in word for word in words):
        raise UsageError(f"The command of the run '{run.name}' contains a NUL character, which is not allowed.")
    return words


def below(folder: str | None, root: str | None) -> Path:
    """The path of the working folder relative to its repository."""
    if folder is None or root is None or ".." in Path(folder).parts or not Path(folder).is_relative_to(root):
        return Path()
    return Path(folder).relative_to(root)


def _root(repository: Path | None, recorded: str | None) -> Path:
    root = repository or Path(recorded or "")
    if not root.is_absolute() or not str(root).isprintable() or "::" in str(root):
        raise NotFoundError(
            f"The run has no repository on this machine: {str(root)!r}.",
            help="Pass its path: everloop reproduce RUN --repository DIR",
        )
    return root


def _index() -> str:
    tool = "uv" if shutil.which("uv") else "pip"
    set_here = [f"{name}={mask_text(os.environ[name])}" for name in _INDEXES if name in os.environ]
    return f"as {tool} is configured here{': ' if set_here else ''}{', '.join(set_here)}"


def _variables(scratch: Path | None) -> dict[str, str]:
    found = {"EVERLOOP_STORE": str((scratch or Path("SCRATCH")) / "home")}
    return found | {name: os.environ[name] for name in _LOADED if name in os.environ}


def _texts(value: Json) -> Iterable[str]:
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from _texts(item)
        case list():
            for item in value:
                yield from _texts(item)
