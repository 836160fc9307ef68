"""Estimated performance under covariate shift, beside NannyML: mean absolute error against the realised values.

    python benchmarks/estimation.py                      # everloop only
    python benchmarks/estimation.py --peer PYTHON        # beside NannyML, installed in the environment of PYTHON
    python benchmarks/estimation.py --fixture FILE       # with --peer: also write the fixture of the tests

A stream is a reference, and windows whose inputs have shifted while the relation to the labels is the same. The same
rows go to both. For everloop, the share of the intervals that contain the realised value is printed as well. A second
table shows the estimated harm of each shift as a multiple of the realised one. The last one shows the harm that drift
incidents tell: each stream is watched for eight days after a shift, and what its incident expects of the metric is
compared with the labels of these days.

NannyML runs in its own process, for example in an environment with `pip install nannyml statsmodels`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE_ROWS, WINDOW_ROWS = 5000, 2000
SHIFTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
HARM_SHIFTS = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
HARM_ROWS = 1000
HARM_LEAST = {"roc_auc": 0.02, "log_loss": 0.03, "rmse": 1.0, "mae": 1.0}
"""Smaller losses are not compared: chance in eight days of labels is of the same size."""
CLASS_METRICS = ("roc_auc", "average_precision", "accuracy", "f1", "precision", "recall")
LOSS_METRICS = ("mae", "rmse", "mape")
Rows = dict[str, Any]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def logistic(rng: Any, rows: int, shift: float) -> Rows:
    """A well-specified model with all inputs, that is too sure of itself."""
    x = rng.normal(shift, 1, (rows, 3))
    truth = x @ [1.2, -0.8, 0.4]
    return {"inputs": x, "score": sigmoid(1.6 * truth), "actual": rng.uniform(size=rows) < sigmoid(truth)}


def tree(rng: Any, rows: int, shift: float) -> Rows:
    """A step function of interacting inputs, scored by a forest-like average of neighbours."""
    x = rng.normal(0, 1, (rows, 3))
    x[:, 0] += shift
    truth = np.where(x[:, 0] > 0.5, np.where(x[:, 1] > 0, 0.85, 0.55), np.where(x[:, 2] > 0, 0.3, 0.08))
    score = np.clip(0.75 * truth + 0.1 + rng.normal(0, 0.05, rows), 0, 1)
    return {"inputs": x, "score": score, "actual": rng.uniform(size=rows) < truth}


def imbalanced(rng: Any, rows: int, shift: float) -> Rows:
    """Three percent positives, and a model trained with balanced classes, so that scores are far too high."""
    x = rng.normal(0, 1, (rows, 3))
    x[:, 0] += shift
    truth = x @ [1.0, 0.7, 0.4] - 4.2
    return {"inputs": x, "score": sigmoid(truth + 3.5), "actual": rng.uniform(size=rows) < sigmoid(truth)}


def calibrated(rng: Any, rows: int, shift: float) -> Rows:
    """Scores that already are the probabilities."""
    x = rng.normal(0, 1, (rows, 3))
    x[:, 0] += shift
    score = sigmoid(x @ [1.0, 0.6, 0.3])
    return {"inputs": x, "score": score, "actual": rng.uniform(size=rows) < score}


def bikes(rng: Any, rows: int, shift: float) -> Rows:
    """Rentals by hour and temperature: errors grow with the level and are larger in the rush hours."""
    hour, temperature = rng.integers(0, 24, rows), rng.normal(14 + 6 * shift, 8, rows)
    weekend = (rng.uniform(size=rows) < 2 / 7).astype(float)
    rush = np.isin(hour, (8, 17, 18)) * (1 - weekend)
    level = 60 + 6 * np.clip(temperature, 0, 28) + 150 * rush + 50 * np.sin((hour - 6) / 24 * 2 * np.pi)
    actual = np.maximum(1, level * (1 + 0.15 * rng.normal(size=rows) * (1 + rush)) + 10 * rng.normal(size=rows))
    predicted = 60 + 5.5 * np.clip(temperature, -5, 35) + 120 * rush + 45 * np.sin((hour - 6) / 24 * 2 * np.pi)
    return {"inputs": np.stack([hour, temperature, weekend], axis=1), "score": predicted, "actual": actual}


def houses(rng: Any, rows: int, shift: float) -> Rows:
    """Prices by size and quality: the noise grows with the size, and the model misses an interaction."""
    x = rng.normal(0, 1, (rows, 4))
    x[:, 0] += shift
    price = 300 + 60 * x[:, 0] + 30 * x[:, 1] + 15 * x[:, 0] * x[:, 2]
    actual = price + rng.normal(size=rows) * 20 * np.exp(0.3 * x[:, 0])
    return {"inputs": x, "score": 300 + 60 * x[:, 0] + 30 * x[:, 1], "actual": actual}


def noise(rng: Any, rows: int, shift: float) -> Rows:
    """Errors of one size everywhere, so there is nothing to learn but the mean."""
    x = rng.normal(shift, 1, (rows, 4))
    predicted = 50 + x @ [5.0, 3.0, 0.0, 0.0]
    return {"inputs": x, "score": predicted, "actual": predicted + 4 * rng.normal(size=rows)}


CLASSES: dict[str, Callable[..., Rows]] = {
    "logistic": logistic,
    "tree": tree,
    "imbalanced": imbalanced,
    "calibrated": calibrated,
}
NUMBERS: dict[str, Callable[..., Rows]] = {"bikes": bikes, "houses": houses, "noise": noise}

PEER = r"""
import json, sys, warnings
import numpy as np, pandas as pd
warnings.simplefilter("ignore")
import nannyml as nml
names = {"roc_auc": "roc_auc", "average_precision": "average_precision", "accuracy": "accuracy", "f1": "f1",
         "precision": "precision", "recall": "recall", "mae": "mae", "rmse": "rmse", "mape": "mape"}
