"""Routes for runs: create, update, get, delete, restore, and log inputs and outputs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError
from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, invalid, moment_at, not_found
from everloop.integrations.mlflow.tracking_api.experiment_routes import active_experiment
from everloop.integrations.mlflow.tracking_api.handler_context import LARGE_BODY, HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_length, check_tag
from everloop.integrations.mlflow.tracking_api.serializers import STATE_OF, record_id, run_info, run_out, wire_id
from everloop.records import Json, Run, Source
from everloop.stores import new_id
from everloop.tracking import recover_journals, series_of

if TYPE_CHECKING:
    from everloop.stores import Store

NAME_TAG = "mlflow.runName"
PARENT_TAG = "mlflow.parentRunId"
_RECOVERY_WAIT_S = 0.2  # other requests wait meanwhile
_STATUS_NUMBERS = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
_FIRST = ("amber", "brisk", "calm", "eager", "gentle", "hardy", "jolly", "keen", "lucid", "merry", "noble", "rapid")
_SECOND = ("bee", "crane", "doe", "elk", "finch", "gull", "hare", "jay", "kite", "lark", "mole", "newt", "owl")


def create_run(context: HandlerContext) -> Mapping[str, Any]:
    run = new_run(context)
    context.store.records.put(run, verb="started")
    context.metric_buffer.started(context.store, run.id)
    return {"run": run_out(run)}


def new_run(context: HandlerContext) -> Run:
    """Return a new run from a request's fields. It is not stored yet."""
    fields, store = context.fields, context.store
    experiment = active_experiment(store, fields.text("experiment_id", required=False))
    tags = fields.pairs("tags")
    for index, (key, value) in enumerate(list(tags.items())):
        tags[key] = check_tag(key, value, f"tags[{index}]")
    named, tagged = fields.text("run_name", required=False), tags.get(NAME_TAG, "")
    if named and tagged and named != tagged:
        raise MlflowError(
            "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values"
            f" (run_name='{named}', mlflow.runName='{tagged}')."
        )
    name = named or tagged or f"{random.choice(_FIRST)}-{random.choice(_SECOND)}-{random.randrange(1000)}"  # noqa: S311
    tags[NAME_TAG] = tagged or name
    now = store.now()
    started = fields.integer("start_time", 0)
    identity = new_id(now)
    return Run(
        id=identity,
        project=store.project,
        created_at=now,
        name=name,
        experiment=str(experiment.number),
        started_at=moment_at("start_time", started) if fields.has("start_time") else now,
        tags=tags,
        parent=_parent(tags),
        user=fields.text("user_id", required=False),
        trigger="mlflow",
        artifacts_at=f"{experiment.artifacts_at.rstrip('/')}/{wire_id(identity)}/artifacts",
        source=_source(tags),
    )


def get_run(context: HandlerContext) -> Mapping[str, Any]:
    name = context.fields.run_id()
    recover_journals(context.store, within_s=_RECOVERY_WAIT_S)
    try:
        return {"run": run_out(context.metric_buffer.current(context.store, record_id(name)))}
    except NotFoundError:
        raise _no_run(name) from None


