"""Models that were changed are refused with a reason, or load and answer; the process that reads them lives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl
import pytest

import everloop as el
from everloop.errors import CorruptionError, EverloopError
from everloop.packages import import_package, package_manifest as manifests, read_package
from everloop.packages.isolation.isolated_load import IsolatedJob, ProcessLimits, probe_package, run
from everloop.packages.isolation.isolation_policy import admit
from everloop.packages.package import digest_of, digest_of_files, write_files
from everloop.records import ModelVersion, Package
from everloop.registry import save_model, verify_package
from everloop.stores import open_store
from everloop.stores.trust import Keyring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from everloop.stores import Store

pytestmark = pytest.mark.slow

MUTATIONS = int(os.environ.get("EVERLOOP_FUZZ", "24"))
ROWS = 200
Files = dict[str, bytes]


def numbers() -> tuple[Any, Any, Any]:
    chance = np.random.default_rng(0)
    rows = chance.normal(size=(ROWS, 4))
    rows[:, 3] = chance.integers(0, 6, ROWS)
    return rows, (rows[:, 0] + rows[:, 1] > 0).astype(int), chance.integers(0, 3, ROWS)


def mojo(trees: int = 4) -> bytes:
    """A MOJO of boosted trees as H2O writes it: each splits a number and then asks for a leaf."""
    head = ["algo = gbm", "category = Binomial", "mojo_version = 1.4", "n_features = 4", f"n_trees = {trees}"]
    head += ["n_trees_per_class = 1", "endianness = LITTLE_ENDIAN", "init_f = 0.1", "link_function = logit"]
    head += ["default_threshold = 0.5", "binomial_double_trees = false", "_genmodel_encoding = AUTO"]
    text = "[info]\n" + "\n".join(head) + "\n\n[columns]\nx0\nx1\nx2\nx3\ny\n\n[domains]\n4: 2 d000.txt\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.ini", text)
        archive.writestr("domains/d000.txt", "no\nyes\n")
        for number in range(trees):
            inner = struct.pack("<BHBfff", 0x50, number % 4, 2, 0.5, -0.2, 0.3)
            root = struct.pack("<BHBf", 0x40, (number + 1) % 4, 4, 0.1) + bytes([len(inner)]) + inner
            archive.writestr(f"trees/t00_{number:03d}.bin", root + struct.pack("<f", 0.7))
    return out.getvalue()


def fitted(kind: str) -> Any:
    rows, two, three = numbers()
    if kind == "lightgbm":
        import lightgbm

        given = {"num_leaves": 7, "n_estimators": 4, "verbose": -1, "n_jobs": 1}
        return lightgbm.LGBMClassifier(**given).fit(rows, two, categorical_feature=[3])
    if kind == "xgboost":
        import xgboost

        return xgboost.XGBClassifier(n_estimators=3, max_depth=3, n_jobs=1).fit(rows, three)
    if kind.startswith("catboost"):
        import catboost

        policy = "Lossguide" if kind.endswith("lossguide") else "SymmetricTree"
        given = {"iterations": 3, "depth": 3, "verbose": 0, "allow_writing_files": False, "thread_count": 1}
        return catboost.CatBoostClassifier(grow_policy=policy, **given).fit(rows, two)
    if kind == "mojo":
        return mojo()
    if kind == "graph":
        return small_graph()
    from sklearn import ensemble, neighbors, svm

    if kind == "onnx":
        from skl2onnx import to_onnx

        model = ensemble.RandomForestClassifier(3, max_depth=4, random_state=0).fit(rows, two)
        graph: bytes = to_onnx(model, rows[:1].astype("f4"), options={"zipmap": False}).SerializeToString()
        return graph
    made = {
        "forest": lambda: ensemble.RandomForestClassifier(3, max_depth=4, random_state=0),
        "boosting": lambda: ensemble.HistGradientBoostingClassifier(max_iter=3, max_leaf_nodes=6, random_state=0),
        "vectors": lambda: svm.SVC(random_state=0),
        "neighbours": lambda: neighbors.KNeighborsClassifier(algorithm="kd_tree"),
    }[kind]()
    return made.fit(rows, two)


KINDS = {
    "lightgbm": ["skops.io", "lightgbm"],
    "xgboost": ["xgboost"],
    "catboost": ["catboost"],
    "catboost-lossguide": ["catboost"],
    "onnx": ["onnxruntime"],
    "mojo": [],
    "forest": ["skops.io", "sklearn.ensemble"],
    "boosting": ["skops.io", "sklearn.ensemble"],
    "vectors": ["skops.io", "sklearn.svm"],
    "neighbours": ["skops.io", "sklearn.neighbors"],
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Files]]:
    """The files of a package of a kind, the manifest among them, made once."""
    folder = tmp_path_factory.mktemp("made")
    kept: dict[tuple[str, bool], Files] = {}
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "home") as store:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))

        def made(kind: str, *, compiled: bool = False) -> Files:
            if (kind, compiled) not in kept:
                example = pl.DataFrame(numbers()[0], schema=[f"x{place}" for place in range(4)])
                given = example if kind == "mojo" else example.to_numpy()
                version = save_model(fitted(kind), kind, example=given, store=store, compile=compiled, proof_s=0)
                manifest, files = read_package(store, version.package)
                kept[kind, compiled] = {**files, manifests.FILE: manifest.to_bytes()}
            return kept[kind, compiled]

        yield made


def changed(files: Files, name: str, data: bytes) -> Files:
    """A package with another file, whose digests say nothing against it."""
    whole = {**files, name: data}
    folder = name.rpartition("/")[0]
    for state, key in (("encoder.json", "model_sha256"), ("compiled.json", "sha256")):
        place = f"{folder}/{state}"
        if place in whole and place != name and key in (said := json.loads(whole[place])):
            whole[place] = json.dumps({**said, key: hashlib.sha256(data).hexdigest()}).encode()
    manifest = msgspec.json.decode(whole[manifests.FILE])
    manifest["files"] = {one: digest_of(whole[one]) for one in manifest["files"]}
    return {**whole, manifests.FILE: msgspec.json.encode(manifest)}


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        at, how = chance.randrange(len(found)), chance.random()
        if how < 0.5:
            found[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif how < 0.7:
            found[at : at + 4] = chance.randbytes(4)
        elif how < 0.8:
            del found[at : at + chance.randrange(1, 9)]
        elif how < 0.9:
            found[at:at] = chance.randbytes(chance.randrange(1, 9))
        else:
            found[at] ^= 1 << chance.randrange(8)
    return bytes(found)


def mutated_text(text: str, chance: random.Random) -> str:
    """Some numbers of a LightGBM text changed, and the sizes of its trees told again."""
    head, _, rest = text.partition("\n\n")
    body, end, tail = rest.partition("end of trees")
    for _ in range(chance.randrange(1, 4)):
        part, other = (head, body) if chance.random() < 0.15 else (body, head)
        places = [one.span() for one in re.finditer(r"(?<!Tree=)(?<![\w.])-?\d+(\.\d+)?(e-?\d+)?", part)]
        start, stop = chance.choice(places)
        value = chance.choice(["0", "-1", "3", "7", "99999", "-99999", "2147483647", "1e9", "nan", "", "1 1"])
        written = part[:start] + value + part[stop:]
        head, body = (written, other) if part is head else (other, written)
    trees = re.split(r"(?=Tree=\d)", body)[1:]
    if chance.random() < 0.9:
        head = re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(str(len(one)) for one in trees), head)
    return head + "\n\n" + "".join(trees) + end + tail


def mutated_archive(data: bytes, chance: random.Random) -> bytes:
    """A file in an archive changed, so that it is not only the archive that is damaged."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(sorted(held))
    schema = held.get("schema.json", b"").decode()
    text = next((one for one in re.findall(r'"content": ("\\"tree\\\\n.*?[^\\]")', schema)), None)
    if text is not None and chance.random() < 0.8:
        other = mutated_text(json.loads(json.loads(text)), chance)
        held["schema.json"] = schema.replace(text, json.dumps(json.dumps(other))).encode()
    elif held[name].startswith(b"\x93NUMPY"):
        values = np.load(io.BytesIO(held[name])).copy()
        if values.size:
            at = chance.randrange(values.size)
            flat = values.reshape(-1)
            key = chance.choice(values.dtype.names) if values.dtype.names else None
            spot = flat if key is None else flat[key]
            with np.errstate(all="ignore"):
                spot[at] = np.asarray(chance.choice([-1, 0, 1, 2, 77, 10**6, -(10**9)])).astype(spot.dtype)
        elif values.ndim:
            values = values[: len(values) // 2]
        out = io.BytesIO()
        np.save(out, values)
        held[name] = out.getvalue()
    else:
        held[name] = mutated_bytes(held[name], chance)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for one, content in held.items():
            archive.writestr(one, content)
    return out.getvalue()


def mutated(files: Files, seed: int) -> Files:
    chance = random.Random(seed)
    # A package that has a compiled form answers by that, so both are changed.
    name = chance.choice([name for name in files if name.startswith(("model/", "compiled/"))])
    data = files[name]
    if name.endswith(".txt"):
        return changed(files, name, mutated_text(data.decode(), chance).encode())
    if data.startswith(b"PK") and chance.random() < 0.8:
        return changed(files, name, mutated_archive(data, chance))
    return changed(files, name, mutated_bytes(data, chance))


def outcomes(jobs: list[Files], tmp_path: Path, libraries: list[str]) -> list[tuple[str, str]]:
    """What became of each package on trial, and of those that passed when they were asked."""
    given, out = tmp_path / "jobs", tmp_path / "out"
    given.write_bytes(
        pickle.dumps([(one[manifests.FILE], {n: d for n, d in one.items() if n != manifests.FILE}) for one in jobs])
    )
    script = Path(__file__).with_name("fuzz_models.py")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, script, given, out, *libraries],
        env={**os.environ, **threads, "MALLOC_PERTURB_": "165"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [(first, second) for first, second in json.loads(out.read_text())]


@pytest.mark.parametrize("kind", KINDS)
def test_changed_models_are_refused_or_answer(kind: str, packages: Callable[..., Files], tmp_path: Path) -> None:
    compiled = kind in ("lightgbm", "xgboost")
    files = packages(kind, compiled=compiled)
    jobs = [files, *(mutated(files, seed) for seed in range(MUTATIONS))]
    found = outcomes(jobs, tmp_path, KINDS[kind])
    assert found[0] == ("ok", "answers")
    # Reading on trial may end the child, which is a refusal. What passed never ends the process that serves.
    endings = [(seed - 1, one) for seed, one in enumerate(found) if one[1].startswith(("signal", "raised"))]
    assert not endings
    assert any(first != "ok" for first, _ in found)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_models_pass_the_trial_as_it_is(kind: str, packages: Callable[..., Files]) -> None:
    """In a Python of its own, with its limits, as no fork of this process is."""
    files = packages(kind)
    inner = {name: data for name, data in files.items() if name != manifests.FILE}
    probe_package(files[manifests.FILE], inner, "The package")


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os; os._exit(3)", "status 3"),
        ("print('[]', flush=True)", "status 0"),
        ("import time; time.sleep(600)", "more than 1 seconds"),
        ("import sys; sys.stdout.write('x' * 10_000_000)", "ended the process"),
    ],
)
def test_what_ends_the_child_is_a_refusal(last: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.packages.isolation import isolated_load

    monkeypatch.setattr(isolated_load, "_START", "path = {path!r}; " + last)
    limits = ProcessLimits(cpu_s=1, wall_s=1 if "sleep" in last else 60, memory_bytes=2**30)
    with pytest.raises(CorruptionError, match=reason) as refused:
        run(IsolatedJob(name="package", limits=limits), "The package 'x'")
    assert "The package 'x' ended the process that loaded it on trial" in refused.value.message


def test_the_child_has_nothing_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from everloop.packages.isolation import isolated_load

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    said = "import json, os; print(json.dumps(dict(error='DataError', message=repr((os.listdir(), dict(os.environ))))))"
    monkeypatch.setattr(isolated_load, "_START", "path = {path!r}; " + said)
    with pytest.raises(EverloopError) as told:
        run(IsolatedJob(name="package", limits=ProcessLimits.of(0)), "x")
    held, environment = eval(told.value.message)  # noqa: S307 - the child above wrote it
    assert not held
    assert "secret" not in str(environment)
    assert "EVERLOOP_KEYS" not in environment
    assert environment["HOME"] != os.environ.get("HOME")


def graph_of(nodes: list[Any]) -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None, 1])],
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    ).SerializeToString()
    return made


