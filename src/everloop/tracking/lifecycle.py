"""Operations on runs that have ended: archive, delete, restore, move and copy.

Each operation includes the run's child runs, steps and artifacts. A deleted run can be restored until `gc` removes it,
together with the objects that only it refers to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import Artifact, Record, Run, StepRun
from everloop.stores.records.expressions import Compare
from everloop.tracking.journal.last_points import series_of
from everloop.tracking.journal.recovery import recover_journals
from everloop.tracking.journal.run_folding import fold_run
from everloop.tracking.reproduction.run_trust import is_from_here, sealed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.records import Event
    from everloop.stores import Store

_ATTEMPTS = 20
_EVENTS = 1000
_MAX_DEPTH = 100
COPIED_FROM = "everloop.copied_from"
"""The tag of a copied run; its value is the id of the original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A run with its child runs, and the steps and artifacts of all of them."""

    run: Run
    children: tuple[Run, ...]
    """At every depth; parents come before their children."""
    steps: tuple[StepRun, ...]
    artifacts: tuple[Artifact, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return (self.run, *self.children)

    @property
    def records(self) -> tuple[Record, ...]:
        return (*self.runs, *self.steps, *self.artifacts)


def find_run(store: Store, ref: str) -> Run:
    """The run with this id, or with an id that starts with it. Journals of dead processes are folded first.

    Raises:
        NotFoundError: no run has such an id.
        UsageError: several runs have.
    """
    recover_journals(store)
    if len(ref) >= 36 or not ref:
        return store.records.get(Run, ref)
    found = store.records.find(Run, ("id", "prefix", ref), limit=2)
    if len(found) > 1:
        raise UsageError(f"Several runs have an id that starts with '{ref}'.", help="Write more characters of the id.")
    return found[0] if found else store.records.get(Run, ref)


def family_of(store: Store, run: str) -> Family:
    """A run with its child runs, and the steps and artifacts of all of them.

    Raises:
        NotFoundError: the run does not exist.
    """
    root = store.records.get(Run, run)
    children: list[Run] = []
    level = [root.id]
    for _ in range(_MAX_DEPTH):
        hits = [hit for parent in level for hit in store.records.search(Run, Compare(("parent",), "=", parent))]
        known = {root.id, *(child.id for child in children)}
        level = [hit.id for hit in hits if hit.id not in known]
        if not level:
            break
        children += store.records.get_many(Run, level)
    ids = [root.id, *(child.id for child in children)]
    return Family(
        run=root,
        children=tuple(children),
        steps=tuple(store.records.find(StepRun, ("run", "in", ids))),
        artifacts=tuple(store.records.find(Artifact, ("run", "in", ids))),
    )


def archive_run(store: Store, run: str) -> Run:
    """Archive a run: searches and lists leave it out, nothing else changes."""
    return _set_archived(store, run, archived=True)


def unarchive_run(store: Store, run: str) -> Run:
    """Undo `archive_run`."""
    return _set_archived(store, run, archived=False)


def _set_archived(store: Store, ref: str, *, archived: bool) -> Run:
    for attempt in range(1, _ATTEMPTS + 1):
        run = store.records.get(Run, ref)
        if (run.archived_at is not None) == archived:
            return run
        changed = replace(run, archived_at=store.now() if archived else None)
        try:
            return store.records.update(changed, verb="archived" if archived else "unarchived")[0]
        except ConflictError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError  # the loop returns or raises


def delete_run(store: Store, run: str) -> Family:
    """Delete a run with its child runs, steps and artifacts. `restore_run` undoes it until `gc` removes them.

    Raises:
        ConflictError: the run, or one of its children, is still running.
    """
    fold_run(store, run)
    with store.records.transaction():
        family = family_of(store, run)
        _refuse_running(store, family)
        along = {
            "children": [child.id for child in family.children],
            "steps": [step.id for step in family.steps],
            "artifacts": [artifact.id for artifact in family.artifacts],
        }
        for record in family.records[1:]:
            store.records.delete(type(record), record.id, data={"with": family.run.id})
        store.records.delete(Run, family.run.id, data=along)
    return family


def restore_run(store: Store, run: str) -> Run:
    """Restore a deleted run, with everything that was deleted with it.

    Raises:
        NotFoundError: no deleted run has this id, or `gc` has removed it.
    """
    with store.records.transaction():
        store.records.restore(Run, run)
        along = _deletion(store, run)
        for name, kind in (("children", Run), ("steps", StepRun), ("artifacts", Artifact)):
            for identity in along.get(name, ()):
                try:
                    store.records.restore(kind, identity)
                except NotFoundError:
                    continue  # it has been restored separately
        return store.records.get(Run, run)


def deleted_runs(store: Store) -> list[Run]:
    """The deleted runs that can be restored, the last deleted first. Runs deleted along with a parent are left out."""
    deleted: dict[str, None] = {}
    for event in _events(store, ["run"]):
        deleted.pop(event.subject, None)
        if event.verb == "deleted" and "with" not in event.data:
            deleted[event.subject] = None
    found = []
    for identity in reversed(deleted):
        try:
            found.append(store.records.history(Run, identity)[-1][1])
        except NotFoundError:
            continue  # `gc` has removed it
    return found


def move_run(store: Store, run: str, project: str) -> Family:
    """Move a run, with everything that belongs to it and its history, to another project. Ids stay the same.

    Raises:
        ConflictError: the run, or one of its children, is still running.
    """
    target = store.for_project(project)
    fold_run(store, run)
    with store.records.transaction():
        family = family_of(store, run)
        _refuse_running(store, family)
        for record in family.records:
            store.records.move(type(record), record.id, project)
        if family.run.parent is not None:
            # The parent is not moved.
            moved = target.records.get(Run, family.run.id)
            target.records.update(replace(moved, parent=None))
    return family_of(target, family.run.id)


def copy_run(store: Store, run: str, project: str | None = None) -> Family:
    """Copy a run to this project or another: same content, new ids, and the tag `everloop.copied_from`.

    Objects are not copied: both runs refer to the same ones.
    """
    target = store.for_project(project) if project is not None else store
    fold_run(store, run)
    with store.records.transaction():
        family = family_of(store, run)
        new_ids = {record.id: target.new(Run, name="x", started_at=store.now()).id for record in family.records}
        for record in family.runs:
            parent = new_ids.get(record.parent or "", record.parent if project in (None, store.project) else None)
            tags = {**record.tags, COPIED_FROM: record.id}
            copied = replace(
                record, id=new_ids[record.id], project=target.project, revision=0, parent=parent, tags=tags
            )
            if is_from_here(record):
                copied = sealed(copied)
            target.records.put(copied, verb="copied", data={"from": record.id})
            points = store.records.read_points(series_of(record.id))
            if points:
                target.records.append_points(series_of(copied.id), points)
        for artifact in family.artifacts:
            target.records.put(_copied(artifact, new_ids, target.project))
        for step in family.steps:
            outputs = {name: new_ids.get(identity, identity) for name, identity in step.outputs.items()}
            target.records.put(replace(_copied(step, new_ids, target.project), outputs=outputs))
    return family_of(target, new_ids[family.run.id])


def _copied(record: Any, new_ids: dict[str, str], project: str) -> Any:
    return replace(record, id=new_ids[record.id], project=project, revision=0, run=new_ids[record.run])


def _refuse_running(store: Store, family: Family) -> None:
    for run in family.runs:
        if run.state == "running" and store.locked(f"run-{run.id}"):
            raise ConflictError(
                f"The run '{run.name}' ({run.id}) is still running.", help="Wait until it ends, or stop it."
            )


def _deletion(store: Store, run: str) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for event in _events(store, [], subject=run):
        if event.verb == "deleted":
            last = event.data
    return last


def _events(store: Store, kinds: list[str], subject: str | None = None) -> Iterator[Event]:
    seq = 0
    while events := store.records.events_since(seq, kinds=kinds, subject=subject, limit=_EVENTS):
        yield from events
        seq = events[-1].seq
