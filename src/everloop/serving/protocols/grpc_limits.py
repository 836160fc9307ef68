"""Limits the size of a `ModelInferRequest`, counted on its wire bytes before protobuf creates objects.

An empty message in a list has two bytes but becomes an object of a hundred. So the messages and the values in their
contents are counted first. A compressed message (gzip, zlib) is decompressed here, up to the limit for a body, because
not every version of gRPC applies its own limit to the decompressed size.
Source: protobuf, "Encoding"; kserve/open-inference-protocol, open_inference_grpc.proto."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import RequestError, TooLargeError
from everloop.http.body_limits import BodyError, unpacked
from everloop.serving.protocols.unpacked_limits import check_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.serving.endpoint_settings import EndpointSettings

MOST_MESSAGES = 20_000
"""Tensors, parameters, outputs and shapes of a request together."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INPUTS, _CONTENTS, _SHAPE = 5, 5, 3
_TEXTS = 8
_WIDTHS = {1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 4, 7: 8}
"""Field of `InferTensorContents` to bytes per value; 0: variable length."""


def plain_message(data: bytes, limits: EndpointSettings) -> bytes:
    """A message, decompressed if it was compressed.

    Raises:
        TooLargeError: it is longer than a body may be.
        RequestError: it is damaged.
    """
    # No field of any message here begins with these bytes.
    encoding = "gzip" if data[:2] == b"\x1f\x8b" else "deflate" if data[:1] == b"\x78" else ""
    try:
        data = unpacked(encoding, data, limits.max_body_bytes)
    except BodyError as error:
        raise (TooLargeError if error.status_code == 413 else RequestError)(error.detail) from None
    if len(data) > limits.max_body_bytes:
        raise TooLargeError(f"The message is larger than {limits.max_body_bytes} bytes.")
    return data


def check_infer_request(data: bytes, limits: EndpointSettings) -> None:
    """Refuse a `ModelInferRequest` with too many messages or values.

    Raises:
        RequestError: there are too many messages, or they are damaged.
        TooLargeError: there are too many values.
    """
    messages = cells = 0
    view = memoryview(data)
    for field, kind, begins, ends in _fields(view, 0, len(view)):
        messages += 1
        _check_messages(messages)
        if field != _INPUTS or kind != _BYTES:
            continue
        for inner, inner_kind, first, last in _fields(view, begins, ends):
            messages += 1
            _check_messages(messages)
            if inner == _SHAPE and inner_kind == _BYTES:
                messages += last - first
                _check_messages(messages)
            elif inner == _CONTENTS and inner_kind == _BYTES:
                cells = _count_contents(view, first, last, cells, limits)


def _count_contents(view: memoryview, first: int, last: int, cells: int, limits: EndpointSettings) -> int:
    for field, kind, begins, ends in _fields(view, first, last):
        if kind == _BYTES and field in _WIDTHS:
            width = _WIDTHS[field]
            cells += (ends - begins) // width if width else _varints(view[begins:ends])
        else:
            # One value, or one text.
            cells += 1
        check_cells(cells, limits)
    return cells


def _check_messages(count: int) -> None:
    if count > MOST_MESSAGES:
        raise RequestError(f"The request has more than {MOST_MESSAGES} tensors, parameters and dimensions.")


def _varints(view: memoryview) -> int:
    """The number of variable-length numbers: each ends with a byte below 128."""
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(view, dtype=np.uint8) < 128)) if view.nbytes else 0


def _fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type and position of each field of a message."""
    while at < end:
        tag, at = _varint(view, at, end)
        kind = tag & 7
        begins = at
        if kind == _BYTES:
            size, begins = _varint(view, at, end)
            at = begins + size
        elif kind == _VARINT:
            _, at = _varint(view, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise RequestError("Cannot read the message: it is not valid protobuf.")
        if at > end:
            raise RequestError("The message is cut off.")
        yield tag >> 3, kind, begins, at


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    if at < end and view[at] < 128:
        return view[at], at + 1
    number = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise RequestError("Cannot read the message: it is not valid protobuf.")


__all__ = ["check_infer_request", "plain_message"]
