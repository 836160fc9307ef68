"""Artifacts of runs, read with the tools for their file types."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from everloop.data import take_snapshot
from everloop.errors import NotFoundError, UsageError
from everloop.records import Artifact
from everloop.stores import Store
from everloop.stores.verify import verify
from everloop.tracking import start_run
from everloop.tracking.run_artifacts import digest_rows


def read(store: Store, artifact: Artifact) -> bytes:
    return store.objects.read(artifact.digest)


def test_texts_and_json(store: Store) -> None:
    with start_run("train", store=store) as run:
        text = run.log_text("notes/why", "weil es regnet ☂", step=3)
        value = run.log_json("layers", {"b": [1, 2], "a": None})
        assert run.log_dict("layers", {"a": None, "b": [1, 2]}).digest == value.digest
        with pytest.raises(UsageError, match="JSON cannot hold 'raw'"):
            run.log_json("raw", b"123")
        with pytest.raises(UsageError, match="is not a valid name"):
            run.log_text(" ", "x")
    assert read(store, text).decode() == "weil es regnet ☂"
    assert text.meta == {"shows": "text", "media": "text/plain; charset=utf-8", "file": "why.txt", "step": 3}
    assert json.loads(read(store, value)) == {"a": None, "b": [1, 2]}


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "arrow", "dict", "rows"])
def test_tables_of_any_library_are_kept_as_parquet(store: Store, kind: str) -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    given: dict[str, Any] = {
        "polars": lambda: frame,
        "lazy": lambda: frame.lazy(),
        "pandas": lambda: __import__("pandas").DataFrame({"a": [1, 2], "b": ["x", None]}),
        "arrow": lambda: frame.to_arrow(),
        "dict": lambda: {"a": [1, 2], "b": ["x", None]},
        "rows": lambda: [{"a": 1, "b": "x"}, {"a": 2, "b": None}],
    }
    with start_run("train", store=store) as run:
        kept = run.log_table("answers", given[kind]())
    back = pl.read_parquet(io.BytesIO(read(store, kept)))
    assert back.rows() == frame.rows()
    assert (kept.meta["rows"], list(kept.meta["columns"]), kept.meta["file"]) == (2, ["a", "b"], "answers.parquet")


@pytest.mark.parametrize("value", [3, object(), "a,b", {"a": [1], "b": [1, 2]}])
def test_what_is_no_table_is_refused(store: Store, value: object) -> None:
    with start_run("train", store=store) as run, pytest.raises(UsageError, match="a table"):
        run.log_table("answers", value)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
def test_arrays_become_images_that_others_read(store: Store, shape: tuple[int, ...], dtype: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, shape)
    given = (pixels / 255).astype(dtype) if dtype == np.float32 else pixels.astype(dtype)
    with start_run("train", store=store) as run:
        kept = run.log_image("digit", given, step=1)
    back = np.asarray(image.open(io.BytesIO(read(store, kept))))
    expected = (pixels != 0) * 255 if dtype == np.bool_ else pixels
    assert np.array_equal(back, expected.squeeze())
    assert (kept.meta["width"], kept.meta["height"], kept.meta["media"]) == (5, 3, "image/png")


def test_images_of_pil_are_kept(store: Store) -> None:
    image = pytest.importorskip("PIL.Image")
    with start_run("train", store=store) as run:
        kept = run.log_image("red", image.new("RGB", (4, 2), "red"))
    assert image.open(io.BytesIO(read(store, kept))).getpixel((3, 1)) == (255, 0, 0)


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((2, 2, 2)), np.full((2, 2), 300), np.zeros((0, 2)), "x"])
def test_what_is_no_image_is_refused(store: Store, value: Any) -> None:
    with start_run("train", store=store) as run, pytest.raises(UsageError, match="image"):
        run.log_image("digit", value)


@pytest.mark.slow
def test_figures_of_matplotlib(store: Store) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4])
    with start_run("train", store=store) as run:
        whole, by_axes = run.log_figure("curve", figure), run.log_figure("curve", axes)
        with pytest.raises(UsageError, match="is not a figure"):
            run.log_figure("curve", 3)
    assert read(store, whole).startswith(b"\x89PNG\r\n")
    assert whole.digest == by_axes.digest
    assert whole.meta["file"] == "curve.png"


@pytest.mark.slow
def test_figures_that_draw_themselves_again(store: Store) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    altair = pytest.importorskip("altair")
    line = graph_objects.Figure(graph_objects.Scatter(x=[1, 2], y=[3, 4]))
    chart = altair.Chart(altair.Data(values=[{"x": 1, "y": 3}])).mark_point().encode(x="x:Q", y="y:Q")
    with start_run("train", store=store) as run:
        kept = {"plotly": run.log_figure("line", line), "altair": run.log_figure("chart", chart)}
    again = graph_objects.Figure(json.loads(read(store, kept["plotly"])))
    assert list(again.data[0].y) == [3, 4]
    assert altair.Chart.from_json(read(store, kept["altair"]).decode()).to_dict()["mark"] == {"type": "point"}
    assert [artifact.meta["file"] for artifact in kept.values()] == ["line.plotly.json", "chart.vl.json"]


def test_a_histogram_counts_what_numpy_counts(store: Store) -> None:
    values = np.random.default_rng(0).normal(size=1000)
    with start_run("train", store=store) as run:
        kept = run.log_histogram("weights", [*values, math.nan, math.inf], step=2, bins=10)
        empty = run.log_histogram("none", [])
        wide = run.log_histogram("wide", [-1.7e308, 1.7e308])
        with pytest.raises(UsageError, match="needs numbers"):
            run.log_histogram("words", ["a"])
    said = json.loads(read(store, kept))
    counts, edges = np.histogram(values, bins=10)
    assert (said["counts"], said["nan"], said["infinite"]) == (counts.tolist(), 1, 1)
    assert np.allclose(said["edges"], edges)
    assert sum(json.loads(read(store, empty))["counts"]) == 0
    assert sum(json.loads(read(store, wide))["counts"]) == 2


def test_files_and_folders_under_their_own_names(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    with start_run("train", store=store) as run:
        assert (run.log_file(folder / "a.txt").name, run.log_folder(folder).name) == ("a.txt", "out")
        assert run.log_folder(folder, "other").type == "tree"
        with pytest.raises(NotFoundError, match="no file"):
            run.log_file(folder)
        with pytest.raises(NotFoundError, match="no folder"):
            run.log_folder(folder / "a.txt")


@pytest.mark.slow
def test_datasets_are_known_by_their_rows(store: Store) -> None:
    frame = pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None]})
    snapshot = take_snapshot(frame, "orders", store)
    with start_run("train", store=store) as run:
        given = run.log_dataset(frame, context="validation")
        taken = run.log_dataset(snapshot)
        assert run.log_dataset(snapshot.key).meta == taken.meta
        with pytest.raises(NotFoundError):
            run.log_dataset("orders@9")
    assert given.meta["context"] == "validation"
    assert given.meta["digest"] == digest_rows(frame)
    assert json.loads(read(store, taken))["snapshot"] == "orders@1"
    # However it is cut, and whichever way it came.
    assert digest_rows(pl.concat([frame[:1], frame[1:]], rechunk=False)) == digest_rows(frame)
    assert digest_rows(frame[::-1]) != digest_rows(frame)
    assert digest_rows(frame.rename({"a": "c"})) != digest_rows(frame)
    assert verify(store).ok


def test_a_model_is_kept_signed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    with start_run("train", store=store) as run:
        kept = run.log_model({"weights": [1, 2]}, meta={"task": "toy"})
        with pytest.raises(UsageError, match="cannot be pickled"):
            run.log_model(line for line in ())
    assert kept.signature is not None
    assert (kept.type, kept.meta["shows"], kept.meta["task"]) == ("pickle", "model", "toy")
