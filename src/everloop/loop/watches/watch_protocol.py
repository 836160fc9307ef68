"""The protocol of watches: objects that check every closed window of an endpoint.

A watch has a `window` and a method `check`. The watches of everloop use nothing that others cannot use. `window_checks`
calls them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration
from everloop.records import Finding, FindingKind, Json, Severity

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl

    from everloop.stores import Store

_MEMBERS = ("window", "check")


class Watch(Protocol):
    """Something that checks every closed window of an endpoint's prediction log.

    `check` is called once for each window `[since, until)`, oldest first, after the window has closed. It returns
    findings, or an empty list if nothing is worth one. Findings that are not in the store yet are stored in one
    transaction, together with the note that the window has been checked and the incidents that change.

    - A finding with the severity `alarm` opens an incident or joins an ongoing one of its kind. One with the severity
      `warning` prolongs an incident about its subject. Windows without either count as calm.
    - A check may be repeated for a window if the process was killed during it.
    - If it raises EmptySampleError, the window had nothing to check. It counts as checked, but not as calm.
    - If it raises anything else, that becomes a finding about the watch, once for each window, and an incident that is
      a notice. The window is tried again at each tick for as long as it is long, and then skipped. Other watches and
      serving continue.

    A watch may also have these attributes:

    - `name`: identifies the watch, default: the name of its class. Two watches of a loop must have different names.
    - `labels_after`: a window counts as closed this long after its end, such as `"1d"`. Default: at once.
    - `kind`: for a watch whose every check stores a finding of this kind with the subject `window`. Its windows are
      recognised by these findings, and no notes are stored. Only one watch of a loop may have a kind.

    Attributes:
        window: length of a window, such as `"1d"` or `"1w"`.
    """

    @property
    def window(self) -> str: ...

    def check(self, context: WatchContext, since: datetime, until: datetime) -> list[Finding]:
        """Return the findings about the predictions with `since <= event_at < until`."""


@dataclass(frozen=True, slots=True)
class WatchContext:
    """What a watch may use: the store, and what it watches.

    Attributes:
        store: the store. Its clock is the present: `context.store.now()`.
        endpoint: name of the endpoint.
        model: name of the model in the registry.
        version: key of the model version that is judged, such as `delays@3`.
        watch: name of the watch.
        loop: name of the loop that has the watch. Several loops may watch one endpoint, each with incidents of its own.
    """

    store: Store
    endpoint: str
    model: str
    version: str
    watch: str
    loop: str = ""

    def predictions(self, since: datetime, until: datetime) -> pl.DataFrame:
        """Return all predictions of a window that clients received, with the columns of the prediction log.

        Raises:
            EmptySampleError: there are none.
        """
        from everloop.monitoring.logged_windows import read_window

        return read_window(self.store, self.endpoint, since, until)

    def answering(self, since: datetime, until: datetime) -> list[str]:
        """Return the keys of the versions with a baseline that answered clients in a window, most predictions first.

        The version of the context is left out if it did not answer.

        Raises:
            EmptySampleError: no client received a prediction in the window.
            NotFoundError: none of the versions that answered has a baseline.
        """
        from everloop.monitoring.logged_windows import answering_versions

        return answering_versions(self.store, self.endpoint, since, until)

    def finding(
        self,
        since: datetime,
        until: datetime,
        subject: str,
        message: str,
        *,
        severity: Severity = "warning",
        kind: FindingKind = "quality",
        value: float | None = None,
        threshold: float | None = None,
        evidence: dict[str, Json] | None = None,
    ) -> Finding:
        """Create a finding about a window, to be returned by `check`. It is not stored yet.

        Args:
            subject: what the finding is about, such as a feature.
            message: one sentence for a person.
            severity: `info`, `warning` or `alarm`.
            value: what was measured.
            threshold: the limit that `value` is compared with.
            evidence: more measurements, as JSON values.
        """
        return self.store.new(
            Finding,
            endpoint=self.endpoint,
            version=self.version,
            kind=kind,
            severity=severity,
            subject=subject,
            window_from=since,
            window_to=until,
            value=value,
            threshold=threshold,
            message=message,
            evidence=evidence if evidence is not None else {},
        )


def load_watch(name: str, **options: Any) -> Watch:
    """Create a watch that everloop or an installed package provides under a name.

    Args:
        name: such as `drift`. Packages register watches in the entry-point group `everloop.plugins`, as `watch.<name>`.
        options: arguments of the watch, such as `window="1d"`.

    Raises:
        NotFoundError: no installed package has such a watch.
        UsageError: the options do not fit the watch, or the plugin is not a watch.
    """
    from everloop.plugins import create

    return check_watch(create("watch", name, options), f"The plugin '{name}'")


def check_watch(part: Any, what: str) -> Watch:
    """Return `part` if it is a watch.

    Raises:
        UsageError: it has no `window` that is a duration, or no method `check`. The message begins with `what`.
    """
    if not is_watch(part):
        raise UsageError(
            f"{what} is not a watch: {part!r}",
            help="A watch has a window, such as '1d', and a method check(context, since, until).",
        )
    name = watch_name(part)
    check_duration(f"{name}(window=)", part.window, positive=True)
    check_duration(f"{name}(labels_after=)", getattr(part, "labels_after", "0s"))
    watch: Watch = part
    return watch


def is_watch(part: object) -> bool:
    """Whether an object has the members of a watch. A class has not, only its instances have."""
    return not isinstance(part, type) and all(hasattr(part, name) for name in _MEMBERS)


def watch_name(part: Watch) -> str:
    """Return the name by which a watch is known in findings."""
    name = getattr(part, "name", None)
    return name if isinstance(name, str) and name else type(part).__name__
