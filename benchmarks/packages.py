"""Score one row and many rows with a packaged model: compiled, in its original form, and as one ONNX graph.

    python benchmarks/packages.py [--rows 200000]

Prints microseconds per row, rows per second, and how much faster the compiled form is.
"""

from __future__ import annotations

import argparse
import warnings
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from everloop.packages.compilation.selection import compile_model
from everloop.packages.package import signature_of
from everloop.packages.parity import plain_rows, probe
from everloop.registry.saving import describe

TRAINING_ROWS = 20_000


def table(rows: int) -> pd.DataFrame:
    """Make a table of twelve numeric and eight categorical columns."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {f"n{index}": rng.normal(size=rows) for index in range(12)}
    return pd.DataFrame(columns | {f"c{index}": rng.choice(list("abcdef"), rows) for index in range(8)})


def pipelines() -> dict[str, Any]:
    categories, numbers = [f"c{index}" for index in range(8)], [f"n{index}" for index in range(12)]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    ones = OneHotEncoder(handle_unknown="ignore")
    return {
        "100 boosted trees": make_pipeline(
            ColumnTransformer([("c", codes, categories), ("n", StandardScaler(), numbers)]),
            HistGradientBoostingClassifier(max_iter=100, early_stopping=False),
        ),
        "logistic regression": make_pipeline(
            ColumnTransformer([("c", ones, categories), ("n", StandardScaler(), numbers)]),
            LogisticRegression(max_iter=300),
        ),
    }


def best(ask: Any, turns: int) -> float:
    """Return the seconds of one call, the best of five series."""
    found = []
    for _ in range(5):
        began = perf_counter()
        for _ in range(turns):
            ask()
        found.append((perf_counter() - began) / turns)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    many = parser.parse_args().rows
    warnings.simplefilter("ignore")
    frame = table(TRAINING_ROWS)
    truth = frame["n0"] + frame["n1"] * frame["n2"] + 2 * (frame["c0"] == "b") > 0
    for name, pipeline in pipelines().items():
        measure(name, pipeline.fit(frame, truth), frame, many)


def measure(name: str, pipeline: Any, frame: pd.DataFrame, many: int) -> None:
    trained, sample = describe(pipeline, frame)
    signature = probe(trained.model, signature_of(trained), sample)
    compilation = compile_model(trained.model, signature, sample)
    compiled = compilation.model
    assert compiled is not None, compilation.evidence
    row = plain_rows(sample.head(1), signature)[0]
    values = tuple(row.values())
    one, original = best(lambda: compiled.form.row(values), 2000), best(lambda: trained.model.predict_rows([row]), 20)
    graph = compilation.evidence["row_us"].get("onnx")
    print(f"{name}, one row: {one * 1e6:.1f} µs compiled, {original * 1e6:,.0f} µs through scikit-learn", end="")
    print(f", {original / one:,.0f}×" + (f"; one ONNX graph {graph:.0f} µs, {graph / one / 1e6:.1f}×" if graph else ""))
    large = pl.concat([sample] * (many // sample.height + 1)).head(many)
    compiled_s = best(lambda: compiled.predict_scores(large), 1)
    original_s = best(lambda: trained.model.predict_scores(large.head(20_000)), 1) * many / 20_000
    print(
        f"{name}, {many:,} rows: {many / compiled_s:,.0f}/s compiled, {many / original_s:,.0f}/s through scikit-learn",
        end="",
    )
    print(f", {original_s / compiled_s:.1f}×")


if __name__ == "__main__":
    main()