def small_graph() -> bytes:
    from onnx import TensorProto, helper

    axes = helper.make_node("Constant", [], ["a"], value=helper.make_tensor("a", TensorProto.INT64, [1], [1]))
    return graph_of([axes, helper.make_node("ReduceSum", ["X", "a"], ["Y"])])


def huge() -> bytes:
    """A graph of some hundred bytes that asks for a terabyte."""
    from onnx import TensorProto, helper

    shape = helper.make_tensor("s", TensorProto.INT64, [1], [2**38])
    return graph_of(
        [
            helper.make_node("Constant", [], ["s"], value=shape),
            helper.make_node("ConstantOfShape", ["s"], ["w"]),
            helper.make_node("ReduceSum", ["w"], ["t"], keepdims=0),
            helper.make_node("ReduceSum", ["X"], ["r"]),
            helper.make_node("Add", ["r", "t"], ["Y"]),
        ]
    )


def endless() -> bytes:
    """A graph that computes without end."""
    from onnx import TensorProto, helper

    def one(name: str, kind: int, shape: Any = ()) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    rows = [None, 4]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [one("turn", TensorProto.INT64), one("go", TensorProto.BOOL), one("v", TensorProto.FLOAT, rows)],
        [one("on", TensorProto.BOOL), one("w", TensorProto.FLOAT, rows)],
    )
    yes = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    return graph_of(
        [
            helper.make_node("Constant", [], ["go"], value=yes),
            helper.make_node("Loop", ["", "go", "X"], ["v"], body=body),
            helper.make_node("ReduceSum", ["v"], ["Y"]),
        ]
    )


