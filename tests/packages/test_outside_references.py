"""No safe format may name a file, an address, a library or an operator outside of what the package holds."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import everloop as el
from everloop.errors import CorruptionError, EverloopError, TrustError
from everloop.packages import import_package, package_manifest as manifests, read_package
from everloop.packages.compilation.onnx_graphs import open_session
from everloop.packages.formats.file_checks import check_skops
from everloop.packages.formats.keras import check_keras
from everloop.packages.formats.lightgbm_text import check_text
from everloop.packages.formats.onnx_references import check_references
from everloop.packages.package import digest_of, write_files
from everloop.records import Package
from everloop.registry import export_package, save_model, verify_package
from everloop.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from everloop.stores import Store

SECRET = np.float32([0.25, 0.5, 0.75, 1.0]).tobytes()
X = np.float32([[1, 2], [3, 4], [5, 6]])


def outside(location: str = ".env", *, marked: bool = True, named: bool = True) -> TensorProto:
    """A tensor whose numbers lie in a file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 2])
    if marked:
        tensor.data_location = TensorProto.EXTERNAL
    if named:
        for key, value in (("location", location), ("offset", "0"), ("length", "8")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    else:
        tensor.raw_data = SECRET[:8]
    return tensor


def inside() -> TensorProto:
    return numpy_helper.from_array(np.float32([[1, 1]]), "w")


def model(nodes: Any, inits: Any = (), *, sparse: Any = (), functions: Any = (), opsets: Any = ()) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None, 1])],
        initializer=list(inits),
        sparse_initializer=list(sparse),
    )
    known = [helper.make_opsetid("", 18), *(helper.make_opsetid(*one) for one in opsets)]
    return helper.make_model(graph, opset_imports=known, ir_version=8, functions=list(functions))


def summed(tensor: TensorProto | None = None) -> onnx.ModelProto:
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [helper.make_node("Mul", ["X", "w"], ["m"]), helper.make_node("ReduceSum", ["m", "axes"], ["Y"])]
    return model(nodes, [axes, tensor if tensor is not None else inside()])


def constant(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], **attributes)


def branch(tensor: TensorProto) -> onnx.GraphProto:
    out = [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 2])]
    return helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "b", [], out, initializer=[tensor])


def function(nodes: Any, domain: str = "own", name: str = "f") -> onnx.FunctionProto:
    return helper.make_function(domain, name, ["X"], ["Y"], nodes, [helper.make_opsetid("", 18)])


def custom(domain: str, operator: str = "Op") -> onnx.ModelProto:
    return model([helper.make_node(operator, ["X"], ["Y"], domain=domain)], opsets=[(domain, 1)])


def sparse(**parts: TensorProto) -> onnx.SparseTensorProto:
    made = onnx.SparseTensorProto(dims=[1, 2])
    made.values.CopyFrom(parts.get("values", inside()))
    made.indices.CopyFrom(parts.get("indices", helper.make_tensor("i", TensorProto.INT64, [2], [0, 1])))
    return made


def with_subgraph(depth: int = 1) -> onnx.ModelProto:
    made = branch(outside())
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["b"], then_branch=made, else_branch=branch(inside()))
        made = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 2])])
    return model([*made.node, helper.make_node("Identity", ["b"], ["Y"])])


def trained() -> onnx.ModelProto:
    made = summed()
    made.training_info.add().algorithm.CopyFrom(branch(outside()))
    return made


def configured() -> onnx.ModelProto:
    made = summed()
    entry = made.metadata_props.add()
    entry.key, entry.value = "ort_config", json.dumps({"session_options": {"optimized_model_filepath": "out.onnx"}})
    return made


def endless() -> onnx.ModelProto:
    call = helper.make_node("g", ["X"], ["Y"], domain="own")
    back = helper.make_node("f", ["X"], ["Y"], domain="own")
    return model([call], functions=[function([back], name="g"), function([call], name="f")], opsets=[("own", 1)])


