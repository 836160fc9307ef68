"""The read-only side of a predictor, for the modules that work on one: row scoring, explanation, golden rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.packages.package_manifest import Manifest
    from everloop.packages.signature import Signature
    from everloop.records import Json
    from everloop.training.trained_model import Model, Task


class PredictorView(Protocol):
    """The attributes of `Predictor` that other modules of this package read."""

    manifest: Manifest
    model: Model
    version: str | None
    digest: str | None
    signature: Signature
    input_names: tuple[str, ...]
    task: Task
    classes: tuple[Json, ...]
    compiled: bool

    @property
    def display_name(self) -> str: ...

    @property
    def form(self) -> str: ...

    def validate(self, rows: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]: ...
