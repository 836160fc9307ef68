"""Route runs/create-promptlab-run: stores one response of a language model as a run with a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from everloop.errors import EverloopError
from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, mistyped
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_param
from everloop.integrations.mlflow.tracking_api.run_routes import new_run
from everloop.integrations.mlflow.tracking_api.serializers import artifact_uri, run_out
from everloop.stores import new_id

TABLE = "eval_results_table.json"
_REQUIRED = ("experiment_id", "prompt_template", "prompt_parameters", "model_route", "model_input", "mlflow_version")
_TAGS = {
    "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
    "mlflow.runSourceType": "PROMPT_ENGINEERING",
}


def create_promptlab_run(context: HandlerContext) -> Mapping[str, Any]:
    """Create a finished run with the prompt as parameters. If its table cannot be stored, the run has failed."""
    fields = context.fields
    for name in _REQUIRED:
        if not fields.raw(name):
            raise MlflowError(f"CreatePromptlabRun request must specify {name}.")
    params = _pairs(fields, "model_parameters")
    params |= {name: fields.text(name) for name in ("model_route", "prompt_template")}
    params = {key: check_param(key, value) for key, value in params.items()}
    table = json.dumps(_table(fields)).encode()
    store, run = context.store, new_run(context)
    run = replace(run, user=run.user or "unknown", params=params, tags={**run.tags, **_TAGS})
    with store.records.transaction():
        store.records.put(run, verb="started")
    stored = _store_table(context, artifact_uri(run), table)
    ended = max(store.now(), run.started_at)
    run = replace(
        run,
        state="finished" if stored else "failed",
        ended_at=ended,
        seconds=(ended - run.started_at).total_seconds(),
    )
    return {"run": run_out(store.records.update(run, verb=run.state)[0])}


def _table(fields: Fields) -> dict[str, Any]:
    cells: list[tuple[str, Any]] = [
        *_pairs(fields, "prompt_parameters").items(),
        ("prompt", fields.text("model_input")),
        ("output", fields.text("model_output", required=False)),
        *_pairs(fields, "model_output_parameters").items(),
    ]
    return {"columns": [name for name, _ in cells], "data": [[value for _, value in cells]]}


def _pairs(fields: Fields, name: str) -> dict[str, str]:
    """Return values, which the page sends as strings, numbers or booleans, as strings."""
    found = {}
    for item in fields.objects(name):
        value = item.raw("value")
        if not isinstance(value, str | int | float | None):
            raise mistyped(name, value)
        found[item.text("key")] = "" if value is None else str(value)
    return found


def _store_table(context: HandlerContext, uri: str, table: bytes) -> bool:
    try:
        folder, path = context.artifacts.find(uri, TABLE)
        draft = folder.drafts() / new_id(context.store.now())
        try:
            draft.write_bytes(table)
            folder.keep(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except (EverloopError, OSError):
        return False
    return True


ROUTES = (HandlerRoute("POST", "2.0/mlflow/runs/create-promptlab-run", create_promptlab_run, "write", slow=True),)
