"""Rules for names and values of MLflow's API, and their length limits. The error messages are MLflow's."""

from __future__ import annotations

import posixpath
import re

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, invalid

LONGEST_KEY = 250
LONGEST_PARAM = 6000
LONGEST_TAG = 8000
LONGEST_EXPERIMENT_TAG = 20_000
LONGEST_MODEL_TAG = 100_000
LONGEST_EXPERIMENT = 500
LONGEST_ALIAS = 255
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
BATCH_BYTES = 1_000_000

_PLAIN = re.compile(r"[/\w.\- :]*")
_GOOD = re.compile(r"\w+")
"""Most names are a single word, which needs no further check."""
_CHARACTERS = (
    "Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ), colon(:) "
    "and slashes (/)."
)


def check_key(name: str, path: str = "key") -> None:
    """Check the name of a parameter, tag or metric; `path` names the field in errors."""
    if len(name) <= LONGEST_KEY and _GOOD.fullmatch(name):
        return
    if not _PLAIN.fullmatch(name):
        raise invalid(path, name, _CHARACTERS)
    normal = posixpath.normpath(name)
    if normal != name or normal == "." or normal.startswith(("..", "/")):
        raise invalid(path, name, _as_path(normal))


def check_length(what: str, limit: int, value: str) -> None:
    if len(value) > limit:
        raise MlflowError(f"'{what}' exceeds the maximum length of {limit} characters")


def check_param(key: str, value: str, path: str = "") -> str:
    """Return the value as it is stored: cut if it is too long."""
    check_key(key, _below(path, "key"))
    check_length("Param key", LONGEST_KEY, key)
    return value[:LONGEST_PARAM]


def check_tag(key: str, value: str, path: str = "") -> str:
    check_key(key, _below(path, "key"))
    check_length(_below(path, "key"), LONGEST_KEY, key)
    return value[:LONGEST_TAG]


def check_metric(key: str, path: str = "") -> None:
    check_key(key, _below(path, "name"))
    check_length("Metric name", LONGEST_KEY, key)


def check_experiment_tag(key: str, value: str) -> None:
    check_key(key)
    check_length("key", LONGEST_KEY, key)
    check_length("value", LONGEST_EXPERIMENT_TAG, value)


def check_model_tag(key: str, value: str) -> None:
    check_key(key)
    check_length("key", LONGEST_KEY, key)
    check_length("value", LONGEST_MODEL_TAG, value)


def check_experiment(name: str) -> None:
    check_length("name", LONGEST_EXPERIMENT, name)
    _check_storable("name", name)


def check_model(name: str, field: str = "name") -> None:
    """Check a registered model's name.

    In addition to MLflow's rules, it may not have an `@`, which separates a name from its version.
    """
    if not name.strip():
        raise MlflowError(f"Missing value for required parameter '{field}'.")
    if any(character in name for character in "/:"):
        raise MlflowError(f"Invalid model name '{name}'. Names cannot contain '/' or ':'.")
    normal = posixpath.normpath(name)
    if normal != name or normal.startswith(".."):
        raise invalid("name", name, _as_path(normal))
    if "@" in name or len(name) > 256:
        raise invalid("name", name[:300], "Names may have at most 256 characters and no '@'.")
    _check_storable("name", name)


def check_alias(alias: str) -> None:
    if not re.fullmatch(r"[\w\-]*", alias):
        raise MlflowError(
            f"Invalid alias name: '{alias}'. Names may only contain alphanumerics, underscores (_), and dashes (-)."
        )
    check_length("Registered model alias name", LONGEST_ALIAS, alias)


def check_alias_free(alias: str) -> None:
    if alias.lower() == "latest":
        raise MlflowError("'latest' alias name (case insensitive) is reserved.")
    if re.fullmatch(r"[vV]\d+", alias):
        raise MlflowError(f"Version alias name '{alias}' is reserved.")


def version_number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise MlflowError(f"Parameter 'version' must be an integer, got '{text}'.") from None
    return number if abs(number) < 1 << 62 else -1


def _check_storable(name: str, value: str) -> None:
    if "\0" in value:
        raise invalid(name, value, "It has a NUL character.")


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _as_path(normal: str) -> str:
    return (
        "Names may be treated as files in certain cases, and must not resolve to other names when treated as such."
        f" This name would resolve to {normal!r}"
    )
