"""Packages are checked, listed, explained, and carried from one store to another."""

from __future__ import annotations

import io
import json
import math
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression

from everloop.errors import CorruptionError, NotFoundError, TrustError, UsageError
from everloop.packages import build_package, environment_sbom, import_package, read_package
from everloop.registry import export_package, load_model, register, save_model, verify_package
from everloop.stores import Store, open_store
from everloop.stores.trust import Keyring

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.training.trained_model import Trained


@pytest.fixture
def numbers() -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=["a", "b", "c"])


def log_odds(chance: float) -> float:
    return math.log(chance / (1 - chance))


@pytest.mark.parametrize("which", ["linear", "lightgbm"])
def test_contributions_of_own_models_add_up(
    store: Store, table: pl.DataFrame, which: str, request: pytest.FixtureRequest
) -> None:
    trained: Trained = request.getfixturevalue(which)
    predictor = load_model(store, build_package(trained, store=store, sample=table).digest)
    frame = table.head(20)
    told = predictor.explain(frame)
    assert len(told) == 20
    for entry, chance in zip(told, predictor.predict(frame).tolist(), strict=True):
        assert set(entry["contributions"]) == set(predictor.input_names)
        assert entry["bias"] + sum(entry["contributions"].values()) == pytest.approx(log_odds(chance), abs=1e-9)


@pytest.mark.slow
def test_contributions_of_compiled_models_add_up(store: Store, numbers: pd.DataFrame) -> None:
    truth = numbers["a"] > numbers["b"]
    frame = pl.DataFrame(numbers).head(10)
    for name, model in {
        "hist": HistGradientBoostingClassifier(max_iter=10),
        "weights": LogisticRegression(),
    }.items():
        save_model(model.fit(numbers, truth), name, numbers, store=store)
        predictor = load_model(store, name)
        for entry, chance in zip(predictor.explain(frame), predictor.predict(frame).tolist(), strict=True):
            assert entry["bias"] + sum(entry["contributions"].values()) == pytest.approx(log_odds(chance), abs=1e-9)
        strongest = predictor.explain([{"a": 3.0, "b": 0.0, "c": 0.0}])[0]["contributions"]
        assert max(strongest, key=lambda column: abs(strongest[column])) == "a"
    forest = RandomForestRegressor(5, max_depth=4).fit(numbers, numbers["a"])
    save_model(forest, "forest", numbers, store=store)
    predictor = load_model(store, "forest")
    (entry,) = predictor.explain(frame.head(1))
    assert entry["bias"] + sum(entry["contributions"].values()) == pytest.approx(predictor.predict(frame.head(1))[0])
    # What is expected of no row in particular is the mean of the rows that the trees were grown on.
    assert entry["bias"] == pytest.approx(numbers["a"].mean(), abs=0.3)


@pytest.mark.slow
def test_a_function_tells_no_contributions(store: Store, numbers: pd.DataFrame) -> None:
    save_model(lambda table: table["a"], "plain", numbers, store=store)
    with pytest.raises(UsageError, match="cannot explain its predictions"):
        load_model(store, "plain").explain(pl.DataFrame(numbers).head(1))


def test_verifying(store: Store, table: pl.DataFrame, linear: Trained, monkeypatch: Any, tmp_path: Path) -> None:
    package = build_package(linear, store=store, sample=table)
    register(store, "delays", package)
    found = verify_package(store, "delays@1")
    assert found.ok
    assert found.trusted
    assert found.answers
    assert found.version == "delays@1"
    assert found.signed_by == package.trust["key"]  # type: ignore[index]
    assert verify_package(store, package.digest).version is None
    with pytest.raises(NotFoundError):
        verify_package(store, "delays@7")
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "elsewhere"))
    stranger = verify_package(store, "delays@1")
    assert not stranger.ok
    assert not stranger.trusted
    assert "not trusted" in stranger.problems[0]


def test_verifying_finds_a_changed_byte(store: Store, table: pl.DataFrame, linear: Trained) -> None:
    register(store, "delays", build_package(linear, store=store, sample=table))
    for path in (store.home / "objects").rglob("*"):
        if path.is_file() and b"bias" in (data := path.read_bytes()):
            path.chmod(0o644)
            path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with open_store(store.home) as fresh:
        found = verify_package(fresh, "delays@1")
    assert not found.ok
    assert found.problems


def test_bill_of_materials(store: Store, table: pl.DataFrame, lightgbm: Trained) -> None:
    package = build_package(lightgbm, store=store, sample=table)
    manifest, _ = read_package(store, package.digest)
    bill = environment_sbom(manifest, name="delays", version="1", digest=package.digest)
    broken = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps({**bill, "specVersion": "1.6", "x": 1}))
    assert broken is not None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    libraries = {item["name"]: item for item in bill["components"] if item["type"] == "library"}
    assert libraries["numpy"]["purl"] == f"pkg:pypi/numpy@{np.__version__}"
    # Also what the libraries themselves need.
    assert {"lightgbm", "msgspec", "scipy", "polars-runtime-32"} <= set(libraries)
    needed = {item["ref"]: item["dependsOn"] for item in bill["dependencies"]}
    assert libraries["scipy"]["bom-ref"] in needed[libraries["lightgbm"]["bom-ref"]]
    references = [item["bom-ref"] for item in bill["components"]]
    assert len(references) == len(set(references))
    assert set(bill["dependencies"][0]["dependsOn"]) == set(references)
    assert bill == environment_sbom(manifest, name="delays", version="1", digest=package.digest)
    assert bill["metadata"]["component"]["hashes"][0]["content"] == package.digest.removeprefix("sha256:")


