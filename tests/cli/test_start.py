"""What a start costs is what it loads; seconds are for benchmarks, not for tests."""

from __future__ import annotations

from everloop.cli.output import main_metrics, short, to_json


def test_json_has_keys_times_and_no_nan():
    from datetime import UTC, datetime
    from pathlib import Path

    from everloop.records import Alias

    moment = datetime(2024, 1, 1, tzinfo=UTC)
    alias = Alias(id="i", project="p", created_at=moment, model="m", name="champion", version="m@1")
    text = to_json({"a": alias, "nan": float("nan"), "path": Path("x/y"), 1: (1, 2)})
    assert '"key": "m@champion"' in text
    assert '"nan": null' in text
    assert "2024-01-01T00:00:00Z" in text
    assert '"x/y"' in text


def test_ids_are_shortened_only_where_they_are_ids():
    assert short("01a2086d-e38b-7347-872f-94f218584e68") == "01a2086d-e38b-7347"
    assert short("delays@3") == "delays@3"


def test_metrics_are_the_models_not_the_runs():
    shown = main_metrics({"train_rows": 10.0, "trials": 2.0, "roc_auc": 0.71234, "log_loss": 0.5, "f1": 0.2})
    assert shown == "roc_auc 0.712  log_loss 0.500"


def test_the_package_is_the_command():
    import subprocess
    import sys

    import everloop

    shown = subprocess.run([sys.executable, "-m", "everloop", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[-1] == everloop.__version__
