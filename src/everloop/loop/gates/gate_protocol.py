"""The protocol of gates: objects that check a candidate before it gets traffic.

A gate has a method `check`. The gates of everloop use nothing that others cannot use. `gate_checks` calls them.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from everloop.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import polars as pl

    from everloop.loop.comparison.champions import ComparedVersion
    from everloop.packages import Predictor
    from everloop.records import GateSeverity, Json, Outcome, Package
    from everloop.stores import Store
    from everloop.training.trained_model import Task

    Array = np.ndarray[Any, Any]

SEVERITIES = ("error", "warning")


class Gate(Protocol):
    """A condition on a candidate, checked once after it was registered and before it gets traffic.

    - `check` returns a GateOutcome: `pass`, `fail`, or `undecided` if the rows do not suffice for an answer.
    - It must not change the candidate, the context's rows or the store.
    - If it raises an exception, the gate has failed, with the exception as its message, and the other gates are still
      checked. Three kinds of errors do not say anything about the candidate and behave differently. EmptySampleError
      makes the gate undecided. UsageError and ConflictError, for a gate that is declared wrongly, and the errors of a
      store that is damaged or unavailable stop the run, which can then be repeated.
    - Gates are inputs of a cached step, so that a changed gate is checked again. A frozen dataclass of plain values is
      the simplest gate.

    A gate may also have these attributes:

    - `name`: identifies the gate in results, default: the name of its class.
    - `severity`: `"error"`, the default, or `"warning"`. A warning is recorded and shown, but never rejects or holds a
      candidate.
    - `alias`: alias of a version that the candidate is compared with. The loop checks before training that the version
      predicts the same kind of target.
    - `column`: a column that the dataset must have. The loop checks it before training.
    - `metric`: name of one of everloop's metrics. The loop checks before training that it fits the target.
    """

    def check(self, context: GateContext) -> GateOutcome:
        """Return whether the candidate passes."""


@dataclass(frozen=True)
class GateOutcome:
    """The outcome of a gate, with a message for people and the evidence.

    Attributes:
        outcome: `pass`, `fail` or `undecided`.
        message: what was measured, and the limit that it was compared with.
        evidence: the measurements, as JSON values. `champion`, if present, is the key of the version that the candidate
            was compared with.
    """

    outcome: Outcome
    message: str
    evidence: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GateContext:
    """What gates may use: a candidate, its held-out rows, and its predictions for them.

    Attributes:
        rows: the held-out rows, with all columns of the dataset.
        labels: shape (n,), one for each row: 0 and 1 for two classes, the index in `classes` for several, the value for
            a regression.
        scores: shape (n,) or (n, classes), the candidate's predictions: the probability of the second class, of each
            class, or the predicted value.
        metric: name of the metric that decided the evaluation.
        task: `binary`, `multiclass` or `regression`.
        predict: the packaged model's `predict(frame or list of dicts)`, which returns scores.
        features: names of the columns that the model uses.
        places: shape (n,), the index of the class that the candidate predicts for each row. None: it follows from the
            scores.
        classes: the target's classes; empty for a regression.
        target: the column with the labels.
        key: the column that identifies a row, or None.
        time: the column with a row's time, or None.
        training_rows: the rows that the model was trained on, or None if they have been removed.
        version: key of the candidate, such as `delays@3`.
        model: name of the model in the registry.
        predictor: the loaded package. None in tests of gates that do not need it.
        store: the store. Its clock is the present: `context.store.now()`.
        champions: compared versions by alias, see `compared_with`.
    """

    rows: pl.DataFrame
    labels: Array
    scores: Array
    metric: str
    task: Task
    predict: Any
    features: Sequence[str]
    places: Array | None = None
    classes: Sequence[Json] = ()
    target: str = ""
    key: str | None = None
    time: str | None = None
    training_rows: pl.DataFrame | None = None
    version: str = ""
    model: str = ""
    predictor: Predictor | None = None
    store: Store | None = None
    champions: dict[str, ComparedVersion | None] = field(default_factory=dict)

    def judged(self, metric: str) -> Array:
        """Return the input of a metric: the candidate's scores, or its predicted classes if the metric needs those."""
        from everloop.training.metrics import scores_for

        return scores_for(metric, self.scores, self.places)

    def predicted_classes(self) -> Array:
        """Return the index of the predicted class of each row, shape (n,).

        Raises:
            UsageError: the model predicts amounts.
        """
        import numpy as np

        from everloop.training.metrics import decide

        if self.task == "regression":
            raise UsageError(
                f"'{self.target}' is an amount, so the model predicts no classes.", help="Remove this gate from gates=."
            )
        chosen = self.places if self.places is not None else decide(self.scores)
        return np.asarray(chosen, dtype=np.intp)

    def compared_with(self, alias: str) -> ComparedVersion | None:
        """Return the version that holds an alias, with its predictions for the held-out rows.

        Returns:
            None if no version has the alias, or the candidate itself does.

        Raises:
            ConflictError: the version predicts another kind of target.
        """
        if alias not in self.champions:
            self.champions[alias] = self._score_holder(alias)
        return self.champions[alias]

    def _score_holder(self, alias: str) -> ComparedVersion | None:
        from everloop.loop.comparison.champions import score_holder
        from everloop.registry import find_alias, get_version
        from everloop.training.class_decisions import ClassScores

        if self.store is None or self.predictor is None:
            return None
        held = find_alias(self.store, self.model, alias)
        if held is None or held.version == self.version:
            return None
        return score_holder(
            self.store,
            get_version(self.store, held.version),
            self.predictor,
            self.rows,
            self.labels,
            ClassScores(self.scores, self.places),
            target=self.target,
            key=self.key,
        )

    def package(self) -> Package:
        """Return the record of the candidate's package.

        Raises:
            NotFoundError: the context has no store, or the version no package.
        """
        from everloop.packages import get_package
        from everloop.registry import get_version

        if self.store is not None and self.version:
            digest = get_version(self.store, self.version).package
            if digest:
                return get_package(self.store, digest)
        raise NotFoundError(
            f"'{self.version or 'The candidate'}' has no package.", help="Check a version that a loop has registered."
        )


