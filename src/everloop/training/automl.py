"""AutoTrain: search for the best model within a time budget and a latency limit.

Every candidate algorithm gets one trial with good default settings. The rest of the budget goes to further settings,
mostly to those of the leading algorithm. Trials are judged on validation rows that they were not trained on. A simpler
algorithm wins unless another is better by more than one standard error of the paired difference. The winner is fitted
once more on all rows.
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
from everloop.training.algorithms.lightgbm import LightGBMModel
from everloop.training.encoding import Encoder
from everloop.training.intervals import delong_covariance, paired_bootstrap
from everloop.training.metrics import get_metric, metrics_of
from everloop.training.targets import encode_target, find_classes, infer_task
from everloop.training.trained_model import Recipe, Trained
from everloop.training.training_tables import feature_columns, labelled, set_aside, table, weights_of
from everloop.training.trials import PlannedTrial, SearchCandidate, Trials, TrialTime
from everloop.training.warm_start import SETTINGS, WarmStart, add_rounds, find_rounds, reason_against

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.algorithms.algorithm import Algorithm, Attempt
    from everloop.training.metrics import Metric
    from everloop.training.trained_model import Model, Task
    from everloop.training.trials import EndedTrial

    Array = NDArray[np.float64]
    Listener = Callable[[dict[str, Json]], None]

FIRST_SHARE = 0.15
"""Share of the budget that the first fit of each candidate always gets."""
LEAST_ROWS = 50
"""Training needs at least this many labelled rows, validation rows included."""
CELLS_A_THREAD = 4_000_000
"""One more thread is used for each further multiple of this many cells of the matrix."""
CATCH_UP = 4
"""Every fourth trial goes to a candidate that does not lead."""
_STOPPING = {
    "accuracy": "log_loss",
    "f1": "log_loss",
    "precision": "log_loss",
    "recall": "log_loss",
    "ece": "log_loss",
    "median_ae": "mae",
    "r2": "rmse",
}
"""Metrics that change in steps, and the smooth metric that is used for early stopping instead."""


@dataclass(frozen=True, kw_only=True)
class AutoTrain:
    """The settings of a search for a model.

    Args:
        metric: the metric to optimise. Default: `roc_auc` for two or more classes, `rmse` for a regression.
        budget_s: wall-clock seconds for the search and the final fit. The import of libraries does not count, because
            it happens once per process. The search keeps to the budget within about a fifth; it takes longer only if
            the first fits of the candidates, which always get their share, need it.
        seed: the same seed on the same rows gives the same trials in the same order. The time decides how many.
        candidates: names of algorithms in the plugin table: `lightgbm`, `linear`.
        latency_ms: models that take longer than this for a single row (99th percentile, in milliseconds) are excluded.
        task: `binary`, `multiclass` or `regression`. Default: inferred from the target.
        positive: the class of a binary target that scores are probabilities of, and that precision, recall, `f1` and
            `average_precision` are about, such as `"fraud"`. Default: True, the larger number or the later text.
        refit: `"train+valid"` fits the winner again on training and validation rows together. None keeps the model of
            the trial.
        trials: stop after this many trials, even if time is left. This makes a search repeatable to the last bit, if
            `budget_s` is so long that it cuts no fit off.
        threads: number of threads. Default: as many as the size of the table justifies, up to the available cores.
        warm_start: continue to boost the champion's model if it is a LightGBM model of the same columns and classes.
            Otherwise the search runs in full, and a note of the result says why.

    Raises:
        UsageError: a value is out of range, or a candidate or metric does not exist.

    Example:
        `AutoTrain(metric="roc_auc", budget_s=60)`
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
    warm_start: bool = False
    positive: bool | int | float | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if self.budget_s <= 0:
            raise UsageError(
                f"budget_s is {self.budget_s}, but must be above 0.",
                help="Pass the seconds that training may take, such as 60.",
            )
        known = plugins.names("algorithm")
        unknown = [name for name in self.candidates if name not in known]
        if unknown or not self.candidates:
            message = f"There is no candidate '{unknown[0]}'." if unknown else "There are no candidates."
            raise UsageError(message, help=f"Candidates: {', '.join(known)}")
        if self.metric is not None:
            get_metric(self.metric, self.task)
        for name, value in (("latency_ms", self.latency_ms), ("trials", self.trials), ("threads", self.threads)):
            if value is not None and value <= 0:
                raise UsageError(
                    f"{name} is {value}, but must be above 0.", help=f"Leave {name} out, or pass a positive number."
                )

    def fit(
        self,
        train: pl.DataFrame | pl.LazyFrame,
        valid: pl.DataFrame | pl.LazyFrame | None = None,
        *,
        target: str,
        features: Sequence[str] | None = None,
        weight: str | None = None,
        start: WarmStart | None = None,
        listener: Listener | None = None,
    ) -> Trained:
        """Search for the best model and fit it.

        Args:
            train: rows for training: a Polars frame or an Arrow table.
            valid: rows for validation. Default: a random fifth of `train`, drawn by `seed`.
            target: the column to predict. Rows without a value are left out.
            features: the columns to predict from. Default: all except the target and the weight.
            weight: the column with the weights of the rows for fitting, above 0. Only their ratios matter. Candidates
                are judged without weights.
            start: with `warm_start`, the model to continue, usually the champion.
            listener: called with the leaderboard entry of each trial when it ends.

        Raises:
            TrainingError: no model can be trained on these rows. The message gives the reason and a remedy.
            UsageError: the metric does not fit the task.
        """
        # Imports are not part of the budget. They take seconds if the libraries are not in the disk cache.
        progress(0, self.budget_s, note="loading the libraries", unit="s of the budget")
        for name in self.candidates:
            plugins.load("algorithm", name).load_libraries()
        search = _Search(self, perf_counter())
        notes: list[str] = []
        rows = labelled(table(train), target, "training", notes)
        names = feature_columns(rows, target, features, weight)
        judged = None if valid is None else labelled(table(valid), target, "validation", notes)
        everything = rows if judged is None else _together(rows, judged)
        if everything.height < LEAST_ROWS:
            raise TrainingError(
                f"{everything.height} labelled rows are too few to train and to validate a model.",
                help=f"Collect at least {LEAST_ROWS}.",
            )
        task = self.task or infer_task(everything[target])
        classes = find_classes(everything[target], task, self.positive)
        if judged is None:
            rows, judged = set_aside(rows, encode_target(rows[target], task, classes), task, self.seed)
        metric = get_metric(self.metric or metrics_of(task)[0], task)

        if self.warm_start:
            reason = "there is no champion" if start is None else reason_against(start, rows, names, task, classes)
            if start is not None and not reason:
                data = (rows, judged, everything)
                return self._continue(start, data, target, task, classes, metric, weight, notes, search)
            notes.append(f"trained in full instead of continuing the champion: {reason}")

        encoding = perf_counter()
        encoder = Encoder.fit(rows.select(names))
        problem = self._problem(encoder, rows, target, task, classes, metric, weight)
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
            algorithm=algorithm.name,
            task=task,
            params=attempt.params,
            rounds=attempt.rounds,
            seed=self.seed,
            positive=self.positive,
        )
        if self.refit is None:
            model, fitted = attempt.build(), problem
        else:
            fitted = self._problem(
                Encoder.fit(everything.select(names)), everything, target, task, classes, metric, weight
            )
            model = plugins.load("algorithm", recipe.algorithm)(fitted).fit(recipe.params, rounds=recipe.rounds).build()
        if not attempt.finished:
            notes.append(
                f"the time ended the best trial after {attempt.rounds} rounds; more budget_s may give a better model"
            )
        if metric.name == "roc_auc" and winner.value > 0.999:
            notes.append(
                f"a {metric.name} of {winner.value:.4f} is suspiciously good: does a feature contain the target?"
            )
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

    def _continue(
        self,
        start: WarmStart,
        data: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame],
        target: str,
        task: Task,
        classes: list[Json],
        metric: Metric,
        weight: str | None,
        notes: list[str],
        search: _Search,
    ) -> Trained:
        """Continue a model. `data`: rows for training, for validation, and both together."""
        rows, judged, everything = data
        champion = start.model
        assert isinstance(champion, LightGBMModel)  # noqa: S101  (checked by `reason_against`)
        encoder = champion.encoder
        problem = replace(
            self._problem(encoder, rows, target, task, classes, metric, weight),
            valid_matrix=encoder.encode(judged),
            valid_y=encode_target(judged[target], task, classes),
        )
        _check_classes(problem, classes, target)
        found = find_rounds(champion, problem)
        fitted = problem
        if self.refit is not None:
            fitted = self._problem(encoder, everything, target, task, classes, metric, weight)
        model = add_rounds(champion, fitted, found.rounds)
        notes.append(
            f"continued {start.name} with {found.rounds} more rounds: {metric.name} of the validation rows"
            f" {found.before:.4g} → {found.after:.4g}"
        )
        entry: dict[str, Json] = {
            "candidate": "lightgbm",
            "params": dict(SETTINGS),
            "rounds": model.rounds,
            "metric": metric.name,
            "value": found.after,
            "finished": True,
            "seconds": search.elapsed(),
            "continued": start.name,
        }
        return _trained(
            model,
            fitted,
            target=target,
            classes=classes,
            leaderboard=[entry],
            best=entry,
            recipe=None,
            notes=notes,
            rows={"train": rows.height, "valid": judged.height},
            seconds=search.elapsed(),
        )

    def _problem(
        self,
        encoder: Encoder,
        rows: pl.DataFrame,
        target: str,
        task: Task,
        classes: list[Json],
        metric: Metric,
        weight: str | None = None,
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
            weights=None if weight is None else weights_of(rows, weight),
        )


