"""Whether a fitted estimator that came out of a file holds together.

skops runs nothing of a file, but scikit-learn follows the numbers in a tree without looking whether they lead anywhere:
a node that points beyond the tree, or asks for a column that no row has, reads memory that is not its own. So the trees
of a file are looked through once, before anybody asks the model.
"""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType
from typing import Any

from everloop.errors import CorruptionError

_LEAF = -1
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, FunctionType)


def check_structure(estimator: Any) -> None:
    """Look through every tree that an estimator reaches.

    Raises:
        CorruptionError: a node leads out of its tree, or asks for a column that the estimator does not have.
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
            if width is not None and value.n_features != width:
                raise _broken(f"a tree of {value.n_features} columns in an estimator of {width}")
        elif kind == "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor":
            _check_predictor(value, width)
        elif isinstance(value, np.ndarray):
            if value.dtype == object:
                waiting += [(item, width) for item in value.ravel().tolist()]
        else:
            own = getattr(value, "__dict__", None) or {}
            columns = own.get("n_features_in_", width)
            inner = width if columns is None else int(columns)
            waiting += [(item, inner) for item in gc.get_referents(value)]


def _check_predictor(predictor: Any, width: int | None) -> None:
    """A tree of a histogram boosting, and the sets of categories that its nodes may name."""
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    left, right = (nodes[side].astype("int64") for side in ("left", "right"))
    left[leaf] = right[leaf] = _LEAF
    _check_nodes(left, right, nodes["feature_idx"], len(nodes), width)
    named = nodes["bitset_idx"][nodes["is_categorical"].astype(bool) & ~leaf]
    if len(named) and int(named.max()) >= min(
        len(predictor.raw_left_cat_bitsets), len(predictor.binned_left_cat_bitsets)
    ):
        raise _broken("a node that names a set of categories which is not there")


def _check_nodes(left: Any, right: Any, feature: Any, count: int, width: int | None) -> None:
    import numpy as np

    left, right, feature = (np.asarray(part).astype(np.int64) for part in (left, right, feature))
    if not len(left) == len(right) == len(feature) == count or count < 1:
        raise _broken("a tree whose parts differ in length")
    inner = left != _LEAF
    if ((right != _LEAF) != inner).any():
        raise _broken("a node with one child")
    own = np.arange(count)[inner]
    for side in (left[inner], right[inner]):
        # Children stand behind their parent, so that following them always ends.
        if (side <= own).any() or (side >= count).any():
            raise _broken("a node that leads out of its tree")
    asked = feature[inner]
    if len(asked) and (asked.min() < 0 or (width is not None and asked.max() >= width)):
        raise _broken("a node that asks for a column which no row has")


def _broken(what: str) -> CorruptionError:
    return CorruptionError(f"The model holds {what}.", help="Build it again from the estimator that was fitted.")
