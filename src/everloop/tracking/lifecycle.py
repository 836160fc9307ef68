"""The life of a run after its end: put away, deleted, brought back, moved and copied.

A run is not alone: its child runs, its steps and its artifacts share its fate. What was deleted can be restored until
`gc` has swept it, and the objects that only it named with it.
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
_DEEPEST = 100
COPIED_FROM = "everloop.copied_from"
"""The tag that names the run of which a run is a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A run with all that belongs to it."""

    run: Run
    children: tuple[Run, ...]
    """Of every depth, parents before their own children."""
    steps: tuple[StepRun, ...]
    artifacts: tuple[Artifact, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return (self.run, *self.children)

    @property
    def records(self) -> tuple[Record, ...]:
        return (*self.runs, *self.steps, *self.artifacts)


def find_run(store: Store, ref: str) -> Run:
    """The run with this id, or with an id that begins so. What dead processes left in journals is brought in first.

    Raises:
        NotFoundError: there is none.
        UsageError: several begin so.
    """
    recover_journals(store)
    if len(ref) >= 36 or not ref:
        return store.records.get(Run, ref)
    found = store.records.find(Run, ("id", "prefix", ref), limit=2)
    if len(found) > 1:
        raise UsageError(f"Several runs have an id that begins with '{ref}'.", help="Write more of it.")
    return found[0] if found else store.records.get(Run, ref)


def family_of(store: Store, run: str) -> Family:
    """A run with its child runs, and the steps and artifacts of them all.

    Raises:
        NotFoundError: there is no such run.
    """
    root = store.records.get(Run, run)
    children: list[Run] = []
    level = [root.id]
    for _ in range(_DEEPEST):
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
    """Put a run away: searches and lists leave it out, everything else stays as it is."""
    return _set_archived(store, run, archived=True)


def unarchive_run(store: Store, run: str) -> Run:
    """Show a run again that was put away."""
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
    """Delete a run with its child runs, steps and artifacts; `restore_run` undoes it until `gc`.

    Raises:
        ConflictError: it, or a child, is still going on.
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
    """Bring back a deleted run, and what was deleted along with it.

    Raises:
        NotFoundError: no run of this id is deleted, or `gc` has swept it.
    """
    with store.records.transaction():
        store.records.restore(Run, run)
        along = _deletion(store, run)
        for name, kind in (("children", Run), ("steps", StepRun), ("artifacts", Artifact)):
            for identity in along.get(name, ()):
                try:
                    store.records.restore(kind, identity)
                except NotFoundError:
                    continue  # brought back by itself meanwhile
        return store.records.get(Run, run)


def deleted_runs(store: Store) -> list[Run]:
    """The runs that are deleted and can be brought back, the last deleted first; not what went with them."""
    gone: dict[str, None] = {}
    for event in _events(store, ["run"]):
        gone.pop(event.subject, None)
        if event.verb == "deleted" and "with" not in event.data:
            gone[event.subject] = None
    found = []
    for identity in reversed(gone):
        try:
            found.append(store.records.history(Run, identity)[-1][1])
        except NotFoundError:
            continue  # swept
    return found


def move_run(store: Store, run: str, project: str) -> Family:
    """Give a run with all that belongs to it to another project; ids stay, and its past moves along.

    Raises:
        ConflictError: it, or a child, is still going on.
    """
    there = store.for_project(project)
    fold_run(store, run)
    with store.records.transaction():
        family = family_of(store, run)
        _refuse_running(store, family)
        for record in family.records:
            store.records.move(type(record), record.id, project)
        if family.run.parent is not None:
            # The parent stays behind.
            moved = there.records.get(Run, family.run.id)
            there.records.update(replace(moved, parent=None))
    return family_of(there, family.run.id)


def copy_run(store: Store, run: str, project: str | None = None) -> Family:
    """A second run with the same content, new ids and the tag `everloop.copied_from`, in this project or another.

    Objects are kept once, whoever names them.
    """
    there = store.for_project(project) if project is not None else store
    fold_run(store, run)
    with store.records.transaction():
        family = family_of(store, run)
        fresh = {record.id: there.new(Run, name="x", started_at=store.now()).id for record in family.records}
        for record in family.runs:
            parent = fresh.get(record.parent or "", record.parent if project in (None, store.project) else None)
            tags = {**record.tags, COPIED_FROM: record.id}
            copied = replace(record, id=fresh[record.id], project=there.project, revision=0, parent=parent, tags=tags)
            if is_from_here(record):
                copied = sealed(copied)
            there.records.put(copied, verb="copied", data={"from": record.id})
            points = store.records.read_points(series_of(record.id))
            if points:
                there.records.append_points(series_of(copied.id), points)
        for artifact in family.artifacts:
            there.records.put(_again(artifact, fresh, there.project))
        for step in family.steps:
            outputs = {name: fresh.get(identity, identity) for name, identity in step.outputs.items()}
            there.records.put(replace(_again(step, fresh, there.project), outputs=outputs))
    return family_of(there, fresh[family.run.id])


def _again(record: Any, fresh: dict[str, str], project: str) -> Any:
    return replace(record, id=fresh[record.id], project=project, revision=0, run=fresh[record.run])


def _refuse_running(store: Store, family: Family) -> None:
    for run in family.runs:
        if run.state == "running" and store.locked(f"run-{run.id}"):
            raise ConflictError(
                f"The run '{run.name}' ({run.id}) is still going on.", help="Wait for its end, or stop it."
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
