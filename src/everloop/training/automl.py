"""AutoTrain: the best model that a time budget, a seed and a latency ceiling allow.

Every candidate gets one fit with a good first guess; what is left of the budget goes to further settings, most of it
to those of the leader.
Trials are judged on validation rows that none of them has seen. A simpler algorithm wins unless the other is better
by more than one standard error of the paired difference. The winner is fitted once more on all rows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everloop import plugins
from everloop.errors import TrainingError, UsageError
from everloop.pipeline.step_progress import progress
from everloop.training.algorithms.algorithm import TrainingProblem
from everloop.training.encoding import Encoder
from everloop.training.intervals import delong_covariance, paired_bootstrap
from everloop.training.metrics import get_metric, metrics_of
from everloop.training.targets import encode_target, find_classes, infer_task
from everloop.training.trained_model import Recipe, Trained
from everloop.training.training_tables import feature_columns, labelled, set_aside, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.algorithms.algorithm import Algorithm, Attempt
    from everloop.training.metrics import Metric
    from everloop.training.trained_model import Json, Model, Task

    Array = NDArray[np.float64]
    Listener = Callable[[dict[str, Json]], None]

FIRST_SHARE = 0.15
"""Part of the budget that each candidate's first fit gets in any case."""
LEAST_ROWS = 50
CELLS_A_THREAD = 4_000_000
CATCH_UP = 4
"""Every so many turns a candidate gets one that does not lead."""
_STOPPING = {
    "accuracy": "log_loss",
    "f1": "log_loss",
    "precision": "log_loss",
    "recall": "log_loss",
    "ece": "log_loss",
    "median_ae": "mae",
    "r2": "rmse",
}
"""Metrics that count decisions jump; rounds are counted by a smooth one instead."""


