"""The Open Inference Protocol over gRPC, asked by a bare channel: both forms of contents, errors, tokens, deadlines."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import DeadlineError
from everloop.prediction_log import fold_predictions, read_predictions
from everloop.registry import load_model
from everloop.serving import EndpointProcess
from everloop.serving.access.endpoint_tokens import add_token
from everloop.serving.protocols.grpc import CONTENTS, infer
from everloop.serving.protocols.grpc_messages import SERVICE, messages
from everloop.serving.protocols.protocol import Request
from everloop.serving.protocols.tensors import pack
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from everloop.stores import Store

grpc = pytest.importorskip("grpc")

ROWS = [{**row, "wind": None if place == 1 else row["wind"]} for place, row in enumerate(sample_rows(3))]
KINDS = {"distance": "FP64", "seats": "INT64", "wind": "FP64", "weekend": "BOOL"}


class Asked:
    """A channel to the endpoint's gRPC port."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def call(self, name: str, message: Any, **options: Any) -> Any:
        kinds = messages()
        method = self.channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=kinds[f"{name}Request"].SerializeToString,
            response_deserializer=kinds[f"{name}Response"].FromString,
        )
        return method.with_call(message, timeout=options.pop("timeout", 20), **options)

    def refused(self, name: str, message: Any, **options: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, message, **options)
        return caught.value.code().name, caught.value.details()


@pytest.fixture
def served(store: Store, release: Any, route: Any) -> Iterator[Asked]:
    route(release().key, canary=(release(seed=1).key, 0.0))
    with EndpointProcess(store, "delays", grpc_port=0) as process:
        assert process.grpc_port
        asked = Asked(process.grpc_port)
        yield asked
        asked.channel.close()


def question(rows: list[dict[str, Any]], *, raw: bool, **fields: Any) -> Any:
    message = messages()["ModelInferRequest"](model_name="delays", **fields)
    for name in rows[0]:
        kind = KINDS.get(name, "BYTES")
        values = [float("nan") if row[name] is None else row[name] for row in rows]
        tensor = message.inputs.add(name=name, datatype=kind, shape=[len(rows)])
        if raw:
            message.raw_input_contents.append(pack(values, kind))
        else:
            cells = [str(value).encode() for value in values] if kind == "BYTES" else values
            getattr(tensor.contents, CONTENTS[kind]).extend(cells)
    return message


@pytest.mark.slow
def test_every_call(served: Asked, store: Store) -> None:
    kinds = messages()
    assert served.call("ServerLive", kinds["ServerLiveRequest"]())[0].live
    assert served.call("ServerReady", kinds["ServerReadyRequest"]())[0].ready
    assert served.call("ServerMetadata", kinds["ServerMetadataRequest"]())[0].name == "everloop"
    assert served.call("ModelReady", kinds["ModelReadyRequest"](name="delays"))[0].ready
    told, _ = served.call("ModelMetadata", kinds["ModelMetadataRequest"](name="delays"))
    assert {item.name: item.datatype for item in told.inputs}["seats"] == "INT64"
    assert sorted(told.versions) == ["1", "2"]
    scores = load_model(store, "delays@1").predict(ROWS).tolist()
    for raw in (True, False):
        answer, call = served.call("ModelInfer", question(ROWS, raw=raw, id="mine"))
        assert (answer.id, answer.model_version) == ("mine", "1")
        assert dict(call.initial_metadata())["x-everloop-version"] == "delays@1"
        place = [output.name for output in answer.outputs].index("probabilities")
        if raw:
            got = list(struct.unpack("<3d", answer.raw_output_contents[place]))
        else:
            got = list(answer.outputs[place].contents.fp64_contents)
        assert got == scores
    # A version in the call takes the whole request.
    answer, _ = served.call("ModelInfer", question(ROWS, raw=True, model_version="2"))
    assert answer.model_version == "2"
    large = sample_rows(3) * 2000
    answer, _ = served.call("ModelInfer", question(large, raw=True))
    assert list(answer.outputs[0].shape) == [6000]
    fold_predictions(store, "delays")
    assert read_predictions(store, "delays").collect().height == 3 * 3 + 6000


def test_what_comes_too_late_is_not_scored(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    late = Request("POST", f"/{SERVICE}/ModelInfer", b"", perf_counter(), deadline=perf_counter() - 1)
    with pytest.raises(DeadlineError):
        infer(local().app, question(ROWS, raw=True), late)
    assert fold_predictions(store, "delays") == 0


@pytest.mark.slow
def test_refusals(served: Asked, store: Store) -> None:
    kinds = messages()
    assert served.refused("ModelReady", kinds["ModelReadyRequest"](name="nope"))[0] == "NOT_FOUND"
    code, told = served.refused("ModelInfer", question(ROWS, raw=False, model_version="9"))
    assert (code, "version 9" in told) == ("NOT_FOUND", True)
    for change in (
        lambda message: message.inputs.pop(),
        lambda message: message.raw_input_contents.pop(),
        lambda message: setattr(message.inputs[0], "datatype", "FP7"),
        lambda message: message.inputs[0].shape.extend([3]),
        lambda message: message.outputs.add(name="y"),
        lambda message: message.raw_input_contents.__setitem__(0, b"\xff\xff\xff\xff"),
    ):
        message = question(ROWS, raw=True)
        change(message)
        code, told = served.refused("ModelInfer", message)
        assert code == "INVALID_ARGUMENT", told
    token = add_token(store, "delays", "team")
    wrong = [("authorization", "Bearer no")]
    ready = kinds["ModelReadyRequest"](name="delays")
    # A change of the record is taken over within a fraction of a second.
    sleep(0.5)
    assert served.refused("ModelReady", ready, metadata=wrong)[0] == "UNAUTHENTICATED"
    assert served.call("ServerLive", kinds["ServerLiveRequest"]())[0].live
    right = [("authorization", f"Bearer {token}")]
    assert served.call("ModelInfer", question(ROWS, raw=True), metadata=right)[0].outputs
    # Neither may it choose the version, which takes a tester's token.
    chosen = [*right, ("x-everloop-version", "2")]
    assert served.refused("ModelInfer", question(ROWS, raw=True), metadata=chosen)[0] == "PERMISSION_DENIED"
    tester = add_token(store, "delays", "tester", tester=True)
    chosen = [("authorization", f"Bearer {tester}"), ("x-everloop-version", "2")]
    sleep(0.5)
    answer, _ = served.call("ModelInfer", question(ROWS, raw=True), metadata=chosen)
    assert answer.model_version == "2"
