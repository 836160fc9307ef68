"""The parameters of an active run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from everloop.records import Json
from everloop.tracking.journal import journal_frames
from everloop.tracking.key_collisions import check_paths, leaves, merge_keywords


class Params(Mapping[str, Json]):
    """A run's parameters. A change is written to the journal at once, like a metric."""

    def __init__(self, values: Mapping[str, Json], write: Callable[[dict[str, Json]], None]) -> None:
        self._write = write
        self._values = dict(values)

    def __getitem__(self, name: str) -> Json:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def __setitem__(self, name: str, value: object) -> None:
        self.update({name: value})

    def update(self, values: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Set several parameters. A later value of a name replaces the earlier one.

        Raises:
            UsageError: a parameter takes more than a megabyte, or two keys give the same name. One of the keys may
                have been set earlier: `{"a": {"b": 1}}` and then `{"a.b": 2}`.
        """
        changed = journal_frames.checked_params(merge_keywords("parameter", values, more))
        if not changed:
            return
        merged = {**self._values, **changed}
        if any(isinstance(value, dict) for value in merged.values()):
            check_paths("parameter", leaves(merged), "/.", equal=True)
        self._write(changed)
        self._values.update(changed)