@dataclass(frozen=True, kw_only=True)
class AutoTrain:
    """A declaration: how to look for a model.

    Args:
        metric: what to optimise; None is the usual one of the task (roc_auc, roc_auc, rmse).
        budget_s: wall-clock seconds for everything, the final fit included, but not the import of libraries, which
            a process pays once. Kept within about a fifth; only the first fit of each candidate always gets its share.
        seed: the same seed on the same rows makes the same trials in the same order; how many, the time decides.
        candidates: names in the plugin table, kind `algorithm`.
        latency_ms: models whose single row takes longer (99th percentile) are not eligible.
        task: None infers it from the target.
        refit: fit the winner again on training and validation rows together, or keep it as it was judged.
        trials: stop after so many, whatever time is left; makes a search repeatable to the last bit.
        threads: None takes as many of the cores that the process may use as the table is large enough for.

    Raises:
        UsageError: a value that cannot be meant.
    """

    metric: str | None = None
    budget_s: float = 60.0
    seed: int = 0
    candidates: tuple[str, ...] = ("lightgbm", "linear")
    latency_ms: float | None = None
    task: Task | None = None
    refit: Literal["train+valid"] | None = "train+valid"
    trials: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if self.budget_s <= 0:
            raise UsageError(
                f"budget_s is {self.budget_s}.", help="Give the seconds that training may take, such as 60."
            )
        known = plugins.names("algorithm")
        unknown = [name for name in self.candidates if name not in known]
        if unknown or not self.candidates:
            said = f"No candidate called '{unknown[0]}'." if unknown else "There are no candidates."
            raise UsageError(said, help=f"There are: {', '.join(known)}")
        if self.metric is not None:
            get_metric(self.metric, self.task)
        for name, value in (("latency_ms", self.latency_ms), ("trials", self.trials), ("threads", self.threads)):
            if value is not None and value <= 0:
                raise UsageError(f"{name} is {value}.", help=f"Leave {name} out or make it positive.")

    def fit(
        self,
        train: pl.DataFrame | pl.LazyFrame,
        valid: pl.DataFrame | pl.LazyFrame | None = None,
        *,
        target: str,
        features: Sequence[str] | None = None,
        listener: Listener | None = None,
    ) -> Trained:
        """Search, choose and fit.

        Args:
            train: rows to learn from; anything that Polars takes.
            valid: rows to be judged by; None sets a fifth of `train` aside, drawn by `seed`.
            target: column to predict. Rows without it are left out.
            features: columns to predict from; None takes all others.
            listener: told the leaderboard's entry of each trial as it ends.

        Raises:
            TrainingError: no model can be made of these rows; says why and the way out.
            UsageError: the metric does not fit the task.
        """
        # Not part of the budget, and seconds where nothing is in the disk's cache.
        progress(0, self.budget_s, note="loading the libraries", unit="s of the budget")
        for name in self.candidates:
            plugins.load("algorithm", name).load_libraries()
        search = _Search(self, perf_counter())
        notes: list[str] = []
        rows = labelled(table(train), target, "training", notes)
        names = feature_columns(rows, target, features)
        judged = None if valid is None else labelled(table(valid), target, "validation", notes)
        everything = rows if judged is None else _together(rows, judged)
        if everything.height < LEAST_ROWS:
            raise TrainingError(
                f"{everything.height} labelled rows are too few to learn from and to be judged by.",
                help=f"Gather {LEAST_ROWS} or more.",
            )
        task = self.task or infer_task(everything[target])
        classes = find_classes(everything[target], task)
        if judged is None:
            rows, judged = set_aside(rows, encode_target(rows[target], task, classes), task, self.seed)
        metric = get_metric(self.metric or metrics_of(task)[0], task)

        encoding = perf_counter()
        encoder = Encoder.fit(rows.select(names))
        problem = self._problem(encoder, rows, target, task, classes, metric)
        problem = replace(
            problem,
            valid_matrix=encoder.encode(judged),
            valid_y=encode_target(judged[target], task, classes),
        )
        _check_classes(problem, classes, target)
        search.run(problem, judged, perf_counter() - encoding, listener)
        winner = search.choose()

        algorithm, attempt = winner.algorithm, winner.attempt
        recipe = Recipe(
            algorithm=algorithm.name, task=task, params=attempt.params, rounds=attempt.rounds, seed=self.seed
        )
        model, fitted = attempt.build(), problem
        if self.refit is not None:
            fitted = self._problem(Encoder.fit(everything.select(names)), everything, target, task, classes, metric)
            model = plugins.load("algorithm", recipe.algorithm)(fitted).fit(recipe.params, rounds=recipe.rounds).build()
        if metric.name == "roc_auc" and winner.value > 0.999:
            notes.append(f"{metric.name} of {winner.value:.4f} is too good to be true: does a feature know the target?")
        return _trained(
            model,
            fitted,
            target=target,
            classes=classes,
            leaderboard=search.leaderboard(),
            best=winner.entry,
            recipe=recipe,
            notes=notes,
            rows={"train": rows.height, "valid": judged.height},
            seconds=search.elapsed(),
        )

    def _problem(
        self, encoder: Encoder, rows: pl.DataFrame, target: str, task: Task, classes: list[Json], metric: Metric
    ) -> TrainingProblem:
        return TrainingProblem(
            task=task,
            outputs=len(classes) if task == "multiclass" else 1,
            encoder=encoder,
            matrix=encoder.encode(rows),
            y=encode_target(rows[target], task, classes),
            metric=metric,
            stopping=get_metric(_STOPPING.get(metric.name, metric.name)),
            seed=self.seed,
            threads=self.threads or _threads(rows.height * encoder.width),
        )


