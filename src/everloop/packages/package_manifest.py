"""The manifest of a package, `everloop.json`: its format, signature, files, lineage and environment.

It holds no times and no machine names, so the same training gives the same package, byte for byte.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError, StoreVersionError, UsageError
from everloop.packages.environment_lock import Locked, lock
from everloop.records import Json  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from everloop.packages.signature import Signature

FILE = "everloop.json"
MODEL_FOLDER = "model/"
COMPILED_FOLDER = "compiled/"
FORMAT_VERSION = 1

SAFE = frozenset({"lightgbm", "linear", "skops", "sklearn", "xgboost", "catboost", "onnx", "mojo", "keras", "average"})
"""Formats without code. All others, including those from plugins, contain code that runs when they are read."""

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
    "mojo": ("numpy", "lightgbm"),
    "keras": ("numpy", "keras", "tensorflow", "jax", "torch"),
    "torch": ("numpy", "torch", "safetensors", "cloudpickle"),
    "pyfunc": ("numpy", "cloudpickle"),
    "processed": ("numpy", "cloudpickle"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageLineage:
    """Where the model came from. The run is left out if packages of two runs should have the same digest."""

    run: str | None = None
    snapshot: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageEnvironment:
    """The environment that built the model: `packages` maps distributions to versions, `locked` has the details."""

    python: str
    platform: str
    packages: dict[str, str] = field(default_factory=dict)
    locked: dict[str, Locked] = field(default_factory=dict)


class OtherPythonError(UsageError):
    """The package's code was written by another minor version of Python, whose bytecode cannot run here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Description of a package. `files` maps each other file of the package to its digest."""

    format_version: int = FORMAT_VERSION
    format: str
    target: str
    signature: dict[str, Json]
    files: dict[str, str]
    lineage: PackageLineage = PackageLineage()
    environment: PackageEnvironment
    training: dict[str, Json] = field(default_factory=dict)
    """How the model was trained: recipe, rows, importance, dropped columns."""
    lookups: dict[str, Json] = field(default_factory=dict)
    """Feature views that complete a request, and the model's own signature; see `feature_lookup`."""
    compiled: bool = False
    """A faster form, proved equal and stored under `compiled/`, predicts in place of the model."""

    @property
    def code_bearing(self) -> bool:
        return self.format not in SAFE

    def check_python(self) -> None:
        """Check that code in the package fits this Python: it is bytecode, which differs between minor versions.

        Raises:
            OtherPythonError: the package contains code of another minor version.
        """
        built, here = self.environment.python, platform.python_version()
        if self.code_bearing and built.split(".")[:2] != here.split(".")[:2]:
            short = ".".join(built.split(".")[:2])
            raise OtherPythonError(
                f"The package holds code of Python {built} (format '{self.format}'), but this is Python {here}.",
                help=f"Load it with Python {short}, or package the model again here; safe formats load in any Python.",
            )

    def read_signature(self) -> Signature:
        from everloop.packages.signature import Signature

        return Signature.from_json(self.signature)

    def to_bytes(self) -> bytes:
        import msgspec

        # Keys are sorted, so that the digest does not depend on the order of a dict. The inputs are a list and keep
        # their order.
        return msgspec.json.format(msgspec.json.encode(asdict(self), order="deterministic"), indent=2) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read `everloop.json`.

        Raises:
            CorruptionError: it is not a manifest.
            StoreVersionError: a newer everloop wrote it.
        """
        import msgspec

        try:
            decoded = msgspec.json.decode(data)
            number = decoded.get("format_version") if isinstance(decoded, Mapping) else None
            if isinstance(number, int) and number > FORMAT_VERSION:
                raise StoreVersionError(
                    f"The package has format version {number}, but this everloop reads only up to {FORMAT_VERSION}.",
                    help="Upgrade everloop.",
                )
            return msgspec.convert(decoded, cls)
        except msgspec.MsgspecError as error:
            raise CorruptionError(
                f"The package's {FILE} is damaged: {error}.", help="Package the model again, or export it again."
            ) from error


def environment(format: str, also: Iterable[str] = ()) -> PackageEnvironment:
    """Return the environment of this process, with the distributions that a model of this format needs.

    Args:
        also: further distributions that the model needs; those that are not installed are left out.
    """
    locked = lock((*needs(format), *also))
    # everloop has no distribution if it runs from its source tree, and its requirements are not the model's.
    own = {name: replace(one, requires=()) for name, one in lock(("everloop",)).items() if name == "everloop"}
    locked = dict(sorted({**locked, **own}.items()))
    return PackageEnvironment(
        python=platform.python_version(),
        platform=sys.platform,
        packages={name: one.version for name, one in locked.items()},
        locked=locked,
    )


def needs(format: str) -> tuple[str, ...]:
    """Return the distributions that a format's loader imports."""
    return (*_NEEDS.get(format, ("numpy",)), "msgspec", "polars")
