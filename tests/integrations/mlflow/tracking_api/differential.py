"""Puts the same requests to two servers and says where their answers differ, ids and times left aside."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_TIMES = {
    "creation_time", "last_update_time", "creation_timestamp", "last_updated_timestamp", "creation_timestamp_ms",
    "last_updated_timestamp_ms", "next_page_token", "created_time", "create_time", "digest_of_time",
}  # fmt: skip
_INNER = {"mlflow.trace.infoFinalized", "mlflow.linkedPrompts"}
"""What one of the two keeps for itself, and the other shows with the metadata and tags of a trace."""
_LEFT_OUT = {"workspace", "sqlstate", "error_class", *_INNER}
_SAID_FURTHER = (
    # What follows is the database's own error, or a set in no order.
    re.compile(r"(already exists\.) Error: .*", re.DOTALL),
    re.compile(r"(Valid keys are):? .*", re.DOTALL),
    re.compile(r"(not one of) .*", re.DOTALL),
    re.compile(r"(Valid values are) .*", re.DOTALL),
    re.compile(r"(must be one of) .*", re.DOTALL),
    re.compile(r"(Invalid page token, ).*", re.DOTALL),
    # The library's own words, which change with its release.
    re.compile(r"(Variable '\$\w+') .*", re.DOTALL),
    # The variable that raises MLflow's limit is none of ours.
    re.compile(r"(got \d+ (?:root fields|aliases)\.) To increase .*", re.DOTALL),
)
_ANY_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def compare(ours: Any, theirs: Any, steps: Sequence[Any]) -> list[str]:
    """One text for each step whose answers differ."""
    known: tuple[dict[str, str], dict[str, str]] = ({}, {})
    found = []
    for number, (method, path, fields, save) in enumerate(steps):
        answers = []
        for caller, names in zip((ours, theirs), known, strict=True):
            got = _asked(caller, method, _filled(path, names), _filled(fields, names), names)
            body = json.loads(got.body) if got.body.strip().startswith(b"{") else got.body.decode(errors="replace")
            if save is not None and got.status == 200:
                value = body
                for part in save[1].split("."):
                    value = value.get(part) or {}
                names[save[0]] = value if isinstance(value, str) else "none"
            answers.append((got.status, normalised(body, {v: f"<{k}>" for k, v in names.items() if len(v) > 20})))
        if answers[0] != answers[1]:
            asked = json.dumps(fields)[:160]
            found.append(f"{number} {method} {path} {asked}\n    ours:   {answers[0]}\n    theirs: {answers[1]}")
    return found


def _asked(caller: Any, method: str, path: str, fields: Any, names: dict[str, str]) -> Any:
    if method != "SPANS":
        return caller.call(method, path, fields)
    body = json.dumps(fields).encode()
    return caller.send("POST", path, body, content_type="application/json", x_mlflow_experiment_id=names["exp"])


def normalised(value: Any, names: dict[str, str]) -> Any:
    """A value without what may differ: ids by their roles, times by their kind, lists of pairs by key."""
    match value:
        case dict():
            if "dataset_id" in value and "digest" in value:
                # That of an evaluation dataset is made of the time.
                value = {("digest_of_time" if key == "digest" else key): item for key, item in value.items()}
            if isinstance(value.get("records"), str):
                # Rows of one request come in no order.
                rows = sorted(json.loads(value["records"]), key=lambda row: json.dumps(row["inputs"], sort_keys=True))
                value = {**value, "records": rows}
            if "current_stage" in value:
                # We name a version's logged model and aliases wherever it is shown; MLflow only in some places.
                value = {key: item for key, item in value.items() if key not in ("aliases", "model_id")}
            shown = {
                key: "<time>" if key in _TIMES else normalised(item, names)
                for key, item in value.items()
                # Protobuf leaves out what was never set; an empty value says the same.
                if key not in _LEFT_OUT and item not in ("", [], {}, None)
            }
            return {key: item for key, item in shown.items() if item not in ("", [], {}, None)}
        case list():
            known = [item for item in value if not (isinstance(item, dict) and item.get("key") in _INNER)]
            shown_items = [normalised(item, names) for item in known]
            if shown_items and all(isinstance(item, dict) and "key" in item for item in shown_items):
                keys = {item["key"] for item in shown_items}
                if len(keys) == len(shown_items):
                    return sorted(shown_items, key=lambda item: item["key"])
            stages = {item.get("current_stage") for item in shown_items if isinstance(item, dict)}
            if None not in stages and len(stages) == len(shown_items) > 0:
                # The newest versions of several stages come in no order.
                return sorted(shown_items, key=lambda item: item["current_stage"])
            return shown_items
        case str():
            for text, name in names.items():
                value = value.replace(text, name)
            for pattern in _SAID_FURTHER:
                value = pattern.sub(r"\1", value)
            return _ANY_ID.sub("<id>", value)
    return value


def _filled(value: Any, names: dict[str, str]) -> Any:
    match value:
        case str():
            for name, known in names.items():
                value = value.replace("{" + name + "}", known)
            return value
        case list():
            return [_filled(item, names) for item in value]
        case dict():
            return {key: _filled(item, names) for key, item in value.items()}
    return value
