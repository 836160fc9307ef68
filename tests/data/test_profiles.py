"""Profiles have correct statistics, find the right suspects and no others, and make a self-contained page."""

from __future__ import annotations

from datetime import datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from everloop.data import profile_page, profile_snapshot, take_snapshot
from everloop.stores import Store

ROWS = 2000
START = datetime(2013, 1, 1)


def clean(seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    wind = rng.gamma(3, 3, ROWS)
    return pl.DataFrame(
        {
            "id": [f"f{number}" for number in range(ROWS)],
            "at": [START + timedelta(hours=number) for number in range(ROWS)],
            "wind": wind,
            "temp": rng.normal(50, 10, ROWS),
            "origin": rng.choice(["JFK", "EWR", "LGA"], ROWS),
            "late": wind + rng.normal(0, 6, ROWS) > 12,
        }
    )


def profiled(store: Store, frame: pl.DataFrame, **roles: str) -> Any:
    given = {"target": "late", "time": "at", "key": "id", **roles}
    return profile_snapshot(take_snapshot(frame, "flights", store, **given), store)


def suspects(store: Store, frame: pl.DataFrame, **roles: str) -> set[tuple[str, str | None]]:
    return {(found.kind, found.column) for found in profiled(store, frame, **roles).suspects}


def test_a_clean_table_is_not_suspect(store: Store) -> None:
    assert suspects(store, clean()) == set()


def test_figures_are_those_of_the_table(store: Store) -> None:
    frame = clean().with_columns(temp=pl.when(pl.int_range(ROWS) < ROWS // 2).then(None).otherwise("temp"))
    profile = profiled(store, frame)
    by_name = {column.name: column for column in profile.columns}
    score = 2 * roc_auc_score(frame["late"], frame["wind"]) - 1
    assert by_name["wind"].score == pytest.approx(score, abs=1e-4)
    assert by_name["temp"].nulls == 0.5
    assert by_name["temp"].stripes == (*[1.0] * 30, *[0.0] * 30)
    bars = by_name["origin"].bars
    assert dict(zip(bars.labels, bars.counts, strict=True)) == dict(frame["origin"].value_counts().rows())
    rates = dict(frame.group_by("origin").agg(pl.col("late").mean()).rows())
    assert bars.targets == pytest.approx([rates[name] for name in bars.labels])
    assert sum(by_name["wind"].bars.counts) == ROWS
    assert by_name["id"].bars is None
    assert profile.correlated == ("wind", "temp", "late")
    ranks = frame.select(pl.corr("wind", "late", method="spearman")).item()
    assert profile.correlations[0][2] == pytest.approx(ranks, abs=1e-3)
    assert abs(profile.correlations[0][1]) < 0.1


def test_each_kind_of_suspect_is_found(store: Store) -> None:
    rng = np.random.default_rng(1)
    frame = clean().with_columns(
        arr_delay=pl.when("late").then(30.0).otherwise(-5.0) + pl.Series(rng.normal(0, 4, ROWS)),
        why=pl.when("late").then(pl.lit("weather")).otherwise(pl.lit("none")),
        claim=pl.when("late").then(pl.Series(rng.normal(0, 1, ROWS))),
        landed_at=pl.col("at") + pl.duration(hours=2),
        seen_at=pl.lit(datetime(2200, 1, 1)),
        ticket=pl.int_range(ROWS),
        country=pl.lit("US"),
        from_=pl.col("origin"),
    )
    assert suspects(store, frame) == {
        ("knows the target", "arr_delay"),
        ("knows the target", "why"),
        ("nulls know the target", "claim"),
        ("later", "landed_at"),
        ("later", "seen_at"),
        ("future", "seen_at"),
        ("id", "ticket"),
        ("constant", "seen_at"),
        ("constant", "country"),
        ("same", "from_"),
    }


def test_rows_that_repeat_across_the_splits(store: Store) -> None:
    frame = pl.concat([clean(), clean()]).with_columns(
        id=pl.int_range(2 * ROWS).cast(pl.String), at=pl.lit(START) + pl.duration(hours=pl.int_range(2 * ROWS))
    )
    profile = profiled(store, frame)
    found = {suspect.kind: suspect for suspect in profile.suspects}
    assert set(found) == {"duplicates", "across splits"}
    assert found["duplicates"].share == 1.0
    assert found["across splits"].share == 1.0


@pytest.mark.parametrize("target", ["delay", "kind"])
def test_amounts_and_many_classes_have_suspects_too(store: Store, target: str) -> None:
    rng = np.random.default_rng(2)
    delay = rng.normal(0, 20, ROWS)
    frame = clean().with_columns(
        delay=delay,
        kind=pl.Series(["early" if one < -10 else "late" if one > 10 else "fair" for one in delay]),
        told=pl.Series(delay + rng.normal(0, 1, ROWS)),
    )
    frame = frame.drop("late", "kind" if target == "delay" else "delay")
    assert suspects(store, frame, target=target) == {("knows the target", "told")}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.outside += [value or "" for name, value in attrs if name in ("src", "href", "onclick", "onload")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes_what_it_shows(store: Store) -> None:
    frame = clean().rename({"origin": "<script>alert(1)</script>"})
    frame = frame.with_columns(pl.lit("\"><img src=x onerror='x'>").alias("text"), nested=pl.lit([1, 2]))
    text = profile_page(profiled(store, frame))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "flights@1" in text
    assert "url(" not in text


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"a": [1]}),
        pl.DataFrame({"a": [None, None]}),
        pl.DataFrame({"a": [float("inf"), float("nan"), None]}),
        pl.DataFrame({"d": [timedelta(seconds=1), timedelta(days=2)], "t": [START.time(), None], "b": [b"x", None]}),
        pl.DataFrame({"day": [START.date(), START.date() + timedelta(days=400)], "s": [{"x": 1}, None]}),
    ],
)
def test_odd_tables_have_a_page_as_well(store: Store, frame: pl.DataFrame) -> None:
    text = profile_page(profile_snapshot(take_snapshot(frame, "odd", store), store))
    assert "odd@1" in text
