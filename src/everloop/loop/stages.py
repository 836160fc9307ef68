"""The built-in steps of a loop, from a prepared table to a release, and the graph that connects them.

    user's steps → snapshot → split → train → evaluate → package → register → judge → release

Each stage is an ordinary pipeline step: it is cached by its inputs, can be resumed and explains why it runs. The stages
that register and release return the key of the record that they created, and never create it twice. No cache key
depends on the current champion, so a run without new data or code does nothing.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from everloop.errors import TrainingError, UsageError
from everloop.pipeline import Graph, current_step, progress, step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import polars as pl

    from everloop.loop.loop_definition import Loop
    from everloop.pipeline import Step, StepContext
    from everloop.stores import Store
    from everloop.training import AutoTrain, Trained
    from everloop.training.warm_start import WarmStart

_WEIGHTS = {"weight", "sample_weight"}
"""Parameters of a training step that receive the weights of its rows."""
STAGES = ("snapshot", "split", "train", "evaluate", "package", "register", "judge", "release")


def graph_of(loop: Loop) -> Graph:
    """Build the graph of all steps of a loop.

    Raises:
        GraphError: a step of the user has the name of a stage, or an input that no step provides.
        UsageError: `data` or `train` of the loop is not of an accepted kind.
    """
    from everloop.data.contracts.project_contracts import declared_contract
    from everloop.pipeline import Step
    from everloop.training import AutoTrain

    dataset = loop.data
    if not isinstance(dataset.source, Step):
        raise UsageError(
            f"The dataset of loop '{loop.name}' comes from {dataset.source!r}, which is not a step.",
            help="Put @el.step above the function and pass the step: el.Dataset(prepare, target=…)",
        )
    graph = Graph.wire([dataset.source], name=loop.name)
    table = dataset.name or loop.name
    roles = {"target": dataset.target, "time": dataset.time, "key": dataset.key}
    features = {"features": dataset.features, "exclude": dataset.exclude}
    snapshot_key = graph.add(
        snapshot,
        inputs={
            "table": dataset.source,
            "dataset": table,
            **roles,
            **features,
            "contract": declared_contract(dataset.contract),
            "purpose": _purpose_of(loop),
        },
    )
    parts = graph.add(
        split,
        inputs={
            "snapshot": snapshot_key,
            **roles,
            "holdout": dataset.holdout,
            "gap": dataset.labels_after,
            "window": dataset.window,
        },
    )
    if isinstance(loop.train, AutoTrain):
        options = {field.name: getattr(loop.train, field.name) for field in fields(loop.train)}
        options["positive"] = loop.positive
        search = {"train": parts["train"], "valid": parts["valid"], **roles, **features}
        search |= {"half_life": dataset.half_life, "model": loop.model, **options}
        trained = graph.add(train, inputs=search)
    elif isinstance(loop.train, Step):
        weights = dict.fromkeys(_WEIGHTS & set(loop.train.signature.parameters)) if dataset.half_life else {}
        if weights:
            weighed = graph.add(
                weigh, inputs={"train": parts["train"], "time": dataset.time, "half_life": dataset.half_life}
            )
            weights = dict.fromkeys(weights, weighed)
        fitted = _add_user_step(graph, loop.train, parts, weights)
        inputs = {"fitted": fitted, "train": parts["train"], **roles, **features, "positive": loop.positive}
        trained = graph.add(adopt, name="train", inputs=inputs)
    else:
        raise UsageError(
            f"Loop '{loop.name}' cannot train with {loop.train!r}.",
            help="Pass train=el.AutoTrain(...), or a step that returns a fitted model.",
        )
    metric = loop.training_metric
    evaluation = graph.add(
        evaluate,
        inputs={"trained": trained, "test": parts["test"], "target": dataset.target, "metric": metric,
                "slices": _slices_of(loop)},
    )  # fmt: skip
    packed = graph.add(
        package,
        inputs={"trained": trained, "train": parts["train"], "snapshot": snapshot_key, "evaluation": evaluation},
    )
    version = graph.add(
        register,
        inputs={"package": packed, "model": loop.model, "snapshot": snapshot_key, "evaluation": evaluation,
                "trained": trained, "train": parts["train"], "valid": parts["valid"], "test": parts["test"],
                "target": dataset.target, "time": dataset.time, "metric": loop.live_metric},
    )  # fmt: skip
    gate_results = graph.add(
        judge,
        inputs={"version": version, "test": parts["test"], "train": parts["train"], "target": dataset.target,
                "key": dataset.key, "time": dataset.time, "metric": metric, "gates": tuple(loop.gates)},
    )  # fmt: skip
    if loop.serve is not None:
        steps = loop.serve.rollout.percents if loop.serve.rollout else (100.0,)
        graph.add(
            release, inputs={"version": version, "judged": gate_results, "endpoint": loop.serve.name, "percents": steps}
        )
    return graph


@step(on_driver=True)
def snapshot(
    table: pl.DataFrame,
    dataset: str,
    target: str,
    time: str | None,
    key: str | None,
    features: Sequence[str] | None,
    exclude: Sequence[str],
    contract: str | None,
    purpose: dict[str, Any] | None = None,
) -> str:
    """Check the table against its contract and store it as a snapshot; returns the snapshot's key.

    Args:
        purpose: what later stages require of the table, so that problems show up before training; see `check_purpose`.
    """
    from everloop.data import take_snapshot
    from everloop.data.contracts.project_contracts import labelled_rows, passing_rows
    from everloop.loop.suitability import check_purpose

    here = _here()
    wanted = [*(features or ()), *(name for name in (time, key) if name is not None), *exclude]
    known = labelled_rows(table, dataset, target, wanted)
    check_purpose(here.store, known, target, purpose or {})
    rows, checked = passing_rows(
        here.store, known, dataset, target=target, time=time, key=key, declared=contract, run=here.run
    )
    taken = take_snapshot(
        rows, dataset, here.store, target=target, time=time, key=key, run=here.run, contract=checked.key
    )
    return taken.key


@step(outputs=("train", "valid", "test"))
def split(
    snapshot: str,
    target: str,
    time: str | None,
    key: str | None,
    holdout: float | str,
    gap: str | None,
    window: str | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Split the snapshot into rows for training, for model selection and for the final evaluation."""
    from everloop.data import load_snapshot, split as divide

    here = _here()
    rows = load_snapshot(snapshot, here.store).collect()
    parts = divide(rows, time=time, holdout=holdout, gap=gap, window=window, key=key, target=target)
    if window is not None:
        here.log({"rows_in_window": parts.train.height, "rows_before_window": parts.old.height})
    return parts.train, parts.valid, parts.test


