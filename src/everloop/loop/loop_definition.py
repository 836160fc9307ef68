"""`Loop`: a whole life cycle as one value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.loop.declarations import (
    AtLeast,
    Drift,
    Endpoint,
    Every,
    Latency,
    NotWorseThan,
    OnDrift,
    OnNewData,
    OnPerformance,
    Performance,
    Slices,
)
from everloop.training.metric_tasks import METRIC_TASKS, check_metric

if TYPE_CHECKING:
    from everloop.data import Dataset
    from everloop.loop.declarations import Gate, Trigger, Watch
    from everloop.pipeline import Step
    from everloop.training import AutoTrain

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_GATES = (AtLeast, NotWorseThan, Slices, Latency)
_WATCHES = (Drift, Performance)
_TRIGGERS = (OnDrift, OnPerformance, Every, OnNewData)


@dataclass(frozen=True)
class Loop:
    """A life cycle: data, training, gates, serving, watching, retraining.

    Args:
        name: letters, digits, `-` and `_`.
        data: the dataset to learn from.
        train: `AutoTrain(...)`, or a step that takes `train` (and `valid`, if it likes) and returns a fitted
            model with `predict_proba` or `predict`.
        gates: what a candidate must pass; any failed gate rejects it.
        serve: the endpoint; without one, the loop ends at the registry.
        watch: what to look for in the endpoint's log.
        retrain: when to take another turn.
        model: name in the registry; default: the endpoint's, else the loop's.

    Raises:
        UsageError: a part stands where it cannot work.
    """

    name: str
    data: Dataset
    train: AutoTrain | Step[..., Any]
    gates: Sequence[Gate] = ()
    serve: Endpoint | None = None
    watch: Sequence[Watch] = ()
    retrain: Sequence[Trigger] = ()
    model: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"'{self.name}' cannot name a loop.", help="Use letters, digits, '-' and '_', such as 'flight-delays'."
            )
        object.__setattr__(self, "gates", _all_of("gates", self.gates, _GATES, self.name))
        object.__setattr__(self, "watch", _all_of("watch", self.watch, _WATCHES, self.name))
        object.__setattr__(self, "retrain", _all_of("retrain", self.retrain, _TRIGGERS, self.name))
        object.__setattr__(self, "model", self.model or (self.serve.name if self.serve else self.name))
        if self.watch and self.serve is None:
            raise UsageError(
                f"Loop '{self.name}' watches an endpoint but declares none.", help="Add serve=el.Endpoint('name')."
            )
        self._check_metrics()
        self._needs(OnDrift, Drift)
        self._needs(OnPerformance, Performance)

    @property
    def training_metric(self) -> str | None:
        """The metric that the training step optimises, or the first that a gate or a watch names.

        None where none is named: then the usual one of the target's task decides, see `champions.deciding_metric`.
        """
        parts = (self.train, *self.gates, *self.watch)
        named = (getattr(part, "metric", None) for part in parts)
        return next((metric for metric in named if isinstance(metric, str)), None)

    @property
    def live_metric(self) -> str | None:
        """The metric by which live models are compared: the watched one, else the trained one."""
        watched = (part.metric for part in self.watch if isinstance(part, Performance))
        return next((metric for metric in watched if metric is not None), self.training_metric)

    def _check_metrics(self) -> None:
        """Refuse metrics that cannot all be of one model: each fits other tasks than those before it."""
        tasks: tuple[str, ...] = ("binary", "multiclass", "regression")
        asked = getattr(self.train, "task", None)
        before = ""
        if isinstance(asked, str):
            tasks, before = (asked,), f"train has task='{asked}'"
        named = [("train", getattr(self.train, "metric", None))]
        named += [(f"el.{type(part).__name__}", getattr(part, "metric", None)) for part in (*self.gates, *self.watch)]
        for where, metric in named:
            if not isinstance(metric, str):
                continue
            check_metric(metric)
            fitting = tuple(task for task in tasks if task in METRIC_TASKS[metric])
            if not fitting:
                known = dict.fromkeys(name for name, fits in METRIC_TASKS.items() if set(fits) & set(tasks))
                raise UsageError(
                    f"{metric} of {where} is for {' and '.join(METRIC_TASKS[metric])} targets, but {before}.",
                    help=f"For {' and '.join(tasks)} there are: {', '.join(known)}",
                )
            tasks, before = fitting, f"{metric} of {where} is for {' and '.join(METRIC_TASKS[metric])}"

    def _needs(self, trigger: type, watch: type) -> None:
        has_trigger = any(isinstance(part, trigger) for part in self.retrain)
        if has_trigger and not any(isinstance(part, watch) for part in self.watch):
            raise UsageError(
                f"Loop '{self.name}' retrains {trigger.__name__} but does not watch it.",
                help=f"Add el.{watch.__name__}(...) to watch=[...].",
            )


def _all_of(what: str, parts: Any, allowed: tuple[type, ...], loop: str) -> tuple[Any, ...]:
    if not isinstance(parts, Sequence) or isinstance(parts, str):
        parts = (parts,)
    for part in parts:
        if not isinstance(part, allowed):
            names = ", ".join(f"el.{cls.__name__}" for cls in allowed)
            raise UsageError(f"{part!r} cannot stand in {what}= of loop '{loop}'.", help=f"There: {names}.")
    return tuple(parts)
