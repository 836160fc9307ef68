"""The predictor: a model loaded from a package, with its signature and its origin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from everloop.errors import CorruptionError, EverloopError, RequestError, UsageError
from everloop.packages.golden_rows import FILE as GOLDEN_ROWS
from everloop.packages.isolation.isolation_policy import admit, is_admitted
from everloop.packages.package import read_package
from everloop.packages.package_manifest import COMPILED_FOLDER, MODEL_FOLDER, Manifest
from everloop.records import Package
from everloop.training.class_decisions import ClassScores, answer_frame, answer_rows, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.packages.row_scoring import RowFunction
    from everloop.packages.signature import Signature
    from everloop.records import Json
    from everloop.stores import Store
    from everloop.training.trained_model import Model

    Scores = NDArray[np.float64]


class Predictor:
    """Predicts rows with a packaged model. Thread-safe.

    `digest` is None if it was loaded from a folder, `version` if it was not loaded by a version's name. Scores have the
    same layout as in training: binary (n,), the probability of `classes[1]`; multiclass (n, k), in the order of
    `classes`; regression (n,), in the target's unit.
    """

    def __init__(
        self, manifest: Manifest, model: Model, *, version: str | None = None, digest: str | None = None
    ) -> None:
        self.manifest = manifest
        self.model = model
        self.version = version
        self.digest = digest
        self.signature: Signature = manifest.read_signature()
        self.input_names: tuple[str, ...] = self.signature.names
        self.task = self.signature.task
        self.classes: tuple[Json, ...] = self.signature.classes
        self.compiled = manifest.compiled
        self._example: dict[str, Any] | None = None
        self._golden_rows: bytes | None = None

    @property
    def display_name(self) -> str:
        """The version or digest, for messages."""
        return self.version or self.digest or ""

    @property
    def form(self) -> str:
        """The form that predicts: `lightgbm`, `linear`, `compiled trees`, `compiled linear`, `onnx`, or a format."""
        return str(getattr(getattr(self.model, "form", None), "name", self.model.format))

    @property
    def cheap(self) -> bool:
        """Whether one row takes microseconds, so that collecting rows into batches gains nothing."""
        return self.compiled or self.model.format in ("lightgbm", "linear", "mojo")

    def row_function(self) -> RowFunction:
        """Return the fastest function from one decoded row to its prediction.

        The row is a tuple in the order of the signature's inputs, as `signature.values_of` returns it. The prediction
        is `(label, probability of classes[1])` for two classes, `(label, probability of each class…)` for several, and
        `(value,)` for a regression. The function is thread-safe; it raises RequestError for a row that the model does
        not take.
        """
        from everloop.packages.row_scoring import row_function

        return row_function(self)

    def explain(self, rows: pl.DataFrame | Sequence[Mapping[str, object]]) -> list[dict[str, Json]]:
        """Return the contribution of each input to each row's prediction; see `explanation`.

        Raises:
            UsageError: this model's form cannot explain its predictions.
            RequestError: the rows do not match the signature.
        """
        from everloop.packages.explanation import explain

        return explain(self, rows)

    def validate(self, rows: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
        """Check rows and return them as the model takes them: every input, with its type, and nothing else.

        Raises:
            RequestError: a row does not match the signature; the message names the row and the field.
        """
        names = self.input_names
        return [dict(zip(names, values, strict=True)) for values in self.signature.rows_of(rows)]

    def predict(self, rows: pl.DataFrame | Sequence[Mapping[str, object]] | object) -> Scores:
        """Score a frame (anything with the Arrow C stream interface) or a list of dicts.

        A frame may have further columns; a dict may not.

        Raises:
            RequestError: the rows do not match the signature.
        """
        if isinstance(rows, list | tuple):
            return self.score_rows(self.validate(rows))
        return self.score_frame(_frame(rows))

    def predict_labels(self, rows: pl.DataFrame | Sequence[Mapping[str, object]] | object) -> list[Json] | None:
        """Return the class that the model's own `predict` gives for each row; None for a regression.

        Raises:
            RequestError: the rows do not match the signature.
        """
        if isinstance(rows, list | tuple):
            return self.name_places(self.answer_rows(self.validate(rows)).places)
        return self.name_places(self.answer_frame(_frame(rows)).places)

    def name_places(self, places: NDArray[np.intp] | None) -> list[Json] | None:
        """Return the classes at these indices of `classes`."""
        return None if places is None else [self.classes[index] for index in places.tolist()]

    def score_frame(self, frame: pl.DataFrame) -> Scores:
        """Score a Polars frame with at least the inputs' columns.

        Raises:
            RequestError: a column is missing, or the model cannot score the rows.
        """
        if frame.height:
            return cast("Scores", self._predict_frame(frame, self.model.predict_scores))
        return self.answer_frame(frame).scores

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Return scores and predicted classes for a Polars frame with at least the inputs' columns.

        Raises:
            RequestError: a column is missing, or the model cannot score the rows.
        """
        return cast("ClassScores", self._predict_frame(frame, lambda rows: answer_frame(self.model, rows)))

    def _predict_frame(self, frame: pl.DataFrame, predict: Callable[[pl.DataFrame], Any]) -> Any:
        import numpy as np

        missing = [name for name in self.input_names if name not in frame.columns]
        if missing:
            raise RequestError(
                f"The frame lacks the inputs {', '.join(map(repr, missing))}.",
                help=f"It has: {', '.join(frame.columns)}",
            )
        if not frame.height:
            scores = np.empty((0, len(self.classes)) if self.task == "multiclass" else (0,), dtype=np.float64)
            indices = None if self.task == "regression" else np.empty(0, dtype=np.intp)
            return ClassScores(scores, indices)
        try:
            return predict(frame)
        except EverloopError:
            raise
        except Exception as error:
            # A foreign estimator can raise anything on rows that it does not take.
            raise RequestError(f"The model {self.display_name} cannot score these rows: {error}") from error

    def score_rows(self, rows: Sequence[Mapping[str, Any]]) -> Scores:
        """Score rows that `validate` or the signature's decoder has checked.

        Raises:
            RequestError: the model cannot score them.
        """
        try:
            return self.model.predict_rows(rows)
        except EverloopError:
            raise
        except Exception as error:
            raise RequestError(f"The model {self.display_name} cannot score these rows: {error}") from error

    def answer_rows(self, rows: Sequence[Mapping[str, Any]]) -> ClassScores:
        """Return scores and predicted classes for rows that `validate` or the signature's decoder has checked.

        Raises:
            RequestError: the model cannot score them.
        """
        try:
            return answer_rows(self.model, rows)
        except EverloopError:
            raise
        except Exception as error:
            raise RequestError(f"The model {self.display_name} cannot score these rows: {error}") from error

    def labels(self, scores: Scores) -> list[Json] | None:
        """Return the predicted class for each row of scores; None for a regression.

        Raises:
            UsageError: this model's classes do not follow from its scores; use `predict_labels`.
        """
        if self.task == "regression":
            return None
        rule = rule_of(self.model)
        if rule is None:
            raise UsageError(
                f"The classes that {self.display_name or 'this model'} predicts do not follow from its scores alone.",
                help="Pass the rows instead: predictor.predict_labels(rows).",
            )
        return self.name_places(rule.places(scores))

    @property
    def example(self) -> dict[str, Any] | None:
        """The package's example row, decoded; None if it has none."""
        return self._example

    def warm(self) -> None:
        """Predict the package's example, so that the first request need not wait for lazy initialization.

        A model in a safe format must also reproduce its golden predictions. A model with code may depend on the outside
        world, which changes, so only `everloop models verify` checks those.

        Raises:
            ParityError: it predicts something else here, because a library has another version, say.
        """
        if self._example is not None:
            self.score_rows([self._example])
        if not self.manifest.code_bearing:
            self.check_predictions()

    def check_predictions(self) -> tuple[int, float]:
        """Predict the package's golden rows again. Return their number and the largest difference.

        Raises:
            ParityError: a prediction differs.
        """
        from everloop.packages.golden_rows import check_predictions

        return (0, 0.0) if self._golden_rows is None else check_predictions(self, self._golden_rows)

    def __repr__(self) -> str:
        return f"Predictor({self.version or self.digest or self.manifest.format!r})"


