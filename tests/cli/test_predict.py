"""`everloop predict` reads a file with the types of the model's signature, and overwrites nothing."""

from __future__ import annotations

import pandas as pd
import polars as pl
import pytest

import everloop as el
from everloop.stores import open_store


@pytest.fixture
def model(everloop):
    """A model that predicts the length of a text plus a number; for the text "none" it predicts NaN."""

    def predict(rows):
        return [
            float("nan") if code == "none" else len(str(code)) + (number if number == number else 0.0)
            for code, number in zip(rows["code"], rows["number"], strict=True)
        ]

    example = pd.DataFrame({"code": ["007", "1.10"], "number": [1.0, float("nan")]})
    with open_store(".everloop") as store:
        el.save_model(predict, "lengths", example=example, task="regression", store=store)
    return everloop


TEXTS = ["True", "1.10", "1e5", "007", "12:30:00", "2030-01-01"]


@pytest.mark.slow
def test_text_stays_text_and_columns_stay(model, tmp_path):
    rows = "\n".join(f"{text},1.5,kept" for text in TEXTS)
    (tmp_path / "in.csv").write_text(f"code,number,score\n{rows}\n")
    result = model("predict", "lengths", "-i", tmp_path / "in.csv", "-o", tmp_path / "out.parquet")
    assert result.code == 2
    assert "already has a column 'score'" in result.err
    assert "--prefix" in result.err
    result = model("predict", "lengths", "-i", tmp_path / "in.csv", "-o", tmp_path / "out.parquet", "--prefix", "its_")
    assert result.code == 0, result.err
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["code"].to_list() == TEXTS
    assert found["score"].to_list() == ["kept"] * len(TEXTS)
    assert found["its_score"].to_list() == [len(text) + 1.5 for text in TEXTS]


def test_rows_without_an_answer_are_named(model, tmp_path):
    (tmp_path / "in.csv").write_text("code,number\na,1\nnone,\nc,2\nnone,NA\n")
    result = model("predict", "lengths", "-i", tmp_path / "in.csv", "-o", tmp_path / "out.csv")
    assert result.code != 0
    assert "2 rows: 2, 4" in result.err
    assert not (tmp_path / "out.csv").exists()


def test_missing_columns_are_named(model, tmp_path):
    (tmp_path / "in.csv").write_text("code;numbr\na;1\n")
    result = model("predict", "lengths", "-i", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--separator", ";")
    assert result.code != 0
    assert "'number'" in result.err
    assert "Did you mean 'numbr'?" in result.err


@pytest.mark.slow
def test_the_file_may_be_named_in_two_ways_but_once(model, tmp_path):
    (tmp_path / "in.csv").write_text("code,number\na,1\n")
    for index, named in enumerate(([tmp_path / "in.csv"], ["-i", tmp_path / "in.csv"])):
        result = model("predict", "lengths", *named, "-o", tmp_path / f"{index}.csv")
        assert result.code == 0, result.err
        assert pl.read_csv(tmp_path / f"{index}.csv")["score"].to_list() == [2.0]
    for named in ([], [tmp_path / "in.csv", "-i", tmp_path / "other.csv"]):
        result = model("predict", "lengths", *named, "-o", tmp_path / "none.csv")
        assert result.code == 2
        assert "everloop predict lengths FILE -o " in result.err
        assert not (tmp_path / "none.csv").exists()


@pytest.mark.slow
def test_lists_are_not_written_to_csv(model, tmp_path):
    rows = pl.DataFrame({"code": ["a"], "number": [1.0], "tags": [["x", "y"]], "size": [{"w": 1}]})
    rows.write_parquet(tmp_path / "in.parquet")
    result = model("predict", "lengths", tmp_path / "in.parquet", "-o", tmp_path / "out.csv")
    assert result.code == 2
    assert "the lists and structs of 'tags', 'size'" in result.err
    for ending in ("parquet", "jsonl"):
        result = model("predict", "lengths", tmp_path / "in.parquet", "-o", tmp_path / f"out.{ending}")
        assert result.code == 0, result.err
