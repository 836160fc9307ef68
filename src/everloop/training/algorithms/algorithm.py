"""The contract of an algorithm: one problem in, any number of attempts at it out."""

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
    """Encoded rows to learn from, and rows to be judged by."""

    task: Task
    outputs: int
    """Classes of a multiclass task, else 1."""
    encoder: Encoder
    matrix: Array
    """Shape (n, encoder.width)."""
    y: Array
    """Shape (n,): 0/1, class index, or value."""
    metric: Metric
    stopping: Metric
    """What decides when to stop; a smooth stand-in where `metric` counts decisions."""
    seed: int
    threads: int
    valid_matrix: Array | None = None
    valid_y: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One fit. `build` makes the model; it may cost what reading a model back costs, so it waits until asked."""

    params: dict[str, Any]
    rounds: int | None
    seconds: float
    """What the same fit would take once the number of rounds is known."""
    finished: bool
    """False if the deadline cut it short."""
    scores: Array | None
    """On the validation rows, as `Model.predict_scores` gives them; None without such rows."""
    build: Callable[[], Model]


class Algorithm(Protocol):
    """One way to fit a model to a `TrainingProblem`.

    * Made once for a problem; what all fits share (binned data) is prepared then.
    * `params` yields plain settings, a good first guess first; it may end or go on for ever. The same problem, metric
      and seed give the same sequence.
    * `fit` with the same settings gives the same model, unless the deadline cuts it. It always returns a usable
      attempt: at least one round is fitted, however late it is.
    """

    name: ClassVar[str]
    complexity: ClassVar[int]
    """Of two that score alike, the one with less wins."""
    setup_s: float
    """What preparing the rows took, without the imports: a fit on other rows pays it again."""

    @staticmethod
    def load_libraries() -> None:
        """Import what fitting needs, before anybody's clock runs.

        Raises:
            MissingExtraError: a library is not installed.
        """
        ...

    def __init__(self, problem: TrainingProblem) -> None: ...

    def params(self) -> Iterator[dict[str, Any]]: ...

    def fit(
        self, params: dict[str, Any], *, rounds: int | None = None, deadline: Callable[[float], float] | None = None
    ) -> Attempt:
        """Fit with these settings.

        Args:
            params: one of what `params` yields.
            rounds: exactly so many, without looking at the validation rows.
            deadline: seconds already worth keeping -> moment (`time.perf_counter`) by which to stop. What is worth
                keeping will be fitted once more on all rows, so more of it leaves less time.
        """
        ...
