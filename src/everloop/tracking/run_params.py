"""The parameters of a run that is going on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from everloop.records import Json
from everloop.tracking.journal import journal_frames
from everloop.tracking.key_collisions import check_paths, joined, leaves


class Params(Mapping[str, Json]):
    """A run's parameters. Setting one is kept like a metric: at once, in the journal."""

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
        """Set several at once; a later value of a name replaces the earlier.

        Raises:
            UsageError: one takes more than a megabyte, or two keys become one name, of which one may have been set
                earlier: `{"a": {"b": 1}}` and then `{"a.b": 2}`.
        """
        changed = journal_frames.checked_params(joined("parameter", values, more))
        if not changed:
            return
        known = {**self._values, **changed}
        if any(isinstance(value, dict) for value in known.values()):
            check_paths("parameter", leaves(known), "/.", equal=True)
        self._write(changed)
        self._values.update(changed)