def update_run(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    name = fields.run_id()
    state = _state(fields)
    ended = moment_at("end_time", fields.integer("end_time")) if fields.has("end_time") else None
    new_name = fields.text("run_name", required=False)
    if new_name:
        check_length("run_name", 8000, new_name)
    with context.store.records.transaction(*run_parts(name)):
        run = active_run(context.store, name)
        changed = context.metric_buffer.merged(context.store, run)
        if state is not None:
            changed = replace(changed, state=state)
        if ended is not None:
            seconds = max((ended - run.started_at).total_seconds(), 0.0)
            changed = replace(changed, ended_at=ended, seconds=seconds)
        if new_name:
            changed = replace(changed, name=new_name, tags={**changed.tags, NAME_TAG: new_name})
        if changed != run:
            verb = changed.state if changed.state != run.state else "updated"
            changed = context.store.records.update(changed, verb=verb)[0]
    return {"run_info": run_info(changed)}


def delete_run(context: HandlerContext) -> Mapping[str, Any]:
    return _set_archived(context, True)


def restore_run(context: HandlerContext) -> Mapping[str, Any]:
    return _set_archived(context, False)


def log_inputs(context: HandlerContext) -> Mapping[str, Any]:
    name = context.fields.run_id()
    entries: list[dict[str, Json]] = [{"dataset": _dataset(item)} for item in context.fields.objects("datasets")]
    entries += [{"model_input": {"model_id": item.text("model_id")}} for item in context.fields.objects("models")]
    _add_inputs(context, name, entries)
    return {}


def log_outputs(context: HandlerContext) -> Mapping[str, Any]:
    name = context.fields.run_id()
    models = context.fields.objects("models", required=True)
    _add_inputs(
        context,
        name,
        [{"model_output": {"model_id": m.text("model_id"), "step": m.integer("step", 0)}} for m in models],
    )
    return {}


def find_run(store: Store, name: str) -> Run:
    """Return the run with this MLflow id, deleted or not."""
    try:
        return store.records.get(Run, record_id(name))
    except NotFoundError:
        raise _no_run(name) from None


def active_run(store: Store, name: str) -> Run:
    run = find_run(store, name)
    if run.archived_at is not None:
        raise MlflowError(f"The run {name} must be in the 'active' state. Current state is deleted.")
    return run


def run_parts(name: str) -> tuple[str, ...]:
    """The parts of a transaction that reads and writes only the run with this MLflow id, and its metrics.

    Then clients that log to different runs do not wait for each other.
    """
    found = record_id(name)
    return found, series_of(found)


def _no_run(name: str) -> MlflowError:
    return not_found(f"Run with id={name} not found")


def _state(fields: Fields) -> Any:
    value = fields.raw("status")
    if value is None:
        return None
    text = _STATUS_NUMBERS.get(value, "") if isinstance(value, int) else str(value)
    if text not in STATE_OF:
        raise invalid("status", value, f"It must be one of {', '.join(STATE_OF)}.")
    return STATE_OF[text]


def _set_archived(context: HandlerContext, archived: bool) -> Mapping[str, Any]:
    name = context.fields.run_id()
    with context.store.records.transaction(*run_parts(name)):
        run = find_run(context.store, name)
        if (run.archived_at is not None) != archived:
            changed = replace(
                context.metric_buffer.merged(context.store, run), archived_at=context.store.now() if archived else None
            )
            context.store.records.update(changed, verb="archived" if archived else "unarchived")
    return {}


def _parent(tags: Mapping[str, str]) -> str | None:
    parent = tags.get(PARENT_TAG)
    return record_id(parent) if parent else None


def _source(tags: Mapping[str, str]) -> Source:
    # The client's name of the source stays a tag: it is not a command that could be run again.
    return Source(git_commit=tags.get("mlflow.source.git.commit"))


def _dataset(item: Fields) -> dict[str, Json]:
    value = item.raw("dataset")
    if not isinstance(value, dict):
        raise MlflowError("Dataset input must have a dataset associated with it.")
    fields = Fields(value)
    dataset: dict[str, Json] = {}
    for name, most in (("name", 500), ("digest", 36), ("source_type", 8000), ("source", 65_535)):
        dataset[name] = fields.text(name)
        check_length(name, most, dataset[name])
    for name, most in (("schema", 1_048_575), ("profile", 16_777_215)):
        if value := fields.text(name, required=False):
            check_length(name, most, value)
            dataset[name] = value
    tags = []
    for tag in item.objects("tags"):
        key, value = tag.text("key"), tag.text("value", required=False)
        check_length("key", 255, key)
        check_length("value", 500, value)
        tags.append({"key": key, "value": value})
    return {"tags": tags, "dataset": dataset} if tags else {"dataset": dataset}


def _add_inputs(context: HandlerContext, name: str, entries: list[dict[str, Json]]) -> None:
    with context.store.records.transaction(*run_parts(name)):
        run = active_run(context.store, name)
        known = dict(zip(_identities(run.inputs), run.inputs, strict=True))
        new = [
            e for identity, e in reversed([*zip(_identities(entries), entries, strict=True)]) if identity not in known
        ]
        new = list(dict(zip(_identities(new), new, strict=True)).values())[::-1]
        if new:
            context.store.records.update(replace(run, inputs=(*run.inputs, *new)), verb="inputs_logged")


def _identities(entries: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the identity of each entry, to find repeated ones, as a request may arrive twice."""
    for entry in entries:
        for kind, value in entry.items():
            if kind == "dataset":
                yield kind, value["dataset"]["name"], value["dataset"]["digest"]
            else:
                yield kind, value["model_id"], value.get("step")


ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/runs/create", create_run, "write"),
    HandlerRoute("POST", "2.0/mlflow/runs/update", update_run, "write"),
    HandlerRoute("GET", "2.0/mlflow/runs/get", get_run, "read"),
    HandlerRoute("POST", "2.0/mlflow/runs/delete", delete_run, "delete"),
    HandlerRoute("POST", "2.0/mlflow/runs/restore", restore_run, "write"),
    HandlerRoute("POST", "2.0/mlflow/runs/log-inputs", log_inputs, "write", body_bytes=LARGE_BODY),
    HandlerRoute("POST", "2.0/mlflow/runs/outputs", log_outputs, "write"),
)
