"""CatBoost's symmetric trees: every node of a level asks the same question, so a leaf's number is the answers' bits.

Values are cut to single precision first, and a question is `x > border`; a null answers as the feature's treatment
says. Source: CatBoost's JSON export, "Model export as JSON".
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.packages.compilation.pipelines import NotCompilableError
from everloop.packages.compilation.tree_ensembles import Tree, TreeNode, build_tree

if TYPE_CHECKING:
    from everloop.training.trained_model import Task

_LOSSES = {
    "binary": {"Logloss", "CrossEntropy"},
    "multiclass": {"MultiClass"},
    "regression": {"RMSE", "MAE", "Quantile", "Huber", "LogCosh", "MAPE"},
}
MOST_DEPTH = 10


def catboost_trees(estimator: Any, task: Task) -> tuple[list[Tree], int]:
    """The trees round by round, in each round one for each answer, and how many answers there are.

    Raises:
        NotCompilableError: it has categories or texts of its own, or trees or a loss that are not known here.
    """
    loss = str(estimator.get_all_params().get("loss_function")).partition(":")[0]
    if loss not in _LOSSES[task]:
        raise NotCompilableError(f"the loss {loss} is not known")
    with tempfile.TemporaryDirectory(prefix="everloop-catboost-") as folder:
        place = Path(folder, "model.json")
        estimator.save_model(str(place), format="json")
        model = json.loads(place.read_bytes())
    if "oblivious_trees" not in model:
        raise NotCompilableError("its trees are not symmetric")
    features = model["features_info"]
    if features.get("categorical_features") or features.get("text_features") or features.get("embedding_features"):
        raise NotCompilableError("it splits on categories or texts of its own")
    nulls_right = {
        one["feature_index"]: one.get("nan_value_treatment") == "AsTrue" for one in features["float_features"]
    }
    flat = {one["feature_index"]: one["flat_feature_index"] for one in features["float_features"]}
    scale, bias = model.get("scale_and_bias") or (1.0, [0.0])
    start = list(bias) if isinstance(bias, list) else [bias]
    trees: list[Tree] = []
    width = 0
    for turn, data in enumerate(model["oblivious_trees"]):
        splits = data["splits"] or []
        if len(splits) > MOST_DEPTH or any(split["split_type"] != "FloatFeature" for split in splits):
            raise NotCompilableError("a split of it is not one of a number")
        width = len(data["leaf_values"]) >> len(splits)
        leaves = np.asarray(data["leaf_values"], dtype=np.float64).reshape(-1, width) * float(scale)
        weights = np.asarray(data.get("leaf_weights") or [1.0] * len(leaves), dtype=np.float64)
        if turn == 0:
            leaves = leaves + np.resize(np.asarray(start, dtype=np.float64), width)
        for answer in range(width):
            trees.append(build_tree(_node(splits, leaves[:, answer], weights, flat, nulls_right)))
    if width != (1 if task != "multiclass" else len(estimator.classes_)):
        raise NotCompilableError(f"it gives {width} answers")
    return trees, width


def _node(
    splits: list[dict[str, Any]], leaves: Any, weights: Any, flat: dict[int, int], nulls_right: dict[int, bool]
) -> Any:
    depth = len(splits)

    def node(at: int) -> TreeNode:
        # Numbered as a heap: the root is 0, and the questions are asked from the last bit down.
        level = (at + 1).bit_length() - 1
        path = at + 1 - (1 << level)
        if level == depth:
            # The first question on the way gave the highest bit of `path`, and is the last of the splits.
            return TreeNode(leaf=float(leaves[path]), count=float(weights[path]))
        split = splits[depth - 1 - level]
        feature = split["float_feature_index"]
        below = range(path << (depth - level), (path + 1) << (depth - level))
        return TreeNode(
            feature=flat[feature],
            threshold=float(np.float32(split["border"])),
            missing_left=not nulls_right[feature],
            left=2 * at + 1,
            right=2 * at + 2,
            count=float(sum(weights[place] for place in below)),
        )

    return node