def fit_recipe(
    recipe: Recipe,
    rows: pl.DataFrame | pl.LazyFrame,
    *,
    target: str,
    features: Sequence[str] | None = None,
    metric: str | None = None,
    threads: int | None = None,
) -> Trained:
    """Fit what a search has found, without searching: the same rows give the same model, to the last bit.

    Args:
        recipe: `Trained.recipe`.
        rows: for a search that refitted: its training rows, then its validation rows.
        target: column to predict.
        features: as the search was given them.
        metric: the metric that the search was judged by, if not the task's usual one.
        threads: as `AutoTrain.threads`.

    Raises:
        TrainingError: no model can be made of these rows.
    """
    started = perf_counter()
    notes: list[str] = []
    given = labelled(table(rows), target, "training", notes)
    names = feature_columns(given, target, features)
    declared = AutoTrain(metric=metric, seed=recipe.seed, task=recipe.task, threads=threads)
    infer_task(given[target])  # for its refusals
    classes = find_classes(given[target], recipe.task)
    judged_by = get_metric(metric or metrics_of(recipe.task)[0], recipe.task)
    problem = declared._problem(Encoder.fit(given.select(names)), given, target, recipe.task, classes, judged_by)
    model = plugins.load("algorithm", recipe.algorithm)(problem).fit(recipe.params, rounds=recipe.rounds).build()
    return _trained(
        model,
        problem,
        target=target,
        classes=classes,
        recipe=recipe,
        notes=notes,
        rows={"train": given.height, "valid": 0},
        seconds=perf_counter() - started,
    )


@dataclass(frozen=True)
class _Trial:
    algorithm: Algorithm
    attempt: Attempt
    value: float
    gain: float
    """The value, turned so that more is better."""
    entry: dict[str, Json]


