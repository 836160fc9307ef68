"""The built-in steps of a life cycle, from a prepared table to a release, and how a loop wires them.

Each is an ordinary pipeline step: cached by its inputs, resumable, explained. Those that register or release
return the key of what they made, and make nothing twice. None of them depends on who is champion, so a turn that
finds nothing new does nothing.

    user's steps → snapshot → split → train → evaluate → package → register → judge → release
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.pipeline import Graph, current_step, progress, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.loop.loop_definition import Loop
    from everloop.pipeline import Step, StepContext
    from everloop.training import AutoTrain, Trained

STAGES = ("snapshot", "split", "train", "evaluate", "package", "register", "judge", "release")


def graph_of(loop: Loop) -> Graph:
    """The whole life cycle as one graph.

    Raises:
        GraphError: a step of the user's is called like a stage, or needs what nothing provides.
        UsageError: `data` or `train` is not what it should be.
    """
    from everloop.data.contracts.project_contracts import declared_contract
    from everloop.pipeline import Step
    from everloop.training import AutoTrain

    dataset = loop.data
    if not isinstance(dataset.source, Step):
        raise UsageError(
            f"The dataset of loop '{loop.name}' comes from {dataset.source!r}, which is no step.",
            help="Put @el.step above the function and name it: el.Dataset(prepare, target=…)",
        )
    graph = Graph.wire([dataset.source], name=loop.name)
    table = dataset.name or loop.name
    roles = {"target": dataset.target, "time": dataset.time, "key": dataset.key}
    features = {"features": dataset.features, "exclude": dataset.exclude}
    taken = graph.add(
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
        inputs={"snapshot": taken, **roles, "holdout": dataset.holdout, "gap": dataset.labels_after},
    )
    if isinstance(loop.train, AutoTrain):
        options = {field.name: getattr(loop.train, field.name) for field in fields(loop.train)}
        search = {"train": parts["train"], "valid": parts["valid"], **roles, **features, **options}
        trained = graph.add(train, inputs=search)
    elif isinstance(loop.train, Step):
        fitted = _add_user_step(graph, loop.train, parts)
        inputs = {"fitted": fitted, "train": parts["train"], **roles, **features}
        trained = graph.add(adopt, name="train", inputs=inputs)
    else:
        raise UsageError(
            f"Loop '{loop.name}' trains with {loop.train!r}.",
            help="Give el.AutoTrain(...) or a step that fits a model.",
        )
    metric = loop.training_metric
    judged = graph.add(
        evaluate,
        inputs={"trained": trained, "test": parts["test"], "target": dataset.target, "metric": metric,
                "slices": _slices_of(loop)},
    )  # fmt: skip
    packed = graph.add(
        package,
        inputs={"trained": trained, "train": parts["train"], "snapshot": taken, "evaluation": judged},
    )
    version = graph.add(
        register,
        inputs={"package": packed, "model": loop.model, "snapshot": taken, "evaluation": judged, "trained": trained,
                "train": parts["train"], "valid": parts["valid"], "test": parts["test"], "target": dataset.target,
                "time": dataset.time, "metric": loop.live_metric},
    )  # fmt: skip
    answers = graph.add(
        judge,
        inputs={"version": version, "test": parts["test"], "target": dataset.target, "key": dataset.key,
                "metric": metric, "gates": tuple(loop.gates)},
    )  # fmt: skip
    if loop.serve is not None:
        steps = loop.serve.rollout.percents if loop.serve.rollout else (100.0,)
        graph.add(
            release, inputs={"version": version, "judged": answers, "endpoint": loop.serve.name, "percents": steps}
        )
    return graph


@step
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
    """Check the table against its contract and keep it; returns the snapshot's key.

    Args:
        purpose: what later stages will ask of the table, so that an hour of training is not spent before they fail.
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
    snapshot: str, target: str, time: str | None, key: str | None, holdout: float | str, gap: str | None
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Divide the snapshot: the model learns from the first part, is chosen on the second, judged on the last."""
    from everloop.data import load_snapshot, split as divide

    rows = load_snapshot(snapshot, _here().store).collect()
    parts = divide(rows, time=time, holdout=holdout, gap=gap, key=key, target=target)
    return parts.train, parts.valid, parts.test


@step
def train(
    train: pl.DataFrame,
    valid: pl.DataFrame,
    target: str,
    time: str | None,
    key: str | None,
    features: Sequence[str] | None,
    exclude: Sequence[str],
    **options: Any,
) -> Trained:
    """Search for the best model within the budget."""
    from everloop.training import AutoTrain

    auto: AutoTrain = AutoTrain(**options)
    names = _feature_names(train, target, time, key, features, exclude)
    found = auto.fit(train.select(*names, target), valid.select(*names, target), target=target, features=names)
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
) -> Trained:
    """Take in what the user's own step has fitted."""
    from everloop.training import Trained, adopt as take_in

    if isinstance(fitted, Trained):
        return fitted
    names = _feature_names(train, target, time, key, features, exclude)
    return take_in(fitted, train.select(*names, target), target)


