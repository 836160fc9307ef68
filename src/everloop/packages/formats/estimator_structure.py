"""Whether a fitted estimator that came out of a file holds together.

skops runs nothing of a file, but scikit-learn follows the numbers in a tree without looking whether they lead anywhere:
a node that points beyond the tree, or asks for a column that no row has, reads memory that is not its own. So the trees
of a file are looked through once, before anybody asks the model.
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

    Whole = NDArray[np.int64]

_LEAF = -1
_FORESTS = ("sklearn.ensemble._forest.", "sklearn.ensemble._gb.", "sklearn.ensemble._iforest.")
"""Ensembles that ask their trees without letting them look at the rows."""
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, FunctionType)


def check_structure(estimator: Any, *, boosters: bool = False) -> None:
    """Look through every tree that an estimator reaches.

    Args:
        boosters: also through the trees that LightGBM and XGBoost hold. They are written out for that, which takes as
            long as saving them, so it is left out for what was fitted here.

    Raises:
        CorruptionError: a node leads out of its tree, or asks for a column that the estimator does not have.
        TrustError: the estimator reads files that its rows name.
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
            own = getattr(value, "__dict__", None) or {}
            if kind.startswith("sklearn.feature_extraction.text.") and own.get("input", "content") != "content":
                raise TrustError(
                    f"The model holds a {type(value).__name__} that reads files, whose names its rows give."
                )
            columns = own.get("n_features_in_", width)
            inner = width if columns is None else int(columns)
            if kind.startswith("sklearn."):
                _check_parts(kind, own, inner)
            waiting += [(item, inner) for item in gc.get_referents(value)]


def _check_parts(kind: str, own: dict[str, Any], width: int | None) -> None:
    """What one of scikit-learn's estimators hands to compiled code without looking."""
    import numpy as np

    if kind.startswith(_FORESTS):
        sets = own.get("estimators_features_") or []
        for place, member in enumerate(np.ravel(np.asarray(own.get("estimators_", []), dtype=object))):
            tree = getattr(member, "tree_", None)
            wanted = len(sets[place]) if place < len(sets) else width
            if tree is not None and tree.n_features != wanted:
                raise broken_model(f"a tree of {tree.n_features} columns in an ensemble of {wanted}")
    centers = own.get("cluster_centers_")
    if isinstance(centers, np.ndarray) and (centers.ndim != 2 or centers.shape[1] != width):
        raise broken_model(f"centers of the shape {centers.shape} for {width} columns")
    if kind.startswith("sklearn.svm.") and "_n_support" in own:
        _check_vectors(own, width)


def _check_vectors(own: dict[str, Any], width: int | None) -> None:
    """Support vectors, and the numbers that go with each of them and with each pair of classes."""
    import numpy as np

    counts, vectors = np.asarray(own["_n_support"]), own["support_vectors_"]
    total, classes = len(own["support_"]), max(2, len(own.get("classes_", ())))
    pairs = classes * (classes - 1) // 2
    kernel = own.get("kernel") != "precomputed"
    if len(counts) not in (1, 2, classes) or (counts < 0).any():
        raise broken_model("counts of support vectors that fit no class")
    if "classes_" in own and (len(counts) != classes or int(counts.sum()) != total):
        raise broken_model(f"{int(counts.sum())} support vectors where there are {total}")
    if kernel and vectors.shape != (total, width):
        raise broken_model(f"support vectors of the shape {vectors.shape} for {total} of {width} columns")
    if own["_dual_coef_"].shape != (classes - 1, total) or len(own["_intercept_"]) != pairs:
        raise broken_model("coefficients that do not fit its support vectors")
    if any(len(own.get(name, ())) not in (0, pairs) for name in ("_probA", "_probB")):
        raise broken_model("probabilities that do not fit its classes")


def _check_neighbours(data: Any, index: Any, nodes: Any, bounds: Any) -> None:
    """A tree of neighbours: an order of its rows, and where each node's part of it starts and ends."""
    import numpy as np

    rows, order = len(data), np.asarray(index)
    start, end = np.asarray(nodes["idx_start"]), np.asarray(nodes["idx_end"])
    if len(order) != rows or (rows and not 0 <= int(order.min()) <= int(order.max()) < rows):
        raise broken_model("a tree of neighbours with rows that there are not")
    if not len(nodes) or (start < 0).any() or (end > rows).any() or (start > end).any():
        raise broken_model("a tree of neighbours with a node that leads out of it")
    inner = np.flatnonzero(~np.asarray(nodes["is_leaf"]).astype(bool))
    if len(inner) and 2 * int(inner.max()) + 2 >= len(nodes):
        raise broken_model("a tree of neighbours that ends too soon")
    if np.asarray(bounds).shape[1:] != (len(nodes), np.asarray(data).shape[1]):
        raise broken_model("a tree of neighbours whose bounds do not fit")


def _check_predictor(predictor: Any, width: int | None) -> None:
    """A tree of a histogram boosting, and the sets of categories that its nodes may name."""
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
        raise broken_model("a node that names a set of categories which is not there")


def _check_nodes(left: Any, right: Any, feature: Any, count: int, width: int | None) -> None:
    import numpy as np

    left, right, feature = (np.asarray(part).astype(np.int64) for part in (left, right, feature))
    if not len(left) == len(right) == len(feature) == count or count < 1:
        raise broken_model("a tree whose parts differ in length")
    inner = left != _LEAF
    if ((right != _LEAF) != inner).any():
        raise broken_model("a node with one child")
    own = np.arange(count)[inner]
    for side in (left[inner], right[inner]):
        # Children stand behind their parent, so that following them always ends.
        if (side <= own).any() or (side >= count).any():
            raise broken_model("a node that leads out of its tree")
    asked = feature[inner]
    if len(asked) and (asked.min() < 0 or (width is not None and asked.max() >= width)):
        raise broken_model("a node that asks for a column which no row has")


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
