"""MLflow's model folders, read and written without MLflow.

`FORMAT` is what `everloop.plugins` knows as the model folder format `mlflow`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from everloop.packages.time_budget import PackagingProgress
    from everloop.records import ModelVersion
    from everloop.stores import Store


class MlflowFormat:
    """Reads and writes folders with an `MLmodel` file."""

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
        """Read a folder's model on trial, in a child process; see `everloop.packages.isolation.isolated_load`."""
        from everloop.integrations.mlflow.model_folders.adoption import probe_folder

        probe_folder(folder, example)


FORMAT = MlflowFormat()
"""What the table of plugins names."""
