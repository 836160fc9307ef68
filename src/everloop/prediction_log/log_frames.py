"""Decoding the frames of a log's journals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from everloop.errors import CorruptionError

if TYPE_CHECKING:

    class Versioned(Protocol):
        """An entry that says in which format it was written."""

        @property
        def version(self) -> Any: ...


Frame = TypeVar("Frame", bound="Versioned")


def decode_frame(decoder: msgspec.msgpack.Decoder[Frame], payload: bytes, version: int, log: str) -> Frame:
    """Decode one frame of a log.

    Args:
        version: the format that this everloop writes.
        log: what the log is called in messages.

    Raises:
        CorruptionError: the payload is not a frame, or a newer everloop wrote it.
    """
    try:
        frame = decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"Cannot read a frame of {log}: {error}.") from error
    if frame.version != version:
        raise CorruptionError(f"A frame of {log} has the unknown format {frame.version}.", help="Upgrade everloop.")
    return frame
