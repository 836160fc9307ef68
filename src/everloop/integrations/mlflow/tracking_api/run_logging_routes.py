"""Routes that log metrics, parameters and tags to a run, one by one or in a batch.

A client that got no response repeats its request, so every write may arrive twice. Equal parameters and tags change
nothing, and a point that was logged recently is not logged again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from everloop.integrations.mlflow.tracking_api.codec import (
    Fields,
    MlflowError,
    invalid,
    missing,
    moment_at,
    ms_of,
    not_found,
    real,
    whole,
)
from everloop.integrations.mlflow.tracking_api.handler_context import LARGE_BODY, HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.logged_model_routes import find_logged_model
from everloop.integrations.mlflow.tracking_api.name_rules import (
    BATCH_BYTES,
    LONGEST_MODEL_TAG,
    METRICS_PER_BATCH,
    PARAMS_PER_BATCH,
    check_length,
    check_metric,
    check_param,
    check_tag,
)
from everloop.integrations.mlflow.tracking_api.run_routes import NAME_TAG, active_run, run_parts
from everloop.integrations.mlflow.tracking_api.serializers import param_text
from everloop.records import Json, LoggedModel, Point, Run
from everloop.tracking import series_of

MODELS_TAG = "mlflow.log-model.history"


def log_metric(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    name, key = fields.run_id(), fields.text("key")
    value, at_ms = fields.number("value"), fields.integer("timestamp", required=True)
    step, model = fields.integer("step", 0), fields.text("model_id", required=False)
    check_metric(key)
    point = Point(key=key, value=value, step=step, at=_moment("timestamp", at_ms, key, value))
    run = active_run(context.store, name)
    with context.store.records.transaction(*(() if model else run_parts(name))):
        if model:
            _log_to_models(context, run, [(model, point, fields)])
        _append(context, run, [point])
    context.metric_buffer.add(context.store, run, [point])
    return {}


def log_param(context: HandlerContext) -> Mapping[str, Any]:
    name, key = context.fields.run_id(), context.fields.text("key")
    value = check_param(key, context.fields.text("value", required=False))
    with context.store.records.transaction(*run_parts(name)):
        run = active_run(context.store, name)
        if key not in run.params:
            context.store.records.update(replace(run, params={**run.params, key: value}), verb="logged")
        elif (old := param_text(run.params[key])) != value:
            raise MlflowError(
                f"Changing param values is not allowed. Param with key='{key}' was already logged with value='{old}'"
                f" for run ID='{name}'. Attempted logging new value '{value}'."
            )
    return {}


def set_tag(context: HandlerContext) -> Mapping[str, Any]:
    name, key = context.fields.run_id(), context.fields.text("key")
    value = check_tag(key, context.fields.text("value", required=False))
    with context.store.records.transaction(*run_parts(name)):
        run = active_run(context.store, name)
        changed = with_tags(run, {key: value})
        if changed != run:
            context.store.records.update(changed, verb="tagged")
    return {}


def delete_tag(context: HandlerContext) -> Mapping[str, Any]:
    name, key = context.fields.run_id(), context.fields.text("key")
    with context.store.records.transaction(*run_parts(name)):
        run = active_run(context.store, name)
        if key not in run.tags:
            raise not_found(f"No tag with name: {key} in run with id {name}")
        left = {tag: value for tag, value in run.tags.items() if tag != key}
        context.store.records.update(replace(run, tags=left), verb="tagged")
    return {}


def log_batch(context: HandlerContext) -> Mapping[str, Any]:
    if context.size_bytes > BATCH_BYTES:
        raise MlflowError(
            f"Batched logging API requests must be at most {BATCH_BYTES} bytes, got a request of size"
            f" {context.size_bytes}."
        )
    fields = context.fields
    name = fields.run_id()
    metrics, params, tags = fields.rows("metrics"), fields.rows("params"), fields.rows("tags")
    points = _points(metrics)
    new_params = [_pair("params", index, item) for index, item in enumerate(params)]
    new_tags = [_pair("tags", index, item) for index, item in enumerate(tags)]
    new_params = [(key, check_param(key, value, f"params[{i}]")) for i, (key, value) in enumerate(new_params)]
    new_tags = [(key, check_tag(key, value, f"tags[{i}]")) for i, (key, value) in enumerate(new_tags)]
    _check_limits(len(points), len(new_params), len(new_tags))
    duplicates = _duplicates([key for key, _ in new_params])
    if duplicates:
        raise MlflowError(
            f"Duplicate parameter keys have been submitted: {duplicates}. Please ensure the request contains only one"
            " param value per param key."
        )
    measured = [
        (str(item["model_id"]), point, Fields(item))
        for item, point in zip(metrics, points, strict=True)
        if item.get("model_id")
    ]
    with context.store.records.transaction(*(() if measured else run_parts(name))):
        run = active_run(context.store, name)
        changed = with_tags(_with_params(run, dict(new_params), name), dict(new_tags))
        if measured:
            _log_to_models(context, run, measured)
        if points:
            _append(context, run, points)
        if changed != run:
            context.store.records.update(changed, verb="logged")
    if points:
        context.metric_buffer.add(context.store, run, points)
    return {}


def log_model(context: HandlerContext) -> Mapping[str, Any]:
    """Record a run's model in the older way: its description is appended to a tag."""
    name, text = context.fields.run_id(), context.fields.text("model_json")
    try:
        model = json.loads(text)
    except (ValueError, RecursionError):
        raise MlflowError(f"Malformed model info. \n {text[:1000]} \n is not a valid JSON.") from None
    lacking = {"artifact_path", "flavors", "utc_time_created", "run_id"} - set(model if isinstance(model, dict) else ())
    if lacking:
        raise MlflowError(f"Model json is missing mandatory fields: {lacking}")
    with context.store.records.transaction(*run_parts(name)):
        run = active_run(context.store, name)
        try:
            known = json.loads(run.tags.get(MODELS_TAG, "[]"))
        except ValueError:
            known = []
        if model not in known:
            history = json.dumps([*known, model])
            check_length("value", LONGEST_MODEL_TAG, history)
            context.store.records.update(with_tags(run, {MODELS_TAG: history}), verb="logged")
    return {}


