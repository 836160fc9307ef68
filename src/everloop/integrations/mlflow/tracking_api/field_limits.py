"""Length limits of the fields of MLflow's API, by name: strings in characters, lists in elements.

They are checked where a field is read, so that no route can forget one. Lower limits that MLflow itself has are checked
by the routes, with MLflow's messages (`name_rules.py`). MLflow's own clients stay far below all of these limits.
"""

from __future__ import annotations

from collections.abc import Mapping

LONGEST_TEXT = 10_000
"""Characters of a field that is not listed below."""
LONGEST_ELEMENT = 1_000
"""Characters of one string in a list that is not listed below."""
MOST_ELEMENTS = 10_000
"""Elements of a list that is not listed below."""

LONGEST_ID = 500
"""The lowest limit of a field. Shorter strings need no look-up."""
_TEXT, _FILTER, _FILE = 1_000_000, 100_000, 17_000_000

TEXTS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "experiment_id", "run_id", "run_uuid", "model_id", "trace_id", "request_id", "source_run_id", "upload_id",
            "assessment_id", "client_request_id", "version", "stage", "status", "state", "action", "entity", "what",
            "aggregation_type", "metric_name", "view_type", "field_name", "model_type", "request_time",
            "execution_duration", "operationName", "etag", "dataset_digest", "digest",
        ),
        LONGEST_ID,
    ),
    "user_id": 1_000,
    "secret": 1_000,
    "url": 4_000,
    "run_name": 8_000,
    **dict.fromkeys(("filter", "filter_string", "filter_string1", "filter_string2", "base_filter"), _FILTER),
    "query": 100_000,
    "source": 70_000,
    "description": 200_000,
    # Tags and parameters have lower limits of their own; prompts and scorers are written by people.
    **dict.fromkeys(
        (
            "value", "model_json", "model_input", "model_output", "serialized_scorer", "request_preview",
            "response_preview",
        ),
        _TEXT,
    ),
    "inputs": _FILE,
    "records": _FILE,
    # Schema and statistics of a dataset.
    **dict.fromkeys(("schema", "profile"), _FILE),
}  # fmt: skip
"""Characters of a string, by field."""

LISTS: Mapping[str, int] = {
    "order_by": 100,
    "dimensions": 20,
    "aggregations": 50,
    "filters": 100,
    "stages": 100,
    "events": 200,
    "parts": 10_000,
    # Lower limits of a batch are checked with MLflow's messages.
    **dict.fromkeys(("metrics", "params", "tags"), 100_000),
}
"""Elements of a list, by field."""

ELEMENTS: Mapping[str, int] = {
    "filters": _FILTER,
    "stages": LONGEST_ID,
    **dict.fromkeys(
        ("experiment_ids", "run_id", "run_ids", "trace_ids", "request_ids", "dataset_record_ids"), LONGEST_ID
    ),
}
"""Characters of one string in a list, by field."""


def most_characters(name: str) -> int:
    return TEXTS.get(name, LONGEST_TEXT)


def most_elements(name: str) -> int:
    return LISTS.get(name, MOST_ELEMENTS)


def most_characters_each(name: str) -> int:
    return ELEMENTS.get(name, LONGEST_ELEMENT)
