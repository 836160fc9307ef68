"""Inputs of steps as plain JSON: references, stored values, plain values, and lists and dicts that hold them.

{"ref": "split", "output": "train"}    {"stored": {"type": "frame", "digest": …}}     {"value": "[1,2]"}
{"outputs": {"train": {…}, …}}         {"list": [{…}, …]}   {"tuple": [{…}, …]}       {"dict": [[{…}, {…}], …]}
{"held": "pkg.Class"}                  a value that is not plain data and has not been stored
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from everloop.errors import CorruptionError, StepError
from everloop.pipeline.artifacts import Stored, UnkeepableError, keep_value
from everloop.pipeline.artifacts.json import decode, encode
from everloop.pipeline.graph import Ref
from everloop.pipeline.job import StoredInput, StoredOutputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Json
    from everloop.stores import ContentStore


def encode_inputs(inputs: Mapping[str, Any], step: str, objects: ContentStore | None) -> dict[str, Json]:
    """Encode the inputs of a step.

    Args:
        step: name of the step, for errors.
        objects: stores values that are not plain data. Without it, only their class is written.

    Raises:
        StepError: a value can neither be written as JSON nor be stored.
    """
    return {name: _encode(value, step, name, objects) for name, value in inputs.items()}


def decode_inputs(inputs: Mapping[str, Json]) -> dict[str, Any]:
    """The inverse of `encode_inputs`. Values that were stored come back as `StoredInput`.

    Raises:
        CorruptionError: the data is not an encoded input, or one of its values was not stored.
    """
    return {name: _decode(value) for name, value in inputs.items()}


def _encode(value: Any, step: str, name: str, objects: ContentStore | None) -> Json:
    if isinstance(value, Ref):
        return {"ref": value.node, "output": value.output}
    if isinstance(value, StoredInput):
        return {"stored": asdict(value.stored)}
    if isinstance(value, StoredOutputs):
        return {"outputs": {key: asdict(stored) for key, stored in value.outputs.items()}}
    try:
        return {"value": encode(value)}
    except UnkeepableError:
        pass  # not plain data as a whole; its parts may be
    if type(value) in (list, tuple):
        return {type(value).__name__: [_encode(item, step, name, objects) for item in value]}
    if type(value) is dict:
        return {
            "dict": [
                [_encode(key, step, name, objects), _encode(item, step, name, objects)] for key, item in value.items()
            ]
        }
    if objects is None:
        kind = type(value)
        return {"held": f"{kind.__module__}.{kind.__qualname__}"}
    try:
        return {"stored": asdict(keep_value(value, objects))}
    except UnkeepableError as error:
        raise StepError(
            f"The parameter '{name}' of step '{step}' cannot be sent to another process: {error}.",
            help="Pass plain values, a frame or an object that can be pickled, or build the value inside the step.",
        ) from error


def _decode(data: Json) -> Any:
    try:
        found = cast("dict[str, Any]", data)
        (tag, value), *_ = found.items()
        match tag:
            case "ref":
                return Ref(value, found["output"])
            case "stored":
                return StoredInput(Stored(**value))
            case "outputs":
                return StoredOutputs({key: Stored(**stored) for key, stored in value.items()})
            case "value":
                return decode(value)
            case "list":
                return [_decode(item) for item in value]
            case "tuple":
                return tuple(_decode(item) for item in value)
            case "dict":
                return {_decode(key): _decode(item) for key, item in value}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptionError(f"This is not the input of a step: {error}.", help="Compile the plan again.") from error
    raise CorruptionError(
        f"The input {data!r} has no value that can be read.",
        help="Compile the plan with a store: compile_plan(graph, store).",
    )