def with_tags(run: Run, tags: Mapping[str, str]) -> Run:
    """Return the run with more tags. The tag `mlflow.runName` also sets its name."""
    if all(run.tags.get(key) == value for key, value in tags.items()):
        return run
    name = tags.get(NAME_TAG) or run.name
    return replace(run, name=name, tags={**run.tags, **tags})


def _with_params(run: Run, params: Mapping[str, str], name: str) -> Run:
    new: dict[str, Json] = {}
    changed = []
    for key, value in params.items():
        if key not in run.params:
            new[key] = value
        elif (old := param_text(run.params[key])) != value:
            changed.append({"key": key, "old_value": old, "new_value": value})
    if changed:
        raise MlflowError(
            f"Changing param values is not allowed. Params were already logged='{changed}' for run ID='{name}'."
        )
    return replace(run, params={**run.params, **new}) if new else run


def _append(context: HandlerContext, run: Run, points: Sequence[Point]) -> None:
    fresh = context.metric_buffer.fresh(run.id, points)
    if not fresh:
        return
    try:
        context.store.records.append_points(series_of(run.id), fresh)
    except BaseException:
        context.metric_buffer.forget(run.id, fresh)
        raise


def _points(metrics: Sequence[Any]) -> list[Point]:
    """Parse the points of a batch. Names and times repeat a lot, so each is checked only once."""
    keys: set[str] = set()
    moments: dict[int, datetime] = {}
    points = []
    for index, item in enumerate(metrics):
        if not isinstance(item, dict):
            raise MlflowError(f"Invalid value for parameter 'metrics[{index}]' supplied: it is not an object.")
        key, value, at, step = item.get("key"), item.get("value"), item.get("timestamp"), item.get("step", 0)
        if not (key and at) or value is None or value == "":
            for name, field_value in (("key", key), ("value", value), ("timestamp", at)):
                if field_value is None or field_value == "":
                    raise missing(f"metrics[{index}].{name}")
        if type(key) is not str:
            raise MlflowError(f"Invalid value for parameter 'metrics[{index}].key' supplied: it is not a string.")
        if key not in keys:
            check_metric(key, f"metrics[{index}]")
            keys.add(key)
        number = value if type(value) is float else real(f"metrics[{index}].value", value)
        at_ms = at if type(at) is int else whole(f"metrics[{index}].timestamp", at)
        if type(step) is not int or not -(1 << 63) <= step < 1 << 63:
            step = whole(f"metrics[{index}].step", step)
        moment = moments.get(at_ms)
        if moment is None:
            moment = moments[at_ms] = _moment(f"metrics[{index}].timestamp", at_ms, key, number)
        points.append(Point(key=key, value=number, step=step, at=moment))
    return points