def packed(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    """An archive as somebody else may write it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            member = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            held = b"" if isinstance(data, tarfile.TarInfo) else data
            member.size = len(held)
            archive.addfile(member, io.BytesIO(held))
    path.write_bytes(pa.compress(out.getvalue(), codec="zstd", asbytes=True))
    return path


def unpacked(path: Path) -> dict[str, bytes | tarfile.TarInfo]:
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        archive = tarfile.open(fileobj=io.BytesIO(stream.read()))  # noqa: SIM115
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delays.tar.zst", "delays"])
def test_one_file_or_folder_goes_to_another_store(
    tmp_path: Path, store: Store, table: pl.DataFrame, lightgbm: Trained, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = build_package(lightgbm, store=store, sample=table)
    path = export_package(store, package.digest, tmp_path / name)
    again = export_package(store, package.digest, tmp_path / f"again-{name}")
    if path.is_file():
        assert again.read_bytes() == path.read_bytes()
        assert path.stat().st_size < package.size_bytes
    with pytest.raises(UsageError, match="exists already"):
        export_package(store, package.digest, path)
    np.testing.assert_array_equal(load_model(path).predict(table), lightgbm.predict_scores(table))
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "elsewhere"))
    with open_store(tmp_path / "other") as other:
        arrived = import_package(other, path)
        assert arrived.digest == package.digest
        assert arrived.parity == package.parity
        assert import_package(other, path).id == arrived.id
        register(other, "delays", arrived)
        np.testing.assert_array_equal(load_model(other, "delays").predict(table), lightgbm.predict_scores(table))
        assert verify_package(other, "delays@1").ok


def test_other_archives_are_not_written(tmp_path: Path, store: Store, table: pl.DataFrame, linear: Trained) -> None:
    package = build_package(linear, store=store, sample=table)
    with pytest.raises(UsageError, match=r"'\.zip'"):
        export_package(store, package.digest, tmp_path / "delays.zip")


@pytest.mark.slow
def test_code_does_not_come_in_unsigned(
    tmp_path: Path, store: Store, numbers: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = save_model(lambda table: table["a"], "plain", numbers, store=store)
    paths = [export_package(store, version.package, tmp_path / name) for name in ("plain.tar.zst", "plain")]
    with open_store(tmp_path / "own") as own:
        assert import_package(own, paths[0]).digest == version.package
    for path in paths:
        assert load_model(path).predict([{"a": 1.0, "b": 0.0, "c": 0.0}]).tolist() == [1.0]
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "elsewhere"))
    for path in paths:
        with open_store(tmp_path / "other") as other, pytest.raises(TrustError):
            import_package(other, path)
        with pytest.raises(TrustError):
            load_model(path)
    Keyring().trust_digest(version.package, "looked at by me")
    with open_store(tmp_path / "other") as other:
        assert import_package(other, paths[1]).digest == version.package
    assert load_model(paths[0]).digest == version.package


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "a/../../secret", "model\\x", "c:/x", "model/", "./x"])
def test_file_names_that_lead_outside(tmp_path: Path, store: Store, name: str) -> None:
    path = packed(tmp_path / "bad.tar.zst", {"everloop.json": b"{}", name: b"x"})
    with pytest.raises(CorruptionError):
        import_package(store, path)
    assert not (tmp_path / "secret").exists()


def test_links_and_devices_are_refused(tmp_path: Path, store: Store) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo("model")
        member.type, member.linkname = kind, "/etc/passwd"
        path = packed(tmp_path / "bad.tar.zst", {"everloop.json": b"{}", "model": member})
        with pytest.raises(CorruptionError, match="not a regular file"):
            import_package(store, path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "everloop.json").symlink_to("/etc/passwd")
    with pytest.raises(CorruptionError, match="symbolic link"):
        import_package(store, folder)


def test_a_small_file_that_unpacks_to_anything_is_refused(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.packages.archive.MOST_BYTES", 2**20)
    path = packed(tmp_path / "bomb.tar.zst", {"everloop.json": bytes(2**24)})
    assert path.stat().st_size < 2**16
    with pytest.raises(CorruptionError, match="more than 1048576 bytes"):
        import_package(store, path)


def test_damaged_files_are_refused(tmp_path: Path, store: Store, table: pl.DataFrame, linear: Trained) -> None:
    package = build_package(linear, store=store, sample=table)
    path = export_package(store, package.digest, tmp_path / "delays.tar.zst")
    whole = path.read_bytes()
    with open_store(tmp_path / "other") as other:
        for at in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
            try:
                arrived = import_package(other, path)
            except CorruptionError:
                continue
            # What lies between the files of an archive says nothing of the package.
            assert arrived.digest == package.digest
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CorruptionError):
            import_package(other, path)
        with pytest.raises(NotFoundError):
            import_package(other, tmp_path / "nothing.tar.zst")
        path.write_bytes(whole)
        more = packed(tmp_path / "more.tar.zst", {**unpacked(path), "stranger.py": b"print()"})
        with pytest.raises(CorruptionError, match=r"stranger\.py"):
            import_package(other, more)


def test_what_a_file_says_of_itself_is_checked(
    tmp_path: Path, store: Store, table: pl.DataFrame, linear: Trained
) -> None:
    path = export_package(store, build_package(linear, store=store, sample=table).digest, tmp_path / "a.tar.zst")
    members = unpacked(path)
    told = {**json.loads(members["signature.json"]), "package": "sha256:" + "0" * 64}  # type: ignore[arg-type]
    packed(tmp_path / "b.tar.zst", {**members, "signature.json": json.dumps(told).encode()})
    with pytest.raises(CorruptionError, match="says that it is"):
        import_package(store, tmp_path / "b.tar.zst")
