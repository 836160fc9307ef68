"""What saving a model gives back: its version, which says in print what was made."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

from everloop.packages.package_manifest import SAFE
from everloop.records import ModelVersion, Package

if TYPE_CHECKING:
    from collections.abc import Mapping


class SavedVersion(ModelVersion):
    """A `ModelVersion`, equal to the one in the store, that prints what was made."""

    __slots__ = ("_told",)

    @classmethod
    def of(cls, version: ModelVersion, package: Package, home: str) -> Self:
        made = cls(**{one.name: getattr(version, one.name) for one in fields(ModelVersion)})
        object.__setattr__(made, "_told", describe(version, package, home))
        return made

    def __repr__(self) -> str:
        # What `dataclasses.replace` makes of it has nothing to tell.
        return str(getattr(self, "_told", None) or ModelVersion.__repr__(self))

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelVersion):
            return NotImplemented
        return all(getattr(self, one.name) == getattr(other, one.name) for one in fields(ModelVersion))

    __hash__ = ModelVersion.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain, ({one.name: getattr(self, one.name) for one in fields(ModelVersion)},)


def describe(version: ModelVersion, package: Package, home: str) -> str:
    """A version in some lines: format, what answers, on what it was proved, whether it needs trust, where it is."""
    from everloop.registry.model_card import answering

    told = dict(answering(package))
    form = str(told.get("Answered by", "the original"))
    times = package.parity.get("row_us")
    lines = [f"{version.key}  ({package.format}, {_task(version.signature)})"]
    lines.append(
        f"  answered by   {form}" + (f": {told['One row']} a row" if isinstance(times, dict) and times else "")
    )
    if told.get("Proved on"):
        lines.append(f"  proved on     {told['Proved on']}")
    lines += [f"  {_lower(name)}: {reason}" for name, reason in told.items() if name.startswith("Not ")]
    lines.append(f"  loading       {trust_of(package)}")
    lines.append(f"  kept in       {home}, {package.size_bytes:,} bytes")
    lines.append(f"  serve it      everloop serve {version.key}")
    return "\n".join(lines)


def trust_of(package: Package) -> str:
    """Whether loading a package runs code, and what that asks of the machine that loads it."""
    signer = (package.trust or {}).get("key")
    signed = f"signed by {str(signer)[:20]}" if signer else "not signed"
    if package.format in SAFE:
        return f"runs no code of the package, needs no trust ({signed})"
    return f"runs code: only where its signer is trusted, as on this machine ({signed})"


def _task(signature: Mapping[str, Any]) -> str:
    task, classes = str(signature.get("task")), list(signature.get("classes") or ())
    shown = ", ".join(map(str, classes[:6])) + (", …" if len(classes) > 6 else "")
    return f"{task}: {shown}" if classes else task


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _plain(values: dict[str, Any]) -> ModelVersion:
    return ModelVersion(**values)
