"""Build contexts and Azure's scoring script: their contents, and that the same version gives the same bytes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.deploy.azure_ml import AzureScoring, export_script, find_package
from everloop.deploy.images import dockerfile, write_context
from everloop.errors import DataError, NotFoundError, TrustError, UsageError
from everloop.packages import build_package
from everloop.packages.environment_lock import Locked, requirements
from everloop.packages.package_manifest import Manifest, PackageEnvironment
from everloop.registry import load_model, register, save_model

if TYPE_CHECKING:
    from everloop.stores import Store
    from everloop.training.trained_model import Trained


def state(folder: Path) -> dict[str, tuple[int, float, str]]:
    """Mode, time and bytes of everything in a folder."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mode,
            path.stat().st_mtime,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in folder.rglob("*")
    }


@pytest.mark.slow
def test_a_context_is_whole_small_and_the_same_twice(
    tmp_path: Path, store: Store, table: pl.DataFrame, lightgbm: Trained
) -> None:
    register(store, "delays", build_package(lightgbm, store=store, sample=table))
    made = write_context(store, "delays", tmp_path / "one")
    write_context(store, "delays@1", tmp_path / "two")
    assert state(tmp_path / "one") == state(tmp_path / "two")
    assert made.version == "delays@1"
    text = (tmp_path / "one" / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim$", text, re.MULTILINE)
    assert re.search(r"^USER (\d+):", text, re.MULTILINE)[1] != "0"  # type: ignore[index]
    assert 'ENTRYPOINT ["python", "-m", "everloop.cli.container"]' in text
    names = {line.partition("==")[0] for line in (tmp_path / "one" / "requirements.txt").read_text().splitlines()}
    assert {"numpy", "uvicorn", "lightgbm", "click"} <= names
    # Trees need LightGBM's shared library, and nothing that it trains with.
    assert not {"scipy", "scikit-learn", "pandas", "everloop"} & names
    assert load_model(tmp_path / "one" / "package").digest == made.package
    assert not (tmp_path / "one" / "keys").exists()
    assert not list((tmp_path / "one").rglob("*.pyc"))
    with_training = write_context(store, "delays@1", tmp_path / "three", base="scratch-python", train=True)
    assert any(one.startswith("scipy==") for one in with_training.distributions)
    assert "FROM scratch-python" in (tmp_path / "three" / "Dockerfile").read_text()
    with pytest.raises(UsageError, match="exists already"):
        write_context(store, "delays@1", tmp_path / "one")
    with pytest.raises(NotFoundError):
        write_context(store, "delays@2", tmp_path / "four")


@pytest.mark.slow
def test_an_image_trusts_who_signed_its_code(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pl.DataFrame({"a": [1.0, 2.0]})
    save_model(lambda rows: rows["a"], "plain", table, store=store)
    write_context(store, "plain@1", tmp_path / "context")
    export_script(store, "plain@1", tmp_path / "azure")
    for made in ("context", "azure"):
        monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / made / "keys"))
        assert load_model(tmp_path / made / "package").predict([{"a": 3.0}]).tolist() == [3.0]
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "stranger"))
    with pytest.raises(TrustError):
        load_model(tmp_path / "context" / "package")
    with pytest.raises(TrustError):
        write_context(store, "plain@1", tmp_path / "more")