@step
def evaluate(
    trained: Trained, test: pl.DataFrame, target: str, metric: str | None, slices: Sequence[str]
) -> dict[str, Any]:
    """Measure the model on rows that it has never seen.

    Args:
        metric: the one that decides; None takes the model's own, which is the usual one of its task.
    """
    from everloop.training import evaluate as measure

    found = measure(trained, test, target, task=trained.task, metric=metric, slices=slices).to_dict()
    numbers = {name: value["value"] for name, value in found["metrics"].items() if value["value"] is not None}
    _here().log(numbers)
    return found


@step
def package(trained: Trained, train: pl.DataFrame, snapshot: str, evaluation: dict[str, Any]) -> str:
    """Pack the model and prove the packed form equal; returns the package's digest."""
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


@step
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
    """Give the package its version number, and keep what its life will be compared with; returns the key.

    Args:
        metric: the one that is watched live; None takes the one that decided the evaluation.
    """
    import polars as pl

    from everloop.monitoring import build_baseline, keep_baseline
    from everloop.records import Run
    from everloop.registry import register as enter
    from everloop.training import encode_target

    here = _here()
    run = here.store.records.get(Run, here.run)
    version = enter(
        here.store,
        model,
        package,
        run=here.run,
        snapshot=snapshot,
        evaluation=evaluation,
        code=run.source.code,
    )
    scores, places = trained.answer_frame(test)
    if trained.task == "multiclass":
        answered = [pl.Series("score", scores.max(axis=1)), pl.Series("scores", scores.tolist())]
    else:
        answered = [pl.Series("score", scores)]
    if places is not None:
        answered.append(pl.Series("predicted", places))
    truth = pl.Series("actual", encode_target(test[target], trained.task, trained.classes))
    when = [time] if time is not None else []
    scored = test.select(when).with_columns(*answered, truth) if when else pl.DataFrame([*answered, truth])
    inputs = list(trained.features)
    known = pl.concat([train, valid]).select(*inputs, *when)
    baseline = build_baseline(known, inputs, time=time, scored=scored, metric=metric or evaluation["metric"])
    keep_baseline(here.store, version.key, baseline)
    return version.key


