"""What a gRPC message becomes is counted on its wire bytes; packed messages are unpacked within the limits."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import RequestError, TooLargeError
from everloop.prediction_log import fold_predictions
from everloop.serving import EndpointProcess
from everloop.serving.endpoint_settings import EndpointSettings
from everloop.serving.protocols.grpc_limits import check_infer_request, plain_message
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from everloop.stores import Store

grpc = pytest.importorskip("grpc")

from everloop.serving.protocols.grpc_messages import SERVICE, messages  # noqa: E402

ROW = sample_rows()[0]
LIMITS = EndpointSettings()


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def nested(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def good() -> Any:
    request = messages()["ModelInferRequest"](model_name="delays")
    kinds = {"distance": "FP64", "seats": "INT64", "wind": "FP64", "weekend": "BOOL"}
    fields = {"FP64": "fp64_contents", "INT64": "int64_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}
    for name, value in ROW.items():
        kind = kinds.get(name, "BYTES")
        one = request.inputs.add(name=name, datatype=kind, shape=[1])
        getattr(one.contents, fields[kind]).append(str(value).encode() if kind == "BYTES" else value)
    return request


def contents(field: int, data: bytes) -> bytes:
    return nested(5, nested(5, nested(field, data)))


@pytest.mark.parametrize(
    "body",
    [
        nested(5, b"") * 2_000_000,
        nested(6, b"") * 2_000_000,
        nested(7, b"") * 2_000_000,
        nested(4, b"") * 2_000_000,
        nested(5, nested(4, b"") * 2_000_000),
        nested(5, nested(5, b"") * 2_000_000),
        nested(5, nested(3, b"\1" * 2_000_000)),
        nested(5, b"\x18\1" * 1_000_000),
        nested(5, nested(5, nested(8, b"") * 1_100_000)),
        contents(1, b"\1" * 2_000_000),
        contents(2, b"\1" * 2_000_000),
        contents(3, b"\xff\1" * 1_100_000),
        contents(6, bytes(4_400_000)),
        contents(7, bytes(8_200_000)),
        nested(5, nested(5, b"\x08\1" * 1_100_000)),
        b"\x2a\xff\xff\xff\xff\x7f",
        b"\xff" * 20,
        b"\x2b" * 10,
    ],
    ids=range(18),
)
def test_messages_of_many_parts(body: bytes) -> None:
    with pytest.raises(RequestError):
        check_infer_request(body, LIMITS)


def test_good_messages_are_let_through() -> None:
    data = good().SerializeToString()
    check_infer_request(data, LIMITS)
    check_infer_request(contents(7, bytes(8 * 100_000)), LIMITS)
    assert plain_message(data, LIMITS) == data
    assert plain_message(gzip.compress(data), LIMITS) == data
    assert plain_message(zlib.compress(data), LIMITS) == data
    bomb = gzip.compress(bytes(30 << 20))
    with pytest.raises(TooLargeError):
        plain_message(bomb, LIMITS)


@pytest.mark.slow
def test_against_a_running_endpoint(store: Store, release: Any, route: Any) -> None:
    route(release().key)
    with (
        EndpointProcess(store, "delays", grpc_port=0) as process,
        grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel,
    ):

        def infer(data: bytes, packing: Any = grpc.Compression.NoCompression) -> Any:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer", None, messages()["ModelInferResponse"].FromString)
            return call(data, timeout=30, compression=packing)

        data = good().SerializeToString()
        plain, packed = infer(data), infer(data, grpc.Compression.Gzip)
        assert plain.outputs == packed.outputs
        assert infer(data, grpc.Compression.Deflate).outputs == plain.outputs
        for body, packing, code in (
            (bytes(30 << 20), grpc.Compression.Gzip, grpc.StatusCode.RESOURCE_EXHAUSTED),
            (nested(5, b"") * 2_000_000, grpc.Compression.Gzip, grpc.StatusCode.INVALID_ARGUMENT),
            (nested(5, b"") * 100_000, grpc.Compression.NoCompression, grpc.StatusCode.INVALID_ARGUMENT),
            (contents(1, b"\1" * 2_000_000), grpc.Compression.NoCompression, grpc.StatusCode.RESOURCE_EXHAUSTED),
            (b"\xff\xff", grpc.Compression.NoCompression, grpc.StatusCode.INVALID_ARGUMENT),
            (b"nonsense", grpc.Compression.NoCompression, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                infer(body, packing)
            assert refused.value.code() == code, json.dumps(refused.value.details())
        assert infer(data).outputs == plain.outputs
    assert fold_predictions(store, "delays") == 4
