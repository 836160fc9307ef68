"""The messages of the Open Inference Protocol over gRPC, as protobuf classes in a separate pool.

They are described here field by field instead of being generated. The descriptor pool is separate because the clients
of Triton and of KServe each register the same names in protobuf's default pool, so a third definition there would
conflict with either. Source: kserve/open-inference-protocol, open_inference_grpc.proto (package `inference`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from everloop.errors import MissingExtraError

SERVICE = "inference.GRPCInferenceService"

_TYPES = {
    "double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "uint32": 13,
}  # fmt: skip
_MESSAGE, _OPTIONAL, _REPEATED = 11, 1, 3

# Message → "name:type=number"; `*` before a type: repeated, `%`: a map from strings to `InferParameter`.
_MESSAGES: dict[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool=1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool=1",
    "ModelReadyRequest": "name:string=1 version:string=2",
    "ModelReadyResponse": "ready:bool=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string=1 version:string=2 extensions:*string=3",
    "ModelMetadataRequest": "name:string=1 version:string=2",
    "ModelMetadataResponse": "name:string=1 versions:*string=2 platform:string=3"
    " inputs:*ModelMetadataResponse.TensorMetadata=4 outputs:*ModelMetadataResponse.TensorMetadata=5",
    "ModelMetadataResponse.TensorMetadata": "name:string=1 datatype:string=2 shape:*int64=3",
    "ModelInferRequest": "model_name:string=1 model_version:string=2 id:string=3 parameters:%=4"
    " inputs:*ModelInferRequest.InferInputTensor=5 outputs:*ModelInferRequest.InferRequestedOutputTensor=6"
    " raw_input_contents:*bytes=7",
    "ModelInferRequest.InferInputTensor": "name:string=1 datatype:string=2 shape:*int64=3 parameters:%=4"
    " contents:InferTensorContents=5",
    "ModelInferRequest.InferRequestedOutputTensor": "name:string=1 parameters:%=2",
    "ModelInferResponse": "model_name:string=1 model_version:string=2 id:string=3 parameters:%=4"
    " outputs:*ModelInferResponse.InferOutputTensor=5 raw_output_contents:*bytes=6",
    "ModelInferResponse.InferOutputTensor": "name:string=1 datatype:string=2 shape:*int64=3 parameters:%=4"
    " contents:InferTensorContents=5",
    "InferParameter": "bool_param:bool=1 int64_param:int64=2 string_param:string=3 double_param:double=4"
    " uint64_param:uint64=5",
    "InferTensorContents": "bool_contents:*bool=1 int_contents:*int32=2 int64_contents:*int64=3"
    " uint_contents:*uint32=4 uint64_contents:*uint64=5 fp32_contents:*float=6 fp64_contents:*double=7"
    " bytes_contents:*bytes=8",
}


@lru_cache(maxsize=1)
def messages() -> dict[str, Any]:
    """The classes of all messages by name.

    Raises:
        MissingExtraError: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise MissingExtraError.of("The Open Inference Protocol over gRPC", "protobuf", "grpc") from None
    file = descriptor_pb2.FileDescriptorProto(name="everloop/inference.proto", package="inference", syntax="proto3")
    made: dict[str, Any] = {}
    for name in sorted(_MESSAGES, key=lambda name: name.count(".")):
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=inner)
    for name, message in made.items():
        if name == "InferParameter":
            message.oneof_decl.add(name="parameter_choice")
        for text in _MESSAGES[name].split():
            _add_field(message, name, text)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _MESSAGES
    }


def _add_field(message: Any, owner: str, text: str) -> None:
    name, _, rest = text.partition(":")
    kind, _, number = rest.partition("=")
    field = message.field.add(name=name, number=int(number), label=_OPTIONAL)
    if kind == "%":
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_OPTIONAL, type=_TYPES["string"])
        entry.field.add(name="value", number=2, label=_OPTIONAL, type=_MESSAGE, type_name=".inference.InferParameter")
        field.label, field.type, field.type_name = _REPEATED, _MESSAGE, f".inference.{owner}.{entry.name}"
        return
    if kind.startswith("*"):
        field.label, kind = _REPEATED, kind[1:]
    if kind in _TYPES:
        field.type = _TYPES[kind]
    else:
        field.type, field.type_name = _MESSAGE, f".inference.{kind}"
    if owner == "InferParameter":
        field.oneof_index = 0


__all__ = ["SERVICE", "messages"]
