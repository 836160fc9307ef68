"""The cells in which the predictions of a model version are counted, read from its stored baseline.

`everloop.monitoring.baseline` writes the baseline. Here only its bins are needed.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from everloop.data.sketches.bins import Bins, bins_from_json, bins_to_json
from everloop.data.sketches.derived_columns import DerivedSpec, spec_from_json, spec_to_json
from everloop.errors import EverloopError
from everloop.packages.signature import Signature
from everloop.prediction_log.label_matching import label_horizon
from everloop.records import Artifact, ModelVersion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

FORMAT = 1
"""Aggregates of another format are counted again from the rows."""
SCORE = "prediction"
"""Name of the score among the subjects of a baseline."""
_MOST_KEPT = 64

_Stored = tuple[dict[str, Bins], Bins | None, dict[str, DerivedSpec]]


@dataclass(frozen=True, slots=True)
class VersionBins:
    """How the predictions of one version are counted.

    Attributes:
        inputs: cells by input. Empty if the version has no baseline.
        derived: by free text or vector, how the numbers are derived that are counted instead.
        score: cells of the score; None if the baseline has none.
        signature: of the version; None if it is not registered.
        digest: identifies the cells. Only counts with the same digest can be added.
        label_digest: identifies how labels are matched and encoded.
    """

    inputs: dict[str, Bins] = field(default_factory=dict)
    score: Bins | None = None
    signature: Signature | None = None
    digest: str = ""
    label_digest: str = ""
    derived: dict[str, DerivedSpec] = field(default_factory=dict)


def find_version_bins(store: Store, endpoint: str, version: str) -> VersionBins:
    """Return the cells of the version's newest baseline. Without one, only rows, latency and labels are counted."""
    found = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    signature = Signature.from_json(found[0].signature) if found and found[0].signature else None
    inputs, score, derived = _stored_bins(store, version)
    cells = {name: bins_to_json(bins) for name, bins in inputs.items()}
    horizon = label_horizon(store, endpoint)
    task = None if signature is None else [signature.task, list(signature.classes)]
    return VersionBins(
        inputs,
        score,
        signature,
        _digest([FORMAT, cells, None if score is None else bins_to_json(score), *_specs_digest(derived)]),
        _digest([FORMAT, None if horizon is None else horizon.total_seconds(), task]),
        derived,
    )


def _stored_bins(store: Store, version: str) -> _Stored:
    artifacts = store.records.find(
        Artifact, ("name", "=", "baseline"), ("meta.version", "=", version), order="-id", limit=1
    )
    if not artifacts:
        return {}, None, {}
    digest = artifacts[0].digest
    kept = _kept.get(digest)
    if kept is None:
        try:
            kept = _read_bins(json.loads(store.objects.read(digest)))
        except (EverloopError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("Cannot read the baseline of '%s', so its inputs are not aggregated: %s", version, error)
            return {}, None, {}
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[digest] = kept
    return kept


_kept: dict[str, _Stored] = {}
"""Bins by the digest of their baseline, whose content never changes."""


def _read_bins(baseline: Mapping[str, Any]) -> _Stored:
    inputs = {name: bins_from_json(sketch["bins"]) for name, sketch in baseline["features"]["sketches"].items()}
    score = (baseline["score"] or {}).get("sketches", {}).get(SCORE)
    derived = {name: spec_from_json(spec) for name, spec in baseline.get("derived", {}).items()}
    return inputs, None if score is None else bins_from_json(score["bins"]), derived


def _specs_digest(derived: Mapping[str, DerivedSpec]) -> list[Any]:
    """Return what identifies the derived numbers; nothing without any, so that older aggregates keep their digest."""
    return [{name: spec_to_json(spec) for name, spec in derived.items()}] if derived else []


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]


__all__ = ["SCORE", "VersionBins", "find_version_bins"]