def _moment(name: str, at_ms: int, key: str, value: float) -> datetime:
    if at_ms < 0:
        raise invalid(
            name, at_ms, f"metric '{key}' (value={value}). Timestamp must be a nonnegative long (64-bit integer) "
        )
    return moment_at(name, at_ms)


def _pair(what: str, index: int, item: Any) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise MlflowError(f"Invalid value for parameter '{what}[{index}]' supplied: it is not an object.")
    key, value = item.get("key"), item.get("value")
    if key is None or key == "":
        raise missing(f"{what}[{index}].key")
    if not isinstance(key, str) or not isinstance(value, str | None):
        raise MlflowError(f"Invalid value for parameter '{what}[{index}]' supplied: key and value must be strings.")
    return key, value or ""


def _check_limits(metrics: int, params: int, tags: int) -> None:
    for what, most, count in (
        ("metrics", METRICS_PER_BATCH, metrics),
        ("params", PARAMS_PER_BATCH, params),
        ("tags", PARAMS_PER_BATCH, tags),
        ("metrics, params, and tags", METRICS_PER_BATCH, metrics + params + tags),
    ):
        if count > most:
            raise MlflowError(
                f"A batch logging request can contain at most {most} {what}. Got {count} {what}. Please split up"
                f" {what} across multiple requests and try again."
            )


def _duplicates(keys: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    duplicates = []
    for key in keys:
        if key in seen:
            duplicates.append(key)
        seen.add(key)
    return duplicates


def _log_to_models(context: HandlerContext, run: Run, measured: Sequence[tuple[str, Point, Fields]]) -> None:
    """Store metrics with the logged models that they belong to, each once."""
    changed: dict[str, LoggedModel] = {}
    for name, point, fields in measured:
        model = changed.get(name) or find_logged_model(context.store, name)
        metric: dict[str, Json] = {
            "key": point.key,
            "value": point.value,
            "step": point.step,
            "at": ms_of(point.at),
            "run_id": run.id.replace("-", ""),
            "dataset_name": fields.text("dataset_name", required=False),
            "dataset_digest": fields.text("dataset_digest", required=False),
        }
        if metric not in model.metrics:
            changed[name] = replace(model, metrics=(*model.metrics, metric))
    if changed:
        context.store.records.update(*changed.values(), verb="logged")


ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/runs/log-metric", log_metric, "write"),
    HandlerRoute("POST", "2.0/mlflow/runs/log-parameter", log_param, "write"),
    HandlerRoute("POST", "2.0/mlflow/runs/set-tag", set_tag, "write"),
    HandlerRoute("POST", "2.0/mlflow/runs/delete-tag", delete_tag, "write"),
    HandlerRoute("POST", "2.0/mlflow/runs/log-batch", log_batch, "write", body_bytes=LARGE_BODY),
    HandlerRoute("POST", "2.0/mlflow/runs/log-model", log_model, "write"),
)