job = json.load(open(sys.argv[1]))
answers = []
for stream in job:
    def frame(rows):
        x = np.asarray(rows["inputs"], dtype=float)
        data = pd.DataFrame({f"x{i}": x[:, i] for i in range(x.shape[1])})
        data["score"], data["actual"] = rows["score"], np.asarray(rows["actual"], dtype=float)
        if stream["kind"] == "classes":
            data["actual"] = data["actual"].astype(int)
            data["decided"] = (data["score"] >= 0.5).astype(int)
        return data
    wanted = [names[name] for name in stream["metrics"]]
    size = len(stream["windows"][0]["score"])
    if stream["kind"] == "classes":
        peer = nml.CBPE(metrics=wanted, y_pred_proba="score", y_pred="decided", y_true="actual",
                        problem_type="classification_binary", chunk_size=size)
    else:
        features = [f"x{i}" for i in range(len(stream["reference"]["inputs"][0]))]
        peer = nml.DLE(feature_column_names=features, y_pred="score", y_true="actual", metrics=wanted, chunk_size=size)
    peer.fit(frame(stream["reference"]))
    windows = []
    for window in stream["windows"]:
        result = peer.estimate(frame(window).drop(columns="actual")).filter(period="analysis").to_df()
        windows.append({name: float(result[(names[name], "value")].iloc[-1]) for name in stream["metrics"]})
    answers.append(windows)
