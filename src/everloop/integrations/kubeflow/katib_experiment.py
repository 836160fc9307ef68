"""Experiments of Katib, run here: each trial is a process of this machine and a run with its parameters and metrics.

Random and grid search are supported, with Katib's collector `StdOut`: a trial prints `name=value`. The goal, and the
numbers of trials, of trials at once and of failures have the meaning that they have on a cluster.

Source of the format: kubeflow/katib, `kubeflow.org/v1beta1`, Experiment.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import StepError, UsageError
from everloop.integrations.kubeflow.training_jobs import log_metrics, places, replicas_of, run_replicas

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.integrations.kubeflow.pipeline_spec import Spec
    from everloop.stores import Store

ALGORITHMS = ("random", "grid")


@dataclass(frozen=True, slots=True)
class KatibTrial:
    """One trial. `value` is that of the objective; None if the trial failed."""

    run: str
    assignments: dict[str, str]
    value: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class KatibResult:
    """The end of an experiment, with its trials in the order in which they ended."""

    run: str
    trials: tuple[KatibTrial, ...]
    best: KatibTrial
    goal_reached: bool


def run_experiment(manifest: Spec, store: Store) -> KatibResult:
    """Run an experiment. It is a run, and each trial is a child of it.

    Raises:
        UsageError: the experiment needs something that only a cluster has, or is not complete.
        StepError: more trials failed than `maxFailedTrialCount` allows, or all.
    """
    from everloop.tracking import recover_journals, start_run

    experiment = _Experiment(manifest)
    tags = {"kubeflow.kind": "Experiment", "katib.algorithm": experiment.algorithm}
    trials: list[KatibTrial] = []
    stop = threading.Event()
    with start_run(experiment.name, store=store, tags=tags, trigger="manual") as run:
        waiting = iter(enumerate(itertools.islice(experiment.assignments(), experiment.most), start=1))
        running: set[Future[KatibTrial]] = set()
        with ThreadPoolExecutor(experiment.at_once) as pool:
            try:
                while True:
                    ended = experiment.is_over(trials)
                    while not ended and len(running) < experiment.at_once and (one := next(waiting, None)) is not None:
                        running.add(pool.submit(experiment.run_trial, store, run.id, *one, stop))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    trials += [future.result() for future in done]
            except BaseException:
                stop.set()
                raise
        # A process that another thread was just starting held the journal of a trial open when the trial ended.
        recover_journals(store)
        failed = [trial for trial in trials if trial.value is None]
        good = [trial for trial in trials if trial.value is not None]
        if len(failed) > experiment.most_failed or not good:
            raise StepError(
                f"{len(failed)} of {len(trials)} trials of '{experiment.name}' failed. The last: {failed[-1].error}",
                help="See them: everloop runs ls",
            )
        best = max(good, key=lambda trial: experiment.gain(trial.value))
        run.log({f"best_{experiment.metric}": best.value})
        run.set_tags({f"best.{name}": value for name, value in best.assignments.items()})
        return KatibResult(run.id, tuple(trials), best, experiment.reached(trials))


class _Experiment:
    """The parts of a manifest that decide what runs."""

    def __init__(self, manifest: Spec) -> None:
        spec = manifest.get("spec")
        if not isinstance(spec, dict):
            raise UsageError("The experiment has no 'spec'.", help="See Katib's documentation of an Experiment.")
        objective, template = spec.get("objective") or {}, spec.get("trialTemplate") or {}
        self.name = str((manifest.get("metadata") or {}).get("name") or "experiment")
        self.metric = str(objective.get("objectiveMetricName") or "")
        self.sign = {"maximize": 1.0, "minimize": -1.0}.get(str(objective.get("type")), 0.0)
        if not self.metric or not self.sign:
            raise UsageError(
                "The experiment has no objective.",
                help="Write spec.objective with objectiveMetricName, and type: maximize or minimize.",
            )
        self.goal = objective.get("goal")
        strategies = {one.get("name"): one.get("value") for one in objective.get("metricStrategies") or ()}
        self.strategy = str(strategies.get(self.metric) or ("max" if self.sign > 0 else "min"))
        if self.strategy not in ("min", "max", "latest"):
            raise UsageError(f"The metric strategy '{self.strategy}' is unknown.", help="Use one of: min, max, latest")
        algorithm = spec.get("algorithm") or {}
        self.algorithm = str(algorithm.get("algorithmName") or "")
        if self.algorithm not in ALGORITHMS:
            raise UsageError(
                f"Katib's algorithm '{self.algorithm}' does not run here.", help=f"Use one of: {', '.join(ALGORITHMS)}"
            )
        settings = {one.get("name"): one.get("value") for one in algorithm.get("algorithmSettings") or ()}
        self.seed = int(settings.get("random_state") or 0)
        collector = ((spec.get("metricsCollectorSpec") or {}).get("collector") or {}).get("kind") or "StdOut"
        if collector != "StdOut":
            raise UsageError(
                f"Katib's metrics collector '{collector}' does not run here.",
                help="Let the trial print name=value, and use the collector StdOut.",
            )
        self.most: int | None = int(spec.get("maxTrialCount") or 0) or None
        if self.most is None and self.algorithm != "grid":
            raise UsageError("The experiment has no end.", help="Write spec.maxTrialCount.")
        self.at_once = max(1, min(int(spec.get("parallelTrialCount") or 3), places()))
        self.most_failed = int(spec.get("maxFailedTrialCount") or 0)
        self.parameters = [_Parameter(one) for one in spec.get("parameters") or ()]
        if not self.parameters:
            raise UsageError("The experiment has no parameters.", help="Write spec.parameters.")
        self.references = {
            str(one.get("name")): str(one.get("reference")) for one in template.get("trialParameters") or ()
        }
        self.trial = template.get("trialSpec")
        if not isinstance(self.trial, dict):
            raise UsageError("The experiment has no spec.trialTemplate.trialSpec.", help="Write the job of a trial.")
        known = {parameter.name for parameter in self.parameters}
        for name, reference in self.references.items():
            if reference not in known and not reference.startswith("${trialSpec."):
                raise UsageError(
                    f"The trial's parameter '{name}' refers to '{reference}', which is not a parameter.",
                    help=f"Parameters: {', '.join(sorted(known))}",
                )
        replicas_of(self._filled({parameter.name: parameter.any_value() for parameter in self.parameters}, "trial"))

    def assignments(self) -> Iterator[dict[str, str]]:
        """Values of the parameters for each trial."""
        if self.algorithm == "grid":
            for values in itertools.product(*(parameter.grid() for parameter in self.parameters)):
                yield {parameter.name: value for parameter, value in zip(self.parameters, values, strict=True)}
            return
        draw = random.Random(self.seed)  # noqa: S311 - not for secrets
        while True:
            yield {parameter.name: parameter.draw(draw) for parameter in self.parameters}

    def run_trial(
        self, store: Store, parent: str, number: int, assignments: dict[str, str], stop: threading.Event
    ) -> KatibTrial:
        """Run one trial as a child run. A failure is a result, too."""
        from everloop.tracking import start_run

        name = f"{self.name}-{number}"
        run = start_run(name, store=store, parent=parent, params=assignments, tags={"kubeflow.kind": "Trial"})
        try:
            metrics = run_replicas(name, replicas_of(self._filled(assignments, name)), stop)
            log_metrics(run, metrics)
            values = metrics.get(self.metric)
            if not values:
                raise StepError(
                    f"Trial '{name}' has printed no '{self.metric}'.", help=f"Let it print a line: {self.metric}=0.5"
                )
        except StepError as error:
            run.finish("failed", str(error))
            return KatibTrial(run.id, assignments, None, str(error))
        except BaseException as error:
            run.finish("interrupted", f"{type(error).__name__}: {error}")
            raise
        run.finish("finished")
        return KatibTrial(run.id, assignments, self._judged(values))

    def gain(self, value: float | None) -> float:
        """The value of the objective, negated if lower is better."""
        return -math.inf if value is None else self.sign * value

    def reached(self, trials: list[KatibTrial]) -> bool:
        return self.goal is not None and any(self.gain(one.value) >= self.sign * float(self.goal) for one in trials)

    def is_over(self, trials: list[KatibTrial]) -> bool:
        """Whether no further trial is to start."""
        return self.reached(trials) or sum(trial.value is None for trial in trials) > self.most_failed

    def _judged(self, values: list[float]) -> float:
        if self.strategy == "latest":
            return values[-1]
        return min(values) if self.strategy == "min" else max(values)

    def _filled(self, assignments: dict[str, str], name: str) -> Spec:
        """The job of a trial."""
        texts = {f"${{trialParameters.{one}}}": assignments.get(of, name) for one, of in self.references.items()}

        def fill(value: Any) -> Any:
            if isinstance(value, str):
                for placeholder, text in texts.items():
                    value = value.replace(placeholder, text)
                if "${trialParameters." in value:
                    raise UsageError(
                        f"The trial uses '{value}', which is not in trialParameters.", help="Add it to trialParameters."
                    )
                return value
            if isinstance(value, dict):
                return {key: fill(item) for key, item in value.items()}
            return [fill(item) for item in value] if isinstance(value, list) else value

        found: Spec = fill(self.trial)
        return found


class _Parameter:
    """A parameter and the values that it may have."""

    def __init__(self, spec: Spec) -> None:
        self.name, self.type = str(spec.get("name")), str(spec.get("parameterType"))
        space = spec.get("feasibleSpace") or {}
        self.values = [str(one) for one in space.get("list") or ()]
        self.low = self.high = 0.0
        self.step: float | None = None
        self.logarithmic = space.get("distribution") == "logUniform"
        if self.type in ("categorical", "discrete"):
            if not self.values:
                raise self._wrong("has no 'list' in feasibleSpace")
            return
        if self.type not in ("int", "double"):
            raise self._wrong(f"has the type '{self.type}'")
        try:
            self.low, self.high = float(space["min"]), float(space["max"])
            self.step = float(space["step"]) if space.get("step") is not None else None
        except (KeyError, ValueError) as error:
            raise self._wrong(f"has no number as {error} in feasibleSpace") from error
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise self._wrong(f"has a range from {self.low:g} to {self.high:g}")
        if self.step is not None and not self.step > 0:
            raise self._wrong(f"has a step of {self.step:g}")
        if str(space.get("distribution") or "uniform") not in ("uniform", "logUniform"):
            raise self._wrong(f"has the distribution '{space['distribution']}'")
        if self.logarithmic and self.low <= 0:
            raise self._wrong("has a logUniform distribution, and its min is not above 0")

    def any_value(self) -> str:
        return self.values[0] if self.values else self._text(self.low)

    def grid(self) -> list[str]:
        if self.values:
            return self.values
        step = self.step if self.step is not None else 1.0 if self.type == "int" else None
        if step is None:
            raise self._wrong("has no 'step', which a grid needs")
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [self._text(self.low + number * step) for number in range(count)]

    def draw(self, source: random.Random) -> str:
        if self.values:
            return source.choice(self.values)
        if self.step is not None:
            return source.choice(self.grid())
        if self.type == "int" and not self.logarithmic:
            return str(source.randint(int(self.low), int(self.high)))
        if self.logarithmic:
            return self._text(math.exp(source.uniform(math.log(self.low), math.log(self.high))))
        return self._text(source.uniform(self.low, self.high))

    def _text(self, value: float) -> str:
        return str(round(value)) if self.type == "int" else json.dumps(round(value, 12))

    def _wrong(self, why: str) -> UsageError:
        return UsageError(f"The parameter '{self.name}' {why}.", help="See Katib's documentation of feasibleSpace.")
