"""Reproduction of a script's run: execute it again from its commit, packages and command, and compare the results.

Because the command is executed, the run must have been started on this machine, be signed by a key that is trusted
here, or be trusted explicitly: see `run_trust` and `execution_plan`.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError, StepError, UsageError
from everloop.records import Run
from everloop.stores import open_store
from everloop.tracking.journal.run_folding import fold
from everloop.tracking.reproduction.checkout import check_out, link_files
from everloop.tracking.reproduction.environments import environment_for
from everloop.tracking.reproduction.execution_plan import (
    ReproductionPlan,
    check_trust,
    command_of,
    given_secrets,
    plan_reproduction,
    unmasked,
)
from everloop.tracking.reproduction.result_comparison import (
    Reproduction,
    compare_artifacts,
    compare_ends,
    compare_metrics,
)
from everloop.tracking.secrets.masking import mask_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from everloop.stores import Store


def reproduce_script(
    store: Store,
    run: Run,
    scratch: Path,
    *,
    reuse_environment: bool = False,
    repository: Path | None = None,
    links: Sequence[str] = (),
    tolerance: float = 0.0,
    timeout_s: float | None = None,
    trust: bool = False,
    given: Mapping[str, str] | None = None,
    listener: Callable[[ReproductionPlan], None] | None = None,
) -> Reproduction:
    """Execute the recorded command again, and compare every metric and every artifact.

    The code is checked out from git into `scratch/code`, with the uncommitted changes. If it was not in git, the run's
    folder is used as it is now. The command's default store is `scratch/home`.

    Args:
        scratch: an empty folder.
        repository: the present path of the repository, if it has moved.
        links: files and folders of the repository that are not in git, such as data, to link into the checkout.
        tolerance: relative tolerance for metrics; 0 requires equal values.
        trust: execute the run although it is foreign: neither started on this machine nor signed by a trusted key.
        given: secrets that were masked when the run started, by name.
        listener: called with the final plan just before it is executed.

    Raises:
        TrustError: the run is foreign.
        UsageError: the run has no command that can or may be executed again, or a secret is missing.
        NotFoundError: its repository, commit or folder is gone, or the command has not made a run.
        UnavailableError: its packages could not be installed.
        StepError: the command took longer than `timeout_s`.
    """
    command_of(run)
    plan = plan_reproduction(store, run, scratch=scratch, reuse_environment=reuse_environment, repository=repository)
    check_trust(plan, trust=trust)
    secrets = given_secrets(plan, given)
    remarks: list[str] = []
    words = plan.argv[1:]
    if plan.repository is not None:
        root = Path(plan.repository)
        from_here = plan.provenance.kind == "here"
        folder = check_out(store, run.source, scratch / "code", repository=root, given=secrets, links=from_here)
        linked = link_files(links, root, scratch / "code")
        if linked:
            remarks.append(f"Linked in their present state: {', '.join(linked)}.")
        if run.source.git_dirty and run.source.changes is None:
            remarks.append(
                "The uncommitted changes were not recorded, so the code of the commit was used without them."
            )
        if plan.left_out:
            remarks.append(f"Changes not recorded, because they may hold secrets: {', '.join(plan.left_out)}.")
        words = tuple(_moved(word, Path(run.source.git_root or ""), scratch / "code") for word in words)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(run.source.folder or "")
        if not folder.is_dir():
            raise NotFoundError(f"The folder '{folder}' of the run does not exist here, and its code was not in git.")
        remarks.append(f"The code was not in git, so the folder '{folder}' was used in its present state.")
    environment = environment_for(
        run.source,
        scratch / "environment",
        reuse=reuse_environment,
        foreign=plan.provenance.kind != "here",
    )
    home = scratch / "home"
    with open_store(home, project=run.project):
        pass
    plan = replace(plan, argv=(str(environment.python), *words), folder=str(folder))
    if listener is not None:
        listener(plan)
    code, last_line = _execute(plan, secrets, home, timeout_s)
    with open_store(home, project=run.project) as new_store:
        fold(new_store)
        again = _counterpart(new_store, run)
        if again is None:
            raise NotFoundError(
                f"The command exited with code {code} and has not made a run named '{run.name}': "
                f"{last_line or 'its error output is empty'}",
                help="If it needs files that are not in git, such as data, link them: --link data",
            )
        new_store = new_store.for_project(again.project)
        metrics, other_metrics = compare_metrics(store, run, new_store, again, tolerance=tolerance)
        artifacts, other_artifacts = compare_artifacts(store, run, new_store, again)
        differences = (*compare_ends(run, again), *other_metrics, *other_artifacts)
    return Reproduction(run.id, again.id, differences, (*remarks, *environment.remarks), metrics + artifacts)


def _moved(word: str, root: Path, folder: Path) -> str:
    """A path in the repository as a path in its checkout. Paths into a virtual environment are not changed."""
    path = Path(word)
    if not path.is_absolute() or not path.is_relative_to(root) or "site-packages" in word:
        return word
    copy = folder / path.relative_to(root)
    return str(copy) if copy.exists() else word


def _execute(
    plan: ReproductionPlan, secrets: Mapping[str, str], home: Path, timeout_s: float | None
) -> tuple[int, str]:
    """Execute the command. Returns its exit code and the last line of its error output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERLOOP_")}
    keys = {name: os.environ[name] for name in ("EVERLOOP_KEYS",) if name in os.environ}
    environment |= {**keys, "EVERLOOP_STORE": str(home)}
    # Exactly the command of the plan that was shown, with the secrets filled in.
    command = [unmasked(word, secrets) for word in plan.argv]
    try:
        done = subprocess.run(
            command, cwd=plan.folder, env=environment, capture_output=True, timeout=timeout_s, check=False
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"The run's command cannot be started: {error}.") from error
    except subprocess.TimeoutExpired as error:
        raise StepError(
            f"The command took longer than {timeout_s:.0f} s and was killed.", help="Raise the limit: --timeout SECONDS"
        ) from error
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else ""
    for name, value in secrets.items():
        last = last.replace(value, f"***{name}***")
    return done.returncode, mask_text(last)


def _counterpart(new_store: Store, run: Run) -> Run | None:
    """The new run that corresponds to the original: the same name and, if possible, the same parameters."""
    found = new_store.records.find(Run, ("name", "=", run.name), order="started_at")
    if not found:
        projects = {stored.project for stored in new_store.records.stored() if stored.kind == "run"}
        for project in sorted(projects - {run.project}):
            found += new_store.for_project(project).records.find(Run, ("name", "=", run.name), order="started_at")
    same = [one for one in found if one.params == run.params]
    return next(iter(same or found), None)
