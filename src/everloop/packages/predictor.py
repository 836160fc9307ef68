"""A model that is ready to answer: loaded from a package, with its signature and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from everloop.errors import CorruptionError, EverloopError, RequestError, UsageError
from everloop.packages.golden_rows import FILE as ANSWERS
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
    """Answers rows. Safe to use from several threads at once.

    `digest` is None where it was loaded from a folder, `version` where it was not loaded by a version's name.
    Scores are as training gives them: binary (n,) the probability of `classes[1]`; multiclass (n, k) in the order
    of `classes`; regression (n,) in the target's unit.
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
        self._answers: bytes | None = None

    @property
    def told(self) -> str:
        """What to call it in a message."""
        return self.version or self.digest or ""

    @property
    def form(self) -> str:
        """What answers: `lightgbm`, `linear`, `compiled trees`, `compiled linear`, `onnx`, or a format's name."""
        return str(getattr(getattr(self.model, "form", None), "name", self.model.format))

    @property
    def cheap(self) -> bool:
        """Whether one row costs microseconds, so that nothing is won by collecting rows before asking."""
        return self.compiled or self.model.format in ("lightgbm", "linear", "mojo")

    def row_function(self) -> RowFunction:
        """One decoded row in, its answer out, by the shortest way that this model has.

        The row is a tuple in the order of the signature's inputs, as `signature.values_of` gives it. The answer is
        `(label, probability of classes[1])` for two classes, `(label, probability of each class…)` for several, and
        `(value,)` for a regression. The function may be called from several threads at once; it raises RequestError
        for a row that the model does not take.
        """
        from everloop.packages.row_scoring import row_function

        return row_function(self)

    def explain(self, rows: pl.DataFrame | Sequence[Mapping[str, object]]) -> list[dict[str, Json]]:
        """What each input adds to the answer of each row; see `explaining`.

        Raises:
            UsageError: this model's form tells no contributions.
            RequestError: the rows break the signature.
        """
        from everloop.packages.explanation import explain

        return explain(self, rows)

    def validate(self, rows: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
        """Rows as the model takes them: every input there, of its type, and nothing else.

        Raises:
            RequestError: a row breaks the signature; the message names the row and the field.
        """
        names = self.input_names
        return [dict(zip(names, values, strict=True)) for values in self.signature.rows_of(rows)]

    def predict(self, rows: pl.DataFrame | Sequence[Mapping[str, object]] | object) -> Scores:
        """Score a frame (anything with the Arrow C stream interface) or a list of dicts.

        A frame may have further columns; a dict may not.

        Raises:
            RequestError: the rows break the signature.
        """
        if isinstance(rows, list | tuple):
            return self.score_rows(self.validate(rows))
        return self.score_frame(_frame(rows))

    def predict_labels(self, rows: pl.DataFrame | Sequence[Mapping[str, object]] | object) -> list[Json] | None:
        """The class that the model predicts for each row, as its own `predict` gives it; None for a regression.

        Raises:
            RequestError: the rows break the signature.
        """
        if isinstance(rows, list | tuple):
            return self.name_places(self.answer_rows(self.validate(rows)).places)
        return self.name_places(self.answer_frame(_frame(rows)).places)

    def name_places(self, places: NDArray[np.intp] | None) -> list[Json] | None:
        """The classes at these places of `classes`."""
        return None if places is None else [self.classes[place] for place in places.tolist()]

    def score_frame(self, frame: pl.DataFrame) -> Scores:
        """Score a Polars frame with at least the inputs' columns.

        Raises:
            RequestError: a column is missing, or the model cannot score the rows.
        """
        if frame.height:
            return cast("Scores", self._of_frame(frame, self.model.predict_scores))
        return self.answer_frame(frame).scores

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Scores and predicted classes of a Polars frame with at least the inputs' columns.

        Raises:
            RequestError: a column is missing, or the model cannot score the rows.
        """
        return cast("ClassScores", self._of_frame(frame, lambda rows: answer_frame(self.model, rows)))

    def _of_frame(self, frame: pl.DataFrame, ask: Callable[[pl.DataFrame], Any]) -> Any:
        import numpy as np

        missing = [name for name in self.input_names if name not in frame.columns]
        if missing:
            raise RequestError(
                f"The frame lacks the inputs {', '.join(map(repr, missing))}.",
                help=f"It has: {', '.join(frame.columns)}",
            )
        if not frame.height:
            scores = np.empty((0, len(self.classes)) if self.task == "multiclass" else (0,), dtype=np.float64)
            places = None if self.task == "regression" else np.empty(0, dtype=np.intp)
            return ClassScores(scores, places)
        try:
            return ask(frame)
        except EverloopError:
            raise
        except Exception as error:
            # An adopted estimator raises whatever it likes about rows that it does not take.
            raise RequestError(f"The model {self.told} cannot score these rows: {error}") from error

    def score_rows(self, rows: Sequence[Mapping[str, Any]]) -> Scores:
        """Score rows that `validate` or the signature's own decoder has passed.

        Raises:
            RequestError: the model cannot score them.
        """
        try:
            return self.model.predict_rows(rows)
        except EverloopError:
            raise
        except Exception as error:
            raise RequestError(f"The model {self.told} cannot score these rows: {error}") from error

    def answer_rows(self, rows: Sequence[Mapping[str, Any]]) -> ClassScores:
        """Scores and predicted classes of rows that `validate` or the signature's own decoder has passed.

        Raises:
            RequestError: the model cannot score them.
        """
        try:
            return answer_rows(self.model, rows)
        except EverloopError:
            raise
        except Exception as error:
            raise RequestError(f"The model {self.told} cannot score these rows: {error}") from error

    def labels(self, scores: Scores) -> list[Json] | None:
        """The predicted class of each row of scores, where it follows from them; None for a regression.

        Raises:
            UsageError: this model's classes do not follow from its scores; `predict_labels` asks it for them.
        """
        if self.task == "regression":
            return None
        rule = rule_of(self.model)
        if rule is None:
            raise UsageError(
                f"The classes that {self.told or 'this model'} predicts do not follow from its scores alone.",
                help="Ask for them with the rows: predictor.predict_labels(rows).",
            )
        return self.name_places(rule.places(scores))

    @property
    def example(self) -> dict[str, Any] | None:
        """The package's own example row, decoded; None where it has none."""
        return self._example

    def warm(self) -> None:
        """Answer the package's own example, so that the first request does not pay for what is set up lazily.

        A model of a safe format must also answer as it did when it was packaged. One of code may ask the world
        outside, which moves on; `everloop models verify` asks that as well.

        Raises:
            ParityError: it answers otherwise here, because a library is of another version, say.
        """
        if self._example is not None:
            self.score_rows([self._example])
        if not self.manifest.code_bearing:
            self.check_answers()

    def check_answers(self) -> tuple[int, float]:
        """Ask the rows again whose answers came with the package: how many, and the largest difference.

        Raises:
            ParityError: it answers otherwise here.
        """
        from everloop.packages.golden_rows import check_answers

        return (0, 0.0) if self._answers is None else check_answers(self, self._answers)

    def __repr__(self) -> str:
        return f"Predictor({self.version or self.digest or self.manifest.format!r})"


def load_package(store: Store, digest: str, *, version: str | None = None) -> Predictor:
    """Load a package by digest.

    Raises:
        NotFoundError: the store has no such package.
        CorruptionError: a byte differs from its digest, or the trial load of a foreign package failed.
        TrustError: the package contains code and no trusted key signed it, or its model names something outside of the
            package.
    """
    manifest, files = read_package(store, digest)
    if not is_admitted(digest, store):
        found = store.records.find(Package, ("digest", "=", digest), limit=1)
        admit(manifest, files, digest, found[0].trust if found else None, store=store, told=version or "")
    return predictor_from(manifest, files, version=version, digest=digest, store=store)


def predictor_from(
    manifest: Manifest,
    files: Mapping[str, bytes],
    *,
    version: str | None = None,
    digest: str | None = None,
    store: Store | None = None,
) -> Predictor:
    """A predictor out of checked files.

    Raises:
        UsageError: the model looks features up, and there is no store.
        CorruptionError: the example in the package is no request.
    """
    import msgspec

    from everloop.training.trained_model import model_from_files

    folder, kept = (COMPILED_FOLDER, "compiled") if manifest.compiled else (MODEL_FOLDER, manifest.format)
    inner = {name.removeprefix(folder): data for name, data in files.items() if name.startswith(folder)}
    model = model_from_files(kept, inner)
    if manifest.lookups:
        from everloop.packages.feature_lookup import look_up_for

        model = cast("Model", look_up_for(model, manifest.lookups, store))
    predictor = Predictor(manifest, model, version=version, digest=digest)
    predictor._answers = files.get(ANSWERS)
    if "example.json" in files:
        try:
            predictor._example = predictor.validate(msgspec.json.decode(files["example.json"])["rows"])[0]
        except (msgspec.MsgspecError, KeyError, IndexError, RequestError) as error:
            raise CorruptionError(f"The package's example is no request: {error}") from error
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