def load_package(store: Store, digest: str, *, version: str | None = None) -> Predictor:
    """Load a package by digest.

    Raises:
        NotFoundError: the store has no such package.
        CorruptionError: the package is damaged, or it is from another machine and its trial load failed.
        TrustError: the package contains code and no trusted key signed it, or its model refers to a file outside of the
            package.
    """
    manifest, files = read_package(store, digest)
    if not is_admitted(digest, store):
        found = store.records.find(Package, ("digest", "=", digest), limit=1)
        admit(manifest, files, digest, found[0].trust if found else None, store=store, name=version or "")
    return predictor_from(manifest, files, version=version, digest=digest, store=store)


def predictor_from(
    manifest: Manifest,
    files: Mapping[str, bytes],
    *,
    version: str | None = None,
    digest: str | None = None,
    store: Store | None = None,
) -> Predictor:
    """Build a predictor from files that have been checked.

    Raises:
        UsageError: the model looks up features, but no store is given.
        CorruptionError: the package's example is not a valid request.
    """
    import msgspec

    from everloop.training.trained_model import model_from_files

    folder, stored_as = (COMPILED_FOLDER, "compiled") if manifest.compiled else (MODEL_FOLDER, manifest.format)
    inner = {name.removeprefix(folder): data for name, data in files.items() if name.startswith(folder)}
    model = model_from_files(stored_as, inner)
    if manifest.lookups:
        from everloop.packages.feature_lookup import look_up_for

        model = cast("Model", look_up_for(model, manifest.lookups, store))
    predictor = Predictor(manifest, model, version=version, digest=digest)
    predictor._golden_rows = files.get(GOLDEN_ROWS)
    if "example.json" in files:
        try:
            predictor._example = predictor.validate(msgspec.json.decode(files["example.json"])["rows"])[0]
        except (msgspec.MsgspecError, KeyError, IndexError, RequestError) as error:
            raise CorruptionError(
                f"The package's example is not a valid request: {error}", help="Package the model again."
            ) from error
    return predictor


def _frame(rows: object) -> pl.DataFrame:
    import polars as pl

    if isinstance(rows, pl.DataFrame):
        return rows
    if isinstance(rows, pl.LazyFrame):
        return rows.collect()
    if hasattr(rows, "__arrow_c_stream__"):
        return pl.DataFrame(rows)
    raise UsageError(f"Cannot score a {type(rows).__name__}.", help="Pass a frame or a list of dicts.")
