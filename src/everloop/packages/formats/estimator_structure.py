"""Check the structure of a fitted estimator that was loaded from a file.

skops runs no code from a file, but scikit-learn does not check the numbers in a tree: a node whose child is outside of
the tree, or a split on a column that does not exist, reads foreign memory. So all trees are checked once after loading,
before the model predicts.
"""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from everloop.errors import TrustError
from everloop.packages.formats.tree_structure import broken_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_LEAF = -1
_FORESTS = ("sklearn.ensemble._forest.", "sklearn.ensemble._gb.", "sklearn.ensemble._iforest.")
"""Ensembles that call their trees without the checks that a single tree makes."""
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, FunctionType)


def check_structure(estimator: Any, *, boosters: bool = False) -> None:
    """Check every tree in an estimator.

    Args:
        boosters: also check the trees of LightGBM and XGBoost. This takes as long as saving them, so it is not done for
            models that were fitted here.

    Raises:
        CorruptionError: a node's child is outside of its tree, or a split is on a column that does not exist.
        TrustError: the estimator reads files whose names are in its rows.
    """
    import numpy as np

    seen: set[int] = set()
    waiting: list[tuple[Any, int | None]] = [(estimator, None)]
    while waiting:
        value, width = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        kind = f"{type(value).__module__}.{type(value).__name__}"
        if kind == "sklearn.tree._tree.Tree":
            _check_nodes(value.children_left, value.children_right, value.feature, value.node_count, value.n_features)
            if value.n_features != width:
                raise broken_model(
                    f"a tree of {value.n_features} columns in an estimator of {width or 'an unknown number'}"
                )
        elif kind == "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor":
            _check_predictor(value, width)
        elif kind.startswith("sklearn.neighbors._kd_tree."):
            _check_neighbours(*value.get_arrays())
        elif kind in _BOOSTERS:
            if boosters:
                _BOOSTERS[kind](value)
        elif isinstance(value, np.ndarray):
            if value.dtype == object:
                waiting += [(item, width) for item in value.ravel().tolist()]
        else:
            attributes = getattr(value, "__dict__", None) or {}
            if kind.startswith("sklearn.feature_extraction.text.") and attributes.get("input", "content") != "content":
                raise TrustError(
                    f"The model contains a {type(value).__name__} that reads files, whose names are in its rows.",
                    help="Fit it with input='content' and pass the texts themselves.",
                )
            columns = attributes.get("n_features_in_", width)
            inner = width if columns is None else int(columns)
            if kind.startswith("sklearn."):
                _check_parts(kind, attributes, inner)
            waiting += [(item, inner) for item in gc.get_referents(value)]


def _check_parts(kind: str, attributes: dict[str, Any], width: int | None) -> None:
    """Check the attributes that one of scikit-learn's estimators passes to compiled code without a check."""
    import numpy as np

    if kind.startswith(_FORESTS):
        sets = attributes.get("estimators_features_") or []
        for index, member in enumerate(np.ravel(np.asarray(attributes.get("estimators_", []), dtype=object))):
            tree = getattr(member, "tree_", None)
            wanted = len(sets[index]) if index < len(sets) else width
            if tree is not None and tree.n_features != wanted:
                raise broken_model(f"a tree of {tree.n_features} columns in an ensemble of {wanted}")
    centers = attributes.get("cluster_centers_")
    if isinstance(centers, np.ndarray) and (centers.ndim != 2 or centers.shape[1] != width):
        raise broken_model(f"centers of the shape {centers.shape} for {width} columns")
    if kind.startswith("sklearn.svm.") and "_n_support" in attributes:
        _check_vectors(attributes, width)