@pytest.mark.parametrize(("attack", "reason"), [(huge, "(?i)alloc|memory"), (endless, "processor time")])
def test_a_model_that_takes_too_much_is_refused(
    attack: Callable[[], bytes],
    reason: str,
    packages: Callable[..., Files],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from everloop.packages.isolation import isolated_load

    monkeypatch.setattr(isolated_load, "CPU_S", 0)
    files = changed(packages("graph"), "model/model.onnx", attack())
    package = write_files(tmp_path / "package", files)
    with open_store(tmp_path / "other", create=True) as other, pytest.raises(EverloopError, match=reason):
        import_package(other, package)


def looped(text: str) -> str:
    """A tree whose second node is its own child, which LightGBM follows without end."""
    return re.sub(r"left_child=1 \d+", "left_child=1 1", text, count=1)


def test_changed_packages_come_in_nowhere(packages: Callable[..., Files], tmp_path: Path) -> None:
    files = packages("lightgbm", compiled=True)
    text = files["compiled/trees.txt"].decode()
    for number, other in enumerate(
        (
            looped(text),
            re.sub(r"right_child=-?\d+", "right_child=9999", text, count=1),
            re.sub(r"split_feature=\d", "split_feature=2000000000", text, count=1),
        )
    ):
        assert other != text
        trees = re.split(r"(?=Tree=\d)", other.partition("\n\n")[2].partition("end of trees")[0])[1:]
        sized = re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(str(len(one)) for one in trees), other)
        package = write_files(tmp_path / f"p{number}", changed(files, "compiled/trees.txt", sized.encode()))
        with open_store(tmp_path / f"home{number}", create=True) as store:
            with pytest.raises(CorruptionError, match="tree 0"):
                import_package(store, package)
            with pytest.raises(CorruptionError, match="tree 0"):
                el.load_model(package)
            # Put into the store by someone else.
            digest = store.objects.add_tree(package)
            _record(store, files, digest)
            with pytest.raises(CorruptionError, match="tree 0"):
                el.load_model(store, digest)
            assert not verify_package(store, digest).ok