@step
def judge(
    version: str, test: pl.DataFrame, target: str, key: str | None, metric: str | None, gates: tuple[Any, ...]
) -> list[str]:
    """Put every gate's question; returns the ids of the answers."""
    from everloop.loop.champions import deciding_metric, find_rival
    from everloop.loop.declarations import NotWorseThan
    from everloop.loop.gates import Trial, judge as ask
    from everloop.records import GateResult
    from everloop.registry import find_alias, get_version, load_model
    from everloop.training import encode_target

    here = _here()
    candidate = get_version(here.store, version)
    predictor = load_model(here.store, version)
    truth = encode_target(test[target], predictor.task, list(predictor.classes))
    answers = predictor.answer_frame(test)
    champions = {}
    for alias in dict.fromkeys(gate.alias for gate in gates if isinstance(gate, NotWorseThan)):
        holder = find_alias(here.store, candidate.model, alias)
        if holder is not None and holder.version != version:
            known = get_version(here.store, holder.version)
            champions[alias] = find_rival(here.store, known, predictor, test, truth, answers, target=target, key=key)
    trial = Trial(
        rows=test,
        truth=truth,
        scores=answers.scores,
        champions=champions,
        metric=metric or deciding_metric(candidate),
        task=predictor.task,
        predict=predictor.predict,
        features=predictor.input_names,
        places=answers.places,
    )
    results = []
    for gate in gates:
        answer = ask(gate, trial)
        results.append(
            here.store.new(
                GateResult,
                gate=gate.name,
                outcome=answer.outcome,
                candidate=version,
                champion=answer.evidence.get("champion"),
                message=answer.message,
                evidence=answer.evidence,
                run=here.run,
            )
        )
    if results:
        here.store.records.put(*results, verb="judged")
    return [result.id for result in results]


@step
def release(version: str, judged: list[str], endpoint: str, percents: tuple[float, ...]) -> dict[str, Any]:
    """Reject the candidate, or start it on its way to the endpoint's traffic."""
    from everloop.loop.rollout import start_release
    from everloop.records import GateResult, Release, Run
    from everloop.registry import get_version

    here = _here()
    begun = here.store.records.find(Release, ("candidate", "=", version), order="-created_at", limit=1)
    if begun and begun[0].state in ("rolling_out", "completed"):
        return {"release": begun[0].id, "state": begun[0].state}
    run = here.store.records.get(Run, here.run)
    gates = [here.store.records.get(GateResult, answer) for answer in judged]
    candidate = get_version(here.store, version)
    made = start_release(
        here.store, endpoint, candidate, steps=percents, gates=gates, trigger=run.trigger, run=here.run
    )
    return {"release": made.id, "state": made.state}


def _here() -> StepContext:
    here = current_step()
    if here is None:
        raise UsageError("This step works only inside a run.", help="Run it with: everloop run")
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


def _purpose_of(loop: Loop) -> dict[str, Any]:
    from everloop.loop.declarations import NotWorseThan, Performance
    from everloop.training import AutoTrain

    automatic = isinstance(loop.train, AutoTrain)
    parts = [*loop.gates, *(part for part in loop.watch if isinstance(part, Performance))]
    named = [getattr(loop.train, "metric", None), *(getattr(part, "metric", None) for part in parts)]
    aliases = [gate.alias for gate in loop.gates if isinstance(gate, NotWorseThan)]
    return {
        "model": loop.model,
        "aliases": list(dict.fromkeys([*(["champion"] if loop.serve else []), *aliases])),
        "automatic": automatic,
        "task": getattr(loop.train, "task", None) if automatic else None,
        "metrics": list(dict.fromkeys(metric for metric in named if isinstance(metric, str))),
        "columns": list(_slices_of(loop)),
    }


def _slices_of(loop: Loop) -> tuple[str, ...]:
    from everloop.loop.declarations import Slices

    return tuple(dict.fromkeys(gate.column for gate in loop.gates if isinstance(gate, Slices)))


def _add_user_step(graph: Graph, training: Step[..., Any], parts: Any) -> Any:
    """The user's training step with what it asks for: parts of the split, and steps beside it."""
    upstream = Graph.wire([training], given=dict.fromkeys(("train", "valid", "test")))
    for name, node in upstream.nodes.items():
        if name == training.name or name in graph.nodes:
            continue
        graph.add(node.step, name=name, inputs=node.inputs)
    given = {name: parts[name] for name in ("train", "valid", "test") if name in training.signature.parameters}
    others = {name: value for name, value in upstream.nodes[training.name].inputs.items() if name not in given}
    return graph.add(training, inputs={**others, **given})
