"""Run by H2O's own Python: trains small models, downloads their MOJOs, and writes down what H2O itself answers."""

from __future__ import annotations

import json
import random
import sys

import h2o
from h2o.estimators import (
    H2OGeneralizedLinearEstimator,
    H2OGradientBoostingEstimator,
    H2ORandomForestEstimator,
)

ROWS = 300
FAMILIES = {"binary": "binomial", "multiclass": "multinomial", "regression": "gaussian"}
TARGETS = {"binary": "yes", "multiclass": "three", "regression": "value"}
KINDS = {
    "gbm": H2OGradientBoostingEstimator,
    "drf": H2ORandomForestEstimator,
    "glm": H2OGeneralizedLinearEstimator,
}


def main(folder, port):
    chance = random.Random(0)
    rows = {
        "a": [chance.gauss(0, 10) for _ in range(ROWS)],
        "n": [chance.randrange(50) for _ in range(ROWS)],
        "c": [chance.choice(["red", "green", "blue", "violet"]) for _ in range(ROWS)],
    }
    effect = {"red": 5, "green": -5, "blue": 0, "violet": 9}
    value = [a + effect[c] + chance.gauss(0, 1) for a, c in zip(rows["a"], rows["c"], strict=True)]
    rows["a"] = [None if place % 9 == 0 else one for place, one in enumerate(rows["a"])]
    rows["c"] = [None if place % 13 == 0 else one for place, one in enumerate(rows["c"])]
    rows |= {
        "yes": ["Y" if one > 2 else "N" for one in value],
        "three": ["lo" if one < -5 else "hi" if one > 7 else "mid" for one in value],
        "value": value,
    }
    h2o.init(nthreads=1, max_mem_size="1G", bind_to_localhost=True, port=port, strict_version_check=False)
    try:
        h2o.no_progress()
        kinds = {name: "numeric" if name in ("a", "n", "value") else "enum" for name in rows}
        shown = {name: ["" if one is None else one for one in column] for name, column in rows.items()}
        frame = h2o.H2OFrame(shown, column_types=kinds, na_strings=[""])
        answers = {}
        for task, target in TARGETS.items():
            for name, kind in KINDS.items():
                given = {"family": FAMILIES[task], "lambda_": 0.01} if name == "glm" else {"ntrees": 6}
                model = kind(seed=1, **given)
                model.train(x=["a", "n", "c"], y=target, training_frame=frame)
                model.download_mojo(path=f"{folder}/{name}-{task}.zip")
                found = model.predict(frame).as_data_frame(use_pandas=False)
                answers[f"{name}-{task}"] = {"columns": found[0], "rows": found[1:]}
        with open(f"{folder}/answers.json", "w") as file:  # noqa: PTH123 - as plain as can be
            json.dump({"rows": rows, "answers": answers}, file)
    finally:
        h2o.cluster().shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
