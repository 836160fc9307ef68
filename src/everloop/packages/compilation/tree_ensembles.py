"""Convert tree ensembles of any library to a LightGBM model text.

LightGBM compares in double precision and scores one row in microseconds through its C interface, so it runs the trees
of all libraries. Each library's comparisons stay exact: scikit-learn's forests and XGBoost round values to single
precision first; XGBoost compares `x < t`, which for single-precision values is `x <= the next smaller t`.

Source: LightGBM `src/io/gbdt_model_text.cpp` and `src/io/tree.cpp`, model text version v4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.packages.compilation.preprocessing import DOUBLE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CATEGORICAL, _DEFAULT_LEFT, _MISSING_NAN = 1, 2, 8


@dataclass(slots=True)
class Tree:
    """One tree. Node 0 is the root, each list has an entry for each inner node, and a child below 0 is a leaf.

    The child `-1` is the first leaf, `-2` the second, and so on.
    """

    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    missing_left: list[bool] = field(default_factory=list)
    categories: list[frozenset[int] | None] = field(default_factory=list)
    """Category codes that go left; None for a numeric split."""
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    leaves: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """Training rows in each inner node; explanations weight branches by them. `leaf_counts` has those of the leaves."""
    leaf_counts: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """A node of a library's tree. `leaf` is the value of a leaf, and None for an inner node."""

    leaf: float | None = None
    feature: int = 0
    threshold: float = 0.0
    missing_left: bool = False
    categories: frozenset[int] | None = None
    left: int = 0
    right: int = 0
    count: float = 1.0


def build_tree(node: Callable[[int], TreeNode]) -> Tree:
    """Build a tree from a library's nodes, and number inner nodes and leaves separately. `node(0)` is the root."""
    tree = Tree()
    # The library's number of a node, and the list and index to which its new number is written.
    waiting: list[tuple[int, list[int] | None, int]] = [(0, None, 0)]
    while waiting:
        original, parents, at = waiting.pop()
        seen = node(original)
        if seen.leaf is not None:
            tree.leaves.append(float(seen.leaf))
            tree.leaf_counts.append(_count(seen.count))
            number = -len(tree.leaves)
        else:
            number = len(tree.feature)
            tree.feature.append(seen.feature)
            tree.counts.append(_count(seen.count))
            tree.threshold.append(seen.threshold)
            tree.missing_left.append(seen.missing_left)
            tree.categories.append(seen.categories)
            tree.left.append(0)
            tree.right.append(0)
            waiting.append((seen.right, tree.right, number))
            waiting.append((seen.left, tree.left, number))
        if parents is not None:
            parents[at] = number
    return tree


def model_text(trees: Sequence[Tree], *, width: int, outputs: int = 1, objective: str = "") -> str:
    """Return the trees as LightGBM's model text.

    Args:
        trees: by iteration, one for each output in each iteration.
        width: number of floats in a row.
        objective: LightGBM's objective, which sets the link function; empty for the plain sums.
    """
    blocks = [f"Tree={number}\n{_block(tree)}\n\n" for number, tree in enumerate(trees)]
    header = [
        "tree",
        "version=v4",
        f"num_class={outputs}",
        f"num_tree_per_iteration={outputs}",
        "label_index=0",
        f"max_feature_idx={width - 1}",
        *([f"objective={objective}"] if objective else []),
        f"feature_names={' '.join(f'f{index}' for index in range(width))}",
        f"feature_infos={' '.join(['none'] * width)}",
        f"tree_sizes={' '.join(str(len(block)) for block in blocks)}",
    ]
    return "\n".join(header) + "\n\n" + "".join(blocks) + "end of trees\n"


def _block(tree: Tree) -> str:
    kinds: list[int] = []
    thresholds: list[str] = []
    bounds, words = [0], list[int]()
    for at, chosen in enumerate(tree.categories):
        kind = _MISSING_NAN | (_DEFAULT_LEFT if tree.missing_left[at] else 0)
        if chosen is None:
            # LightGBM's text has no infinity; the operation `bounded` limits the inputs of such a tree.
            thresholds.append(repr(float(min(max(tree.threshold[at], -DOUBLE_MAX), DOUBLE_MAX))))
        else:
            kind = _CATEGORICAL
            thresholds.append(str(len(bounds) - 1))
            bits = np.zeros(max(chosen, default=0) // 32 + 1, dtype=np.uint64)
            for code in chosen:
                bits[code // 32] |= np.uint64(1 << (code % 32))
            words.extend(int(word) for word in bits)
            bounds.append(len(words))
        kinds.append(kind)
    inner, leaves = len(tree.feature), len(tree.leaves)
    lines: dict[str, Any] = {
        "num_leaves": leaves,
        "num_cat": len(bounds) - 1,
        "split_feature": _joined(tree.feature),
        "split_gain": _joined([0] * inner),
        "threshold": " ".join(thresholds),
        "decision_type": _joined(kinds),
        "left_child": _joined(tree.left),
        "right_child": _joined(tree.right),
        "leaf_value": " ".join(repr(value) for value in tree.leaves),
        "leaf_weight": _joined(tree.leaf_counts),
        "leaf_count": _joined(tree.leaf_counts),
        "internal_value": _joined([0] * inner),
        "internal_weight": _joined(tree.counts),
        "internal_count": _joined(tree.counts),
    }
    if words:
        lines["cat_boundaries"] = _joined(bounds)
        lines["cat_threshold"] = _joined(words)
    lines |= {"is_linear": 0, "shrinkage": 1}
    return "\n".join(f"{name}={value}" for name, value in lines.items()) + "\n"


def _count(rows: float) -> int:
    return int(min(max(round(rows), 1), 2**31 - 1))


def _joined(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
