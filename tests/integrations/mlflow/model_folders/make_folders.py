"""Model folders as MLflow's own flavours write them, and what MLflow answers by them; run by a Python that has it."""

import json
import sys
from pathlib import Path

import catboost
import lightgbm
import mlflow
import numpy as np
import pandas as pd
import xgboost
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

out = Path(sys.argv[1])
chance = np.random.default_rng(0)
table = pd.DataFrame({"a": chance.random(200), "b": chance.random(200) * 10, "c": chance.choice(["x", "y", "z"], 200)})
truth = ((table.a + (table.c == "x")) > 0.8).astype(int)
words = np.where(truth == 1, "yes", "no")
numbers = table[["a", "b"]]
tree = ["sklearn.tree._tree.Tree"]


def kept(flavor, model, name, example, **more):
    # Requirements that are given are not looked for, which takes ten seconds a model.
    flavor.save_model(model, str(out / name), input_example=example, pip_requirements=["mlflow"], **more)


pipeline = make_pipeline(
    make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["c"]), remainder="passthrough"),
    LogisticRegression(),
)
kept(mlflow.sklearn, pipeline.fit(table, words), "pipeline", table.head(20))
forest = RandomForestClassifier(5, random_state=0).fit(numbers.to_numpy(), truth)
kept(mlflow.sklearn, forest, "array", numbers.to_numpy()[:20], skops_trusted_types=tree)
grown = RandomForestRegressor(5, random_state=0).fit(numbers, table.a)
kept(mlflow.sklearn, grown, "regression", numbers.head(20), skops_trusted_types=tree)
kept(mlflow.sklearn, LogisticRegression().fit(numbers, truth), "bare", None)
kept(mlflow.sklearn, LogisticRegression().fit(numbers, truth), "pickle", None, serialization_format="cloudpickle")
quiet = {"verbose": -1, "num_threads": 1}
kept(mlflow.lightgbm, lightgbm.LGBMClassifier(n_estimators=5, **quiet).fit(numbers, truth), "lgbm", numbers.head())
booster = lightgbm.train({"objective": "binary", **quiet}, lightgbm.Dataset(numbers, truth), 5)
kept(mlflow.lightgbm, booster, "booster", numbers.head())
kept(mlflow.xgboost, xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(numbers, truth), "xgb", numbers.head())
linear = xgboost.train({"objective": "reg:squarederror"}, xgboost.DMatrix(numbers, truth), 5)
kept(mlflow.xgboost, linear, "xgb_booster", numbers.head())
cat = catboost.CatBoostClassifier(iterations=5, verbose=0, allow_writing_files=False, thread_count=1)
kept(mlflow.catboost, cat.fit(numbers, truth), "cat", numbers.head())


class Doubles(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["a"] * 2


mlflow.pyfunc.save_model(
    str(out / "python"), python_model=Doubles(), input_example=numbers.head(), pip_requirements=["mlflow"]
)
table.to_csv(out / "rows.csv", index=False)
answers = {}
for folder in sorted(out.iterdir()):
    if folder.is_dir():
        rows = table if folder.name == "pipeline" else numbers
        rows = rows.to_numpy() if folder.name == "array" else rows
        answers[folder.name] = np.asarray(mlflow.pyfunc.load_model(str(folder)).predict(rows)).reshape(-1).tolist()
(out / "answers.json").write_text(json.dumps(answers))
