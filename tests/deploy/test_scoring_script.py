"""What Azure ML's scoring script logs; Microsoft's own server runs it in tests/deploy/test_azure_server.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from everloop.deploy.azure_ml import export_script
from everloop.deploy.azure_runtime import LoggedScoring
from everloop.errors import RequestError, UsageError
from everloop.prediction_log import read_inputs, read_predictions
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERLOOP_LOG", "EVERLOOP_STORE", "EVERLOOP_ENDPOINT", "AZUREML_MODEL_DIR"):
        # What the script sets itself is taken back as well.
        monkeypatch.setenv(name, "")


def test_without_a_place_for_the_log_it_does_not_start(store: Store, release: Any, tmp_path: Path) -> None:
    release()
    folder = export_script(store, "delays@1", tmp_path / "script")
    with pytest.raises(UsageError, match="EVERLOOP_STORE"):
        LoggedScoring.start(folder)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_each_answer_is_logged_before_it_is_given(
    store: Store, release: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    version = release(task=task)
    folder = export_script(store, "delays@1", tmp_path / "script")
    monkeypatch.setenv("EVERLOOP_STORE", str(store.home))
    monkeypatch.setenv("EVERLOOP_ENDPOINT", "default/delays")
    scoring = LoggedScoring.start(folder)
    rows = sample_rows(3)
    answer = scoring.answer(msgspec.json.encode({"instances": rows}))
    with pytest.raises(RequestError):
        scoring.answer(b'{"instances": [{"a": 1}]}')
    scoring._log.close()
    logged = read_predictions(store, "delays").sort("id").collect()
    assert logged["version"].to_list() == [version.key] * 3
    assert logged["package"].to_list() == [version.package] * 3
    scores = {"binary": "score", "multiclass": "scores", "regression": "score"}[task]
    wanted = answer["predictions" if task == "regression" else "probabilities"]
    assert logged[scores].to_list() == wanted
    again = scoring.predictor.predict(read_inputs(logged, scoring.predictor.signature)).tolist()
    assert again == wanted


@pytest.mark.slow
def test_none_is_said_once_and_keeps_nothing(
    store: Store, release: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release()
    folder = export_script(store, "delays@1", tmp_path / "script")
    monkeypatch.setenv("EVERLOOP_LOG", "none")
    scoring = LoggedScoring.start(folder)
    assert "everloop log: none" in caplog.text
    assert scoring.kind == "none"
    assert len(scoring.answer(msgspec.json.encode({"instances": sample_rows(3)}))["predictions"]) == 3
    assert not (store.home / "segments").exists()
