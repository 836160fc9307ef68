"""`everloop predictions`, `everloop labels` and `everloop endpoints token`, on a store with real answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.cli.app import run
from everloop.prediction_log import read_labelled
from everloop.records import EndpointRecord
from everloop.serving.access.endpoint_tokens import digest_of
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store


@pytest.mark.slow
def test_from_answers_to_labelled_rows(
    store: Store, release: Any, route: Any, local: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    route(release(task="multiclass").key)
    answers = by_row(local().post("/predict", {"rows": sample_rows(3), "keys": ["a", "b", "c"]})[1])
    home = ["--home", str(store.home)]

    def told(*words: str) -> Any:
        capsys.readouterr()
        assert run([*words, *home, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert {row["id"] for row in told("predictions", "ls", "delays")} == {answer["id"] for answer in answers}
    assert len(told("predictions", "ls", "delays", "--limit", "2")) == 2
    shown = told("predictions", "show", answers[0]["id"])
    assert shown["inputs"]["carrier"] == sample_rows()[0]["carrier"]
    assert run(["predictions", "show", "nothing", *home]) == 3
    labels = tmp_path / "labels.csv"
    labels.write_text("entity,value,event_at\na,short,2030-01-01T00:00:00Z\nz,none,2030-01-01T00:00:00Z\n")
    assert told("labels", "add", "delays", str(labels)) == {"endpoint": "delays", "labels": 2, "unmatched": 1}
    assert run(["labels", "add", "delays", str(labels), *home]) == 0
    assert "1 label found no prediction with its key from before it: 'z'" in capsys.readouterr().err
    labels.write_text("key,value\nb,none\n")
    assert told("labels", "add", "delays", str(labels)) == {"endpoint": "delays", "labels": 1, "unmatched": 0}
    # The usual words for a missing value are no label among amounts.
    labels.write_text("key,value\nother,1.5\nc,NA\n")
    assert told("labels", "add", "delays", str(labels)) == {"endpoint": "delays", "labels": 1, "unmatched": 1}
    assert run(["labels", "add", "nowhere", str(labels), *home]) == 3
    labels.write_text("key,value,event_at\nb,none,yesterday\n")
    assert run(["labels", "add", "delays", str(labels), *home]) != 0
    assert "'yesterday' is not a time" in capsys.readouterr().err
    assert sorted(read_labelled(store, "delays").collect()["actual_text"]) == ["none", "short"]
    for ending, read in (("parquet", pl.read_parquet), ("csv", pl.read_csv), ("jsonl", pl.read_ndjson)):
        output = tmp_path / f"out.{ending}"
        told("predictions", "export", "delays", "-o", str(output))
        assert read(output).height == 3
    told("predictions", "export", "delays", "-o", str(tmp_path / "with.parquet"), "--labelled")
    assert pl.read_parquet(tmp_path / "with.parquet").height == 2
    assert run(["predictions", "export", "delays", "-o", "x.xls", *home]) == 2
    for words in (["predictions", "ls", "delays"], ["predictions", "show", answers[0]["id"]]):
        assert run([*words, *home]) == 0
        assert "delays" in capsys.readouterr().out


def test_a_token_is_shown_once(store: Store, release: Any, route: Any, capsys: pytest.CaptureFixture[str]) -> None:
    route(release().key)
    home = ["--home", str(store.home)]
    assert run(["endpoints", "token", "delays", "--name", "team", *home]) == 0
    token = capsys.readouterr().out.strip()
    assert store.records.get(EndpointRecord, "delays").options["tokens"] == {"team": digest_of(token)}
    assert run(["endpoints", "token", "delays", "--name", "team", "--remove", *home]) == 0
    assert store.records.get(EndpointRecord, "delays").options["tokens"] == {}
    assert run(["endpoints", "token", "delays", "--name", "team", "--remove", *home]) == 3


def test_options_are_checked(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    home = ["--home", str(store.home)]
    app = local()
    strange = {"rows": [{**sample_rows()[0], "carrier": "never heard of"}]}
    assert run(["endpoints", "set", "delays", "unseen=refuse", "max_in_flight=9", *home]) == 0
    assert store.records.get(EndpointRecord, "delays").options == {"unseen": "refuse", "max_in_flight": 9}
    app.reloader.reload()
    assert app.post("/predict", strange)[0] == 422
    assert run(["endpoints", "set", "delays", "unseen=", *home]) == 0
    app.reloader.reload()
    assert app.post("/predict", strange)[0] == 200
    for wrong in ("unseen=maybe", "max_in_flight=0", "max_in_flight=x", "request_timeout_s=nan", "tokens=x", "x"):
        assert run(["endpoints", "set", "delays", wrong, *home]) == 2
