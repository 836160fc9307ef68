"""The cache key of a step, made of parts that can be told apart, and the words for what differs.

code:helpers.LIMIT   digest     package:polars   version     version   what @step(version=…) says
input:flights        digest     param:budget_s   digest      outputs   names of several outputs
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from everloop.pipeline.artifacts import Stored, UnkeepableError, keep_value
from everloop.pipeline.code.code_dependencies import UNTOLD
from everloop.pipeline.code.object_inspection import unwrapped
from everloop.pipeline.code.step_code import Code, code_of
from everloop.pipeline.job import Bundle, Kept
from everloop.pipeline.value_digests import UndigestibleError, digest_text, digest_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from everloop.pipeline.graph import Node
    from everloop.stores import ContentStore

FIRST_RUN = "first run"
FORCED = "forced"
CACHED = "cached"
NOT_CACHED = "not cached"
MISSING = "artifact missing"
NOTHING_CHANGED = "no former result"

_SHOWN = 3
_GROUPS = (("code:", "code changed"), ("param:", "parameter changed"), ("input:", "input changed"))


def parts_of(
    node: Node, inputs: Mapping[str, Any], objects: ContentStore, *, code: Code | None = None
) -> dict[str, str]:
    """The parts of a fingerprint.

    Args:
        inputs: parameter to value, with `Kept` and `Bundle` for what comes from other steps.
        objects: keeps parameters that are no plain values, such as frames, to know them by their content.
    """
    code = code or code_of(node.step.function)
    parts = {f"code:{name}": digest for name, digest in code.parts.items()}
    parts |= {f"package:{name}": version for name, version in code.packages.items()}
    for name, value in inputs.items():
        kept = any(True for _ in kept_in(value))
        parts[f"{'input' if kept else 'param'}:{name}"] = _digest(value, objects)
    if node.step.version is not None:
        parts["version"] = node.step.version
    if node.step.outputs and not node.mapped:
        parts["outputs"] = ", ".join(node.step.outputs)
    return parts


def fingerprint(parts: Mapping[str, str]) -> str:
    """`fp:` and 32 hex digits. The order of the parts is no part of it."""
    return f"fp:{digest_text(*(text for name in sorted(parts) for text in (name, parts[name])))}"


def input_digests(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Input to content digest; of an input that holds several, each with its place behind the name."""
    found: dict[str, str] = {}
    for name, value in inputs.items():
        for place, stored in kept_in(value):
            found[f"{name}{place}"] = stored.digest
    return found


def reason(parts: Mapping[str, str], before: Mapping[str, str] | None, home: str) -> str:
    """Why a step has to run: what differs from the last time.

    Args:
        before: the parts of the step's last run; None if there was none.
        home: the step's own module, left out of the names of its code.
    """
    if before is None:
        return FIRST_RUN
    told: list[str] = []
    for prefix, words in _GROUPS:
        changed = [name for name in parts if name.startswith(prefix) and name in before and parts[name] != before[name]]
        # What was added or dropped follows from a change somewhere; alone, it is the news.
        added = [
            name for name in {**parts, **before} if name.startswith(prefix) and (name in parts) != (name in before)
        ]
        names = [name.removeprefix(prefix).removeprefix(f"{home}.") for name in changed or added]
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            told.append(f"{words}: {', '.join(names[:_SHOWN])}{more}")
    told += _package_changes(parts, before)
    if parts.get("version") != before.get("version"):
        told.append(f"version changed: {before.get('version', 'none')} → {parts.get('version', 'none')}")
    if parts.get("outputs") != before.get("outputs"):
        told.append("outputs changed")
    return "; ".join(told) or NOTHING_CHANGED


def _package_changes(parts: Mapping[str, str], before: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({name for name in (*parts, *before) if name.startswith("package:")}):
        old, new = before.get(name), parts.get(name)
        package = name.removeprefix("package:")
        if old is not None and new is not None and old != new:
            yield f"package changed: {package} {old} → {new}"
    # A package that is newly used, or no longer, is so because code has changed, which is said already.


def kept_in(value: Any, place: str = "") -> Iterator[tuple[str, Stored]]:
    """Every stored value inside an input, with its place."""
    if isinstance(value, Kept):
        yield place, value.stored
    elif isinstance(value, Bundle):
        for name, stored in value.outputs.items():
            yield f"{place}.{name}", stored
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            yield from kept_in(item, f"{place}[{number}]")
    elif type(value) is dict:
        for key, item in value.items():
            yield from kept_in(item, f"{place}[{key!r}]")


class _Identified:
    """In the place of what is kept, while an input that holds it is digested."""

    def __init__(self, text: str) -> None:
        self.text = text


def _digest(value: Any, objects: ContentStore) -> str:
    try:
        return digest_value(_identified(value), _refer)
    except UndigestibleError as error:
        untold = f"{UNTOLD}{error}"
    try:
        # Known by what would be kept of it, if that is not code.
        stored = keep_value(value, objects)
    except UnkeepableError:
        return untold
    return untold if stored.signature is not None else digest_text(_identity(stored))


def cached(observed: Iterable[Mapping[str, Any]]) -> str:
    """Why a step does not run; and what it reads that nobody notices, if there is something."""
    unseen = [str(one["spec"]["what"]) for one in observed if one["kind"] == "unseen"]
    return f"{CACHED} (not noticed: {', '.join(unseen[:_SHOWN])})" if unseen else CACHED


def untold(parts: Mapping[str, str]) -> str | None:
    """Why no former result may be used: which value has a content that cannot be told. None if there is none."""
    for name, part in parts.items():
        if part.startswith(UNTOLD):
            what = name.partition(":")[2]
            return f"not cached: '{what}' holds {part.removeprefix(UNTOLD)}"
    return None


def _identified(value: Any) -> Any:
    if isinstance(value, Kept):
        return _Identified(_identity(value.stored))
    if isinstance(value, Bundle):
        return {name: _Identified(_identity(stored)) for name, stored in sorted(value.outputs.items())}
    if type(value) in (list, tuple):
        return type(value)(_identified(item) for item in value)
    if type(value) is dict:
        return {key: _identified(item) for key, item in value.items()}
    return value


def _refer(value: Any) -> str | None:
    if isinstance(value, _Identified):
        return value.text
    plain = unwrapped(value)
    if isinstance(plain, types.MethodType):
        return f"method of {digest_value(plain.__self__, _refer)} {_code(plain.__func__)}"
    if isinstance(plain, types.FunctionType | type | types.BuiltinFunctionType):
        return _code(plain)
    if isinstance(plain, types.ModuleType):
        raise UndigestibleError(f"the module {plain.__name__}")
    return None


def _code(value: Any) -> str:
    code = code_of(value)
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return " ".join([name, code.digest, *(f"{package} {version}" for package, version in code.packages.items())])


def _identity(stored: Stored) -> str:
    """What a reader gets: the bytes, their format, and the form in which they are handed over."""
    return f"{stored.type} {stored.meta.get('form', '')} {stored.digest.removeprefix('sha256:')}"
