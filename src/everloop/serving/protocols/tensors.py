"""Reads tensors of the Open Inference Protocol (JSON or binary) into rows, and writes columns as tensors.

Binary layout (the `binary_tensor_data` extension): little-endian, row-major, one tensor after the other after the
JSON header; a BYTES element is its length (u32) and its bytes; a BOOL is one byte.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import RequestError
from everloop.http.error_bodies import clipped
from everloop.serving.protocols.protocol_common import by_order, plain
from everloop.serving.protocols.unpacked_limits import check_cells, check_rows

if TYPE_CHECKING:
    from everloop.serving.endpoint_settings import EndpointSettings
    from everloop.serving.loaded_endpoint import LoadedEndpoint

FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
    "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
DATATYPES = {"float": "FP64", "int": "INT64", "bool": "BOOL"}
"""Input type to the datatype in the metadata; all other types are sent as BYTES."""
MOST_DIMENSIONS = 8


class Tensor(msgspec.Struct):
    """One tensor of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


def take_binary(tensors: list[Tensor], tail: bytes, limits: EndpointSettings) -> None:
    """Set the data of every binary tensor from `tail`, the bytes after the JSON header.

    Raises:
        RequestError: a size does not fit its tensor, or bytes are left over.
        TooLargeError: the tensors have too many values.
    """
    at = cells = 0
    for tensor in tensors:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            continue
        if type(size) is not int or size < 0 or at + size > len(tail):
            raise RequestError(f"{tensor.name}: the body does not have binary_data_size={size!r} bytes for it.")
        # The shape is checked against the bytes before values are created from them.
        count = _shaped(tensor, limits)
        cells += count
        check_cells(cells, limits)
        tensor.data = _unpack(tensor, tail[at : at + size], count)
        at += size
    if at != len(tail):
        raise RequestError(f"{len(tail) - at} bytes after the header belong to no tensor.")


def rows_of(tensors: list[Tensor], loaded: LoadedEndpoint) -> list[dict[str, Any]]:
    """The rows of one tensor of shape [n] or [n, 1] for each input, or of one of shape [n, inputs] for all.

    Raises:
        RequestError: shapes, sizes or names do not fit; the message names the tensor.
        TooLargeError: the tensors have too many values.
    """
    fields, limits = loaded.fields, loaded.settings
    if not tensors:
        raise RequestError("inputs: the list of tensors is empty.")
    check_cells(sum(_shaped(tensor, limits) for tensor in tensors), limits)
    if len(tensors) == 1 and tensors[0].name not in fields:
        tensor = tensors[0]
        values = _values(tensor)
        width = tensor.shape[-1] if len(tensor.shape) == 2 else len(values)
        if not width:
            raise RequestError("rows: there is no row to score.")
        check_rows(len(values) // width, limits)
        return [by_order(values[at : at + width], loaded, at // width) for at in range(0, len(values), width)]
    columns: dict[str, list[Any]] = {}
    for tensor in tensors:
        if tensor.name in columns:
            raise RequestError(f"The tensor '{tensor.name}' is sent twice.")
        if any(size != 1 for size in tensor.shape[1:]):
            raise RequestError(f"{tensor.name}: expected the shape [rows] or [rows, 1], got {tensor.shape}.")
        check_rows(tensor.shape[0], limits)
        kind = fields[tensor.name].type if tensor.name in fields else "string"
        columns[tensor.name] = [
            plain(value, kind, f"rows[{number}].{tensor.name}") for number, value in enumerate(_values(tensor))
        ]
    if len({len(values) for values in columns.values()}) != 1:
        raise RequestError("inputs: the tensors differ in length.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def pack(values: list[Any], datatype: str) -> bytes:
    """Encode values as a binary tensor."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)


def flat(values: Any) -> list[Any]:
    """Flatten nested lists, row-major. Without recursion, because a client chooses how deep they are."""
    found: list[Any] = []
    stack = [iter(values)]
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            found.append(value)
        else:
            stack.pop()
    return found


def _shaped(tensor: Tensor, limits: EndpointSettings) -> int:
    """How many values the shape of a tensor has.

    Raises:
        RequestError: it is not a shape.
        TooLargeError: it has too many values.
    """
    shape = tensor.shape
    if not 1 <= len(shape) <= MOST_DIMENSIONS:
        raise RequestError(
            f"{clipped(tensor.name, 200)}: a shape cannot have {len(shape)} dimensions.",
            help=f"Send 1 to {MOST_DIMENSIONS}.",
        )
    cells = 1
    for size in shape:
        if size < 0:
            raise RequestError(f"{clipped(tensor.name, 200)}: a shape cannot have negative numbers.")
        # Checked before multiplying, because a number in JSON can have any length.
        check_cells(min(size, 2**63), limits)
        cells *= size
    check_cells(cells, limits)
    return cells


def _misshaped(tensor: Tensor, values: str) -> RequestError:
    return RequestError(f"{tensor.name}: {values} do not fit the shape {tensor.shape}.")


def _values(tensor: Tensor) -> list[Any]:
    if tensor.datatype != "BYTES" and tensor.datatype not in FORMATS:
        raise RequestError(
            f"{tensor.name}: '{tensor.datatype[:50]}' is not a datatype.", help=f"Datatypes: {', '.join(FORMATS)}"
        )
    if tensor.data is None:
        raise RequestError(f"{tensor.name}: its data is missing.")
    values = flat(tensor.data)
    if math.prod(tensor.shape) != len(values):
        raise _misshaped(tensor, f"{len(values)} values")
    return values


def _unpack(tensor: Tensor, data: bytes, count: int) -> list[Any]:
    """Decode the values of a binary tensor whose shape has `count` of them."""
    if tensor.datatype == "BYTES":
        return _texts(tensor, data, count)
    letter = FORMATS.get(tensor.datatype)
    if letter is None:
        raise RequestError(
            f"{tensor.name}: '{tensor.datatype[:50]}' is not a datatype.", help=f"Datatypes: {', '.join(FORMATS)}"
        )
    found, rest = divmod(len(data), struct.calcsize(f"<{letter}"))
    if rest:
        raise RequestError(
            f"{tensor.name}: {len(data)} bytes are not a multiple of the size of {tensor.datatype} values."
        )
    if found != count:
        raise _misshaped(tensor, f"{found} values")
    return list(struct.unpack(f"<{count}{letter}", data))


def _texts(tensor: Tensor, data: bytes, count: int) -> list[Any]:
    found: list[Any] = []
    at = 0
    while at < len(data):
        if len(found) == count:
            raise _misshaped(tensor, f"More than {count} values")
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data) or at + 4 > len(data):
            raise RequestError(f"{tensor.name}: a BYTES element is longer than its tensor.")
        try:
            found.append(data[at + 4 : end].decode())
        except UnicodeDecodeError:
            raise RequestError(f"{tensor.name}: element {len(found)} is not UTF-8 text.") from None
        at = end
    return found
