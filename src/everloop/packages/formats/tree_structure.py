"""Check that the children of a decision tree's nodes are in the same tree, and that it has no cycles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import CorruptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

DEEPEST = 10_000
"""The most levels of a tree. Libraries explain predictions by recursion, and their stack is limited."""


def check_children(left: Integers, right: Integers, leaves: int, where: str) -> None:
    """Check that every child is in the tree, and that every path from the root ends at a leaf.

    Args:
        left, right: the children of each inner node: an inner node by its number, a leaf by -1 minus its number.
        leaves: number of leaves. where: how messages call the tree.

    Raises:
        CorruptionError: a child is outside of the tree, or the tree has a cycle or too many levels.
    """
    import numpy as np

    children = np.concatenate([left, right])
    if not len(children):
        return
    if int(children.max()) >= len(left) or int(children.min()) < -leaves:
        raise broken_model(f"{where} with a node whose child is outside of it")
    inner = children[children >= 0]
    # Each node has one parent and the root has none, so no path from the root can return.
    if len(inner) and (int(inner.min()) < 1 or len(np.unique(inner)) != len(inner)):
        raise broken_model(f"{where} with a cycle")
    level = np.zeros(1, dtype=np.int64)
    for _ in range(DEEPEST):
        level = np.concatenate([left[level], right[level]])
        level = level[level >= 0]
        if not len(level):
            return
    raise broken_model(f"{where} of more than {DEEPEST} levels")


def broken_model(what: str) -> CorruptionError:
    """Return the error for a model that has `what`."""
    return CorruptionError(f"The model is damaged: it has {what}.", help="Package it again from the fitted estimator.")
