"""Names in a search that no run has, but nearly: `metrics.val.auc` where runs have `val/auc`.

Such a search would find nothing without a word, so it is refused, and the name that was meant is named. Only names
that differ in how their parts are joined count as nearly the same: a metric that has yet to be logged is no mistake.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.records import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from everloop.stores import Store

_JOINTS = re.compile(r"[./\\:_\-\s]+")
_PLAIN = re.compile(r"[\w.]+")
_WITH_NAMES = frozenset({"metrics", "params", "tags"})


def check_names(store: Store, projects: Sequence[str], paths: Iterable[tuple[str, ...]]) -> None:
    """Look whether the names at these paths are nearly those of others.

    Raises:
        UsageError: no run of the projects has ever had one of the names, and some have one that is nearly the same.
    """
    names: dict[str, _Names] = {}
    for path in dict.fromkeys(paths):
        if len(path) != 2 or path[0] not in _WITH_NAMES or not _JOINTS.search(path[1]):
            continue
        field, name = path
        if field not in names:
            # Once for all paths: a search may name hundreds.
            names[field] = _Names(store, projects, field)
        if name in names[field].known:
            continue
        near = sorted(names[field].alike.get(_plainly(name), ()))
        if near:
            meant = " or ".join(spelled(field, one) for one in near[:3])
            raise UsageError(f"No run has {field[:-1]} '{name}'. Did you mean {meant}?", help=f"Write: {meant}")


class _Names:
    """The names that the runs of some projects have in a field, and which of them differ only in their joints."""

    def __init__(self, store: Store, projects: Sequence[str], field: str) -> None:
        self.known = {
            one for project in projects for one in store.for_project(project).records.search_names(Run, field)
        }
        self.alike: dict[str, list[str]] = {}
        for one in self.known:
            self.alike.setdefault(_plainly(one), []).append(one)


def spelled(field: str, name: str) -> str:
    """A value as a filter names it: `metrics.auc`, `metrics."val/auc"`."""
    if _PLAIN.fullmatch(name):
        return f"{field}.{name}"
    return f"{field}.`{name}`" if '"' in name or "\\" in name else f'{field}."{name}"'


def _plainly(name: str) -> str:
    return _JOINTS.sub("/", name).casefold()
