"""The protocol of a training algorithm: it fits any number of models to one training problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from everloop.training.encoding import Encoder
    from everloop.training.metrics import Metric
    from everloop.training.trained_model import Model, Task

    Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TrainingProblem:
    """Encoded rows for training, and rows for validation."""

    task: Task
    outputs: int
    """Number of classes of a multiclass task, otherwise 1."""
    encoder: Encoder
    matrix: Array
    """Shape (n, encoder.width)."""
    y: Array
    """Labels, shape (n,): 0/1, class index, or value."""
    metric: Metric
    stopping: Metric
    """The metric for early stopping: `metric`, or a smooth one if `metric` only counts predicted classes."""
    seed: int
    threads: int
    weights: Array | None = None
    """Weights of the training rows, shape (n,), above 0 and 1 on average. None if all count the same. Validation rows
    have no weights."""
    valid_matrix: Array | None = None
    valid_y: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One fit. `build` creates the model. This may be as slow as reading one, so it is only done if needed."""

    params: dict[str, Any]
    rounds: int | None
    seconds: float
    """How long the same fit takes if the number of rounds is known."""
    finished: bool
    """False if the deadline stopped it."""
    scores: Array | None
    """Scores of the validation rows, as from `Model.predict_scores`; None without such rows."""
    build: Callable[[], Model]


class Algorithm(Protocol):
    """An algorithm that fits models to a `TrainingProblem`.

    * An instance is created once for a problem. It prepares what all fits share, such as binned data.
    * `params` yields settings, starting with a good default. It may end or be infinite. The same problem, metric and
      seed give the same sequence.
    * `fit` with the same settings gives the same model, unless the deadline stops it. It always returns a usable
      attempt: at least one round is fitted, even after the deadline.
    """

    name: ClassVar[str]
    complexity: ClassVar[int]
    """If two algorithms are equally good, the one with the lower complexity wins."""
    setup_s: float
    """How long preparing the rows took, without imports. A fit on other rows needs this time again."""

    @staticmethod
    def load_libraries() -> None:
        """Import the libraries that fitting needs, so that the import does not count as training time.

        Raises:
            MissingExtraError: a library is not installed.
        """
        ...

    def __init__(self, problem: TrainingProblem) -> None: ...

    def params(self) -> Iterator[dict[str, Any]]: ...

    def fit(
        self, params: dict[str, Any], *, rounds: int | None = None, deadline: Callable[[float], float] | None = None
    ) -> Attempt:
        """Fit a model with these settings.

        Args:
            params: settings from `params`.
            rounds: fit exactly this many rounds, without the validation rows.
            deadline: a function from the seconds of the best fit so far to the time (`time.perf_counter`) at which to
                stop. The best fit will be repeated on all rows, so a longer one leaves less time.
        """
        ...
