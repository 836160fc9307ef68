"""Writes what happens in a graph's run: step records and artifacts to the store, events to the listener."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError
from everloop.pipeline import fingerprint as fp
from everloop.pipeline.step_output import LOG
from everloop.pipeline.steps import RESULT
from everloop.records import Artifact, Record, StepRun, StepStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.pipeline.artifacts import Stored
    from everloop.pipeline.result import GraphRun
    from everloop.pipeline.run_listener import Listener
    from everloop.pipeline.scheduled_tasks import ScheduledTask
    from everloop.pipeline.step_progress import StepProgress

_log = logging.getLogger("everloop.pipeline")

_EVENT_EVERY_S = 10.0


class StepRecorder:
    """Collects the records of one run until `write` puts them into the store together."""

    def __init__(self, result: GraphRun, listener: Listener) -> None:
        self.result = result
        self.store = result.store
        self.listener = listener
        self._unwritten: list[Record] = []
        self._next_event: dict[str, float] = {}
        self._needs: dict[str, tuple[str, ...]] = {}

    def add_step(
        self,
        task: ScheduledTask,
        status: StepStatus,
        reason: str,
        *,
        outputs: dict[str, str] | None = None,
        observed: tuple[dict[str, Any], ...] = (),
        seconds: float = 0.0,
        error: str | None = None,
    ) -> StepRun:
        """Record that a step has ended, and tell the listener. `outputs` maps output names to ids of artifacts."""
        node = task.node
        if node.name not in self._needs:
            # Finding them means to look through all inputs, such as the list of a thousand elements.
            self._needs[node.name] = node.needs
        step = self.store.new(
            StepRun,
            run=self.result.run,
            name=task.name,
            status=status,
            reason=reason,
            fingerprint=task.fingerprint if task.parts else "",
            code=task.code.digest,
            inputs=fp.input_digests(task.inputs),
            outputs=outputs or {},
            depends_on=self._needs[node.name],
            observed=observed,
            parts=task.parts,
            attempts=task.attempt,
            seconds=seconds,
            error=error,
        )
        self._unwritten.append(step)
        self.result.steps.append(step)
        self.listener.on_finish(step)
        return step

    def add_artifacts(self, step: str, outputs: Mapping[str, Stored]) -> dict[str, str]:
        """Record what a step returned. Returns output name to the id of its artifact."""
        artifacts = [
            self._artifact(step, step if name == RESULT else f"{step}.{name}", stored)
            for name, stored in outputs.items()
        ]
        self._unwritten.extend(artifacts)
        return {name: artifact.id for name, artifact in zip(outputs, artifacts, strict=True)}

    def add_log(self, step: str, printed: Stored | None) -> None:
        """Record what a step printed, if anything. It is not one of the step's outputs."""
        if printed is not None:
            self._unwritten.append(self._artifact(step, f"{step}.{LOG}", printed))

    def _artifact(self, step: str, name: str, stored: Stored) -> Artifact:
        return self.store.new(
            Artifact,
            run=self.result.run,
            step=step,
            name=name,
            type=stored.type,
            digest=stored.digest,
            size_bytes=stored.size_bytes,
            meta=stored.meta,
            signature=stored.signature,
        )

    def write(self) -> None:
        """Put everything that was added into the store, in one transaction."""
        if self._unwritten:
            self.store.records.put(*self._unwritten)
            self._unwritten.clear()

    def on_progress(self, name: str, progress: StepProgress) -> None:
        """Pass a step's progress to the listener, and write an event of it every few seconds."""
        self.listener.on_progress(name, progress)
        now = time.monotonic()
        if now < self._next_event.setdefault(name, now + _EVENT_EVERY_S):
            return
        self._next_event[name] = now + _EVENT_EVERY_S
        data = {
            "step": name,
            "done": progress.done,
            "total": progress.total,
            "unit": progress.unit,
            "note": progress.note,
        }
        try:
            self.store.records.append_event("progress", "run", self.result.run, data=data)
        except EverloopError as error:
            # A step must not fail because its progress cannot be written.
            _log.warning("Cannot write the progress of step '%s': %s", name, error)