def _check_vectors(attributes: dict[str, Any], width: int | None) -> None:
    """Check support vectors, and the numbers for each of them and for each pair of classes."""
    import numpy as np

    counts, vectors = np.asarray(attributes["_n_support"]), attributes["support_vectors_"]
    total, classes = len(attributes["support_"]), max(2, len(attributes.get("classes_", ())))
    pairs = classes * (classes - 1) // 2
    kernel = attributes.get("kernel") != "precomputed"
    if len(counts) not in (1, 2, classes) or (counts < 0).any():
        raise broken_model("counts of support vectors that do not fit its classes")
    if "classes_" in attributes and (len(counts) != classes or int(counts.sum()) != total):
        raise broken_model(f"counts of {int(counts.sum())} support vectors, but {total} vectors")
    if kernel and vectors.shape != (total, width):
        raise broken_model(f"support vectors of the shape {vectors.shape} for {total} of {width} columns")
    if attributes["_dual_coef_"].shape != (classes - 1, total) or len(attributes["_intercept_"]) != pairs:
        raise broken_model("coefficients that do not fit its support vectors")
    if any(len(attributes.get(name, ())) not in (0, pairs) for name in ("_probA", "_probB")):
        raise broken_model("probabilities that do not fit its classes")


def _check_neighbours(data: Any, index: Any, nodes: Any, bounds: Any) -> None:
    """Check a tree of neighbours: the order of its rows, and the start and end of each node's part."""
    import numpy as np

    rows, order = len(data), np.asarray(index)
    start, end = np.asarray(nodes["idx_start"]), np.asarray(nodes["idx_end"])
    if len(order) != rows or (rows and not 0 <= int(order.min()) <= int(order.max()) < rows):
        raise broken_model("a tree of neighbours with rows that do not exist")
    if not len(nodes) or (start < 0).any() or (end > rows).any() or (start > end).any():
        raise broken_model("a tree of neighbours with a node outside of its rows")
    inner = np.flatnonzero(~np.asarray(nodes["is_leaf"]).astype(bool))
    if len(inner) and 2 * int(inner.max()) + 2 >= len(nodes):
        raise broken_model("a tree of neighbours with missing nodes")
    if np.asarray(bounds).shape[1:] != (len(nodes), np.asarray(data).shape[1]):
        raise broken_model("a tree of neighbours whose bounds do not fit")


def _check_predictor(predictor: Any, width: int | None) -> None:
    """Check a tree of histogram gradient boosting, and its sets of categories."""
    if width is None:
        raise broken_model("trees in an estimator of an unknown number of columns")
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    left, right = (nodes[side].astype("int64") for side in ("left", "right"))
    left[leaf] = right[leaf] = _LEAF
    _check_nodes(left, right, nodes["feature_idx"], len(nodes), width)
    named = nodes["bitset_idx"][nodes["is_categorical"].astype(bool) & ~leaf]
    if len(named) and int(named.max()) >= min(
        len(predictor.raw_left_cat_bitsets), len(predictor.binned_left_cat_bitsets)
    ):
        raise broken_model("a node with a set of categories that does not exist")


def _check_nodes(left: Any, right: Any, feature: Any, count: int, width: int | None) -> None:
    import numpy as np

    left, right, feature = (np.asarray(part).astype(np.int64) for part in (left, right, feature))
    if not len(left) == len(right) == len(feature) == count or count < 1:
        raise broken_model("a tree whose parts differ in length")
    inner = left != _LEAF
    if ((right != _LEAF) != inner).any():
        raise broken_model("a node with one child")
    parents = np.arange(count)[inner]
    for children in (left[inner], right[inner]):
        # Children have larger numbers than their parent, so that following them always ends.
        if (children <= parents).any() or (children >= count).any():
            raise broken_model("a node whose child is outside of its tree")
    columns = feature[inner]
    if len(columns) and (columns.min() < 0 or (width is not None and columns.max() >= width)):
        raise broken_model("a split on a column that does not exist")


def _check_lightgbm(booster: Any) -> None:
    from everloop.packages.formats.lightgbm_text import check_text

    text = booster.to_text() if hasattr(booster, "to_text") else booster.model_to_string(num_iteration=-1)
    check_text(text.encode())


def _check_xgboost(booster: Any) -> None:
    from everloop.packages.formats.xgboost_trees import check_trees

    check_trees(bytes(booster.save_raw("ubj")))


_BOOSTERS = {
    "everloop.training.algorithms.booster.Booster": _check_lightgbm,
    "lightgbm.basic.Booster": _check_lightgbm,
    "xgboost.core.Booster": _check_xgboost,
}