def load_gate(name: str, **options: Any) -> Gate:
    """Create a gate that everloop or an installed package provides under a name.

    Args:
        name: such as `at_least`. Packages register gates in the entry-point group `everloop.plugins`, as `gate.<name>`.
        options: arguments of the gate, such as `metric="roc_auc"`.

    Raises:
        NotFoundError: no installed package has such a gate.
        UsageError: the options do not fit the gate, or the plugin is not a gate.
    """
    from everloop.plugins import create

    return check_gate(create("gate", name, options), f"The plugin '{name}'")


def check_gate(part: Any, what: str) -> Gate:
    """Return `part` if it is a gate. A plain function becomes an `el.Check`.

    Raises:
        UsageError: it has no method `check`, or a severity that does not exist. The message begins with `what`.
    """
    if isinstance(part, types.FunctionType):
        from everloop.plugins import load

        part = load("gate", "check")(part)
    if not is_gate(part):
        from everloop.plugins import TABLE

        builtin = ", ".join(f"el.{target.partition(':')[2]}" for target in TABLE["gate"].values())
        raise UsageError(
            f"{what} does not accept {part!r}.",
            help=f"It accepts: {builtin}, functions, and objects with a method check(context), see el.Gate.",
        )
    gate: Gate = part
    severity = getattr(gate, "severity", "error")
    if severity not in SEVERITIES:
        raise UsageError(
            f"{type(gate).__name__}(severity=) is {severity!r}, but must be 'error' or 'warning'.",
            help="A failed gate with the severity 'error' rejects the candidate; a warning is only shown.",
        )
    return gate


def is_gate(part: object) -> bool:
    """Whether an object has a method `check` that takes a context. A class has not, only its instances have."""
    if isinstance(part, type):
        return False
    check: Callable[..., Any] | None = getattr(part, "check", None)
    if not callable(check):
        return False
    try:
        inspect.signature(check).bind(object())
    except TypeError:
        return False
    except ValueError:
        return True  # a function in C without a signature
    return True


def gate_name(gate: Gate) -> str:
    """Return the name by which a gate is known in results."""
    name = getattr(gate, "name", None)
    return name if isinstance(name, str) and name else type(gate).__name__


def gate_severity(gate: Gate) -> GateSeverity:
    """Return the severity of a gate: `error` unless it is declared otherwise."""
    return "warning" if getattr(gate, "severity", "error") == "warning" else "error"
