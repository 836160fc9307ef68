"""The protocol of artifact formats, and the choice of a format for a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from everloop import plugins
from everloop.records import Artifact, Json

if TYPE_CHECKING:
    from everloop.stores import ContentStore

LAST = "pickle"
"""Accepts every value, so it is tried last, after the formats of other packages."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored value, without the step that it belongs to. `type` is the name of its format."""

    type: str
    digest: str
    size_bytes: int
    meta: dict[str, Json] = field(default_factory=dict)
    signature: dict[str, str] | None = None

    @classmethod
    def of(cls, artifact: Artifact) -> Stored:
        return cls(artifact.type, artifact.digest, artifact.size_bytes, artifact.meta, artifact.signature)


class UnkeepableError(Exception):
    """A format cannot store this value, although it accepts its type. The text says why.

    Args:
        final: no other format may be tried, because it would store something else than the user means.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class ArtifactFormat(Protocol):
    """Stores values of some types as bytes. An instance holds no state.

    - `load` of what `keep` returned gives an equal value of the same type, unless another type is wanted.
    - Equal values give the same bytes if the type allows it, so that later steps stay cached.
    - `accepts` checks only the type, and imports nothing.
    """

    name: str

    def accepts(self, value: object) -> bool: ...

    def keep(self, value: Any, objects: ContentStore) -> Stored:
        """Store a value that was accepted.

        Raises:
            UnkeepableError: this format cannot store this value.
        """

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Any:
        """Load a value.

        Args:
            wanted: the type that the reader declares. A format that cannot give this type ignores it.
        """


def keep_value(value: object, objects: ContentStore) -> Stored:
    """Store a value in the first format of the plugin table that can hold it.

    Raises:
        UnkeepableError: no format can; the text says why.
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
    raise UnkeepableError(reasons[-1] if reasons else f"no format can store a {type(value).__name__}")


def load_value(stored: Stored | Artifact, objects: ContentStore, wanted: Any = None) -> Any:
    """Load a value that `keep_value` has stored.

    Raises:
        NotFoundError: the bytes are gone, or the format is not installed here.
        CorruptionError: the bytes have changed.
        TrustError: the format holds code, and has no signature by a key that is trusted here.
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
