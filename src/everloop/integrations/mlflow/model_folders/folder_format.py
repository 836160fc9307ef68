"""The model folder format `mlflow` of `everloop.plugins`: reads and writes MLflow's model folders without MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from everloop.packages.time_budget import PackagingProgress
    from everloop.records import ModelVersion
    from everloop.stores import Store


class MlflowFormat:
    """Reads and writes model folders with an `MLmodel` file."""

    name = "mlflow"

    def write(self, store: Store, ref: str, folder: Path) -> Path:
        from everloop.integrations.mlflow.model_folders.folder_export import write_folder

        return write_folder(store, ref, folder)

    def read(
        self,
        store: Store,
        folder: Path,
        model: str,
        *,
        allow_code: bool = False,
        example: Any = None,
        progress: Callable[[PackagingProgress], None] | None = None,
    ) -> ModelVersion:
        from everloop.integrations.mlflow.model_folders.adoption import import_folder

        return import_folder(store, folder, model, allow_code=allow_code, example=example, progress=progress)

    def adopt(
        self,
        store: Store,
        version: ModelVersion,
        folder: Path,
        *,
        allow_code: bool = False,
        example: Any = None,
        progress: Callable[[PackagingProgress], None] | None = None,
    ) -> ModelVersion:
        from everloop.integrations.mlflow.model_folders.adoption import adopt_version

        return adopt_version(store, version, folder, allow_code=allow_code, example=example, progress=progress)

    def probe(self, folder: Path, example: Any = None) -> None:
        """Load a folder's model as a test, in a child process; see `everloop.packages.isolation.isolated_load`."""
        from everloop.integrations.mlflow.model_folders.adoption import probe_folder

        probe_folder(folder, example)


FORMAT = MlflowFormat()
"""The object that the table of plugins refers to."""
