"""Refuse ONNX models that refer to anything outside of their own bytes: files, libraries, foreign operators.

The model's protobuf is scanned without parsing it into objects, so serving needs no `onnx` package and the scan is fast
compared with loading. Refused are

* external data: a tensor at any level whose numbers are in a file (or at an address in memory);
* operators that are not part of onnxruntime, and those of its own that read files;
* training graphs, a configuration of onnxruntime in the metadata, and onnxruntime's other file format;
* functions of the model that call themselves, or that expand to more nodes than any real model has.

Protobuf merges a field that occurs twice; here each occurrence is checked. Groups, which ONNX does not use, are
refused.
Sources: onnx.proto (IR version 13); Protocol Buffers, "Encoding"; onnxruntime, `ContribOperators.md`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from everloop.errors import CorruptionError, TrustError

DEEPEST = 100
"""Nested messages; protobuf has the same limit."""
MOST_NODES = 10_000_000
"""Nodes after functions have been expanded."""

STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Operator domains of the ONNX standard. All their operators compute from their inputs alone."""
MICROSOFT = frozenset(
    {
        *("Attention", "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "BifurcationDetector"),
        *("CDist", "ComplexMul", "ComplexMulConj", "ConvTransposeWithDynamicPads", "CropAndResize"),
        *("DequantizeLinear", "DequantizeBFP", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "DynamicTimeWarping"),
        *("EmbedLayerNormalization", "ExpandDims", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul"),
        *("FusedMatMulActivation", "GatherND", "Gelu", "GemmFastGelu", "GemmFloat8", "GridSample", "GroupNorm"),
        *("GroupQueryAttention", "Inverse", "Irfft", "LongformerAttention", "MatMulBnb4", "MatMulFpQ4"),
        *("MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "MaxpoolWithMask", "MultiHeadAttention"),
        *("MurmurHash3", "NGramRepeatBlock", "NhwcConv", "NhwcFusedConv", "NhwcMaxPool", "Pad", "QAttention"),
        *("QEmbedLayerNormalization", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv"),
        *("QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid"),
        *("QLinearSoftmax", "QLinearWhere", "QMoE", "QuantizeBFP", "QuantizeLinear", "QuickGelu", "Range"),
        *("ReduceSumInteger", "RelativePositionBias", "RemovePadding", "RestorePadding", "Rfft", "RotaryEmbedding"),
        *("Sampling", "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("SimplifiedLayerNormalization", "SparseToDenseMatMul", "Tokenizer", "TorchEmbedding"),
        *("TransposeMatMul", "Trilu", "UnfoldTensor", "Unique", "WordConvEmbedding"),
    }
)
"""onnxruntime's own operators that compute from their inputs alone. `EPContext`, which names a file, is not one."""
_MICROSOFT_DOMAIN = "com.microsoft"
_RUNTIME_CONFIGURATION = "ort_config"
_RUNTIME_FORMAT = b"ORTM"

# For each message, by number, the fields that must be checked.
_MODEL = {7: "graph", 14: "metadata", 20: "training", 25: "function"}
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_NODE = {4: "name", 5: "attribute", 7: "domain", 8: "overload"}
_ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
_TENSOR = {13: "external", 14: "location"}
_SPARSE = {1: "tensor", 2: "tensor"}
_FUNCTION = {1: "name", 7: "node", 10: "domain", 11: "attribute", 13: "overload"}
_FIELDS = {
    "model": _MODEL,
    "graph": _GRAPH,
    "node": _NODE,
    "attribute": _ATTRIBUTE,
    "tensor": _TENSOR,
    "sparse": _SPARSE,
    "function": _FUNCTION,
    "metadata": {1: "key"},
}

# In an attribute, each number of a long list is a field. This pattern skips a sequence of them at once: it matches
# fields with one-byte tags (up to number 15) that hold a number, none of which must be checked.
_NUMBERS = re.compile(
    rb"(?:[\x08\x10\x18\x20\x28\x30\x38\x40\x48\x50\x58\x60\x68\x78][\x80-\xff]{0,9}+[\x00-\x7f]"
    rb"|[\x0d\x15\x1d\x25\x2d\x35\x3d\x45\x4d\x55\x5d\x65\x6d\x75\x7d].{4}"
    rb"|[\x09\x11\x19\x21\x29\x31\x39\x41\x49\x51\x59\x61\x69\x71\x79].{8})++",
    re.DOTALL,
)
# The same for the short texts of an attribute (field 9), one for each node of a tree.
_TEXTS = re.compile(
    b"(?:\x4a(?:" + b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(32)) + b"))++", re.DOTALL
)

_Key = tuple[str, str]


@dataclass
class _Calls:
    """The number of nodes in a function, and how often it calls each other function."""

    nodes: int = 0
    called: dict[_Key, int] = field(default_factory=dict)


def check_references(graph: bytes) -> None:
    """Check that a model refers to nothing outside of its bytes.

    Raises:
        TrustError: it refers to a file, an address, or an operator that is not on the list.
        CorruptionError: the bytes are not an unambiguous protobuf message.
    """
    if graph[4:8] == _RUNTIME_FORMAT:
        raise TrustError(
            "The model is in onnxruntime's own format (.ort), which cannot be checked.", help="Save it as ONNX."
        )
    _Scan(graph).model()


class _Scan:
    """A scan of the bytes of a model."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._used: set[_Key] = set()
        self._main = _Calls()
        self._functions: dict[_Key, _Calls] = {}

    def model(self) -> None:
        self._message("model", 0, len(self._data), self._main, 0)
        for domain, name in self._used:
            if (domain, name) not in self._functions and not _known(domain, name):
                raise TrustError(
                    f"The ONNX model uses the operator '{domain}:{name}', which is not part of onnxruntime "
                    "or which reads files.",
                    help=f"Use operators of {', '.join(sorted(filter(None, STANDARD)))}, or those of "
                    f"{_MICROSOFT_DOMAIN} that only compute.",
                )
        self._check_expansion()

    def _message(self, kind: str, at: int, end: int, calls: _Calls, depth: int) -> None:
        """Scan a message of a kind between two offsets."""
        if depth > DEEPEST:
            raise CorruptionError(f"The ONNX model nests messages deeper than {DEEPEST} levels.")
        if kind == "training":
            raise TrustError(
                "The ONNX model contains a training graph, which prediction does not need.",
                help="Export it for inference.",
            )
        if kind == "external":
            raise _external()
        data, fields = self._data, _FIELDS[kind]
        texts: dict[str, str] = {}
        if kind == "function":
            calls = _Calls()
        while at < end:
            if kind == "attribute":
                skipped = _NUMBERS.match(data, at, end) or _TEXTS.match(data, at, end)
                if skipped:
                    at = skipped.end()
                    continue
            tag, at = self._varint(at, end, longest=5)
            number, wire = tag >> 3, tag & 7
            if not number or tag >> 32:
                raise _damaged("a field without a number")
            inner = fields.get(number)
            if wire == 2:
                size, at = self._varint(at, end)
                if size > end - at:
                    raise _damaged("a field that is longer than its message")
                if inner in ("name", "domain", "overload", "key"):
                    texts[inner] = data[at : at + size].decode("utf-8", "replace")
                    if inner == "key" and texts[inner] == _RUNTIME_CONFIGURATION:
                        raise TrustError(
                            "The ONNX model's metadata configures onnxruntime.",
                            help=f"Remove the entry '{_RUNTIME_CONFIGURATION}' from its metadata.",
                        )
                elif inner is not None and inner != "location":
                    self._message(inner, at, at + size, calls, depth + 1)
                at += size
            elif wire == 0:
                value, at = self._varint(at, end)
                if inner == "location" and value:
                    raise _external()
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
                if at > end:
                    raise _damaged("a number that is cut off")
            else:
                raise _damaged("a group, which ONNX does not use")
        self._finish(kind, texts, calls)

    def _finish(self, kind: str, texts: dict[str, str], calls: _Calls) -> None:
        domain, overload = texts.get("domain", ""), texts.get("overload", "")
        key = (domain, texts.get("name", "") + (f"#{overload}" if overload else ""))
        if kind == "node":
            self._used.add(key)
            calls.nodes += 1
            calls.called[key] = calls.called.get(key, 0) + 1
        elif kind == "function":
            if _standard(domain):
                raise TrustError(
                    f"The ONNX model defines the standard operator '{domain}:{key[1]}' as a function.",
                    help="Rename the function, or remove it.",
                )
            if key in self._functions:
                raise TrustError(
                    f"The ONNX model defines the function '{domain}:{key[1]}' twice.", help="Remove one of them."
                )
            self._functions[key] = calls

    def _check_expansion(self) -> None:
        sizes: dict[_Key, int] = {}
        active: set[_Key] = set()

        def size_of(calls: _Calls, depth: int) -> int:
            total = calls.nodes
            for key, times in calls.called.items():
                inner = self._functions.get(key)
                if inner is None:
                    continue
                if key in active or depth > DEEPEST:
                    raise CorruptionError(f"The ONNX model's function '{key[0]}:{key[1]}' calls itself.")
                if key not in sizes:
                    active.add(key)
                    sizes[key] = size_of(inner, depth + 1)
                    active.discard(key)
                total += times * sizes[key]
            if total > MOST_NODES:
                raise CorruptionError(f"The ONNX model's functions expand to more than {MOST_NODES:,} nodes.")
            return total

        size_of(self._main, 0)
        for calls in self._functions.values():
            size_of(calls, 0)

    def _varint(self, at: int, end: int, longest: int = 10) -> tuple[int, int]:
        """Read a number with seven bits per byte. Return it and the offset after it."""
        value = 0
        for index in range(min(longest, end - at)):
            byte = self._data[at + index]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, at + index + 1
        raise _damaged("a number that does not end")


def _known(domain: str, name: str) -> bool:
    return domain in STANDARD or (domain == _MICROSOFT_DOMAIN and name in MICROSOFT)


def _standard(domain: str) -> bool:
    return domain in STANDARD or domain == _MICROSOFT_DOMAIN


def _external() -> TrustError:
    return TrustError(
        "The ONNX model keeps the numbers of a tensor in another file (external data), which a package cannot hold.",
        help="Save it in one file: onnx.save_model(model, path, save_as_external_data=False).",
    )


def _damaged(what: str) -> CorruptionError:
    return CorruptionError(f"The bytes are not an ONNX model: they contain {what}.", help="Export the model again.")