def fit_recipe(
    recipe: Recipe,
    rows: pl.DataFrame | pl.LazyFrame,
    *,
    target: str,
    features: Sequence[str] | None = None,
    weight: str | None = None,
    metric: str | None = None,
    threads: int | None = None,
) -> Trained:
    """Fit the model that a search has found, without searching. The same rows give the same model to the last bit.

    Args:
        recipe: the recipe of the search, from `Trained.recipe`.
        rows: the training rows of the search, followed by its validation rows if it refitted.
        target: the column to predict.
        features: the `features` of the search.
        weight: the `weight` of the search.
        metric: the metric of the search, if it was not the default for the task.
        threads: number of threads, see `AutoTrain`.

    Raises:
        TrainingError: no model can be trained on these rows.
    """
    started = perf_counter()
    notes: list[str] = []
    known = labelled(table(rows), target, "training", notes)
    names = feature_columns(known, target, features, weight)
    settings = AutoTrain(metric=metric, seed=recipe.seed, task=recipe.task, threads=threads)
    infer_task(known[target])  # raises if the target cannot be learned
    classes = find_classes(known[target], recipe.task, recipe.positive)
    judged_by = get_metric(metric or metrics_of(recipe.task)[0], recipe.task)
    problem = settings._problem(
        Encoder.fit(known.select(names)), known, target, recipe.task, classes, judged_by, weight
    )
    model = plugins.load("algorithm", recipe.algorithm)(problem).fit(recipe.params, rounds=recipe.rounds).build()
    return _trained(
        model,
        problem,
        target=target,
        classes=classes,
        recipe=recipe,
        notes=notes,
        rows={"train": known.height, "valid": 0},
        seconds=perf_counter() - started,
    )


