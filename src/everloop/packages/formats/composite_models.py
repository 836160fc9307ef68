"""Composite models: the average of several models, and a model with functions before and after it.

average         members in their own formats, and their weights: safe, refuses members that contain code
average_code    the same with members that contain code
processed       a function that prepares the table, a model, and a function that converts its scores: code

Each member is stored in its own format, so that only what must be code is code.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from everloop.errors import CorruptionError, EverloopError, TrustError, UsageError
from everloop.packages.formats.input_tables import TableKind, read_example
from everloop.packages.package_manifest import SAFE
from everloop.training.class_decisions import PLAIN, answer_frame, by_rule, rule_of
from everloop.training.user_code import dump_code, load_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.class_decisions import ClassScores, Rule
    from everloop.training.trained_model import Files, Model, Task

    Array = NDArray[np.float64]

_AVERAGE, _PROCESSED, _FUNCTIONS = "average.json", "processed.json", "functions.pkl"


class AverageModel:
    """A `Model` that averages the scores of several models with weights."""

    code: ClassVar[bool] = False
    """Whether its members may contain code."""

    def __init__(self, members: Sequence[Model], weights: Sequence[float]) -> None:
        self.parts = tuple(members)
        self.weights = tuple(weights)
        self.format = "average_code" if self.code else "average"
        self.task: Task = members[0].task
        self.inputs = tuple(dict.fromkeys(name for member in members for name in member.inputs))

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self._mean([part.predict_scores(frame) for part in self.parts])

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self._mean([part.predict_rows(rows) for part in self.parts])

    def _mean(self, scores: Sequence[Array]) -> Array:
        total = sum(weight * one for weight, one in zip(self.weights, scores, strict=True))
        return np.asarray(total, dtype=np.float64)

    def to_files(self) -> Files:
        state = {"version": 1, "weights": list(self.weights), "formats": [part.format for part in self.parts]}
        files = {_AVERAGE: json.dumps(state, sort_keys=True).encode()}
        for index, part in enumerate(self.parts):
            files |= {f"{index}/{name}": data for name, data in part.to_files().items()}
        return files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state = json.loads(files[_AVERAGE])
            weights, formats = [float(weight) for weight in state["weights"]], [str(one) for one in state["formats"]]
            if len(weights) != len(formats) or not formats:
                raise ValueError(f"{len(weights)} weights for {len(formats)} members")
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not an average: {error!r}.", help="Package the model again."
            ) from error
        members = [_inner(files, f"{index}/", one, code=cls.code) for index, one in enumerate(formats)]
        return cls(members, weights)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (type(self), self.to_files())


class CodeAverageModel(AverageModel):
    """An average with members that contain code: it loads only if a trusted key signed it."""

    code = True


class ProcessedModel:
    """A `Model` with the user's functions before and after it.

    Args:
        before: from the caller's table to the table that the inner model takes; None for no change.
        after: from scores to scores of the same shape; None for no change.
    """

    format = "processed"

    def __init__(
        self,
        part: Model,
        table: TableKind,
        before: Callable[[Any], Any] | None,
        after: Callable[[Array], Any] | None,
        blob: bytes,
    ) -> None:
        self.parts = (part,)
        self.table = table
        self.task: Task = part.task
        self.inputs = table.names
        self._before, self._after, self._blob = before, after, blob

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self._scores(self.table.cast(frame))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self._scores(self.table.from_rows(rows))

    @property
    def rule(self) -> Rule | None:
        """How classes follow from scores: by the inner model's rule, unless `after` changes its scores."""
        return PLAIN if self._after is not None else rule_of(self.parts[0])

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        return self._scores_and_classes(self.table.cast(frame))

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        return self._scores_and_classes(self.table.from_rows(rows))

    def _scores_and_classes(self, frame: pl.DataFrame) -> ClassScores:
        if self._after is None:
            return answer_frame(self.parts[0], self._prepare(frame))
        return by_rule(self, self._scores(frame))

    def _scores(self, frame: pl.DataFrame) -> Array:
        scores = self.parts[0].predict_scores(self._prepare(frame))
        return scores if self._after is None else np.asarray(self._after(scores), dtype=np.float64)

    def _prepare(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame if self._before is None else read_example(self._before(self.table.fill(frame)))[0]

    def to_files(self) -> Files:
        state = {"version": 1, "format": self.parts[0].format, "table": self.table.to_json()}
        inner = {f"inner/{name}": data for name, data in self.parts[0].to_files().items()}
        return {_PROCESSED: json.dumps(state, sort_keys=True).encode(), _FUNCTIONS: self._blob, **inner}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state, blob = json.loads(files[_PROCESSED]), files[_FUNCTIONS]
            inner, table = str(state["format"]), TableKind.from_json(state["table"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not a processed model: {error!r}.", help="Package the model again."
            ) from error
        before, after = load_code(blob)
        return cls(_inner(files, "inner/", inner, code=True), table, before, after, blob)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (type(self), self.to_files())


def average(members: Sequence[Model], weights: Sequence[float] | None) -> AverageModel:
    """Return the weighted average of models with the same task.

    Raises:
        UsageError: there are no models, their tasks differ, or the weights do not fit.
    """
    if not members:
        raise UsageError("There are no models to average.", help="Pass at least one model in the list.")
    tasks = {member.task for member in members}
    if len(tasks) > 1:
        raise UsageError(
            f"These models have different tasks: {', '.join(sorted(tasks))}.", help="Average models of one task."
        )
    numbers = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
    if len(numbers) != len(members) or any(weight < 0 for weight in numbers) or not sum(numbers):
        raise UsageError(
            f"The weights {numbers} do not fit {len(members)} models.",
            help="Give one weight for each model, zero or more, and not all zero.",
        )
    kind = AverageModel if all(member.format in SAFE for member in members) else CodeAverageModel
    return kind(members, [weight / sum(numbers) for weight in numbers])


def processed(
    part: Model, table: TableKind, before: Callable[[Any], Any] | None, after: Callable[[Array], Any] | None
) -> ProcessedModel:
    """Return a model between two functions, either of which may be None."""
    return ProcessedModel(part, table, before, after, dump_code((before, after)))


def prepared(before: Callable[[Any], Any], table: TableKind, frame: pl.DataFrame) -> Any:
    """Apply `before` to the example.

    Raises:
        UsageError: it raises an error, or returns another number of rows.
    """
    try:
        made = before(table.fill(table.cast(frame)))
        rows = len(made)
    except EverloopError:
        raise
    except Exception as error:  # a user's function can raise anything
        raise UsageError(
            f"`before` cannot prepare the example: {type(error).__name__}: {error}",
            help="It must take the example's table and return the table for the model.",
        ) from error
    if rows != frame.height:
        raise UsageError(
            f"`before` returns {rows} rows of {frame.height}.", help="It must return one row for each row."
        )
    return made


def _inner(files: Mapping[str, bytes], prefix: str, format: str, *, code: bool) -> Model:
    from everloop.training.trained_model import model_from_files

    if format not in SAFE and not code:
        raise TrustError(
            f"A member of the average has the format '{format}', which runs code when it is loaded.",
            help="Package the model again: the average is then stored as code and signed.",
        )
    return model_from_files(
        format, {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}
    )


def _reread(kind: type[Any], files: Files) -> Any:
    return kind.from_files(files)
