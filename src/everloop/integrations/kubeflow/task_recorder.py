"""Writes what tasks do to the store, as steps of a run with artifacts, and finds earlier results of equal tasks."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.integrations.kubeflow.task_values import ArtifactValue, TaskInputs, TaskOutcome
from everloop.pipeline import fingerprint as fp
from everloop.pipeline.artifacts import Stored, keep_value, load_value
from everloop.pipeline.cache import Cache, CacheHit
from everloop.pipeline.value_digests import digest_text
from everloop.records import Artifact, Record, StepRun

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.integrations.kubeflow.pipeline_spec import Spec
    from everloop.pipeline.run_listener import Listener
    from everloop.records import Json, StepStatus
    from everloop.stores import Store
    from everloop.tracking import ActiveRun

_METRICS = "system.Metrics"
KIND = "kubeflow"
"""Key in the `meta` of an artifact that holds its type, metadata and URI."""


class TaskRecorder:
    """The records of one run. Threads may share it."""

    def __init__(self, store: Store, run: ActiveRun, listener: Listener) -> None:
        self.store = store
        self.run = run
        self.listener = listener
        self.steps: list[StepRun] = []
        self._cache = Cache(store)
        self._lock = threading.Lock()

    def parts(self, executor: Spec, component: Spec, inputs: TaskInputs) -> dict[str, str]:
        """The parts of a task's fingerprint: what it runs, what it declares, and the content of its inputs."""
        parts = {"code:executor": _digest(executor), "outputs": _digest(component.get("outputDefinitions") or {})}
        parts |= {f"param:{name}": _digest(value) for name, value in inputs.parameters.items()}
        for name, values in inputs.artifacts.items():
            for position, value in enumerate(values):
                parts[f"input:{name}[{position}]"] = content_digest(value)
        return parts

    def find(
        self, name: str, parts: Mapping[str, str], inputs: TaskInputs, needs: tuple[str, ...]
    ) -> TaskOutcome | None:
        """The result of an earlier equal task, recorded as this run's step; None if there is none."""
        with self._lock:
            hit = self._cache.find(fp.fingerprint(parts), again=True)
            if not isinstance(hit, CacheHit):
                return None
            artifacts = {key: self.store.records.get(Artifact, one) for key, one in hit.artifacts.items()}
        parameters: dict[str, Json] = {}
        made: dict[str, list[ArtifactValue]] = {}
        for key, artifact in artifacts.items():
            about = artifact.meta.get(KIND)
            if not isinstance(about, dict):
                parameters[key] = load_value(artifact, self.store.objects)
                continue
            stored = Stored.of(artifact) if artifact.type in ("file", "tree") else None
            found: dict[str, Any] = about
            made[key] = [ArtifactValue(found["name"], found["type"], found["uri"], found["metadata"], stored)]
        self._add(name, "cached", fp.CACHED, parts, inputs, needs, outputs=hit.artifacts)
        self._log_metrics(made)
        return TaskOutcome("succeeded", parameters, made, steps=(name,))

    def succeed(
        self,
        name: str,
        parts: Mapping[str, str],
        inputs: TaskInputs,
        needs: tuple[str, ...],
        parameters: dict[str, Json],
        made: dict[str, ArtifactValue],
        *,
        reason: str,
        attempts: int,
        seconds: float,
    ) -> TaskOutcome:
        """Store what a task has made, and record it in one write."""
        kept: dict[str, Stored] = {}
        values: dict[str, list[ArtifactValue]] = {}
        for key, value in parameters.items():
            kept[key] = keep_value(value, self.store.objects)
        for key, artifact in made.items():
            stored = self._keep(artifact)
            bytes_here = stored if stored.type in ("file", "tree") else None
            values[key] = [ArtifactValue(artifact.name, artifact.type, artifact.uri, artifact.metadata, bytes_here)]
            # A path of this run's folder means nothing later.
            uri = artifact.uri if is_remote(artifact.uri) else ""
            about: dict[str, Json] = {
                "name": artifact.name,
                "type": artifact.type,
                "uri": uri,
                "metadata": artifact.metadata,
            }
            kept[key] = Stored(stored.type, stored.digest, stored.size_bytes, {**stored.meta, KIND: about})
        records = {
            key: self.store.new(
                Artifact,
                run=self.run.id,
                step=name,
                name=f"{name}.{key}",
                type=stored.type,
                digest=stored.digest,
                size_bytes=stored.size_bytes,
                meta=stored.meta,
                signature=stored.signature,
            )
            for key, stored in kept.items()
        }
        self._add(
            name,
            "ran",
            reason,
            parts,
            inputs,
            needs,
            outputs={key: one.id for key, one in records.items()},
            more=list(records.values()),
            attempts=attempts,
            seconds=seconds,
        )
        self._log_metrics(values)
        return TaskOutcome("succeeded", parameters, values, steps=(name,))

    def end(
        self,
        name: str,
        status: StepStatus,
        reason: str,
        *,
        parts: Mapping[str, str] | None = None,
        inputs: TaskInputs | None = None,
        needs: tuple[str, ...] = (),
        error: str | None = None,
        attempts: int = 1,
        seconds: float = 0.0,
    ) -> None:
        """Record a task that has made nothing."""
        self._add(
            name,
            status,
            reason,
            parts or {},
            inputs or TaskInputs(),
            needs,
            error=error,
            attempts=attempts,
            seconds=seconds,
        )

    def _keep(self, artifact: ArtifactValue) -> Stored:
        path = Path(artifact.uri) if not is_remote(artifact.uri) and artifact.uri else None
        if path is not None and path.exists():
            return keep_value(path, self.store.objects)
        about = {"type": artifact.type, "metadata": artifact.metadata}
        return keep_value({**about, "uri": artifact.uri} if path is None else about, self.store.objects)

    def _log_metrics(self, made: Mapping[str, list[ArtifactValue]]) -> None:
        for values in made.values():
            for value in values:
                if value.type.get("schemaTitle") == _METRICS:
                    numbers = {
                        key: float(one)
                        for key, one in value.metadata.items()
                        if isinstance(one, int | float) and not isinstance(one, bool) and key != "display_name"
                    }
                    if numbers:
                        self.run.log(numbers)

    def _add(
        self,
        name: str,
        status: StepStatus,
        reason: str,
        parts: Mapping[str, str],
        inputs: TaskInputs,
        needs: tuple[str, ...],
        *,
        outputs: Mapping[str, str] | None = None,
        more: list[Artifact] | None = None,
        error: str | None = None,
        attempts: int = 1,
        seconds: float = 0.0,
    ) -> None:
        step = self.store.new(
            StepRun,
            run=self.run.id,
            name=name,
            status=status,
            reason=reason,
            fingerprint=fp.fingerprint(parts) if parts else "",
            code=parts.get("code:executor", ""),
            inputs={
                f"{key}[{position}]" if len(values) > 1 else key: content_digest(value)
                for key, values in inputs.artifacts.items()
                for position, value in enumerate(values)
            },
            outputs=dict(outputs or {}),
            depends_on=needs,
            parts=dict(parts),
            attempts=attempts,
            seconds=seconds,
            error=error,
        )
        written: list[Record] = [*(more or []), step]
        with self._lock:
            self.store.records.put(*written)
            self.steps.append(step)
            self.listener.on_finish(step)


def content_digest(value: ArtifactValue) -> str:
    """A digest of an artifact's bytes (or its URI, if they are elsewhere) and metadata."""
    if value.stored is not None and not value.metadata:
        return value.stored.digest
    content = value.stored.digest if value.stored is not None else value.uri if is_remote(value.uri) else ""
    return f"sha256:{digest_text(content, _digest(value.metadata), str(value.type.get('schemaTitle', '')))}"


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def _digest(value: Any) -> str:
    return digest_text(json.dumps(value, sort_keys=True, default=str))
