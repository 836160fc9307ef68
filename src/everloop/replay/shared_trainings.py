"""Share trained models between the policies of a replay, so that the same code trains on the same rows only once.

Each policy has a store of its own, perhaps in another process. All of them keep their objects in one folder, by digest.
A file for each result of a training step names its cache key and its objects; a policy copies the records of such
results into its own store before it trains, and the cache of the pipeline then finds them. Only results of up to the
policy's present time are copied. The snapshots, versions and releases are never shared.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from everloop.records import Artifact, StepRun

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from everloop.loop import Loop
    from everloop.stores import Store

_STEPS = ("weigh", "train", "evaluate")
"""The stages that depend on rows and code alone, and return values instead of keys of records."""
_STEP_FIELDS = ("name", "reason", "fingerprint", "code", "inputs", "depends_on", "observed", "parts", "seconds")
_ARTIFACT_FIELDS = ("step", "name", "type", "digest", "size_bytes", "meta", "signature")


class SharedTrainings:
    """The results of training steps that the policies of one replay have in common.

    Args:
        folder: a folder of the replay, the same for all policies; created if missing.
        loop: the loop that is replayed.
    """

    def __init__(self, folder: Path, loop: Loop) -> None:
        from everloop.pipeline import Step
        from everloop.training import AutoTrain

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        own = (loop.train.name,) if isinstance(loop.train, Step) else ()
        # A warm start continues the champion, which is another one in the store of each policy.
        warm = isinstance(loop.train, AutoTrain) and loop.train.warm_start
        self.steps = frozenset(() if warm else (*_STEPS, *own))
        self._seconds: dict[str, float] = {}

    def fetch(self, store: Store) -> int:
        """Copy the results that are new and not of the store's future into its cache; returns their number."""
        fetched = 0
        for path in sorted(self.folder.glob("*.json")):
            if path.stem in self._seconds:
                continue
            shared = json.loads(path.read_bytes())
            if datetime.fromisoformat(shared["at"]) > store.now():
                continue
            artifacts = {name: store.new(Artifact, run="", **values) for name, values in shared["artifacts"].items()}
            values = {**shared["step"], "observed": tuple(shared["step"]["observed"])}
            values["depends_on"] = tuple(values["depends_on"])
            outputs = {name: artifact.id for name, artifact in artifacts.items()}
            step = store.new(StepRun, run="", status="ran", outputs=outputs, **values)
            store.records.put(*artifacts.values(), step)
            self._seconds[path.stem] = step.seconds
            fetched += 1
        return fetched

    def keep(self, store: Store, steps: Iterable[StepRun]) -> float:
        """Offer the results of the steps of a run to the other policies.

        Returns:
            The seconds that this run was spared, because another policy had computed the results.
        """
        spared = 0.0
        for step in steps:
            if step.name not in self.steps or not step.fingerprint:
                continue
            name = _file_name(step.fingerprint)
            if step.status == "cached":
                spared += self._seconds.get(name, 0.0)
            elif step.status == "ran" and name not in self._seconds:
                self._seconds[name] = step.seconds
                self._write(name, _shared(store, step))
        return spared

    def _write(self, name: str, shared: dict[str, Any]) -> None:
        """Write a file whole. Two policies that write the same result write the same content."""
        part = self.folder / f".{name}.{os.getpid()}.part"
        part.write_text(json.dumps(shared), encoding="utf-8")
        part.replace(self.folder / f"{name}.json")


def _shared(store: Store, step: StepRun) -> dict[str, Any]:
    artifacts = {name: store.records.get(Artifact, key) for name, key in step.outputs.items()}
    return {
        "at": step.created_at.isoformat(),
        "step": {name: getattr(step, name) for name in _STEP_FIELDS},
        "artifacts": {
            output: {name: getattr(artifact, name) for name in _ARTIFACT_FIELDS}
            for output, artifact in artifacts.items()
        },
    }


def _file_name(fingerprint: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in fingerprint)
