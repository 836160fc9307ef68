"""Python models with a context, like MLflow's `PythonModel`: objects that load their own files and predict.

    class Scorer:
        def load_context(self, context): self.table = json.load(open(context.artifacts["table"]))
        def predict(self, context, model_input, params=None): ...

Such a model is code, so it loads only when signed. Its artifacts are stored in the package and written to a temporary
folder when it is loaded. Source: MLflow, `mlflow.pyfunc.PythonModel`.
"""

from __future__ import annotations

import inspect
import json
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from everloop.errors import CorruptionError, NotFoundError, UsageError
from everloop.packages.formats.input_tables import TableKind
from everloop.stores.objects.manifests import safe_path
from everloop.training.estimator_scores import EstimatorScores
from everloop.training.user_code import dump_code, load_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.class_decisions import ClassScores, Rule
    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]

_STATE, _OBJECT, _ARTIFACTS = "pyfunc.json", "python_model.pkl", "artifacts/"


@dataclass(frozen=True, slots=True)
class PyfuncContext:
    """The context that the model receives: the paths of its artifacts by name, and an empty configuration."""

    artifacts: dict[str, str] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)


class PyfuncModel:
    """A `Model` around a Python model with its artifacts."""

    format = "pyfunc"

    def __init__(self, blob: bytes, artifacts: Mapping[str, bytes], names: Mapping[str, str], **state: Any) -> None:
        self.question: EstimatorScores = state.get("question") or EstimatorScores(task=state["task"])
        self.task: Task = self.question.task
        self.table: TableKind = state["table"]
        self.inputs = self.table.names
        self._blob, self._artifacts, self._names = blob, dict(artifacts), dict(names)
        # The bound method keeps the folder alive; it is removed together with the model.
        folder = tempfile.TemporaryDirectory(prefix="everloop-artifacts-")
        self._finalizer = weakref.finalize(self, folder.cleanup)
        for name, data in self._artifacts.items():
            path = Path(folder.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.context = PyfuncContext({name: str(Path(folder.name, inner)) for name, inner in self._names.items()})
        self.python_model = load_code(blob)
        self.scorer = PyfuncScores(self.python_model, self.context)
        """The model with the interface of an estimator."""

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.question.scores(self.scorer, self.table.fill(self.table.cast(frame)))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self.question.scores(self.scorer, self.table.fill(self.table.from_rows(rows)))

    @property
    def rule(self) -> Rule | None:
        """How classes follow from scores; None if the model predicts them separately."""
        return self.question.rule if self.question.choice == "rule" else None

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        return self.question.answer(self.scorer, self.table.fill(self.table.cast(frame)))

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        return self.question.answer(self.scorer, self.table.fill(self.table.from_rows(rows)))

    def to_files(self) -> Files:
        state = {
            "version": 1,
            "task": self.task,
            "table": self.table.to_json(),
            "artifacts": self._names,
            **self.question.to_json(),
        }
        files = {_STATE: json.dumps(state, sort_keys=True).encode(), _OBJECT: self._blob}
        return files | {f"{_ARTIFACTS}{name}": data for name, data in self._artifacts.items()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state, blob = json.loads(files[_STATE]), files[_OBJECT]
            known: dict[str, Any] = {"task": state["task"], "table": TableKind.from_json(state["table"])}
            known["question"] = EstimatorScores.from_json({"order": (), **state}, state["task"])
            names = {str(name): str(path) for name, path in state["artifacts"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(
                f"These files are not a Python model: {error!r}.", help="Package the model again."
            ) from error
        artifacts = {name.removeprefix(_ARTIFACTS): data for name, data in files.items() if name.startswith(_ARTIFACTS)}
        if not all(map(safe_path, (*artifacts, *names.values()))):
            raise CorruptionError("The path of an artifact is outside of the Python model.")
        return cls(blob, artifacts, names, **known)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (self.to_files(),)


class PyfuncScores:
    """Gives a Python model the interface of an estimator, whether or not its `predict` takes a context."""

    def __init__(self, model: Any, context: PyfuncContext) -> None:
        self._model, self._context = model, context
        if hasattr(model, "load_context"):
            model.load_context(context)
        self._with_context = _takes_context(model)

    def predict(self, table: Any) -> Any:
        import numpy as np

        predicted = self._model.predict(self._context, table) if self._with_context else self._model.predict(table)
        return np.asarray(predicted)


def is_pyfunc(model: Any) -> bool:
    """Whether an object predicts with a context."""
    return not isinstance(model, type) and (hasattr(model, "load_context") or _takes_context(model))


def adopt_pyfunc(model: Any, table: TableKind, task: Task, artifacts: Mapping[str, Any]) -> PyfuncModel:
    """Wrap a Python model together with the files and folders that it reads.

    Raises:
        NotFoundError: an artifact does not exist.
        UsageError: an artifact's name cannot be a file name, or loading the model fails.
    """
    files: dict[str, bytes] = {}
    names: dict[str, str] = {}
    for name, location in artifacts.items():
        source = Path(location)
        if not safe_path(name) or "/" in name:
            raise UsageError(
                f"'{name}' is not a valid name for an artifact.", help="Use letters, digits, '.', '_' and '-'."
            )
        if not source.exists():
            raise NotFoundError(
                f"There is no file '{source}' for the artifact '{name}'.", help="Check the paths in artifacts=."
            )
        names[name] = f"{name}/{source.name}"
        if source.is_dir():
            files |= {
                f"{names[name]}/{path.relative_to(source).as_posix()}": path.read_bytes()
                for path in sorted(source.rglob("*"))
                if path.is_file()
            }
        else:
            files[names[name]] = source.read_bytes()
    try:
        return PyfuncModel(dump_code(model), files, names, task=task, table=table)
    except Exception as error:  # a user's model can raise anything
        raise UsageError(
            f"The {type(model).__name__} cannot be loaded: {type(error).__name__}: {error}",
            help="It must be picklable, and load_context may read only its artifacts.",
        ) from error


def _takes_context(model: Any) -> bool:
    try:
        names = list(inspect.signature(model.predict).parameters)
    except (AttributeError, TypeError, ValueError):
        return False
    return len(names) >= 2 and names[0] == "context"


def _reread(files: Files) -> PyfuncModel:
    return PyfuncModel.from_files(files)
