"""CatBoost's symmetric trees: all nodes of a level have the same split, so the results are the bits of a leaf's index.

Values are rounded to single precision first, and a split is `x > border`; the feature's setting decides the direction
of nulls. Source: CatBoost's JSON export, "Model export as JSON".
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
    """Return the trees by iteration, one for each output in each iteration, and the number of outputs.

    Raises:
        NotCompilableError: it has categorical or text features, or trees or a loss that are not supported.
    """
    loss = str(estimator.get_all_params().get("loss_function")).partition(":")[0]
    if loss not in _LOSSES[task]:
        raise NotCompilableError(f"the loss {loss} is not supported")
    with tempfile.TemporaryDirectory(prefix="everloop-catboost-") as folder:
        path = Path(folder, "model.json")
        estimator.save_model(str(path), format="json")
        model = json.loads(path.read_bytes())
    if "oblivious_trees" not in model:
        raise NotCompilableError("its trees are not symmetric")
    features = model["features_info"]
    if features.get("categorical_features") or features.get("text_features") or features.get("embedding_features"):
        raise NotCompilableError("it has its own categorical or text splits")
    nulls_right = {
        one["feature_index"]: one.get("nan_value_treatment") == "AsTrue" for one in features["float_features"]
    }
    flat = {one["feature_index"]: one["flat_feature_index"] for one in features["float_features"]}
    scale, bias = model.get("scale_and_bias") or (1.0, [0.0])
    start = list(bias) if isinstance(bias, list) else [bias]
    trees: list[Tree] = []
    width = 0
    for iteration, data in enumerate(model["oblivious_trees"]):
        splits = data["splits"] or []
        if len(splits) > MOST_DEPTH or any(split["split_type"] != "FloatFeature" for split in splits):
            raise NotCompilableError("one of its splits is not numeric, or a tree is too deep")
        width = len(data["leaf_values"]) >> len(splits)
        leaves = np.asarray(data["leaf_values"], dtype=np.float64).reshape(-1, width) * float(scale)
        weights = np.asarray(data.get("leaf_weights") or [1.0] * len(leaves), dtype=np.float64)
        if iteration == 0:
            leaves = leaves + np.resize(np.asarray(start, dtype=np.float64), width)
        for output in range(width):
            trees.append(build_tree(_node(splits, leaves[:, output], weights, flat, nulls_right)))
    if width != (1 if task != "multiclass" else len(estimator.classes_)):
        raise NotCompilableError(f"it has {width} outputs")
    return trees, width


def _node(
    splits: list[dict[str, Any]], leaves: Any, weights: Any, flat: dict[int, int], nulls_right: dict[int, bool]
) -> Any:
    depth = len(splits)

    def node(at: int) -> TreeNode:
        # Nodes are numbered like a heap, with the root at 0, and the last split is tested first.
        level = (at + 1).bit_length() - 1
        path = at + 1 - (1 << level)
        if level == depth:
            # The first split on the way is the highest bit of `path`, and the last in the list.
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
            count=float(sum(weights[leaf] for leaf in below)),
        )

    return node
