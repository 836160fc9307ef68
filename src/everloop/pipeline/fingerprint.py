"""The cache key of a step, made of named parts, and the reason for a run when parts differ.

code:helpers.LIMIT   digest     package:polars   version     version   the value of @step(version=…)
input:flights        digest     param:budget_s   digest      outputs   names of several outputs
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from everloop.pipeline.artifacts import Stored, UnkeepableError, keep_value
from everloop.pipeline.code.code_parts import UNDIGESTIBLE
from everloop.pipeline.code.object_inspection import unwrapped
from everloop.pipeline.code.step_code import Code, code_of
from everloop.pipeline.job import StoredInput, StoredOutputs
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
NOTHING_CHANGED = "no earlier result"

_SHOWN = 3
_GROUPS = (("code:", "code changed"), ("param:", "parameter changed"), ("input:", "input changed"))


def parts_of(
    node: Node, inputs: Mapping[str, Any], objects: ContentStore, *, code: Code | None = None
) -> dict[str, str]:
    """The parts of a fingerprint.

    Args:
        inputs: parameter to value, with `StoredInput` and `StoredOutputs` for results of other steps.
        objects: stores parameters that are not plain values, such as frames, so that their content has a digest.
    """
    code = code or code_of(node.step.function)
    parts = {f"code:{name}": digest for name, digest in code.parts.items()}
    parts |= {f"package:{name}": version for name, version in code.packages.items()}
    for name, value in inputs.items():
        from_step = any(True for _ in stored_in(value))
        parts[f"{'input' if from_step else 'param'}:{name}"] = _digest(value, objects)
    if node.step.version is not None:
        parts["version"] = node.step.version
    if node.step.outputs and not node.mapped:
        parts["outputs"] = ", ".join(node.step.outputs)
    if node.step.environment:
        parts["environment"] = ", ".join(sorted(node.step.environment))
    return parts


def fingerprint(parts: Mapping[str, str]) -> str:
    """`fp:` and 32 hex digits, independent of the order of the parts."""
    return f"fp:{digest_text(*(text for name in sorted(parts) for text in (name, parts[name])))}"


def input_digests(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Input to content digest. If an input holds several stored values, each name is followed by its path inside."""
    found: dict[str, str] = {}
    for name, value in inputs.items():
        for path, stored in stored_in(value):
            found[f"{name}{path}"] = stored.digest
    return found


def reason(parts: Mapping[str, str], before: Mapping[str, str] | None, home: str) -> str:
    """Why a step has to run: what differs from its last run.

    Args:
        before: the parts of the step's last run; None if there was none.
        home: the step's own module, which is left out of the names of its code.
    """
    if before is None:
        return FIRST_RUN
    changes: list[str] = []
    for prefix, description in _GROUPS:
        changed = [name for name in parts if name.startswith(prefix) and name in before and parts[name] != before[name]]
        # Parts are added or dropped because another part changed; they are named only if no part did.
        added = [
            name for name in {**parts, **before} if name.startswith(prefix) and (name in parts) != (name in before)
        ]
        names = [name.removeprefix(prefix).removeprefix(f"{home}.") for name in changed or added]
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            changes.append(f"{description}: {', '.join(names[:_SHOWN])}{more}")
    changes += _package_changes(parts, before)
    if parts.get("version") != before.get("version"):
        changes.append(f"version changed: {before.get('version', 'none')} → {parts.get('version', 'none')}")
    if parts.get("outputs") != before.get("outputs"):
        changes.append("outputs changed")
    if parts.get("environment") != before.get("environment"):
        changes.append(f"environment changed: {before.get('environment', 'none')} → {parts.get('environment', 'none')}")
    return "; ".join(changes) or NOTHING_CHANGED


def _package_changes(parts: Mapping[str, str], before: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({name for name in (*parts, *before) if name.startswith("package:")}):
        old, new = before.get(name), parts.get(name)
        package = name.removeprefix("package:")
        if old is not None and new is not None and old != new:
            yield f"package changed: {package} {old} → {new}"
    # A package that was added or dropped is left out: that follows from a code change, which is named already.


def stored_in(value: Any, path: str = "") -> Iterator[tuple[str, Stored]]:
    """Every stored value inside an input, with its path inside."""
    if isinstance(value, StoredInput):
        yield path, value.stored
    elif isinstance(value, StoredOutputs):
        for name, stored in value.outputs.items():
            yield f"{path}.{name}", stored
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            yield from stored_in(item, f"{path}[{number}]")
    elif type(value) is dict:
        for key, item in value.items():
            yield from stored_in(item, f"{path}[{key!r}]")


class _Identity:
    """Replaces a stored value while the input that holds it is digested."""

    def __init__(self, text: str) -> None:
        self.text = text


def _digest(value: Any, objects: ContentStore) -> str:
    try:
        return digest_value(_with_identities(value), _refer)
    except UndigestibleError as error:
        marker = f"{UNDIGESTIBLE}{error}"
    try:
        # The stored form of the value has a digest. A signed form is a pickle, whose bytes may differ for equal values.
        stored = keep_value(value, objects)
    except UnkeepableError:
        return marker
    return marker if stored.signature is not None else digest_text(_identity(stored))


def cached(observed: Iterable[Mapping[str, Any]]) -> str:
    """Why a step does not run. Names what it reads that cannot be tracked, if anything."""
    unseen = [str(one["spec"]["what"]) for one in observed if one["kind"] == "unseen"]
    return f"{CACHED} (not noticed: {', '.join(unseen[:_SHOWN])})" if unseen else CACHED


def undigestible(parts: Mapping[str, str]) -> str | None:
    """Why no earlier result may be used: which value has no digest. None if all have one."""
    for name, part in parts.items():
        if part.startswith(UNDIGESTIBLE):
            value_name = name.partition(":")[2]
            return f"not cached: '{value_name}' holds {part.removeprefix(UNDIGESTIBLE)}"
    return None


def _with_identities(value: Any) -> Any:
    if isinstance(value, StoredInput):
        return _Identity(_identity(value.stored))
    if isinstance(value, StoredOutputs):
        return {name: _Identity(_identity(stored)) for name, stored in sorted(value.outputs.items())}
    if type(value) in (list, tuple):
        return type(value)(_with_identities(item) for item in value)
    if type(value) is dict:
        return {key: _with_identities(item) for key, item in value.items()}
    return value


def _refer(value: Any) -> str | None:
    if isinstance(value, _Identity):
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
    """What a reader gets: the bytes, their format, and the kind of table that they become."""
    return f"{stored.type} {stored.meta.get('form', '')} {stored.digest.removeprefix('sha256:')}"