def _record(store: Store, files: Files, digest: str) -> None:
    manifest = manifests.Manifest.from_bytes(files[manifests.FILE])
    store.records.put(
        store.new(Package, digest=digest, format=manifest.format, signature=manifest.signature, size_bytes=1),
        verb="imported",
    )


def test_a_sound_package_from_elsewhere_comes_in(packages: Callable[..., Files], tmp_path: Path) -> None:
    for kind, compiled in (("lightgbm", True), ("xgboost", False), ("catboost", False)):
        package = write_files(tmp_path / kind, packages(kind, compiled=compiled))
        with open_store(tmp_path / f"home-{kind}", create=True) as store:
            made = import_package(store, package)
            assert verify_package(store, made.digest).ok
            assert len(el.load_model(store, made.digest).predict([{f"x{place}": 1.0 for place in range(4)}])) == 1


def with_loop(blob: bytes) -> bytes:
    """A skops file whose LightGBM text has a tree that runs into itself."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held["schema.json"] = looped(held["schema.json"].decode()).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return out.getvalue()


def xgboost_with_loop() -> bytes:
    document = json.loads(fitted("xgboost").get_booster().save_raw("json"))
    document["learner"]["gradient_booster"]["model"]["trees"][0]["left_children"][1] = 1
    return json.dumps(document).encode()


SKOPS = {"sklearn": {"pickled_model": "m", "serialization_format": "skops"}}
FOLDERS: dict[str, tuple[dict[str, Any], Callable[[Callable[..., Files]], bytes]]] = {
    "a text": (
        {"lightgbm": {"data": "m"}},
        lambda _: looped(fitted("lightgbm").booster_.model_to_string()).encode(),
    ),
    "a text in skops": (SKOPS, lambda made: with_loop(made("lightgbm", compiled=True)["model/model.skops"])),
    "half a skops file": (SKOPS, lambda made: made("forest")["model/model.skops"][:3000]),
    "trees of XGBoost": (
        {"xgboost": {"data": "m", "model_class": "xgboost.sklearn.XGBClassifier"}},
        lambda _: xgboost_with_loop(),
    ),
    "half a graph": ({"onnx": {"data": "m"}}, lambda made: made("onnx")["model/model.onnx"][:500]),
}


@pytest.mark.usefixtures("forked_trials")
@pytest.mark.parametrize("attack", FOLDERS)
def test_changed_models_in_mlflow_folders_are_refused(
    attack: str, packages: Callable[..., Files], tmp_path: Path
) -> None:
    from everloop.integrations.mlflow.model_folders.folder_format import FORMAT

    pytest.importorskip("yaml")
    flavors, data = FOLDERS[attack]
    columns = [{"type": "double", "name": f"x{place}"} for place in range(4)]
    (tmp_path / "MLmodel").write_text(json.dumps({"flavors": flavors, "signature": {"inputs": json.dumps(columns)}}))
    (tmp_path / "m").write_bytes(data(packages))
    with open_store(tmp_path / "home", create=True) as store:
        with pytest.raises(CorruptionError):
            FORMAT.read(store, tmp_path, "m")
        assert not store.records.find(ModelVersion)


def test_a_sound_mlflow_folder_is_tried_and_taken(tmp_path: Path, store: Store) -> None:
    from everloop.integrations.mlflow.model_folders.folder_format import FORMAT

    pytest.importorskip("yaml")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"lightgbm": {"data": "m.txt"}}}))
    (folder / "m.txt").write_text(fitted("lightgbm").booster_.model_to_string())
    example = pl.DataFrame(numbers()[0], schema=[f"Column_{place}" for place in range(4)])
    assert FORMAT.read(store, folder, "m", example=example).key == "m@1"


def test_a_key_that_is_removed_counts_no_longer(
    packages: Callable[..., Files], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = packages("forest")
    digest = digest_of_files(files)
    manifest = manifests.Manifest.from_bytes(files[manifests.FILE])
    here, ring = Keyring(), Keyring(tmp_path / "theirs")
    signature = ring.sign(digest)
    here.trust(ring.public_key(), "ann")
    tried: list[str] = []
    monkeypatch.setattr("everloop.packages.isolation.isolated_load.probe_package", lambda *given: tried.append(digest))
    admit(manifest, files, digest, signature, store=store)
    assert not tried
    here.distrust("ann")
    admit(manifest, files, digest, signature, store=store)
    assert tried == [digest]
