"""Fit logistic, softmax and ridge regression over binned columns.

Each numeric column contributes a straight line and a step function over its quantile bins. Each category has its own
weight, and so has a missing value. This additive model is the baseline that trees must beat. It predicts with NumPy
alone.

The model is fitted by L-BFGS (Byrd, Lu, Nocedal and Zhu 1995) on the mean loss with an L2 penalty.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from everloop.errors import CorruptionError, MissingExtraError
from everloop.training.algorithms.algorithm import Attempt
from everloop.training.algorithms.lightgbm import share
from everloop.training.encoding import Encoder
from everloop.training.metrics import dot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.algorithms.algorithm import TrainingProblem
    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]

MOST_BINS = 32
MOST_STEPS = 300
MOST_ROWS = 60_000
"""If there are more rows, this many are used, evenly spaced. They suffice to estimate a few hundred weights, and the
saved time goes to trees, which benefit from more rows."""
_FEW_ROWS = 16
"""Up to this number, rows are scored one by one, without building a matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one matrix column is used: a category by its codes, a number by its bin and its standardised value."""

    codes: int
    """Number of codes of a category; 0 for a number."""
    edges: tuple[float, ...] = ()
    """The bin of a number is how many edges it reaches. Nulls have their own bin, the last one."""
    mean: float = 0.0
    scale: float = 1.0
    low: float = 0.0
    """Smallest value in training, standardised. Smaller values are clipped to it."""
    high: float = 0.0
    """Largest value in training, standardised. Larger values are clipped to it."""

    @property
    def bins(self) -> int:
        return self.codes or len(self.edges) + 2

    def cut(self, values: Array) -> tuple[NDArray[np.intp], Array]:
        """Return the bin and the standardised value of each row, both of shape (n,)."""
        if self.codes:
            return values.astype(np.intp), np.zeros(len(values))
        missing = np.isnan(values)
        bins = np.searchsorted(np.array(self.edges), values, side="right")
        bins[missing] = self.bins - 1
        with np.errstate(over="ignore"):
            line = np.clip((values - self.mean) / self.scale, self.low, self.high)
        line[missing] = 0.0
        return bins, line

    def cut_one(self, value: float) -> tuple[int, float]:
        """Return the same as `cut` for one value, in plain Python."""
        if self.codes:
            return int(value), 0.0
        if value != value:
            return self.bins - 1, 0.0
        line = (value - self.mean) / self.scale
        return bisect_right(self.edges, value), min(max(line, self.low), self.high)


class LinearModel:
    """Weights with their encoder. It implements `Model`."""

    format = "linear"

    def __init__(
        self,
        encoder: Encoder,
        columns: Sequence[Column],
        tables: Sequence[Array],
        slopes: Array,
        bias: Array,
        task: Task,
    ) -> None:
        self.encoder = encoder
        self.columns = tuple(columns)
        self.tables = tuple(np.ascontiguousarray(table, dtype=np.float64) for table in tables)
        """Weights of the bins of each matrix column, each of shape (bins, outputs)."""
        self.slopes = np.ascontiguousarray(slopes, dtype=np.float64)
        """Shape (width, outputs)."""
        self.bias = np.ascontiguousarray(bias, dtype=np.float64)
        """Shape (outputs,)."""
        self.task: Task = task
        self.inputs = encoder.inputs
        outputs = len(self.bias)
        shapes = [table.shape for table in self.tables]
        if shapes != [(column.bins, outputs) for column in self.columns] or self.slopes.shape != (
            encoder.width,
            outputs,
        ):
            raise CorruptionError("The weights do not fit the columns.", help="Build the package again.")
        self._plain = [
            (column.cut_one, table.tolist(), slope)
            for column, table, slope in zip(self.columns, self.tables, self.slopes.tolist(), strict=True)
        ]

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.scores(self.encoder.encode(frame))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        if len(rows) > _FEW_ROWS:
            return self.scores(self.encoder.encode_rows(rows))
        sums = [self._sum_one(self.encoder.encode_row(row)) for row in rows]
        return link(np.array(sums, dtype=np.float64).reshape(len(rows), len(self.bias)), self.task)

    def scores(self, matrix: Array) -> Array:
        """Return the scores of an encoded matrix."""
        return link(self.sums(matrix), self.task)

    def sums(self, matrix: Array) -> Array:
        """Return the sums before the link function, shape (n, outputs).

        The columns are added one by one, so that the sum of a row does not depend on other rows.
        """
        total = np.tile(self.bias, (len(matrix), 1))
        for index, column in enumerate(self.columns):
            bins, line = column.cut(matrix[:, index])
            total += self.tables[index][bins]
            total += line[:, None] * self.slopes[index]
        return total

    def _sum_one(self, values: list[float]) -> list[float]:
        total: list[float] = self.bias.tolist()
        for value, (cut, table, slope) in zip(values, self._plain, strict=True):
            bin_, line = cut(value)
            weights = table[bin_]
            for k in range(len(total)):
                total[k] = total[k] + weights[k] + line * slope[k]
        return total

    def contributions(self, matrix: Array) -> Array:
        """Return the contribution of each column to the sums: shape (n, outputs, width + 1), with the bias last."""
        found = np.empty((len(matrix), len(self.bias), len(self.columns) + 1))
        found[:, :, -1] = self.bias
        for index, column in enumerate(self.columns):
            bins, line = column.cut(matrix[:, index])
            found[:, :, index] = self.tables[index][bins] + line[:, None] * self.slopes[index]
        return found

    def importance(self, matrix: Array) -> dict[str, float]:
        """Return the share of each input in the variance of the sums over the rows of `matrix`. They sum to one."""
        variances = np.empty(len(self.columns))
        for index, column in enumerate(self.columns):
            bins, line = column.cut(matrix[:, index])
            variances[index] = (self.tables[index][bins] + line[:, None] * self.slopes[index]).var(axis=0).sum()
        return share(self.encoder, variances)

    def to_files(self) -> Files:
        state = {
            "version": 1,
            "task": self.task,
            "bias": self.bias.tolist(),
            "slopes": self.slopes.tolist(),
            "tables": [table.tolist() for table in self.tables],
            "columns": [
                {
                    "codes": c.codes,
                    "edges": list(c.edges),
                    "mean": c.mean,
                    "scale": c.scale,
                    "low": c.low,
                    "high": c.high,
                }
                for c in self.columns
            ],
        }
        encoder = self.encoder.to_dict()
        return {"linear.json": _json(state), "encoder.json": _json(encoder)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state = json.loads(files["linear.json"])
            return cls(
                Encoder.from_dict(json.loads(files["encoder.json"])),
                [Column(**{**column, "edges": tuple(column["edges"])}) for column in state["columns"]],
                [np.array(table) for table in state["tables"]],
                np.array(state["slopes"]),
                np.array(state["bias"]),
                state["task"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not a linear model: {error!r}.", help="Build the package again."
            ) from error

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.encoder, self.columns, self.tables, self.slopes, self.bias, self.task)


class Linear:
    """Fits linear models with several penalties."""

    name: ClassVar[str] = "linear"
    complexity: ClassVar[int] = 1

    @staticmethod
    def load_libraries() -> None:
        try:
            from scipy import optimize, sparse  # noqa: F401
        except ImportError:
            raise MissingExtraError.of("The candidate 'linear'", "scipy", "ml") from None

    def __init__(self, problem: TrainingProblem) -> None:
        self.load_libraries()
        from scipy import optimize, sparse

        began = perf_counter()
        self._optimize = optimize.minimize
        self._problem = problem
        matrix, self._labels = problem.matrix, problem.y
        weights = problem.weights if problem.weights is not None else np.ones(len(matrix))
        if len(matrix) > MOST_ROWS:
            used = np.linspace(0, len(matrix) - 1, MOST_ROWS).astype(np.intp)
            matrix, self._labels, weights = matrix[used], problem.y[used], weights[used]
        # Scaled to 1 on average, so that the penalty keeps its meaning.
        self._weights = weights / weights.mean()
        self.columns = [_learn(matrix[:, index], codes) for index, codes in enumerate(problem.encoder.codes)]
        self._offsets = np.concatenate(([0], np.cumsum([column.bins for column in self.columns]))).astype(np.intp)
        self._design = self._design_of(matrix, sparse.csr_matrix)
        self._transposed = self._design.T.tocsr()
        self.setup_s = perf_counter() - began

    def params(self) -> Iterator[dict[str, Any]]:
        for penalty in (10.0, 1.0, 100.0, 1000.0):
            yield {"l2": penalty}

    def fit(
        self, params: dict[str, Any], *, rounds: int | None = None, deadline: Callable[[float], float] | None = None
    ) -> Attempt:
        started = perf_counter()
        problem = self._problem
        rows, width = self._design.shape
        outputs = problem.outputs
        centre, unit = (0.0, 1.0)
        labels = self._labels
        if problem.task == "regression":
            centre = float(np.average(labels, weights=self._weights))
            unit = float(np.sqrt(np.average((labels - centre) ** 2, weights=self._weights))) or 1.0
            labels = (labels - centre) / unit
        penalty = params["l2"] / rows
        latest = np.zeros((width + 1) * outputs)
        if problem.task != "regression":
            latest[width * outputs :] = _prior(labels, self._weights, problem.task, outputs)

        def loss(flat: Array) -> tuple[float, Array]:
            nonlocal latest
            latest = flat.copy()
            if deadline is not None and perf_counter() >= deadline(perf_counter() - started):
                raise _TimeIsUpError
            weights, bias = flat[: width * outputs].reshape(width, outputs), flat[width * outputs :]
            value, residual = _loss(self._design @ weights + bias, labels, self._weights, problem.task)
            slope = self._transposed @ residual / rows + penalty * weights
            value = value / rows + 0.5 * penalty * float((weights * weights).sum())
            return value, np.concatenate((slope.ravel(), residual.sum(axis=0) / rows))

        finished = True
        try:
            found = self._optimize(
                loss, latest, jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS, "maxcor": 20, "ftol": 1e-8}
            )
            latest = found.x
        except _TimeIsUpError:
            finished = False
        weights = latest[: width * outputs].reshape(width, outputs) * unit
        bias = latest[width * outputs :] * unit + centre
        lines = int(self._offsets[-1])
        tables = [weights[low:high] for low, high in zip(self._offsets[:-1], self._offsets[1:], strict=True)]
        model = LinearModel(problem.encoder, self.columns, tables, weights[lines:], bias, problem.task)
        scores = None if problem.valid_matrix is None else model.scores(problem.valid_matrix)
        return Attempt(
            params=params,
            rounds=None,
            seconds=perf_counter() - started,
            finished=finished,
            scores=scores,
            build=lambda: model,
        )

    def _design_of(self, matrix: Array, sparse_matrix: Any) -> Any:
        """Return the rows as a sparse matrix: an indicator of the bin for each column, then the standardised values."""
        rows, width = matrix.shape
        indices = np.empty((rows, 2 * width), dtype=np.int32)
        values = np.ones((rows, 2 * width))
        for index, column in enumerate(self.columns):
            bins, line = column.cut(matrix[:, index])
            indices[:, index] = self._offsets[index] + bins
            indices[:, width + index] = self._offsets[-1] + index
            values[:, width + index] = line
        starts = np.arange(0, 2 * width * rows + 1, 2 * width)
        design = sparse_matrix((values.ravel(), indices.ravel(), starts), shape=(rows, int(self._offsets[-1]) + width))
        design.eliminate_zeros()
        return design


class _TimeIsUpError(Exception):
    """Stops the optimiser. `latest` then holds its last weights."""


def link(sums: Array, task: Task) -> Array:
    """Convert sums of shape (n, outputs) to scores: by sigmoid, by softmax, or unchanged for a regression."""
    if task == "regression":
        return sums[:, 0].copy()
    if task == "binary":
        # Only exponentials of numbers up to 0, so none overflows.
        small = np.exp(-np.abs(sums[:, 0]))
        return np.where(sums[:, 0] >= 0, 1.0, small) / (1.0 + small)
    raised = np.exp(sums - sums.max(axis=1, keepdims=True))
    total = raised[:, 0].copy()
    for k in range(1, raised.shape[1]):
        total += raised[:, k]
    probabilities: Array = raised / total[:, None]
    return probabilities


def _loss(sums: Array, labels: Array, weights: Array, task: Task) -> tuple[float, Array]:
    """Return the weighted total loss and its derivative with respect to the sums."""
    if task == "regression":
        errors = sums[:, 0] - labels
        weighted = weights * errors
        return 0.5 * dot(errors, weighted), weighted[:, None]
    if task == "binary":
        losses = np.logaddexp(0.0, sums[:, 0]) - labels * sums[:, 0]
        return float((weights * losses).sum()), (weights * (link(sums, task) - labels))[:, None]
    rows, classes = np.arange(len(labels)), labels.astype(np.intp)
    probabilities = link(sums, task)
    value = -float((weights * np.log(np.maximum(probabilities[rows, classes], 1e-300))).sum())
    probabilities[rows, classes] -= 1.0
    return value, weights[:, None] * probabilities


def _prior(labels: Array, weights: Array, task: Task, outputs: int) -> Array:
    """Return the bias of a model without columns, as a start that saves steps of the optimiser."""
    if task == "binary":
        rate = float(np.clip(np.average(labels, weights=weights), 1e-6, 1 - 1e-6))
        return np.array([np.log(rate / (1 - rate))])
    log_shares: Array = np.log(np.bincount(labels.astype(np.intp), weights, minlength=outputs) / len(labels) + 1e-6)
    return log_shares


def _learn(values: Array, codes: int) -> Column:
    if codes:
        return Column(codes=codes)
    known = values[np.isfinite(values)]
    if not len(known):
        return Column(codes=0)
    most = int(np.clip(len(known) // 100, 4, MOST_BINS))
    distinct = np.unique(known)
    if len(distinct) <= most:
        edges = (distinct[1:] + distinct[:-1]) / 2
    else:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, most + 1)[1:-1]))
    mean, scale = float(known.mean()), float(known.std())
    # The mean and standard deviation of very large values overflow.
    if not np.isfinite(scale) or not np.isfinite(mean):
        mean, scale = 0.0, float(np.abs(known).max())
    scale = scale or 1.0
    return Column(
        codes=0,
        edges=tuple(edges.tolist()),
        mean=mean,
        scale=scale,
        low=float((known.min() - mean) / scale),
        high=float((known.max() - mean) / scale),
    )


def _json(state: Json) -> bytes:
    return json.dumps(state, sort_keys=True).encode()
