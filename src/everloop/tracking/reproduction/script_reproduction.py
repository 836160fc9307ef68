"""Doing the run of a script again, from its commit, packages and command, and comparing what came of it.

The command is executed, so the run has to be one that was started on this machine, be signed by a key that is trusted
here, or be trusted explicitly: see `provenance` and `reproduction_plan`.
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
    """Run the recorded command once more and compare every metric and every artifact.

    The code is taken from git, with what was not committed, into `scratch/code`; without git the folder is used as
    it is. Whatever the command writes to the nearest store goes to `scratch/home`.

    Args:
        scratch: an empty folder.
        repository: where the repository is now, if not where it was.
        links: files and folders of the repository that git does not keep, such as data, to be linked.
        tolerance: relative, for metrics; 0 wants the same bits.
        trust: run it although it is foreign: neither started on this machine nor signed by a trusted key.
        given: secrets that were masked when the run started, by name.
        listener: called with exactly what will be executed, just before it is.

    Raises:
        TrustError: the run is foreign.
        UsageError: the run has no command that can be given again, or one that never will be; or a secret is missing.
        NotFoundError: its repository, commit or folder is gone, or the command made no run.
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
        ours = plan.provenance.kind == "here"
        folder = check_out(store, run.source, scratch / "code", repository=root, given=secrets, links=ours)
        linked = link_files(links, root, scratch / "code")
        if linked:
            remarks.append(f"Linked, as they are now: {', '.join(linked)}.")
        if run.source.git_dirty and run.source.changes is None:
            remarks.append("What was not committed was not kept, so the code is the commit's alone.")
        if plan.left_out:
            remarks.append(f"Not kept, because they may hold secrets: {', '.join(plan.left_out)}.")
        words = tuple(_moved(word, Path(run.source.git_root or ""), scratch / "code") for word in words)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(run.source.folder or "")
        if not folder.is_dir():
            raise NotFoundError(f"The folder '{folder}' of the run is not here, and its code was not in git.")
        remarks.append(f"Its code was not in git: '{folder}' was used as it is now.")
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
    code, said = _execute(plan, secrets, home, timeout_s)
    with open_store(home, project=run.project) as made:
        fold(made)
        again = _counterpart(made, run)
        if again is None:
            raise NotFoundError(
                f"The command ended with {code} and made no run called '{run.name}': {said or 'it said nothing'}",
                help="See what the code needs that git does not keep, and name it: --link data",
            )
        made = made.for_project(again.project)
        metrics, other_metrics = compare_metrics(store, run, made, again, tolerance=tolerance)
        artifacts, other_artifacts = compare_artifacts(store, run, made, again)
        differences = (*compare_ends(run, again), *other_metrics, *other_artifacts)
    return Reproduction(run.id, again.id, differences, (*remarks, *environment.remarks), metrics + artifacts)


def _moved(word: str, root: Path, folder: Path) -> str:
    """A path into the repository, as a path into its copy; the environment that may lie in it stays."""
    path = Path(word)
    if not path.is_absolute() or not path.is_relative_to(root) or "site-packages" in word:
        return word
    copy = folder / path.relative_to(root)
    return str(copy) if copy.exists() else word


def _execute(
    plan: ReproductionPlan, secrets: Mapping[str, str], home: Path, timeout_s: float | None
) -> tuple[int, str]:
    """Exit code, and the last line that was said about trouble."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERLOOP_")}
    kept = {name: os.environ[name] for name in ("EVERLOOP_KEYS",) if name in os.environ}
    environment |= {**kept, "EVERLOOP_STORE": str(home)}
    # What was shown is what runs: the plan's own words, with the secrets where their names stand.
    command = [unmasked(word, secrets) for word in plan.argv]
    try:
        done = subprocess.run(
            command, cwd=plan.folder, env=environment, capture_output=True, timeout=timeout_s, check=False
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"The run's command cannot be started: {error}.") from error
    except subprocess.TimeoutExpired as error:
        raise StepError(f"The command has not ended in {timeout_s:.0f} s.", help="Give it longer: --timeout") from error
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else ""
    for name, value in secrets.items():
        last = last.replace(value, f"***{name}***")
    return done.returncode, mask_text(last)


def _counterpart(made: Store, run: Run) -> Run | None:
    """The new run that stands for the old: of its name, with its parameters, as far as there is one."""
    found = made.records.find(Run, ("name", "=", run.name), order="started_at")
    if not found:
        projects = {kept.project for kept in made.records.stored() if kept.kind == "run"}
        for project in sorted(projects - {run.project}):
            found += made.for_project(project).records.find(Run, ("name", "=", run.name), order="started_at")
    same = [one for one in found if one.params == run.params]
    return next(iter(same or found), None)
