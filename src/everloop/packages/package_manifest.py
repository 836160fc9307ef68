"""`everloop.json`: the first file of a package, which says what the others are.

It holds no time and no name of a machine, so the same training gives the same package, byte for byte.
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

CODE_BEARING = frozenset({"pickle", "python", "pyfunc", "torch", "processed", "average_code"})
"""Formats whose reading runs code that the bytes bring along. Formats of other people's plugins count as such."""
SAFE = frozenset({"lightgbm", "linear", "skops", "sklearn", "xgboost", "catboost", "onnx", "mojo", "keras", "average"})

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
    """Where the model came from. The run is left out where packages of two runs shall be comparable by digest."""

    run: str | None = None
    snapshot: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageEnvironment:
    """What the model was built with: `packages` maps distributions to versions, `locked` says more of each."""

    python: str
    platform: str
    packages: dict[str, str] = field(default_factory=dict)
    locked: dict[str, Locked] = field(default_factory=dict)


class OtherPythonError(UsageError):
    """The package's code was made by a Python whose bytecode this one does not run as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a package is. `files` maps each other file of the package to its digest."""

    format_version: int = FORMAT_VERSION
    format: str
    target: str
    signature: dict[str, Json]
    files: dict[str, str]
    lineage: PackageLineage = PackageLineage()
    environment: PackageEnvironment
    training: dict[str, Json] = field(default_factory=dict)
    """How it was made: recipe, rows, importance, dropped columns."""
    lookups: dict[str, Json] = field(default_factory=dict)
    """Feature views that complete a request, and what the model itself takes then; see `lookups`."""
    compiled: bool = False
    """A proved second form, under `compiled/`, answers in place of the model."""

    @property
    def code_bearing(self) -> bool:
        return self.format not in SAFE

    def check_python(self) -> None:
        """Refuse code that another Python wrote: it is kept as bytecode, which each minor version reads otherwise.

        Raises:
            OtherPythonError: this Python is of another minor version, and the package bears code.
        """
        made, here = self.environment.python, platform.python_version()
        if self.code_bearing and made.split(".")[:2] != here.split(".")[:2]:
            short = ".".join(made.split(".")[:2])
            raise OtherPythonError(
                f"The package holds code of Python {made} (format '{self.format}'), and this is Python {here}.",
                help=f"Load it with Python {short}, or package the model again here; safe formats load in any Python.",
            )

    def read_signature(self) -> Signature:
        from everloop.packages.signature import Signature

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


def environment(format: str, also: Iterable[str] = ()) -> PackageEnvironment:
    """The environment of this process, with the distributions that a model of this format needs.

    Args:
        also: further distributions that the model needs; those that are not installed are passed over.
    """
    locked = lock((*needs(format), *also))
    # An everloop run from its source tree has no distribution. Its own requirements are not the model's.
    own = {name: replace(one, requires=()) for name, one in lock(("everloop",)).items() if name == "everloop"}
    locked = dict(sorted({**locked, **own}.items()))
    return PackageEnvironment(
        python=platform.python_version(),
        platform=sys.platform,
        packages={name: one.version for name, one in locked.items()},
        locked=locked,
    )


def needs(format: str) -> tuple[str, ...]:
    """The distributions that a format's loader imports."""
    return (*_NEEDS.get(format, ("numpy",)), "msgspec", "polars")
