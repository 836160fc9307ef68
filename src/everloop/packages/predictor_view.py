"""What the parts of a predictor (single rows, explanations, golden rows) read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.packages.package_manifest import Manifest
    from everloop.packages.signature import Signature
    from everloop.records import Json
    from everloop.training.trained_model import Model, Task


class PredictorView(Protocol):
    """The read-only side of `Predictor`; see there."""

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
    def told(self) -> str: ...

    @property
    def form(self) -> str: ...

    def validate(self, rows: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]: ...
