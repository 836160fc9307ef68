"""Peers for `judgement.py`: Evidently and NannyML, each in an environment of its own, and two plain charts.

`Peer` starts this file again inside the environment of a peer and sends it one table after the other. The answer has,
for each method, a score of each column in each window, and whether the peer's defaults flag it:

- `evidently`: the statistic that its DataDriftPreset chooses, divided by its threshold. Tests with a p-value give the
  ratio of the logarithms. Drift of the data set: at least half of the columns have drifted.
- `nannyml`: Jensen-Shannon distance in standard deviations of the chunks of the reference (its threshold is 3).
- `nannyml missing`: the share of missing values.
- `nannyml pca`: reconstruction error, as the distance from the mean of the reference in standard deviations.

In this process, with numpy and scipy only:

- `ks`: the largest -log10 of the p-values of Kolmogorov-Smirnov and chi-square tests; Bonferroni at 5 % by default.
- `ewma`: exponentially weighted means of the mean of a window, of its share of missing values and of its shares of
  categories, in standard deviations of the windows of the reference. This is the chart of S. W. Roberts (1959).

Only the standard library is imported here, because the environments of the peers have neither Polars nor everloop.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
PACKAGES = {
    "evidently": ["evidently", "pandas<3", "pyarrow"],
    "nannyml": ["nannyml", "pandas<3", "pyarrow", "statsmodels"],
}
"""What an environment needs. Neither peer works with pandas 3, and NannyML needs statsmodels without saying so."""
METHODS = {
    "ks": ["ks"],
    "ewma": ["ewma"],
    "evidently": ["evidently"],
    "nannyml": ["nannyml", "nannyml missing", "nannyml pca"],
}
WINDOW = "window"
"""Column with the number of the window, from 0."""

Scores = dict[str, Any]
"""Of one method: `columns`, `scores` by window and column, and `flags` by window and column."""


# In this process


class Peer:
    """A peer in its environment, which is created if it does not exist. It answers one table after the other."""

    def __init__(self, name: str) -> None:
        python = environment(name) / "bin" / "python"
        variables = {**os.environ, "NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
        self.log = (BENCH / f"{name}-{os.getpid()}.log").open("w+")
        self.process = subprocess.Popen(
            [str(python), "-W", "ignore", __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={key: value for key, value in variables.items() if key != "PYTHONPATH"},
        )

    def ask(self, reference: Path, current: Path, columns: list[str] | None = None) -> dict[str, Scores]:
        """Return the scores of each method. `columns`: only these; the multivariate method always takes all."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        question = {"reference": str(reference), "current": str(current), "columns": columns}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            last = self.log.read()[-500:]
            raise RuntimeError(f"The peer ended with code {self.process.wait()}: {last}")
        return dict(json.loads(answer))


def environment(name: str) -> Path:
    """Return the folder of a peer's environment, after creating it if it is missing."""
    folder = BENCH / name
    if not (folder / "ready").exists():
        subprocess.run(["uv", "venv", "--clear", "-q", "--python", sys.executable, str(folder)], check=True)
        install = ["uv", "pip", "install", "-q", "--python", str(folder / "bin" / "python")]
        subprocess.run([*install, *PACKAGES[name]], check=True)
        (folder / "ready").touch()
    return folder