def unfolding() -> onnx.ModelProto:
    """Each function calls the one before ten times: a hundred nodes that unfold to ten thousand million."""
    made = [function([helper.make_node("Identity", ["X"], ["Y"])], name="f0")]
    for number in range(1, 11):
        calls = [helper.make_node(f"f{number - 1}", ["X"], [f"y{turn}"], domain="own") for turn in range(10)]
        made.append(function([*calls, helper.make_node("Identity", ["y0"], ["Y"])], name=f"f{number}"))
    return model([helper.make_node("f10", ["X"], ["Y"], domain="own")], functions=made, opsets=[("own", 1)])


STRANGE = helper.make_node("Op", ["X"], ["Y"], domain="x")
IDENTITY = helper.make_node("Identity", ["X"], ["Y"])
ATTACKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "initializer": lambda: summed(outside()),
    "absolute path": lambda: summed(outside("/etc/passwd")),
    "parent folder": lambda: summed(outside("../../.env")),
    "address in memory": lambda: summed(outside("*/_ORT_MEM_ADDR_/*")),
    "named but not marked": lambda: summed(outside(marked=False)),
    "marked but not named": lambda: summed(outside(named=False)),
    "constant": lambda: model([constant(value=outside()), IDENTITY]),
    "sparse constant": lambda: model([constant(sparse_value=sparse(values=outside())), IDENTITY]),
    "sparse indices": lambda: model([constant(sparse_value=sparse(indices=outside())), IDENTITY]),
    "list of tensors": lambda: model([helper.make_node("Identity", ["X"], ["Y"], many=[inside(), outside()])]),
    "list of sparse tensors": lambda: model([helper.make_node("Identity", ["X"], ["Y"], many=[sparse(values=outside())])]),  # noqa: E501
    "list of graphs": lambda: model([helper.make_node("Identity", ["X"], ["Y"], many=[branch(outside())])]),
    "sparse initializer": lambda: model([IDENTITY], sparse=[sparse(values=outside())]),
    "subgraph": with_subgraph,
    "deep subgraph": lambda: with_subgraph(8),
    "function": lambda: model(
        [helper.make_node("f", ["X"], ["Y"], domain="own")],
        functions=[function([constant(value=outside()), IDENTITY])],
        opsets=[("own", 1)],
    ),
    "function's default": lambda: model(
        [IDENTITY],
        functions=[
            helper.make_function(
                "own", "f", ["X"], ["Y"], [IDENTITY], [helper.make_opsetid("", 18)],
                attribute_protos=[helper.make_attribute("t", outside())],
            )
        ],
    ),
    "training graph": trained,
    "configuration of the runtime": configured,
    "custom operator": lambda: custom("my.company"),
    "Python operator": lambda: custom("ai.onnx.contrib", "PyOp"),
    "compiled part in a file": lambda: custom("com.microsoft", "EPContext"),
    "operator in a function": lambda: model([IDENTITY], functions=[function([STRANGE])]),
    "function named as a standard one": lambda: model([IDENTITY], functions=[function([IDENTITY], "", "Identity")]),
    "function that calls itself": endless,
    "functions that unfold": unfolding,
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_onnx_models_that_reach_outside_are_refused(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    (tmp_path / ".env").write_bytes(SECRET)
    monkeypatch.chdir(tmp_path)
    graph = ATTACKS[attack]().SerializeToString()
    for load in (check_references, open_session, lambda blob: save_model(blob, "m", example=X, store=store)):
        with pytest.raises((TrustError, CorruptionError), match="ONNX model"):
            load(graph)


@pytest.mark.parametrize(
    "made",
    [
        summed,
        lambda: model([constant(value=inside()), helper.make_node("MatMul", ["X", "w"], ["Y"])]),
        lambda: model(
            [helper.make_node("f", ["X"], ["Y"], domain="own")],
            functions=[function([helper.make_node("Neg", ["X"], ["Y"])])],
            opsets=[("own", 1)],
        ),
        lambda: custom("com.microsoft", "Gelu"),
    ],
)
def test_onnx_models_that_do_not_are_taken(made: Callable[[], onnx.ModelProto]) -> None:
    check_references(made().SerializeToString())


def test_fields_in_an_unusual_form_do_not_hide_a_reference() -> None:
    # A tag of more bytes than it needs, a field that comes twice, a field behind one that nothing knows.
    tensor = outside().SerializeToString()
    assert tensor.count(b"\x6a") == 3
    # Field 13, of length, in three bytes in place of one.
    padded = tensor.replace(b"\x6a", b"\xea\x80\x00", 1)
    parsed = TensorProto.FromString(padded)
    assert len(parsed.external_data) == 3

    def in_model(blob: bytes) -> bytes:
        def field(number: int, data: bytes) -> bytes:
            size = len(data)
            return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + data

        return field(7, field(5, blob))

    for blob in (padded, b"\x08\x01" + tensor, b"\xf8\x3f\x01" + tensor, inside().SerializeToString() + tensor):
        assert onnx.ModelProto.FromString(in_model(blob)).graph.initializer[0].external_data
        with pytest.raises(TrustError, match="external data"):
            check_references(in_model(blob))
    # A location of 1 + 2 ** 32 is 1 to protobuf.
    wide = TensorProto(name="w").SerializeToString() + b"\x70\x81\x80\x80\x80\x10"
    assert TensorProto.FromString(wide).data_location == TensorProto.EXTERNAL
    with pytest.raises(TrustError, match="external data"):
        check_references(in_model(wide))


@pytest.mark.parametrize(
    "blob", [b"", b"\x3b", b"\x3a\x05ab", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x07"]
)
def test_bytes_that_are_not_a_model_are_refused(blob: bytes) -> None:
    with pytest.raises(CorruptionError):
        open_session(blob)


def test_onnxruntimes_own_format_is_refused() -> None:
    with pytest.raises(TrustError, match=r"\.ort"):
        open_session(b"\x18\x00\x00\x00ORTM" + bytes(100))


def test_depth_is_bounded() -> None:
    # Graph in attribute in node in graph …, each a field of length.
    blob = b""
    for number in (*[6, 5, 1] * 130, 7):
        size = len(blob)
        blob = bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + blob
    with pytest.raises(CorruptionError, match="nests"):
        check_references(blob)


def test_the_walk_needs_no_onnx_package() -> None:
    code = "import sys; from everloop.packages.formats.onnx_references import check_references as check"
    code += "; check(b''); sys.exit('onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_large_model_is_walked_in_little_time() -> None:
    import time

    many = 200_000
    node = helper.make_node("TreeEnsembleRegressor", ["X"], ["Y"], domain="ai.onnx.ml")
    node.attribute.append(helper.make_attribute("nodes_values", np.linspace(0, 1, many).tolist()))
    node.attribute.append(helper.make_attribute("nodes_nodeids", list(range(many))))
    node.attribute.append(helper.make_attribute("nodes_modes", [b"BRANCH_LEQ", b"LEAF"] * (many // 2)))
    graph = model([node]).SerializeToString()
    began = time.process_time()
    check_references(graph)
    # Field by field it would take a second.
    assert time.process_time() - began < 0.5


# --- a package on its way in


def unsigned(store: Store, ref: str, folder: Path, change: dict[str, bytes]) -> Path:
    """A package as a stranger makes it: files changed, digests to fit, without a signature."""
    manifest, files = read_package(store, el.load_model(store, ref).digest or "")
    whole = {**files, **change}
    said = msgspec.json.decode(manifest.to_bytes())
    said["files"] = {name: digest_of(data) for name, data in whole.items()}
    return write_files(folder, {**whole, manifests.FILE: msgspec.json.encode(said)})


@pytest.mark.slow
def test_a_package_that_names_a_file_comes_in_nowhere(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(SECRET)
    save_model(summed().SerializeToString(), "sum", example=X, store=store, compile=False, proof_s=0)
    attack = {"model/model.onnx": summed(outside()).SerializeToString()}
    package = unsigned(store, "sum@1", tmp_path / "package", attack)
    with open_store(tmp_path / "other", create=True) as other:
        for path in (package,):
            with pytest.raises(TrustError, match="external data"):
                import_package(other, path)
            with pytest.raises(TrustError, match="external data"):
                el.load_model(path)
        assert not other.records.find(Package)
        # An earlier version took it in and signed it.
        from everloop.stores.trust import sign

        digest = other.objects.add_tree(package)
        said = manifests.Manifest.from_bytes((package / manifests.FILE).read_bytes())
        old = other.new(
            Package, digest=digest, format="onnx", signature=said.signature, size_bytes=1, trust=sign(digest)
        )
        other.records.put(old, verb="imported")
        found = verify_package(other, digest)
        assert not found.ok
        assert any("external data" in problem for problem in found.problems)
        with pytest.raises(TrustError, match="external data"):
            el.load_model(other, digest)


def test_what_cannot_be_parsed_is_never_signed(tmp_path: Path, store: Store) -> None:
    save_model(summed().SerializeToString(), "sum", example=X, store=store, compile=False, proof_s=0)
    package = unsigned(store, "sum@1", tmp_path / "package", {"model/model.onnx": b"\x3a\x02no"})
    with open_store(tmp_path / "other", create=True) as other:
        with pytest.raises(EverloopError):
            import_package(other, package)
        assert not other.records.find(Package)


@pytest.mark.slow
def test_an_unsigned_package_is_tried_once(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.packages.isolation import isolated_load

    tried: list[str] = []
    run = isolated_load.run
    monkeypatch.setattr(isolated_load, "run", lambda job, told: (tried.append(told), run(job, told)))
    save_model(summed().SerializeToString(), "sum", example=X, store=store, compile=False, proof_s=0)
    el.load_model(store, "sum@1")
    assert verify_package(store, "sum@1").ok
    # What was made here is not tried, and neither is what a trusted key signed.
    export_package(store, "sum@1", tmp_path / "signed")
    import_package(store, tmp_path / "signed")
    el.load_model(tmp_path / "signed")
    assert not tried
    package = unsigned(store, "sum@1", tmp_path / "package", {"requirements.txt": b"numpy\n"})
    with open_store(tmp_path / "other", create=True) as other:
        digest = import_package(other, package).digest
        import_package(other, package)
        el.load_model(other, digest)
        assert len(tried) == 1
    assert el.load_model(package).predict([{"x0": 1.0, "x1": 2.0}]) == [3.0]
    el.load_model(package)
    assert len(tried) == 2


# --- other formats


def booster_text(**parameters: str) -> bytes:
    import lightgbm

    rows = np.random.default_rng(0).normal(size=(100, 2))
    made = lightgbm.train({"verbose": -1, "num_leaves": 4}, lightgbm.Dataset(rows, rows[:, 0]), 2)
    text = made.model_to_string()
    for name, value in parameters.items():
        assert f"[{name}: ]" in text
        text = text.replace(f"[{name}: ]", f"[{name}: {value}]")
    return text.encode()


@pytest.mark.parametrize(
    "name",
    [
        "data",
        "valid",
        "forcedsplits_filename",
        "forcedbins_filename",
        "parser_config_file",
        "machine_list_filename",
        "machines",
    ],
)
def test_parameters_of_lightgbm_name_no_file(name: str) -> None:
    with pytest.raises(TrustError, match=f"'{name}' names '/etc/passwd'"):
        check_text(booster_text(**{name: "/etc/passwd"}))


def test_parameters_that_are_not_in_a_text_as_written_name_no_file() -> None:
    text = booster_text().replace(b"\nparameters:\n", b"\nparameters:\n[ input_model : x ]\n")
    with pytest.raises(TrustError, match="'input_model'"):
        check_text(text)
    check_text(booster_text())


def test_a_vectorizer_does_not_read_files() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from everloop.packages.formats.estimator import dump_estimator, load_estimator

    texts = ["good fine", "bad poor"] * 5
    fine = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, [1, 0] * 5)
    kept, blob = dump_estimator(fine)
    assert kept == "sklearn"
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    for wicked in ("filename", "file"):
        schema = held["schema.json"].replace(b'\\"content\\"', f'\\"{wicked}\\"'.encode())
        assert schema != held["schema.json"]
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, data in {**held, "schema.json": schema}.items():
                archive.writestr(name, data)
        with pytest.raises(TrustError, match="reads files"):
            load_estimator(out.getvalue(), "sklearn", "")


def keras_file(config: Any, **members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", "{}")
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def layer(name: str, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": None}


def network(*layers: Any, **more: Any) -> dict[str, Any]:
    return {**layer("Sequential", "keras", layers=list(layers)), **more}


@pytest.mark.parametrize(
    "config",
    [
        network(layer("Lambda", function={"class_name": "__lambda__", "config": {"code": "x"}})),
        network(layer("StringLookup", vocabulary="/etc/passwd")),
        network(layer("TextVectorization", vocabulary="/etc/passwd")),
        network(layer("IntegerLookup", vocabulary="gs://bucket/file")),
        network(layer("TFSMLayer", filepath="/srv/model")),
        network(layer("FeatureSpace")),
        network(layer("Dense", module="os")),
        network(layer("system", module="os")),
        network(layer("get_file", module="keras.utils")),
        network(layer("load_model", module="keras.initializers")),
        network(layer("function", module="builtins", origin="http://example.org/x")),
        network(
            layer("Dense", kernel_initializer=layer("open_file", module="keras.src.initializers.random_initializers"))
        ),
        network({**layer("Dense"), "registered_name": "Own>Dense"}),
        network(network(layer("Dense"), compile_config={"optimizer": layer("Own", module="own")})),
        network(layer("Dense"), build_config=layer("Own", module="own")),
    ],
)
def test_keras_configurations_name_nothing_else(config: Any) -> None:
    with pytest.raises(TrustError, match="not known to be harmless"):
        check_keras(keras_file(config))


@pytest.mark.parametrize("member", ["assets/vocabulary.txt", "model.weights.npz", "../x"])
def test_keras_files_hold_only_their_parts(member: str) -> None:
    with pytest.raises(TrustError, match="not known to be harmless"):
        check_keras(keras_file(network(layer("Dense")), **{member: b""}))


def test_a_harmless_keras_configuration_is_taken() -> None:
    given = layer("Dense", units=1, kernel_initializer=layer("GlorotUniform", "keras.initializers", seed=None))
    check_keras(keras_file(network(layer("InputLayer"), given)))


@pytest.mark.parametrize("blob", [b"", b"PK\x03\x04", keras_file([])[:40]], ids=["empty", "signature", "cut"])
def test_keras_files_that_are_none_are_refused(blob: bytes) -> None:
    with pytest.raises(CorruptionError):
        check_keras(blob)


def test_weights_of_keras_lie_in_its_own_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from everloop.packages.formats.keras import _check_weights

    def weights(fill: Callable[[Any], None]) -> bytes:
        with h5py.File(tmp_path / "w.h5", "w") as file:
            fill(file)
        return keras_file({}, **{"model.weights.h5": (tmp_path / "w.h5").read_bytes()})

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(4,))
        file.create_virtual_dataset("x", layout)

    _check_weights(weights(lambda file: file.create_group("a").create_dataset("x", data=[1.0])))
    for wicked in (
        virtual,
        lambda file: file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)]),
        lambda file: file.create_group("a").__setitem__("x", h5py.ExternalLink("/etc/passwd", "x")),
        lambda file: file.__setitem__("x", h5py.SoftLink("/y")),
    ):
        with pytest.raises(TrustError):
            _check_weights(weights(wicked))


@pytest.mark.slow
def test_archives_that_unpack_to_too_much_are_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("schema.json", "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(CorruptionError, match="too many"):
        check_skops(out.getvalue())


def test_exported_programs_stay_code(store: Store, tmp_path: Path) -> None:
    """`torch.export.load` unpickles, so the format is not one of the safe ones, whatever a package says."""
    assert "torch" not in manifests.SAFE
    save_model(summed().SerializeToString(), "sum", example=X, store=store, compile=False, proof_s=0)
    package = unsigned(store, "sum@1", tmp_path / "package", {"model/program.pt2": b"PK"})
    said = msgspec.json.decode((package / manifests.FILE).read_bytes())
    (package / manifests.FILE).write_bytes(msgspec.json.encode({**said, "format": "torch"}))
    for load in (lambda: import_package(store, package), lambda: el.load_model(package)):
        with pytest.raises(TrustError, match="is unsigned"):
            load()
