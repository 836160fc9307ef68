"""Reports failures of background work as events, each once for as long as it persists, and waits longer each time."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from everloop.errors import EverloopError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.stores import Store

LONGEST_WAIT_S = 300.0


class FailureReports:
    """Remembers which failures were reported, and how often each subject has failed in a row."""

    def __init__(self) -> None:
        self._reported: dict[tuple[str, str], set[str]] = {}
        self._in_a_row: dict[tuple[str, str], int] = {}

    def report(
        self,
        store: Store,
        kind: str,
        name: str,
        failures: Sequence[tuple[str, Exception]],
        *,
        failed: bool | None = None,
    ) -> None:
        """Report the failures of one attempt, or none if it succeeded.

        Args:
            kind: kind of the events' subject, such as `loop`.
            name: its name.
            failures: verb of the event and the failure. Failures that are not everloop's come from the project's code
                or are bugs; their traceback goes to the log.
            failed: whether the attempt as a whole failed, so that the next one waits longer. Default: if there are
                failures.
        """
        subject = (kind, name)
        before = self._reported.get(subject, set())
        self._reported[subject] = {_text(failure) for _, failure in failures}
        self._in_a_row[subject] = self._in_a_row.get(subject, 0) + 1 if (failures if failed is None else failed) else 0
        for verb, failure in failures:
            text = _text(failure)
            if text in before:
                continue
            if isinstance(failure, EverloopError):
                sys.stderr.write(f"{type(failure).__name__}: {failure}\n")
            else:
                sys.stderr.write("".join(traceback.format_exception(failure)))
            store.records.append_event(verb, kind, name, name, {"error": text})

    def wait_s(self, kind: str, name: str, every_s: float) -> float:
        """How long to wait until the next attempt: `every_s`, doubled with each further failure, up to 5 minutes."""
        further = max(self._in_a_row.get((kind, name), 0) - 1, 0)
        return max(every_s, min(every_s * 2.0 ** min(further, 20), LONGEST_WAIT_S))


def _text(failure: Exception) -> str:
    return str(failure) if isinstance(failure, EverloopError) else f"{type(failure).__name__}: {failure}"
