"""Values of pipeline parameters: types, conversion, and their form as text in commands and files.

Source of the rules: kubeflow/pipelines, `ParameterType.ParameterTypeEnum` of pipeline_spec.proto; numbers travel as
doubles, lists and structs as JSON.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError

if TYPE_CHECKING:
    from everloop.integrations.kubeflow.pipeline_spec import Spec
    from everloop.records import Json

_OLD_TYPES = {"INT": "NUMBER_INTEGER", "DOUBLE": "NUMBER_DOUBLE", "STRING": "STRING"}
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def type_of(definition: Spec) -> str:
    """The type of a parameter, such as `NUMBER_INTEGER`; files of old versions name it otherwise."""
    written = definition.get("parameterType") or _OLD_TYPES.get(str(definition.get("type")), "STRING")
    return str(written)


def is_optional(definition: Spec) -> bool:
    return bool(definition.get("isOptional")) or "defaultValue" in definition


def convert(value: Json, kind: str, what: str) -> Json:
    """A value as the type `kind`. Text is parsed; None stays None.

    Args:
        what: names the parameter in an error.

    Raises:
        UsageError: the value does not fit the type.
    """
    if value is None:
        return None
    try:
        return _CONVERSIONS.get(kind, _same)(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(
            f"{what} takes {_NAMES.get(kind, kind)}, not {value!r}.", help="Pass a value of that type."
        ) from error


def as_text(value: Json) -> str:
    """A value as it appears in a command: text unchanged, everything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value)


def _same(value: Json) -> Json:
    return value


def _integer(value: Json) -> int:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        value = float(text) if any(mark in text for mark in ".eE") else int(text)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(value)
        return int(value)
    if not isinstance(value, int):
        raise TypeError(value)
    return value


def _double(value: Json) -> float | int:
    if isinstance(value, str):
        value = float(value.strip())
    if not isinstance(value, int | float):
        raise TypeError(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return value if isinstance(value, float) else float(value)


def _boolean(value: Json) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower() if not isinstance(value, float) else str(int(value))
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(value)


def _string(value: Json) -> str:
    return as_text(value)


def _list(value: Json) -> list[Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list | tuple):
        raise TypeError(value)
    return list(value)


def _struct(value: Json) -> Any:
    if isinstance(value, str):
        value = json.loads(value)
    # A task's final status and structs written by hand may be any JSON object, and lists of lists.
    if not isinstance(value, dict | list):
        raise TypeError(value)
    return value


_CONVERSIONS = {
    "NUMBER_INTEGER": _integer,
    "NUMBER_DOUBLE": _double,
    "BOOLEAN": _boolean,
    "STRING": _string,
    "LIST": _list,
    "STRUCT": _struct,
    "TASK_FINAL_STATUS": _struct,
}
_NAMES = {
    "NUMBER_INTEGER": "an integer",
    "NUMBER_DOUBLE": "a finite number",
    "BOOLEAN": "true or false",
    "STRING": "text",
    "LIST": "a list",
    "STRUCT": "a mapping",
    "TASK_FINAL_STATUS": "the status of a task",
}
