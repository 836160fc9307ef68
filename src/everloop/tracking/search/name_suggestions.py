"""Suggestions for misspelled names in a search: `metrics.val.auc` if runs have `val/auc`.

Such a search would silently find nothing, so it is refused, and the error suggests the right name. Only names that
differ in their separators or case are suggested: a search for a metric that has not been logged yet is not an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.records import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from everloop.stores import Store

_SEPARATORS = re.compile(r"[./\\:_\-\s]+")
_PLAIN = re.compile(r"[\w.]+")
_WITH_NAMES = frozenset({"metrics", "params", "tags"})


def check_names(store: Store, projects: Sequence[str], paths: Iterable[tuple[str, ...]]) -> None:
    """Check the names in these paths.

    Raises:
        UsageError: no run of the projects has ever had one of the names, but some have a similar one.
    """
    names: dict[str, _Names] = {}
    for path in dict.fromkeys(paths):
        if len(path) != 2 or path[0] not in _WITH_NAMES or not _SEPARATORS.search(path[1]):
            continue
        field, name = path
        if field not in names:
            # Read once for all paths: a search may contain hundreds.
            names[field] = _Names(store, projects, field)
        if name in names[field].known:
            continue
        similar = sorted(names[field].by_normalized.get(_normalized(name), ()))
        if similar:
            suggestion = " or ".join(spelled(field, one) for one in similar[:3])
            raise UsageError(
                f"No run has the {field[:-1]} '{name}'. Did you mean {suggestion}?", help=f"Write: {suggestion}"
            )


class _Names:
    """The names that the runs of some projects have in a field, also grouped by their normalized form."""

    def __init__(self, store: Store, projects: Sequence[str], field: str) -> None:
        self.known = {
            one for project in projects for one in store.for_project(project).records.search_names(Run, field)
        }
        self.by_normalized: dict[str, list[str]] = {}
        for one in self.known:
            self.by_normalized.setdefault(_normalized(one), []).append(one)


def spelled(field: str, name: str) -> str:
    """A field as it is written in a filter: `metrics.auc`, `metrics."val/auc"`."""
    if _PLAIN.fullmatch(name):
        return f"{field}.{name}"
    return f"{field}.`{name}`" if '"' in name or "\\" in name else f'{field}."{name}"'


def _normalized(name: str) -> str:
    return _SEPARATORS.sub("/", name).casefold()