@step
def weigh(train: pl.DataFrame, time: str, half_life: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the weights of the training rows, by their age."""
    from everloop.data.splits import row_weights

    return row_weights(train[time], half_life).to_numpy()


@step
def train(
    train: pl.DataFrame,
    valid: pl.DataFrame,
    target: str,
    time: str | None,
    key: str | None,
    features: Sequence[str] | None,
    exclude: Sequence[str],
    half_life: str | None = None,
    model: str = "",
    **options: Any,
) -> Trained:
    """Search for the best model within the budget.

    Args:
        half_life: the age at which a row counts half as much.
        model: name of the model in the registry, whose champion a warm start continues.
    """
    import polars as pl

    from everloop.data.splits import row_weights
    from everloop.training import AutoTrain

    auto: AutoTrain = AutoTrain(**options)
    names = _feature_names(train, target, time, key, features, exclude)
    weight = None
    tables = [train.select(*names, target), valid.select(*names, target)]
    if half_life is not None and time is not None:
        weight = _free_name("weight", tables[0].columns)
        weights = row_weights(pl.concat([train[time], valid[time]]), half_life)
        parts = (weights.head(train.height), weights.tail(valid.height))
        tables = [rows.with_columns(part.alias(weight)) for rows, part in zip(tables, parts, strict=True)]
    start = _champion_of(_here().store, model) if auto.warm_start else None
    found = auto.fit(*tables, target=target, features=names, weight=weight, start=start)
    _here().log({"train_rows": train.height, "valid_rows": valid.height, "trials": len(found.leaderboard)})
    return found


@step
def adopt(
    fitted: Any,
    train: pl.DataFrame,
    target: str,
    time: str | None,
    key: str | None,
    features: Sequence[str] | None,
    exclude: Sequence[str],
    positive: bool | int | float | str | None = None,
) -> Trained:
    """Wrap the model that a training step of the user has fitted."""
    from everloop.packages.formats.plain_function import Function
    from everloop.registry.saving import describe, is_estimator
    from everloop.training import Trained, adopt as adopt_model
    from everloop.training.targets import check_positive

    if isinstance(fitted, Trained):
        if positive is not None and check_positive(positive, target, fitted.task, fitted.classes) == 0:
            raise TrainingError(
                f"Dataset(positive={positive!r}), but the training step returns a model whose scores are about"
                f" {fitted.classes[1]!r}.",
                help=f"Pass positive={positive!r} to its AutoTrain as well.",
            )
        return fitted
    names = _feature_names(train, target, time, key, features, exclude)
    if not is_estimator(fitted):
        trained, rows = describe(fitted, train.select(names), y=train[target])
        if positive is not None and check_positive(positive, target, trained.task, trained.classes) == 0:
            raise TrainingError(
                f"Dataset(positive={positive!r}), but the scores of a {type(fitted).__name__} are about"
                f" {trained.classes[1]!r}, the later of the two classes.",
                help="Encode the target in the data step, so that the positive class is the later one: false and true.",
            )
        return replace(trained, best={"candidate": type(fitted).__name__}, rows={"train": rows.height, "valid": 0})
    if callable(fitted) and not isinstance(fitted, type) and not hasattr(fitted, "predict"):
        fitted = Function(fitted)
    return adopt_model(fitted, train.select(*names, target), target, positive=positive)


@step
def evaluate(
    trained: Trained, test: pl.DataFrame, target: str, metric: str | None, slices: Sequence[str]
) -> dict[str, Any]:
    """Measure the model on rows that it has never seen.

    Args:
        metric: the metric that decides. None takes the model's metric, which is the default for its task.
    """
    from everloop.training import evaluate as measure

    found = measure(trained, test, target, task=trained.task, metric=metric, slices=slices).to_dict()
    numbers = {name: value["value"] for name, value in found["metrics"].items() if value["value"] is not None}
    _here().log(numbers)
    return found


@step(on_driver=True)
def package(trained: Trained, train: pl.DataFrame, snapshot: str, evaluation: dict[str, Any]) -> str:
    """Package the model and verify that the package gives the same predictions; returns the package's digest."""
    from everloop.packages import build_package

    here = _here()
    built = build_package(
        trained,
        store=here.store,
        sample=train,
        snapshot=snapshot,
        evaluation=evaluation,
        progress=lambda at: progress(at.done, at.total, note=at.stage),
    )
    return built.digest


@step(on_driver=True)
def register(
    package: str,
    model: str,
    snapshot: str,
    evaluation: dict[str, Any],
    trained: Trained,
    train: pl.DataFrame,
    valid: pl.DataFrame,
    test: pl.DataFrame,
    target: str,
    time: str | None,
    metric: str | None,
) -> str:
    """Register the package as a new version and store its monitoring baseline; returns the version's key.

    Args:
        metric: the metric that is monitored live. None takes the metric that decided the evaluation.
    """
    import polars as pl

    from everloop.loop.unwatched_runs import baselines_wanted
    from everloop.monitoring import build_baseline, keep_baseline
    from everloop.records import Run
    from everloop.registry import register as register_version
    from everloop.training import encode_target

    here = _here()
    run = here.store.records.get(Run, here.run)
    version = register_version(
        here.store,
        model,
        package,
        run=here.run,
        snapshot=snapshot,
        evaluation=evaluation,
        code=run.source.code,
    )
    if not baselines_wanted():
        return version.key
    scores, places = trained.answer_frame(test)
    if trained.task == "multiclass":
        columns = [pl.Series("score", scores.max(axis=1)), pl.Series("scores", scores.tolist())]
    else:
        columns = [pl.Series("score", scores)]
    if places is not None:
        columns.append(pl.Series("predicted", places))
    columns.append(pl.Series("actual", encode_target(test[target], trained.task, trained.classes)))
    times = [time] if time is not None else []
    scored = test.select(times).with_columns(*columns) if times else pl.DataFrame(columns)
    inputs = list(trained.features)
    # The held-out rows belong to the reference of the inputs: they are the newest rows that are known to be right.
    reference = pl.concat([train, valid, test]).select(*inputs, *times)
    baseline = build_baseline(
        reference,
        inputs,
        time=time,
        scored=scored,
        scored_inputs=test.select(inputs),
        metric=metric or evaluation["metric"],
    )
    keep_baseline(here.store, version.key, baseline)
    return version.key


@step(on_driver=True)
def judge(
    version: str,
    test: pl.DataFrame,
    train: pl.DataFrame,
    target: str,
    key: str | None,
    time: str | None,
    metric: str | None,
    gates: tuple[Any, ...],
) -> list[str]:
    """Check the candidate's gates; returns the ids of the gate results."""
    from everloop.loop.gates.gate_checks import context_for, judge_all
    from everloop.registry import get_version

    here = _here()
    if not gates:
        return []
    candidate = get_version(here.store, version)
    context = context_for(
        here.store, candidate, test, target=target, key=key, time=time, metric=metric, training_rows=train
    )
    results = judge_all(gates, context, run=here.run)
    here.store.records.put(*results, verb="judged")
    return [result.id for result in results]


@step(on_driver=True)
def release(version: str, judged: list[str], endpoint: str, percents: tuple[float, ...]) -> dict[str, Any]:
    """Reject the candidate, or start its rollout at the endpoint."""
    from everloop.loop.releases.rollout import start_release
    from everloop.records import GateResult, Release, Run
    from everloop.registry import get_version

    here = _here()
    existing = here.store.records.find(Release, ("candidate", "=", version), order="-created_at", limit=1)
    if existing and existing[0].state in ("rolling_out", "completed"):
        return {"release": existing[0].id, "state": existing[0].state}
    run = here.store.records.get(Run, here.run)
    gates = [here.store.records.get(GateResult, result) for result in judged]
    candidate = get_version(here.store, version)
    started = start_release(
        here.store, endpoint, candidate, steps=percents, gates=gates, trigger=run.trigger, run=here.run
    )
    return {"release": started.id, "state": started.state}


def _here() -> StepContext:
    here = current_step()
    if here is None:
        raise UsageError("This step works only in a run of a loop.", help="Start one with: everloop run")
    return here


def _feature_names(
    table: pl.DataFrame,
    target: str,
    time: str | None,
    key: str | None,
    features: Sequence[str] | None,
    exclude: Sequence[str],
) -> list[str]:
    if features is not None:
        return list(features)
    others = {target, time, key, *exclude}
    return [name for name in table.columns if name not in others]


def _champion_of(store: Store, model: str) -> WarmStart | None:
    """Return the champion's model in the form in which it was trained; None if there is no champion with a package."""
    from everloop.packages.package import read_package
    from everloop.packages.package_manifest import MODEL_FOLDER
    from everloop.registry import find_alias, get_version
    from everloop.training.trained_model import model_from_files
    from everloop.training.warm_start import WarmStart

    holder = find_alias(store, model, "champion")
    version = get_version(store, holder.version) if holder is not None else None
    if version is None or not version.package:
        return None
    manifest, files = read_package(store, version.package)
    inner = {name.removeprefix(MODEL_FOLDER): data for name, data in files.items() if name.startswith(MODEL_FOLDER)}
    classes = manifest.read_signature().classes
    return WarmStart(model=model_from_files(manifest.format, inner), classes=classes, name=version.key)


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"_{name}"
    return name


def _purpose_of(loop: Loop) -> dict[str, Any]:
    from everloop.loop.watches.watch_declarations import Performance
    from everloop.training import AutoTrain
    from everloop.training.metric_tasks import METRIC_TASKS

    automatic = isinstance(loop.train, AutoTrain)
    parts = [*loop.gates, *(part for part in loop.watch if isinstance(part, Performance))]
    metrics = [getattr(loop.train, "metric", None), *(getattr(part, "metric", None) for part in parts)]
    aliases = [alias for gate in loop.gates if isinstance(alias := getattr(gate, "alias", None), str)]
    columns = [
        (type(gate).__name__, column)
        for gate in loop.gates
        if isinstance(column := getattr(gate, "column", None), str) and column not in _slices_of(loop)
    ]
    return {
        "model": loop.model,
        "aliases": list(dict.fromkeys([*(["champion"] if loop.serve else []), *aliases])),
        "automatic": automatic,
        "task": getattr(loop.train, "task", None) if automatic else None,
        **({} if loop.positive is None else {"positive": loop.positive}),
        "metrics": list(dict.fromkeys(one for one in metrics if isinstance(one, str) and one in METRIC_TASKS)),
        "columns": list(_slices_of(loop)),
        **({"gate_columns": list(dict.fromkeys(columns))} if columns else {}),
    }


def _slices_of(loop: Loop) -> tuple[str, ...]:
    from everloop.loop.gates.gate_declarations import Slices

    return tuple(dict.fromkeys(gate.column for gate in loop.gates if isinstance(gate, Slices)))


def _add_user_step(graph: Graph, training: Step[..., Any], parts: Any, weights: Mapping[str, Any]) -> Any:
    """Add a training step of the user with its inputs: parts of the split, weights, and other steps of the user."""
    upstream = Graph.wire([training], given=dict.fromkeys(("train", "valid", "test", *weights)))
    for name, node in upstream.nodes.items():
        if name == training.name or name in graph.nodes:
            continue
        graph.add(node.step, name=name, inputs=node.inputs)
    split_parts = {name: parts[name] for name in ("train", "valid", "test") if name in training.signature.parameters}
    given = {**split_parts, **weights}
    others = {name: value for name, value in upstream.nodes[training.name].inputs.items() if name not in given}
    return graph.add(training, inputs={**others, **given})
