import json
import zlib

import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.column_sketches import sketch_frame
from everloop.data.sketches.derived_columns import (
    TextSpec,
    VectorSpec,
    choose_columns,
    derive,
    is_free_text,
    spec_from_json,
    spec_to_json,
)
from everloop.errors import EmptySampleError, UsageError

WORDS = ["the", "flight", "was", "late", "again", "and", "nobody", "told", "us", "why", "gate", "42"]


def comments(rows: int, seed: int, words: list[str] = WORDS) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, 8)) for _ in range(rows)]


def test_what_is_free_text_is_decided_by_content() -> None:
    assert is_free_text(pl.Series([*comments(50, 0), None]))
    assert not is_free_text(pl.Series(["Los Angeles International Airport", "John F. Kennedy in New York"] * 40))
    assert not is_free_text(
        pl.Series([f"0190c0de-7a1b-7c3d-8e4f-{number:012d}" for number in range(50)]).str.replace_all("-", "")
    )
    assert not is_free_text(pl.Series(["AA", "DL", None]))
    assert not is_free_text(pl.Series([None, None], dtype=pl.String))
    assert not is_free_text(pl.Series([1, 2]))


def test_parts_of_texts() -> None:
    spec = TextSpec(tuple(sorted(zlib.crc32(word.encode()) for word in ("late", "flight", "über"))))
    frame = pl.DataFrame({"t": ["Late flight, LATE again", "", None, "Über 42!", "…"]})
    derived = derive(frame, {"t": spec})
    assert derived["t.length"].to_list() == [23, 0, None, 8, 1]
    assert derived["t.words"].to_list() == [4, 0, None, 2, 0]
    assert derived["t.unknown_words"].to_list() == [0.25, 0, None, 0.5, 0]
    assert derived["t.digits"].to_list() == [0, 0, None, 0.25, 0]
    assert derived["t.non_ascii"].to_list() == [0, 0, None, 0.125, 1]


def test_parts_of_vectors() -> None:
    spec = VectorSpec(3, np.array([1, 0, 0], dtype="<f4").tobytes(), np.array([[0, 1, 0]], dtype="<f4").tobytes())
    vectors = [[1, 2, 0], [0, 0, 2], [1, 0], None, [1, None, 0], [0, 0, 0], [1, 0, float("inf")]]
    frame = pl.DataFrame({"v": vectors}, schema={"v": pl.List(pl.Float64)})
    derived = derive(frame, {"v": spec})
    assert derived["v.norm"].to_list() == pytest.approx([5**0.5, 2, None, None, None, 0, None])
    assert derived["v.cosine"].to_list() == pytest.approx([5**-0.5, 0, None, None, None, None, None])
    assert derived["v.reconstruction"].to_list() == pytest.approx([0, 5**0.5, None, None, None, 1, None])
    assert derive(frame.head(0), {"v": spec}).shape == (0, 4)
    fixed = frame.head(1).cast({"v": pl.Array(pl.Float32, 3)})
    assert derive(fixed, {"v": spec})["v.norm"].to_list() == pytest.approx([5**0.5])


def test_a_reference_is_divided_into_categories_texts_and_vectors() -> None:
    generator = np.random.default_rng(0)
    rows = 400
    base = generator.normal(size=(rows, 2)) @ generator.normal(size=(2, 8)) + 3
    frame = pl.DataFrame(
        {
            "carrier": ["AA", "DL"] * 200,
            "comment": comments(rows, 1),
            "embedding": pl.Series(base.tolist()),
            "tags": pl.Series([[1.0] * (number % 7) for number in range(rows)]),
            "distance": generator.normal(size=rows),
        }
    )
    chosen = choose_columns(frame, frame.columns)
    assert set(chosen.specs) == {"comment", "embedding"}
    assert set(chosen.bins) >= {"carrier", "distance", "comment.length", "comment.unknown_words", "embedding.cosine"}
    assert "comment" not in chosen.bins
    assert set(chosen.skipped) == {"tags"}
    for spec in chosen.specs.values():
        assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec
    # Other words and other directions are seen, under the names that columns have in a log.
    live = pl.DataFrame(
        {
            "input_comment": comments(rows, 2, ["ganz", "andere", "wörter", "hier", "late"]),
            "input_embedding": pl.Series((base + generator.normal(size=base.shape)).tolist()),
        }
    )
    columns = {name: f"input_{name}" for name in [*frame.columns, *chosen.bins]}
    sketches = sketch_frame(derive(live, chosen.specs, columns=columns), chosen.bins, columns=columns)
    assert sketches["carrier"].counts[0] == rows
    unknown, rest = sketches["comment.unknown_words"].moments, sketches["embedding.reconstruction"].moments
    assert unknown is not None
    assert unknown.mean == pytest.approx(0.8, abs=0.05)
    reference = sketch_frame(derive(frame, chosen.specs), chosen.bins)["embedding.reconstruction"].moments
    assert rest is not None
    assert reference is not None
    assert rest.mean > 1.5 * reference.mean


def test_columns_that_have_vanished_or_changed_their_type_are_missing() -> None:
    frame = pl.DataFrame({"t": comments(60, 3), "v": [[1.0, 2.0]] * 60})
    chosen = choose_columns(frame, ["t", "v"])
    live = pl.DataFrame({"t": [1, 2, 3], "v": ["a", "b", "c"]})
    for window in (live, live.select("v"), pl.DataFrame({"other": [1, 2, 3]})):
        sketches = sketch_frame(derive(window, chosen.specs), chosen.bins)
        assert all(sketch.counts[0] == 3 for sketch in sketches.values())


def test_long_frames_are_derived_in_slices() -> None:
    frame = pl.DataFrame({"t": comments(100, 4) * 450})
    spec = choose_columns(frame.head(100), ["t"]).specs["t"]
    derived = derive(frame, {"t": spec})
    assert derived.height == 45_000
    assert derived["t.unknown_words"].sum() == 0
    assert derived["t.length"].to_list() == frame["t"].str.len_chars().to_list()


def test_wrong_questions_are_refused() -> None:
    frame = pl.DataFrame({"t": comments(60, 5), "t.length": [1] * 60})
    with pytest.raises(UsageError, match=r"'t\.length' has the name"):
        choose_columns(frame, ["t", "t.length"])
    with pytest.raises(UsageError, match="no column 'z'"):
        choose_columns(frame, ["z"])
    with pytest.raises(EmptySampleError):
        choose_columns(frame.head(0), ["t"])
