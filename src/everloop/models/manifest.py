"""`everloop.json`: the first file of a package, which says what the others are.

It holds no time and no name of a machine, so the same training gives the same package, byte for byte.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError, StoreVersionError
from everloop.records import Json  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from everloop.models.signature import Signature

FILE = "everloop.json"
MODEL_FOLDER = "model/"
COMPILED_FOLDER = "compiled/"
FORMAT_VERSION = 1

CODE_BEARING = frozenset({"pickle", "python"})
"""Formats whose reading runs code that the bytes bring along. Formats of other people's plugins count as such."""
SAFE = frozenset({"lightgbm", "linear", "skops", "sklearn", "xgboost", "catboost", "onnx"})

_NEEDS = {
    "lightgbm": ("numpy", "lightgbm"),
    "linear": ("numpy",),
    "skops": ("numpy", "scikit-learn", "skops"),
    "pickle": ("numpy", "scikit-learn", "cloudpickle"),
    "sklearn": ("numpy", "scikit-learn", "skops"),
    "xgboost": ("numpy", "xgboost", "xgboost-cpu"),
    "catboost": ("numpy", "catboost"),
    "python": ("numpy", "cloudpickle"),
    "onnx": ("numpy", "onnxruntime"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where the model came from. The run is left out where packages of two runs shall be comparable by digest."""

    run: str | None = None
    snapshot: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the model was built with; `packages` maps distributions to versions."""

    python: str
    platform: str
    packages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a package is. `files` maps each other file of the package to its digest."""

    format_version: int = FORMAT_VERSION
    format: str
    target: str
    signature: dict[str, Json]
    files: dict[str, str]
    lineage: Lineage = Lineage()
    environment: Environment
    training: dict[str, Json] = field(default_factory=dict)
    """How it was made: recipe, rows, importance, dropped columns."""
    compiled: bool = False
    """A proved second form, under `compiled/`, answers in place of the model."""

    @property
    def code_bearing(self) -> bool:
        return self.format not in SAFE

    def read_signature(self) -> Signature:
        from everloop.models.signature import Signature

        return Signature.from_json(self.signature)

    def to_bytes(self) -> bytes:
        import msgspec

        # Sorted, so that the digest does not hang on the order in which somebody filled a dict; but the inputs
        # are a list and keep theirs.
        return msgspec.json.format(msgspec.json.encode(asdict(self), order="deterministic"), indent=2) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read `everloop.json`.

        Raises:
            CorruptionError: it is no manifest.
            StoreVersionError: a newer everloop wrote it.
        """
        import msgspec

        try:
            seen = msgspec.json.decode(data)
            number = seen.get("format_version") if isinstance(seen, Mapping) else None
            if isinstance(number, int) and number > FORMAT_VERSION:
                raise StoreVersionError(
                    f"The package has format version {number}; this everloop knows {FORMAT_VERSION}.",
                    help="Upgrade everloop.",
                )
            return msgspec.convert(seen, cls)
        except msgspec.MsgspecError as error:
            raise CorruptionError(f"The package's {FILE} is damaged: {error}.") from error


def environment(format: str, also: Iterable[str] = ()) -> Environment:
    """The environment of this process, with the packages that a model of this format needs.

    Args:
        also: further distributions that the model needs; those that are not installed are passed over.
    """
    return Environment(
        python=platform.python_version(),
        platform=sys.platform,
        packages=_versions(("everloop", *_needs(format), *also)),
    )


def requirements(env: Environment) -> bytes:
    """`requirements.txt` of a package: what answering needs, pinned."""
    return "".join(f"{name}=={number}\n" for name, number in sorted(env.packages.items())).encode()


def _needs(format: str) -> tuple[str, ...]:
    return (*_NEEDS.get(format, ("numpy",)), "msgspec", "polars")


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # An everloop run from its source tree has no distribution; the requirement is then left to the reader.
            continue
    return dict(sorted(found.items()))
