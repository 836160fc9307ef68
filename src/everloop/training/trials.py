"""The trials of a search: in this process one after the other, or ahead of time on the nodes of a cluster.

A trial depends on its settings alone, and the settings of an algorithm follow from the seed. Only which trial is next
depends on the results before. So on a cluster, trials that are probably next run at the same time, and their results
are used in the order in which this process would have run them. A search whose number of trials is limited finds the
same model either way.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from everloop import plugins
from everloop.errors import MissingExtraError, NotFoundError
from everloop.pipeline.cluster_calls import CallLostError, lent_cluster
from everloop.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from everloop.training.algorithms.algorithm import Algorithm, Attempt, TrainingProblem
    from everloop.training.trained_model import Model

_log = logging.getLogger("everloop.training")

MOST_AHEAD = 4
"""For each call that the cluster can run at a time, this many trials at most are started before their results are
used."""
_GRACE_S = 2.0


class SearchCandidate:
    """An algorithm of a search. It prepares the rows when it is first needed."""

    def __init__(self, name: str, problem: TrainingProblem) -> None:
        self.name = name
        self.kind: type[Algorithm] = plugins.load("algorithm", name)
        self.trials = 0
        """How many of its trials have been judged."""
        self._problem = problem
        self._params: list[dict[str, Any]] = []

    @cached_property
    def algorithm(self) -> Algorithm:
        return self.kind(self._problem)

    def params(self, number: int) -> dict[str, Any] | None:
        """The settings of a trial of this algorithm, counted from 0. None if it has no further ones."""
        while len(self._params) <= number:
            params = next(self._sequence, None)
            if params is None:
                return None
            self._params.append(params)
        return self._params[number]

    @cached_property
    def _sequence(self) -> Any:
        return self.algorithm.params()


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """The next trial, or one that will probably follow."""

    candidate: SearchCandidate
    number: int
    """How many trials of its candidate come before it."""

    @property
    def key(self) -> tuple[str, int]:
        return self.candidate.name, self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialTime:
    """When a trial has to stop, in seconds from its start."""

    earliest: float
    """It may always run until then."""
    latest: float
    end: float
    """When the search has to end, if the final fit took no time."""
    growth: float
    """How many times longer the final fit takes than the trial that it repeats; 0 without one."""
    leader: float
    """How long the best trial so far took. The final fit repeats this one or that one."""

    def deadline(self, began: float, setup_s: float) -> Callable[[float], float]:
        """The deadline that `Algorithm.fit` takes."""

        def stop(best_seconds: float) -> float:
            end = self.end - self.growth * max(best_seconds + setup_s, self.leader)
            return began + max(self.earliest, min(self.latest, end))

        return stop


@dataclass(frozen=True, slots=True)
class EndedTrial:
    """A trial that has ended."""

    attempt: Attempt
    seconds: float


class Trials:
    """Runs the trials of one search.

    Args:
        keep_models: whether `Attempt.build` will be called. Otherwise, models stay on the nodes.
    """

    def __init__(self, problem: TrainingProblem, *, keep_models: bool) -> None:
        self._problem = problem
        self._keep_models = keep_models
        self._cluster = lent_cluster()
        self._slots = 0 if self._cluster is None else self._cluster.slots(problem.threads)
        if self._slots < 2:
            # A single trial at a time is faster here, where the rows are.
            self._cluster = None
        self._shared: Any = None
        self._running: dict[tuple[str, int], float] = {}
        """Trials on the cluster, to when they are given up (`time.perf_counter`)."""
        self._ended: dict[tuple[str, int], EndedTrial | Exception] = {}
        self._here: set[tuple[str, int]] = set()
        """Trials that the cluster has lost."""

    @property
    def ahead(self) -> int:
        """How many trials should be planned."""
        return 1 if self._cluster is None else min(self._slots + len(self._ended), MOST_AHEAD * self._slots)

    @property
    def running(self) -> int:
        """How many trials run on the cluster, or wait for room there."""
        return len(self._running)

    def has(self, trial: PlannedTrial) -> bool:
        """Whether the trial was started before."""
        return trial.key in self._running or trial.key in self._ended

    def start(self, planned: Sequence[PlannedTrial], time: Callable[[PlannedTrial], TrialTime]) -> None:
        """Start trials on the cluster, up to as many as it can run. Without one, do nothing."""
        for trial in planned:
            if self._cluster is None or len(self._running) >= self._slots:
                return
            if self.has(trial) or trial.key in self._here:
                continue
            limits = time(trial)
            try:
                if self._shared is None:
                    self._shared = self._cluster.share(self._problem)
                arguments = (trial.candidate.name, _params(trial), limits, self._keep_models, VERSION)
                self._cluster.submit(trial.key, run_trial, self._shared, *arguments, cpus=self._problem.threads)
            except Exception as error:
                # Whatever is wrong with the cluster, the search can continue without it.
                _log.warning("The trials run in the process of the step, because the cluster takes none: %s", error)
                self.close()
                self._cluster = None
                return
            self._running[trial.key] = perf_counter() + max(limits.earliest, limits.latest) + _GRACE_S

    def take(self, trial: PlannedTrial, time: Callable[[PlannedTrial], TrialTime], wait_s: float) -> EndedTrial | None:
        """Return the result of a trial. Run it here if the cluster was not given it, or has lost it.

        Args:
            wait_s: how long to wait for the cluster.

        Returns:
            None if another trial has ended, this one was lost, or the time is over.
        """
        if trial.key in self._running:
            self._wait(trial, wait_s)
            if trial.key not in self._ended:
                return None
        result = self._ended.pop(trial.key, None)
        if isinstance(result, Exception):
            raise result
        return result or _run(trial.candidate.algorithm, _params(trial), time(trial), perf_counter())

    def close(self) -> None:
        """Stop the trials that still run."""
        if self._cluster is not None:
            self._cluster.cancel()
        self._running.clear()

    def _wait(self, trial: PlannedTrial, wait_s: float) -> None:
        assert self._cluster is not None  # noqa: S101  (it runs a trial)
        given_up = self._running[trial.key]
        for key, result in self._cluster.wait(min(wait_s, given_up - perf_counter())):
            # What is not expected any more is ignored.
            if self._running.pop(key, None) is None:
                continue
            if isinstance(result, CallLostError):
                _log.warning("A trial of %s runs here, because the cluster could not run it: %s", key[0], result)
                self._here.add(key)
            else:
                self._ended[key] = result
        if trial.key in self._running and perf_counter() >= given_up:
            _log.warning(
                "The trials run in the process of the step, because the cluster did not run one of %s in its time.",
                trial.candidate.name,
            )
            self.close()
            self._cluster = None


def run_trial(
    problem: TrainingProblem, name: str, params: dict[str, Any], time: TrialTime, keep_model: bool, version: str
) -> EndedTrial:
    """Run a trial on a node of a cluster.

    Raises:
        CallLostError: this node has another version of everloop, or lacks the algorithm or its library.
    """
    if version != VERSION:
        raise CallLostError(f"the node has everloop {VERSION}, but the search uses {version}")
    try:
        kind: type[Algorithm] = plugins.load("algorithm", name)
        # As in the process of the search, imports are not part of the budget.
        kind.load_libraries()
    except (ImportError, NotFoundError, MissingExtraError) as error:
        raise CallLostError(str(error)) from error
    began = perf_counter()
    ended = _run(kind(problem), params, time, began)
    model = ended.attempt.build() if keep_model else None
    return replace(ended, attempt=replace(ended.attempt, build=partial(_built, model)))


def _run(algorithm: Algorithm, params: dict[str, Any], time: TrialTime, began: float) -> EndedTrial:
    attempt = algorithm.fit(params, deadline=time.deadline(began, algorithm.setup_s))
    return EndedTrial(attempt, perf_counter() - began)


def _params(trial: PlannedTrial) -> dict[str, Any]:
    params = trial.candidate.params(trial.number)
    assert params is not None  # noqa: S101  (a trial is planned only if it has settings)
    return params


def _built(model: Model | None) -> Model:
    assert model is not None, "the models of this search were left on the nodes"  # noqa: S101
    return model


__all__ = ["EndedTrial", "PlannedTrial", "SearchCandidate", "TrialTime", "Trials", "run_trial"]