def versions(names: list[str]) -> dict[str, str]:
    """Return the versions of some peers."""
    code = "from importlib.metadata import version; import sys; print(version(sys.argv[1]))"
    return {
        name: subprocess.run(
            [str(environment(name) / "bin" / "python"), "-c", code, name], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in names
    }


def chart_scores(
    method: str, reference: pl.DataFrame, current: pl.DataFrame, windows: int, columns: list[str]
) -> Scores:
    """Return the scores of a chart of this process. Both tables have the column `WINDOW`, from 0."""
    import numpy as np

    score = _ks_scores if method == "ks" else _ewma_scores
    limit = -math.log10(0.05 / len(columns)) if method == "ks" else 3.0
    scores = np.column_stack([score(reference, current, windows, name) for name in columns])
    return {"columns": columns, "scores": scores.tolist(), "flags": (scores > limit).tolist()}


def _ks_scores(reference: pl.DataFrame, current: pl.DataFrame, windows: int, name: str) -> Any:
    import numpy as np
    from scipy import stats

    scores = np.zeros(windows)
    numeric = reference.schema[name].is_numeric()
    known = reference[name].drop_nulls()
    ordered = np.sort(known.to_numpy()) if numeric else np.zeros(0)
    before = dict(known.value_counts().iter_rows()) if not numeric else {}
    for (window,), rows in current.select(WINDOW, name).group_by(WINDOW):
        values = rows[name].drop_nulls()
        if not len(values):
            continue
        if numeric:
            x = np.sort(values.to_numpy())
            # Both sides of each step, so ties are treated as in scipy's ks_2samp.
            gap = 0.0
            for side in ("left", "right"):
                share = np.searchsorted(ordered, x, side=side) / len(ordered)
                gap = max(gap, float(np.abs(share - np.searchsorted(x, x, side=side) / len(x)).max()))
            size = len(x) * len(ordered) / (len(x) + len(ordered))
            p_value = float(stats.kstwo.sf(gap, max(1, round(size))))
        else:
            now = dict(values.value_counts().iter_rows())
            names = sorted({*before, *now})
            if len(names) < 2:
                continue
            table = np.array([[counts.get(key, 0) for key in names] for counts in (before, now)])
            p_value = float(stats.chi2_contingency(table, correction=False).pvalue)
        scores[int(str(window))] = -math.log10(max(p_value, 1e-300))
    return scores


def _ewma_scores(reference: pl.DataFrame, current: pl.DataFrame, windows: int, name: str, weight: float = 0.2) -> Any:
    import numpy as np
    import polars as pl

    column = pl.col(name)
    if reference.schema[name].is_numeric():
        parts = [column.mean().alias("mean")]
    else:
        parts = [(column == value).mean().alias(str(value)) for value in reference[name].drop_nulls().unique().sort()]
    parts.append(column.is_null().mean().alias("missing "))
    before = reference.group_by(WINDOW).agg(parts).sort(WINDOW).drop(WINDOW).to_numpy().astype(float)
    grouped = current.group_by(WINDOW).agg(parts).sort(WINDOW)
    now = grouped.drop(WINDOW).to_numpy().astype(float)
    deviation = np.nanstd(before, axis=0, ddof=1)
    z = (now - np.nanmean(before, axis=0)) / np.where(deviation > 0, deviation, 1e-4)
    z = np.nan_to_num(z)
    scores = np.zeros(windows)
    level = np.zeros(z.shape[1])
    for window, values in zip(grouped[WINDOW], z, strict=True):
        level = weight * values + (1 - weight) * level
        scores[window] = float(np.abs(level).max() / math.sqrt(weight / (2 - weight)))
    return scores


# In the process of a peer


def _evidently(reference: Any, current: Any, columns: list[str]) -> dict[str, Scores]:
    import numpy as np
    import pandas as pd
    from evidently.legacy.calculations.stattests.registry import _get_default_stattest
    from evidently.legacy.core import ColumnType

    numbers = sorted(current[WINDOW].unique())
    last = int(numbers[-1]) + 1
    scores, flags = np.zeros((last, len(columns))), np.zeros((last, len(columns)), dtype=bool)
    windows = {int(number): rows for number, rows in current.groupby(WINDOW)}
    for index, name in enumerate(columns):
        kind = ColumnType.Numerical if pd.api.types.is_numeric_dtype(reference[name]) else ColumnType.Categorical
        before = reference[name].replace([-np.inf, np.inf], np.nan).dropna()
        if not len(before):
            continue
        # Chosen once for all windows, because counting the distinct values takes longer than the test.
        test = _get_default_stattest(before, current[name].dropna(), kind)
        for number, rows in windows.items():
            now = rows[name].replace([-np.inf, np.inf], np.nan).dropna()
            if not len(now):
                continue
            result = test(before, now, kind, None)
            score, limit = float(result.drift_score), float(result.actual_threshold)
            if "p_value" in test.display_name:
                scores[number, index] = math.log(max(score, 1e-300)) / math.log(limit)
            else:
                scores[number, index] = score / limit
            flags[number, index] = bool(result.drifted)
    return {"evidently": {"columns": columns, "scores": scores.tolist(), "flags": flags.tolist()}}


def _nannyml(reference: Any, current: Any, columns: list[str]) -> dict[str, Scores]:
    import nannyml
    import numpy as np

    # The window's number is its day, because NannyML divides by time.
    for table in (reference, current):
        table["at"] = np.datetime64("2020-01-01") + table[WINDOW].to_numpy().astype("timedelta64[D]")
    everything = [name for name in reference.columns if name not in (WINDOW, "at")]
    last = int(current[WINDOW].max()) + 1
    places = np.sort(current[WINDOW].unique())
    cut = {"timestamp_column_name": "at", "chunk_period": "D"}

    def measured(calculator: Any) -> Any:
        calculator.fit(reference)
        return calculator.calculate(current).to_df()

    found = measured(nannyml.UnivariateDriftCalculator(column_names=columns, **cut))
    missing = measured(nannyml.MissingValuesCalculator(column_names=columns, **cut))
    pca = measured(nannyml.DataReconstructionDriftCalculator(column_names=everything, **cut))
    result: dict[str, Scores] = {}
    for method, table, names in (
        ("nannyml", found, [(name, (name, "jensen_shannon")) for name in columns]),
        ("nannyml missing", missing, [(name, (name,)) for name in columns]),
        ("nannyml pca", pca, [("*", ("reconstruction_error",))]),
    ):
        period = table[("chunk", "chunk", "period")] if table.columns.nlevels == 3 else table[("chunk", "period")]
        live, known = (period == "analysis").to_numpy(), (period == "reference").to_numpy()
        scores, flags = np.zeros((last, len(names))), np.zeros((last, len(names)), dtype=bool)
        for index, (_, key) in enumerate(names):
            values = table[(*key, "value")].to_numpy().astype(float)
            if method != "nannyml missing":
                deviation = float(np.nanstd(values[known]))
                values = (values - np.nanmean(values[known])) / max(deviation, 1e-12)
            values = np.abs(values) if method == "nannyml pca" else values
            scores[places, index] = np.nan_to_num(values[live])
            flags[places, index] = table[(*key, "alert")].to_numpy().astype(bool)[live]
        result[method] = {
            "columns": [name for name, _ in names],
            "scores": scores.tolist(),
            "flags": flags.tolist(),
        }
    return result


def _serve(name: str) -> None:
    import pandas as pd

    warnings.simplefilter("ignore")
    answer = {"evidently": _evidently, "nannyml": _nannyml}[name]
    out = sys.stdout
    for line in sys.stdin:
        question = json.loads(line)
        reference, current = (pd.read_parquet(question[part]) for part in ("reference", "current"))
        columns = question["columns"] or [column for column in reference.columns if column != WINDOW]
        with contextlib.redirect_stdout(sys.stderr):
            found = answer(reference, current, columns)
        out.write(json.dumps(found) + "\n")
        out.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
