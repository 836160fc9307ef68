"""The version that `save_model` returns, which prints a summary of the package."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

from everloop.packages.package_manifest import SAFE
from everloop.records import ModelVersion, Package

if TYPE_CHECKING:
    from collections.abc import Mapping


class SavedVersion(ModelVersion):
    """A `ModelVersion`, equal to the one in the store, that prints a summary of its package."""

    __slots__ = ("_summary",)

    @classmethod
    def of(cls, version: ModelVersion, package: Package, home: str) -> Self:
        made = cls(**{one.name: getattr(version, one.name) for one in fields(ModelVersion)})
        object.__setattr__(made, "_summary", describe(version, package, home))
        return made

    def __repr__(self) -> str:
        # A copy made by `dataclasses.replace` has no summary.
        return str(getattr(self, "_summary", None) or ModelVersion.__repr__(self))

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelVersion):
            return NotImplemented
        return all(getattr(self, one.name) == getattr(other, one.name) for one in fields(ModelVersion))

    __hash__ = ModelVersion.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain, ({one.name: getattr(self, one.name) for one in fields(ModelVersion)},)


def describe(version: ModelVersion, package: Package, home: str) -> str:
    """Summarize a version in a few lines: format, form, verification, trust and size, and how to serve it."""
    from everloop.registry.model_card import prediction_facts

    facts = dict(prediction_facts(package))
    form = str(facts.get("Predicts with", "the original model"))
    times = package.parity.get("row_us")
    lines = [f"{version.key}  ({package.format}, {_task(version.signature)})"]
    lines.append(
        f"  predicts with {form}" + (f": {facts['Time per row']} per row" if isinstance(times, dict) and times else "")
    )
    if facts.get("Verified on"):
        lines.append(f"  verified on   {facts['Verified on']}")
    lines += [f"  {_lower(name)}: {reason}" for name, reason in facts.items() if name.startswith(("Form ", "Not "))]
    lines.append(f"  loading       {trust_of(package)}")
    lines.append(f"  stored in     {home}, {package.size_bytes:,} bytes")
    lines.append(f"  serve it      everloop serve {version.key}")
    return "\n".join(lines)


def trust_of(package: Package) -> str:
    """Say whether loading a package runs code from it, and whether its signer must be trusted."""
    signer = (package.trust or {}).get("key")
    signed = f"signed by {str(signer)[:20]}" if signer else "not signed"
    if package.format in SAFE:
        return f"runs no code from the package, so any machine may load it ({signed})"
    return f"runs code from the package, so only machines that trust its signer load it ({signed})"


def _task(signature: Mapping[str, Any]) -> str:
    task, classes = str(signature.get("task")), list(signature.get("classes") or ())
    shown = ", ".join(map(str, classes[:6])) + (", …" if len(classes) > 6 else "")
    return f"{task}: {shown}" if classes else task


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _plain(values: dict[str, Any]) -> ModelVersion:
    return ModelVersion(**values)
