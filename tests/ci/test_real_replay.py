"""`everloop ci run --replay` with a real replay, in a git repository with a good and a bad change."""

from __future__ import annotations

import json
from datetime import timedelta

import polars as pl
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(repository):
    """The project with twelve weeks of orders, trained and released."""
    path = repository.folder / "data" / "orders.parquet"
    orders = pl.read_parquet(path)
    start = orders["at"][0]
    spread = [start + timedelta(minutes=80 * number) for number in range(orders.height)]
    orders.with_columns(at=pl.Series(spread)).write_parquet(path)
    repository.commit("Twelve weeks of orders")
    repository.train()
    repository.branch()
    return repository


def run(command, tmp_path):
    comment = tmp_path / "comment.md"
    code, out = command("ci", "run", "--base", "main", "--full", "--replay", "4w", "--comment", comment, "--json")
    return code, json.loads(out), comment.read_text()


def test_a_good_change_is_replayed(shop, command, tmp_path):
    shop.change("features.py", "return orders", "return orders.with_columns(pl.col('price').round(1))")
    shop.change("features.py", "def add", "import polars as pl\n\ndef add")
    shop.commit("Prices in tenths")
    code, report, comment = run(command, tmp_path)
    assert (code, report["verdict"]) == (0, "pass"), report["reasons"]
    assert report["replay_remark"] == ""
    outcomes = {one["policy"]: one for one in report["replay"]}
    assert set(outcomes) == {"declared", "never"}
    # The loop declares no trigger, so both policies do the same.
    assert outcomes["declared"] == {**outcomes["never"], "policy": "declared"}
    assert outcomes["never"]["mean"] > 0.75
    assert outcomes["never"]["retrainings"] == 0
    assert "never" in comment
    assert f"{outcomes['never']['mean']:.3f}" in comment


def test_a_bad_change_fails_and_the_replay_shows_it_as_well(shop, command, tmp_path):
    shop.change("features.py", "return orders", "return orders.with_columns(orders['price'].shuffle(1))")
    shop.commit("Mix up a feature")
    code, report, comment = run(command, tmp_path)
    assert (code, report["verdict"]) == (11, "fail")
    assert report["reasons"]
    # In the replay, too, the gates reject the first model, so nothing answers.
    assert [(one["mean"], one["promotions"]) for one in report["replay"]] == [(None, 0), (None, 0)]
    assert "nothing was released with declared and never" in report["replay_remark"]
    assert report["replay_remark"] in comment