class _Search:
    """One search: the clock, the trials made, the best of each algorithm."""

    def __init__(self, declared: AutoTrain, started: float) -> None:
        self._declared = declared
        self._started = started
        self._entries: list[tuple[float, dict[str, Json]]] = []
        self._best: dict[str, _Trial] = {}
        self._growth = 1.0
        """By how much longer the final fit takes than the trial it repeats."""
        self._overhead = 0.0
        """Seconds of the final fit that do not depend on the trial: encoding all rows."""

    def elapsed(self) -> float:
        return perf_counter() - self._started

    def leaderboard(self) -> list[dict[str, Json]]:
        return [entry for _, entry in sorted(self._entries, key=lambda item: -item[0])]

    def run(self, problem: TrainingProblem, judged: pl.DataFrame, encoding_s: float, listener: Listener | None) -> None:
        """Make trials until the time is up. `encoding_s`: what encoding the rows took, it is done once more."""
        self._problem = problem
        assert problem.valid_matrix is not None  # noqa: S101  (set by the caller)
        if self._declared.refit is not None:
            self._growth = 1.0 + len(problem.valid_matrix) / len(problem.matrix)
            self._overhead = encoding_s
        turns: list[tuple[Algorithm, Iterator[dict[str, Any]]]] = []
        # The simple ones first: they are quick, and then there is something to beat.
        kinds = [plugins.load("algorithm", name) for name in self._declared.candidates]
        for kind in sorted(kinds, key=lambda kind: kind.complexity):
            algorithm = kind(problem)
            turns.append((algorithm, algorithm.params()))
            self._turn(*turns[-1], judged, listener, first=True)
        while turns and not self._enough():
            at = self._whose_turn([algorithm for algorithm, _ in turns])
            if not self._turn(*turns[at], judged, listener):
                del turns[at]

    def _whose_turn(self, algorithms: list[Algorithm]) -> int:
        """The leader's, but for every fourth turn, which goes to the least tried of the others.

        Counted in turns, not in seconds, so that a search repeats itself on a slower machine.
        """
        made = [sum(entry["candidate"] == algorithm.name for _, entry in self._entries) for algorithm in algorithms]
        gains = [self._best[a.name].gain if a.name in self._best else -np.inf for a in algorithms]
        leader = max(range(len(algorithms)), key=lambda k: gains[k])
        others = [k for k in range(len(algorithms)) if k != leader]
        if others and len(self._entries) % CATCH_UP == 0:
            return min(others, key=lambda k: made[k])
        return leader

    def choose(self) -> _Trial:
        """The best trial, or a simpler algorithm's that is as good as far as these rows can tell.

        Raises:
            TrainingError: no trial kept the latency ceiling.
        """
        if not self._best:
            ceiling = self._declared.latency_ms
            fastest = min(entry["latency_ms"] for _, entry in self._entries)
            raise TrainingError(
                f"No model answers a row within {ceiling} ms; the fastest took {fastest:.3f} ms.",
                help="Raise latency_ms, or offer fewer features.",
            )
        top = max(self._best.values(), key=lambda trial: trial.gain)
        for trial in sorted(self._best.values(), key=lambda trial: trial.algorithm.complexity):
            if trial.algorithm.complexity >= top.algorithm.complexity:
                break
            error = self._error_between(top, trial)
            if top.gain - trial.gain <= error:
                trial.entry["chosen"] = f"simpler than {top.algorithm.name} and within one standard error ({error:.2g})"
                return trial
        top.entry["chosen"] = f"best {self._problem.metric.name}"
        return top

    def _turn(
        self,
        algorithm: Algorithm,
        settings: Iterator[dict[str, Any]],
        judged: pl.DataFrame,
        listener: Listener | None,
        *,
        first: bool = False,
    ) -> bool:
        params = next(settings, None)
        if params is None:
            return False
        began = perf_counter()
        # A first guess may be slow; it must leave room for others to be compared with.
        left = self._time_left()
        most = began + max((0.6 if first else 0.5) * left, min(left, 0.15 * self._declared.budget_s))
        # However slow the others were, a first guess that is cut at once says nothing about its algorithm.
        least = began + FIRST_SHARE * self._declared.budget_s if first else 0.0

        def deadline(worth: float) -> float:
            return max(least, min(most, self._end(worth + algorithm.setup_s)))

        self._tell(f"now {algorithm.name}")
        attempt = algorithm.fit(params, deadline=deadline)
        metric, truth = self._problem.metric, self._problem.valid_y
        assert attempt.scores is not None  # noqa: S101  (the problem has validation rows)
        assert truth is not None  # noqa: S101
        value = metric.prepare(truth, attempt.scores)(None)
        gain = value if metric.greater_is_better else -value
        entry: dict[str, Json] = {
            "candidate": algorithm.name,
            "params": dict(params),
            "rounds": attempt.rounds,
            "metric": metric.name,
            "value": value,
            "finished": attempt.finished,
            "seconds": perf_counter() - began,
        }
        held = self._best.get(algorithm.name)
        eligible = True
        if self._declared.latency_ms is not None and (held is None or gain > held.gain):
            entry["latency_ms"] = _row_latency_ms(attempt.build(), judged)
            eligible = entry["eligible"] = entry["latency_ms"] <= self._declared.latency_ms
        self._entries.append((gain if eligible else -np.inf, entry))
        if eligible and (held is None or gain > held.gain):
            self._best[algorithm.name] = _Trial(algorithm, attempt, value, gain, entry)
        if listener is not None:
            listener(dict(entry))
        self._tell()
        return True

    def _tell(self, now: str = "") -> None:
        """Say how far the search has come, to whoever watches the step that it runs in."""
        leader = max(self._best.values(), key=lambda trial: trial.gain, default=None)
        made = len(self._entries)
        told = [f"{made} {'trial' if made == 1 else 'trials'}"]
        if leader is not None:
            told.append(f"best {self._problem.metric.name} {leader.value:.4g} ({leader.algorithm.name})")
        if now:
            told.append(now)
        progress(round(self.elapsed(), 1), self._declared.budget_s, note=", ".join(told), unit="s of the budget")

    def _enough(self) -> bool:
        wanted = self._declared.trials
        # In the last moments a trial would be cut before it could show anything.
        late = self._time_left() < 0.03 * self._declared.budget_s
        return late or (wanted is not None and len(self._entries) >= wanted)

    def _time_left(self) -> float:
        return self._end(0.0) - perf_counter()

    def _end(self, worth: float) -> float:
        """When searching must stop if `worth` seconds of fitting, or the best so far, are to be done once more."""
        end = self._started + 0.97 * self._declared.budget_s
        if self._declared.refit is None:
            return end
        leader = max(self._best.values(), key=lambda trial: trial.gain, default=None)
        held = leader.attempt.seconds + leader.algorithm.setup_s if leader is not None else 0.0
        return end - 1.1 * self._growth * max(worth, held) - self._overhead

    def _error_between(self, a: _Trial, b: _Trial) -> float:
        """Standard error of the difference of two trials on the validation rows."""
        problem = self._problem
        one, two = a.attempt.scores, b.attempt.scores
        assert problem.valid_y is not None  # noqa: S101
        assert one is not None and two is not None  # noqa: S101, PT018
        if problem.metric.name == "roc_auc" and problem.task == "binary":
            _, spread = delong_covariance(problem.valid_y, one, two)
            error = float(np.sqrt(max(0.0, spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])))
        else:
            error = paired_bootstrap(problem.valid_y, one, two, problem.metric, n=50, seed=problem.seed).standard_error
        return 0.0 if np.isnan(error) else error


