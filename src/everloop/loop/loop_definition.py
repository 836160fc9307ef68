"""`Loop`: the declaration of a model's whole life cycle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration, check_name
from everloop.loop.gates.gate_protocol import check_gate
from everloop.loop.releases.release_declarations import Endpoint
from everloop.loop.triggers.commit_trigger import OnCommit
from everloop.loop.triggers.retrain_limits import RetrainLimits
from everloop.loop.triggers.schedules import Every
from everloop.loop.triggers.trigger_calls import OnCall
from everloop.loop.triggers.trigger_declarations import OnDrift, OnLabels, OnNewData, OnPerformance
from everloop.loop.triggers.trigger_protocol import check_trigger, is_trigger
from everloop.loop.watches.watch_declarations import Drift, Performance, Quality
from everloop.loop.watches.watch_protocol import check_watch, is_watch, watch_name
from everloop.training.metric_tasks import METRIC_TASKS, check_metric

if TYPE_CHECKING:
    from everloop.data import Dataset
    from everloop.loop.gates.gate_protocol import Gate, GateContext
    from everloop.loop.triggers.trigger_protocol import Trigger
    from everloop.loop.watches.watch_protocol import Watch
    from everloop.pipeline import Step
    from everloop.training import AutoTrain

_WATCHES = (Drift, Performance, Quality)
_TRIGGERS = (OnDrift, OnPerformance, Every, OnNewData, OnLabels, OnCommit, OnCall)


@dataclass(frozen=True)
class Loop:
    """The declaration of a model's life cycle: data, training, gates, serving, monitoring and retraining.

    Args:
        name: letters, digits, `-` and `_`, such as `"flight-delays"`.
        data: the dataset to learn from.
        train: `AutoTrain(...)`, or a step with a parameter `train` (and `valid` and `test`, if it needs them) that
            returns a fitted model with `predict_proba` or `predict`.
        gates: conditions that a candidate must pass: `AtLeast`, `NotWorseThan`, `BetterThan`, `Slices`, `Calibrated`,
            `Fair`, `Latency`, `Size`, `Robust`, `NoLeakage`, `MeetsContract`, `PackageParity`, a function that takes a
            `GateContext`, or a `Gate` of your own. One failed gate rejects the candidate, unless its severity is
            `"warning"`.
        serve: the endpoint that serves the model. Without one, the loop ends at the registry.
        watch: what is monitored at the endpoint: `Drift`, `Performance`, `Quality`, or a `Watch` of your own.
        retrain: when the loop runs again: `OnDrift`, `OnPerformance`, `Every`, `OnNewData`, `OnLabels`, `OnCommit`,
            `OnCall`, or a `Trigger` of your own.
        limits: how often triggers may start a run.
        model: name of the model in the registry. Default: the endpoint's name, otherwise the loop's.
        timeout: the longest time that a run started by `everloop up` may take, such as `"6h"`. A run that takes longer
            is killed and counts as failed. Default: no limit.

    Raises:
        UsageError: a part is of the wrong kind, the metrics do not fit one task, or a watch or trigger lacks the part
            that it depends on.
    """

    name: str
    data: Dataset
    train: AutoTrain | Step[..., Any]
    gates: Sequence[Gate | Callable[[GateContext], Any]] = ()
    serve: Endpoint | None = None
    watch: Sequence[Watch] = ()
    retrain: Sequence[Trigger] = ()
    model: str = ""
    limits: RetrainLimits = field(default_factory=RetrainLimits)
    timeout: str | None = None

    def __post_init__(self) -> None:
        check_name("a loop", self.name, "flight-delays")
        self._check_kinds()
        object.__setattr__(self, "gates", _all_gates(self.gates, self.name))
        object.__setattr__(self, "watch", _all_watches(self.watch, self.name))
        object.__setattr__(self, "retrain", _all_triggers(self.retrain, self.name))
        object.__setattr__(self, "model", self.model or (self.serve.name if self.serve else self.name))
        if self.watch and self.serve is None:
            raise UsageError(
                f"Loop '{self.name}' has watches but no endpoint that they could watch.",
                help="Add serve=el.Endpoint('name').",
            )
        if self.timeout is not None:
            check_duration(f"Loop '{self.name}': timeout=", self.timeout, positive=True)
        self._check_watches()
        self._check_metrics()
        self._needs(OnDrift, Drift)
        self._needs(OnPerformance, Performance)
        if self.serve is None and any(isinstance(part, OnLabels) for part in self.retrain):
            raise UsageError(
                f"Loop '{self.name}' has the trigger el.OnLabels but no endpoint whose predictions get labels.",
                help="Add serve=el.Endpoint('name').",
            )

    @property
    def training_metric(self) -> str | None:
        """The metric that the training step optimises, otherwise the first one that a gate or watch names.

        None if no part names a metric. Then the default for the target's task applies; see `champions.deciding_metric`.
        """
        parts = (self.train, *self.gates, *self.watch)
        metrics = (getattr(part, "metric", None) for part in parts)
        # A watch of another package may call something else a metric.
        return next((metric for metric in metrics if isinstance(metric, str) and metric in METRIC_TASKS), None)

    @property
    def positive(self) -> bool | int | float | str | None:
        """The positive class that the dataset or its `AutoTrain` names; None if neither does."""
        of_training = getattr(self.train, "positive", None)
        return of_training if self.data.positive is None else self.data.positive

    @property
    def live_metric(self) -> str | None:
        """The metric that compares live models: the one of a `Performance` watch, otherwise `training_metric`."""
        watched = (part.metric for part in self.watch if isinstance(part, Performance))
        return next((metric for metric in watched if metric is not None), self.training_metric)

    def _check_kinds(self) -> None:
        """Raise UsageError if `data`, `train`, `serve` or `model` is not of an accepted kind."""
        from everloop.data import Dataset
        from everloop.pipeline import Step

        if not isinstance(self.data, Dataset):
            raise UsageError(
                f"Loop '{self.name}': data= does not accept {self.data!r}.",
                help="Pass data=el.Dataset(step, target='column').",
            )
        if not isinstance(self.train, Step):
            from everloop.training import AutoTrain

            if not isinstance(self.train, AutoTrain):
                raise UsageError(
                    f"Loop '{self.name}' cannot train with {self.train!r}.",
                    help="Pass train=el.AutoTrain(...), or a step that returns a fitted model.",
                )
        of_training = getattr(self.train, "positive", None)
        if None not in (self.data.positive, of_training) and self.data.positive != of_training:
            raise UsageError(
                f"Loop '{self.name}' names two positive classes: {self.data.positive!r} in data= and {of_training!r} in"
                " train=.",
                help="Keep the one in data=el.Dataset(...).",
            )
        if self.serve is not None and not isinstance(self.serve, Endpoint):
            raise UsageError(
                f"Loop '{self.name}': serve= does not accept {self.serve!r}.",
                help="Pass serve=el.Endpoint('name').",
            )
        if not isinstance(self.limits, RetrainLimits):
            raise UsageError(
                f"Loop '{self.name}': limits= does not accept {self.limits!r}.",
                help='Pass limits=el.RetrainLimits(...), such as el.RetrainLimits(budget="3 / week").',
            )
        if self.model:
            from everloop.registry.model_versions import check_model_name

            check_model_name(self.model)

    def _check_watches(self) -> None:
        """Raise UsageError if two watches have the same name or kind, because they would share their windows."""
        kinds = [type(part) for part in self.watch if isinstance(part, _WATCHES)]
        for kind in _WATCHES:
            if kinds.count(kind) > 1:
                raise UsageError(
                    f"Loop '{self.name}' has two el.{kind.__name__} watches, but an endpoint has one of a kind.",
                    help=f"Keep one el.{kind.__name__}(...) in watch=[...].",
                )
        for what, keys in (
            ("name", [watch_name(part) for part in self.watch]),
            ("kind", [getattr(part, "kind", None) for part in self.watch]),
        ):
            for key in keys:
                if key is not None and keys.count(key) > 1:
                    raise UsageError(
                        f"Loop '{self.name}' has two watches with the {what} '{key}'.",
                        help=f"Give one of the two classes another attribute `{what}`.",
                    )

    def _check_metrics(self) -> None:
        """Raise UsageError if no single task fits the metrics of all parts."""
        tasks: tuple[str, ...] = ("binary", "multiclass", "regression")
        declared_task = getattr(self.train, "task", None)
        before = ""
        if isinstance(declared_task, str):
            tasks, before = (declared_task,), f"train has task='{declared_task}'"
        metrics = [("train", getattr(self.train, "metric", None))]
        watches = (part for part in self.watch if isinstance(part, _WATCHES))
        metrics += [(f"el.{type(part).__name__}", getattr(part, "metric", None)) for part in (*self.gates, *watches)]
        for part_name, metric in metrics:
            if not isinstance(metric, str):
                continue
            if part_name.startswith("el.") and metric not in METRIC_TASKS:
                continue  # a gate of another package may call something else a metric
            check_metric(metric)
            fitting = tuple(task for task in tasks if task in METRIC_TASKS[metric])
            if not fitting:
                known = dict.fromkeys(name for name, fits in METRIC_TASKS.items() if set(fits) & set(tasks))
                raise UsageError(
                    f"{metric} of {part_name} is for {' and '.join(METRIC_TASKS[metric])} targets, but {before}.",
                    help=f"Metrics for {' and '.join(tasks)} targets: {', '.join(known)}",
                )
            tasks, before = fitting, f"{metric} of {part_name} is for {' and '.join(METRIC_TASKS[metric])}"

    def _needs(self, trigger: type, watch: type) -> None:
        has_trigger = any(isinstance(part, trigger) for part in self.retrain)
        if has_trigger and not any(isinstance(part, watch) for part in self.watch):
            raise UsageError(
                f"Loop '{self.name}' has the trigger el.{trigger.__name__} but no el.{watch.__name__} watch, "
                "so it would never fire.",
                help=f"Add el.{watch.__name__}(...) to watch=[...].",
            )


def _all_watches(parts: Any, loop: str) -> tuple[Watch, ...]:
    what = f"Loop '{loop}': watch="
    needed = "objects with `window` and `check`, see el.Watch"
    return tuple(check_watch(part, what) for part in _accepted(parts, is_watch, what, _WATCHES, needed))


def _all_triggers(parts: Any, loop: str) -> tuple[Trigger, ...]:
    what = f"Loop '{loop}': retrain="
    needed = "objects with a method `check(context)`, see el.Trigger"
    return tuple(check_trigger(part, what) for part in _accepted(parts, is_trigger, what, _TRIGGERS, needed))


def _accepted(
    parts: Any, accepts: Callable[[object], bool], what: str, builtin: Sequence[type], needed: str
) -> Sequence[Any]:
    """The parts as a sequence. UsageError, which names the built-in classes, if one is of another kind."""
    listed = _listed(parts)
    for part in listed:
        if not accepts(part):
            names = ", ".join(f"el.{cls.__name__}" for cls in builtin)
            raise UsageError(f"{what} does not accept {part!r}.", help=f"It accepts: {names}, and {needed}.")
    return listed


def _listed(parts: Any) -> Sequence[Any]:
    if isinstance(parts, Sequence) and not isinstance(parts, str):
        return parts
    return (parts,)


def _all_gates(parts: Any, loop: str) -> tuple[Gate, ...]:
    return tuple(check_gate(part, f"Loop '{loop}': gates=") for part in _listed(parts))
