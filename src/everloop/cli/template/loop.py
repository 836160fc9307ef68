"""{{name}}: the whole life cycle of a model, declared once.

Run it once with `everloop run`; keep it running with `everloop up`.
"""

import polars as pl

import everloop as el


@el.step
def wines() -> pl.LazyFrame:
    """178 Italian wines, their chemistry and cultivar (UCI wine recognition data, CC BY 4.0)."""
    return el.read("data/*.csv")


@el.step
def prepare(wines: pl.DataFrame) -> pl.DataFrame:
    """One row per wine: its measurements and its cultivar, which the model predicts."""
    return wines.with_columns((pl.col("color_intensity") / pl.col("hue")).alias("darkness"))


loop = el.Loop(
    "{{name}}",
    data=el.Dataset(prepare, target="cultivar", key="wine_id"),
    train=el.AutoTrain(metric="roc_auc", budget_s=5),
    gates=[el.AtLeast("roc_auc", 0.90), el.NotWorseThan("champion"), el.Latency(p99_ms=50)],
    serve=el.Endpoint("{{name}}", rollout=el.Canary(steps=[10, 50, 100])),
    watch=[el.Drift(alarms_per_month=1), el.Performance("roc_auc", labels_after="1d")],
    retrain=[el.OnDrift(), el.OnNewData()],
)