@dataclass(frozen=True)
class _Trial:
    algorithm: Algorithm
    attempt: Attempt
    value: float
    gain: float
    """The value, negated if lower is better, so that more is always better."""
    entry: dict[str, Json]


class _Search:
    """The state of a search: its start time, its trials, and the best trial of each algorithm."""

    def __init__(self, settings: AutoTrain, started: float) -> None:
        self._settings = settings
        self._started = started
        self._entries: list[tuple[float, dict[str, Json]]] = []
        self._best: dict[str, _Trial] = {}
        self._growth = 0.0
        """How many times longer the final fit takes than the trial that it repeats; 0 without one."""
        self._overhead = 0.0
        """Seconds of the final fit that do not depend on the trial: those for encoding all rows."""

    def elapsed(self) -> float:
        return perf_counter() - self._started

    def leaderboard(self) -> list[dict[str, Json]]:
        return [entry for _, entry in sorted(self._entries, key=lambda item: -item[0])]

    def run(self, problem: TrainingProblem, judged: pl.DataFrame, encoding_s: float, listener: Listener | None) -> None:
        """Run trials until the time is up.

        Args:
            encoding_s: seconds that encoding the rows took. It is repeated for the final fit.
        """
        self._problem = problem
        assert problem.valid_matrix is not None  # noqa: S101  (set by the caller)
        if self._settings.refit is not None:
            self._growth = 1.1 * (1.0 + len(problem.valid_matrix) / len(problem.matrix))
            self._overhead = encoding_s
        # The simple algorithms come first, because they are quick and set a baseline.
        candidates = [SearchCandidate(name, problem) for name in dict.fromkeys(self._settings.candidates)]
        candidates.sort(key=lambda candidate: candidate.kind.complexity)
        keeps = self._settings.refit is None or self._settings.latency_ms is not None
        self._trials = Trials(problem, keep_models=keeps)
        try:
            while planned := self._plan(candidates, self._trials.ahead):
                trial = planned[0]
                # The first trial of each candidate always runs.
                if trial.number and self._is_late() and not self._trials.has(trial):
                    break
                if not self._is_late():
                    self._trials.start(planned, self._time_of)
                self._report_progress(trial.candidate.name)
                # A trial that runs elsewhere stops by itself when the time is over, so its result is on its way then.
                most_s = self._time_left() + 0.05 * self._settings.budget_s if trial.number else np.inf
                ended = self._trials.take(trial, self._time_of, most_s)
                if ended is not None:
                    trial.candidate.trials += 1
                    self._judge(trial.candidate.algorithm, ended, judged, listener)
                elif most_s <= 0:
                    break
        finally:
            self._trials.close()

    def _plan(self, candidates: list[SearchCandidate], most: int) -> list[PlannedTrial]:
        """Return the next trial, and those that follow if the best trials stay the best."""
        trials = {candidate.name: candidate.trials for candidate in candidates}
        left, planned = list(candidates), list[PlannedTrial]()
        while left and len(planned) < most:
            chosen = next((candidate for candidate in left if not trials[candidate.name]), None)
            if chosen is None:
                if self._settings.trials is not None and sum(trials.values()) >= self._settings.trials:
                    break
                chosen = self._next_candidate(left, trials)
            number = trials[chosen.name]
            if chosen.params(number) is None:
                left.remove(chosen)
                continue
            planned.append(PlannedTrial(chosen, number))
            trials[chosen.name] += 1
        return planned

    def _next_candidate(self, candidates: list[SearchCandidate], trials: dict[str, int]) -> SearchCandidate:
        """Return the leader. For every fourth trial, the other with the fewest trials.

        Trials are counted instead of seconds, so that a search is the same on a slower machine.
        """

        def rank(candidate: SearchCandidate) -> tuple[float, int]:
            if not candidate.trials:
                # Its first trial still runs. The more complex one will probably be better.
                return np.inf, candidate.kind.complexity
            best = self._best.get(candidate.name)
            return (best.gain if best is not None else -np.inf), 0

        leader = max(candidates, key=rank)
        others = [candidate for candidate in candidates if candidate is not leader]
        if others and sum(trials.values()) % CATCH_UP == 0:
            return min(others, key=lambda candidate: trials[candidate.name])
        return leader

    def choose(self) -> _Trial:
        """Return the best trial, or that of a simpler algorithm if the difference is within one standard error.

        Raises:
            TrainingError: no model was fast enough for `latency_ms`.
        """
        if not self._best:
            limit = self._settings.latency_ms
            fastest = min(entry["latency_ms"] for _, entry in self._entries)
            raise TrainingError(
                f"No model predicts a row within {limit} ms; the fastest took {fastest:.3f} ms.",
                help="Raise latency_ms, or use fewer features.",
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

    def _time_of(self, trial: PlannedTrial) -> TrialTime:
        """Return the time that a trial gets if it starts now."""
        left, budget_s, first = self._time_left(), self._settings.budget_s, trial.number == 0
        return TrialTime(
            # The first trial of an algorithm always gets its share of time, otherwise it shows nothing about the
            # algorithm.
            earliest=FIRST_SHARE * budget_s if first else 0.0,
            # A trial may be slow, but must leave time for others to be compared with.
            latest=max((0.6 if first else 0.5) * left, min(left, 0.15 * budget_s)),
            end=self._end() - perf_counter(),
            growth=self._growth,
            leader=self._leader_seconds(),
        )

    def _judge(self, algorithm: Algorithm, ended: EndedTrial, judged: pl.DataFrame, listener: Listener | None) -> None:
        attempt = ended.attempt
        metric, labels = self._problem.metric, self._problem.valid_y
        assert attempt.scores is not None  # noqa: S101  (the problem has validation rows)
        assert labels is not None  # noqa: S101
        value = metric.prepare(labels, attempt.scores)(None)
        gain = value if metric.greater_is_better else -value
        entry: dict[str, Json] = {
            "candidate": algorithm.name,
            "params": dict(attempt.params),
            "rounds": attempt.rounds,
            "metric": metric.name,
            "value": value,
            "finished": attempt.finished,
            "seconds": ended.seconds,
        }
        best = self._best.get(algorithm.name)
        eligible = True
        if self._settings.latency_ms is not None and (best is None or gain > best.gain):
            entry["latency_ms"] = _row_latency_ms(attempt.build(), judged)
            eligible = entry["eligible"] = entry["latency_ms"] <= self._settings.latency_ms
        self._entries.append((gain if eligible else -np.inf, entry))
        if eligible and (best is None or gain > best.gain):
            self._best[algorithm.name] = _Trial(algorithm, attempt, value, gain, entry)
        if listener is not None:
            listener(dict(entry))
        self._report_progress()

    def _report_progress(self, now: str = "") -> None:
        """Report the progress of the search to the surrounding pipeline step."""
        leader = self._leader()
        count = len(self._entries)
        parts = [f"{count} {'trial' if count == 1 else 'trials'}"]
        if leader is not None:
            parts.append(f"best {self._problem.metric.name} {leader.value:.4g} ({leader.algorithm.name})")
        if self._trials.running:
            parts.append(f"{self._trials.running} on the cluster")
        elif now:
            parts.append(f"now {now}")
        progress(round(self.elapsed(), 1), self._settings.budget_s, note=", ".join(parts), unit="s of the budget")

    def _leader(self) -> _Trial | None:
        return max(self._best.values(), key=lambda trial: trial.gain, default=None)

    def _leader_seconds(self) -> float:
        leader = self._leader()
        return leader.attempt.seconds + leader.algorithm.setup_s if leader is not None else 0.0

    def _is_late(self) -> bool:
        # With so little time left, a trial would be stopped before it has a useful result.
        return self._time_left() < 0.03 * self._settings.budget_s

    def _time_left(self) -> float:
        """Return the seconds until the search must stop to leave time for the final fit."""
        return self._end() - self._growth * self._leader_seconds() - perf_counter()

    def _end(self) -> float:
        """Return when the search would have to stop if the final fit took no time."""
        return self._started + 0.97 * self._settings.budget_s - self._overhead

    def _error_between(self, a: _Trial, b: _Trial) -> float:
        """Return the standard error of the difference of two trials on the validation rows."""
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
    recipe: Recipe | None,
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
    missing = [classes[k] for k in range(len(classes)) if not (problem.y == k).any()]
    if missing:
        raise TrainingError(
            f"The training rows have no '{target}' of {missing[0]!r}, but the validation rows do.",
            help="Train on a longer period, or draw validation rows at random.",
        )
    if len(np.unique(problem.valid_y)) < 2:
        raise TrainingError(
            f"The {len(problem.valid_y)} validation rows have one '{target}' only, so they cannot judge a model.",
            help="Hold out a longer period, or draw validation rows at random.",
        )


def _row_latency_ms(model: Model, judged: pl.DataFrame) -> float:
    """Return the 99th percentile of the time to predict one row, in milliseconds."""
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
        raise TrainingError(
            f"The validation rows have no column '{absent[0]}'.",
            help="Split one prepared table, so that both parts have the same columns.",
        )
    return pl.concat([rows, judged.select(rows.columns)], how="vertical_relaxed")


def _threads(cells: int) -> int:
    """Return how many threads a matrix of this many cells justifies.

    For a small matrix, threads mostly wait for each other. On a machine with other load, each round may then wait for a
    time slice of another process, which can make fitting a hundred times slower.
    """
    # A container or a scheduler may allow fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, cells // CELLS_A_THREAD))