json.dump({"version": nml.__version__, "answers": answers}, open(sys.argv[2], "w"))
"""


def ask_peer(python: str, job: list[Rows]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        code, asked, answered = (Path(folder, name) for name in ("peer.py", "asked.json", "answered.json"))
        code.write_text(PEER)
        asked.write_text(json.dumps(job))
        # NannyML would report its use to its makers.
        quiet = {**os.environ, "NML_DISABLE_USAGE_LOGGING": "1"}
        subprocess.run([python, str(code), str(asked), str(answered)], check=True, stdout=subprocess.DEVNULL, env=quiet)
        found: dict[str, Any] = json.loads(answered.read_text())
        return found


def plain(rows: Rows) -> Rows:
    return {name: np.asarray(values, dtype=float).tolist() for name, values in rows.items()}


def make_job(seeds: int) -> list[Rows]:
    job = []
    for seed in range(seeds):
        for kind, streams, metrics in (("classes", CLASSES, CLASS_METRICS), ("numbers", NUMBERS, LOSS_METRICS)):
            for name, stream in streams.items():
                rng = np.random.default_rng([seed, len(name)])
                reference = plain(stream(rng, REFERENCE_ROWS, 0.0))
                windows = [plain(stream(rng, WINDOW_ROWS, shift)) for shift in SHIFTS]
                job.append({"name": name, "kind": kind, "metrics": metrics, "reference": reference, "windows": windows})
    return job


def frame(rows: Rows) -> Any:
    import polars as pl

    columns = np.asarray(rows["inputs"]).T
    return pl.DataFrame({f"x{index}": column for index, column in enumerate(columns)})


def our_answers(stream: Rows) -> list[dict[str, Any]]:
    from everloop.monitoring import ConfidenceEstimator, LossEstimator

    reference = stream["reference"]
    if stream["kind"] == "classes":
        confidence = ConfidenceEstimator.fit(reference["score"], reference["actual"])
        return [confidence.estimate(window["score"], stream["metrics"]) for window in stream["windows"]]
    losses = LossEstimator.fit(frame(reference), reference["score"], reference["actual"], stream["metrics"])
    return [losses.estimate(frame(window), window["score"]) for window in stream["windows"]]


def compare(job: list[Rows], peer: list[list[dict[str, float]]] | None) -> None:
    from everloop.training.metrics import score

    errors: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    seconds = 0.0
    for index, stream in enumerate(job):
        started = time.perf_counter()
        ours = our_answers(stream)
        seconds += time.perf_counter() - started
        for place, window in enumerate(stream["windows"]):
            for metric in stream["metrics"]:
                realised = score(metric, window["actual"], window["score"])
                estimate = ours[place][metric]
                theirs = abs(peer[index][place][metric] - realised) if peer else float("nan")
                inside = estimate.low <= realised <= estimate.high
                errors.setdefault((stream["name"], metric), []).append((abs(estimate.value - realised), theirs, inside))
    print(f"{'stream':12} {'metric':18} {'everloop':>9} {'NannyML':>9} {'ratio':>6} {'in 95 %':>8}")
    for (name, metric), found in errors.items():
        ours_mean, peer_mean, covered = np.mean(np.array(found, dtype=float), axis=0)
        ratio = ours_mean / peer_mean if peer_mean else float("nan")
        print(f"{name:12} {metric:18} {ours_mean:9.4f} {peer_mean:9.4f} {ratio:6.2f} {covered:8.0%}")
    print(f"everloop took {seconds / len(job):.2f} s for a stream")


def show_harm() -> None:
    from everloop.monitoring import ConfidenceEstimator, LossEstimator, estimate_harm
    from everloop.training.metrics import score

    print(f"\n{'stream':12} {'metric':10} harm: estimated / realised loss at each shift where the model became worse")
    for streams, metrics in ((CLASSES, ("log_loss", "accuracy")), (NUMBERS, ("rmse", "mae"))):
        for name, stream in streams.items():
            rng = np.random.default_rng(7)
            before = plain(stream(rng, REFERENCE_ROWS, 0.0))
            known: Any
            if streams is CLASSES:
                known = ConfidenceEstimator.fit(before["score"], before["actual"])
            else:
                known = LossEstimator.fit(frame(before), before["score"], before["actual"], metrics)
            for metric in metrics:
                texts = []
                for shift in SHIFTS:
                    now = plain(stream(rng, 20_000, shift))
                    window: Any = np.asarray(now["score"])
                    if streams is NUMBERS:
                        window = frame(now).with_columns(score=window)
                    harm = estimate_harm(known, window, metric)
                    worse = score(metric, now["actual"], now["score"]) - score(
                        metric, before["actual"], before["score"]
                    )
                    worse = -worse if metric == "accuracy" else worse
                    if worse > 0.02 * abs(harm.before or 1.0):
                        texts.append(f"{shift:+}: {harm.loss:.3f} / {worse:.3f} = {(harm.loss or 0) / worse:.2f}")
                print(f"{name:12} {metric:10} {'   '.join(texts) or 'never worse'}")


def watched(stream: Callable[..., Rows], metric: str, seed: int) -> list[tuple[float, float | None, float, bool]]:
    """For each shift: the shift, the loss that the incident tells (None: no incident), the realised one, if loud."""
    import polars as pl

    from everloop.monitoring import build_baseline, watch_stream
    from everloop.training.metrics import score

    start = datetime(2024, 1, 1, tzinfo=UTC)

    def dated(rows: Rows, begin: datetime, per_day: int) -> pl.DataFrame:
        known = plain(rows)
        days = [begin + timedelta(days=place // per_day) for place in range(len(known["score"]))]
        return frame(known).with_columns(
            score=pl.Series(known["score"]), actual=pl.Series(known["actual"]), at=pl.Series(days)
        )

    rng = np.random.default_rng(seed)
    before = dated(stream(rng, 40 * HARM_ROWS, 0.0), start, HARM_ROWS)
    inputs = [name for name in before.columns if name.startswith("x")]
    baseline = build_baseline(
        before.select("at", *inputs),
        time="at",
        scored=before.select("at", "score", "actual"),
        scored_inputs=before.select(inputs),
        metric=metric,
    )
    assert baseline.metric is not None
    found = []
    for shift in HARM_SHIFTS:
        now = dated(stream(rng, 8 * HARM_ROWS, shift), start + timedelta(days=40), HARM_ROWS)
        report = watch_stream(baseline, now, time="at", every="1d", incidents_per_month=1.0, score="score")
        realised = score(metric, now["actual"].to_numpy(), now["score"].to_numpy()) - baseline.metric.value
        realised = realised if metric in ("log_loss", *LOSS_METRICS) else -realised
        expected = [one.evidence["harm"].get("expected") for one in report.incidents]
        told = next((float(one["loss"]) for one in expected if one), None)
        found.append((shift, told, realised, any(one.severity == "alarm" for one in report.incidents)))
    return found


def show_told_harm(seeds: int) -> None:
    """Print what incidents tell beside what labels show, where the model has become worse by 2 % or more."""
    within = total = 0
    print(f"\n{'stream':12} {'metric':10} {'shift':>6} {'told':>9} {'realised':>9} {'ratio':>6} incident")
    for streams, metrics in ((CLASSES, ("roc_auc", "log_loss")), (NUMBERS, ("rmse", "mae"))):
        for name, stream in streams.items():
            for metric in metrics:
                for seed in range(seeds):
                    for shift, told, realised, loud in watched(stream, metric, seed):
                        if realised < HARM_LEAST[metric]:
                            continue
                        ratio = told / realised if told is not None else float("nan")
                        total += 1
                        within += 0.7 <= ratio <= 1.3
                        text = "none" if told is None else "alarm" if loud else "notice"
                        shown = float("nan") if told is None else told
                        print(f"{name:12} {metric:10} {shift:+6.2f} {shown:9.4f} {realised:9.4f} {ratio:6.2f} {text}")
    print(f"harm told within 30 % of the realised loss: {within} of {total}")


def write_fixture(python: str, path: Path) -> None:
    """Write one small job and the peer's answers, for tests that compare the two."""
    job = []
    for name in ("logistic", "imbalanced"):
        rng = np.random.default_rng(3)
        rows = [CLASSES[name](rng, count, shift) for count, shift in ((1500, 0.0), (400, -1.0), (400, 1.0))]
        rounded = [
            {"score": np.round(one["score"], 4).tolist(), "actual": one["actual"].astype(int).tolist()} for one in rows
        ]
        for one in rounded:
            one["inputs"] = [[0.0]] * len(one["score"])
        job.append(
            {
                "name": name,
                "kind": "classes",
                "metrics": list(CLASS_METRICS),
                "reference": rounded[0],
                "windows": rounded[1:],
            }
        )
    answer = ask_peer(python, job)
    streams = []
    for stream, found in zip(job, answer["answers"], strict=True):
        for one in (stream["reference"], *stream["windows"]):
            del one["inputs"]
        streams.append({**stream, "peer": found})
    made = f"python benchmarks/estimation.py --peer PYTHON --fixture FILE, with NannyML {answer['version']}"
    path.write_text(json.dumps({"made_with": made, "streams": streams}, separators=(",", ":")) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the Python of an environment with NannyML")
    parser.add_argument("--seeds", type=int, default=2, help="repetitions of every stream")
    parser.add_argument("--fixture", type=Path, help="write the fixture of the tests to this file")
    given = parser.parse_args()
    if given.fixture:
        if not given.peer:
            sys.exit("--fixture needs --peer.")
        write_fixture(given.peer, given.fixture)
        return
    job = make_job(given.seeds)
    peer = ask_peer(given.peer, job) if given.peer else None
    compare(job, peer["answers"] if peer else None)
    show_harm()
    show_told_harm(given.seeds)


if __name__ == "__main__":
    main()
