"""What a format is, and how the one for a value is found."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from everloop import plugins
from everloop.records import Artifact, Json

if TYPE_CHECKING:
    from everloop.stores import ContentStore

LAST = "pickle"
"""Takes whatever nothing else does, so it is asked last, behind the formats of other packages."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A value that is kept: everything but whose it is. `type` is the name of its format."""

    type: str
    digest: str
    size_bytes: int
    meta: dict[str, Json] = field(default_factory=dict)
    signature: dict[str, str] | None = None

    @classmethod
    def of(cls, artifact: Artifact) -> Stored:
        return cls(artifact.type, artifact.digest, artifact.size_bytes, artifact.meta, artifact.signature)


class UnkeepableError(Exception):
    """A format cannot keep this value after all. Its text says why.

    Args:
        final: no other format may try, for what it would keep is not what is meant.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class ArtifactFormat(Protocol):
    """Keeps values of some types as bytes. An instance holds no state.

    - `load` of what `keep` returned gives an equal value of the same type, if no other type is wanted.
    - Equal values give the same bytes wherever the type allows it: that is what lets later steps stay cached.
    - `accepts` looks at the type only and imports nothing.
    """

    name: str

    def accepts(self, value: object) -> bool: ...

    def keep(self, value: Any, objects: ContentStore) -> Stored:
        """Write a value that was accepted.

        Raises:
            UnkeepableError: this one cannot be kept so.
        """

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Any:
        """Read a value.

        Args:
            wanted: the type that the reader declares; given where the format has it, ignored where not.
        """


def keep_value(value: object, objects: ContentStore) -> Stored:
    """Keep a value in the first format of the plugin table that takes it.

    Raises:
        UnkeepableError: none does; the text says why.
    """
    reasons: list[str] = []
    for one in _in_order():
        if one.accepts(value):
            try:
                return one.keep(value, objects)
            except UnkeepableError as error:
                reasons.append(str(error))
                if error.final:
                    break
    raise UnkeepableError(reasons[-1] if reasons else f"no format keeps a {type(value).__name__}")


def load_value(stored: Stored | Artifact, objects: ContentStore, wanted: Any = None) -> Any:
    """Read what `keep_value` has kept.

    Raises:
        NotFoundError: the bytes are gone, or the format is one that is not installed here.
        CorruptionError: the bytes are others.
        TrustError: a format that holds code, without a signature that is trusted here.
    """
    if isinstance(stored, Artifact):
        stored = Stored.of(stored)
    return _format(stored.type).load(stored, objects, wanted)


@cache
def _format(name: str) -> ArtifactFormat:
    return cast("ArtifactFormat", plugins.load("artifact", name)())


@cache
def _in_order() -> tuple[ArtifactFormat, ...]:
    names = [name for name in plugins.names("artifact") if name != LAST]
    return tuple(_format(name) for name in [*names, LAST])