def _trained(
    model: Model,
    problem: TrainingProblem,
    *,
    target: str,
    classes: list[Json],
    recipe: Recipe,
    notes: list[str],
    rows: dict[str, int],
    seconds: float,
    leaderboard: list[dict[str, Json]] | None = None,
    best: dict[str, Json] | None = None,
) -> Trained:
    features = problem.encoder.features
    return Trained(
        model=model,
        task=problem.task,
        target=target,
        features={feature.name: feature.type for feature in features},
        nullable={feature.name: feature.nullable for feature in features},
        categories={feature.name: list(feature.categories) for feature in features if feature.kind == "category"},
        classes=classes,
        metric=problem.metric.name,
        leaderboard=leaderboard or [],
        best=best or {},
        recipe=recipe,
        dropped=problem.encoder.dropped,
        importance=_importance(model, problem.matrix),
        notes=notes,
        rows=rows,
        seconds=seconds,
    )


def _importance(model: Any, matrix: Array) -> dict[str, float]:
    shares: dict[str, float] = model.importance(matrix[:20_000])
    return shares


def _check_classes(problem: TrainingProblem, classes: list[Json], target: str) -> None:
    if problem.task == "regression":
        return
    assert problem.valid_y is not None  # noqa: S101
    lacking = [classes[k] for k in range(len(classes)) if not (problem.y == k).any()]
    if lacking:
        raise TrainingError(
            f"The training rows have no '{target}' of {lacking[0]!r}, the validation rows do.",
            help="Train on a longer stretch of data, or draw validation rows at random.",
        )
    if len(np.unique(problem.valid_y)) < 2:
        raise TrainingError(
            f"The {len(problem.valid_y)} validation rows have one '{target}' only: nothing to be judged by.",
            help="Hold out a longer stretch, or draw validation rows at random.",
        )


def _row_latency_ms(model: Model, judged: pl.DataFrame) -> float:
    """The 99th percentile of answering one row, in milliseconds."""
    rows = judged.select(model.inputs).head(100).to_dicts()
    for row in rows[:5]:
        model.predict_rows([row])
    seconds = []
    for row in rows * (300 // len(rows) + 1):
        before = perf_counter()
        model.predict_rows([row])
        seconds.append(perf_counter() - before)
    return float(np.quantile(seconds, 0.99)) * 1000


def _together(rows: pl.DataFrame, judged: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    absent = [name for name in rows.columns if name not in judged.columns]
    if absent:
        raise TrainingError(f"The validation rows have no column '{absent[0]}'.", help="Split one prepared table.")
    return pl.concat([rows, judged.select(rows.columns)], how="vertical_relaxed")


def _threads(cells: int) -> int:
    """As many threads as the matrix feeds. Threads of a small one mostly wait for each other, and on a machine with
    other work to do that wait is a hundredfold: a neighbour's time slice at every round."""
    # A container or a scheduler may grant fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, cells // CELLS_A_THREAD))
