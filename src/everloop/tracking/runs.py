"""Active runs: starting, resuming and joining a run, and logging to it.

    with start_run("train", params={"lr": 0.1}) as run:
        for epoch in range(10):
            run.log(loss=…, step=epoch)

Everything that a run logs goes to its journal with one `write` and nowhere else. So a call takes microseconds, its data
survives a killed process, and no store has to be available. `journal.run_folding` copies the journal into the store.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import ExitStack
from contextvars import ContextVar, Token
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from everloop.errors import EverloopError, UnavailableError, UsageError
from everloop.records import Run
from everloop.stores.open_stores import shared_store
from everloop.tracking.display import html_of, panel_of
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.journal_writer import RunWriter
from everloop.tracking.journal.run_folding import STREAM_PREFIX, fold_journal, fold_run
from everloop.tracking.journal.step_counter import StepCounter
from everloop.tracking.key_collisions import check_spellings, merge_keywords
from everloop.tracking.provenance import imported_packages, stored_source
from everloop.tracking.reproduction.run_trust import is_from_here, sealed
from everloop.tracking.run_artifacts import ArtifactLog
from everloop.tracking.run_params import Params
from everloop.tracking.secrets.masking import mask_params, mask_text, masks_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from everloop.records import Json
    from everloop.stores import Store
    from everloop.tracking.system_metrics import SystemWatch

_log = logging.getLogger("everloop.tracking")

_current: ContextVar[ActiveRun | None] = ContextVar("everloop_run", default=None)

Ended = Literal["finished", "failed", "interrupted"]


def current_run() -> ActiveRun | None:
    """The run whose `with` block this code is in, or None. Threads that are started inside do not inherit it."""
    return _current.get()


def start_run(
    name: str | None = None,
    *,
    store: Store | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    parent: ActiveRun | Run | str | None = None,
    loop: str | None = None,
    trigger: str | None = None,
    cause: Mapping[str, Json] | None = None,
    resume: str | None = None,
) -> ActiveRun:
    """Start a run, or resume one. Use it in a `with` block, or call its `finish`.

    Args:
        store: the store. Default: the nearest store, which stays open for the next run of this process.
        parent: the run that this one is a part of. Default: the current run, if there is one.
        loop: name of the loop that this run belongs to.
        trigger: what caused the run: `manual`, `schedule`, a finding's id, …
        cause: the same in parts, see `Run.cause`.
        resume: id of a run to resume, in any state. Metrics without a step continue to count from their last step.
            Several processes may resume the same run at the same time: each writes its own journal and nothing is
            lost. The final state is that of the last process to end.

    Raises:
        UsageError: the name is empty, or a parameter takes more than a megabyte.
        NotFoundError: the run to resume does not exist.
    """
    with ExitStack() as cleanup:
        if store is None:
            store = shared_store()
        if resume is not None:
            from everloop.tracking.journal.recovery import recover_journals
            from everloop.tracking.resuming import reopen

            recover_journals(store)
            # Held while this process lives, so that others see that the run is not lost. If several processes resume
            # one run, the first holds the lock.
            resume = store.records.get(Run, resume).id
            cleanup.enter_context(store.lock(f"run-{resume}", block=False))
            run = reopen(store, resume)
            initial_params = run.params
        else:
            if not isinstance(name, str) or not name.strip():
                raise UsageError(
                    f"{name!r} is not a valid name of a run.", help="Pass a short name, such as name='train'."
                )
            enclosing = current_run()
            if parent is None and enclosing is not None:
                parent = enclosing.id
            initial_params = journal_frames.checked_params(params or {})
            run = sealed(
                store.new(
                    Run,
                    name=name,
                    started_at=store.now(),
                    params=_masked_params(initial_params),
                    tags=_texts(tags or {}),
                    parent=parent if parent is None or isinstance(parent, str) else parent.id,
                    loop=loop,
                    trigger=trigger,
                    cause=dict(cause or {}),
                    source=stored_source(store),
                )
            )
            cleanup.enter_context(store.lock(f"run-{run.id}"))
            try:
                store.records.put(run, verb="started")
            except UnavailableError as error:
                _log.warning("The run '%s' is recorded in its journal only; the store is unavailable: %s", name, error)
        active = ActiveRun(run, store, cleanup.pop_all(), known=resume is not None, params=initial_params)
        # Create the journal now, so that the run is recorded even if it never logs anything.
        active._writer.begin()
        if resume is not None:
            active.log_params(params or {})
            active.set_tags(tags or {})
        return active


def join_run(store: Store, run: str) -> ActiveRun:
    """Join a run that another process has started, to log to it from this one. Use it in a `with` block.

    Inside the block, `current_run` returns this run. Logged data goes to a journal of this process, which is created
    when first needed. Leaving the block does not end the run.

    Raises:
        NotFoundError: the run does not exist.
    """
    return ActiveRun(store.records.get(Run, run), store, ExitStack(), joined=True, known=True)


def _texts(tags: Mapping[str, object]) -> dict[str, str]:
    check_spellings("tag", tags, journal_frames.text)
    return {journal_frames.text(tag): journal_frames.text(value) for tag, value in tags.items()}


class ActiveRun(ArtifactLog):
    """A run of this process. Safe to use from several threads. A forked child may log to it, but not end it."""

    def __init__(
        self,
        run: Run,
        store: Store,
        resources: ExitStack,
        *,
        joined: bool = False,
        known: bool = False,
        params: Mapping[str, Json] | None = None,
    ) -> None:
        self.store = store
        self.params = Params(run.params if params is None else params, self._write_params)
        self._run = run
        self._source = run.source
        # A run that another machine started stays foreign if it is resumed or joined here.
        self._seals = not joined and (not known or is_from_here(run))
        self._start = replace(run, metrics={}, metric_at={})
        self._writer = RunWriter(
            store.journals, STREAM_PREFIX + run.id, run.name, lambda: journal_frames.encode_start(self._start)
        )
        self._resources = resources
        self._joined = joined
        self._began = time.perf_counter() - (run.seconds or 0.0)
        self._process = os.getpid()
        self._steps = StepCounter(store, run.id, STREAM_PREFIX + run.id, lambda: self._writer.path, known=known)
        self._lock = threading.Lock()
        self._ended = False
        self._token: Token[ActiveRun | None] | None = None
        self._watch: SystemWatch | None = None

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def name(self) -> str:
        return self._run.name

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def lost(self) -> int:
        """How many log calls have not been written so far, because the disk is full or gone."""
        return self._writer.lost

    @property
    def record(self) -> Run:
        """The run's present record in the store. It has the metrics and all later changes only after the run has ended.

        This also works after the store that the run was started with has been closed.
        """
        store = self.store
        if store.closed:
            store = shared_store(store.urls, project=store.project, actor=store.actor)
        if self._ended:
            fold_run(store, self.id)  # the store may have been unavailable when the run ended
        return store.records.get(Run, self.id)

    def log(
        self, metrics: Mapping[str, Any] | None = None, /, *, step: SupportsIndex | None = None, **more: Any
    ) -> None:
        """Log numbers: `log(loss=0.3, step=7)`, or nested as `log({"val": {"auc": 0.9}}, step=7)` for `val/auc`.

        A point that was logged survives a killed process. Errors of the disk or the store are not raised: data is
        held in memory until it can be written, with a warning the first time, and `lost` counts the calls that are
        held.

        Args:
            step: any integer. Without it, each metric counts its own steps: from 0, or from the greatest step that
                any process of this machine has logged it with.

        Raises:
            UsageError: a value is not a number, two keys give the same name, or the run has ended.
        """
        values = journal_frames.metrics_of(more if metrics is None else merge_keywords("metric", metrics, more))
        at = self.store.now()
        if step is not None:
            number = journal_frames.step_number(step)
            self._steps.note(values, number)
            self._write(journal_frames.encode_metrics(at, number, values))
            return
        for count, group in self._steps.take(values).items():
            self._write(journal_frames.encode_metrics(at, count, group))

    def log_params(self, params: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Set parameters. A later value of a name replaces the earlier one. Nested parameters stay nested.

        Raises:
            UsageError: a parameter takes more than a megabyte.
        """
        self.params.update(params, **more)

    def set_tag(self, name: str, value: object) -> None:
        self._write(journal_frames.encode_tags({journal_frames.text(name): journal_frames.text(value)}))

    def set_tags(self, tags: Mapping[str, object] | None = None, /, **more: object) -> None:
        changed = _texts(merge_keywords("tag", tags, more))
        if changed:
            self._write(journal_frames.encode_tags(changed))

    def set_code(self, digest: str) -> None:
        """Record which code the run executed: the digest over the code of its steps."""
        self._write(self._provenance_frame({}, digest))

    def watch_system(self, every_s: float = 10.0) -> SystemWatch:
        """Log metrics of the machine as `system/…` until the run ends. `system_metrics` lists their names.

        Raises:
            MissingExtraError: psutil is not installed.
        """
        from everloop.tracking.system_metrics import SystemWatch

        if self._watch is None:
            self._watch = SystemWatch(self, every_s)
        return self._watch

    def finish(self, state: Ended = "finished", error: str | None = None) -> None:
        """End the run. Ending it again changes nothing.

        Errors of the store are not raised: the journal has recorded the end, and the next `fold` copies it to the
        store.
        """
        if os.getpid() != self._process:
            return
        if self._watch is not None:
            self._watch.stop()
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if not self._joined:
            seconds = time.perf_counter() - self._began
            packages = {n: v for n, v in imported_packages().items() if self._run.source.packages.get(n) != v}
            if packages:
                self._writer.append(self._provenance_frame(packages, None))
            self._writer.append(journal_frames.encode_end(state, self.store.now(), seconds, error), last=True)
        self._writer.close()
        try:
            if self._writer.path is not None:
                fold_journal(self.store, self._writer.path)
        except (EverloopError, OSError) as fold_error:
            _log.warning("The run '%s' has ended, but is still only in its journal: %s", self.name, fold_error)
        finally:
            # Release the lock last: a running run without its lock looks lost.
            self._resources.close()

    def __enter__(self) -> ActiveRun:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        match error:
            case None:
                self.finish()
            # As for the process: no code and 0 are a success. Anything else fails, even 0.0, which Python only prints.
            case SystemExit(code=None | int(0)):
                self.finish()
            case KeyboardInterrupt():
                self.finish("interrupted")
            case _:
                self.finish("failed", _describe(error, trace))

    def __repr__(self) -> str:
        return f"ActiveRun({self.name!r}, id={self.id!r})"

    def _repr_html_(self) -> str:
        return html_of(self._run, dict(self.params), ended=self._ended)

    def __rich__(self) -> object:
        return panel_of(self._run, dict(self.params), ended=self._ended)

    def _write(self, payload: bytes) -> None:
        if self._ended:
            self._check_open()
        self._writer.append(payload)

    def _write_params(self, changed: dict[str, Json]) -> None:
        self._write(journal_frames.encode_params(_masked_params(changed)))

    def _provenance_frame(self, packages: dict[str, str], code: str | None) -> bytes:
        """A frame with additional provenance of the run, and a new seal over all of it."""
        packages = {**self._source.packages, **packages}
        self._source = replace(self._source, packages=packages, code=code or self._source.code)
        seal = None
        if self._seals:
            seal = sealed(replace(self._run, source=self._source, params=_masked_params(dict(self.params)))).source.seal
        return journal_frames.encode_provenance(packages, code, seal)

    def _check_open(self) -> None:
        if self._ended:
            raise UsageError(
                f"The run '{self.name}' has ended, so nothing can be logged to it.",
                help=f"Log inside its with block, or resume it: start_run(resume='{self.id}')",
            )


def _masked_params(params: dict[str, Json]) -> dict[str, Json]:
    return mask_params(params) if params and masks_secrets() else params


def _describe(error: BaseException, trace: TracebackType | None) -> str:
    """Type, message and position of an error in one line. The position is that of the innermost frame."""
    frames = extract_tb(trace)
    position = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    message = journal_frames.text(f"{type(error).__name__}: {error}{position}")
    return mask_text(message) if masks_secrets() else message