def test_the_scoring_script_answers_and_refuses(
    tmp_path: Path, store: Store, table: pl.DataFrame, linear: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    from everloop.errors import RequestError
    from everloop.testing.models import sample_rows

    register(store, "delays", build_package(linear, store=store, sample=table))
    folder = export_script(store, "delays@1", tmp_path / "azure")
    scoring = AzureScoring.start(folder)
    rows = sample_rows(2)
    answer = scoring.answer(msgspec.json.encode({"instances": rows}))
    assert answer["probabilities"] == linear.predict_scores(table.head(2)).tolist()
    by_order = [[row[name] for name in scoring.predictor.signature.names] for row in rows]
    assert scoring.answer(msgspec.json.encode({"instances": by_order})) == answer
    for body in (b"{", b"[]", b"{}", b'{"instances": []}', b'{"instances": 3}', b'{"instances": [{"a": 1}]}'):
        with pytest.raises(RequestError):
            scoring.answer(body)
    # The deployment's own model goes first; Azure mounts it one folder below.
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path / "mounted"))
    assert AzureScoring.start(folder).predictor.digest == scoring.predictor.digest
    (tmp_path / "mounted").mkdir()
    (folder / "package").rename(tmp_path / "mounted" / "delays")
    assert AzureScoring.start(folder).predictor.digest == scoring.predictor.digest
    monkeypatch.delenv("AZUREML_MODEL_DIR")
    with pytest.raises(NotFoundError, match="no package"):
        AzureScoring.start(folder)
    assert find_package(tmp_path / "nothing") is None


def manifest(python: str = "3.12.1") -> Manifest:
    return Manifest(
        format="linear",
        target="y",
        signature={},
        files={},
        environment=PackageEnvironment(python=python, platform="linux"),
    )


@pytest.mark.parametrize(
    ("model", "quoted"),
    [
        ("delays", "delays"),
        ("my model", '"my model"'),
        ("a; touch x", '"a; touch x"'),
        ("$(id) ${HOME} `id`", '"\\$(id) \\${HOME} `id`"'),
        ('" PATH=x', '"\\" PATH=x"'),
        ("a\\", '"a\\\\"'),
        ("a PYTHONPATH=/x", '"a PYTHONPATH=/x"'),
    ],
)
def test_a_models_name_stays_one_value_in_a_dockerfile(model: str, quoted: str) -> None:
    lines = dockerfile(manifest(), model, {}).splitlines()
    (line,) = [line for line in lines if line.startswith("ENV ")]
    assert line.endswith(f" EVERLOOP_MODEL={quoted}")
    assert len(lines) == len(dockerfile(manifest(), "delays", {}).splitlines())


@pytest.mark.parametrize("text", ["a\nRUN evil", "a\rRUN evil", "a\x00", "a\u2028RUN evil", "a\x1b[2J"])
def test_nothing_adds_a_line_to_a_dockerfile(text: str) -> None:
    with pytest.raises(UsageError, match="Dockerfile"):
        dockerfile(manifest(), text, {})
    with pytest.raises(UsageError, match="not the name of an image"):
        dockerfile(manifest(), "delays", {}, base=f"python:{text}")
    with pytest.raises(DataError, match="not a Python version"):
        dockerfile(manifest(f"3.12{text}"), "delays", {})


@pytest.mark.parametrize("base", ["", "-x", "a b", "a;id", "$(id)", "python:3.12 AS x", "a#b", "a\\"])
def test_an_image_is_named_by_a_name(base: str) -> None:
    if base:
        with pytest.raises(UsageError, match="not the name of an image"):
            dockerfile(manifest(), "delays", {}, base=base)


@pytest.mark.parametrize(
    ("name", "version", "archive"),
    [
        ("numpy\n--index-url http://evil/", "1", None),
        ("--index-url", "1", None),
        ("-e git+https://evil/x", "1", None),
        ("numpy @ https://evil/x.whl", "1", None),
        ("numpy", "1 --extra-index-url http://evil/", None),
        ("numpy", "1; import os", None),
        ("numpy", "1\n-r /etc/passwd", None),
        ("../x", "1", None),
        ("$(id)", "1", None),
        ("numpy", "1", "sha256:x --index-url http://evil/"),
    ],
)
def test_a_lock_names_distributions_and_nothing_else(name: str, version: str, archive: str | None) -> None:
    with pytest.raises(DataError, match="not a valid distribution"):
        requirements({name: Locked(version=version, archive=archive)})
